"""Which parameters decay, at what rates, and that every optimizer of `conf/` learns."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timm.models.vision_transformer import VisionTransformer as VisionTransformerOfTimm
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

from vitlab.models.vit import VisionTransformer
from vitlab.training.optimizer import build_optimizer, group_settings, group_table, parameter_groups
from vitlab.training.optimizer import logged_rates as rates_of
from vitlab.training.schedule_free import ScheduleFreeAdamW
from vitlab.training.schedules import call_schedule

CONF = Path(__file__).resolve().parents[3] / "conf"
PEAK, STEPS = 0.4, 40


def toy(**knobs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=8, patch_size=4, dim=16, depth=2, heads=2, num_classes=3, in_channels=1, **knobs
    )


def names(network: nn.Module, group: dict[str, Any]) -> set[str]:
    by_identity = {id(parameter): name for name, parameter in network.named_parameters()}
    return {by_identity[id(parameter)] for parameter in group["params"]}


def groups_by_name(network: nn.Module, **knobs: bool) -> dict[str, set[str]]:
    groups = parameter_groups(network, **knobs)
    return {group["name"]: names(network, group) for group in groups}


# ------------------------------------------------------------------------------------------------------- groups


def test_only_matrices_decay() -> None:
    network = toy(layer_scale=0.1, num_registers=2)
    found = groups_by_name(network)
    blocks = {f"blocks.{i}.{m}.weight" for i in (0, 1) for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert found["decay"] == {*blocks, "patch_embed.proj.weight", "head.weight"}
    assert found["decay"] | found["no_decay"] == {name for name, _ in network.named_parameters()}
    assert {"cls_token", "pos_embed", "blocks.0.ls1.gamma", "norm.weight", "head.bias"} <= found["no_decay"]
    for group in parameter_groups(network):
        assert group.get("weight_decay") == (0.0 if group["name"] == "no_decay" else None)


def test_everything_decays_if_that_is_wanted_as_torchvision_does() -> None:
    network = toy(layer_scale=0.1, num_registers=2)
    (group,) = parameter_groups(network, decay_all=True)
    assert group["name"] == "decay"
    assert len(group["params"]) == len(list(network.parameters()))
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3), network, decay_all=True)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3]
    kinds = groups_by_name(network, hidden_apart=True, decay_all=True)
    assert kinds["decay"] == groups_by_name(network, hidden_apart=True)["decay"], "Muon gets matrices alone"
    assert kinds["decay"] | kinds["decay_ends"] == {name for name, _ in network.named_parameters()}


def test_a_scale_of_the_rate_comes_before_layer_decay() -> None:
    make = partial(torch.optim.SGD, lr=5e-4)
    layered = build_optimizer(make, toy(), scale=4.0, layer_decay=0.5)
    assert rates_of(layered) == {"layer0": 2e-3 * 0.125, "head": 2e-3}


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet18"])
def test_only_matrices_and_kernels_of_a_timm_model_decay(model: str) -> None:
    network = timm.create_model(model, num_classes=3)
    found = groups_by_name(network)
    assert found["decay"] | found["no_decay"] == {name for name, _ in network.named_parameters()}
    assert not found["decay"] & found["no_decay"]
    assert all(name.endswith("weight") and network.get_parameter(name).ndim in (2, 4) for name in found["decay"])
    exempt = {"cls_token", "pos_embed"} if model.startswith("vit") else {"bn1.weight", "fc.bias"}
    assert exempt <= found["no_decay"]


def test_frozen_parameters_are_in_no_group() -> None:
    network = toy()
    network.patch_embed.requires_grad_(False)
    for block in network.blocks:
        block.requires_grad_(False)
    found = groups_by_name(network)
    assert found["decay"] == {"head.weight"}
    assert found["no_decay"] == {"cls_token", "pos_embed", "norm.weight", "norm.bias", "head.bias"}
    network.head.requires_grad_(False)
    assert set(groups_by_name(network)) == {"no_decay"}, "no empty group is made"


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    network = toy()
    groups = {group["name"]: group for group in parameter_groups(network, hidden_apart=True)}
    assert all(name.startswith("blocks.") for name in names(network, groups["decay"]))
    assert len(groups["decay"]["params"]) == 8
    assert names(network, groups["decay_ends"]) == {"patch_embed.proj.weight", "head.weight"}
    fallback = {name: group["use_fallback"] for name, group in groups.items()}
    assert fallback == {"decay": False, "decay_ends": True, "no_decay": True}
    assert groups["no_decay"]["weight_decay"] == 0.0


def test_weight_decay_moves_matrices_and_nothing_else() -> None:
    network = toy()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(network), lr=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decaying = groups_by_name(network)["decay"]
    for name, parameter in network.named_parameters():
        expected = before[name] * (0.95 if name in decaying else 1.0)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


# -------------------------------------------------------------------------------------------- rates that differ


def networks() -> dict[str, nn.Module]:
    """Ours and timm's of the same shape, with all kinds of parameters that a layer may have."""
    with torch.random.fork_rng():
        theirs = VisionTransformerOfTimm(
            img_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=3, in_chans=1, reg_tokens=2
        )
    ours = VisionTransformer(
        image_size=8, patch_size=4, dim=16, depth=3, heads=2, num_classes=3, in_channels=1, num_registers=2
    )
    return {"ours": ours, "timm": theirs}


SCHEDULES = sorted((CONF / "schedule").glob("*.yaml"))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda file: file.stem)
@pytest.mark.parametrize("kind", ["ours", "timm"])
def test_a_layer_s_rate_is_the_base_times_the_decay_to_the_power_of_its_distance_from_the_head(
    kind: str, schedule: Path
) -> None:
    network, depth, decay = networks()[kind], 3, 0.65
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=PEAK), network, layer_decay=decay)
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    node = OmegaConf.to_container(OmegaConf.load(schedule))
    make = instantiate(node, warmup_steps=8)
    schedules = [call_schedule(make, each, total_steps=STEPS, steps_per_epoch=4) for each in (optimizer, plain)]
    named = {id(parameter): name for name, parameter in network.named_parameters()}
    warm = []
    for step in range(STEPS):
        base = plain.param_groups[0]["lr"]
        found = {named[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert set(found) == set(named.values())
        for name, rate in found.items():
            layer = depth + 1 if name.startswith("head") else 0
            if name.startswith("blocks."):
                layer = int(name.split(".")[1]) + 1
            layer = depth if name.startswith("norm") else layer  # timm counts the last norm to the last block
            assert rate == pytest.approx(base * decay ** (depth + 1 - layer)), (step, name)
        warm.append(base)
        for each in [optimizer, plain]:
            each.step()
        for made in schedules:
            made.step()
    if schedule.stem != "timm_cosine":
        assert warm[:8] == pytest.approx([PEAK * (step + 1) / 8 for step in range(8)])
    assert len(set(warm)) > 8 - 1


@pytest.mark.parametrize("kind", ["ours", "timm"])
def test_the_layers_and_what_decays_in_them_are_those_of_timm_s_own_function(kind: str) -> None:
    networks_ = networks()
    network, theirs = networks_[kind], networks_["timm"]
    expected = {}
    exempt = theirs.no_weight_decay()  # type: ignore[operator]
    reference = param_groups_layer_decay(theirs, weight_decay=0.3, no_weight_decay_list=exempt, layer_decay=0.65)
    by_identity = {id(parameter): name for name, parameter in theirs.named_parameters()}
    for group in reference:
        for parameter in group["params"]:
            expected[by_identity[id(parameter)]] = (PEAK * group["lr_scale"], group["weight_decay"])
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=PEAK, weight_decay=0.3), network, layer_decay=0.65)
    found = {
        name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in names(network, group)
    }
    assert found.keys() == expected.keys()
    for name, pair in found.items():
        assert pair == pytest.approx(expected[name]), name


def test_a_convolutional_network_has_layers_too() -> None:
    network = timm.create_model("resnet18", num_classes=3)
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=1.0), network, layer_decay=0.5, head_lr_factor=3.0)
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found["head_decay"] == found["head_no_decay"] == 3.0
    assert (found["layer8_decay"], found["layer0_decay"]) == (0.5, 0.5**9)


def test_a_network_without_layers_is_reported() -> None:
    with pytest.raises(ValueError, match=r"classifier\.layer_decay: Linear lacks group_matcher"):
        build_optimizer(partial(torch.optim.SGD, lr=1.0), nn.Linear(2, 2), layer_decay=0.5)


def test_the_head_s_rate_can_be_another_without_any_decay_by_layer() -> None:
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=PEAK), toy(), head_lr_factor=10.0)
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    rest = {"decay": PEAK, "no_decay": PEAK}
    assert found == pytest.approx({**rest, "head_decay": 10 * PEAK, "head_no_decay": 10 * PEAK})
    assert rates_of(optimizer) == found


@pytest.mark.parametrize("file", sorted((CONF / "optimizer").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_optimizer_of_conf_moves_each_layer_by_its_own_rate(file: Path) -> None:
    """From the same weights and gradients, at a tenth of the rate everything goes a tenth as far."""
    make = instantiate(OmegaConf.to_container(OmegaConf.load(file)), _convert_="all", weight_decay=0.0)
    moved: dict[bool, dict[str, torch.Tensor]] = {}
    for layered in (False, True):
        network = toy()
        optimizer = build_optimizer(make, network, layer_decay=0.1 if layered else 1.0)
        before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        torch.manual_seed(1)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(lambda: 0.0)
        moved[layered] = {name: (p.detach() - before[name]).double() for name, p in network.named_parameters()}
        apart = [group.get("use_fallback") for group in optimizer.param_groups if group["part"] == "layer1"]
        expected = {"muon": [False, True], "muon_qkv": [False, False, True]}.get(file.stem, [None, None])
        assert apart == (expected if layered else [])
    for name, factor in (("head.weight", 1.0), ("blocks.1.mlp.fc1.weight", 0.1), ("blocks.0.attn.qkv.weight", 0.01)):
        torch.testing.assert_close(moved[True][name], factor * moved[False][name], rtol=1e-3, atol=3e-7, msg=name)


def test_what_is_logged_are_the_rates_of_the_first_and_the_last_layer_that_are_trained() -> None:
    network = toy()
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=1.0), network, layer_decay=0.5)
    assert rates_of(optimizer) == {"layer0": 0.125, "head": 1.0}
    for name in ("patch_embed.proj.weight", "head.bias"):  # then a single group each is left of these layers
        network.get_parameter(name).requires_grad_(False)
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=1.0), network, layer_decay=0.5)
    assert rates_of(optimizer) == {"layer0": 0.125, "head": 1.0}
    for name in ("cls_token", "pos_embed", "patch_embed.proj.bias"):
        network.get_parameter(name).requires_grad_(False)
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=1.0), network, layer_decay=0.5)
    assert rates_of(optimizer) == {"layer1": 0.25, "head": 1.0}
    assert rates_of(build_optimizer(partial(torch.optim.SGD, lr=1.0), network)) == {"decay": 1.0, "no_decay": 1.0}


def test_the_settings_of_a_group_are_what_a_configuration_sets_but_its_rate() -> None:
    network = toy()
    decay, none = group_settings(build_optimizer(partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05), network))
    assert (decay["name"], decay["weight_decay"], none["weight_decay"]) == ("decay", 0.05, 0.0)
    assert not {"params", "lr"} & decay.keys()
    optimizer = build_optimizer(partial(ScheduleFreeAdamW, lr=1e-3), network)
    assert optimizer.counts  # type: ignore[attr-defined]
    for group, settings in zip(optimizer.param_groups, group_settings(optimizer), strict=True):
        counts: set[str] = {*optimizer.counts}  # type: ignore[attr-defined]
        assert group.keys() - settings.keys() == {"params", "lr", *counts}, "it counts on"


def test_the_table_has_every_parameter_once_with_its_rate_and_decay() -> None:
    network = toy()
    network.patch_embed.requires_grad_(False)
    make = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
    lines = group_table(network, build_optimizer(make, network, layer_decay=0.5))
    assert [line.split()[0] for line in lines] == [
        "group",
        "layer0_no_decay",
        *(f"layer{layer}_{kind}" for layer in (1, 2) for kind in ("decay", "no_decay")),
        "head_decay",
        "head_no_decay",
        "frozen",
    ]
    assert lines[1].split()[1:] == ["96", "0.000125", "0", "cls_token", "..", "pos_embed"]
    assert lines[-3].split() == ["head_decay", "48", "0.001", "0.05", "head.weight"]
    assert lines[-1].split() == ["frozen", "272", "-", "-", "patch_embed.proj.weight", "..", "patch_embed.proj.bias"]
    numbers = sum(int(line.split()[1].replace(",", "")) for line in lines[1:])
    assert numbers == sum(parameter.numel() for parameter in network.parameters())
    assert len({line.index(line.split()[4]) for line in lines}) == 1, "the last column is aligned"


# ---------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("file", sorted((CONF / "optimizer").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_optimizer_of_conf_moves_every_parameter_and_lowers_the_loss(file: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(file))
    network = toy()
    images, targets = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    make = instantiate(node, _convert_="all")
    optimizer = build_optimizer(make, network)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(lambda: 0.0)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    still = [name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])]
    assert not still
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_muon_makes_updates_of_the_blocks_matrices_orthogonal_and_no_others() -> None:
    network = toy()
    nn.init.normal_(network.get_parameter("head.weight"))  # a fresh head is 0 and lets no gradient through
    optimizer = instantiate(OmegaConf.load(CONF / "optimizer" / "muon.yaml"), _convert_="all", weight_decay=0.0)(
        parameter_groups(network, hidden_apart=True)
    )
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    images, targets = torch.randn(64, 1, 8, 8), torch.arange(64) % 3
    F.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    def spread(name: str) -> float:
        """Largest singular value of an update over its median: about 1 for an orthogonal one."""
        values = torch.linalg.svdvals((network.get_parameter(name) - before[name]).detach())
        return float(values[0] / values.median())

    apart = [name for name, p in network.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    assert len(apart) == 8
    assert max(spread(name) for name in apart) < 2
    for name in ("head.weight", "patch_embed.proj.weight"):  # Adam's first update is one length, up or down
        update = (network.get_parameter(name) - before[name]).detach().abs()
        torch.testing.assert_close(update, update.mean().expand_as(update), rtol=1e-3, atol=1e-7)


def test_muon_apart_has_the_qkv_matrices_of_the_blocks_in_a_group() -> None:
    network = toy()
    make = instantiate(OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / "muon_qkv.yaml")), _convert_="all")
    groups = {group["name"]: group for group in build_optimizer(make, network).param_groups}
    assert names(network, groups["decay_qkv"]) == {f"blocks.{i}.attn.qkv.weight" for i in (0, 1)}
    assert (groups["decay_qkv"]["qkv"], groups["decay_qkv"]["use_fallback"]) == (True, False)
    assert len(groups["decay"]["params"]) == 6


@pytest.mark.parametrize("name", ["lamb", "adafactor", "muon_qkv"])
def test_an_optimizer_continues_from_its_saved_state(name: str, tmp_path: Path) -> None:
    make = instantiate(OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / f"{name}.yaml")), _convert_="all")

    def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    network = toy()
    optimizer = build_optimizer(make, network)
    train(network, optimizer, range(2))
    torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    train(network, optimizer, range(2, 5))
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = toy()
    resumed.load_state_dict(weights)
    again = build_optimizer(make, resumed)
    again.load_state_dict(state)
    train(resumed, again, range(2, 5))
    for mine, theirs in zip(resumed.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_lamb_clips_the_norm_itself_and_adapts_what_decays() -> None:
    """As apex's FusedLAMB in DeiT III: the norm of all gradients is 1, vectors have no trust ratio."""
    make = instantiate(OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / "lamb.yaml")), _convert_="all")
    assert make.keywords == {
        "lr": 4e-3,
        "weight_decay": 0.05,
        "betas": [0.9, 0.999],
        "eps": 1e-6,
        "max_grad_norm": 1.0,
        "trust_clip": False,
        "always_adapt": False,
    }
    network = toy()
    nn.init.normal_(network.get_parameter("head.weight"))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = build_optimizer(make, network)
    for parameter in network.parameters():
        parameter.grad = 1e3 * torch.ones_like(parameter)
    optimizer.step()
    scale = sum(p.numel() for p in network.parameters()) ** -0.5  # of the clipped gradient
    for name, parameter in network.named_parameters():
        update = scale / (scale + 1e-6) * torch.ones_like(parameter)  # Adam's first
        if name in groups_by_name(network)["decay"]:
            update += 0.05 * before[name]
            update *= before[name].norm() / update.norm()
        torch.testing.assert_close(parameter.detach(), before[name] - 4e-3 * update, rtol=1e-4, atol=1e-6, msg=name)
