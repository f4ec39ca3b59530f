"""The header of PREFIX.idx, the index of a corpus in Megatron's format."""

from __future__ import annotations

import os
import struct

from megatron.errors import BadData

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, code of the ids' type, sequences, document bounds
ID_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2}  # of one id, by the code


def count_tokens(prefix: str) -> int | None:
    """Ids in PREFIX.bin; None where a file is missing. Raises BadData for what is no index."""
    try:
        num_bytes = os.path.getsize(f"{prefix}.bin")
    except OSError:
        return None
    header = read_header(prefix)
    return None if header is None else num_bytes // ID_BYTES[header[0]]


def count_documents(prefix: str) -> int | None:
    """Documents that PREFIX.idx lists; None where it is missing. Raises BadData for what is no index."""
    header = read_header(prefix)
    return None if header is None else header[1]


def read_header(prefix: str) -> tuple[int, int] | None:
    """The code of the ids' type, and how many documents there are."""
    try:
        with open(f"{prefix}.idx", "rb") as file:
            header = file.read(HEADER.size)
    except OSError:
        return None
    if len(header) == HEADER.size:
        magic, version, code, _, bounds = HEADER.unpack(header)
        if magic == MAGIC and version == VERSION and code in ID_BYTES:
            return code, bounds - 1
    raise BadData(f"{prefix}.idx: is no index of a corpus; tools/preprocess_data.py makes one")
