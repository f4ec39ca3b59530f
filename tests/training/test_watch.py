"""Ranks that die, hang, fail or do not come: the others end soon, with one message that names rank, step and phase."""

import json
import signal
import time

import pytest

from megatron.layout import Place
from megatron.training.watch import Beat, Heard, Listener, Watch, judge


def heard(rank, silent=0.0, unchanged=0.0, **said):
    said = {"number": 1, "host": "n1", "step": 7, "phase": "training"} | said
    return Heard(beat=Beat(rank=rank, **said), silent=silent, unchanged=unchanged)


def test_nothing_is_wrong_while_all_beat():
    assert judge([heard(0), heard(1, silent=9.9)], limit_seconds=10) is None
    assert judge([heard(0, state="broken", unchanged=1), heard(1)], limit_seconds=10) is None


@pytest.mark.parametrize(
    "ranks, code, rank, words",
    [
        ([heard(0), heard(1, silent=11)], 75, 1, "rank 1 on n1 at step 7, training, heard 11 s ago"),
        (
            [heard(0, state="broken"), heard(1, silent=3), heard(2, state="broken")],
            75,
            1,
            "1 of the run's processes died or hung",
        ),
        ([heard(0), heard(1, silent=11, number=0)], 75, 1, "rank 1, which did not start in 11 s"),
        (
            [heard(0, state="broken", unchanged=6), heard(1, at="core/head.py:9 f")],
            75,
            1,
            "did not come where the others wait: rank 1 on n1 at step 7, training in core/head.py:9 f",
        ),
        (
            [heard(0, state="broken", unchanged=6), heard(1, state="broken")],
            75,
            0,
            "2 of the run's processes waited for each other",
        ),
        ([heard(0, state="broken"), heard(1, state="ended", code=65, reason="BadData: no")], 65, 1, "training: BadData: no"),
        ([heard(r, silent=11) for r in range(10)], 75, 0, " and 2 more. Start the run again"),
    ],
)
def test_what_beats_mean(ranks, code, rank, words):
    ending = judge(ranks, limit_seconds=10)
    assert (ending.code, ending.rank, ending.step) == (code, rank, 7) and words in ending.reason


def test_a_listener_trusts_only_its_own_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    listener = Listener()
    beat = json.dumps({"number": 5, "rank": 1}).encode()
    listener.hear(1, beat)
    now[0] += 4
    assert listener.hear(1, beat).silent == 4
    assert listener.hear(1, json.dumps({"number": 6, "rank": 1}).encode()).silent == 0
    now[0] += 2
    assert listener.recall(2).silent == 6 and listener.recall(1).unchanged == 6


def test_a_process_alone_only_records_its_exit(tmp_path):
    with Watch(Place(), None, 1) as watch:
        watch.run_dir = tmp_path
        error = ValueError("no")
        assert watch.settle(error) is error
    assert json.loads((tmp_path / "exit.json").read_text()) == {
        "code": 70,
        "reason": "ValueError: no",
        "step": 0,
        "rank": 0,
        "requeue": False,
    }


@pytest.mark.parametrize(
    "number, victim",
    [(signal.SIGKILL, 1), (signal.SIGTSTP, 1), (signal.SIGKILL, 0), pytest.param(signal.SIGTSTP, 0, marks=pytest.mark.slow)],
)
def test_a_killed_or_hung_rank_ends_the_others(tmp_path, trainer, number, victim):
    run = tmp_path / "run"
    flags = {"train_iters": 1_000_000, "distributed_timeout": 5, "eval_iters": 0, "log_interval": 5, "save_interval": None}
    with trainer.ranks(run, **flags) as ranks:
        assert ranks.until(" iteration ")
        time.sleep(2.5)  # for a beat from within the training
        ranks.children[victim].send_signal(number)
        start = time.monotonic()
        codes, (said,) = ranks.end(1 - victim)
        assert time.monotonic() - start < 5 + 8
    told = json.loads((run / "exit.json").read_text())
    assert codes == [75] and (told["code"], told["rank"], told["requeue"]) == (75, victim, True) and told["step"] > 0
    assert f"processes died or hung: rank {victim} on " in said and f"at step {told['step']}, training in " in said
    assert "Traceback" not in said and "frame #" not in said and said.count("PeerLost") == 1
    if victim:
        assert "PeerLost: " in (run / "train.log").read_text()


def test_a_rank_that_does_not_come_is_told_from_a_dead_one(world):
    ranks = world("if rank == 1: time.sleep(1000)\nbarrier(mesh.control)", seconds=3)
    codes, said = ranks.end(timeout=40)
    assert codes == [75, 75] and "did not come where the others wait: rank 1 on " in said[0] and said[1] == ""


def test_one_ranks_own_refusal_is_the_reason_of_all(world):
    ranks = world("watch.at(3, 'saving')\nif rank == 1: raise errors.CannotWrite('no room')\nbarrier(mesh.control)")
    codes, said = ranks.end(timeout=30)
    assert codes == [73, 73] and said[1] == ""
    assert "PeerLost: rank 1 on " in said[0] and "at step 3, saving" in said[0] and "CannotWrite: no room" in said[0]


def test_one_ranks_own_mistake_shows_one_traceback(world):
    codes, said = world("if rank == 1: {}['x']\nbarrier(mesh.control)").end(timeout=30)
    assert codes == [70, 70] and said[1].count("Traceback") == 1 and "Traceback" not in said[0] and "KeyError: 'x'" in said[0]


def test_a_refusal_that_all_share_is_said_once(world):
    codes, said = world("raise errors.BadData('damaged')").end(timeout=30)
    assert codes == [65, 65] and said[0] == "BadData: damaged\n" and said[1] == ""


def test_leaving_is_no_loss_and_the_first_waits_for_the_last(world):
    codes, said = world("if rank == 1: time.sleep(2)\nif rank == 0: print(time.monotonic())\nelse: print(time.monotonic())").end()
    assert codes == [0, 0] and float(said[1]) - float(said[0]) > 1
