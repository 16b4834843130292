"""Where weights lie: a file, a folder, timm's or Hugging Face's hub, one of our runs; and what lies beside them.

timm:vit_base_patch16_224.augreg_in21k     what timm.create_model(..., pretrained=True) takes
hf:google/vit-base-patch16-224             a repository of the hub (hf:NAME@REVISION), or a folder in its layout
runs/NAME/STAMP                            the best checkpoint of a run of ours
FILE, FOLDER                               anything that `files` reads
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from vitlab.config.schema import suggest
from vitlab.runs.folder import CONFIG, checkpoint_file
from vitlab.storage.hub import hub_problem
from vitlab.weights.files import FileContent, UnreadableWeights, read_weights

# In the order in which they are looked for in a folder or repository.
NAMES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".tar")
BESIDE = ("config.json", "preprocessor_config.json")


class WeightFiles(NamedTuple):
    """Weights that were found, with what lies beside them."""

    source: str  # as it was asked for
    file: Path
    content: FileContent
    config: dict[str, Any]  # config.json: Hugging Face's, or timm's
    preprocessor: dict[str, Any]  # preprocessor_config.json
    ours: dict[str, Any]  # of a checkpoint of ours: what its run says of it
    timm_name: str | None  # the architecture, where the source is timm's


def locate_weights(source: str) -> WeightFiles:
    """The weights behind a source; nothing but names and shapes is read of them yet.

    Raises:
        CannotRead: there is nothing, or nothing that can be read.
        allowlist.NotTrusted: it holds more than weights.
    """
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
        looks_remote = f"; did you mean hf:{source}?" if source.count("/") == 1 and not path.suffix else ""
        raise UnreadableWeights(f"there is no file or folder {path}{looks_remote}")
    return read_with_config(source, path)


def read_with_config(source: str, file: Path, timm_name: str | None = None, folder: Path | None = None) -> WeightFiles:
    """A file with what its folder says about it."""
    whole = file.absolute()
    content = cached_read(whole, whole.stat().st_mtime_ns)
    said = [_json((folder or file.parent) / name) for name in BESIDE]
    ours = content.plain.get("vitlab") or said[0].get("vitlab")  # in a checkpoint, or beside what was exported
    return WeightFiles(source, file, content, said[0], said[1], ours if isinstance(ours, dict) else {}, timm_name)


@lru_cache(maxsize=4)
def cached_read(file: Path, _changed: int) -> FileContent:
    """`read`, once for a file that several steps on the way to a run look at."""
    return read_weights(file)


def clear_cache() -> None:
    """Lets go of the files that were read: they stay mapped as long as somebody may ask again."""
    cached_read.cache_clear()
    locate_on_hub.cache_clear()


def locate_in_folder(folder: Path) -> Path:
    """The file of weights in a folder."""
    if named := next((folder / name for name in NAMES if (folder / name).is_file()), None):
        return named
    found = sorted(file for file in folder.iterdir() if file.suffix in ENDINGS and file.is_file())
    found += sorted(folder.glob("*.index.json"))
    if len(found) == 1:
        return found[0]
    listed = ", ".join(file.name for file in found[:8])
    raise UnreadableWeights(
        f"{folder} holds {f'several files of weights ({listed}); name one' if found else 'no weights'}"
    )


@lru_cache(maxsize=4)
def locate_on_hub(source: str, name: str) -> WeightFiles:
    """A repository of Hugging Face's hub: downloaded, or as it lies in the hub's cache where the hub can't be reached.

    Who has no network is told within seconds: the hub's own client would try six times for each file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repo, _, revision = name.partition("@")
    absent = hub_problem()

    def get(filename: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo, filename, revision=revision or None, local_files_only=bool(absent)))
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            what = f"revision {revision} of it" if isinstance(error, RevisionNotFoundError) else "such repository"
            raise UnreadableWeights(
                f"{source}: the hub has no {what}, or shows it to no one without `hf auth login`"
            ) from error
        except (HfHubHTTPError, OSError, ValueError) as error:
            reasons.append(str(error).strip().splitlines()[0])
            return None

    reasons: list[str] = []
    for filename in BESIDE:
        get(filename)
    for filename in NAMES:
        if file := get(filename):
            if filename.endswith(".index.json"):
                for shard in sorted(set(json.loads(file.read_text())["weight_map"].values())):
                    get(shard)
            return read_with_config(source, file)
    if absent:
        raise UnreadableWeights(
            f"{source}: the hub, and its cache here, have no weights of that name: {absent}; run "
            f"`hf download {repo}` where there is a network, or name a file or folder that has the weights"
        )
    raise UnreadableWeights(f"{source}: the hub, and its cache here, have no weights of that name ({reasons[-1]})")


def locate_timm(source: str, name: str) -> WeightFiles:
    """The weights that timm has under a name."""
    import timm
    from timm.models import get_pretrained_cfg

    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise UnreadableWeights(
            f"{source}: timm has no {architecture}{suggest(architecture, timm.list_models('*vit*'))}"
        )
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        cfg = None
    if cfg is None or (not cfg.hf_hub_id and not cfg.url and not cfg.file):
        tags = [tag for tag in timm.list_pretrained(f"{architecture}*") if tag.split(".")[0] == architecture]
        raise UnreadableWeights(f"{source}: timm has no such weights; it has {', '.join(tags) or 'none of it'}")
    said = {"architecture": architecture, "pretrained_cfg": cfg.to_dict()}  # type: ignore[no-untyped-call]
    if cfg.file:
        opened = read_with_config(source, Path(cfg.file), architecture)
    elif cfg.hf_hub_id:
        opened = locate_on_hub(source, cfg.hf_hub_id)
    else:
        opened = read_with_config(source, Path(_downloaded(str(cfg.url))), architecture)
    return opened._replace(config=said, timm_name=architecture)


def _downloaded(url: str) -> str:
    from timm.models._hub import download_cached_file

    return str(download_cached_file(url))


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        said = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnreadableWeights(f"{file} is damaged ({error}), and says what the weights beside it are of") from error
    return said if isinstance(said, dict) else {}
