"""Check the settings of an evaluation: the run or weights, the data, the probe."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vitlab.config import allowlist
from vitlab.config.printable import format_names
from vitlab.config.schema import ConfigView, suggest
from vitlab.runs import folder

SPLIT_ROW = re.compile(r"(train|val|test):(\d+)")
TestSet = Literal["folders", "imagenet-a", "imagenet-r", "imagenet-real"]
CORRUPTIONS: dict[str, Any] = folder.read_yaml(Path(__file__).parent / "corruptions.yaml")
FROST = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")  # the published code skips its sixth


def evaluation_problems(read: ConfigView) -> Iterator[str]:
    for check in (source_problems, probe_problems, run_problems, temperature_problems, test_set_problems):
        yield from check(read)


def test_set_problems(read: ConfigView) -> Iterator[str]:
    path, kind, mapping, frost = (read(key, str) for key in ("test_dir", "test_set", "class_map", "frost_dir"))
    wanted = read.config.get("corruptions") or []
    if path and not Path(path).is_dir():
        yield f"test_dir={path} is not a folder; name one with a folder of images for each class"
    if path is None and (kind not in (None, "folders") or mapping):
        yield f"test_set={kind} and class_map={mapping or 'null'}, but test_dir=null; set test_dir, or leave them out"
    if mapping and (kind != "folders" or not Path(mapping).is_file()):
        yield f"class_map={mapping} is not a YAML or JSON file for test_set=folders; name one, or leave it out"
    if path and ((split := read("split", str)) != "test" or read("fit_temperature", bool)):
        yield f"split={split} or fit_temperature=true: test_dir={path} has one split; leave it out"
    if (path or wanted) and read.config.get("probe"):
        yield f"probe is set: test_dir={path or 'null'} and corruptions are for a network's head; leave probe out"
    for name in wanted if wanted != "all" else ():
        if name not in CORRUPTIONS:
            yield f"corruptions: there is no {name}{suggest(name, CORRUPTIONS)}; choose of {', '.join(CORRUPTIONS)}"
    if ("frost" in wanted or frost) and not all((Path(str(frost)) / name).is_file() for name in FROST):
        yield f"frost_dir={frost or 'null'} is not the folder of ImageNet-C's photographs, {', '.join(FROST)}"
    elif frost and wanted:
        from PIL import Image

        config = Path(read("run", str) or "") / folder.CONFIG
        size = (folder.read_config(config.parent) if config.is_file() else read.config).get("image_size") or 0
        height, width = size if isinstance(size, list) else (size, size)
        for name in FROST:
            with Image.open(Path(frost) / name) as own:
                if own.height <= height or own.width <= width:
                    yield f"frost_dir={frost}: {name} of {own.height} x {own.width} is too small for image_size={size}"


def temperature_problems(read: ConfigView) -> Iterator[str]:
    if not read("fit_temperature", bool):
        return
    if (run := read("run", str)) is None or read("checkpoint", str) != "best" or read.config.get("probe"):
        yield "fit_temperature=true is for the best checkpoint of a run and its head; set run=FOLDER, or leave it out"
    elif (Path(run) / folder.CONFIG).is_file() and not read.has_problem("run"):
        loss = folder.read_config(Path(run)).get("classifier", {}).get("loss", "softmax")
        if loss in ("sigmoid", "bce", "focal"):
            yield f"fit_temperature=true: classifier.loss={loss} of {run} has no softmax to calibrate; leave it out"


def run_problems(read: ConfigView) -> Iterator[str]:
    run, checkpoint = read("run", str), read("checkpoint", str)
    if run is None or checkpoint is None:
        return
    file = Path(run) / folder.CONFIG
    if not file.is_file():
        names = [str(path) for path in reversed(folder.list_runs(Path(run)))]
        there = f"; the runs in it: {format_names(names, 3)}" if names else ""
        yield f"run={run} is not a run folder: it has no {folder.CONFIG}{there}; run=last is the newest of runs/"
        return
    try:
        refused = allowlist.problems(folder.read_config(Path(run)))
    except (OSError, folder.UnreadableRun) as error:
        yield f"run={run}: {error}"
        return
    yield from (f"run={run}: {problem}" for problem in refused)
    if not refused and not folder.checkpoint_file(Path(run), checkpoint).is_file():
        yield f"checkpoint={checkpoint}: {run}/checkpoints has no {checkpoint}.ckpt; train it first"


def source_problems(read: ConfigView) -> Iterator[str]:
    """A run is evaluated on its own data, another model on the data of the configuration."""
    run, model, data = (read.config.get(key) for key in ("run", "model", "data"))
    if run is None and model is None:
        yield "neither run nor model.weights is set; run=FOLDER evaluates a run, model.weights=SOURCE other weights"
    elif run is None and read("test_dir", str) is None and not (isinstance(data, dict) and "_target_" in data):
        yield "data is not set; name the data set to evaluate on, such as data=cifar100"
    elif run is not None and read("weights.source") is not None:
        yield "run and model.weights are both set; leave one of them out"
    elif run is not None:
        others = ("model", "data") if model or data else ("image_size", "data_dir")
        for key in others:
            if read.config.get(key) is not None:
                yield f"{key} is set, and run={run} has its own; leave {key} out, or set model.weights={run}, not run"


def probe_problems(read: ConfigView) -> Iterator[str]:
    node = read("probe", dict)
    if not node or "_target_" not in node or read.has_problem("probe"):
        return
    if read("split", str) == "train":
        yield "split=train: a probe is fitted to the training images; use val or test"
    kind, class_token = node.get("features"), read("model.class_token", bool)
    if kind in ("cls", "both") and class_token is False:
        yield f"probe.features={kind}: model.class_token=false leaves no [cls] token to read; use mean or pooled"


def prediction_problems(read: ConfigView) -> Iterator[str]:
    run, images = read("run", str), read("images", str | list[str])
    if run is not None and not run.startswith(("timm:", "hf:")):
        path = Path(run).expanduser()
        if (path / folder.CONFIG).is_file():
            yield from run_problems(read)
            if (part := read.config.get("part")) not in (None, "ema", "raw"):
                yield f"part={part}: a run has ema and raw weights, with callbacks=ema; choose one, or leave part out"
        elif not path.exists():
            yield f"run={run} doesn't exist; name a run, an export, an ONNX file, weights, timm:NAME or hf:NAME"
    is_onnx = run is not None and (run.endswith(".onnx") or (Path(run) / "model.onnx").is_file())
    if is_onnx and (read("embed", bool) or "baseline" in read.config):
        yield f"run={run}: an ONNX file has logits alone, no features and no attention; name the run or another export"
    if images is not None and not (split_rows(images) and "baseline" in read.config):
        from vitlab.data.file_list import find_images

        try:
            find_images(images)
        except ValueError as error:
            yield str(error)


def split_rows(images: str | list[str] | None) -> list[tuple[Any, int]]:
    """The splits and rows of `test:17` or `[test:17,val:3]`; none for paths."""
    rows = [SPLIT_ROW.fullmatch(str(each)) for each in ([images] if isinstance(images, str) else images or ())]
    return [(row[1], int(row[2])) for row in rows if row] if all(rows) else []


def class_index(classes: tuple[str, ...] | None, name: str | int, setting: str = "target") -> int:
    """The number of a class by its name or number. Raises `ValueError`."""
    if str(name) in (names := classes or ()):
        return names.index(str(name))
    if str(name).isdecimal() and (not names or int(name) < len(names)):
        return int(name)
    raise ValueError(f"{setting}={name} is no class of the network{suggest(str(name), names)}")


def demo_problems(read: ConfigView) -> Iterator[str]:
    yield from prediction_problems(read)
    if find_spec("gradio") is None:
        yield "the demo needs Gradio; install it with pip install 'vitlab[demo]'"


def explanation_problems(read: ConfigView) -> Iterator[str]:
    yield from prediction_problems(read)
    run, compare = read("run", str), read("compare", str)
    images, place = read("images", str | list[str]), Path(str(run))
    rows = split_rows(images)
    if run is not None and (images is None or rows) and not (place / folder.CONFIG).is_file():
        yield f"images is {images or 'not set'}, and run={run} has none; name a file, a folder or a pattern like *.jpg"
    samples = (folder.read_results(place).get("samples") or {}) if rows else {}
    for split, row in rows if samples else ():  # else `load_inputs` reports it
        if row >= (count := samples.get(split, 0)):
            yield f"images={split}:{row}: run={run} has {count:,} {split} images; they count from 0"
    target, known = read.config.get("target"), place / "evaluation" / "best-test" / "judgement.json"
    if target is not None and known.is_file():  # else the network's classes are unknown before it is loaded
        try:
            class_index(tuple(row[0] for row in json.loads(known.read_text())["classes"][1:]), target)
        except ValueError as error:
            yield str(error)
    if compare is not None and not compare.startswith(("timm:", "hf:")) and not Path(compare).exists():
        yield f"compare={compare} doesn't exist; name a run, weights, timm:NAME or hf:NAME"
