"""Made-up images of any size, for benchmarks and trials."""

from vitlab.config.bounds import PositiveInt, check_bounds
from vitlab.data.source import Facts, Source, Split


@Facts(in_memory=True, count=lambda samples, **_: (samples, False))
@check_bounds
def fake(
    *,
    samples: PositiveInt = 1024,
    test_samples: PositiveInt = 256,
    size: PositiveInt = 32,
    channels: PositiveInt = 3,
    num_classes: PositiveInt = 10,
) -> Source:
    """Images that are the same on every machine: a pattern per class, dimmed, under noise; learnable.

    Args:
        samples: Training images.
        test_samples: Test images.
        size: Height and width in pixels.
        channels: Color channels.
        num_classes: Number of classes.
    """
    import torch
    from torch.nn.functional import interpolate

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_classes, channels, 4, 4, generator=generator)
    patterns = interpolate(coarse, (size, size), mode="bilinear")

    def split(count: int) -> Split:
        labels = torch.arange(count) % num_classes
        images = torch.empty(count, channels, size, size, dtype=torch.uint8)
        for start in range(0, count, 256):  # in pieces: the float images need four times the memory
            pattern = patterns[labels[start : start + 256]]
            noise = torch.rand(pattern.shape, generator=generator)
            images[start : start + 256] = ((0.5 * pattern + 0.5 * noise) * 255).to(torch.uint8)
        return Split(images, labels)

    names = tuple(f"class{label}" for label in range(num_classes))
    mean, std = (0.5,) * channels, (0.18,) * channels
    return Source("fake", names, channels, mean, std, size, split(samples), split(test_samples))
