"""Whatever write fails, wherever a run is killed, whichever of its files is damaged: one sentence, and the same end.

Quick: a few of the points; `-m slow`: each of them, and more errors and mutations.
"""

import errno
import random
import shutil

import pytest

from megatron.core import checkpoint
from tests.failpoints import in_fork
from tests.training.conftest import Trainer, records

FLAGS = {"train_iters": 6, "save_interval": 2, "eval_interval": 3, "keep_last": 2}
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)
CODES = {0, 65, 66, 73, 77, 78}


@pytest.fixture
def trial(tmp_path, corpus, capfd, request):
    """A run's end without faults, and how many points it has."""
    trainer, whole, flags = Trainer(corpus), tmp_path / "whole", FLAGS | getattr(request, "param", {})
    code, points = in_fork(lambda: trainer.run(whole, load=whole, **flags), whole)
    assert code == 0 and len(points) > 30
    return Trial(trainer, tmp_path, points, capfd, flags)


class Trial:
    def __init__(self, trainer, folder, points, capfd, flags):
        self.trainer, self.folder, self.points, self.capfd, self.flags = trainer, folder, points, capfd, flags
        self.records, self.saved = records(folder / "whole"), self.hashes(folder / "whole")

    def hashes(self, run):
        return {entry["name"]: entry["sha256"] for entry in checkpoint.load(run, say=str).entries}

    def run(self, name, number=0, action=None):
        run = self.folder / name
        code, points = in_fork(lambda: self.trainer.run(run, load=run, **self.flags), run, number, action)
        said = "".join(self.capfd.readouterr())
        assert "Traceback" not in said, said
        return code, points[number - 1] if 0 < number <= len(points) else "", said

    def comes_to_the_same_end(self, name, where):
        run = self.folder / name
        for path in checkpoint.find(run):
            checkpoint.verify(path)
        code, _, said = self.run(name)
        assert code == 0, (where, said)
        assert records(run) == self.records and self.hashes(run) == self.saved, where


def sample(points, num, seed=0):
    return sorted(random.Random(seed).sample(range(1, len(points) + 1), num))


def killed(trial, numbers):
    for number in numbers:
        code, point, _ = trial.run(f"kill-{number}", number, "kill")
        assert code == -9, point
        trial.comes_to_the_same_end(f"kill-{number}", f"killed at {number}: {point}")


def failing(trial, cases):
    for number, error in cases:
        name = f"{errno.errorcode[error]}-{number}"
        code, point, said = trial.run(name, number, error)
        assert code in (0, 73), (name, point, code, said)
        trial.comes_to_the_same_end(name, f"{name}: {point}")


def test_killed_at_some_points_a_run_comes_to_the_same_end(trial):
    killed(trial, sample(trial.points, 3))


def test_some_writes_that_fail(trial):
    failing(trial, [(number, errno.ENOSPC) for number in sample(trial.points, 2, 1)])
    removed = next(number for number, point in enumerate(trial.points, 1) if point == "os.remove exit.json")
    failing(trial, [(removed, errno.EIO)])


@pytest.mark.slow
@pytest.mark.parametrize("trial", [{}, {"async_save": True}], indirect=True)
def test_killed_at_every_point_a_run_comes_to_the_same_end(trial):
    killed(trial, range(1, len(trial.points) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial, error", [*(({}, error) for error in ERRORS), ({"async_save": True}, errno.ENOSPC)], indirect=["trial"]
)
def test_every_write_that_fails(trial, error):
    failing(trial, [(number, error) for number in range(1, len(trial.points) + 1)])


# Damage


MUTATIONS = {
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "empty": lambda data, rng: b"",
    "zeros": lambda data, rng: bytes(len(data)),
    "flipped": lambda data, rng: (
        data[: (at := rng.randrange(len(data)))] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    ),
    "list": lambda data, rng: b"[1, [2]]\n",
    "number": lambda data, rng: b"7\n",
    "doubled": lambda data, rng: data + data,
    "text for numbers": lambda data, rng: data.replace(b": 1", b': "x"'),
    "lists for numbers": lambda data, rng: data.replace(b": 2", b": []"),
}


def mutated(trial, num, seed):
    """A stopped run, `num` of its files damaged one at a time, and started again: it says so or it comes to the same end."""
    stopped, rng = trial.folder / "stopped", random.Random(seed)
    code, _ = in_fork(lambda: trial.trainer.run(stopped, load=stopped, **FLAGS | {"exit_interval": 4}), stopped)
    assert code == 85
    files = sorted(path.relative_to(stopped) for path in stopped.rglob("*") if path.is_file() and path.stat().st_size)
    outcomes = {code: 0 for code in CODES}
    for number in range(num):
        name, (what, mutate) = files[number % len(files)], rng.choice(list(MUTATIONS.items()))
        run = trial.folder / f"damage-{number}"
        shutil.copytree(stopped, run)
        (run / name).write_bytes(mutate((run / name).read_bytes(), rng))
        code, _, said = trial.run(run.name)
        assert code in CODES, (seed, number, str(name), what, said)
        outcomes[code] += 1
        if code == 0:
            assert trial.hashes(run) == trial.saved, (seed, number, str(name), what)
            trained = [record["step"] for record in records(run) if record["kind"] == "train"]
            missing = len(trial.records) - len(records(run))
            assert trained == list(range(1, 7)) or "moved to metrics.superseded.jsonl" in said, (number, what, missing)
        shutil.rmtree(run)
    return outcomes


def test_some_damage_of_a_run_folder(trial):
    assert mutated(trial, 6, seed=1)


@pytest.mark.slow
def test_damage_of_every_file_of_a_run_folder(trial):
    outcomes = mutated(trial, 150, seed=2)
    print(outcomes)
    assert outcomes[0] > 50
