"""An optimizer's state finds its parameters, however they are numbered. (The ranks themselves: test_train.py.)"""

import torch
from torch import nn

from vitlab.distributed.fsdp import state_by_name


def test_moments_are_given_to_parameters_by_their_place_in_the_groups_and_not_in_the_network() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": others[::-1]}, {"params": weights}])
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = state_by_name(optimizer.state_dict(), optimizer, network)
    assert [group["params"] for group in found["param_groups"]] == [["1.bias", "1.weight", "0.bias"], ["0.weight"]]
    for name, parameter in network.named_parameters():
        assert found["state"][name]["exp_avg"] is optimizer.state[parameter]["exp_avg"]
    renumbered = {"state": {7: "moments"}, "param_groups": [{"params": [9, 8, 5]}, {"params": [7]}]}
    assert state_by_name(renumbered, optimizer, network)["state"] == {"0.weight": "moments"}
