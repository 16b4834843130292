"""How each library names and shapes a Vision Transformer's tensors: tables that `mapping` reads in both directions.

A `Layout` is a library's way of writing the weights down. Each of its rules says that a tensor of ours is made of one
or several of theirs, and how. Ours are timm's names (see `vitlab.models.vit`), so its layout maps names to themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BLOCK = "{i}"  # stands for a block's number in a name


# ------------------------------------------------------------------------------------------------------------- forms


class Transform(NamedTuple):
    """How tensors of theirs become one of ours, and back; `back` also gets the number of heads."""

    to: Callable[[Sequence[Tensor]], Tensor]
    back: Callable[[Tensor, int], Sequence[Tensor]]


def per_head(matrix: Tensor, heads: int) -> Tensor:
    """A linear layer's weight [h*d, D] as JAX keeps it, D h d."""
    return matrix.t().reshape(matrix.shape[1], heads, -1)


def jax_kernel(theirs: Tensor) -> Tensor:
    """JAX keeps what goes in before what comes out: P Q C D -> D C P Q, in out -> out in."""
    return theirs.permute(3, 2, 0, 1) if theirs.ndim == 4 else theirs.t()


SAME = Transform(lambda theirs: theirs[0], lambda ours, _: [ours])
STACKED = Transform(lambda theirs: torch.cat([*theirs]), lambda ours, _: ours.chunk(3))  # q, k, v
HALVES = Transform(lambda theirs: torch.cat([*theirs]), lambda ours, _: ours.chunk(2))  # gate and value
TOKEN = Transform(lambda theirs: theirs[0].view(1, 1, -1), lambda ours, _: [ours.flatten()])  # D
TABLE = Transform(lambda theirs: theirs[0].unsqueeze(0), lambda ours, _: [ours.squeeze(0)])  # N D
TURNED = Transform(lambda theirs: theirs[0].t(), lambda ours, _: [ours.t()])
JAX = Transform(
    lambda theirs: jax_kernel(theirs[0]), lambda ours, _: [ours.permute(2, 3, 1, 0) if ours.ndim == 4 else ours.t()]
)
JAX_QKV = Transform(  # each D h d
    lambda theirs: torch.cat([each.flatten(1).t() for each in theirs]),
    lambda ours, heads: [per_head(each, heads) for each in ours.chunk(3)],
)
JAX_QKV_BIAS = Transform(  # each h d
    lambda theirs: torch.cat([each.flatten() for each in theirs]),
    lambda ours, heads: [each.view(heads, -1) for each in ours.chunk(3)],
)
JAX_OUT = Transform(  # h d D
    lambda theirs: theirs[0].flatten(0, 1).t(), lambda ours, heads: [ours.t().reshape(heads, -1, ours.shape[0])]
)


# ------------------------------------------------------------------------------------------------------------- rules


class Rule(NamedTuple):
    """One of our tensors, and theirs that it is made of."""

    ours: str
    theirs: tuple[str, ...]
    form: Transform = SAME
    gated: bool | None = None  # written so where the MLPs are gated, or where they are not; None: in either case


def weight_and_bias(ours: str, *theirs: str, form: Transform = SAME, gated: bool | None = None) -> list[Rule]:
    """The rules of a layer's weight and bias."""
    return [Rule(f"{ours}.{p}", tuple(f"{t}.{p}" for t in theirs), form, gated) for p in ("weight", "bias")]


def jax_linear(ours: str, *theirs: str, weight: Transform = JAX, bias: Transform = SAME) -> list[Rule]:
    """The rules of a linear layer that JAX wrote."""
    return [
        Rule(f"{ours}.weight", tuple(f"{t}/kernel" for t in theirs), weight),
        Rule(f"{ours}.bias", tuple(f"{t}/bias" for t in theirs), bias),
    ]


def jax_norm(ours: str, theirs: str) -> list[Rule]:
    """The rules of a LayerNorm that JAX wrote."""
    return [Rule(f"{ours}.weight", (f"{theirs}/scale",)), Rule(f"{ours}.bias", (f"{theirs}/bias",))]


@dataclass(frozen=True)
class Layout:
    """A library's way of naming and shaping the tensors.

    Attributes:
        name: What it is called in messages and by callers.
        title: What it is, in words.
        anchor: The patch projection's weight: whatever stands before this name is a prefix.
        rules: Of several for one of our tensors, reading takes the first that is there, writing the first that suits.
        marks: Names (regular expressions) that must all be there, beside the anchor.
        inner: What the library puts before the body's names, but not before the heads', where there is a head.
        spellings: (pattern, replacement): other names of the same, as older or newer releases write them.
        positions: Which tokens the position table covers; None: its length tells.
        left_out: (pattern, reason): what may be there and has no place in our model.
        zeros: Name -> shape, with "D" for the width: what the library wants to find and a classifier never reads.
        settings: Arguments of our model that follow from the layout itself.
    """

    name: str
    title: str
    anchor: str
    rules: tuple[Rule, ...]
    marks: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    positions: Literal["all", "class", "patches"] | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    zeros: Mapping[str, tuple[int | str, ...]] | None = None
    settings: Mapping[str, object] | None = None

    def heads(self) -> set[str]:
        """Names of the classification heads' tensors."""
        return {name for rule in self.rules if rule.ours.startswith("head") for name in rule.theirs}


TIMM_LAYERS = (
    *("patch_embed.proj", "norm_pre"),
    *(f"blocks.{BLOCK}.{layer}" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    *("norm", "fc_norm", "pre_logits", "head", "head_dist"),
)
TIMM_VECTORS = ("cls_token", "dist_token", "reg_token", "pos_embed")
TIMM = [
    *(Rule(name, (name,)) for name in TIMM_VECTORS),
    *(rule for layer in TIMM_LAYERS for rule in weight_and_bias(layer, layer)),
    *(Rule(f"blocks.{BLOCK}.ls{n}.gamma", (f"blocks.{BLOCK}.ls{n}.gamma",)) for n in (1, 2)),
]
MASK = (r"(embeddings\.)?mask_token", "stands for masked patches in pre-training")
MAE = (
    (r"decoder_.*|decoder\..*", "the decoder of masked pre-training"),
    MASK,
)
KEPT_BY_TIMM = (
    *MAE,
    (r"(last_layer|projection_head|dino_head|ibot_head)\..*", "a projection head of self-supervised pre-training"),
)

HF_LAYER = f"encoder.layer.{BLOCK}"
HF_BODY = [
    Rule("cls_token", ("embeddings.cls_token",)),
    Rule("pos_embed", ("embeddings.position_embeddings",)),
    *weight_and_bias("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    *weight_and_bias(
        f"blocks.{BLOCK}.attn.qkv",
        *(f"{HF_LAYER}.attention.attention.{part}" for part in ("query", "key", "value")),
        form=STACKED,
    ),
    *weight_and_bias(f"blocks.{BLOCK}.attn.proj", f"{HF_LAYER}.attention.output.dense"),
    *weight_and_bias("norm", "layernorm"),
]
HF_VIT = [
    *HF_BODY,
    *weight_and_bias(f"blocks.{BLOCK}.norm1", f"{HF_LAYER}.layernorm_before"),
    *weight_and_bias(f"blocks.{BLOCK}.norm2", f"{HF_LAYER}.layernorm_after"),
    *weight_and_bias(f"blocks.{BLOCK}.mlp.fc1", f"{HF_LAYER}.intermediate.dense"),
    *weight_and_bias(f"blocks.{BLOCK}.mlp.fc2", f"{HF_LAYER}.output.dense"),
    *weight_and_bias("pre_logits", "pooler.dense"),
]
# transformers 5 gives the modules other names, and still writes files with the former ones
HF_SPELLINGS = (
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
HF_VIT_SPELLINGS = (
    *HF_SPELLINGS,
    (r"^(encoder\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"^(encoder\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
HF_ANCHOR = "embeddings.patch_embeddings.projection.weight"

TORCHVISION_LAYER = f"encoder.layers.encoder_layer_{BLOCK}"
TORCHVISION = [
    Rule("cls_token", ("class_token",)),
    Rule("pos_embed", ("encoder.pos_embedding",)),
    *weight_and_bias("patch_embed.proj", "conv_proj"),
    *weight_and_bias(f"blocks.{BLOCK}.norm1", f"{TORCHVISION_LAYER}.ln_1"),
    Rule(f"blocks.{BLOCK}.attn.qkv.weight", (f"{TORCHVISION_LAYER}.self_attention.in_proj_weight",)),
    Rule(f"blocks.{BLOCK}.attn.qkv.bias", (f"{TORCHVISION_LAYER}.self_attention.in_proj_bias",)),
    *weight_and_bias(f"blocks.{BLOCK}.attn.proj", f"{TORCHVISION_LAYER}.self_attention.out_proj"),
    *weight_and_bias(f"blocks.{BLOCK}.norm2", f"{TORCHVISION_LAYER}.ln_2"),
    *weight_and_bias(f"blocks.{BLOCK}.mlp.fc1", f"{TORCHVISION_LAYER}.mlp.0"),
    *weight_and_bias(f"blocks.{BLOCK}.mlp.fc2", f"{TORCHVISION_LAYER}.mlp.3"),
    *weight_and_bias("norm", "encoder.ln"),
    *weight_and_bias("pre_logits", "heads.pre_logits"),
    *weight_and_bias("head", "heads.head"),
]

CLIP_LAYER = f"transformer.resblocks.{BLOCK}"
OPEN_CLIP = [
    Rule("cls_token", ("class_embedding",), TOKEN),
    Rule("pos_embed", ("positional_embedding",), TABLE),
    Rule("patch_embed.proj.weight", ("conv1.weight",)),
    *weight_and_bias("norm_pre", "ln_pre"),
    *weight_and_bias(f"blocks.{BLOCK}.norm1", f"{CLIP_LAYER}.ln_1"),
    Rule(f"blocks.{BLOCK}.attn.qkv.weight", (f"{CLIP_LAYER}.attn.in_proj_weight",)),
    Rule(f"blocks.{BLOCK}.attn.qkv.bias", (f"{CLIP_LAYER}.attn.in_proj_bias",)),
    *weight_and_bias(f"blocks.{BLOCK}.attn.proj", f"{CLIP_LAYER}.attn.out_proj"),
    *weight_and_bias(f"blocks.{BLOCK}.norm2", f"{CLIP_LAYER}.ln_2"),
    *weight_and_bias(f"blocks.{BLOCK}.mlp.fc1", f"{CLIP_LAYER}.mlp.c_fc"),
    *weight_and_bias(f"blocks.{BLOCK}.mlp.fc2", f"{CLIP_LAYER}.mlp.c_proj"),
    *weight_and_bias("norm", "ln_post"),
    Rule("head.weight", ("proj",), TURNED),
]
HF_CLIP_LAYER = f"encoder.layers.{BLOCK}"
HF_CLIP = [
    Rule("cls_token", ("embeddings.class_embedding",), TOKEN),
    Rule("pos_embed", ("embeddings.position_embedding.weight",), TABLE),
    Rule("patch_embed.proj.weight", ("embeddings.patch_embedding.weight",)),
    *weight_and_bias("norm_pre", "pre_layrnorm"),  # the library's own spelling
    *weight_and_bias(f"blocks.{BLOCK}.norm1", f"{HF_CLIP_LAYER}.layer_norm1"),
    *weight_and_bias(
        f"blocks.{BLOCK}.attn.qkv", *(f"{HF_CLIP_LAYER}.self_attn.{part}_proj" for part in "qkv"), form=STACKED
    ),
    *weight_and_bias(f"blocks.{BLOCK}.attn.proj", f"{HF_CLIP_LAYER}.self_attn.out_proj"),
    *weight_and_bias(f"blocks.{BLOCK}.norm2", f"{HF_CLIP_LAYER}.layer_norm2"),
    *weight_and_bias(f"blocks.{BLOCK}.mlp.fc1", f"{HF_CLIP_LAYER}.mlp.fc1"),
    *weight_and_bias(f"blocks.{BLOCK}.mlp.fc2", f"{HF_CLIP_LAYER}.mlp.fc2"),
    *weight_and_bias("norm", "post_layernorm"),
    Rule("head.weight", ("visual_projection.weight",)),
]

GOOGLE_LAYER = f"Transformer/encoderblock_{BLOCK}"
GOOGLE_ATTENTION = f"{GOOGLE_LAYER}/MultiHeadDotProductAttention_1"
GOOGLE = [
    Rule("cls_token", ("cls",)),
    Rule("pos_embed", ("Transformer/posembed_input/pos_embedding",)),
    *jax_linear("patch_embed.proj", "embedding"),
    *jax_norm(f"blocks.{BLOCK}.norm1", f"{GOOGLE_LAYER}/LayerNorm_0"),
    *jax_linear(
        f"blocks.{BLOCK}.attn.qkv",
        *(f"{GOOGLE_ATTENTION}/{part}" for part in ("query", "key", "value")),
        weight=JAX_QKV,
        bias=JAX_QKV_BIAS,
    ),
    *jax_linear(f"blocks.{BLOCK}.attn.proj", f"{GOOGLE_ATTENTION}/out", weight=JAX_OUT),
    *jax_norm(f"blocks.{BLOCK}.norm2", f"{GOOGLE_LAYER}/LayerNorm_2"),
    *jax_linear(f"blocks.{BLOCK}.mlp.fc1", f"{GOOGLE_LAYER}/MlpBlock_3/Dense_0"),
    *jax_linear(f"blocks.{BLOCK}.mlp.fc2", f"{GOOGLE_LAYER}/MlpBlock_3/Dense_1"),
    *jax_norm("norm", "Transformer/encoder_norm"),
    *jax_linear("pre_logits", "pre_logits"),
    *jax_linear("head", "head"),
]
# its successor, big_vision, counts the layers of a block otherwise
BIG_VISION_SPELLINGS = (
    (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding"),
    (r"(encoderblock_\d+)/MultiHeadDotProductAttention_0/", r"\1/MultiHeadDotProductAttention_1/"),
    (r"(encoderblock_\d+)/MlpBlock_0/", r"\1/MlpBlock_3/"),
    (r"(encoderblock_\d+)/LayerNorm_1/", r"\1/LayerNorm_2/"),
)

# The more demanding before the less: the first whose marks are all there is taken.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="dinov2",
            title="DINOv2's own code",
            anchor="patch_embed.proj.weight",
            marks=(r"mask_token", r"pos_embed", r"blocks\.(\d+\.)?0\.ls1\.gamma"),
            rules=(
                Rule("reg_token", ("register_tokens",)),
                *weight_and_bias(f"blocks.{BLOCK}.mlp.fc1", f"blocks.{BLOCK}.mlp.w12", gated=True),
                *weight_and_bias(f"blocks.{BLOCK}.mlp.fc2", f"blocks.{BLOCK}.mlp.w3", gated=True),
                *(rule for rule in TIMM if rule.ours != "reg_token"),
            ),
            spellings=((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),),  # blocks in chunks, for sharding
            positions="class",
            left_out=KEPT_BY_TIMM,
            zeros={"mask_token": (1, "D")},
        ),
        Layout(
            name="timm",
            title="timm's names (DeiT's, DINO's and MAE's too)",
            anchor="patch_embed.proj.weight",
            rules=tuple(TIMM),
            spellings=((r"\.gamma_([12])$", r".ls\1.gamma"), (r"^pre_logits\.fc\.", "pre_logits.")),
            left_out=KEPT_BY_TIMM,
        ),
        Layout(
            name="hf_deit_with_teacher",
            title="transformers' DeiT with both heads",
            anchor=HF_ANCHOR,
            marks=(r"embeddings\.distillation_token", r"distillation_classifier\.weight"),
            rules=(
                *HF_VIT,
                Rule("dist_token", ("embeddings.distillation_token",)),
                *weight_and_bias("head", "cls_classifier"),
                *weight_and_bias("head_dist", "distillation_classifier"),
            ),
            inner=("deit.",),
            spellings=HF_VIT_SPELLINGS,
            positions="all",
            left_out=(MASK,),
            settings={"pool": "cls", "norm_eps": 1e-12},
        ),
        Layout(
            name="hf_deit",
            title="transformers' DeiT",
            anchor=HF_ANCHOR,
            marks=(r"embeddings\.distillation_token",),
            # without a head of its own the distillation token is what we call a register
            rules=(
                *HF_VIT,
                Rule("reg_token", ("embeddings.distillation_token",)),
                *weight_and_bias("head", "classifier"),
            ),
            inner=("deit.",),
            spellings=HF_VIT_SPELLINGS,
            positions="all",
            left_out=(MASK,),
            settings={"pool": "cls", "norm_eps": 1e-12},
        ),
        Layout(
            name="hf_dinov2",
            title="transformers' DINOv2",
            anchor=HF_ANCHOR,
            marks=(r"encoder\.layer\.0\.layer_scale1\.lambda1",),
            rules=(
                *HF_BODY,
                Rule("reg_token", ("embeddings.register_tokens",)),
                *weight_and_bias(f"blocks.{BLOCK}.norm1", f"{HF_LAYER}.norm1"),
                *weight_and_bias(f"blocks.{BLOCK}.norm2", f"{HF_LAYER}.norm2"),
                *(Rule(f"blocks.{BLOCK}.ls{n}.gamma", (f"{HF_LAYER}.layer_scale{n}.lambda1",)) for n in (1, 2)),
                *weight_and_bias(f"blocks.{BLOCK}.mlp.fc1", f"{HF_LAYER}.mlp.fc1", gated=False),
                *weight_and_bias(f"blocks.{BLOCK}.mlp.fc2", f"{HF_LAYER}.mlp.fc2", gated=False),
                *weight_and_bias(f"blocks.{BLOCK}.mlp.fc1", f"{HF_LAYER}.mlp.weights_in", gated=True),
                *weight_and_bias(f"blocks.{BLOCK}.mlp.fc2", f"{HF_LAYER}.mlp.weights_out", gated=True),
                *weight_and_bias(
                    f"blocks.{BLOCK}.mlp.fc1",
                    f"{HF_LAYER}.mlp.gate_proj",
                    f"{HF_LAYER}.mlp.up_proj",
                    form=HALVES,
                    gated=True,
                ),
                *weight_and_bias(f"blocks.{BLOCK}.mlp.fc2", f"{HF_LAYER}.mlp.down_proj", gated=True),
                *weight_and_bias("head", "classifier"),
            ),
            inner=("dinov2.", "dinov2_with_registers."),
            spellings=HF_SPELLINGS,
            positions="class",
            left_out=(MASK,),
            zeros={"embeddings.mask_token": (1, "D")},
            settings={"pool": "cls", "norm_eps": 1e-6},
        ),
        Layout(
            name="hf_vit",
            title="transformers' ViT",
            anchor=HF_ANCHOR,
            marks=(r"encoder\.layer\.0\.layernorm_before\.weight",),
            rules=(*HF_VIT, *weight_and_bias("head", "classifier")),
            inner=("vit.",),
            spellings=HF_VIT_SPELLINGS,
            positions="all",
            left_out=MAE,
            settings={"pool": "cls", "norm_eps": 1e-12},
        ),
        Layout(
            name="hf_clip",
            title="transformers' CLIP image tower",
            anchor="embeddings.patch_embedding.weight",
            marks=(r"pre_layrnorm\.weight",),
            rules=tuple(HF_CLIP),
            inner=("vision_model.",),
            positions="all",
            left_out=((r"embeddings\.position_ids", "counts the positions"),),
            settings={"pool": "cls", "norm_eps": 1e-5, "activation": "quick_gelu"},
        ),
        Layout(
            name="open_clip",
            title="OpenAI's or OpenCLIP's image tower",
            anchor="conv1.weight",
            marks=(r"class_embedding", r"transformer\.resblocks\.0\.ln_1\.weight"),
            rules=tuple(OPEN_CLIP),
            positions="all",
            settings={"pool": "cls", "norm_eps": 1e-5},
        ),
        Layout(
            name="torchvision",
            title="torchvision's VisionTransformer",
            anchor="conv_proj.weight",
            marks=(r"encoder\.layers\.encoder_layer_0\.ln_1\.weight",),
            rules=tuple(TORCHVISION),
            spellings=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
            positions="all",
            settings={"pool": "cls", "norm_eps": 1e-6},
        ),
        Layout(
            name="google",
            title="Google's own code (JAX)",
            anchor="embedding/kernel",
            marks=(r"Transformer/encoderblock_0/LayerNorm_0/scale",),
            rules=tuple(GOOGLE),
            spellings=BIG_VISION_SPELLINGS,
            settings={"norm_eps": 1e-6},
        ),
    )
}
