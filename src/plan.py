"""Plan a training before it costs anything: steps, rates, FLOPs, memory, hours. Settings are those of train.py.

    python src/plan.py experiment=plain_s16 trainer.devices=8 device=h100 memory_gb=80 images=1281167 classes=1000
    python src/plan.py schedule=reciprocal_sqrt schedule.cooldown_steps=200       any schedule, drawn
    python src/plan.py -m model=vit_ti16,vit_s16,vit_b16 measure=false            several plans in a table

`plan.json` has the numbers, `plan.png` the curves of the rates. Neither the data nor the devices are needed. Memory is
counted, without allocating it; hours are measured on this machine, or computed for a named device.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import train
from vitlab.cli.checks import with_settings_of
from vitlab.cli.command import command
from vitlab.config.bounds import Fraction, PositiveFloat, PositiveInt
from vitlab.config.schema import ConfigView, Node

log = logging.getLogger(__name__)


def plan_problems(read: ConfigView) -> Iterator[str]:
    if (device := read("device", str)) in (None, "here"):
        return
    from vitlab.models.flops import PEAKS, peak_flops

    if peak_flops(device, precision := str(read("trainer.precision"))) is None:
        names = ", ".join(re.sub(r"[^\w |]", "", pattern.replace("\\b", "")) for pattern, _ in PEAKS)
        yield f"device={device}: its FLOPs per second in trainer.precision={precision} are unknown; known are {names}"


@command("plan", check=plan_problems, absent=("devices", "data"))
@with_settings_of(train.main, without=("resume", "max_restarts", "max_failures_per_job"))
def main(
    *,
    device: str,
    mfu: Fraction,
    memory_gb: PositiveFloat | None,
    measure: bool,
    images: PositiveInt | None,
    classes: PositiveInt | None,
    run_dir: str,
    **training: Any,
) -> Node:
    """Plan a training.

    Args:
        device: Device whose hours are computed by its FLOPs per second: `here`, or a GPU's name such as h100, h200,
            a100 or "rtx 4090".
        mfu: Model FLOPs utilization that is assumed of a named device: the share of its datasheet's peak.
        memory_gb: Memory of a device in GB. None: that of the GPU here, if there is one.
        measure: With `device=here`, measure some steps on this machine.
        images: Images of the train split, with those to be held out from it. None: as the data set is known to have.
        classes: Classes of the data. None: as the data set is known to have.
        run_dir: Folder of the plan. Set by the program; choose another with `hydra.run.dir`.
    """
    from vitlab.diagnostics import plan, plan_report
    from vitlab.storage.atomic import atomic_write

    folder, (data, status) = Path(run_dir), plan.planned_data(training, images, classes)
    options: Any = {"device": device, "mfu": mfu, "memory_gb": memory_gb, "measure": measure}
    result = plan.write_plan(training, data, status, folder, **options)
    for line in plan_report.plan_lines(result):
        log.info("%s", line)
    if folder.name.isdigit():  # a job of -m
        table = "\n".join(plan_report.plan_table(folder.parent))
        atomic_write(folder.parent / "plans.md", f"{table}\n")
        log.info("%s", table)
    log.info("folder: %s", folder)
    return {key: result[key] for key in ("parameters", "flops_per_image", "steps", "images_seen", "memory", "hours")}


if __name__ == "__main__":
    main()
