"""The loss of each image, so that any division of a step into parts and ranks has the same mean.

softmax   cross-entropy, as torch's, and timm's LabelSmoothingCrossEntropy and SoftTargetCrossEntropy
sigmoid   binary cross-entropy of each class, summed over the classes (the ViT paper, AugReg, big_vision)
bce       the same, as the mean over the classes (timm's BinaryCrossEntropy, DeiT III)
focal     the same, summed, times (1 - probability of the target) ^ gamma (RetinaNet; torchvision's without alpha)

Label smoothing is linear in the targets: before Mixup, as in timm, and after it, as here, it is the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from vitlab.training.scores import at_least_float32


@dataclass
class Loss:
    """Logits [B, classes] and targets, class indices [B] or probabilities [B, classes] -> the loss per image [B].

    The settings are those of `Classifier`. Raises `ValueError` for a combination without meaning.
    """

    name: Literal["softmax", "sigmoid", "bce", "focal"]
    num_classes: int
    label_smoothing: float = 0.0
    target_threshold: float | None = None
    class_weights: Sequence[float] | Literal["balanced"] | None = None
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        settings = self.name, self.num_classes, self.label_smoothing, self.target_threshold, self.class_weights
        if problems := list(loss_problems(*settings)):
            raise ValueError("\n".join(problems))
        weights = self.class_weights
        if weights == "balanced":
            raise ValueError("classifier.class_weights=balanced needs the data's labels: see balanced_weights")
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits, smoothing = at_least_float32(logits), self.label_smoothing
        targets = targets.to(logits.dtype) if targets.is_floating_point() else targets
        weights = self.weights = None if self.weights is None else self.weights.to(logits)  # copied once
        if self.name == "softmax":
            return F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=smoothing)
        if not targets.is_floating_point():
            targets = F.one_hot(targets, self.num_classes).to(logits.dtype)
        targets = targets * (1 - smoothing) + smoothing / self.num_classes
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).to(logits.dtype)
        if self.name == "focal":
            losses = cast(Tensor, sigmoid_focal_loss(logits, targets, alpha=-1, gamma=self.focal_gamma))
            losses = losses if weights is None else losses * weights
        else:
            losses = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none")
        return losses.mean(dim=1) if self.name == "bce" else losses.sum(dim=1)


def loss_problems(
    name: str, classes: int | None, smoothing: float, threshold: float | None, weights: Sequence[float] | str | None
) -> Iterator[str]:
    """Settings that don't go together, a line each; `classes`: None if unknown."""
    if threshold is not None and name == "softmax":
        yield f"classifier.target_threshold={threshold} is for loss=bce, sigmoid and focal; softmax has none"
    elif threshold is not None and classes and 0 < smoothing / classes > threshold:
        why = f"makes every target at least {smoothing / classes:.3g}, above target_threshold={threshold}"
        yield f"classifier.label_smoothing={smoothing} {why}: all would become 1; set it to 0.0"
    if weights not in (None, "balanced") and classes and len(weights or ()) != classes:
        yield f"classifier.class_weights has {len(weights or ())} numbers, and the data {classes} classes"


def balanced_weights(labels: Tensor, num_classes: int) -> tuple[float, ...]:
    """Weights inverse to the number of images of each class, 1 on average over the images (scikit-learn's)."""
    counts = labels.bincount(minlength=num_classes).double()
    return tuple((len(labels) / (num_classes * counts.clamp(min=1))).tolist())
