"""Your own data as (image, label), your own loop, vitlab's network; then the same data in Lightning with Classifier.

python examples/own_data_and_loop.py 10
"""

import sys
from functools import partial

import torch
from lightning import Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import vitlab
from vitlab.training.schedules import warmup_cosine


class Stripes(Dataset):
    """Images with horizontal (0) or vertical (1) stripes."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        waves = torch.sin(torch.arange(16) * (0.5 + torch.rand((), generator=generator))).expand(1, 16, 16)
        image = waves if index % 2 else waves.transpose(1, 2)
        return image + 0.3 * torch.randn(1, 16, 16, generator=generator), index % 2


def network() -> torch.nn.Module:
    return vitlab.VisionTransformer(image_size=16, patch_size=4, in_channels=1, num_classes=2, dim=32, depth=2, heads=2)


def main() -> None:
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    loader = DataLoader(Stripes(), batch_size=64, shuffle=True)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(epochs):
        correct = 0
        for images, labels in loader:
            logits = model(images)
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            correct += int((logits.argmax(1) == labels).sum())
        print(f"epoch {epoch + 1}: {correct / len(loader.dataset):.1%} of the training images")

    module = vitlab.Classifier(
        network(),
        num_classes=2,
        optimizer=partial(torch.optim.AdamW, lr=2e-3),
        schedule=partial(warmup_cosine, warmup_steps=4),
    )
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, loader, DataLoader(Stripes(), batch_size=64))
    print(f"Lightning: val/acc {trainer.callback_metrics['val/acc']:.1%}")


if __name__ == "__main__":
    main()
