"""When a layer's weights may be used without a call of the layer, or a block be called for a few tokens."""

from torch import Tensor, nn


def is_plain(x: Tensor, *modules: nn.Module) -> bool:
    """Whether a shortcut past the calls of modules, or a call for fewer tokens, is exact and not observed.

    False if a module or a submodule has a hook (but those of torch.distributed, which gather weights) or a `forward`
    that isn't torch's or ours (LoRA, offloading), or is parametrized; and for torch.fx, which traces calls.
    """
    for each in modules:
        if each._forward_hooks or each._forward_pre_hooks:
            hooks = [*each._forward_hooks.values(), *each._forward_pre_hooks.values()]
            if not all(str(getattr(hook, "__module__", "")).startswith("torch.distributed.") for hook in hooks):
                return False
        if each._backward_hooks or each._backward_pre_hooks or "forward" in each.__dict__:
            return False
        if not getattr(type(each).forward, "__module__", "").startswith(("torch.nn.modules.", "vitlab.models.")):
            return False
        if each._modules and not is_plain(x, *filter(None, each._modules.values())):  # also the parametrizations
            return False
    return isinstance(x, Tensor)


def has_plain_weights(x: Tensor, layer: nn.Module) -> bool:
    """Whether F.linear with the layer's weights is its call; quantized and sharded weights compute their own."""
    kinds = (nn.Linear, nn.Conv2d)
    return type(layer) in kinds and not hasattr(layer.weight, "__tensor_flatten__") and is_plain(x, layer)
