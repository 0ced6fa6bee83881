"""Which rows of a file stay: rules of single rows, applied in parallel, then rules across rows.

filter.py calls `scan_file`, `drop_duplicates` and `keep_diverse`; view.py counts words and tokens as they do. It never
changes a row, writes no file, and never shows personal data.
"""

from data_prep.filters.across_rows import drop_duplicates, keep_diverse
from data_prep.filters.personal_data import find_personal_data
from data_prep.filters.result import RULES, ScanResult
from data_prep.filters.scan import scan_file
from data_prep.filters.scanner import MOST_SCORED, load_tokenizer, tokenizer_file
from data_prep.filters.texts import words_of

__all__ = [
    "MOST_SCORED", "RULES", "ScanResult", "drop_duplicates", "find_personal_data", "keep_diverse", "load_tokenizer",
    "scan_file", "tokenizer_file", "words_of",
]  # fmt: skip
