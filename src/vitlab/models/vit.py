"""The Vision Transformer: an image becomes a sequence of patches, and a transformer encoder does the rest.

"An Image is Worth 16x16 Words", Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929 (sections and
equations in brackets). Submodules and parameters have timm's names, so `load_state_dict` of timm's weights is
strict. The file follows the data: patches, attention, MLP, block, model. Details are in the siblings `attention`
(kernels), `layers` (activations, dropout), `positions`, `init`, `vit_validation` and `timm_interface`.

Shapes in the comments:
    B images in the batch       C channels      D width of a token      h heads     d width of a head, D / h
    R S rows and columns of the grid of patches        P Q height and width of a patch
    N tokens: the prefix ([cls], then registers), then n = R * S patches
    M query tokens: all N, or 1 in a last block of which only [cls] is read
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.utils.checkpoint import checkpoint

from vitlab.models.attention import attention, attention_weights, has_fused_kernels, project_heads
from vitlab.models.init import initialize
from vitlab.models.layers import ACTIVATIONS, LayerScale, add_branch, drop_path, dropout, has_plain_weights, is_plain
from vitlab.models.positions import sincos2d_table, table_for
from vitlab.models.timm_interface import TimmInterface
from vitlab.models.vit_validation import Count, PositiveInt, Rate, block_indices, check_arguments, check_images, pair

New = Callable[..., nn.Module]  # makes a layer


class PatchEmbedding(nn.Module):
    """Cut the image into patches and project each to a token [3.1, equation 1].

    A convolution whose stride is its kernel and one matrix product over unfolded patches (`linear`) are the
    same function of the same weights, so `proj` is a convolution in both.
    """

    def __init__(
        self, *, image: tuple[int, int], patch: tuple[int, int], channels: int, dim: int, bias: bool, linear: bool
    ) -> None:
        super().__init__()
        self.expected, self.linear, self.strict_img_size = (channels, *image), linear, True  # False: any grid
        self.grid = self.grid_size = (image[0] // patch[0], image[1] // patch[1])
        self.num_patches = self.grid[0] * self.grid[1]
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch, bias=bias)

    def dynamic_feat_size(self, size: Sequence[int]) -> tuple[int, int]:
        (height, width), (rows, columns) = self.expected[1:], self.grid
        return self.grid if self.strict_img_size else (size[0] * rows // height, size[1] * columns // width)

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(images, Tensor) and not is_tracing():  # type: ignore[no-untyped-call]
            check_images(images.shape, self.expected if self.strict_img_size else images.shape[1:])
        if not (self.linear and has_plain_weights(images, self.proj)):
            return cast(Tensor, self.proj(images)).flatten(2).transpose(1, 2)  # B D R S -> B n D
        (channels, height, width), grid = self.proj.weight.shape[1:], self.dynamic_feat_size(images.shape[2:])
        x = images.reshape(images.shape[0], channels, grid[0], height, grid[1], width)  # B C R P S Q
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # B n C*P*Q
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)  # B n D


class MultiHeadAttention(nn.Module):
    """Each token attends to all tokens [appendix A]: softmax(q k^T / sqrt(d)) v in each of h heads."""

    def __init__(self, *, dim: int, heads: int, bias: bool, dropout: float, attention_dropout: float, fused: bool):
        super().__init__()
        self.num_heads, self.head_dim, self.fused_attn, self.dropout = heads, dim // heads, fused, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.attn_drop = nn.Dropout(attention_dropout)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Mix for all tokens, or for the first `queries` of them: B N D -> B M D."""
        q, k, v = self.project(x, queries)
        x = attention(q, k, v, self.attn_drop, fused=self.fused_attn)  # B h M d
        return dropout(self.proj(x.transpose(1, 2).flatten(2)), self.dropout, self.training)  # B M D

    def project(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries B h M d, keys and values B h N d: views of the projection, nothing is copied."""
        return project_heads(self.qkv, x, self.num_heads, queries)


class MLP(nn.Module):
    """Two linear layers with an activation (GELU, exact) between them, on each token separately [equation 3]."""

    def __init__(self, *, dim: int, hidden: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.activation, self.dropout = ACTIVATIONS[activation], dropout
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden // 2 if activation == "swiglu" else hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = dropout(self.activation(self.fc1(x)), self.dropout, self.training)  # B M hidden, or half of it
        return dropout(self.fc2(x), self.dropout, self.training)  # B M D


class Block(nn.Module):
    """One encoder layer: attention, then MLP; each reads normed tokens and adds to them [equations 2, 3]."""

    def __init__(
        self, *, dim: int, norm: New, scale: New, attn: MultiHeadAttention, mlp: MLP, drop_path: float, kept_only: bool
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = norm(dim), attn, scale()
        self.norm2, self.mlp, self.ls2 = norm(dim), mlp, scale()
        self.drop_path, self.kept_only = drop_path, kept_only and drop_path > 0.1  # else copies cost more
        self.keep = torch.tensor(1.0 - drop_path, device="cpu")  # a tensor: one compiled block serves for all rates

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """All tokens, or the first `queries` of them, which still attend to all: B N D -> B M D."""
        residual, attn = (x, self.attn) if queries is None else (x[:, :queries], partial(self.attn, queries=queries))
        if self.training and self.kept_only and isinstance(x, Tensor):  # torch.fx traces with a Proxy
            x = add_branch(residual, self.drop_path, lambda kept: self.ls1(attn(self.norm1(x[kept]))))
            return add_branch(x, self.drop_path, lambda kept: self.ls2(self.mlp(self.norm2(x[kept]))))
        x = residual + self.drop(self.ls1(attn(self.norm1(x))))
        return x + self.drop(self.ls2(self.mlp(self.norm2(x))))

    def drop(self, x: Tensor) -> Tensor:
        return drop_path(x, self.keep) if self.training and self.drop_path > 0.0 else x


class VisionTransformer(TimmInterface, nn.Module):
    """Vision Transformer: images B C height width -> logits B classes.

    Args:
        image_size: Height and width of the images in pixels, one number or (height, width).
        patch_size: Height and width of a patch in pixels.
        in_channels: Channels of the images.
        num_classes: Classes; 0: no head, the output is the features B D.
        dim: Width of a token.
        depth: Number of blocks.
        heads: Attention heads of a block.
        mlp_ratio: Hidden width of the MLPs, in units of dim.
        pool: What the head reads: the [cls] token, the mean of the patch tokens, or every token (B N classes).
        pos_embed: Positions added to the tokens: learned, fixed sines and cosines, or none.
        class_token: Prepend the [cls] token.
        num_registers: Extra learned tokens after [cls] (https://arxiv.org/abs/2309.16588).
        distilled: Add a second token and head; the logits are the mean of both heads' (DeiT).
        pos_embed_on_patches_only: No position for the prefix (timm's no_embed_class).
        pos_embed_on_registers: False: no position for the registers (DINOv2).
        layer_scale: Initial value of the LayerScale factors; None: no LayerScale.
        qkv_bias: Bias of the projections to queries, keys and values.
        activation: Of the MLPs: exact GELU, its tanh approximation, CLIP's, or a gate (DINOv2 g/14).
        pre_norm: Norm before the first block, and no bias of the patch projection (CLIP).
        fc_norm: Norm after pooling, in place of the one before; None: with pool="avg" (as in timm).
        norm_eps: Epsilon of all norms.
        pre_logits_dim: Width of a hidden layer (with tanh) before the head, as in the paper's pre-training.
        dropout: Dropout rate after attention's projection and both MLP layers.
        attention_dropout: Dropout rate of the attention weights.
        position_dropout: Dropout rate of the tokens with their positions.
        drop_path: Rate of stochastic depth in the last block.
        drop_path_schedule: Of the rate over the blocks: linear from 0 in the first, or constant (DeiT III).
        drop_path_kept_only: Compute the kept samples alone in blocks of a rate above 0.1, a fixed share (DINOv2).
        patch_dropout: Rate of random patches that training leaves out (https://arxiv.org/abs/2208.07220).
        activation_checkpointing: Compute activations again in backward: less memory, more time.
        patch_projection: How patches are projected, see PatchEmbedding; the weights are the same.
        fused_attention: Use torch's fused attention kernels; False: the formula spelled out.
        init: The scheme of initial weights, see `init.py`; with `weights`, of those that these lack.
        head_std: Standard deviation of a new head's weights, 0 for a zero head; None: the scheme's.
        head_bias: Bias of a new head (-10 in the paper, -6.9 in AugReg, so that sigmoid outputs start near 0).

    With pool="cls", `forward` computes in the last block keys and values of all tokens, but queries, projection and
    MLP of [cls] alone. Logits are equal up to rounding; with dropout, in distribution (fewer numbers are drawn).
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 16,
        in_channels: PositiveInt = 3,
        num_classes: Count = 1000,
        dim: PositiveInt = 768,
        depth: PositiveInt = 12,
        heads: PositiveInt = 12,
        mlp_ratio: float = 4.0,
        pool: Literal["cls", "avg", "none"] = "cls",
        pos_embed: Literal["learned", "sincos2d", "none"] = "learned",
        class_token: bool = True,
        num_registers: Count = 0,
        distilled: bool = False,
        pos_embed_on_patches_only: bool = False,
        pos_embed_on_registers: bool = True,
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        activation: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"] = "gelu",
        pre_norm: bool = False,
        fc_norm: bool | None = None,
        norm_eps: float = 1e-6,
        pre_logits_dim: PositiveInt | None = None,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        position_dropout: Rate = 0.0,
        drop_path: Rate = 0.0,
        drop_path_schedule: Literal["linear", "constant"] = "linear",
        drop_path_kept_only: bool = False,
        patch_dropout: Rate = 0.0,
        activation_checkpointing: bool = False,
        patch_projection: Literal["conv", "linear"] = "linear",
        fused_attention: bool = True,
        init: Literal["xavier", "paper", "big_vision", "timm", "deit", "mae", "torchvision"] = "xavier",
        head_std: float | None = None,
        head_bias: float = 0.0,
    ) -> None:
        check_arguments(VisionTransformer.__init__.__annotations__, locals())
        super().__init__()
        image, patch, hidden = pair(image_size), pair(patch_size), int(dim * mlp_ratio)
        self.image_size, self.patch_size, self.in_channels = image, patch, in_channels
        self.num_classes, self.heads, self.head_hidden_size = num_classes, heads, pre_logits_dim or dim
        self.dim = self.embed_dim = self.num_features = dim
        self.pool, self.position_dropout, self.patch_dropout = pool, position_dropout, patch_dropout
        self.activation_checkpointing = self.grad_checkpointing = activation_checkpointing
        self.distilled, self.distilled_training, norm = distilled, False, partial(nn.LayerNorm, eps=norm_eps)
        bias, linear = not pre_norm, patch_projection == "linear"
        self.patch_embed = PatchEmbedding(
            image=image, patch=patch, channels=in_channels, dim=dim, bias=bias, linear=linear
        )
        self.grid, self.prefix = self.patch_embed.grid, int(class_token) + int(distilled) + num_registers
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim)) if distilled else None
        self.reg_token = nn.Parameter(torch.empty(1, num_registers, dim)) if num_registers else None
        covered = self.prefix if pos_embed_on_registers else self.prefix - num_registers
        self.covered = 0 if pos_embed_on_patches_only else covered  # prefix tokens with a position, the first ones
        length = self.covered + self.patch_embed.num_patches
        if pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, length, dim))
        else:  # sines are computed, not learned: a buffer that no optimizer sees and no checkpoint carries
            table = sincos2d_table(*self.grid, dim, length) if pos_embed == "sincos2d" else None
            self.register_buffer("pos_embed", table, persistent=False)
        self.norm_pre = norm(dim) if pre_norm else nn.Identity()
        rates = {"dropout": dropout, "attention_dropout": attention_dropout}
        fused = fused_attention and has_fused_kernels()
        attention = partial(MultiHeadAttention, dim=dim, heads=heads, bias=qkv_bias, fused=fused, **rates)
        mlp = partial(MLP, dim=dim, hidden=hidden, activation=activation, dropout=dropout)
        scale = nn.Identity if layer_scale is None else partial(LayerScale, dim=dim, value=layer_scale)
        block = partial(Block, dim=dim, norm=norm, scale=scale, kept_only=drop_path_kept_only)
        grows, last = drop_path_schedule == "linear", max(depth - 1, 1)
        drops = [drop_path * index / last if grows else drop_path for index in range(depth)]
        blocks = [block(attn=attention(), mlp=mlp(), drop_path=rate) for rate in drops]
        self.blocks = cast(Sequence[Block], nn.Sequential(*blocks))  # which loses the type of its elements
        norm_pooled = pool == "avg" if fc_norm is None else fc_norm
        self.norm = nn.Identity() if norm_pooled else norm(dim)
        self.fc_norm = norm(dim) if norm_pooled else nn.Identity()
        self.pre_logits = nn.Linear(dim, pre_logits_dim) if pre_logits_dim else None
        self.head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.head_dist = nn.Linear(dim, num_classes) if num_classes and distilled else nn.Identity()
        initialize(self, init, head_std, head_bias)

    def forward(self, images: Tensor) -> Tensor:
        x, blocks = self.embed(images), [*self.blocks]  # B N D
        short = self.pool == "cls" and is_plain(x, blocks[-1], self.norm)  # else all tokens go through
        for block in blocks:
            x = self.run(block, x, (2 if self.distilled else 1) if short and block is blocks[-1] else None)
        return self.forward_head(self.norm(x))  # B N D, or B 1 D with pool="cls"

    @overload
    def forward_features(self, images: Tensor, layers: None = None) -> Tensor: ...
    @overload
    def forward_features(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]: ...
    def forward_features(self, images: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """All tokens B N D after `norm` (the identity with `fc_norm`, as in timm), or the outputs of `layers`."""
        chosen, outputs = block_indices([-1] if layers is None else layers, self.depth), {}
        x = self.embed(images)
        for index, block in zip(range(max(chosen, default=-1) + 1), self.blocks, strict=False):
            x = self.run(block, x)
            if index in chosen:
                outputs[index] = x
        return self.norm(x) if layers is None else [outputs[index] for index in chosen]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens B N D -> logits B classes; of both heads in distillation, 2 B classes; or what the head reads, B D."""
        if self.distilled:
            x = self.fc_norm(tokens[:, :2])
            if pre_logits:
                return cast(Tensor, x.mean(dim=1))
            logits = self.head(x[:, 0]), self.head_dist(x[:, 1])
            return torch.stack(logits) if self.distilled_training else cast(Tensor, (logits[0] + logits[1]) / 2)
        if self.pool == "cls":
            tokens = tokens[:, 0]  # B D
        elif self.pool == "avg":
            tokens = tokens[:, self.prefix :].mean(dim=1)  # B D
        x = self.fc_norm(tokens)
        x = x if self.pre_logits is None else self.pre_logits(x).tanh()
        return x if pre_logits else cast(Tensor, self.head(x))

    def attention_maps(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Attention weights B h N N of the blocks `layers` (None: all); row i, of query i, sums to 1."""
        chosen, maps = block_indices(range(self.depth) if layers is None else layers, self.depth), {}
        x = self.embed(images)
        for index, block in zip(range(max(chosen, default=-1) + 1), self.blocks, strict=False):
            if index in chosen:
                q, k, _ = block.attn.project(block.norm1(x))
                maps[index] = attention_weights(q, k)
            x = self.run(block, x)
        return [maps[index] for index in chosen]

    def embed(self, images: Tensor) -> Tensor:
        """Prefix and patch tokens with their positions, the input of the first block: B N D [equation 1]."""
        x = self._pos_embed(self.patch_embed(images), self.patch_embed.dynamic_feat_size(images.shape[2:]))
        return cast(Tensor, self.norm_pre(self.patch_drop(x)))

    def _pos_embed(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Add prefix and positions to the patches: B n D -> B N D."""
        tokens: list[Tensor] = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else x.new_empty(1, 0, self.dim)  # 1 prefix D
        if (table := table_for(self.pos_embed, grid or self.grid, self.grid, self.covered)) is not None:
            if covered := self.covered:
                prefix = prefix + F.pad(table[:, :covered], (0, 0, 0, self.prefix - covered))
            x = x + table[:, covered:]
        x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1) if tokens else x  # B N D
        return dropout(x, self.position_dropout, self.training)

    def run(self, block: New, x: Tensor, queries: int | None = None) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled() and isinstance(x, Tensor):
            block = partial(checkpoint, block, use_reentrant=False)
        return cast(Tensor, block(x) if queries is None else block(x, queries))
