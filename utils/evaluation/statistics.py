"""Intervals of what was measured, and tests of what changed: exact ones for shares, Student's t for means.

scipy.stats is imported where it is used: it takes over half a second.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np


def mean_and_error(totals: Sequence[float], counts: Sequence[int] | None = None) -> tuple[float, float]:
    """The mean per count over all rows, and its standard error: that of a ratio estimator (Cochran 1977, chapter 6).

    Args:
        totals: a value per row, for instance its summed negative log-likelihood.
        counts: what each total is the sum over, for instance supervised tokens; by default 1.
    """
    values, weights = np.asarray(totals, float), np.ones(len(totals)) if counts is None else np.asarray(counts, float)
    mean = values.sum() / weights.sum()
    deviations, n = values - mean * weights, len(values)
    return float(mean), math.sqrt(deviations @ deviations * n / max(1, n - 1)) / float(weights.sum())


def mean_interval(totals: Sequence[float], counts: Sequence[int] | None = None) -> dict:
    """Mean per count and its 95% interval by Student's t. From a single row there is none: low and high are None."""
    from scipy import stats

    n, (value, error) = len(totals), mean_and_error(totals, counts)
    if n == 1:
        return {"value": value, "low": None, "high": None, "n": n}
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def share_interval(scores: Sequence[float]) -> dict:
    """The share of scores of 0 and 1 that are 1, and its 95% interval (Wilson 1927)."""
    from scipy import stats

    n, right = len(scores), int(sum(scores))
    low, high = stats.binomtest(right, n).proportion_ci(method="wilson")
    return {"value": right / n, "low": float(low), "high": float(high), "n": n}


def is_binary(values: Iterable[float]) -> bool:
    return set(values) <= {0.0, 1.0}


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that a change is as likely a gain as a loss (McNemar 1947)."""
    from scipy import stats

    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_t(differences: Sequence[float], counts: Sequence[int] | None = None) -> float:
    """Two-sided p-value that the mean difference (per count) is 0, by Student's t; 1.0 for a single row.

    Where all rows differ by the same there is no spread to judge by: the sign test is then exact, 2 / 2**n.
    """
    from scipy import stats

    n, (mean, error) = len(differences), mean_and_error(differences, counts)
    if mean == 0 or n == 1:
        return 1.0
    if error < 1e-9 * abs(mean):  # rounding
        return mcnemar(n, 0)
    return float(2 * stats.t.sf(abs(mean) / error, n - 1))
