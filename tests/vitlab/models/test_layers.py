"""Stochastic depth drops whole samples, in both of its forms; patches are dropped as timm drops them.

Shortcuts give way to what other libraries do with a layer.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import timm
import torch
from timm.layers.patch_dropout import PatchDropout
from torch import distributed, nn
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune
from transformers.activations import ACT2FN

from toy_vit import TIMM_TOY, toy
from vitlab.models import layers
from vitlab.models.layers import is_plain
from vitlab.models.vit import Block, VisionTransformer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    block: Block = toy(drop_path=0.3).blocks[-1].train()
    kept = block.drop(torch.ones(20_000, 2, 3))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 1 / 0.7])
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)  # the standard error is 0.0046


@pytest.mark.parametrize("queries", [None, 1])
def test_the_kept_samples_alone_are_computed_and_scaled(queries: int | None) -> None:
    """DINOv2's form: a permutation's first int(B * (1 - rate)) samples, twice, times B over their number."""
    block: Block = toy(drop_path=0.4, drop_path_kept_only=True, layer_scale=0.5).blocks[-1].train()
    x = torch.randn(9, 17, 24)
    sizes: list[int] = []
    hooked: list[nn.Module] = [block.attn, block.mlp]
    for part in hooked:
        part.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    torch.manual_seed(3)
    got = block(x, queries)
    assert sizes == [5, 5]
    torch.manual_seed(3)
    expected = x[:, :queries].clone()
    rows = torch.randperm(9)[:5]
    expected[rows] += block.ls1(block.attn(block.norm1(x[rows]), queries)) * 9 / 5
    rows = torch.randperm(9)[:5]
    expected[rows] += block.ls2(block.mlp(block.norm2(expected[rows]))) * 9 / 5
    torch.testing.assert_close(got, expected)
    assert torch.equal(block.eval()(x, queries), toy_without_drop(block)(x, queries))


def toy_without_drop(block: Block) -> Block:
    other: Block = toy(layer_scale=0.5).blocks[-1].eval()
    other.load_state_dict(block.state_dict())
    return other


def test_both_forms_of_stochastic_depth_have_the_same_expectation() -> None:
    x, means = torch.randn(1, 17, 24).expand(4000, -1, -1), []
    for kept_only in (False, True):
        torch.manual_seed(0)
        block: Block = toy(drop_path=0.4, drop_path_kept_only=kept_only, layer_scale=1.0).blocks[-1].train()
        with torch.no_grad():
            outputs = block(x)
        means.append(outputs.mean(dim=0))
        spread = outputs.std(dim=0) / 4000**0.5
        assert float(spread.max()) < 0.05
    assert float(((means[0] - means[1]) / spread).abs().max()) < 5


def test_a_rate_of_at_most_a_tenth_and_a_single_sample_are_not_subsets() -> None:
    outputs = []
    for kept_only in (False, True):
        torch.manual_seed(0)
        model = toy(drop_path=0.1, drop_path_kept_only=kept_only).train()
        outputs.append(model(torch.ones(8, 3, 16, 16)))
    assert torch.equal(*outputs)
    block: Block = toy(drop_path=0.4, drop_path_kept_only=True).blocks[-1].train()
    x = torch.randn(1, 17, 24)
    torch.testing.assert_close(block(x), block.eval()(x))


def test_of_few_samples_at_a_high_rate_one_is_kept() -> None:
    changed = layers.add_branch(torch.zeros(3, 4), 0.9, lambda kept: torch.ones(len(kept), 4))
    assert sorted(changed.sum(1).tolist()) == [0.0, 0.0, 12.0]


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.99])
def test_patches_are_dropped_as_timm_drops_them(prefix: int, rate: float) -> None:
    x = torch.randn(5, prefix + 11, 8)
    torch.manual_seed(4)
    got = layers.patch_dropout(x, rate, prefix, training=True)
    torch.manual_seed(4)
    assert torch.equal(got, PatchDropout(rate, num_prefix_tokens=prefix)(x))
    assert got.shape[1] == prefix + max(1, int(11 * (1 - rate)))
    assert layers.patch_dropout(x, rate, prefix, training=False) is x
    assert layers.patch_dropout(x, 0.0, prefix, training=True) is x


def test_activations_are_those_of_torch_and_transformers() -> None:
    x = torch.randn(5, 8)
    expected = {
        "gelu": nn.GELU()(x),
        "gelu_tanh": nn.GELU("tanh")(x),
        "quick_gelu": ACT2FN["quick_gelu"](x),
        "swiglu": nn.SiLU()(x[:, :4]) * x[:, 4:],
    }
    assert expected.keys() == layers.ACTIVATIONS.keys()
    for name, activation in layers.ACTIVATIONS.items():
        torch.testing.assert_close(activation(x), expected[name])


def test_layer_scale_multiplies_each_channel_by_its_factor() -> None:
    scale = layers.LayerScale(dim=3, value=0.1)
    scale.gamma.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(scale(torch.full((1, 2, 3), 2.0)), torch.tensor([[[2.0, 4.0, 6.0]] * 2]))


def test_dropout_is_for_training_at_a_rate() -> None:
    x = torch.ones(1000)
    assert layers.dropout(x, 0.5, training=False) is x
    assert layers.dropout(x, 0.0, training=True) is x
    dropped = layers.dropout(x, 0.2, training=True)
    assert 700 < int((dropped == 1.25).sum()) < 900
    assert int((dropped == 0).sum()) == 1000 - int((dropped == 1.25).sum())


def twins() -> tuple[nn.Module, VisionTransformer]:
    """timm's model and ours, of the same weights of ordinary size."""
    one, two = timm.create_model("vit_tiny_patch16_224", **TIMM_TOY).eval(), toy().eval()
    one.load_state_dict({name: torch.randn_like(value) * 0.3 for name, value in one.state_dict().items()})
    two.load_state_dict(one.state_dict())
    return one, two


def add_lora(model: Any, *targets: str, merge: bool = False) -> Any:
    config = peft.LoraConfig(target_modules=list(targets), init_lora_weights=False)
    adapted: Any = peft.get_peft_model(model, config).eval()
    return adapted.merge_and_unload() if merge else adapted


def double_norm(model: nn.Module) -> None:
    projection = parametrizations.weight_norm(model.get_submodule("patch_embed.proj"))
    with torch.no_grad():
        projection.get_parameter("parametrizations.weight.original0").mul_(2)


def prune_and_double(model: nn.Module) -> None:
    projection = prune.l1_unstructured(  # type: ignore[no-untyped-call]
        model.get_submodule("patch_embed.proj"), "weight", 0.5
    )
    with torch.no_grad():  # what is pruned is computed from it in a hook
        projection.get_parameter("weight_orig").mul_(2)


def square_input(model: nn.Module, name: str) -> None:
    module: Any = model.get_submodule(name)
    module.forward = lambda x, forward=module.forward, **_: forward(x * x)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "LoRA on proj": lambda model: add_lora(model, "proj"),
    "LoRA on qkv and an MLP": lambda model: add_lora(model, "qkv", "fc1"),
    "merged LoRA": lambda model: add_lora(model, "qkv", "proj", merge=True),
    "pruning": prune_and_double,
    "weight norm": double_norm,
    "offloading": lambda model: accelerate.cpu_offload(model, execution_device=torch.device("cpu")),
} | {
    name: partial(square_input, name=name)
    for name in ("patch_embed.proj", "blocks.2", "blocks.2.attn", "blocks.2.attn.qkv", "blocks.2.mlp", "norm")
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_another_library_has_the_effect_that_it_has_on_timms_model(change: str) -> None:
    images, outputs = torch.randn(2, 3, 16, 16), []
    one, two = twins()
    before = two(images)
    for model in (one, two):
        torch.manual_seed(1)
        changed = CHANGES[change](model)
        outputs.append((changed if "LoRA" in change else model)(images))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    assert ((outputs[1] - before).abs().max() < 1e-3) == (change == "offloading")


def test_a_merged_lora_has_our_keys() -> None:
    _, model = twins()
    names = list(model.state_dict())
    assert list(add_lora(model, "qkv", "proj", merge=True).state_dict()) == names


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_hook_on_the_last_block_gets_all_tokens_and_one_on_the_projection_all_patches(kind: str) -> None:
    model = toy().eval()
    for name, module in model.named_modules():
        if not name.startswith(("patch_embed.proj", "blocks.2", "norm")) or name == "norm_pre":
            continue
        shapes: list[torch.Size] = []

        def note(*call: Any, shapes: list[torch.Size] = shapes) -> None:
            shapes.append((call[-1] if isinstance(call[-1], torch.Tensor) else call[-1][0]).shape)

        with getattr(module, f"register_{kind}")(note):
            model(torch.randn(2, 3, 16, 16, requires_grad=True)).sum().backward()
        assert len(shapes) == 1, name
        expected = 17 if "patch" not in name else 3 if "forward_pre" in kind else 24
        assert shapes[0][-2 if "attn_drop" in name else 1] == expected, name
    assert is_plain(torch.zeros(1), model), "a hook that was removed leaves no trace"


def test_sharding_and_hooks_on_all_modules_keep_the_shortcut(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", store=FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh, model, tokens = init_device_mesh("cpu", (1,)), toy().eval(), []
        for module in (*model.blocks, model):
            fully_shard(module, mesh=mesh)
        with register_module_forward_hook(lambda *call: tokens.append(call[2].shape)):  # as a profiler does
            model(torch.zeros(2, 3, 16, 16))
    finally:
        distributed.destroy_process_group()
    assert [shape[1] for shape in tokens if len(shape) == 3][-2:] == [1, 1]  # of the last block, and its norm
