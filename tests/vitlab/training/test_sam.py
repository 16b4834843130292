"""SAM next to its formula, and in a training with dropout."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from torch import nn

from vitlab.models.vit import VisionTransformer
from vitlab.training.sam import SAM


def toy(dropout: float = 0.0) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=8, patch_size=4, dim=16, depth=1, heads=2, num_classes=10, in_channels=1, dropout=dropout
    )


def gradients_at(network: nn.Module, loss: "partial[torch.Tensor]") -> list[torch.Tensor]:
    network.zero_grad()
    torch.autograd.backward(loss())
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def batch_loss(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(network(images), torch.arange(len(images)))


def test_a_step_is_adamw_on_the_gradient_at_the_neighbor() -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 1, 8, 8)
    ours, reference = (nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)) for _ in range(2))
    reference.load_state_dict(ours.state_dict())
    optimizer = SAM(ours.parameters(), rho=0.3, lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = batch_loss(ours, images)
            torch.autograd.backward(loss)
            return loss

        optimizer.step(closure)
        before = [p.detach().clone() for p in reference.parameters()]
        first = gradients_at(reference, partial(batch_loss, reference, images))
        norm = torch.cat([gradient.flatten() for gradient in first]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(reference.parameters(), first, strict=True):
                parameter.add_(0.3 * gradient / norm)
        gradients_at(reference, partial(batch_loss, reference, images))
        with torch.no_grad():
            for parameter, old in zip(reference.parameters(), before, strict=True):
                parameter.copy_(old)
        adamw.step()
        for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_both_passes_draw_the_same_dropout() -> None:
    network, outputs = toy(dropout=0.5), []
    optimizer = SAM(network.parameters(), rho=1e-9, lr=0.01)
    images = torch.randn(6, 1, 8, 8)

    def closure() -> torch.Tensor:
        logits = network(images)
        outputs.append(logits.detach())
        loss = nn.functional.cross_entropy(logits, torch.arange(6))
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(outputs[0], outputs[1])
    optimizer.step(closure)
    assert not torch.allclose(outputs[1], outputs[2], atol=1e-2), "each step draws its own"


def test_a_step_without_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="closure"):
        SAM(toy().parameters()).step()
    with pytest.raises(ValueError, match="rho=-1"):
        SAM(toy().parameters(), rho=-1.0)


def test_lightning_runs_each_batch_twice() -> None:
    from lightning import LightningModule

    class Module(LightningModule):
        passes = 0

        def __init__(self) -> None:
            super().__init__()
            self.network = toy()

        def training_step(self, images: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.passes += 1
            return batch_loss(self.network, images)

        def configure_optimizers(self) -> SAM:
            return SAM(self.parameters(), rho=0.1, lr=0.01)

    module = Module()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **options)  # type: ignore[arg-type]
    trainer.fit(module, torch.randn(8, 4, 1, 8, 8))
    assert (module.passes, trainer.global_step) == (4, 2)
