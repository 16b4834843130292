"""FSDP2 (`trainer=fsdp`) that goes on from a checkpoint of any number of ranks and any strategy, or of one process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.nn import Module
from torch.optim import Optimizer


class FullyShardedParallel(ModelParallelStrategy):
    """Lightning's FSDP2, with the optimizer's state given to the parameters that it belongs to.

    A checkpoint numbers them as the optimizer's groups hold them. Lightning 2.6 reads the numbers as if they followed
    the network's order, as its own sharded runs write them; a DDP run's moments would reach the wrong parameters.

    Args:
        process_group_backend: Backend of torch.distributed, such as nccl or gloo; None: by the device.
        timeout: Longest wait for other ranks.
    """

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        if Path(checkpoint_path).is_dir():  # one part for each rank, which names its parameters
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
            set_optimizer_state_dict(
                self.model, optimizer, state_by_name(state, optimizer, self.model), options=options
            )
        return checkpoint


def state_by_name(state: Mapping[str, Any], optimizer: Optimizer, network: Module) -> dict[str, Any]:
    """An optimizer's state with its parameters' numbers replaced by their names in the network."""
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
