"""The parity matrix: random networks of other libraries, written by the library, loaded here, and compared.

    python tests/parity.py                prints the table of docs/weights.md
    python tests/parity.py memory pth     loads a ViT-H/14, or from safetensors, and prints by how much the process grew

Each row names a library's class, its options, and how the weights reach us. Nothing is downloaded.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from vitlab.models.vit import VisionTransformer
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.load import load_network, load_pretrained
from vitlab.weights.mapping import from_ours
from vitlab.weights.open import open_weights

TOLERANCE = 1e-4
DEPTH = 2  # blocks are alike


class Row(NamedTuple):
    """One network of another library."""

    family: str
    architecture: str
    option: str
    make: Callable[[Path], tuple[nn.Module, str]]  # writes weights into a folder: the network, and what to load
    outputs: Callable[[Any, Tensor], tuple[Tensor | None, Tensor]]  # logits if there is a head, tokens


def fill(model: nn.Module) -> None:
    """Fill a model with weights of ordinary size: initial tokens, biases and factors near 0 would hide mistakes."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.ndim in (2, 4):
            value.normal_(std=value[0].numel() ** -0.5)
        elif name.endswith("weight"):
            value.normal_(mean=1.0, std=0.2)
        else:
            value.normal_(std=0.3)


# ------------------------------------------------------------------------------------------------------------- timm


def timm_outputs(model: Any, images: Tensor) -> tuple[Tensor | None, Tensor]:
    return model(images), model.forward_features(images)


def of_timm(name: str, *, ending: str = "safetensors", wrap: str = "", **options: Any) -> Callable[[Path], Any]:
    """A timm model, written with its config.json as timm writes it to the hub."""

    def make(folder: Path) -> tuple[nn.Module, str]:
        model: Any = timm.create_model(name, pretrained=False, depth=DEPTH, **options).eval()
        fill(model)
        state = {f"{wrap}{key}": value for key, value in model.state_dict().items()}
        if ending == "npz":
            theirs = from_ours(model.state_dict(), LAYOUTS["google"], heads=model.blocks[0].attn.num_heads)
            file = folder / "weights.npz"
            np.savez(file, **{key: value.numpy() for key, value in theirs.items()})  # type: ignore[arg-type]
            model = timm.create_model(name, pretrained=False, depth=DEPTH, **options).eval()
            model.load_pretrained(str(file))  # timm's own loader
            return model, str(file)
        if ending == "pth":
            torch.save({"model": state, "epoch": 3}, folder / "weights.pth")
            return model, str(folder / "weights.pth")
        timm.models.save_for_hf(model, str(folder), model_config={"model_args": {"depth": DEPTH, **options}})
        return model, str(folder)

    return make


# ----------------------------------------------------------------------------------------------------- transformers


def hf_outputs(model: Any, images: Tensor) -> tuple[Tensor | None, Tensor]:
    output = model(images)
    body = getattr(model, model.base_model_prefix, model)
    if hasattr(output, "logits"):
        return output.logits, body(images).last_hidden_state
    pooled = output.pooler_output if getattr(body, "pooler", None) is not None else None
    tokens = output.last_hidden_state
    if "clip" in model.config.model_type:  # it normalizes [cls] alone, which is its output
        return output.pooler_output, model.post_layernorm(tokens)
    return pooled, tokens


def of_transformers(
    name: str, *, options: dict[str, Any] | None = None, torch_file: bool = False, shards: bool = False
) -> Callable[[Path], Any]:
    """A transformers model, written by its own `save_pretrained`."""

    def make(folder: Path) -> tuple[nn.Module, str]:
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        kind = getattr(transformers, name)
        sizes: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": DEPTH, "num_attention_heads": 6}
        sizes |= {"image_size": 56, "patch_size": 14, "num_labels": 7}
        sizes |= {} if "Dinov2" in name else {"intermediate_size": 160}
        model = kind(kind.config_class(**sizes | (options or {}))).eval()
        fill(model)
        if torch_file:
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
            model.config.save_pretrained(folder)
        else:
            model.save_pretrained(folder, max_shard_size="200KB" if shards else "5GB")
        return model, f"hf:{folder}"

    return make


# ------------------------------------------------------------------------------------------------------ torchvision


def torchvision_outputs(model: Any, images: Tensor) -> tuple[Tensor | None, Tensor]:
    x = model._process_input(images)
    x = torch.cat([model.class_token.expand(len(x), -1, -1), x], dim=1)
    return model(images), model.encoder(x)


def of_torchvision(**options: Any) -> Callable[[Path], Any]:
    """A torchvision model, saved as a state_dict in a .pth."""

    def make(folder: Path) -> tuple[nn.Module, str]:
        sizes: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_layers": DEPTH, "num_heads": 3}
        sizes |= {"hidden_dim": 192, "mlp_dim": 768, "num_classes": 7}
        model = torchvision.models.VisionTransformer(**sizes | options).eval()
        fill(model)
        torch.save(model.state_dict(), folder / "weights.pth")
        return model, str(folder / "weights.pth")

    return make


def row(family: str, architecture: str, option: str, **options: Any) -> Row:
    """A row with a timm model."""
    return Row(family, architecture, option, of_timm(architecture, **options), timm_outputs)


SMALL = {"img_size": 64, "num_classes": 7}
ROWS = [
    row("timm ViT", "vit_tiny_patch16_224", "[cls]", **SMALL),
    row("timm ViT", "vit_small_patch32_224", "not square, one channel", img_size=(64, 96), in_chans=1, num_classes=7),
    row("timm ViT", "vit_medium_patch16_gap_256", "mean, norm before pooling, no [cls]", **SMALL),
    row("timm ViT", "vit_giantopt_patch16_siglip_gap_256", "tanh GELU", img_size=64, embed_dim=192, num_heads=3),
    row("DeiT", "deit_tiny_patch16_224", "[cls]", **SMALL),
    row("DeiT", "deit_tiny_distilled_patch16_224", "distillation token, two heads", **SMALL),
    row("DeiT III", "deit3_small_patch16_224", "LayerScale, no position for [cls]", **SMALL),
    row("CLIP in timm", "vit_xsmall_patch16_clip_224", "norm before the blocks", **SMALL),
    row("CLIP in timm", "vit_base_patch32_clip_quickgelu_224", "quick GELU", **SMALL),
    row(
        "DINO",
        "vit_small_patch8_224",
        "patch 8, no head",
        img_size=32,
        num_classes=0,
        ending="pth",
        wrap="module.backbone.",
    ),
    row("DINOv2", "vit_small_patch14_dinov2", "LayerScale, no head", img_size=56),
    row("DINOv2", "vit_small_patch14_reg4_dinov2", "registers", img_size=56, num_classes=7),
    row("DINOv2", "vit_giant_patch14_dinov2", "SwiGLU", img_size=28, embed_dim=192, num_heads=3),
    row("MAE", "vit_base_patch16_224", "mean, fc_norm", img_size=32, num_classes=7, global_pool="avg", ending="pth"),
    row("AugReg .npz", "vit_small_patch16_224", "timm's own loader", ending="npz", **SMALL),
    row("AugReg .npz", "vit_small_patch32_224", "timm's own loader", ending="npz", **SMALL),
    row("SBB", "vit_wee_patch16_reg1_gap_256", "registers, fc_norm, no [cls]", **SMALL),
    row("SBB", "vit_little_patch16_reg4_gap_256", "four registers", **SMALL),
    *(
        Row(family, kind, option, of_transformers(kind, **more), hf_outputs)
        for family, kind, option, more in (
            ("HF ViT", "ViTForImageClassification", "q, k, v apart", {}),
            ("HF ViT", "ViTForImageClassification", "in shards with an index", {"shards": True}),
            ("HF ViT", "ViTForImageClassification", "v5's names, torch's file", {"torch_file": True}),
            ("HF ViT", "ViTModel", "pooler", {}),
            ("HF ViT", "ViTForImageClassification", "no q, k, v bias", {"options": {"qkv_bias": False}}),
            ("HF DeiT", "DeiTForImageClassification", "distillation token, one head", {}),
            ("HF DeiT", "DeiTForImageClassificationWithTeacher", "two heads", {}),
            ("HF DINOv2", "Dinov2Model", "LayerScale", {}),
            ("HF DINOv2", "Dinov2Model", "SwiGLU", {"options": {"use_swiglu_ffn": True}}),
            ("HF DINOv2", "Dinov2WithRegistersModel", "registers", {}),
            ("HF CLIP", "CLIPVisionModel", "image tower, quick GELU", {}),
        )
    ),
    Row("torchvision", "VisionTransformer", "as vit_b_16", of_torchvision(), torchvision_outputs),
    Row(
        "torchvision",
        "VisionTransformer",
        "as vit_h_14",
        of_torchvision(patch_size=14, image_size=56),
        torchvision_outputs,
    ),
    Row(
        "torchvision",
        "VisionTransformer",
        "representation",
        of_torchvision(representation_size=48),
        torchvision_outputs,
    ),
]


class Difference(NamedTuple):
    """The largest differences of a row, of numbers that are a few units in size."""

    logits: float | None
    tokens: float


@torch.no_grad()
def difference(row: Row, model: nn.Module, ours: VisionTransformer) -> Difference:
    """Compare both on the same images."""
    images = torch.randn(2, ours.in_channels, *ours.image_size, generator=torch.Generator().manual_seed(1))
    logits, tokens = row.outputs(model, images)
    features = ours.forward_features(images)
    assert features.shape == tokens.shape, row
    apart = None if logits is None else float((ours(images) - logits).abs().max())
    return Difference(apart, float((features - tokens).abs().max()))


def growth(file: Path, arguments: dict[str, Any]) -> float:
    """Growth of the process while weights are loaded, in sizes of the file, including its mapping."""

    def memory(key: str) -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = memory("VmRSS")
    ours, _ = load_network(arguments, str(file))
    assert sum(p.numel() for p in ours.parameters()) > 0
    return (memory("VmHWM") - before) / file.stat().st_size


def write(file: Path, arguments: dict[str, Any]) -> None:
    """Write constant weights of a network as safetensors, or by torch.save, by the file's name."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VisionTransformer(**arguments).state_dict().items()}
    state = {key: torch.full(shape, 0.01) for key, shape in shapes.items()}
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)


def print_memory(ending: str) -> None:
    """Print the growth for a ViT-H/14. One per process: freed memory hides later growth."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"vit_h14.{ending}"
        huge = {"dim": 1280, "depth": 32, "heads": 16, "patch_size": 14}
        write(file, huge)
        print(f"{file.name}: {file.stat().st_size / 2**30:.2f} GiB; grew by {growth(file, huge):.2f} times that")


def main() -> None:
    """Print the table, in Markdown."""
    if sys.argv[1:2] == ["memory"]:
        print_memory(sys.argv[2])
        return
    print("| family | architecture | option | logits | patch features |\n|---|---|---|---|---|")
    for each in ROWS:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, source = each.make(Path(folder))
            ours, _ = load_pretrained(open_weights(source))
            apart = difference(each, model, ours.eval())
        logits = "none" if apart.logits is None else f"{apart.logits:.0e}"
        print(f"| {each.family} | `{each.architecture}` | {each.option} | {logits} | {apart.tokens:.0e} |", flush=True)


if __name__ == "__main__":
    main()
