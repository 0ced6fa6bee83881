"""Rules that compare rows with each other: exact duplicates, near-duplicates, diversity."""

from typing import TYPE_CHECKING

import numpy as np

from data_prep.filters.near_duplicates import find_copies
from data_prep.filters.result import ScanResult
from utils.config import UserError

if TYPE_CHECKING:
    from data_prep.filter import FilterConfig

MOST_COMPARED = 2_000_000_000  # rows x picks of `diversity`: about a minute on one core


def drop_duplicates(result: ScanResult, config: "FilterConfig") -> None:
    """Of exact duplicates the best-scored stays, of equals the shorter; of near-duplicates, of equals the first. Rows
    without the text that is compared are duplicates of none."""
    if config.exact_duplicates:
        left = np.flatnonzero((result.rule < 0) & (result.key != 0))
        order = left[np.lexsort((left, result.length[left], -result.score[left], result.key[left]))]
        first = np.concatenate([[True], np.diff(result.key[order]) != 0])[: len(order)]
        kept = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
        for row, copied in zip(order[~first].tolist(), kept[~first].tolist(), strict=True):
            result.drop(row, "exact_duplicates", f"like row {result.line[copied]:,}, which is kept")
    if config.near_duplicates:
        left = np.flatnonzero((result.rule < 0) & (result.words > 0))
        signatures = result.signature if len(left) == len(result.rule) else result.signature[left]
        result.signature = np.zeros((0, 0), np.uint32)  # half a gigabyte for a million rows
        order, parts = np.lexsort((left, -result.score[left])), 2 if config.near_duplicates == "both" else 1
        for row, copied in find_copies(signatures, config.near_threshold, parts, order):
            result.drop(left[row], "near_duplicates", f"like row {result.line[left[copied]]:,}, which is kept")


def keep_diverse(result: ScanResult, config: "FilterConfig") -> None:
    """Greedily picks the row that is least similar to those picked before (farthest first), from a seeded start.

    Similarity is the cosine of the prompts' words, rare ones counting more (hashed tf-idf), or of `embeddings`.
    """
    left = np.flatnonzero(result.rule < 0)
    if config.diversity is None or len(left) <= config.diversity:
        return
    if len(left) * config.diversity > MOST_COMPARED:
        raise UserError(
            f"diversity: {config.diversity:,} of {len(left):,} rows would take {len(left) * config.diversity:,} "
            f"comparisons, and {MOST_COMPARED:,} take a minute. Keep fewer, or filter parts of the file"
        )
    vectors, result.vector = result.vector[left], np.zeros((0, 0), np.float32)
    if not config.embeddings:
        vectors *= np.log((1 + len(left)) / (1 + (vectors > 0).sum(axis=0)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    picked = [int(np.random.default_rng(config.seed).integers(len(left)))]
    similarity = vectors @ vectors[picked[0]]
    for _ in range(config.diversity - 1):
        similarity[picked[-1]] = np.inf
        picked.append(int(similarity.argmin()))
        similarity = np.maximum(similarity, vectors @ vectors[picked[-1]])
    for row in set(left.tolist()) - set(left[picked].tolist()):
        result.drop(row, "diversity", "more similar to the kept rows than others are")
