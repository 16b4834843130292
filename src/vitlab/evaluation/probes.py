"""Probes: the quality of a frozen network's features, by a linear classifier on them or by nearest neighbors.

Both are fitted to the published training images and scored on the test split. The linear probe's regularization is
chosen on the validation split, before the test split is used.
"""

import logging
import warnings
from pathlib import Path

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from vitlab.config.bounds import PositiveFloat, PositiveInt, check_bounds
from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.scan import SplitName
from vitlab.distributed import launch
from vitlab.evaluation.features import Features, Kind, extract

log = logging.getLogger(__name__)


class Probe:
    """A classifier on features of the kind `features` (`vitlab.evaluation.features.Extractor`)."""

    name: str

    def __init__(self, *, features: Kind = "pooled") -> None:
        self.features: Kind = features

    def scores(self, train: Features, val: Features, queries: Features) -> tuple[Tensor, Node]:
        """Scores [N, classes] of `queries` (another split, or `val` itself), and further results."""
        raise NotImplementedError


class KNN(Probe):
    """The `k` training images nearest by cosine vote for their class, each with exp(cosine / `temperature`).

    As in DINO (arXiv 2104.14294, appendix F.1), with its values as defaults. Nothing is chosen, so all published
    training images vote, also those held out for validation, unless these are scored.

    Args:
        features: The head's input (`pooled`), or of a ViT the [cls] token, the mean of the patch tokens, or both.
        k: Number of neighbors.
        temperature: Similarities are divided by it before their exponential.
    """

    name = "knn"

    @check_bounds
    def __init__(self, *, features: Kind = "pooled", k: PositiveInt = 20, temperature: PositiveFloat = 0.07) -> None:
        super().__init__(features=features)
        self.k, self.temperature = k, temperature

    def scores(self, train: Features, val: Features, queries: Features) -> tuple[Tensor, Node]:
        known = train if queries is val else concatenate(train, val)
        if self.k > len(known.rows):
            raise ValueError(f"probe.k={self.k} is more than the {len(known.rows)} images that can vote; lower it")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rows, labels = F.normalize(known.rows).to(device), known.labels.to(device)
        scores = []
        for some in torch.split(F.normalize(queries.rows), 256):  # 256 x 1.3 million similarities are 1.3 GB
            similarity, index = (some.to(device) @ rows.T).topk(self.k, dim=1)
            votes = torch.zeros(len(some), int(known.labels.max()) + 1, device=device)
            votes.scatter_add_(1, labels[index], (similarity / self.temperature).exp())
            scores.append(votes.cpu())
        return torch.cat(scores), {"k": self.k, "temperature": self.temperature}


class Linear(Probe):
    """Multinomial logistic regression with an L2 penalty, by scikit-learn's L-BFGS, on standardized features.

    The value of `c` is the one with the best accuracy on the validation split, then with the lowest loss. It is fitted
    again to training and validation images together (as in CLIP, arXiv 2103.00020, appendix A.3), unless the
    validation split is scored.

    Args:
        features: The head's input (`pooled`), or of a ViT the [cls] token, the mean of the patch tokens, or both.
        c: Values of scikit-learn's C, the inverse of the penalty, to choose from.
        max_iter: Steps of a fit, at most.
    """

    name = "linear"

    @check_bounds
    def __init__(
        self,
        *,
        features: Kind = "pooled",
        c: tuple[PositiveFloat, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        max_iter: PositiveInt = 1000,
    ) -> None:
        super().__init__(features=features)
        if not c:
            raise ValueError("probe.c=[] must have at least one number")
        self.c, self.max_iter = sorted(c), max_iter

    def scores(self, train: Features, val: Features, queries: Features) -> tuple[Tensor, Node]:
        tried: dict[float, tuple[float, float]] = {}
        for c in self.c:
            logits = self.fit_predict(train, val, c)
            accuracy = float((logits.argmax(dim=1) == val.labels).float().mean())
            tried[c] = (accuracy, -float(F.cross_entropy(logits, val.labels)))
            log.info("linear probe: C=%g: val accuracy %.2f %%, loss %.4f", c, 100 * accuracy, -tried[c][1])
        best = max(self.c, key=lambda c: tried[c])
        if len(self.c) > 1 and best in (self.c[0], self.c[-1]):
            log.warning("probe.c: the best of %s is at the end, C=%g; try others beyond it", self.c, best)
        known = train if queries is val else concatenate(train, val)
        accuracies = {f"{c:g}": accuracy for c, (accuracy, _) in tried.items()}
        return self.fit_predict(known, queries, best), {"C": best, "val/accuracies": accuracies}

    def fit_predict(self, known: Features, queries: Features, c: float) -> Tensor:
        """Log-probabilities [N, classes] of `queries` by a classifier fitted to `known`."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        mean, std = known.rows.mean(dim=0), known.rows.std(dim=0)
        std = torch.where(std > 0, std, 1.0)
        rows, targets = (((part.rows - mean) / std).double().numpy() for part in (known, queries))
        model = LogisticRegression(C=c, max_iter=self.max_iter)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(rows, known.labels.numpy())
        if caught:
            log.warning("linear probe: C=%g: %d steps were too few; raise probe.max_iter", c, self.max_iter)
        seen = torch.from_numpy(model.predict_log_proba(targets)).float()
        logits = seen.new_full((len(seen), int(model.classes_.max()) + 1), -torch.inf)
        logits[:, torch.from_numpy(model.classes_)] = seen
        return logits


def concatenate(one: Features, two: Features) -> Features:
    return Features(torch.cat([one.rows, two.rows]), torch.cat([one.labels, two.labels]))


def measure(
    probe: Probe,
    network: nn.Module,
    datamodule: DataModule,
    trainer: Trainer,
    *,
    split: SplitName,
    model: Node,
    folder: Path,
) -> Node:
    """A probe's results on `split`, with features cached in `folder`. Every rank calls it; the first has the results.

    The ranks' communication ends before the fit, which may take longer than its timeout.
    """
    splits: list[SplitName] = list(dict.fromkeys(["train", "val", split]))
    files = extract(network, datamodule, trainer, kind=probe.features, splits=splits, model=model, folder=folder)
    launch.leave_group()
    if trainer.global_rank:
        return {}
    rows = {name: torch.load(files[name], weights_only=True) for name in splits}
    features = {name: Features(rows[name], datamodule.split(name).labels) for name in splits}
    scores, results = probe.scores(features["train"], features["val"], features[split])
    about = {"probe": probe.name, "features": probe.features, "width": features[split].rows.shape[1]}
    scored = accuracies(scores, features[split].labels, probe.name)
    return {**about, **results, **{f"{split}/{key}": value for key, value in scored.items()}}


def accuracies(scores: Tensor, labels: Tensor, name: str) -> Node:
    """Accuracy and counts; with more than five classes, top-5 accuracy too."""
    ranks = scores.argsort(dim=1, descending=True, stable=True)
    correct = int((ranks[:, 0] == labels).sum())
    result: Node = {f"{name}_acc": correct / len(labels), f"{name}_correct": correct, "count": len(labels)}
    if scores.shape[1] > 5:
        result[f"{name}_acc5"] = float((ranks[:, :5] == labels[:, None]).any(dim=1).double().mean())
    return result


def log_results(results: Node, split: SplitName, folder: Path) -> None:
    """Log the results, on the first rank, and the run folder."""
    if "probe" in results:
        name = results["probe"]
        probe = f"{name} probe on {results['features']} features ({results['width']} numbers)"
        counts = f"{results[f'{split}/{name}_correct']} of {results[f'{split}/count']}"
        log.info("%s: %s accuracy %.2f %% (%s)", probe, split, 100 * results[f"{split}/{name}_acc"], counts)
    log.info("run folder: %s", folder)
