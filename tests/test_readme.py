"""The README is true: its walk-through's shapes are the model's, its commands name what exists."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import probe
import train
from vitlab import command, signatures, vit

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


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^python src/((?:train|probe)\.py .+)$", README, flags=re.M))))
def test_each_command_of_the_readme_that_trains_or_probes_passes_the_checks(
    line: str, tmp_path: Path, parquet: Path
) -> None:
    signatures.register()
    file, *arguments = shlex.split(line, comments=True)
    if arguments in (["--help"], ["resume=runs/NAME/STAMP"]):
        pytest.skip("shows help, or wants a run")
    # the folders that the commands name stand for the user's own, and a small file for published weights
    (tmp_path / "photos").mkdir()
    weights = vit.VisionTransformer(image_size=224, patch_size=16, dim=32, depth=1, heads=2, num_classes=10)
    save_file(weights.state_dict(), tmp_path / "weights.safetensors")
    here = {"data_dir": tmp_path / "photos", "model.weights": tmp_path / "weights.safetensors", "data.name": parquet}
    arguments = [f"{key}={here[key]}" if (key := a.partition("=")[0]) in here else a for a in arguments]
    arguments += ["model.heads=2"] * any(a.startswith("model.weights=") for a in arguments)
    program = {"train.py": train.main, "probe.py": probe.main}[file]
    assert command.preflight(file.removesuffix(".py"), inspect.unwrap(program), [*arguments, "trainer.accelerator=cpu"])


def test_the_matrix_of_weights_is_the_full_one_summed_up() -> None:
    """Of each family, the largest differences among the rows of experiments/weights.md."""
    full = (signatures.EXPERIMENTS / "weights.md").read_text()
    cell, number = "([^|]+)", r"(\d+e-\d+|none)"
    rows = re.findall(rf"^\| {cell} \| {cell} \| {cell} \| {number} \| {number} \|$", full, flags=re.M)
    summed: dict[str, list[str]] = {}
    for family in dict.fromkeys(row[0] for row in rows):
        found = [row[3:] for row in rows if row[0] == family]
        seen = [[float(n) for n in column if n != "none"] for column in zip(*found, strict=True)]
        summed[family] = [str(len(found)), *(f"{max(numbers):.0e}" if numbers else "none" for numbers in seen)]
    table = re.findall(rf"^\| {cell} \| (\d+) \| {number} \| {number} \|$", README, flags=re.M)
    assert {family: list(told) for family, *told in table} == summed
    assert sum(int(count) for _, count, *_ in table) >= 12
