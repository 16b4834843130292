"""The files behind a source of weights: a file, a folder, timm's or Hugging Face's hub, or one of vitlab's runs.

timm:vit_base_patch16_224.augreg_in21k     a name of timm.create_model(..., pretrained=True)
hf:google/vit-base-patch16-224             a repository of the hub (hf:NAME@REVISION), or a folder in its layout
runs/NAME/STAMP                            the best checkpoint of a run
FILE, FOLDER                               any format of `files`
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from vitlab.config.schema import suggest
from vitlab.runs.folder import CONFIG, checkpoint_file
from vitlab.storage.remote import hub_problem
from vitlab.weights.files import FileContent, UnreadableWeights, explain_damage, read_weights

# in the order of search in a folder or repository
NAMES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".tar")
CONFIGURATIONS = ("config.json", "preprocessor_config.json", "open_clip_config.json")


class WeightFiles(NamedTuple):
    """A file of weights with the configuration in its folder."""

    source: str  # as the user wrote it
    file: Path
    content: FileContent
    config: dict[str, Any]  # config.json: Hugging Face's, or timm's
    preprocessor: dict[str, Any]  # preprocessor_config.json
    open_clip: dict[str, Any]  # open_clip_config.json
    record: dict[str, Any]  # vitlab's own, in a checkpoint or an export
    timm_name: str | None  # the architecture of a source `timm:`


def locate_weights(source: str) -> WeightFiles:
    """The file behind a source, with names and shapes of its tensors. Raises the errors of `read_weights`."""
    kind, _, name = source.partition(":")
    if kind == "timm":
        return locate_timm(source, name)
    if kind == "hf" and not Path(name).expanduser().is_dir():
        return locate_on_hub(source, name)
    path = Path(name if kind == "hf" else source).expanduser()
    if path.is_dir():
        path = path / CONFIG if (path / CONFIG).is_file() else locate_in_folder(path)
    if path.name == CONFIG:
        path = checkpoint_file(path.parent, "best")
    if not path.is_file():
        hint = f"; did you mean hf:{source}?" if source.count("/") == 1 and not path.suffix else ""
        raise UnreadableWeights(f"there is no file or folder {path}{hint}")
    return read_with_config(source, path)


def read_with_config(source: str, file: Path, timm_name: str | None = None) -> WeightFiles:
    """A file with the configuration in its folder."""
    absolute = file.absolute()
    content = cached_read(absolute, absolute.stat().st_mtime_ns)
    config, preprocessor, open_clip = (read_json(file.parent / name) for name in CONFIGURATIONS)
    record = content.plain.get("vitlab") or config.get("vitlab")
    record = record if isinstance(record, dict) else {}
    return WeightFiles(source, file, content, config, preprocessor, open_clip, record, timm_name)


def read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    with explain_damage(file, json.JSONDecodeError, UnicodeDecodeError):
        content = json.loads(file.read_text())
    return content if isinstance(content, dict) else {}


@lru_cache(maxsize=4)
def cached_read(file: Path, _changed: int) -> FileContent:
    """`read_weights`, once for a file that several steps of a run's start read."""
    return read_weights(file)


def clear_cache() -> None:
    """Release the cached files, which otherwise stay mapped."""
    cached_read.cache_clear()
    locate_on_hub.cache_clear()


def locate_in_folder(folder: Path) -> Path:
    if named := next((folder / name for name in NAMES if (folder / name).is_file()), None):
        return named
    files = sorted(file for file in folder.iterdir() if file.suffix in ENDINGS and file.is_file())
    files += sorted(folder.glob("*.index.json"))
    if len(files) == 1:
        return files[0]
    listed = ", ".join(file.name for file in files[:8])
    what = f"several files of weights ({listed}); name one" if files else "no weights"
    raise UnreadableWeights(f"{folder} holds {what}")


@lru_cache(maxsize=4)
def locate_on_hub(source: str, name: str) -> WeightFiles:
    """The files of a repository of Hugging Face's hub, downloaded, or from its cache if the hub can't be reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repo, _, revision = name.partition("@")
    offline = hub_problem()  # found within seconds; the hub's own client would retry each file six times
    reasons: list[str] = []

    def get(filename: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo, filename, revision=revision or None, local_files_only=bool(offline)))
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            what = f"revision {revision} of it" if isinstance(error, RevisionNotFoundError) else "such repository"
            problem = f"{source}: the hub has no {what}, or it is private and needs `hf auth login`"
            raise UnreadableWeights(problem) from error
        except (HfHubHTTPError, OSError, ValueError) as error:
            reasons.append(str(error).strip().splitlines()[0])
            return None

    for filename in CONFIGURATIONS:
        get(filename)
    for filename in NAMES:
        if file := get(filename):
            if filename.endswith(".index.json"):
                for shard in sorted(set(json.loads(file.read_text())["weight_map"].values())):
                    get(shard)
            return read_with_config(source, file)
    absent = f"{source}: neither the hub nor its local cache has weights of that name"
    if offline:
        raise UnreadableWeights(
            f"{absent}: {offline}; run `hf download {repo}` where there is a network, or name a file or folder"
        )
    raise UnreadableWeights(f"{absent} ({reasons[-1]})")


def locate_timm(source: str, name: str) -> WeightFiles:
    import timm
    from timm.models import get_pretrained_cfg
    from timm.models._hub import download_cached_file

    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        similar = suggest(architecture, timm.list_models("*vit*"))
        raise UnreadableWeights(f"{source}: timm has no {architecture}{similar}")
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        cfg = None
    if cfg is None or (not cfg.hf_hub_id and not cfg.url and not cfg.file):
        tags = [tag for tag in timm.list_pretrained(f"{architecture}*") if tag.split(".")[0] == architecture]
        raise UnreadableWeights(f"{source}: timm has no such weights; it has {', '.join(tags) or 'none of it'}")
    if cfg.hf_hub_id and not cfg.file:
        files = locate_on_hub(source, cfg.hf_hub_id)
    else:
        files = read_with_config(source, Path(cfg.file or download_cached_file(str(cfg.url))), architecture)
    config = {"architecture": architecture, "pretrained_cfg": cfg.to_dict()}  # type: ignore[no-untyped-call]
    return files._replace(config=config, timm_name=architecture)
