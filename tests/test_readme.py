"""The README is true: its walk-through's shapes are the model's, its commands name what exists."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from train import main
from vitlab import command, vit

README = (Path(__file__).parents[1] / "README.md").read_text()


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
        if not where[0].isupper():
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
            "MultiHeadAttention.weigh": tuple(block.attn.weigh(q, k).shape[1:]),
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
    if where[0].isupper():  # a method: it is in vit.py
        owner, method = where.split(".")
        assert callable(getattr(getattr(vit, owner), method))


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^python src/train\.py (.+)$", README, flags=re.MULTILINE))))
def test_each_training_command_of_the_readme_passes_the_checks(line: str, tmp_path: Path) -> None:
    command.register()
    arguments = shlex.split(line, comments=True)
    if arguments in (["--help"], ["resume=runs/NAME/STAMP"]):
        pytest.skip("shows help, or wants a run")
    # the folders that the commands name stand for the user's own
    (tmp_path / "photos").mkdir()
    arguments = [f"data_dir={tmp_path / 'photos'}" if a.startswith("data_dir=") else a for a in arguments]
    assert command.preflight("train", inspect.unwrap(main), [*arguments, "trainer.accelerator=cpu"])
