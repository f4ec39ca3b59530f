"""Run a list of trainings in few processes, so that small runs do not each pay for start-up.

    python tools/run_list.py LIST [--processes 2]

A line of LIST is a command as a shell would read it: `pretrain_diff_gpt.py --num-layers 2 ...`. Finished runs are skipped;
a failed one is reported and the rest goes on (exit code 1 at the end). A signal or a kill switch ends the whole list with
its code (85, 86) once the runs under way are saved. With several processes each run's own lines are in its train.log only.
A run has one thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.stand_by()

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import time
from dataclasses import dataclass

from megatron.catalogue import ENTRY_POINTS, default_of
from megatron.config import Config, ConfigError, parse
from megatron.errors import KILLED, PREEMPTED, BadData, MissingInput, exits
from megatron.layout import find_place
from megatron.locks import is_held
from megatron.rundir.folders import read_file
from megatron.rundir.names import EXIT, RESULT
from megatron.scaling.run.execute import record_failure

DEFAULTS = {entry: default_of(entry) for entry in ENTRY_POINTS}


@dataclass(frozen=True)
class Member:
    """One line of the list: a config, or why there is none."""

    name: str
    cfg: Config | None
    mistakes: str = ""

    def finished(self) -> bool:
        return not self.cfg.train.skip_train and (Path(self.cfg.log.run_dir) / RESULT).exists()

    def record(self) -> dict:
        """Where the run stands, as plain JSON; loss (nats a token) and bound are None without a result."""
        folder = self.cfg and Path(self.cfg.log.run_dir)
        found = read_file(folder, RESULT) if folder and self.finished() else {}
        return {
            "name": self.name,
            "run_dir": folder and str(folder),
            "finished": bool(found),
            "loss": found.get("loss"),
            "bound": found.get("bound"),
            "mistakes": self.mistakes or None,
        }

    def flops(self) -> float:
        tokens = (self.cfg.train.train_samples or 0) * self.cfg.model.seq_length
        return tokens * self.cfg.flops_per_token() if self.cfg.model.vocab_size else 0.0


def read_list(path: Path) -> list[Member]:
    """Raises MissingInput or BadData."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise MissingInput(f"{path} cannot be read ({error.strerror}): give a file with a command a line") from None
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: byte {error.start} is not UTF-8, expected text with a command a line") from None
    return [read_member(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def read_member(line: str, where: str) -> Member:
    try:
        entry, *argv = shlex.split(line)
        objective = DEFAULTS[Path(entry).name]
    except (ValueError, KeyError):
        raise BadData(f"{where}: expected a line that starts with {' or '.join(DEFAULTS)}, found {line[:60]!r}") from None
    try:
        cfg = parse(argv, objective)
    except ConfigError as error:
        folder = next((value for flag, value in itertools.pairwise(argv) if flag in ("--run-dir", "--save")), None)
        if folder:
            record_failure(Path(folder), ConfigError.code, "; ".join(error.mistakes))
        return Member(Path(folder or where).name, None, "; ".join(error.mistakes))
    return Member(Path(cfg.log.run_dir).name, cfg)


def train(member: Member) -> int:
    """Run one member in this process. Returns its exit code and prints one line about it."""
    from megatron.training.pretrain import main as pretrain

    score = None
    if member.cfg.train.final_scores:
        from megatron.likelihood.final import score
    began, folder = time.monotonic(), Path(member.cfg.log.run_dir)
    before = stamp(folder / EXIT)
    with contextlib.redirect_stderr(Echo(sys.stderr)) as said:
        code = pretrain(member.cfg, score)  # a crash is its code 70: it does not end the others
    if code and stamp(folder / EXIT) == before and find_place(os.environ).rank == 0 and not is_held(folder):
        record_failure(folder, code, said.last)  # it ended before its folder was its own
    sys.stderr.write(f"{member.name} {summary(member, code)}, {time.monotonic() - began:.0f} s\n")  # whole: others write too
    return code


class Echo:
    """A stream that passes everything on and remembers the last line."""

    def __init__(self, stream):
        self.stream, self.last = stream, ""

    def write(self, text: str) -> int:
        self.last = text.strip().rpartition("\n")[2] or self.last
        return self.stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def stamp(path: Path) -> tuple[int, int] | None:
    """Tells a file from the one that was there before."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def summary(member: Member, code: int) -> str:
    if code in (PREEMPTED, KILLED):
        return f"stopped (exit code {code}): the same list goes on from what it saved"
    if code:
        return f"FAILED with exit code {code}; the reason is above"
    result = read_file(Path(member.cfg.log.run_dir), RESULT)
    loss = result.get("loss")
    if member.cfg.train.skip_train or not isinstance(loss, (int, float)):
        return "done"
    return f"done, loss {loss:.4f} ({result.get('bound')})"


def train_in_turn(members: list[Member]) -> list[int]:
    """Exit codes of the members that were started; a stop ends the list."""
    codes = []
    for member in members:
        codes.append(train(member))
        if codes[-1] in (PREEMPTED, KILLED):
            break
    return codes


def work(waiting, codes, ending) -> None:
    """One process of several: takes the next member until none is left or one was stopped."""
    stopping.stand_by()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.ASKED)  # what came while it was imported comes now
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        while not ending.is_set() and (member := waiting.get()) is not None:
            code = train(member)
            codes.put(code)
            if code in (PREEMPTED, KILLED):
                ending.set()


def train_side_by_side(members: list[Member], processes: int) -> list[int]:
    """The same over several processes, the longest run first. A process that dies counts as one failure."""
    spawn = multiprocessing.get_context("spawn")
    waiting, codes, ending = spawn.Queue(), spawn.SimpleQueue(), spawn.Event()
    for member in sorted(members, key=Member.flops, reverse=True) + [None] * processes:
        waiting.put(member)
    workers = [spawn.Process(target=work, args=(waiting, codes, ending)) for _ in range(processes)]

    def forward(number: int, _frame) -> None:
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGTERM if number == signal.SIGINT else number)

    with stopping.held_back(stopping.ASKED):
        for worker in workers:
            worker.start()
        for number in stopping.ASKED:  # a terminal sends SIGINT to the workers as well, and a second one would end them at once
            signal.signal(number, forward)
    for worker in workers:
        worker.join()
    waiting.cancel_join_thread()  # what nobody took is not an error
    found = [PREEMPTED if worker.exitcode == PREEMPTED else 70 for worker in workers if worker.exitcode]
    while not codes.empty():
        found.append(codes.get())
    return found


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@exits
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run_list.py", allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("list", type=Path, metavar="LIST", help="file with a command a line")
    parser.add_argument("--processes", type=int, help="run this many at a time [one a core]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    given = parser.parse_args(argv)
    if given.processes is not None and given.processes < 1:
        parser.error(f"--processes {given.processes} must be at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; a second thread slows a tiny model down
    members = read_list(given.list)
    wrong = [m for m in members if m.cfg is None]
    for member in wrong:
        print(f"{member.name} FAILED: {member.mistakes}", file=sys.stderr)
    done = [m for m in members if m.cfg and m.finished()]
    for member in done:
        print(f"{member.name} is finished: skipped", file=sys.stderr)
    waiting = [m for m in members if m.cfg and m not in done]
    processes = min(given.processes or num_cores(), len(waiting))
    with contextlib.redirect_stdout(sys.stderr if given.json else sys.stdout):
        codes = train_side_by_side(waiting, processes) if processes > 1 else train_in_turn(waiting)
    if given.json:
        print(json.dumps([member.record() for member in members], indent=1))
    failures = len(wrong) + sum(code not in (0, PREEMPTED, KILLED) for code in codes)
    if len(members) > 1:
        print(f"{len(members)} runs: {codes.count(0)} done, {len(done)} were finished, {failures} failed", file=sys.stderr)
    return next((code for code in (KILLED, PREEMPTED) if code in codes), int(failures > 0))


if __name__ == "__main__":
    code = main()
    stopping.ignore()
    sys.exit(code)
