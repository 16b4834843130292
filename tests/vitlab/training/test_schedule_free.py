"""Schedule-free AdamW takes the steps of the library's own class; `test_averages.py` has its average."""

import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from vitlab.training.schedule_free import ScheduleFreeAdamW


def test_it_is_the_library_s_class_in_training_mode() -> None:
    torch.manual_seed(0)
    mine, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(mine.state_dict())
    options = {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 2}
    ours, library = ScheduleFreeAdamW(mine.parameters(), **options), AdamWScheduleFree(theirs.parameters(), **options)
    library.train()
    for _ in range(4):
        images = torch.randn(5, 3)
        for optimizer, network in ((ours, mine), (library, theirs)):
            optimizer.zero_grad()
            network(images).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
