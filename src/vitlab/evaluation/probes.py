"""How good a network's features are, measured without training it: by a linear classifier on them, or by neighbours.

Both are told the published training images and are scored on the test split. What has to be chosen (the linear
probe's regularisation) is chosen on the validation split, before the test split is looked at.
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
from vitlab.evaluation.features import Features, Kind, extract, load_features

log = logging.getLogger(__name__)


class Probe:
    """What is asked of features; `features` says which (`vitlab.evaluation.features.Extractor`)."""

    name: str

    def __init__(self, *, features: Kind = "pooled") -> None:
        self.features: Kind = features

    def scores(self, train: Features, val: Features, asked: Features) -> tuple[Tensor, Node]:
        """A score for each image of `asked` and class [N, classes], and what else there is to tell.

        `asked` is another split's, or `val` itself.
        """
        raise NotImplementedError


class KNN(Probe):
    """The `k` training images that are nearest by cosine vote for their class, each with exp(cosine / `temperature`).

    As in DINO (arXiv 2104.14294, appendix F.1), whose values are the defaults. Nothing is chosen, so all of the
    published training images vote, those held out for validation too, unless these are what is asked.
    """

    name = "knn"

    @check_bounds
    def __init__(self, *, features: Kind = "pooled", k: PositiveInt = 20, temperature: PositiveFloat = 0.07) -> None:
        super().__init__(features=features)
        self.k, self.temperature = k, temperature

    def scores(self, train: Features, val: Features, asked: Features) -> tuple[Tensor, Node]:
        """Raises `ValueError` where there are fewer than `k` images to vote."""
        known = train if asked is val else concatenate(train, val)
        if self.k > len(known.rows):
            raise ValueError(f"probe.k={self.k} is more than the {len(known.rows)} images that can vote; lower it")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rows, labels = F.normalize(known.rows).to(device), known.labels.to(device)
        found = []
        for some in torch.split(F.normalize(asked.rows), 256):  # 256 x 1.3 million similarities are 1.3 GB
            similarity, index = (some.to(device) @ rows.T).topk(self.k, dim=1)
            votes = torch.zeros(len(some), int(known.labels.max()) + 1, device=device)
            votes.scatter_add_(1, labels[index], (similarity / self.temperature).exp())
            found.append(votes.cpu())
        return torch.cat(found), {"k": self.k, "temperature": self.temperature}


class Linear(Probe):
    """Multinomial logistic regression with an L2 penalty, by scikit-learn's L-BFGS, on standardised features.

    Of `c` (scikit-learn's C: the inverse of the penalty) the value is taken that is most often right on the validation
    split, of equals that with the lower loss; then it is fitted once more to training and validation images together
    (as in CLIP, arXiv 2103.00020, appendix A.3), unless the validation split is what is asked. A fit takes `max_iter`
    steps at most.
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

    def scores(self, train: Features, val: Features, asked: Features) -> tuple[Tensor, Node]:
        """Warns where the best value is the grid's first or last, and where `max_iter` was too few."""
        tried: dict[float, tuple[float, float]] = {}
        for c in self.c:
            logits = self.fit_predict(train, val, c)
            right = float((logits.argmax(dim=1) == val.labels).float().mean())
            tried[c] = (right, -float(F.cross_entropy(logits, val.labels)))
            log.info("linear probe: C=%g: val accuracy %.2f %%, loss %.4f", c, 100 * right, -tried[c][1])
        best = max(self.c, key=lambda c: tried[c])
        if len(self.c) > 1 and best in (self.c[0], self.c[-1]):
            log.warning("probe.c: the best of %s is at the end, C=%g; try others beyond it", self.c, best)
        told = {"C": best, "val/accuracies": {f"{c:g}": right for c, (right, _) in tried.items()}}
        known = train if asked is val else concatenate(train, val)
        return self.fit_predict(known, asked, best), told

    def fit_predict(self, known: Features, asked: Features, c: float) -> Tensor:
        """Log-probabilities [N, classes] for `asked` by a classifier that is fitted to `known`."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        mean, std = known.rows.mean(dim=0), known.rows.std(dim=0)
        std = torch.where(std > 0, std, 1.0)
        rows, targets = (((part.rows - mean) / std).double().numpy() for part in (known, asked))
        model = LogisticRegression(C=c, max_iter=self.max_iter)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(rows, known.labels.numpy())
        if caught:
            log.warning("linear probe: C=%g: %d steps were too few; raise probe.max_iter", c, self.max_iter)
        logits = torch.from_numpy(model.predict_log_proba(targets)).float()
        found = logits.new_full((len(logits), int(model.classes_.max()) + 1), -torch.inf)
        found[:, torch.from_numpy(model.classes_)] = logits
        return found


def concatenate(one: Features, two: Features) -> Features:
    """The images of two splits."""
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
    """A probe's results on `split`; `folder` keeps the features. Every rank calls it, and the first has the results.

    The others end their part in the ranks' communication: a fit may take longer than they would wait.
    """
    splits: list[SplitName] = list(dict.fromkeys(["train", "val", split]))
    files = extract(network, datamodule, trainer, kind=probe.features, splits=splits, model=model, folder=folder)
    launch.leave_group()
    if trainer.global_rank:
        return {}
    found = {name: load_features(files[name], datamodule.split(name).labels) for name in splits}
    scores, told = probe.scores(found["train"], found["val"], found[split])
    return {
        "probe": probe.name,
        "features": probe.features,
        "width": found[split].rows.shape[1],
        **told,
        **{f"{split}/{key}": value for key, value in accuracies(scores, found[split].labels, probe.name).items()},
    }


def accuracies(scores: Tensor, labels: Tensor, name: str) -> Node:
    """Accuracy and counts; among the first five too, where there are more classes."""
    ranks = scores.argsort(dim=1, descending=True, stable=True)
    right = int((ranks[:, 0] == labels).sum())
    found: Node = {f"{name}_acc": right / len(labels), f"{name}_correct": right, "count": len(labels)}
    if scores.shape[1] > 5:
        among = (ranks[:, :5] == labels[:, None]).any(dim=1)
        found[f"{name}_acc5"] = float(among.double().mean())
    return found


def log_results(results: Node, split: SplitName, folder: Path) -> None:
    """The results in a line, and where they lie."""
    if "probe" in results:  # the first rank
        name = results["probe"]
        log.info(
            "%s probe on %s features (%d numbers): %s accuracy %.2f %% (%d of %d)",
            name,
            results["features"],
            results["width"],
            split,
            100 * results[f"{split}/{name}_acc"],
            results[f"{split}/{name}_correct"],
            results[f"{split}/count"],
        )
    log.info("run folder: %s", folder)
