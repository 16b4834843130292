"""README and docs: the walk-through has the model's shapes, each command passes its own checks, links and code work."""

import importlib
import re
import shlex
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import prepare
import sweep
import train
from vitlab.cli import imports
from vitlab.cli.arguments import with_action
from vitlab.cli.preflight import preflight
from vitlab.models import attention, vit
from vitlab.runs.folder import write_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def walk_through() -> list[tuple[str, tuple[int, ...], str]]:
    """The rows of the table: step, shape, where."""
    rows = re.findall(r"^\| (.+) \| ([\d x]+) \| `([\w.]+)` \|$", README, flags=re.MULTILINE)
    return [(step, tuple(int(n) for n in shape.split(" x ")), where) for step, shape, where in rows]


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    """What comes out of each place for one image, without its batch dimension."""
    model = vit.VisionTransformer().eval()
    images, found = torch.rand(1, 3, 224, 224), dict[str, tuple[int, ...]]()

    def note(name: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[name] = tuple(output.shape[1:])

        model.get_submodule(name).register_forward_hook(hook)

    for _, _, where in walk_through():
        if not hasattr(vit, where.split(".")[0]):  # a module of the network, not a method or function of vit.py
            note(where)
    with torch.no_grad():
        tokens = model.forward_features(images)
        model.forward_head(tokens)
        patches = model.patch_embed.proj.weight[0].numel()
        embedded = model.embed(images)
        block = model.blocks[0]
        q, k, _ = block.attn.project(block.norm1(embedded))
        found |= {
            "VisionTransformer.forward": tuple(images.shape[1:]),
            "PatchEmbedding.forward": (model.grid[0] * model.grid[1], patches),
            "VisionTransformer.embed": tuple(embedded.shape[1:]),
            "MultiHeadAttention.project": tuple(q.shape[1:]),
            "attention_weights": tuple(attention.attention_weights(q, k).shape[1:]),
            "VisionTransformer.forward_head": tuple(tokens[:, 0].shape[1:]),
        }
    return found


def test_the_walk_through_has_all_its_steps() -> None:
    assert len(walk_through()) == 13


@pytest.mark.parametrize(("step", "shape", "where"), walk_through(), ids=[where for *_, where in walk_through()])
def test_each_step_of_the_walk_through_has_the_shape_it_says(
    step: str, shape: tuple[int, ...], where: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    assert shapes[where] == shape, step


# ------------------------------------------------------------------------------------------------------ the commands

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md")),
    *sorted(DOCS.glob("*.md")),
]
# Arguments that stand for what only the reader has, and no stand-in is made of: these alone may be what is wrong.
YOURS = re.compile(
    r"(sweep|runs)=.*|resume=runs/NAME/STAMP|run=\.\.\.|data\.name=\.\.\.|experiment=NAME|model=mine"
    r"|model\.weights=B_16\.npz|classifier\.teacher=runs/NAME/STAMP"
)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "mine", "RANK": "0", "LOCAL_RANK": "0"}
SRUN = {
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NODEID": "0",
    "SLURM_JOB_ID": "70042",
    "SLURM_JOB_NODELIST": "n1",
}


def commands(text: str) -> list[tuple[str, ...]]:
    """Who starts it (`torchrun`, `srun` or nobody), the program and its arguments, of each command that a page shows:
    in its blocks, its indented lines and the code within its sentences.
    """
    text = re.sub(r"\s*\\\n\s*", " ", text)  # lines that go on
    text = re.sub(r"\$launcher|\$\{launcher[^}]*\}", "local", text)  # the variable of a shell's loop
    lines = list[str]()
    for number, part in enumerate(re.split(r"^ *```.*$", text, flags=re.M)):
        lines += part.splitlines() if number % 2 else re.findall(r"^ {4,}python .*$", part, flags=re.M)
        lines += [] if number % 2 else [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", part)]
    found = []
    for line in lines:
        if "src/" not in line:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        simple = [list(words) for operator, words in groupby(lexer, lambda w: set(w) <= set("&|;")) if not operator]
        for words in simple:
            by = words[0] if words[0] == "torchrun" or "--nodes" in words else ""
            places = [i for i, word in enumerate(words) if re.fullmatch(r"src/\w+\.py", word)]
            if places and words[0] != "$" and (by or "python" in words[: places[0]]):  # `$`: with what it prints
                found.append((by, Path(words[places[0]]).stem, *words[places[0] + 1 :]))
    return found


SHOWN = {command: page.name for page in PAGES for command in commands(page.read_text())}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, parquet: Path, packed: Callable[..., Path]) -> Path:
    """A folder with what the commands name, as a reader would have it."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("imagenet/train", "imagenet/val", "imagenetv2", "imagenet-a"):
        (folder / name).mkdir(parents=True)
    (folder / "photos.yaml").write_text("kitty: cat")
    (folder / "photos").symlink_to(parquet / "data")
    (folder / "imagenet-256").symlink_to(shards := packed())
    (folder / "data").mkdir()
    (folder / "data" / "openclipart").symlink_to(shards)  # as experiments/openclipart.yaml says how to make it
    weights = vit.VisionTransformer(image_size=224, patch_size=16, dim=32, depth=1, heads=2, num_classes=10)
    save_file(weights.state_dict(), folder / "weights.safetensors")
    Image.new("RGB", (20, 20)).save(folder / "photo.jpg")
    return folder


def stand_in(name: str, argument: str) -> list[str]:
    """What a test says instead of an argument: what is here for what the reader, or the Hub, has."""
    key, _, value = argument.partition("=")
    if argument == "...":
        return []
    if key == "model.weights" and value.startswith(("timm:", "hf:", "FILE", "SOURCE")):
        return ["model.weights=weights.safetensors", "model.heads=2"]
    if key == "images" and name != "plan":
        return ["images=photo.jpg"]
    if key == "run" and "/export/" in value:
        return ["run=weights.safetensors"]
    if value.startswith("paper_finetune_"):
        return [argument, "model.weights=weights.safetensors", "model.heads=2"]
    if key == "data.name" and "..." not in value and "photos" not in value:
        return ["data.name=photos"]
    if key == "data.source.label_column":  # of the set in the place of the Hub's
        return [f"{key}=label"]
    if value == "/data/imagenet":
        return [f"{key}=imagenet"]
    if name == "compare":
        return ["run=[runs/NAME/STAMP,runs/NAME/OTHER]"] if key in ("run", "folder") else [argument]
    if key == "seed":  # one is as good as another, and each takes time
        return ["seed=0"]
    programs = {"sweep": sweep.main, "prepare": prepare.main}
    return with_action([argument], programs[name].function) if name in programs else [argument]


def test_the_commands_of_the_pages_are_found() -> None:
    programs = {path.stem for path in (ROOT / "src").glob("*.py")}
    assert {program for _, program, *_ in SHOWN} == programs
    assert {by for by, *_ in SHOWN} == {"", "torchrun", "srun"}
    pages = {"README.md", *(page.name for page in DOCS.glob("*.md"))}
    assert set(SHOWN.values()) >= pages - {"python.md", "benchmark.md"}
    text = "a `python src/train.py\nx=1`\n\n    python src/export.py y='a b' # so\n"
    text += "```\nX=1 python src/a.py \\\n b && python src/c.py\n$ python src/d.py\n```\nand `src/e.py f=1`"
    assert sorted(commands(text)) == [("", "a", "b"), ("", "c"), ("", "export", "y=a b"), ("", "train", "x=1")]


@pytest.mark.usefixtures("slurm_programs")
@pytest.mark.parametrize("shown", SHOWN, ids=[f"{SHOWN[shown]}: {' '.join(shown).strip()}" for shown in SHOWN])
def test_each_command_of_the_pages_passes_the_checks_that_it_makes_itself(
    shown: tuple[str, ...],
    reader: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exportable: Callable[..., Any],
    configure: Callable[..., Any],
    tmp_path: Path,
) -> None:
    by, name, *words = shown
    if "--help" in words or "--cfg" in words:
        pytest.skip("shows help or a configuration, and checks nothing")
    if name == "demo":
        pytest.importorskip("gradio")
    if "--config-dir=conf" in words:
        pytest.skip("tests/test_own_code.py trains with the files of docs/your_own_code.md")
    monkeypatch.chdir(reader)
    for key, value in {"torchrun": TORCHRUN, "srun": SRUN, "": {}}[by].items():
        monkeypatch.setenv(key, value)
    if any("runs/NAME/STAMP" in word for word in words) and not Path("runs").exists():
        exportable(keep="last", averaged=True)
        exportable()
        (tmp_path / "run" / "metrics.csv").touch()
        with (tmp_path / "run" / "config.yaml").open("a") as file:
            file.write("logger: {wandb: {project: vitlab}}\n")
        for run in ("STAMP", "OTHER"):  # the folder of a passed test is removed
            shutil.copytree(tmp_path / "run", f"runs/NAME/{run}")
    arguments = [found for word in words for found in stand_in(name, word)]
    if "--config-name=config" in words:  # of a run that was trained
        write_config(tmp_path / "trained", configure())
        arguments[arguments.index("--config-dir=runs/NAME/STAMP")] = f"--config-dir={tmp_path / 'trained'}"
    if name in ("train", "evaluate", "preview", "predict"):  # whatever devices this machine has
        arguments.append("trainer.accelerator=cpu")
    program = importlib.import_module(name)
    try:
        with imports.pause_gc():  # as the program does
            preflight(program.main, arguments)
    except SystemExit:
        problems = re.findall("^  - (.*)$", capsys.readouterr().err, flags=re.M)
        yours = tuple(word for word in arguments if YOURS.fullmatch(word))
        assert [problem for problem in problems if not (yours and problem.startswith(yours))] == []
        assert problems


def test_the_mistakes_in_the_readme_are_reported_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    line, shown = re.findall(r"^\$ python src/train\.py (.*)\n((?:.+\n)+?)```", README, flags=re.M)[0]
    with pytest.raises(SystemExit):
        preflight(train.main, shlex.split(line))
    assert re.fullmatch(re.escape(shown).replace(r"\.\.\.", ".*"), capsys.readouterr().err)


# ---------------------------------------------------------------------------------------- tables, code, links, length


def test_the_readme_counts_the_families_of_the_table_of_weights() -> None:
    cell, number = "([^|]+)", r"(\d+e-\d+|none)"
    table = (DOCS / "weights.md").read_text()
    rows = re.findall(rf"^\| {cell} \| {cell} \| {cell} \| {number} \| {number} \|$", table, flags=re.M)
    assert f"{len({family for family, *_ in rows})} families" in README
    assert max(float(value) for *_, logits, tokens in rows for value in (logits, tokens) if value != "none") <= 1e-4


BLOCKS = re.findall(r"^```python\n(.*?)^```$", (DOCS / "python.md").read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore:.*many workers", "ignore:.*logging interval", "ignore:GPU available")
def test_the_code_of_the_page_on_python_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exportable: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = vit.VisionTransformer(image_size=224, patch_size=16, dim=64, depth=1, heads=1, num_classes=10)
    save_file(weights.state_dict(), "weights.safetensors")
    if "runs/NAME/STAMP" in BLOCKS[number]:
        Path("runs/NAME").mkdir(parents=True)
        Path("runs/NAME/STAMP").symlink_to(exportable().weights.run)
        Image.new("RGB", (20, 20)).save("photo.jpg")
    exec(compile(BLOCKS[number], f"block {number} of docs/python.md", "exec"), {})


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_each_page_of_docs_begins_with_its_command() -> None:
    assert len(README.splitlines()) <= 160
    for page in sorted(DOCS.glob("*.md")):
        assert re.match(r"# .+\n\n```(python)?\n", page.read_text()), page.name
