"""Weights & Biases: its logger, identity of runs, tags and results."""

import logging
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vitlab.config.instantiate import build_object
from vitlab.distributed import signals
from vitlab.distributed.signals import StopRequested
from vitlab.runs.folder import read_config, read_results
from vitlab.runs.metrics_file import MetricsFile

INIT_TIMEOUT = 30  # seconds to reach wandb's server
MAX_TAG_LENGTH = 64  # characters, in wandb

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
    """Lightning's WandbLogger in the run's folder, with the run's own id, also when it is resumed.

    Args:
        run_dir: The run folder.
        project: Project at wandb.
        entity: User or team; None: the user's default.
        name: Name of the run.
        group: Group of the run, such as its sweep.
        job_type: Kind of the run.
        tags: Tags, in addition to those of `choices`.
        choices: The varying settings of a sweep's job. They become tags and, in the run's config, `choices` and
            `configuration` (all but the seed), by which a dashboard groups and sorts.
        notes: Notes on the run.
        mode: `auto` is online if the user is logged in, else offline.
        log_model: Upload the best checkpoint.
    """
    import wandb

    chosen = [f"{key}={value}" for key, value in (choices or {}).items()]
    short = [tag if len(tag) <= MAX_TAG_LENGTH else f"{tag[: MAX_TAG_LENGTH - 3]}..." for tag in chosen]
    config = {
        "choices": {choice_key(key): as_number(value) for key, value in (choices or {}).items()},
        "configuration": " ".join(choice for choice in chosen if not choice.startswith("seed=")),
    }
    actual: Any = os.environ.get("WANDB_MODE", "online") if mode == "auto" else mode
    if mode == "auto" and actual == "online" and not is_logged_in():
        actual = "offline"
    settings = wandb.Settings(console="off", init_timeout=INIT_TIMEOUT, silent=actual != "online")
    run = None
    if getattr(rank_zero_only, "rank", 0) == 0:  # the other ranks log nothing
        options: dict[str, Any] = {"entity": entity, "group": group, "job_type": job_type, "name": name, "notes": notes}
        options |= {"tags": [*(tags or []), *short], "config": config if choices else {}, "settings": settings}
        options |= {"project": project, "dir": run_dir, "id": run_id(Path(run_dir))}
        if actual == "online":
            log.info("wandb: connecting")
        try:
            run = wandb.init(mode=actual, resume="allow" if actual == "online" else None, **options)
        except wandb.errors.CommError as error:
            log.warning("wandb can't be reached (%s): this run is tracked offline", error)
            wandb.teardown()  # or the id would be in use
            actual = "offline"
            run = wandb.init(mode=actual, **options)
    if actual == "offline":
        log.info("wandb: offline; after `wandb login`, send this run with: wandb sync %s/wandb/offline-run-*", run_dir)
    return WandbLogger(save_dir=run_dir, project=project, log_model=log_model and actual == "online", experiment=run)


def choice_key(key: str) -> str:
    """A setting's name below `choices` in wandb's config, where a dot would be a level."""
    return key.replace(".", "/")


def as_number(text: str) -> int | float | str:
    """A value of the command line as a number, if it is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def is_logged_in() -> bool:
    """Whether wandb has a key without asking: in the environment, or in the netrc file."""
    import wandb
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    given = os.environ.get("WANDB_BASE_URL")
    # wandb's own server has two names, with one login
    servers = [given] if given else [wandb.Settings().base_url, "https://api.wandb.ai"]
    return any(get_netrc_auth(server) for server in servers)


def run_id(folder: Path) -> str:
    """The run's wandb id, random and stored in its folder."""
    if not (known := existing_run_id(folder)):
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        (folder / "wandb" / "run_id").write_text(known := secrets.token_hex(4))
    return known


def existing_run_id(folder: Path) -> str | None:
    """The run's wandb id, or None if it is not tracked."""
    file = folder / "wandb" / "run_id"
    return file.read_text().strip() if file.exists() else None


def resume_logger(folder: Path) -> WandbLogger | None:
    """wandb's logger of a run that has ended, or None if it runs or is not tracked; offline if the run is."""
    nodes = (node for node in (read_config(folder).get("logger") or {}).values() if node)
    node = next((node for node in nodes if str(node["_target_"]).endswith("wandb_logger")), None)
    runs = read_results(folder).get("status") == "running"
    if node is None or runs or existing_run_id(folder) is None or node.get("mode") == "disabled":
        return None
    offline = {} if [*(folder / "wandb").glob("run-*")] else {"mode": "offline"}
    logger: WandbLogger = build_object({**node, "run_dir": str(folder), **offline})
    if logger.experiment.offline:
        logger.log_hyperparams(read_config(folder))
        resend_rows(MetricsFile(folder=str(folder)).read_rows(), [logger])
        log_results([logger], read_results(folder))
    return logger


def resend_rows(rows: Iterable[dict[str, Any]], loggers: list[Logger]) -> None:
    """Log the former rows of a resumed run again if wandb is offline.

    Each part of an offline run has its own folder. Uploading one replaces the run on the server, so the newest part
    must have all rows.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger.experiment.offline:
            for row in filter(None, rows):
                numbers = {k: float(v) for k, v in row.items() if k != "step" and v not in (None, "")}
                logger.log_metrics(numbers, step=int(row["step"]))


@contextmanager
def finish_wandb_run() -> Iterator[None]:
    """End the wandb run that the block started, if any, as finished, preempted or crashed."""
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
                wandb.run.mark_preempting()  # with a status other than 0, the run is then preempted
            wandb.finish(exit_code=status)


def log_results(loggers: list[Logger], results: Mapping[str, Any]) -> None:
    """Add the best checkpoint's scores, as `best/val/...`, and the run's costs to wandb's summary; tag a pruned run."""
    scores = {f"best/{name}": value for name, value in results.items() if name in ("val/loss", "val/acc", "val/acc5")}
    names = ("parameters", "images_per_second", "mfu", "data_wait", "epochs")
    costs = {name: results[name] for name in names if name in results}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update({**scores, **costs})
            if results.get("status") == "pruned":  # a status that wandb doesn't have
                logger.experiment.tags = (*(logger.experiment.tags or ()), "pruned")
                logger.experiment.summary["status"] = "pruned"


def log_image(loggers: list[Logger], name: str, file: Path) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(file)])


def log_table(loggers: list[Logger], name: str, lines: list[list[Any]]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(name, lines[0], lines[1:])
