"""Whether two samples are from one distribution."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp

LEVEL = 1e-4  # of each comparison: a false alarm in 10,000 seeds


def differ(one: Iterable[float], other: Iterable[float]) -> bool:
    """Kolmogorov-Smirnov: of two samples of n, a difference of 2.9 / sqrt(n) between the distribution functions is seen
    with a probability of 0.9 or more."""
    return bool(ks_2samp(np.asarray(one), np.asarray(other)).pvalue < LEVEL)


def counts_differ(one: Iterable[object], other: Iterable[object]) -> bool:
    """Chi-square of homogeneity of two samples of names or numbers."""
    counts = [Counter(map(str, sample)) for sample in (one, other)]
    kinds = sorted(set().union(*counts))
    table = [[count[kind] for kind in kinds] for count in counts]
    return bool(kinds) and bool(chi2_contingency(table).pvalue < LEVEL)
