"""How a Vision Transformer's parameters are initialized: a table of schemes, and the function.

    scheme       patch projection   other matrices             MLP biases  head   prefix tokens  learned positions
    xavier       LeCun              Xavier, q, k, v apart      0           0.02   1e-6           0.02
    paper        LeCun (truncated)  Xavier, q, k, v apart      1e-6        0      0              0.02
    big_vision   LeCun (truncated)  Xavier, q, k, v apart      1e-6        0      0              1 / sqrt(D)
    timm         torch's            normal 0.02                0           0.02   1e-6           0.02
    deit         torch's            normal 0.02                0           0.02   0.02           0.02
    mae          Xavier             Xavier, q, k, v together   0           Xavier 0.02           0.02
    torchvision  LeCun              Xavier, q, k, v together   1e-6        0      0              0.02

LeCun: normal, variance 1 / (C * P * Q). Xavier: uniform within sqrt(6 / (in + out)). torch's: uniform, weight and bias
(mae keeps torch's bias of the patches, torchvision torch's weights of attention's projection). A head and tokens are
normal with that standard deviation. Other biases are 0, norms 1 and 0, LayerScale `layer_scale`; a hidden layer before
the head is LeCun in the paper's code. (timm's 0.02 suits a width near 768; narrow models learn far slower with it. The
paper's head of 0 hides the first step's gradient from all the rest.) Sources: google-research/vision_transformer
models_vit.py, big_vision models/vit.py, timm's vision_transformer.py and deit.py, facebookresearch/deit models_v2.py,
facebookresearch/mae models_mae.py, torchvision's vision_transformer.py.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vitlab.models.layers import LayerScale

TOKENS = ("cls_token", "dist_token", "reg_token")


class Scheme(NamedTuple):
    """A row of the table; numbers are standard deviations."""

    patch: Literal["normal", "truncated", "torch", "xavier"]
    matrix: float | None = None  # None: Xavier
    parts: int = 1  # into which qkv is cut for Xavier
    mlp_bias: float = 0.0
    head: float | None = 0.02  # None: as other matrices
    token: float = 1e-6
    dist_token: float = 1e-6
    position: float | None = 0.02  # None: 1 / sqrt(D)
    hidden: Literal["matrix", "truncated"] = "matrix"  # the layer before the head
    projection: Literal["matrix", "torch"] = "matrix"  # of attention


PAPER = Scheme("truncated", parts=3, mlp_bias=1e-6, head=0.0, token=0.0, dist_token=0.0, hidden="truncated")
SCHEMES = {
    "xavier": Scheme("normal", parts=3),
    "paper": PAPER,
    "big_vision": PAPER._replace(position=None),
    "timm": Scheme("torch", matrix=0.02, dist_token=0.02),
    "deit": Scheme("torch", matrix=0.02, token=0.02, dist_token=0.02),
    "torchvision": PAPER._replace(patch="normal", parts=1, projection="torch"),
    "mae": Scheme("xavier", head=None, token=0.02, dist_token=0.02),
}


@torch.no_grad()
def initialize(model: nn.Module, name: str = "xavier", head_std: float | None = None, head_bias: float = 0.0) -> None:
    """Fill the parameters of a `VisionTransformer`; `head_std` and `head_bias` are of its new heads."""
    scheme = SCHEMES[name]
    std = scheme.head if head_std is None else head_std
    for path, module in model.named_modules():
        is_head = path in ("head", "head_dist")
        if isinstance(module, nn.Conv2d):
            initialize_patches(module, scheme)
        elif isinstance(module, nn.Linear):
            if is_head and std is not None:
                nn.init.trunc_normal_(module.weight, std=0.02).mul_(std / 0.02)  # the same draws for each `head_std`
            elif path == "pre_logits" and scheme.hidden == "truncated":
                fill_lecun(module.weight)
            elif path.endswith("attn.proj") and scheme.projection == "torch":
                module.reset_parameters()
            elif scheme.matrix is not None:
                nn.init.trunc_normal_(module.weight, std=scheme.matrix)
            else:
                for matrix in module.weight.chunk(scheme.parts) if path.endswith("qkv") else [module.weight]:
                    nn.init.xavier_uniform_(matrix)
            if module.bias is not None:
                nn.init.constant_(module.bias, head_bias if is_head else 0.0)
                if scheme.mlp_bias and ".mlp." in path:
                    nn.init.normal_(module.bias, std=scheme.mlp_bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.value)
    parameters = dict(model.named_parameters(recurse=False))
    for token in TOKENS:
        if token in parameters:
            nn.init.normal_(parameters[token], std=scheme.dist_token if token == "dist_token" else scheme.token)
    if (positions := parameters.get("pos_embed")) is not None:
        nn.init.trunc_normal_(positions, std=scheme.position or positions.shape[2] ** -0.5)


def initialize_patches(projection: nn.Conv2d, scheme: Scheme) -> None:
    weight, bias = projection.weight, projection.bias
    if scheme.patch in ("torch", "xavier"):
        projection.reset_parameters()
    elif bias is not None:
        nn.init.zeros_(bias)
    if scheme.patch == "normal":
        nn.init.trunc_normal_(weight, std=weight[0].numel() ** -0.5)
    elif scheme.patch == "truncated":
        fill_lecun(weight)
    elif scheme.patch == "xavier":
        nn.init.xavier_uniform_(weight.flatten(1))


def fill_lecun(weight: Tensor) -> None:
    """Normal, cut off at two standard deviations and scaled to a variance of 1 / in, as flax's lecun_normal."""
    std = weight[0].numel() ** -0.5 / 0.87962566103423978  # of a standard normal cut off at 2
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
