"""Each loss equals its formula, and the class of timm, torch or torchvision that has it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from timm.data.mixup import mixup_target
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from vitlab.training.classifier import Classifier
from vitlab.training.losses import Loss, balanced_weights

Problems = Callable[..., list[str]]
CLASSES = 10


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def logits_and_labels() -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(7, CLASSES, dtype=torch.float64), torch.randint(CLASSES, (7,))


def mixed(labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """timm's targets of Mixup with the reversed batch; it smooths before it mixes."""
    targets: Tensor = mixup_target(labels, CLASSES, lam=0.7, smoothing=smoothing)  # type: ignore[no-untyped-call]
    return targets.double()


def log_softmax(logits: Tensor) -> Tensor:
    return logits - logits.exp().sum(dim=1, keepdim=True).log()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "bce"])
def test_losses_follow_their_formulas(name: Any, soft: bool, smoothing: float) -> None:
    logits, labels = logits_and_labels()
    targets = (
        torch.rand(7, CLASSES, dtype=torch.float64).softmax(dim=1) if soft else torch.eye(CLASSES).double()[labels]
    )
    smoothed = (1 - smoothing) * targets + smoothing / CLASSES
    p = 1 / (1 + (-logits).exp())
    binary = -(smoothed * p.log() + (1 - smoothed) * (1 - p).log())
    expected = {"softmax": -(smoothed * log_softmax(logits)).sum(1), "sigmoid": binary.sum(1), "bce": binary.mean(1)}
    losses = Loss(name, CLASSES, label_smoothing=smoothing)(logits, targets if soft else labels)
    assert losses.shape == (7,)
    torch.testing.assert_close(losses, expected[name])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_is_timms_and_torchs_and_smooths_labels_alike(smoothing: float) -> None:
    logits, labels = logits_and_labels()
    loss = Loss("softmax", CLASSES, label_smoothing=smoothing)
    hard = loss(logits, labels).mean()
    torch.testing.assert_close(hard, LabelSmoothingCrossEntropy(smoothing)(logits, labels))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(hard, nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels))
    soft = mixed(labels, smoothing)
    expected = SoftTargetCrossEntropy()(logits, soft)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss(logits, mixed(labels)).mean(), expected)


@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.0, 0.0), (0.0, 0.4), (0.1, 0.2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_bce_is_timms_and_sigmoid_its_sum_over_the_classes(smoothing: float, threshold: Any, weighted: bool) -> None:
    logits, labels = logits_and_labels()
    weights = torch.rand(CLASSES, dtype=torch.float64) if weighted else None
    settings = {"target_threshold": threshold, "class_weights": None if weights is None else weights.tolist()}
    for name, summed in (("bce", False), ("sigmoid", True)):
        loss = Loss(name, CLASSES, label_smoothing=smoothing, **settings)  # type: ignore[arg-type]
        theirs = BinaryCrossEntropy(smoothing, threshold, weights, sum_classes=summed)
        torch.testing.assert_close(loss(logits, labels).mean(), theirs(logits, labels))
        soft = mixed(labels, smoothing)
        torch.testing.assert_close(loss(logits, mixed(labels)).mean(), theirs(logits, soft))


def test_deit_iiis_loss_is_the_mean_of_binary_losses_of_targets_above_0() -> None:
    logits, labels = logits_and_labels()
    targets = mixed(labels)
    expected = nn.BCEWithLogitsLoss()(logits, targets.gt(0.0).type(targets.dtype))
    got = Loss("bce", CLASSES, target_threshold=0.0)(logits, targets).mean()
    torch.testing.assert_close(got, expected)
    assert not torch.isclose(got, Loss("bce", CLASSES)(logits, targets).mean())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_torchvisions_without_alpha_and_sigmoid_at_gamma_0(gamma: float) -> None:
    logits, labels = logits_and_labels()
    for targets in (labels, mixed(labels)):
        binary = targets if targets.ndim == 2 else F.one_hot(targets, CLASSES).double()
        expected = sigmoid_focal_loss(logits, binary, alpha=-1, gamma=gamma).sum(dim=1)
        torch.testing.assert_close(Loss("focal", CLASSES, focal_gamma=gamma)(logits, targets), expected)
        sigmoid = Loss("sigmoid", CLASSES)(logits, targets)
        torch.testing.assert_close(Loss("focal", CLASSES, focal_gamma=0.0)(logits, targets), sigmoid)
        assert (expected < sigmoid).all()
        assert torch.equal(
            Loss("focal", CLASSES)(logits, targets), Loss("focal", CLASSES, focal_gamma=2.0)(logits, targets)
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_are_torchs_factors_of_each_image(smoothing: float) -> None:
    logits, labels = logits_and_labels()
    weights = torch.rand(CLASSES, dtype=torch.float64)
    loss = Loss("softmax", CLASSES, label_smoothing=smoothing, class_weights=weights.tolist())
    for targets in (labels, mixed(labels)):
        expected = nn.CrossEntropyLoss(weights, reduction="none", label_smoothing=smoothing)(logits, targets)
        torch.testing.assert_close(loss(logits, targets), expected)
    doubled = Loss("focal", CLASSES, class_weights=[2.0] * CLASSES)(logits, labels)
    torch.testing.assert_close(doubled, 2 * Loss("focal", CLASSES)(logits, labels))


def test_balanced_weights_are_scikit_learns() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert balanced_weights(labels, 3) == pytest.approx(expected.tolist())
    assert balanced_weights(labels, 4)[3] == 10 / 4, "a class without images counts as one with a single image"


def test_narrow_logits_are_computed_in_float32() -> None:
    logits, labels = logits_and_labels()
    for name in ("softmax", "sigmoid", "bce", "focal"):
        losses = Loss(name, CLASSES, class_weights=[0.1] * CLASSES)(logits.bfloat16(), labels)
        assert losses.dtype == torch.float32


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"target_threshold": 0.0},
        "classifier.target_threshold=0.0 is for loss=bce, sigmoid and focal; softmax has none",
    ),
    (
        {"loss": "bce", "label_smoothing": 0.1, "target_threshold": 0.0},
        "classifier.label_smoothing=0.1 makes every target at least 0.01, above target_threshold=0.0: all would become "
        "1; set it to 0.0",
    ),
    ({"class_weights": (1.0, 2.0)}, "classifier.class_weights has 2 numbers, and the data 10 classes"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_settings_that_do_not_go_together_are_refused_before_the_start(
    settings: dict[str, Any], message: str, found: Problems
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        Classifier(nn.Identity(), num_classes=10, **settings)
    assert str(caught.value) == message
    overrides = [f"classifier.{key}={list(v) if isinstance(v, tuple) else v}" for key, v in settings.items()]
    assert found(*overrides) == [message]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classifier.target_threshold=1.0", "classifier.target_threshold=1.0 must be at least 0 and below 1"),
        ("classifier.class_weights=[1,-1]", "classifier.class_weights=[1, -1] must be at least 0"),
        ("classifier.focal_gamma=-1.0", "classifier.focal_gamma=-1.0 must be at least 0"),
        ("classifier.loss=hinge", "classifier.loss=hinge"),
    ],
)
def test_a_setting_outside_its_range_is_refused(override: str, message: str, found: Problems) -> None:
    (problem,) = found(override)
    assert problem.startswith(message)


def test_settings_of_the_loss_pass_the_checks(found: Problems) -> None:
    assert found("classifier.loss=bce", "classifier.target_threshold=0.0") == []
    assert found("classifier.class_weights=balanced") == []
    assert found(f"classifier.class_weights={[0.5] * 10}", "classifier.loss=focal", "classifier.focal_gamma=1.5") == []
