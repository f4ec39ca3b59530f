"""Who is still there. A thread beside the training tells the other ranks that this one lives, and where it is.

Each beat goes to the store that all ranks share. Rank 0 reads them; when a rank ended, died or hangs, it decides once what is
said and which code all exit with. Only when rank 0 itself is silent do the others decide on their own.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch.distributed as dist

import megatron
from megatron.errors import PEER_LOST, PREEMPTED, Refusal, Unsaid
from megatron.files import replace_file
from megatron.layout import Place
from megatron.rundir.names import EXIT

BEAT_SECONDS = 1.0
SILENT_SECONDS = 2.5  # once a collective broke, a rank without a sign of life for so long is the one that was lost
STUCK_SECONDS = 2.0  # then the main thread will not leave its collective by itself
SETTLE_SECONDS = 10.0  # to find out who was lost, and to close this process's files
BROKEN_COLLECTIVE = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
NUM_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What one rank says of itself."""

    number: int = 0  # never the same twice while its thread runs; 0: not heard yet
    rank: int
    host: str = ""
    step: int = 0
    phase: str = "starting"
    at: str = ""  # where in our code its main thread is
    state: str = "ok"  # or broken: a collective failed; or ended: it goes down for a reason of its own
    code: int = 0
    reason: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} at step {self.step}, {self.phase}{f' in {self.at}' if self.at else ''}"


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A rank's newest beat, and for how many seconds there was no newer one and no other state."""

    beat: Beat
    silent: float
    unchanged: float

    def __str__(self) -> str:
        if not self.beat.number:
            return f"rank {self.beat.rank}, which did not start in {self.silent:.0f} s"
        return f"{self.beat}, heard {self.silent:.0f} s ago"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why all ranks end, the exit code of all, and the rank that it began with."""

    code: int
    reason: str
    rank: int
    step: int
    decided_by: int = 0


class Listener:
    """When each rank was last heard. Only this process's clock counts."""

    def __init__(self):
        self.began = time.monotonic()
        self.known: dict[int, tuple[Beat, float, float]] = {}  # rank -> (beat, when it came, when its state began)

    def hear(self, rank: int, text: bytes) -> Heard:
        now, beat = time.monotonic(), Beat(**json.loads(text))
        before, came, began = self.known.get(rank, (beat, now, now))
        self.known[rank] = (beat, came if beat.number == before.number else now, began if beat.state == before.state else now)
        return self.recall(rank)

    def recall(self, rank: int) -> Heard:
        now = time.monotonic()
        beat, came, began = self.known.get(rank, (Beat(rank=rank), self.began, self.began))
        return Heard(beat=beat, silent=now - came, unchanged=now - began)


def judge(ranks: Sequence[Heard], limit_seconds: float) -> Ending | None:
    """What all beats together mean; None while nothing is wrong, or nothing certain yet."""
    for beat in (r.beat for r in ranks if r.beat.state == "ended"):
        return Ending(code=beat.code, reason=f"{beat}: {beat.reason}", rank=beat.rank, step=beat.step)
    broken = [r for r in ranks if r.beat.state == "broken"]
    silent = [r for r in ranks if r.beat.state == "ok" and r.silent > (SILENT_SECONDS if broken else limit_seconds)]
    if silent:
        return lost(silent, "died or hung")
    if not broken or max(r.unchanged for r in broken) < 2 * SILENT_SECONDS:
        return None
    absent = [r for r in ranks if r.beat.state == "ok"]
    return lost(absent, "did not come where the others wait") if absent else lost(broken, "waited for each other in vain")


def lost(ranks: Sequence[Heard], what: str, decided_by: int = 0) -> Ending:
    """An ending that names these ranks, with the last that each of them said."""
    names = "; ".join(map(str, ranks[:NUM_NAMED])) + (f" and {len(ranks) - NUM_NAMED} more" if len(ranks) > NUM_NAMED else "")
    reason = f"{len(ranks)} of the run's processes {what}: {names}. Start the run again: it goes on from its last checkpoint"
    return Ending(code=PEER_LOST, reason=reason, rank=ranks[0].beat.rank, step=ranks[0].beat.step, decided_by=decided_by)


class Watch:
    """Context manager around a run. A process alone has no thread; it only records its exit."""

    def __init__(self, place: Place, store: dist.Store | None, limit_seconds: float):
        self.rank, self.world_size, self.limit_seconds = place.rank, place.world_size, limit_seconds
        self.may_speak = is_spokesman(place)
        self.store, self.listener = store, Listener()
        self.ending: Ending | None = None
        self.own = Beat(rank=place.rank, host=platform.node())
        self.run_dir: Path | None = None
        self.say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
        self.wake, self.decided, self.unwinding, self.left = (threading.Event() for _ in range(4))

    def __enter__(self) -> Watch:
        if self.store:
            threading.Thread(target=self.talk, args=(self.store,), name="watch talk", daemon=True).start()
            threading.Thread(target=self.guard, name="watch guard", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.leave()

    def leave(self) -> None:
        """From here on the others may go."""
        for event in (self.left, self.unwinding, self.wake):
            event.set()

    def at(self, step: int, phase: str) -> None:
        """Where the main thread is from now on."""
        self.own = replace(self.own, step=step, phase=phase)

    def talk(self, store: dist.Store) -> None:
        """A thread: beat and listen until the run is over or lost. The store may keep it for ever when rank 0 hangs."""
        while not (self.left.is_set() or self.decided.is_set()):
            try:
                self.decide(self.exchange(store))
            except dist.DistError:  # the process that serves the store is gone
                self.decide(self.without_rank_0())
            self.wake.wait(min(BEAT_SECONDS, self.limit_seconds / 5))
            self.wake.clear()

    def guard(self) -> None:
        """Another: end this process once it is decided, or when rank 0 gave no sign for too long."""
        while not (self.left.is_set() or self.decided.wait(0.2)):
            patience = self.limit_seconds if self.own.state == "ok" else 2 * SILENT_SECONDS
            if self.rank and self.listener.recall(0).silent > patience:
                self.decide(self.without_rank_0())
        if self.ending:
            self.end(self.ending)

    def decide(self, ending: Ending | None) -> None:
        if ending and not self.decided.is_set():
            self.ending = ending
            self.decided.set()

    def exchange(self, store: dist.Store) -> Ending | None:
        """Say that this rank lives; hear all the others, or what rank 0 decided about them."""
        beat = replace(self.own, number=time.monotonic_ns(), at=place_of_main_thread())
        store.set(f"beat/{self.rank}", json.dumps(asdict(beat)))
        if self.rank == 0:
            ranks = [self.hear(store, rank) for rank in range(self.world_size)]
            ending = judge(ranks, self.limit_seconds)
            return ending and self.publish(store, ending, sum(r.silent < SILENT_SECONDS for r in ranks[1:]))
        self.hear(store, 0)
        if not store.check(["ending"]):
            return None
        ending = Ending(**json.loads(store.get("ending")))
        store.add("informed", 1)
        return ending

    def publish(self, store: dist.Store, ending: Ending, num_others: int) -> Ending:
        """Tell the others that are left, before this process goes and the store with it."""
        store.set("ending", json.dumps(asdict(ending)))
        deadline = time.monotonic() + 3 * BEAT_SECONDS
        while store.add("informed", 0) < num_others and time.monotonic() < deadline:
            time.sleep(0.05)
        return ending

    def hear(self, store: dist.Store, rank: int) -> Heard:
        key = f"beat/{rank}"
        if rank in self.listener.known or store.check([key]):
            return self.listener.hear(rank, store.get(key))
        return self.listener.recall(rank)

    def without_rank_0(self) -> Ending:
        return lost([self.listener.recall(0)], "died or hung", decided_by=self.rank)

    def end(self, ending: Ending) -> None:
        """Let the main thread close its files; end the process when it is stuck in a collective, or takes too long."""
        stuck = not self.unwinding.wait(STUCK_SECONDS)
        if stuck:
            self.tell(ending)
        if stuck or not self.left.wait(SETTLE_SECONDS):
            os._exit(ending.code)

    def tell(self, ending: Ending) -> None:
        """Say and record why all end, if it is for this rank to do so."""
        if ending.decided_by == self.rank and self.may_speak:
            self.say(f"PeerLost: {ending.reason}")
            self.record(ending.code, ending.reason, ending.step, ending.rank)

    def settle(self, error: Exception) -> Exception:
        """What to raise, now that `error` ended this process's part: all ranks give one reason, and one of them says it."""
        broken = is_broken_collective(error)
        code, reason = getattr(error, "code", Refusal.code), f"{type(error).__name__}: {error}"
        self.own = replace(self.own, state="broken" if broken else "ended", code=code, reason=reason)
        self.unwinding.set()
        self.wake.set()
        if self.store and not self.left.is_set():
            self.decided.wait(SETTLE_SECONDS)
        if broken:
            ending = self.ending or Ending(
                code=PEER_LOST,
                reason=f"lost the other processes: {error}",
                rank=self.rank,
                step=self.own.step,
                decided_by=self.rank,
            )
            self.tell(ending)
            return Unsaid(ending.code)
        if self.ending and self.ending.decided_by != self.rank and isinstance(error, Refusal):
            return Unsaid(self.ending.code)
        self.record(code, reason, self.own.step, self.rank)
        return error

    def record(self, code: int, reason: str | None, step: int, rank: int = 0) -> None:
        """exit.json says what a launcher's own exit code may not; a folder that is lost stops nothing."""
        if self.run_dir:
            said = {"code": code, "reason": reason, "step": step, "rank": rank, "requeue": code in (PREEMPTED, PEER_LOST)}
            try:
                replace_file(self.run_dir / EXIT, json.dumps(said, indent=1).encode())
            except OSError as error:
                print(f"{self.run_dir / EXIT} cannot be written: {error.strerror}", file=sys.stderr)


def is_spokesman(place: Place) -> bool:
    """Whether this rank speaks where rank 0 cannot: one of each node, and the second of all."""
    return place.local_rank == 0 or place.rank == 1


def is_broken_collective(error: Exception) -> bool:
    """Whether another process's end is what failed here: torch has no class of errors for it."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN_COLLECTIVE)
    )


def place_of_main_thread() -> str:
    """The innermost line of this project that the main thread is in: `core/mesh.py:79 all_reduce`."""
    root = str(Path(megatron.__file__).parent) + os.sep
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and not frame.f_code.co_filename.startswith(root):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(root)}:{frame.f_lineno} {frame.f_code.co_name}" if frame else ""
