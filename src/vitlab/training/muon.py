"""Muon with q, k and v apart."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from timm.optim.muon import Muon, muon

MUON = [name for name, each in signature(muon).parameters.items() if each.kind is each.KEYWORD_ONLY]


class MuonQKV(Muon):
    """timm's Muon, with each third of a matrix [3 x width, width] of the groups with `qkv` as a matrix of its own."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        apart = [(group, group["params"]) for group in self.param_groups if group["qkv"]]
        for group, _ in apart:
            group["params"] = []
        super().step()  # type: ignore[no-untyped-call]
        for group, matrices in apart:
            group["params"] = matrices
            for matrix in [matrix for matrix in matrices if matrix.grad is not None]:
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
                tensors = (matrix, matrix.grad, self.state[matrix]["momentum_buffer"])
                muon(*(list(tensor.chunk(3)) for tensor in tensors), **{name: group[name] for name in MUON})
        return loss
