"""What was measured of one state of the model, and how two states differ on the same rows."""

from collections.abc import Iterable
from dataclasses import dataclass

from utils.evaluation.statistics import is_binary, mcnemar, mean_interval, paired_t, share_interval

MEANS = ("heldout_loss", "answer_tokens", "logp_chosen", "logp_rejected", "reward_margin", "kl")  # even if all are 0


@dataclass
class Evaluation:
    """What one state of the model did with each held-out row and each held-out prompt."""

    rows: list[dict]  # prompt, reference, completion, tokens, stopped, scores, kl
    losses: list[tuple[float, int]]  # SFT: (summed negative log-likelihood, supervised tokens)
    pairs: list[dict]  # DPO: logp_chosen, logp_rejected; margin and accuracy of the implicit rewards

    def figures(self) -> dict[str, dict[int, tuple[float, int]]]:
        """{metric: {row number: (total, count)}}: a metric is the sum of its totals over the sum of its counts."""
        found: dict[str, dict[int, tuple[float, int]]] = {}
        if self.losses:
            found["heldout_loss"] = dict(enumerate(self.losses))
        for i, row in enumerate(self.rows):
            for name, score in row["scores"].items():
                found.setdefault(name, {})[i] = (score, 1)
        if self.rows:
            found["answer_tokens"] = {i: (row["tokens"], 1) for i, row in enumerate(self.rows)}
        for i, pair in enumerate(self.pairs):
            for name, value in pair.items():
                found.setdefault(name, {})[i] = (value, 1)
        if self.rows and "kl" in self.rows[0]:
            found["kl"] = {i: (row["kl"], row["tokens"]) for i, row in enumerate(self.rows)}
        return found

    def metrics(self) -> dict[str, dict]:
        """{metric: {"value", "low", "high", "n"}} with 95% intervals; low and high are None for a mean of one row."""
        found = {}
        for name, rows in self.figures().items():
            totals, counts = zip(*rows.values(), strict=True)
            found[name] = share_interval(totals) if is_share(name, totals) else mean_interval(totals, counts)
        return found


def is_share(name: str, values: Iterable[float]) -> bool:
    return name not in MEANS and is_binary(values)


def compare(before: Evaluation, after: Evaluation) -> dict[str, dict]:
    """{metric: {"value": after - before, "p_value", "test"}} on the rows that both measured."""
    found = {}
    figures = after.figures()
    for name, firsts in before.figures().items():
        lasts = figures.get(name, {})
        both = [(firsts[i][0], *lasts[i]) for i in firsts.keys() & lasts.keys()]
        if not both:
            continue
        changes, counts = [last - first for first, last, _ in both], [count for _, _, count in both]
        if is_share(name, [value for first, last, _ in both for value in (first, last)]):
            test, p_value = "McNemar exact", mcnemar(changes.count(1), changes.count(-1))
        else:
            test, p_value = "paired t", paired_t(changes, counts)
        found[name] = {"value": sum(changes) / sum(counts), "p_value": p_value, "test": test}
    return found
