"""PREFIX.meta.json: what vouches for a corpus. Without it a .bin is any bytes of the right length.

{"version": 1, "documents", "sequences", "tokens", "dtype", "largest_id",
 "tokenizer": {"type", "fingerprint", "vocab_size", "eod"} or null, "extra": whatever the writer says,
 "bin_bytes", "idx_bytes", "idx_sha256",
 "sizes_crc32", "documents_crc32": of those parts of the .idx, quick enough for every opening; the offsets follow from the sizes,
 "block_bytes", "block_crc32": [one a block of the .bin], "blocks_sha256", "sha256": of all the rest}
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from megatron.errors import BadData

VERSION = 1
BLOCK_BYTES = 1 << 20
COUNTS = (
    "documents",
    "sequences",
    "tokens",
    "largest_id",
    "bin_bytes",
    "idx_bytes",
    "sizes_crc32",
    "documents_crc32",
    "block_bytes",
)
TEXTS = ("dtype", "idx_sha256", "blocks_sha256")
TOKENIZER = {"type": str, "fingerprint": str, "vocab_size": int, "eod": int}
REBUILD = "copy the corpus again, all three files, or rebuild it with tools/preprocess_data.py"


def sidecar_path(prefix: str) -> Path:
    return Path(f"{prefix}.meta.json")


def sealed(meta: dict) -> bytes:
    """A sidecar's file: the facts, and the hash of them that shows a change."""
    meta = {**meta, "blocks_sha256": blocks_sha256(meta["block_crc32"])}
    return json.dumps({**meta, "sha256": seal(meta)}).encode() + b"\n"


def seal(meta: dict) -> str:
    """sha256 over all keys but the one that holds it."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def blocks_sha256(block_crc32: list[int]) -> str:
    """Names the whole .bin by the checksums of its blocks."""
    return hashlib.sha256(np.array(block_crc32, "<u4").tobytes()).hexdigest()


def read_sidecar(prefix: str) -> dict | None:
    """The facts of PREFIX.meta.json; None when there is no such file.  Raises BadData when it is damaged."""
    path = sidecar_path(prefix)
    if not path.exists() and not path.is_symlink():
        return None
    if not path.is_file():
        raise BadData(f"{path}: is not a regular file; {REBUILD}")
    try:
        meta = json.loads(path.read_bytes())
        fault = fault_of(meta)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path}: is damaged, not JSON ({' '.join(str(error).split())}); {REBUILD}") from None
    except OSError as error:
        raise BadData(f"{path}: {error.strerror}; {REBUILD}") from None
    if fault:
        raise BadData(f"{path}: {fault}; {REBUILD}")
    return meta


def fault_of(meta) -> str | None:
    """What makes this no sidecar."""
    if not isinstance(meta, dict):
        return f"holds {type(meta).__name__}, expected an object"
    if not is_count(meta.get("version")) or meta["version"] != VERSION:
        return f"version is {str(meta.get('version'))[:40]}, expected {VERSION}"
    wrong = [key for key in COUNTS if not is_count(meta.get(key))] + [key for key in TEXTS if not isinstance(meta.get(key), str)]
    if wrong:
        return f"{wrong[0]} is {str(meta.get(wrong[0]))[:40]}, expected a {'whole number' if wrong[0] in COUNTS else 'text'}"
    if "tokenizer" not in meta or (fault := fault_of_tokenizer(meta["tokenizer"])):
        return fault if "tokenizer" in meta else "tokenizer is not there"
    if fault := fault_of_blocks(meta):
        return fault
    if seal(meta) != meta.get("sha256"):
        return f"its sha256 is {seal(meta)[:16]}, expected {str(meta.get('sha256'))[:16]}: it was changed after it was written"
    return None


def is_count(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def fault_of_tokenizer(tokenizer) -> str | None:
    """None is a tokenizer: nobody knows it."""
    if tokenizer is None:
        return None
    if not isinstance(tokenizer, dict) or any(type(tokenizer.get(key)) is not kind for key, kind in TOKENIZER.items()):
        return f"tokenizer is {str(tokenizer)[:80]}, expected an object with {', '.join(TOKENIZER)}"
    return None


def fault_of_blocks(meta: dict) -> str | None:
    crcs, block = meta.get("block_crc32"), meta["block_bytes"]
    if not 256 <= block <= 1 << 30 or block & (block - 1):
        return f"block_bytes is {block}, expected a power of two from 256 to 2^30"
    expected = -(-meta["bin_bytes"] // block)
    if not isinstance(crcs, list) or len(crcs) != expected or any(type(crc) is not int or crc >> 32 for crc in crcs):
        return f"block_crc32 is {str(crcs)[:40]}, expected {expected} numbers of 32 bits"
    if blocks_sha256(crcs) != meta["blocks_sha256"]:
        return f"blocks_sha256 is {meta['blocks_sha256'][:16]}, expected {blocks_sha256(crcs)[:16]}"
    return None


def check_belongs(prefix: str, meta: dict, found: dict[str, dict]) -> None:
    """The files are those that the sidecar was written for.  `found`: {suffix: {key: value}}.  Raises BadData."""
    for suffix, facts in found.items():
        for key, value in facts.items():
            if meta[key] != value:
                raise BadData(
                    f"{prefix}{suffix}: {key} is {value}, expected {meta[key]} by {sidecar_path(prefix)}: "
                    f"one of them is damaged or belongs to another corpus; {REBUILD}"
                )
