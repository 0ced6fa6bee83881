"""Every row of a file scanned once, by as many processes as there are cores; the result is that of one."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from data_prep.files import open_input
from data_prep.filters.result import ScanResult
from data_prep.filters.scanner import Scanner
from utils.config import UserError
from utils.files import Ticker

if TYPE_CHECKING:
    from data_prep.filter import FilterConfig

CHUNK_ROWS, CHUNK_BYTES = 2000, 4_000_000


def scan_file(config: "FilterConfig") -> ScanResult:
    """Every row with the verdict of the rules of single rows. Raises UserError for a line that is not JSON."""
    path = Path(config.dataset_name)
    size, workers, parts, first = path.stat().st_size, config.workers or cpu_count(), [], 1
    scanner = Scanner(config)  # here too, so that an unreadable held-out file or tokenizer is reported once
    if size < 2_000_000:  # processes take longer to start than so few rows to read
        workers = 1
    with open_input(path) as file, Ticker("filter", size, unit="bytes") as ticker:
        chunks = chunks_of(file)
        for part in map(scanner.scan, chunks) if workers == 1 else scan_in_parallel(workers, config, chunks):
            if part.bad_line:
                line, reason = part.bad_line
                raise UserError(f"{path.name}:{first + line}: {reason}. Write one JSON object a line")
            first += part.lines
            parts.append(part)
            ticker.tick(part.bytes)
    if not any(len(part.rule) for part in parts):
        raise UserError(f"{path.name}: has no rows")
    return ScanResult.joined(parts)


def chunks_of(file: BinaryIO) -> Iterator[list[bytes]]:
    """Lines, some thousand at a time, fewer where they are long."""
    chunk, size = [], 0
    for line in file:
        chunk.append(line)
        size += len(line)
        if len(chunk) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def scan_in_parallel(workers: int, config: "FilterConfig", chunks: Iterator[list[bytes]]) -> Iterator[ScanResult]:
    """The results in the order of the chunks, of which a few are in flight at a time."""
    with ProcessPoolExecutor(workers, initializer=start_worker, initargs=(config,)) as pool:
        waiting = deque(pool.submit(scan_chunk, chunk) for chunk in islice(chunks, 2 * workers))
        try:
            while waiting:
                part = waiting.popleft().result()
                waiting.extend(pool.submit(scan_chunk, chunk) for chunk in islice(chunks, 1))
                yield part
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most likely because it ran out of memory. Use fewer: workers: 1"
            ) from None


worker: dict = {}  # the scanner of a worker process


def start_worker(config: "FilterConfig") -> None:
    worker["scanner"] = Scanner(config)


def scan_chunk(chunk: list[bytes]) -> ScanResult:
    return worker["scanner"].scan(chunk)
