import numpy as np
import pytest

from megatron.data import indexed
from megatron.errors import BadData
from megatron.rundir.index import HEADER, ID_BYTES, MAGIC, VERSION, count_documents, count_tokens


def test_the_widths_are_those_of_the_types():
    assert ID_BYTES == {code: np.dtype(dtype).itemsize for code, dtype in indexed.DTYPES.items()}


def test_tokens_and_documents_are_counted_from_the_header(tmp_path):
    prefix = tmp_path / "a"
    assert count_tokens(str(prefix)) is None
    (tmp_path / "a.bin").write_bytes(bytes(12))
    (tmp_path / "a.idx").write_bytes(HEADER.pack(MAGIC, VERSION, 4, 1, 2))
    assert (count_tokens(str(prefix)), count_documents(str(prefix)), count_documents("nowhere")) == (3, 1, None)
    for header in (HEADER.pack(MAGIC, VERSION, 9, 1, 2), HEADER.pack(b"x" * 9, VERSION, 4, 1, 2), b"short"):
        (tmp_path / "a.idx").write_bytes(header)
        with pytest.raises(BadData, match="no index"):
            count_tokens(str(prefix))
