"""FSDP2 (`trainer=fsdp`) that resumes from a checkpoint of any strategy and number of ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.nn import Module
from torch.optim import Optimizer


class FullyShardedParallel(ModelParallelStrategy):
    """Lightning's FSDP2, with the optimizer's state loaded by the parameters' names.

    A checkpoint numbers parameters in the order of the optimizer's groups. Lightning 2.6 reads the numbers in the
    network's order, as its sharded runs write them, and would load a DDP run's moments into the wrong parameters.

    Args:
        process_group_backend: Backend of torch.distributed, such as nccl or gloo; None: by the device.
        timeout: Longest wait for other ranks.
    """

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        if Path(checkpoint_path).is_dir():  # a sharded checkpoint, which names its parameters
            return super().load_checkpoint(checkpoint_path, weights_only)
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        optimizers, self.optimizers = self.optimizers, []
        try:
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            self.optimizers = optimizers
        assert self.model is not None
        options = StateDictOptions(broadcast_from_rank0=True, full_state_dict=True)
        for optimizer, state in zip(optimizers, checkpoint["optimizer_states"], strict=True):
            named = state_by_name(state, optimizer, self.model)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        if "averaging_state" in checkpoint:  # Lightning leaves the average out, which is in `state_dict`
            content = torch.load(checkpoint_path, mmap=True, map_location="cpu", weights_only=True)
            checkpoint["state_dict"] = content["state_dict"]
        return checkpoint


def state_by_name(state: Mapping[str, Any], optimizer: Optimizer, network: Module) -> dict[str, Any]:
    """An optimizer's state with parameters' names instead of their numbers."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    by_number = {
        number: names[parameter]
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
        for number, parameter in zip(saved["params"], group["params"], strict=True)
    }
    return {
        "state": {by_number[number]: moments for number, moments in state["state"].items()},
        "param_groups": [{**g, "params": [by_number[number] for number in g["params"]]} for g in state["param_groups"]],
    }
