"""How a Vision Transformer's parameters are initialized: the table of schemes, and the function.

lecun             normal, variance 1 / in;  lecun_truncated: cut off at two standard deviations, as flax does
xavier            uniform within sqrt(6 / (in + out))
torch             torch's own, uniform; a patch projection of `torch` or `xavier` has torch's bias too
0.02              normal of that standard deviation

Other biases are 0, norms 1 and 0, LayerScale `layer_scale`. (timm's 0.02 suits a width near 768; narrow models learn
far slower with it. The paper's head of 0 hides the first step's gradient from all the rest.)
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vitlab.models.layers import LayerScale

How = float | Literal["lecun", "lecun_truncated", "xavier", "torch"]


class Scheme(NamedTuple):
    patch: How = "lecun"
    matrix: How = "xavier"  # of attention and MLPs
    head: How = 0.02
    token: float = 1e-6
    position: float | None = 0.02  # None: 1 / sqrt(D)
    mlp_bias: float = 0.0
    parts: int = 3  # into which qkv is cut for Xavier
    others: Mapping[str, How] = {}  # by the last part of a layer's name


PAPER = Scheme("lecun_truncated", head=0.0, token=0.0, mlp_bias=1e-6, others={"pre_logits": "lecun_truncated"})
SCHEMES = {
    "xavier": Scheme(),
    "paper": PAPER,  # google-research/vision_transformer models_vit.py
    "big_vision": PAPER._replace(position=None),  # google-research/big_vision models/vit.py
    "timm": Scheme("torch", 0.02),
    "deit": Scheme("torch", 0.02, token=0.02),  # facebookresearch/deit models.py and models_v2.py
    "mae": Scheme("xavier", head="xavier", token=0.02, parts=1),  # facebookresearch/mae models_mae.py
    "torchvision": PAPER._replace(patch="lecun", parts=1, others={"proj": "torch"}),
}


@torch.no_grad()
def initialize(model: nn.Module, name: str, head_std: float | None, head_bias: float) -> None:
    """Fill the parameters of a new `VisionTransformer`; `head_std` and `head_bias` are its heads'."""
    scheme = SCHEMES[name]
    head = scheme.head if head_std is None else head_std
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            is_patch, is_head = isinstance(layer, nn.Conv2d), path in ("head", "head_dist")
            how = scheme.patch if is_patch else scheme.others.get(path.rpartition(".")[2], scheme.matrix)
            fill(layer.weight, head if is_head else how, parts=scheme.parts if path.endswith("qkv") else 1)
            if layer.bias is not None and not (is_patch and how in ("torch", "xavier")):
                nn.init.constant_(layer.bias, head_bias if is_head else 0.0)
                if scheme.mlp_bias and ".mlp." in path:
                    nn.init.normal_(layer.bias, std=scheme.mlp_bias)
        elif isinstance(layer, LayerScale):
            nn.init.constant_(layer.gamma, layer.value)
    for token, parameter in model.named_parameters(recurse=False):
        if token == "pos_embed":
            nn.init.trunc_normal_(parameter, std=scheme.position or parameter.shape[2] ** -0.5)
        else:
            is_timms = token == "dist_token" and scheme.matrix == 0.02
            nn.init.normal_(parameter, std=0.02 if is_timms else scheme.token)


def fill(weight: Tensor, how: How, parts: int) -> None:
    std = weight[0].numel() ** -0.5
    if isinstance(how, float | int):
        nn.init.trunc_normal_(weight, std=0.02).mul_(how / 0.02)  # the same draws for each standard deviation
    elif how == "lecun":
        nn.init.trunc_normal_(weight, std=std)
    elif how == "lecun_truncated":
        std /= 0.87962566103423978  # the deviation of a standard normal distribution that is cut off at 2
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    elif how == "xavier":
        for matrix in weight.flatten(1).chunk(parts):
            nn.init.xavier_uniform_(matrix)
