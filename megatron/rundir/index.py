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
        with open(f"{prefix}.idx", "rb") as file:
            header, num_bytes = file.read(HEADER.size), os.path.getsize(f"{prefix}.bin")
    except OSError:
        return None
    if len(header) == HEADER.size:
        magic, version, code, *_ = HEADER.unpack(header)
        if magic == MAGIC and version == VERSION and code in ID_BYTES:
            return num_bytes // ID_BYTES[code]
    raise BadData(f"{prefix}.idx: is no index of a corpus; tools/preprocess_data.py makes one")
