"""The loss of a batch per image, so that any division of a step into parts and ranks has the same mean.

softmax   cross-entropy, as torch's, and timm's LabelSmoothingCrossEntropy and SoftTargetCrossEntropy
sigmoid   binary cross-entropy of each class, summed over the classes (the ViT paper, AugReg, big_vision)
bce       the same, as the mean over the classes (timm's BinaryCrossEntropy, DeiT III)
focal     the same, summed, times (1 - probability of the target) ^ gamma (RetinaNet; torchvision's without alpha)

Label smoothing gives every target (1 - smoothing) x target + smoothing / classes. As that is linear, smoothing before
Mixup, as timm does, or after it, as here, is the same.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from vitlab.training.scores import at_least_float32

LossName = Literal["softmax", "sigmoid", "bce", "focal"]


class Loss:
    """Logits [B, classes] and targets, class indices [B] or probabilities [B, classes] -> the loss per image [B].

    The arguments are those of `Classifier`. Raises `ValueError` for a combination without meaning.
    """

    def __init__(
        self,
        name: LossName,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        target_threshold: float | None = None,
        class_weights: Sequence[float] | None = None,
        focal_gamma: float = 2.0,
    ) -> None:
        if problems := list(loss_problems(name, num_classes, label_smoothing, target_threshold, class_weights)):
            raise ValueError("\n".join(problems))
        self.name, self.num_classes, self.label_smoothing = name, num_classes, label_smoothing
        self.target_threshold, self.focal_gamma = target_threshold, focal_gamma
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        targets = targets.to(logits.dtype) if targets.is_floating_point() else targets
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits)  # copied once
        weights, smoothing = self.class_weights, self.label_smoothing
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
    name: str,
    num_classes: int | None,
    label_smoothing: float,
    target_threshold: float | None,
    class_weights: Sequence[float] | str | None,
) -> Iterator[str]:
    """Combinations of settings without meaning, a line each; `num_classes`: None if unknown."""
    if target_threshold is not None and name == "softmax":
        yield f"classifier.target_threshold={target_threshold} is for loss=bce, sigmoid and focal; softmax has none"
    elif target_threshold is not None and num_classes and 0 < label_smoothing / num_classes > target_threshold:
        least = f"{label_smoothing / num_classes:.3g}, above target_threshold={target_threshold}: all would become 1"
        yield f"classifier.label_smoothing={label_smoothing} makes every target at least {least}; set it to 0.0"
    if class_weights is not None and num_classes and len(class_weights) != num_classes and class_weights != "balanced":
        yield f"classifier.class_weights has {len(class_weights)} numbers, and the data {num_classes} classes"


def balanced_weights(labels: Tensor, num_classes: int) -> tuple[float, ...]:
    """Weights inverse to the number of images of each class, 1 on average over the images (scikit-learn's)."""
    counts = labels.bincount(minlength=num_classes).double()
    return tuple((len(labels) / (num_classes * counts.clamp(min=1))).tolist())
