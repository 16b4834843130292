"""Where numbers go: `metrics.csv` in every run folder, and Weights & Biases."""

import logging
import netrc
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vitlab.distributed import signals
from vitlab.distributed.signals import StopRequested

INIT_TIMEOUT = 30  # seconds until wandb's server counts as out of reach
MAX_TAG_LENGTH = 64  # characters that wandb takes

log = logging.getLogger(__name__)


def wandb_logger(
    *,
    run_dir: str,
    project: str = "vitlab",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: list[str] | None = None,
    choices: dict[str, str] | None = None,
    notes: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    log_model: bool = False,
) -> WandbLogger:
    """Lightning's WandbLogger in the run's folder, with the run's own id, which a resumed run takes up again.

    `mode=auto` is online where the user is logged in, else offline. `log_model` uploads the best checkpoint.
    `choices`, what a sweep's job has of what varies, become tags beside `tags`, and `choices` and `configuration` (all
    but the seed) of the run's config, by which a dashboard groups.
    """
    import wandb

    chosen = choices or {}

    wanted: Any = os.environ.get("WANDB_MODE", "online") if mode == "auto" else mode
    if mode == "auto" and wanted == "online" and not is_logged_in():
        wanted = "offline"
    folder = Path(run_dir)
    settings = wandb.Settings(console="off", init_timeout=INIT_TIMEOUT, silent=wanted != "online")
    run = None
    if getattr(rank_zero_only, "rank", 0) == 0:  # the other ranks log nothing
        options: dict[str, Any] = {"entity": entity, "group": group, "job_type": job_type}
        options |= {"tags": [*(tags or []), *choice_tags(chosen)], "config": choice_config(chosen)}
        options |= {"project": project, "name": name, "notes": notes, "dir": run_dir, "id": run_id(folder)}
        try:
            run = wandb.init(mode=wanted, resume="allow" if wanted == "online" else None, settings=settings, **options)
        except wandb.errors.CommError as error:
            log.warning("wandb can't be reached (%s): this run is tracked offline", error)
            wandb.teardown()  # or the next line would find the id in use
            wanted = "offline"
            run = wandb.init(mode=wanted, settings=settings, **options)
    if wanted == "offline":
        log.info(
            "wandb: offline; after `wandb login`, send this run with: wandb sync %s/wandb/offline-run-*",
            folder,
        )
    return WandbLogger(save_dir=run_dir, project=project, log_model=log_model and wanted == "online", experiment=run)


def choice_tags(choices: Mapping[str, str]) -> list[str]:
    """`key=value` of each choice, cut to what wandb takes."""
    whole = [f"{key}={value}" for key, value in choices.items()]
    return [tag if len(tag) <= MAX_TAG_LENGTH else f"{tag[: MAX_TAG_LENGTH - 3]}..." for tag in whole]


def choice_config(choices: Mapping[str, str]) -> dict[str, Any]:
    """What a dashboard groups and sorts by. wandb reads a dot as a level, so the keys have slashes."""
    if not choices:
        return {}
    fixed = {key: value for key, value in choices.items() if key != "seed"}
    label = " ".join(f"{key}={value}" for key, value in fixed.items())
    return {"choices": {choice_key(k): as_number(v) for k, v in choices.items()}, "configuration": label}


def choice_key(key: str) -> str:
    """A setting's name below `choices` in wandb's config."""
    return key.replace(".", "/")


def as_number(text: str) -> int | float | str:
    """A value of the command line as a number, where it is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def is_logged_in() -> bool:
    """Whether wandb would find a key without asking: in the environment, or in the netrc file."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    # wandb's own server has two names, and takes a login under either
    own = [wandb.Settings().base_url, "https://api.wandb.ai"]
    urls = [os.environ["WANDB_BASE_URL"]] if os.environ.get("WANDB_BASE_URL") else own
    file = os.environ.get("NETRC") or next(
        (str(f) for f in (Path.home() / ".netrc", Path.home() / "_netrc") if f.is_file()), ""
    )
    try:
        known = netrc.netrc(file).hosts if file else {}
        return any((urlparse(url).hostname or "") in known for url in urls)
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(folder: Path) -> str:
    """The run's wandb id, made once and kept in its folder."""
    file = folder / "wandb" / "run_id"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4))
    return file.read_text().strip()


def existing_run_id(folder: Path) -> str | None:
    """The run's wandb id, if it is tracked there."""
    file = folder / "wandb" / "run_id"
    return file.read_text().strip() if file.exists() else None


def resend_rows(rows: list[dict[str, Any]], loggers: list[Logger]) -> None:
    """Tells an offline wandb run that goes on what it was told before.

    Each part of an offline run is a folder of its own under the same id, and uploading one replaces the run on the
    server: so the newest part has to hold everything. Online, the server knows it already.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger.experiment.offline:
            for row in rows:
                numbers = {k: float(v) for k, v in row.items() if k != "step" and v not in (None, "")}
                logger.log_metrics(numbers, step=int(row["step"]))


@contextmanager
def finish_wandb_run() -> Iterator[None]:
    """Ends the wandb run that the block started, if any, as what it is: finished, preempted, or crashed."""
    status = 1
    try:
        yield
        status = 0
    except StopRequested as stop:
        status = signals.STATUS[stop.outcome]
        raise
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            if status == signals.STATUS["preempted"]:
                wandb.run.mark_preempting()  # with a status other than 0, wandb then calls it preempted
            wandb.finish(exit_code=status)


def log_results(loggers: list[Logger], results: Mapping[str, Any]) -> None:
    """Tells wandb's summary how a run ended: `best/val/...` at its best checkpoint (wandb keeps the last of a number by
    itself), and what it cost.
    """
    scores = {f"best/{name}": value for name, value in results.items() if name in ("val/loss", "val/acc", "val/acc5")}
    names = ("parameters", "images_per_second", "mfu", "data_wait", "epochs")
    costs = {name: results[name] for name in names if name in results}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update({**scores, **costs})


def tag_run(loggers: list[Logger], status: str) -> None:
    """Tags a wandb run with how it ended, where that is none of wandb's own states."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and getattr(rank_zero_only, "rank", 0) == 0:
            logger.experiment.tags = (*(logger.experiment.tags or ()), status)
            logger.experiment.summary["status"] = status


def log_image(loggers: list[Logger], name: str, file: Path) -> None:
    """Shows a picture in the dashboards that can show one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(file)])
