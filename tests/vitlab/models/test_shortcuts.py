"""Shortcuts give way to what other libraries do with a layer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import timm
import torch
from torch import distributed, nn
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from toy_vit import TIMM_TOY, toy
from vitlab.models.shortcuts import is_plain
from vitlab.models.vit import VisionTransformer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
