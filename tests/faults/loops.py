"""Loops of any geometry, and what else a training may be made of: killed after a random checkpoint, and resumed."""

from pathlib import Path

import datasets
import torch

from faults.operations import Operations, read_operations
from faults.runs import (
    DIGITS,
    HARD,
    SMALL,
    assert_same_run,
    check_config,
    disturb,
    finish,
    images,
    lock,
    once,
    reference,
    rows,
    start,
)
from faults.trials import Trial, fault
from hub_files import table
from vitlab.runs.folder import read_results
from vitlab.storage import safe_load

SAVE = ("rename", "run/checkpoints/last.ckpt")
SAVED = [*DIGITS, "callbacks.last.every_n_train_steps=2"]


def resume_exactly(trial: Trial, name: str, *settings: str, ranks: int = 1) -> Path:
    """Kill a run at one of its checkpoints, and resume it; the undisturbed one is made once."""
    settings = (*settings, f"trainer.devices={ranks}", "hydra.run.dir=run")
    expected = once(trial.work, name, "train", *settings)
    disturb(trial, "train", *settings, "resume=auto", like=expected, only=lambda operation: operation == SAVE)
    assert_same_run(expected / "run", trial.folder / "run")
    return trial.folder / "run"


# ------------------------------------------------------------------------------------------------------ geometries

PLAIN = [s for s in SMALL if not s.startswith(("trainer.max_epochs", "batch_size", "trainer.log", "schedule"))]
PLAIN += ["schedule.warmup_steps=0", "model.dropout=0.1"]


def draw_loop(trial: Trial) -> list[str]:
    """Settings of a loop that the checks accept."""
    draw = trial.random
    while True:
        parts = draw.choice((1, 1, 2, 3, 4))
        samples, batch = draw.randint(90, 260), draw.choice((24, 32, 48))
        settings = [f"data.max_train_samples={samples}", f"batch_size={batch}"]
        settings += [f"trainer.accumulate_grad_batches={parts}", f"seed={draw.randrange(100)}"]
        batches = -(-samples // batch) * parts
        if draw.random() < 0.7:
            limit = draw.choice((draw.randint(2, batches + 2), round(draw.uniform(0.2, 1.0), 2)))
            settings.append(f"++trainer.limit_train_batches={limit}")
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = -(-max(1, batches) // parts)
        end = draw.choice(("epochs", "steps", "both"))
        epochs = draw.randint(2, 4)
        settings.append(f"trainer.max_epochs={-1 if end == 'steps' else epochs}")
        if end != "epochs":
            settings.append(f"trainer.max_steps={draw.randint(2, max(3, epochs * steps))}")
        kind = draw.choice(("epoch", "count", "share", "over epochs", "epochs"))
        if kind == "count":
            settings.append(f"++trainer.val_check_interval={draw.randint(1, max(1, batches))}")
        elif kind == "share":
            settings.append(f"++trainer.val_check_interval={draw.choice((0.25, 0.3, 0.5, 0.7))}")
        elif kind == "over epochs":
            settings += [f"++trainer.val_check_interval={draw.randint(2, 2 * batches)}"]
            settings += ["trainer.check_val_every_n_epoch=null"]
        elif kind == "epochs":
            settings.append(f"trainer.check_val_every_n_epoch={draw.choice((2, 3))}")
        settings.append(f"data.drop_last={str(draw.random() < 0.3).lower()}")
        settings.append(f"trainer.log_every_n_steps={draw.randint(1, 4)}")
        settings.append(f"callbacks.last.every_n_train_steps={draw.choice((1, 1, 2, 3))}")
        if not check_config(trial.folder / "run", *PLAIN, *settings)[1]:
            return [*PLAIN, *settings]


@fault("a loop of random geometry (limits, intervals, accumulation, ends inside epochs)", 40)
def geometry(trial: Trial) -> None:
    settings = draw_loop(trial)
    try:
        resume_exactly(trial, f"loop-{trial.number}", *settings)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{' '.join(settings)}") from error


@fault("resumed with other devices and another accumulation: the same up to rounding", 10)
def other_parts(trial: Trial) -> None:
    """SGD, as Adam turns the rounding of tiny gradients into steps of full size."""
    draw = trial.random
    settings = [s for s in PLAIN if not s.startswith("model.dropout")]
    settings += ["data.augment.crop_padding=0", "batch_size=24", "data.max_train_samples=200", "optimizer=sgd"]
    settings += ["data.augment.flip=false", "optimizer.lr=0.01", "trainer.log_every_n_steps=1"]
    settings += ["callbacks.last.every_n_train_steps=1"]
    # each part of a step draws its own random numbers
    settings += ["model.drop_path=0.0", *(f"data.augment.{k}=0.0" for k in ("mixup", "degrees", "translate", "shear"))]
    settings.append("data.augment.scale=[1.0,1.0]")
    settings += draw.choice(
        (["trainer.max_epochs=3"], ["trainer.max_epochs=-1", f"trainer.max_steps={draw.randint(10, 24)}"])
    )
    settings += draw.choice(([], ["++trainer.val_check_interval=0.3334"]))  # a limit would count other batches
    first, second = draw.sample([(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (1, 4)], 2)
    name = "parts-" + "".join(c if c.isalnum() else "-" for c in " ".join([*settings[-4:], str(first)]))
    settings_of = {parts: [*settings, f"trainer.accumulate_grad_batches={parts[1]}"] for parts in (first, second)}
    expected, _ = reference(trial.work, name, *settings_of[first], ranks=first[0])
    saves = read_operations(expected.parent / "operations")[SAVE]
    killer = Operations(trial.folder, trial.folder / "operations", (SAVE, draw.randint(2, saves)))
    assert start(trial.folder, *settings_of[first], ranks=first[0], before=killer.install).wait_for_all() != 0
    run = finish(trial.folder, *settings_of[second], ranks=second[0])
    one, two = read_results(expected), read_results(run)
    context = f"{first} -> {second}\n{' '.join(settings)}"
    assert [one[k] for k in ("steps", "epochs", "images")] == [two[k] for k in ("steps", "epochs", "images")], context
    assert [r["step"] for r in rows(expected)] == [r["step"] for r in rows(run)], f"rows differ: {context}"
    first_weights, second_weights = (
        safe_load.load_checkpoint(r / "checkpoints" / "last.ckpt")["state_dict"] for r in (expected, run)
    )
    for key, value in first_weights.items():
        assert torch.allclose(value, second_weights[key], atol=1e-4), f"{key} differs: {context}"


# -------------------------------------------------------------------------- strategies, precisions, data, loggers


FSDP = [*(s for s in SAVED if s != "callbacks=ema"), "trainer=fsdp", "trainer.max_steps=20"]


def resume_variant(trial: Trial, key: str, *values: str) -> None:
    """Kill and resume a run with one of the values of a setting."""
    value = trial.random.choice(values)
    settings = [s for s in SAVED if (s, value) != ("callbacks=ema", "bf16-true")]  # which is refused
    resume_exactly(trial, value, *settings, f"{key}={value}")


fault("FSDP2 (two gloo ranks)", 4)(lambda t: resume_exactly(t, "fsdp", *FSDP, ranks=2))
fault("bf16-true and bf16-mixed", 8)(lambda t: resume_variant(t, "trainer.precision", "bf16-true", "bf16-mixed"))
fault("muon, lion, and SGD with momentum", 9)(lambda t: resume_variant(t, "optimizer", "muon", "muon", "lion", "sgd"))


@fault("wandb offline", 6)
def wandb_offline(trial: Trial) -> None:
    settings = ["logger=wandb" if s == "logger=csv" else s for s in SAVED]
    run = resume_exactly(trial, "wandb", *settings)
    parts = [folder.name.rpartition("-")[2] for folder in (run / "wandb").glob("offline-run-*")]
    assert len(parts) > 1, parts
    assert len(set(parts)) == 1, f"one run has several ids: {parts}"


@fault("shards, in this folder or fetched through a cache", 10)
def packed(trial: Trial) -> None:
    settings = [s for s in images(trial.work) if not s.startswith(("data=", "data_dir=", "data.num_workers"))]
    pack = ["data=image_folder", f"data_dir={trial.work / 'images'}", "shard_images=20", "processes=0", "size=16"]
    folder = once(trial.work, "packed", "prepare", *pack, "out=out") / "out"
    settings += ["data=shards", SAVED[-1], f"data.num_workers={trial.random.choice((0, 2))}"]
    settings.append("data.source.shuffle_buffer=60")
    if trial.random.random() < 0.5:
        cache = [f"data.source.cache_dir={trial.folder / 'cache'}", "data.source.cache_gb=0.00005"]
        resume_exactly(trial, "shards", *settings, f"data_dir=file://{folder}", *cache)
    else:
        resume_exactly(trial, "shards", *settings, f"data_dir={folder}")


@fault("a set of the Hub's kind, mapped into memory", 6)
def mapped(trial: Trial) -> None:
    folder = trial.work / "hub"
    with lock(trial.work, "hub"):
        if not folder.exists():
            folder.mkdir()
            labels = [i % 2 for i in range(400)]
            table(labels, datasets.ClassLabel(names=["even", "odd"])).to_parquet(folder / "all.parquet", batch_size=40)
    settings = ["data=huggingface", f"data.name={folder}", "image_size=8"]
    settings += [f"data.source.cache_dir={trial.work / 'hub-cache'}"]
    settings += [f"data.num_workers={trial.random.choice((0, 2))}", *SMALL, *HARD]
    resume_exactly(trial, "mapped", *settings, "data.max_train_samples=250", SAVED[-1])
