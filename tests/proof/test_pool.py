"""The pool of warm processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron.proof.pool import JobFailed, Pool

ROOT = Path(__file__).parents[2]


# What workers do


def sum_ranks(more):
    x = torch.tensor([float(dist.get_rank() + more)])
    dist.all_reduce(x)
    return x.item()


def whereabouts():
    return os.getpid(), dist.is_initialized(), os.environ["RANK"], os.environ["WORLD_SIZE"], torch.get_num_threads()


def one_raises():
    if dist.get_rank() == 1:
        raise ValueError("the cause")
    sum_ranks(0)


def one_dies():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    sum_ranks(0)


def one_hangs():
    if dist.get_rank() == 1:
        time.sleep(60)
    sum_ranks(0)


def read_variable(name):
    return os.environ.get(name)


def cannot_be_sent():
    return lambda: None


# The pool


def test_results_come_by_rank_from_the_same_processes_again(pool):
    assert pool.run(4, sum_ranks, 1) == [10.0] * 4
    first = pool.run(4, whereabouts)
    assert [entry[1:] for entry in first] == [(True, str(rank), "4", 1) for rank in range(4)]
    assert pool.run(2, "tests.proof.test_pool:whereabouts")[0][0] == first[0][0]
    assert pool.run(1, whereabouts) == [(first[0][0], False, "0", "1", 1)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "function, timeout, said",
    [
        (one_raises, 30, r"^rank 1 of 2: ValueError: the cause\nTraceback(.|\n)*in one_raises"),
        (one_dies, 30, "^rank 1 of 2: died with exit code -9$"),
        (one_hangs, 1, r"^rank 0, 1 of 2: no answer within 1 s\nrank 0(.|\n)*in sum_ranks(.|\n)*rank 1 (.|\n)*in one_hangs"),
        ("tests.proof.test_pool:nowhere", 30, "^rank [01] of 2: AttributeError: .*nowhere"),
        (cannot_be_sent, 30, "^rank [01] of 2: .*cannot_be_sent"),
    ],
    ids=["raises", "dies", "hangs", "is not there", "cannot answer"],
)
def test_failed_job_tells_its_first_cause_and_the_pool_works_on(pool, function, timeout, said):
    with pytest.raises(JobFailed, match=said):
        pool.run(2, function, timeout=timeout)
    assert pool.run(2, sum_ranks, 0) == [1.0, 1.0]


def test_workers_see_the_environment_of_the_moment(pool, monkeypatch):
    pool.run(1, read_variable, "SEEN")
    monkeypatch.setenv("SEEN", "now")
    assert pool.run(1, read_variable, "SEEN") == ["now"]


def test_fresh_job_has_new_processes(pool):
    (before,) = pool.run(1, whereabouts)
    (after,) = pool.run(1, whereabouts, fresh=True)
    assert before[0] != after[0]


def test_worker_that_died_between_jobs_is_replaced(pool):
    victim, _ = pool.run(2, whereabouts)
    os.kill(victim[0], signal.SIGKILL)
    pool.workers[0].process.join()
    assert pool.run(2, sum_ranks, 0) == [1.0, 1.0]


def test_what_a_pool_cannot_do_is_said_at_once(pool):
    with pytest.raises(ValueError, match="a world of 9 asked of a pool of 8"):
        pool.run(9, sum_ranks, 0)
    with pytest.raises(ValueError, match="cannot be imported by another process"):
        pool.run(1, lambda: None)


@pytest.mark.timeout(60)
def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\nfrom megatron.proof.pool import Pool\nif __name__ == '__main__':\n"
        "    print(*Pool(2).run(2, os.getpid), flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(workers) == 2
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_pool_starts_no_more_processes_than_asked_for():
    with Pool(8) as pool:
        pool.run(2, sum_ranks, 0)
        assert len(pool.workers) == 2
