"""Near-duplicates by MinHash: signatures by rensa, candidates by bands, clusters by union-find.

Memory: 4 bytes a permutation and row (512 at 128), and some 60 a row while candidates are searched for.

Only rensa's hashing is used: its index and deduplicator (RMinHashLSH, RMinHashDeduplicator) take one Python object a
row, not the arrays that worker processes send, and compare one text, not prompt and response each by itself.
"""

from collections.abc import Iterator

import numpy as np
from rensa import RMinHash

from data_prep.filters.texts import Words
from utils.config import UserError

LEAST_CHANCE = 0.985  # that two rows just at the threshold become candidates
BYTES_AT_ONCE = 64_000_000  # of signatures that are compared
MOST_COMPARED = 300_000_000  # comparisons of whole signatures: some minutes


def signatures(words: Words, ngram: int, permutations: int) -> np.ndarray:
    """(n, permutations) uint32: two rows agree in as large a share of them as their n-grams overlap (Jaccard)."""
    grams, offsets = words.grams(ngram)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        grams, offsets.astype(np.uint64), num_perm=permutations, seed=42
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, permutations)


def find_copies(signed: np.ndarray, threshold: float, parts: int, order: np.ndarray) -> Iterator[tuple[int, int]]:
    """(dropped row, the kept row that it is like).

    Rows that share a band are candidates, and candidates form clusters. In each, the best row is kept and drops those
    that are like it, then the best of the rest, and so on: a chain of rows each like the next keeps its ends.
    Similarity is the share of the signature that agrees (its standard error is at most 0.044 with 128 permutations),
    the least over its parts.

    Args:
        signed: (n, permutations) signatures, one part after another.
        parts: how many texts of a row the signature is of.
        order: (n,) the rows, best first.

    Raises:
        UserError: the rows of a cluster are so many and so different that comparing them would take hours.
    """
    parent = clusters(signed, threshold, parts)
    rank: np.ndarray = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    by_cluster = np.lexsort((rank, parent))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(parent[by_cluster]) != 0, [True]]))
    compared = 0
    for first in np.flatnonzero(np.diff(starts) > 1):
        left = by_cluster[starts[first] : starts[first + 1]]
        while len(left) > 1:
            best, left = left[0], left[1:]
            like = alike(signed, left, np.full(len(left), best), threshold, parts)
            yield from ((int(row), int(best)) for row in left[like])
            compared += len(left)
            left = left[~like]
            if compared > MOST_COMPARED:
                raise UserError(
                    f"near_duplicates: {starts[first + 1] - starts[first]:,} rows are each like some others, but few "
                    "like all. Write a higher near_threshold, or a longer near_ngram"
                )


def alike(signed: np.ndarray, a: np.ndarray, b: np.ndarray, threshold: float, parts: int) -> np.ndarray:
    """Whether each pair of rows a[i], b[i] reaches the threshold in every part."""
    size = max(1, BYTES_AT_ONCE // (8 * signed.shape[1]))
    found: list[np.ndarray] = [np.zeros(0, bool)]
    for start in range(0, len(a), size):
        same = signed[a[start : start + size]] == signed[b[start : start + size]]
        found.append(same.reshape(len(same), parts, -1).mean(axis=2).min(axis=1) >= threshold)
    return np.concatenate(found)


def band_size(threshold: float, permutations: int) -> int:
    """The largest, for the fewest candidates, with which rows just at the threshold still share a band."""
    return max((r for r in range(1, 9) if 1 - (1 - threshold**r) ** (permutations // r) >= LEAST_CHANCE), default=1)


def clusters(signed: np.ndarray, threshold: float, parts: int = 1) -> np.ndarray:
    """(n,) the first row of each row's cluster.

    Pairs that share a band of the first part are compared by the whole signature, so that chance collisions do not
    count.
    """
    width = signed.shape[1] // parts
    size = band_size(threshold, width)
    parent: np.ndarray = np.arange(len(signed), dtype=np.int64)
    for first in range(0, width - size + 1, size):
        pairs = band_pairs(np.ascontiguousarray(signed[:, first : first + size]))
        pairs = pairs[parent[pairs[:, 0]] != parent[pairs[:, 1]]]
        for a, b in pairs[alike(signed, pairs[:, 0], pairs[:, 1], threshold, parts)]:
            unite(parent, int(a), int(b))
    while (parent != parent[parent]).any():
        parent = parent[parent]
    return parent


def band_pairs(band: np.ndarray) -> np.ndarray:
    """(m, 2) pairs of rows with the same band: each with the bucket's first row, and with the one before it."""
    keys = band.view([("", band.dtype)] * band.shape[1]).ravel()
    folded: np.ndarray = np.zeros(len(keys), dtype=np.uint64)
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
