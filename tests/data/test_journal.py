"""What a run that was ended has left is taken over, byte for byte, and nothing that is damaged or belongs to another run."""

from contextlib import ExitStack

import numpy as np
import pytest

from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.journal import Journal, WorkFolder
from megatron.data.text_files import Mark
from megatron.errors import BadData, CannotWrite

KEY = {"inputs": [["a", 1, 2]], "flag": "x"}
ONES = np.ones(1 << 19, np.uint16)  # 1 MiB: what a writer puts on disk at once


class Killed(Exception):
    """Ends a run between two statements, as kill -9 would, as far as files go."""


def run(folder, rounds, stop=None, key=KEY):
    """Two keys, one document of each a round and a note after it.  -> the progress that the run began with"""
    with WorkFolder(folder, "out", key) as work, ExitStack() as stack:
        writers = [stack.enter_context(IndexedWriter(work.path("out", f"out_{n}"))) for n in range(2)]
        journal = stack.enter_context(Journal(work, writers))
        begun = journal.progress.mark.line
        for number in range(begun, rounds):
            for n in range(2):
                journal.add(n, ONES * (2 * number + n), np.array([len(ONES)]))
            journal.add_reject("bad", {"line": number})
            journal.progress.mark = Mark(0, 10 * number, number + 1)
            journal.note()
            if number == stop:
                raise Killed
        stack.close()
        work.finish()
        work.publish(folder, (".bin", ".meta.json", ".idx"))
        return begun, dict(journal.progress.rejects)


def check(folder, rounds):
    for n in range(2):
        data = IndexedDataset(folder / f"out_{n}")
        assert [int(data.document(i)[-1]) for i in range(data.num_documents)] == [2 * i + n for i in range(rounds)]
    names = [f"out_{n}.{end}" for n in range(2) for end in ("bin", "idx", "meta.json")]
    assert sorted(path.name for path in folder.iterdir()) == names


def stopped(folder, *stops):
    for stop in stops:
        with pytest.raises(Killed):
            run(folder, 9, stop)
    assert [path.name for path in folder.iterdir()] == [".out.work"]
    return folder / ".out.work"


def test_a_run_goes_on_after_any_number_of_ends(tmp_path):
    stopped(tmp_path, 2, 5)
    begun, rejects = run(tmp_path, 9)
    assert begun == 6 and rejects == {"bad": 9}
    check(tmp_path, 9)


@pytest.mark.parametrize(
    "name, change, begun",
    [
        ("1.ids", lambda data: data[: 3 << 20] + b"\x55" + data[(3 << 20) + 1 :], 3),  # a flipped byte in the fourth document
        ("0.ids", lambda data: data[:-1], 5),
        ("0.ids", lambda data: b"", 0),
        ("1.sizes", lambda data: data[:-1], 5),
        ("0.sizes", lambda data: data[:4] + b"\x01" + data[5:], 1),
        ("journal.jsonl", lambda data: data[:-5], 5),
        ("journal.jsonl", lambda data: b"", 0),
        ("rejects.jsonl", lambda data: data[:-1], 5),
    ],
)
def test_only_what_is_whole_is_taken_over(tmp_path, name, change, begun):
    path = stopped(tmp_path, 5) / name
    path.write_bytes(change(path.read_bytes()))
    assert run(tmp_path, 9) == (begun, {"bad": 9})
    check(tmp_path, 9)


def test_a_run_that_ends_while_it_takes_over_loses_nothing(tmp_path, monkeypatch):
    stopped(tmp_path, 5)
    calls = []

    def dies(self, *given):
        calls.append(1)
        if len(calls) == 6:
            raise Killed
        return real(self, *given)

    real = IndexedWriter.add_documents
    monkeypatch.setattr(IndexedWriter, "add_documents", dies)
    stopped(tmp_path, None)
    monkeypatch.undo()
    assert run(tmp_path, 9)[0] == 6
    check(tmp_path, 9)


def test_work_of_other_arguments_or_inputs_is_dropped(tmp_path):
    stopped(tmp_path, 5)
    assert run(tmp_path, 9, key={**KEY, "inputs": [["a", 1, 3]]})[0] == 0
    check(tmp_path, 9)


def test_a_second_run_is_refused_and_harms_nothing(tmp_path):
    with WorkFolder(tmp_path, "out", KEY):
        with pytest.raises(CannotWrite, match="another run"):
            with WorkFolder(tmp_path, "out", KEY):
                raise AssertionError("both run")
        with WorkFolder(tmp_path, "other", KEY):
            pass
    run(tmp_path, 2)
    check(tmp_path, 2)


@pytest.mark.parametrize(
    "error, inputs, kept", [(BadData, KEY["inputs"], False), (Killed, KEY["inputs"], True), (Killed, [None], False)]
)
def test_what_cannot_be_gone_on_with_is_not_kept(tmp_path, error, inputs, kept):
    with pytest.raises(error), WorkFolder(tmp_path, "out", {**KEY, "inputs": inputs}) as work:
        work.notes = 1
        raise error
    assert bool(list(tmp_path.iterdir())) == kept
