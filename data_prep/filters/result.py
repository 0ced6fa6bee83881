"""The findings of a scan, a row each, as arrays."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from utils.config import UserError

RULES = (
    "invalid_row", "min_score", "min_length", "max_length", "languages", "refusals", "broken_format",
    "truncated_endings", "repetition", "personal_data", "contamination", "exact_duplicates", "near_duplicates",
    "diversity",
)  # fmt: skip
NUMBER = {name: i for i, name in enumerate(RULES)}
COLUMNS = ("rule", "line", "score", "length", "key", "signature", "words", "vector")


@dataclass
class ScanResult:
    """n rows: the rule by which each was dropped and why, and what the rules across rows compare."""

    rule: np.ndarray  # (n,) int8, -1 for a row that stays
    line: np.ndarray  # (n,) in the file, from 1
    score: np.ndarray  # (n,) float32; 0 without one
    length: np.ndarray  # (n,) characters of the response
    key: np.ndarray  # (n,) uint64, equal for exact duplicates; 0 for nothing to compare
    signature: np.ndarray  # (n, permutations) uint32
    words: np.ndarray  # (n,) int32, how many the signature is of
    vector: np.ndarray  # (n, dimensions) float32
    why: dict[int, str] = field(default_factory=dict)
    bytes: int = 0
    lines: int = 0
    bad_line: tuple[int, str] | None = None  # the first that is not a JSON object, and why

    @classmethod
    def blank(
        cls, line: list[int], *, bytes: int = 0, lines: int = 0, bad_line: tuple[int, str] | None = None
    ) -> "ScanResult":
        n = len(line)
        return cls(
            np.full(n, -1, np.int8), np.array(line, np.int64), np.zeros(n, np.float32), np.zeros(n, np.int32),
            np.zeros(n, np.uint64), np.zeros((n, 0), np.uint32), np.zeros(n, np.int32), np.zeros((n, 0), np.float32),
            bytes=bytes, lines=lines, bad_line=bad_line,
        )  # fmt: skip

    def drop(self, row: int, rule: str, why: str) -> None:
        self.rule[row], self.why[row] = NUMBER[rule], why

    def counts(self) -> dict[str, int]:
        return {RULES[rule]: count for rule, count in sorted(Counter(self.rule[self.rule >= 0].tolist()).items())}

    @classmethod
    def joined(cls, parts: list["ScanResult"]) -> "ScanResult":
        """All rows; the parts are emptied one after another, so that little is held twice."""
        count = sum(len(part.rule) for part in parts)
        widest = max(parts, key=lambda part: part.vector.shape[1])
        columns = {name: vars(widest)[name] for name in COLUMNS}
        whole = {name: np.zeros((count, *column.shape[1:]), column.dtype) for name, column in columns.items()}
        width, first, line = widest.vector.shape[1], 0, 0
        why: dict[int, str] = {}
        for part in parts:
            rows = slice(first, first + len(part.rule))
            part.line += line
            why |= {first + row: text for row, text in part.why.items()}
            first, line = rows.stop, line + part.lines
            if part.vector.shape[1] not in (0, width):
                raise UserError("embeddings: not every row has numbers of one length")
            for name in COLUMNS:
                if vars(part)[name].size:  # a part whose rows were all dropped has no vectors
                    whole[name][rows] = vars(part)[name]
                vars(part)[name] = None
        return cls(**whole, why=why)
