"""Names and values of other tools are answered with ours."""

import pytest

from vitlab.config import guesses


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("lr=0.1", "use optimizer.lr=0.1"),
        ("trainer.gpus=2", "use trainer.devices=2"),
        ("epochs=5", "use trainer.max_epochs=5"),
        ("warmup_epochs=5", "use schedule=warmup_cosine schedule.warmup_epochs=5"),
        ("schedule.warmup_ratio=0.1", "use schedule.warmup_fraction=0.1"),
        ("warmup=100", "use schedule.warmup_steps=100 (optimizer steps)"),
        ("pretrained=true", "use model=auto model.weights=timm:NAME, hf:NAME or FILE"),
        ("wandb=off", "use logger=csv"),
        ("logger=none", "use logger=csv: metrics.csv is always written"),
        ("model=resnet18", "use model=timm model.model_name=resnet18 for a model of timm"),
        (
            "optimizer=torch.optim.Adagrad",
            "write a YAML with _target_: torch.optim.Adagrad, as in docs/your_own_code.md",
        ),
        ("precision=fp16", "use trainer.precision=16-mixed"),
        ("trainer.precision=fp16", "use trainer.precision=16-mixed"),
        ("precision=bf16-mixed", "use trainer.precision=bf16-mixed"),
        ("early_stopping=true", "use callbacks=early_stopping"),
        ("+mixup=0.2", "use data.augment.mixup=0.2"),
        ("img_size=64", "use image_size=64"),
    ],
)
def test_a_guess_gets_the_right_setting(line: str, remedy: str) -> None:
    assert (guesses.advice(line) or "").startswith(remedy)


@pytest.mark.parametrize("line", ["model=vit_b16", "optimizer=adamww", "seeed=3", "callbacks=ema"])
def test_what_is_no_known_guess_gets_none(line: str) -> None:
    assert guesses.advice(line) is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--lr", "0.1"], ["lr=0.1"]),
        (["--optimizer.lr=0.1", "--batch-size=8", "seed=1"], ["optimizer.lr=0.1", "batch_size=8", "seed=1"]),
        (["--compile", "--seed", "3", "-m", "--cfg", "job"], ["compile=true", "seed=3", "-m", "--cfg", "job"]),
        (["--compile"], ["compile=true"]),
        (["--multirun", "a=1,2", "--"], ["--multirun", "a=1,2", "--"]),
    ],
)
def test_options_with_dashes_are_settings(arguments: list[str], line: list[str]) -> None:
    assert guesses.without_dashes(arguments, {"--cfg", "--multirun"}) == line
