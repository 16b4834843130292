"""Muon with the three matrices of a `qkv` layer apart."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from timm.optim.muon import Muon, muon

SETTINGS = [name for name, each in signature(muon).parameters.items() if each.kind is each.KEYWORD_ONLY]


class MuonQKV(Muon):
    """timm's Muon that orthogonalizes q, k and v each, and scales them by their own shape.

    Groups with `qkv` set hold matrices [3 x width, width] of which each third is a matrix of its own.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.defaults["algo"] != "muon":
            raise ValueError(f"optimizer.algo={self.defaults['algo']} needs optimizer=muon; muon_qkv has muon alone")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        apart = [(group, group["params"]) for group in self.param_groups if group.get("qkv")]
        for group, _ in apart:
            group["params"] = []
        super().step()
        for group, matrices in apart:
            group["params"] = matrices
            for matrix in matrices:
                if matrix.grad is not None:
                    state = self.state[matrix]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(matrix)
                    parts = [list(each.chunk(3)) for each in (matrix, matrix.grad, state["momentum_buffer"])]
                    muon(*parts, **{name: group[name] for name in SETTINGS})
        return loss
