"""Muon of q, k and v apart next to timm's."""

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timm.optim.muon import Muon
from torch import nn

from vitlab.jobs.compose import CONF


def test_muon_makes_q_k_and_v_orthogonal_each_as_timm_s_does_with_three_matrices() -> None:
    """Over steps, with weight decay, next to timm's Muon of parameters that are apart."""
    file = CONF / "optimizer" / "muon_qkv.yaml"
    make = instantiate(OmegaConf.to_container(OmegaConf.load(file)), _convert_="all", lr=0.02, weight_decay=0.1)
    torch.manual_seed(0)
    qkv, other = nn.Parameter(torch.randn(48, 16)), nn.Parameter(torch.randn(16, 16))
    parts = [nn.Parameter(part.detach().clone()) for part in (*qkv.chunk(3), other)]
    ours = make([{"params": [qkv], "qkv": True}, {"params": [other], "qkv": False}])
    theirs = Muon(parts, **make.keywords)
    for _ in range(4):
        gradients = torch.randn(4, 16, 16)
        qkv.grad, other.grad = gradients[:3].flatten(0, 1), gradients[3].clone()
        for part, gradient in zip(parts, gradients, strict=True):
            part.grad = gradient.clone()
        ours.step()
        theirs.step()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(torch.cat([qkv, other]), torch.cat([*parts]), rtol=0, atol=0)
    assert [len(group["params"]) for group in ours.param_groups] == [1, 1]
