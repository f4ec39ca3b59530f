"""The pool of warm processes, and the tool that compares layouts on it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron.core.checkpoint import Piece
from tools import verify_layouts
from tools.verify_layouts import JobFailed, Pool, fingerprint, joined, read_layout, same, within

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
    assert pool.run(2, "tests.tools.test_verify_layouts:whereabouts")[0][0] == first[0][0]
    assert pool.run(1, whereabouts) == [(first[0][0], False, "0", "1", 1)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "function, timeout, said",
    [
        (one_raises, 30, r"^rank 1 of 2: ValueError: the cause\nTraceback(.|\n)*in one_raises"),
        (one_dies, 30, "^rank 1 of 2: died with exit code -9$"),
        (one_hangs, 1, r"^rank 0, 1 of 2: no answer within 1 s\nrank 0(.|\n)*in sum_ranks(.|\n)*rank 1 (.|\n)*in one_hangs"),
        ("tests.tools.test_verify_layouts:nowhere", 30, "^rank [01] of 2: AttributeError: .*nowhere"),
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
        "import os, signal\nfrom tools.verify_layouts import Pool\nif __name__ == '__main__':\n"
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


# The comparison


def test_fingerprint_of_pieces_adds_up_to_that_of_the_whole():
    whole = torch.randn(6, 5)
    total = fingerprint(Piece(name="w", shape=(6, 5), start=(0, 0), tensor=whole))
    cut = [Piece(name="w", shape=(6, 5), start=(a, b), tensor=whole[a : a + 3, b : b + 2]) for a in (0, 3) for b in (0, 2, 4)]
    assert sum(map(fingerprint, cut)) % 2**64 == total
    swapped = whole[torch.tensor([1, 0, 2, 3, 4, 5])]
    assert fingerprint(Piece(name="w", shape=(6, 5), start=(0, 0), tensor=swapped)) != total
    scalar = torch.tensor(3.0)
    assert fingerprint(Piece(name="step", shape=(), start=(), tensor=scalar)) != fingerprint(
        Piece(name="step", shape=(), start=(), tensor=scalar + 1)
    )


def test_ranks_that_disagree_agree_with_nobody():
    records = [verify_layouts.Record(losses=[loss], samples={0: sample}) for loss, sample in ((1.0, "a"), (2.0, "b"))]
    whole = joined(records)
    assert not within([whole.losses[0] - 1.0], 10.0).passed
    assert not same(whole.samples, {0: "a"}).passed and not same(whole.samples, {0: "b"}).passed


def test_layout_is_read_from_its_name():
    layout = read_layout("pp2xdp2+interleaved+dropout+zero1", num_layers=8)
    assert layout.world_size == 4
    assert " ".join(layout.flags) == (
        "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 2 --pipeline-schedule "
        "interleaved --num-layers-per-virtual-pipeline-stage 2 --zero-stage 1"
    )
    assert " ".join(layout.experiment) == "--hidden-dropout 0.1 --attention-dropout 0.1"


# The tool, in this process


def run(capsys, *words):
    code = verify_layouts.main([*map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_tool_prints_a_table_and_leaves_with_0(capsys):
    code, out, err = run(capsys, "--layouts", "tp1+micro1,dp2", "--objective", "mdm", "--steps", 2, "--checkpoints")
    assert (code, err) == (0, "")
    assert out.count("same bits") == 6 and "2 of 2 layouts do what one process does" in out


def test_layout_with_another_seed_is_found_out(capsys, monkeypatch):
    monkeypatch.setitem(verify_layouts.MODIFIERS, "micro1", "--seed 99")
    code, out, err = run(capsys, "--layouts", "tp1+micro1", "--objective", "ar", "--steps", 2)
    assert code == 1 and "ar tp1+micro1: differs from one process" in err
    assert "32 of 32 differ" in out and out.count(" > ") == 3 and "0 of 1 layouts" in out


def test_layout_that_fails_is_named_with_its_cause(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(verify_layouts.MODIFIERS, "micro1", f"--data-path {tmp_path}/gone")
    code, out, err = run(capsys, "--layouts", "tp1+micro1", "--objective", "ar", "--steps", 2)
    assert code == 1 and "failed" in out and "ar tp1+micro1: rank 0 of 1: MissingInput:" in err


def test_own_flags_are_verified_at_the_layout_they_name(capsys, corpus):
    flags = [
        "--num-layers",
        2,
        "--hidden-size",
        32,
        "--num-attention-heads",
        2,
        "--seq-length",
        16,
        "--global-batch-size",
        4,
        "--lr",
        "1e-3",
        "--device",
        "cpu",
        "--data-path",
        corpus,
        "--split",
        "80,20,0",
        "--tokenizer-type",
        "ByteTokenizer",
    ]
    code, out, err = run(capsys, "--objective", "ar", "--steps", 2, "--", *flags, "--tensor-model-parallel-size", 2)
    assert (code, err) == (0, "") and "as given" in out and "1 of 1" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (("--layouts", "tp2+magic"), "tp2+magic: expected sizes such as tp2xpp2xdp2, and behind a + any of sp, "),
        (("--layouts", "tp0"), "tp0: expected sizes"),
        (("--layouts", "tp3"), "tp3: "),
        (("--layouts", "tp2", "--zero-stage", "1"), "--layouts tp2: the other flags name a layout too; give it in one way"),
        (("--layouts", "tp4xpp4"), "it needs 16 processes, and there is room for 8"),
        (("--hidden-sice", "3"), "--hidden-sice is not a flag; did you mean --hidden-size?"),
    ],
)
def test_what_cannot_be_verified_is_refused_before_anything_starts(capsys, words, said):
    code, out, err = run(capsys, *words)
    assert code == 2 and said in err and "Traceback" not in err


def test_of_the_usual_list_what_does_not_fit_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(verify_layouts, "LAYOUTS", ["tp1", "tp4xpp4"])
    code, out, _ = run(capsys, "--objective", "ar", "--steps", 2)
    assert code == 0 and "left out: tp4xpp4: it needs 16 processes" in out and "1 of 1" in out


def test_pool_starts_no_more_processes_than_asked_for():
    with Pool(8) as pool:
        pool.run(2, sum_ranks, 0)
        assert len(pool.workers) == 2
