"""How a Vision Transformer's parameters are initialized: a table of parameters and schemes, and the function."""

import torch
from torch import nn

from vitlab.models.layers import LayerScale

TOKENS = ("cls_token", "dist_token", "reg_token")


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Fill the parameters of a `VisionTransformer` as the paper's own code does, except for the head.

    patch_embed.proj      weight normal, std 1 / sqrt(C * P * Q) (LeCun); bias 0
    qkv, proj, fc1, fc2   weight uniform within sqrt(6 / (in + out)) (Xavier), separately for q, k and v; bias 0.
                          (timm's normal of std 0.02 suits a width near 768; narrow models learn far slower with it.)
    head, head_dist       weight truncated normal, std 0.02; bias 0. (The paper's 0 is for fine-tuning: it hides
                          the first step's gradient from all the rest.)
    prefix tokens         normal, std 1e-6
    pos_embed             truncated normal, std 0.02 (learned positions)
    norms, LayerScale     weight 1, bias 0; gamma `layer_scale`
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            elif name in ("head", "head_dist"):
                nn.init.trunc_normal_(module.weight, std=0.02)
            else:
                for matrix in module.weight.chunk(3) if name.endswith("qkv") else [module.weight]:
                    nn.init.xavier_uniform_(matrix)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.value)
    parameters = dict(model.named_parameters(recurse=False))
    for token in TOKENS:
        if token in parameters:
            nn.init.normal_(parameters[token], std=1e-6)
    if "pos_embed" in parameters:
        nn.init.trunc_normal_(parameters["pos_embed"], std=0.02)
