"""Made-up images."""

from typing import Any

import pytest
import torch

from vitlab.data.sets.fake import fake


def test_fake_images_repeat_and_show_their_class() -> None:
    source, again = fake(size=16, samples=500), fake(size=16, samples=500)
    assert source.train.images is not None
    assert source.test.images is not None
    assert again.train.images is not None
    assert torch.equal(source.train.images, again.train.images)
    means = torch.stack([source.train.images[source.train.labels == k].float().mean(0) for k in range(10)])
    nearest = (source.test.images[:, None].float() - means).flatten(2).norm(dim=2).argmin(1)
    assert (nearest == source.test.labels).float().mean() > 0.95


@pytest.mark.parametrize("settings", [{"size": 0}, {"num_classes": 0}])
def test_nothing_is_made_of_zero(settings: Any) -> None:
    with pytest.raises(ValueError, match=r"\w+=0 must be at least 1"):
        fake(**settings)
