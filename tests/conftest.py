import os
import signal
from contextlib import closing
from multiprocessing import spawn

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests share their cores

import numpy as np
import pytest

from megatron.data.indexed import IndexedWriter
from tests.warm import Warm

HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL}


def heed_signals():
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


heed_signals()  # a shell's background job ignores SIGINT, and children would inherit that


@pytest.fixture(autouse=True)
def handlers():
    """Signals as a program begins with them: one that has ended in this process ignores them."""
    heed_signals()
    yield
    heed_signals()


@pytest.fixture
def corpus(tmp_path):
    """Prefix of a small corpus: 64 documents, 8192 tokens, ids below 250."""
    rng = np.random.default_rng(0)
    borders = np.sort(rng.choice(np.arange(1, 8192), 63, replace=False))
    prefix = str(tmp_path / "corpus")
    with IndexedWriter(prefix, np.uint16) as writer:
        for document in np.split(rng.integers(0, 250, 8192), borders):
            writer.add_document(document)
    return prefix


@pytest.fixture(scope="session")
def pool():
    """Warm processes for every test that needs several: `pool.run(world_size, function, *args)`, results by rank."""
    from megatron.proof.pool import Pool

    with Pool(8) as found:
        yield found


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """An interpreter that starts at once, for children that would spend their time on imports."""
    with closing(Warm(tmp_path_factory.mktemp("warm"))) as found:
        yield found


@pytest.fixture
def spawned_warm(warm):
    """What this process spawns starts at once, too."""
    before = spawn.get_executable()
    spawn.set_executable(warm.python)
    yield
    spawn.set_executable(before)
