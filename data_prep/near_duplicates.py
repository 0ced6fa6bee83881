"""Rows that say nearly the same, by MinHash: signatures by rensa, candidates by bands, clusters by union-find.

Memory: 4 bytes a permutation and row (512 at 128), and 8 a row for each band in turn: about 0.6 GB for a million rows.
"""

import numpy as np
from rensa import RMinHash

from data_prep.texts import Words

ROWS_A_BAND = 4  # with 128 permutations, rows of similarity 0.7 are found with probability 0.9998
PAIRS_AT_ONCE = 500_000


def signatures(words: Words, ngram: int, permutations: int) -> np.ndarray:
    """(n, permutations) uint32: two rows agree in as large a share of them as their word runs overlap (Jaccard)."""
    grams, offsets = words.grams(ngram)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        grams, offsets.astype(np.uint64), num_perm=permutations, seed=42
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, permutations)


def clusters(found: np.ndarray, threshold: float) -> np.ndarray:
    """Of each of n rows the number of its cluster's first row; rows alike to none are their own.

    Pairs that share a band are compared by the whole signature, so that chance meetings do not count; the estimate's
    standard error is at most 0.044 with 128 permutations.
    """
    count, permutations = found.shape
    parent = np.arange(count, dtype=np.int64)
    for first in range(0, permutations - ROWS_A_BAND + 1, ROWS_A_BAND):
        pairs = band_pairs(np.ascontiguousarray(found[:, first : first + ROWS_A_BAND]))
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            part = part[parent[part[:, 0]] != parent[part[:, 1]]]
            alike = (found[part[:, 0]] == found[part[:, 1]]).mean(axis=1) >= threshold
            for a, b in part[alike]:
                unite(parent, int(a), int(b))
    for i in range(count):
        parent[i] = root(parent, i)
    return parent


def band_pairs(band: np.ndarray) -> np.ndarray:
    """(m, 2) pairs of rows with the same band: each with the bucket's first row, and with the one before it."""
    keys = band.view([("", band.dtype)] * band.shape[1]).ravel()
    folded = np.zeros(len(keys), dtype=np.uint64)
    for name in keys.dtype.names:
        folded = folded * np.uint64(0x100000001B3) ^ keys[name].astype(np.uint64)
    order = np.argsort(folded, kind="stable")
    ordered = folded[order]
    same = np.concatenate([[False], ordered[1:] == ordered[:-1]])
    heads = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    later = np.flatnonzero(same)
    with_first = np.stack([order[heads[later]], order[later]], axis=1)
    with_one_before = np.stack([order[later - 1], order[later]], axis=1)[heads[later] != later - 1]
    return np.concatenate([with_first, with_one_before])


def root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def unite(parent: np.ndarray, a: int, b: int) -> None:
    a, b = root(parent, a), root(parent, b)
    parent[max(a, b)] = min(a, b)
