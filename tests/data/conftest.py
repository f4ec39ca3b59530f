import numpy as np
import pytest

from megatron.data.indexed import IndexedWriter


@pytest.fixture
def counting(tmp_path):
    """counting(name, num_tokens) -> prefix of a corpus whose every token is its position."""

    def make(name, num_tokens):
        with IndexedWriter(tmp_path / name, np.int32) as writer:
            writer.add_document(np.arange(num_tokens))
        return str(tmp_path / name)

    return make


@pytest.fixture
def two(counting):
    return counting("a", 1000), counting("b", 3000)
