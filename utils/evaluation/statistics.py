"""Intervals of what was measured, and tests of what changed."""

import math


def mean_loss(losses: list[tuple[float, int]]) -> dict:
    """Loss a token over all rows; the interval is that of a ratio estimator over rows."""
    n, tokens = len(losses), sum(count for _, count in losses)
    value = sum(total for total, _ in losses) / tokens
    spread = math.sqrt(sum((total - value * count) ** 2 for total, count in losses) * n / max(1, n - 1)) / tokens
    return {"value": value, "low": value - 1.96 * spread, "high": value + 1.96 * spread, "n": n}


def score_interval(scores: list[float]) -> dict:
    """Mean and 95% interval: Wilson's for scores of 0 and 1, the normal one for others."""
    n, value = len(scores), sum(scores) / len(scores)
    if set(scores) <= {0.0, 1.0}:
        low, high = wilson(sum(scores), n)
    else:
        spread = 1.96 * math.sqrt(sum((s - value) ** 2 for s in scores) / max(1, n - 1) / n)
        low, high = value - spread, value + spread
    return {"value": value, "low": low, "high": high, "n": n}


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that `gained` and `lost` are halves of the same coin (McNemar 1947)."""
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_normal(differences: list[float]) -> float:
    """Two-sided p-value that the mean difference is 0, by the normal approximation."""
    n, mean = len(differences), sum(differences) / len(differences)
    return two_sided(mean, math.sqrt(sum((d - mean) ** 2 for d in differences) / max(1, n - 1) / n))


def two_sided(change: float, standard_error: float) -> float:
    if standard_error == 0:
        return 1.0 if change == 0 else 0.0
    return math.erfc(abs(change) / standard_error / math.sqrt(2))
