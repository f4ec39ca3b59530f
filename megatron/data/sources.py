"""Which corpora a data path names, and how much of each: `[weight] [start:end] prefix`, on the command line or in a file."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron.data.indexed import IndexedDataset
from megatron.data.token_file import TokenFile
from megatron.errors import BadData, MissingInput
from megatron.flags import parse_count

NUMBER = r"[-+]?\.?\d[\w.+-]*"


@dataclass(frozen=True)
class Source:
    """One entry of a data path. In start and stop a float is a share of the corpus, an int counts tokens."""

    weight: float
    start: float | int
    stop: float | int
    prefix: str
    weighted: bool = field(default=False, compare=False)  # the weight was given; without weights all count the same


def parse_paths(words: list[str], where: str = "the data path") -> list[Source]:
    """`[weight] [start:end] prefix` entries; either all have a weight, or all count the same.

    start:end are shares when both are at most 1 (0.9:1, :0.5), else tokens (0:100M).  Raises BadData.
    """
    entries: list[tuple[float | None, str, str]] = []
    weight = marks = None
    for word in words:
        if weight is None and marks is None and is_number(word):
            weight = float(word)
        elif marks is None and re.fullmatch(f"({NUMBER})?:({NUMBER})?", word):
            marks = word
        else:
            entries.append((weight, marks or ":", word))
            weight = marks = None
    if weight is not None or marks is not None:
        raise BadData(f"{where}: {words[-1]} stands at the end, expected a prefix after it")
    check_weights(entries, where)
    return [
        Source(1.0 if weight is None else weight, *parse_range(marks, prefix, where), prefix, weight is not None)
        for weight, marks, prefix in entries
    ]


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def check_weights(entries: list[tuple[float | None, str, str]], where: str) -> None:
    if not entries:
        raise BadData(f"{where}: names no corpus, expected `weight [start:end] prefix`")
    missing = [prefix for weight, _, prefix in entries if weight is None]
    if missing and len(missing) < len(entries):
        raise BadData(f"{where}: {missing[0]} has no weight while others have one: give every corpus a weight, or none")
    for weight, _, prefix in entries:
        if weight is not None and not 0 <= weight < math.inf:
            raise BadData(f"{where}: the weight of {prefix} is {weight:g}, expected a finite number, 0 or more")
    if not missing and not any(weight for weight, _, _ in entries):
        raise BadData(f"{where}: every weight is 0 ({', '.join(prefix for _, _, prefix in entries)}), expected one above 0")


def parse_range(marks: str, prefix: str, where: str) -> tuple[float | int, float | int]:
    """`0.9:1`, `:0.5` -> two shares; `1e6:100M` -> two counts; `5M:` -> from there to the end."""
    first, last = marks.split(":")
    try:
        start, stop = parse_count(first or "0"), parse_count(last) if last else None
        if not 0 <= start < (math.inf if stop is None else stop):
            raise ValueError
        if max(start, stop or 0) <= 1:
            return float(start), 1.0 if stop is None else float(stop)
        if start % 1 or (stop or 0) % 1:
            raise ValueError
        return int(start), 1.0 if stop is None else int(stop)
    except (ValueError, OverflowError):
        raise BadData(
            f"{where}: the range {marks} of {prefix} is not two shares such as 0.9:1, "
            "or two token counts such as 0:100M, the first below the second"
        ) from None


def read_path_file(path: str | Path) -> list[Source]:
    """Entries of a file: one a line with # comments, or the reference's single line `"1.0 a" "0.5 b"`.

    A prefix with spaces stands in single quotes. Raises MissingInput or BadData.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}; it should list the corpora, `weight [start:end] prefix` a line") from None
    except UnicodeDecodeError:
        raise BadData(f"{path}: is not text, expected `weight [start:end] prefix` a line") from None
    entries = " ".join(re.sub(r"(^|\s)#.*", "", line).replace('"', " ") for line in lines)
    return parse_paths([quoted or word for quoted, word in re.findall(r"'([^']+)'|(\S+)", entries)], str(path))


def token_range(source: Source, num_tokens: int) -> tuple[int, int]:
    """The source's [start, stop) in tokens.  Raises BadData when the corpus is shorter."""
    start, stop = (round(mark * num_tokens) if isinstance(mark, float) else mark for mark in (source.start, source.stop))
    if max(start, stop) > num_tokens:
        raise BadData(
            f"{source.prefix}: the range {start}:{stop} ends behind the last of {num_tokens} tokens; shorten it or add data"
        )
    return start, stop


def open_corpus(prefix: str) -> IndexedDataset | TokenFile:
    """PREFIX.bin with its .idx, or the plain token file that the name of a .bin stands for.  Raises MissingInput or BadData."""
    return opened(prefix, tuple(identity(Path(prefix + suffix)) for suffix in ("", ".bin", ".idx", ".meta.json")))


@functools.lru_cache(maxsize=64)
def opened(prefix: str, files: tuple) -> IndexedDataset | TokenFile:
    """A corpus is checked once a process, however many splits and ranges name it, unless its files change."""
    return TokenFile(prefix) if prefix.endswith(".bin") else IndexedDataset(prefix)


def identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written anew; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def take_first(sources: list[Source], amount: float, where: str = "--unique-tokens") -> list[Source]:
    """The sources cut to their first tokens: so many in all, or of each this share.

    A count is dealt in proportion to the weights, so that every corpus is repeated equally often. Smaller amounts lie inside
    larger ones, token for token.  Raises BadData when a corpus has less than its part.
    """
    used = [source for source in sources if source.weight]
    ranges = [token_range(source, open_corpus(source.prefix).num_tokens) for source in used]
    if amount <= 1:
        parts = [round(amount * (stop - start)) for start, stop in ranges]
    else:
        parts = deal(int(amount), [source.weight for source in used])
    for source, part, (start, stop) in zip(used, parts, ranges, strict=True):
        if part > stop - start:
            of_all = "" if len(used) == 1 else f" of {amount:.0f} tokens {source.prefix} gives {part} by its weight, but"
            raise BadData(
                f"{where} {amount:.0f}:{of_all} {source.prefix} has {stop - start} tokens from {start} to {stop}; "
                "ask for fewer, or add data"
            )
    return [replace(source, start=start, stop=start + part) for source, part, (start, _) in zip(used, parts, ranges, strict=True)]


def deal(total: int, weights: list[float]) -> list[int]:
    """Counts that sum to `total`, in proportion to the weights; none falls when the total rises."""
    if len(weights) == 1:
        return [total]
    first = int(total * weights[0] / math.fsum(weights))
    return [first, *deal(total - first, weights[1:])]
