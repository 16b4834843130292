"""Bad input: broken images, data that vanishes, losses that aren't finite, too little memory."""

import random
import re
import resource
import shutil
import time
from pathlib import Path

from faults.runs import DIGITS, SMALL, assert_same_run, finish, images, start, start_for
from faults.trials import Trial, fault
from vitlab.storage import safe_load


def image_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def break_image(draw: random.Random, file: Path) -> None:
    """Damage an image file in one of several ways."""
    content = bytearray(file.read_bytes())
    kind = draw.choice(("empty", "truncated", "text", "flipped", "link"))
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncated":
        file.write_bytes(content[: draw.randrange(8, len(content) - 12)])
    elif kind == "text":
        file.write_text("not an image")
    elif kind == "flipped":
        content[draw.randrange(33, len(content) - 12)] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    else:
        file.unlink()
        file.symlink_to(f"nowhere-{file.name}")


def own_images(trial: Trial) -> tuple[Path, list[str]]:
    """A copy of the images for this trial, and its overrides."""
    settings = images(trial.work)
    folder = trial.folder / "images"
    shutil.copytree(trial.work / "images", folder)
    return folder, [f"data_dir={folder}" if s.startswith("data_dir=") else s for s in settings]


@fault("broken images: reported before training, or skipped and listed; killed and resumed", 6)
def broken_images(trial: Trial) -> None:
    folder, settings = own_images(trial)
    broken = trial.random.sample(image_files(folder), trial.random.randrange(1, 4))
    for file in broken:
        break_image(trial.random, file)
    program = start(trial.folder / "refused", *settings, "data.scan=decode")
    assert program.wait() == 1, program.text()[-2000:]
    assert not (trial.folder / "refused" / "run" / "metrics.csv").exists(), "training has started"
    assert all(file.name in program.text() for file in broken), program.text()[-2000:]

    settings += ["data.on_error=skip", "data.max_skipped=0.05", "callbacks.last.every_n_train_steps=2"]
    expected = finish(trial.folder / "expected", *settings)
    listed = (expected / "skipped.csv").read_text()
    assert all(file.name in listed for file in broken), listed
    assert len(listed.splitlines()) == len(broken) + 1
    program = start_for(trial.random.uniform(0.5, 4.0), trial.folder, *settings)
    program.kill()
    program.wait_for_all()
    assert_same_run(expected, finish(trial.folder, *settings))


@fault("the data folder vanishes during the run and comes back", 4)
def vanished(trial: Trial) -> None:
    folder, settings = own_images(trial)
    settings += ["callbacks.last.every_n_train_steps=1"]
    begin = time.monotonic()
    expected = finish(trial.folder / "expected", *settings)
    program = start_for(trial.random.uniform(0.3, 0.8) * (time.monotonic() - begin), trial.folder, *settings)
    folder.rename(folder.with_name("gone"))
    status = program.wait()
    folder.with_name("gone").rename(folder)
    assert status in (0, 1, 2), f"ended with {status}"
    assert status == 0 or str(folder) in program.text(), program.text()[-2000:]
    assert_same_run(expected, finish(trial.folder, *settings))


@fault("a loss that isn't finite: stopped, with the first module", 4)
def diverged(trial: Trial) -> None:
    rate = 10 ** trial.random.uniform(12, 30)
    settings = [*DIGITS, f"optimizer.lr={rate:.3g}", "trainer.gradient_clip_val=0", "schedule.warmup_steps=0"]
    ranks = trial.random.choice((1, 1, 2))
    run = trial.folder / "run"
    program = start(trial.folder, *settings, ranks=ranks)
    assert program.wait_for_all() == 1, program.text()[-2000:]
    why = r"gradient norm .* (first output that isn't|aren't finite|a gradient is not)"
    assert re.search(why, program.text()), program.text()[-2000:]
    for file in (run / "checkpoints").glob("*.ckpt"):
        assert safe_load.corruption(file) is None


@fault("out of memory: the message says what fits", 2)
def memory_used_up(trial: Trial) -> None:
    settings = [s for s in SMALL if not s.startswith(("model.", "batch_size"))]
    settings += ["model.dim=256", "model.depth=12", "model.heads=4", "batch_size=1200", "trainer.max_epochs=1"]
    settings += ["schedule.warmup_steps=0"]

    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + trial.random.randrange(1200, 1800) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    program = start(trial.folder, *settings, before=limit)
    assert program.wait() == 1, program.text()[-2000:]
    assert "out of memory: 1200 images" in program.text(), program.text()[-2000:]
    assert "fit: add trainer.accumulate_grad_batches=" in program.text(), program.text()[-2000:]
