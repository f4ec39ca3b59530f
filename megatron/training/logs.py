"""One record of metrics, many views: log line, metrics.jsonl, metrics.csv, TensorBoard, W&B, progress line.

metrics.jsonl is the record; everything else is a view of it and may fail without harm. No view ever stops a training.
"""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import secrets
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any

from megatron import config
from megatron.errors import CannotWrite, Refusal
from megatron.files import replace_file
from megatron.progress import ProgressLine
from megatron.rundir.names import LOG, METRICS, METRICS_TABLE, SUPERSEDED
from megatron.rundir.records import decode, encode

RETRIED = (METRICS, "log line")
NUM_SHOWN = 3  # damaged lines
NUM_PENDING = 10_000  # records kept in memory while metrics.jsonl cannot be written
FLUSH_SECONDS = 30  # TensorBoard events reach the disk at least this often, while records come
WANDB_INIT_SECONDS = 10  # then the run goes on offline

AXES = ("step", "samples", "tokens", "epoch", "flops", "time")
SETTINGS = (
    "batch_size",
    "seq_length",
    "world_size",
    "skipped_in_interval",
    "rows",
    "num_mc",
    "questions",
    "passes",
)  # recorded, but no curves
PARTS = ("text_loss", "vector_loss", "loss_of_text")  # of a loss that is a sum
COLUMNS = (
    "kind",
    *AXES,
    "loss",
    "loss_se_noise",
    "loss_se_noise_df",
    "loss_se_data",
    "perplexity",
    "bits_per_byte",
    "accuracy",
    "bound",
    "rows",
    "num_mc",
    "lr",
    "grad_norm",
    "clipped_norm",
    "params_norm",
    "batch_size",
    "seq_length",
    "step_seconds",
    "tokens_per_sec",
    "tokens_per_gpu_per_sec",
    "world_size",
    "tflops",
    "mfu",
    "executed_tflops",
    "hfu",
    "memory_bytes",
    "utilization",
    "skipped",
    "skipped_in_interval",
    "accuracy_se",
    "accuracy_norm",
    "answer_bpb",
    "answer_bpb_se",
    "k",
    "ignore_acc",
    "gradient_noise_scale",
    *PARTS,
)


class Log:
    """The only way a run speaks. A sink that fails is named once and switched off; metrics.jsonl is tried again.

    `resumed_step`: records of later steps came from a process that ended, and move to metrics.superseded.jsonl;
    None adds to what is there. `wandb_id`: what a checkpoint knows. After construction, the id in use, or None.
    """

    def __init__(
        self,
        cfg: config.Log,
        run_dir: Path,
        name: str,
        total_steps: int,
        config_dict: dict,
        resumed_step: int | None = None,
        wandb_id: str | None = None,
    ):
        self.run_dir, self.total_steps = Path(run_dir), total_steps
        self.failed: set[str] = set()
        self.missed: Counter[str] = Counter()
        self.sinks: dict[str, Any] = {}
        self.progress = None
        if is_terminal():
            self.progress = self.attempt("progress line", StepBar, name, total_steps, resumed_step or 0)
        self.sinks[METRICS] = metrics = MetricsFile(self.run_dir, resumed_step)
        self.attempt(METRICS, metrics.flush)
        if metrics.num_superseded:
            later = "" if resumed_step is None else f"later than step {resumed_step}, written twice or "
            self.say(f"{METRICS}: {metrics.num_superseded} lines {later}cut short moved to {SUPERSEDED}")
        if metrics.fault:
            self.say(f"{METRICS}: {metrics.fault}; they moved to {SUPERSEDED}")
        self.open(METRICS_TABLE, MetricsTable, self.run_dir / METRICS_TABLE, metrics.kept)
        if cfg.tensorboard_dir:
            self.open("tensorboard", TensorBoard, cfg, metrics.kept)
        if cfg.wandb_project and not cfg.no_wandb:
            self.open("wandb", WeightsAndBiases, cfg, self.run_dir, name, config_dict, wandb_id, self.say)
        self.wandb_id = self.sinks["wandb"].id if "wandb" in self.sinks else None
        metrics.kept = []

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind, error, *_) -> None:
        if isinstance(error, Refusal):  # the terminal hears it from the program's exit
            self.attempt(LOG, append, self.run_dir / LOG, f"{kind.__name__}: {error}\n".encode())
        self.close(1 if kind else 0)

    def say(self, line: str) -> None:
        """One line for stdout and train.log."""
        self.attempt("stdout", self.print, line)
        self.attempt(LOG, append, self.run_dir / LOG, f"{line}\n".encode(errors="backslashreplace"))

    def record(self, record: dict) -> None:
        """Hand one record to every sink. `kind` is train, val, test or event; an event's name is in `event`."""
        for line in self.attempt("log line", lines, record, self.total_steps) or []:
            self.say(line)
        for name, sink in self.sinks.items():
            self.attempt(name, sink.write, record)
        if self.progress:
            self.attempt("progress line", self.progress.write, record)

    def advance(self, step: int) -> None:
        """Move the progress line; free where there is none."""
        if self.progress:
            self.attempt("progress line", self.progress.advance, step)

    def line_of_rows(self, total: int) -> ProgressLine | None:
        """What shows how far an evaluation has come; nothing where a bar holds the terminal."""
        return None if self.progress else ProgressLine(total, "rows")

    def close(self, exit_code: int = 0) -> None:
        """Flush and close every sink, and say what each of them missed. `exit_code` is what W&B shows."""
        self.attempt(METRICS, self.sinks[METRICS].flush)
        self.missed[METRICS] = self.sinks[METRICS].num_unwritten()
        self.finish("tensorboard")
        self.finish("wandb", exit_code)
        for name, count in self.missed.items():
            if count:
                self.say(f"{name} missed {count} {'lines' if name in ('stdout', LOG) else 'records'}")
        if self.progress:
            self.attempt("progress line", self.progress.stop)
            self.progress = None

    def require_record(self) -> None:
        """Raises CannotWrite where metrics.jsonl lacks records: a run without them is not done."""
        metrics = self.sinks[METRICS]
        self.attempt(METRICS, metrics.flush)
        if count := metrics.num_unwritten():
            raise CannotWrite(
                f"{self.run_dir / METRICS} lacks {count} records, which could not be written: make room and start again, "
                "from a checkpoint that the record reaches"
            )

    def open(self, name: str, sink: Callable, *given) -> None:
        opened = self.attempt(name, sink, *given)
        if opened is not None:
            self.sinks[name] = opened

    def finish(self, name: str, *given) -> None:
        if name in self.sinks and name not in self.failed:
            self.attempt(name, self.sinks[name].close, *given)

    def attempt(self, name: str, action: Callable, *given):
        """The one place where a sink's failure ends: said once and counted; then off, or tried again with the next record."""
        if name in self.failed and name not in RETRIED:
            self.missed[name] += 1
            return None
        try:
            result = action(*given)
        except Exception as error:
            self.missed[name] += 1
            if name not in self.failed:
                self.failed.add(name)
                fate = "failed and is tried again with the next record" if name in RETRIED else "is off"
                self.say(f"{name} {fate}: {reason(error)}; the run goes on")
            return None
        if name in self.failed:
            self.failed.discard(name)
            self.say(f"{name} is written again")
        return result

    def print(self, line: str) -> None:
        if self.progress and "progress line" not in self.failed:
            self.progress.console.out(line, highlight=False)
            return
        try:
            print(line, flush=True)
        except OSError:  # a closed pipe: Python's own flush at exit must not fail as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


class SilentLog:
    """What ranks other than the first have in place of a Log."""

    wandb_id = None

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, *_) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def record(self, record: dict) -> None:
        pass

    def require_record(self) -> None:
        pass

    def advance(self, step: int) -> None:
        pass

    def line_of_rows(self, total: int) -> None:
        pass


def is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def reason(error: Exception) -> str:
    """An exception in a few words, on one line."""
    if isinstance(error, ImportError):
        return f"{error.name or error} is not installed (pip install -e .[tracking])"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def append(path: Path, data: bytes) -> None:
    """Add whole lines to a file, or nothing: a write cut short is taken back. Opened anew: a lost folder is noticed."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        if file.write(data) != len(data):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


# The lines of stdout and train.log


def lines(record: dict, total_steps: int) -> list[str]:
    """What people and parsers read: Megatron-DeepSpeed's lines, and one of our own below each validation."""
    if record["kind"] == "train":
        return [train_line(record, total_steps)]
    if record["kind"] == "event":
        rest = "".join(f" {k}: {v} |" for k, v in record.items() if k not in ("kind", "event", "step", "time"))
        return [f" {record['event']} at iteration {record.get('step')} |{rest}"]
    if record["kind"].startswith("task-"):
        return [task_line(record)]
    line = evaluation_line(record)
    dashes = "-" * (len(line) + 1)
    return [dashes, line, dashes, error_line(record)]


def train_line(r: dict, total_steps: int) -> str:
    """Megatron-DeepSpeed's training line with the epoch added, and what the objective measures besides, by its own names.

    A step is skipped when its loss or gradient is not finite.
    """
    skipped = r["skipped_in_interval"]
    fields = [
        f"iteration {r['step']:8d}/{total_steps:8d}",
        f"consumed samples: {r['samples']:12d}",
        f"consumed tokens: {r['tokens']:12d}",
        f"epoch: {r['epoch']:.3f}",
        f"elapsed time per iteration (ms): {1000 * r['step_seconds']:.1f}",
        f"learning rate: {r['lr']:.3E}",
        f"global batch size: {r['batch_size']:5d}",
        f"lm loss: {r['loss']:.6E}",
        "loss scale: 1.0",
        f"grad norm: {r['grad_norm']:.3f}",
        f"params norm: {r['params_norm']:.3f}",
        f"actual seqlen: {r['seq_length']:5d}",
        f"number of skipped iterations: {skipped:3d}",
        f"number of nan iterations: {skipped:3d}",
        f"samples per second: {r['batch_size'] / r['step_seconds']:.3f}",
        f"tokens per gpu per second (tgs): {per_gpu(r):.3f}",
        f"TFLOPs: {r['tflops']:.2f}",
        f"executed TFLOPs: {r.get('executed_tflops', math.nan):.2f}",
        *(f"{name}: {value:.4g}" for name, value in r.items() if name not in COLUMNS),
    ]
    fields += [f"{name.replace('_', ' ')}: {r[name]:.6E}" for name in (*PARTS, "gradient_noise_scale") if name in r]
    return " " + " | ".join(fields) + " |"


def world_size(r: dict) -> int:
    """Records of the first versions, which may be resumed, do not say it: they had one process."""
    return r.get("world_size", 1)


def per_gpu(r: dict) -> float:
    return r["tokens_per_sec"] / world_size(r)


def evaluation_line(r: dict) -> str:
    name = r["kind"].partition("-")[2]
    split = " on test set" if r["kind"] == "test" else f" on set {name}" if name else ""
    ppl = f"lm loss PPL: {megatron_ppl(r):.6E} | " if has_likelihood(r) else ""
    return f" validation loss at iteration {r['step']}{split} | lm loss value: {r['loss']:.6E} | {ppl}"


def error_line(r: dict) -> str:
    """What Megatron's line lacks: both standard errors, bits per byte, accuracy, and what the loss is."""
    noise, rows = ("unknown" if r[name] is None else f"{r[name]:.6f}" for name in ("loss_se_noise", "loss_se_data"))
    few = f" ({r['loss_se_noise_df']:.0f} degrees of freedom)" if r.get("loss_se_noise_df") else ""
    unit = r.get("convention", {}).get("unit", "nats per token")
    return (
        f" {r['kind']} at iteration {r['step']} | {r['bound']} {unit}: {r['loss']:.6f} | "
        f"+- se_noise: {noise}{few} | +- se_data: {rows} | "
        + (f"bits per byte: {r['bits_per_byte']:.6f} | " if has_likelihood(r) else "")
        + f"accuracy: {r['accuracy']:.6f} |"
        + "".join(f" {name.replace('_', ' ')}: {r[name]:.6f} |" for name in PARTS if name in r)
    )


def task_line(r: dict) -> str:
    error, bits = ("unknown" if r[name] is None else f"{r[name]:.4f}" for name in ("accuracy_se", "answer_bpb_se"))
    return (
        f" {r['kind']} at iteration {r['step']} | accuracy: {r['accuracy']:.4f} +- {error} | a byte: {r['accuracy_norm']:.4f} | "
        f"{r['bound']} bits per byte of the right answer: {r['answer_bpb']:.4f} +- {bits} | {r['questions']} questions |"
    )


def has_likelihood(r: dict) -> bool:
    """Whether a validation's loss is an NLL or a bound on one."""
    return r.get("bound") != "denoising"


def megatron_ppl(r: dict) -> float:
    """Perplexity as Megatron caps it; not a number stays so."""
    return math.exp(min(r["loss"], 20.0))


# metrics.jsonl


class MetricsFile:
    """Appends records to metrics.jsonl; what cannot be written waits in memory, the oldest of NUM_PENDING giving way."""

    def __init__(self, run_dir: Path, resumed_step: int | None):
        self.path, self.resumed_step, self.ready = run_dir / METRICS, resumed_step, False
        self.pending: deque[str] = deque(maxlen=NUM_PENDING)
        self.num_lost = self.num_superseded = 0
        self.fault = ""
        self.kept: list[dict] = []

    def write(self, record: dict) -> None:
        line = encode(record)
        self.num_lost += len(self.pending) == NUM_PENDING
        self.pending.append(line)
        self.flush()

    def flush(self) -> None:
        if not self.ready:
            self.rewind()
        append(self.path, "".join(self.pending).encode())
        self.pending.clear()

    def rewind(self) -> None:
        """Make the file that of a run which never went beyond `resumed_step`; later, torn and odd lines and all but the
        last of a step's train records move aside."""
        before = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        before = [line for line in before if line.strip()]
        last = math.inf if self.resumed_step is None else self.resumed_step
        records, faults = [], []
        for number, line in enumerate(before, 1):
            record, fault = own_record(line)
            records.append(record)
            if fault and number < len(before):
                faults.append(f"line {number}: {fault}")
        newest = {record["step"]: number for number, record in enumerate(records) if record and record["kind"] == "train"}
        keep = [
            record is not None
            and record["step"] <= last
            and (self.resumed_step is None or record["kind"] != "train" or newest[record["step"]] == number)
            for number, record in enumerate(records)
        ]
        if not all(keep):
            append(self.path.with_name(SUPERSEDED), joined(compress(before, [not k for k in keep])))
        if before:
            replace_file(self.path, joined(compress(before, keep)))
        self.kept = [record for record, kept in zip(records, keep) if record is not None and kept]
        self.num_superseded, self.ready = keep.count(False) - len(faults), True
        self.fault = "; ".join(faults[:NUM_SHOWN]) + (f"; and {len(faults) - NUM_SHOWN} more lines" if faults[NUM_SHOWN:] else "")

    def num_unwritten(self) -> int:
        return self.num_lost + len(self.pending)


def own_record(line: bytes) -> tuple[dict | None, str]:
    """A record as a run writes it, or what keeps a line from being one."""
    try:
        record = decode(line)
    except ValueError as error:
        return None, str(error)
    missing = [name for name in ("kind", "step") if record.get(name) is None]
    return (None, f"it has no {missing[0]}") if missing else (record, "")


def joined(whole: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in whole)


class MetricsTable:
    """metrics.csv: the numbers of metrics.jsonl, a row a record, in fixed columns; made anew from the record at each start."""

    def __init__(self, path: Path, kept: list[dict]):
        self.path = path
        replace_file(path, row(COLUMNS) + b"".join(row(map(r.get, COLUMNS)) for r in kept if r["kind"] != "event"))

    def write(self, record: dict) -> None:
        if record["kind"] != "event":
            append(self.path, row(map(record.get, COLUMNS)))


def row(cells: Iterable) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue().encode()


# TensorBoard and W&B


def simple_tags(record: dict) -> dict[str, float]:
    """train/loss, val/loss_se_noise and so on: every number of a record that is a curve."""
    return {
        f"{record['kind']}/{name}": value
        for name, value in record.items()
        if isinstance(value, (int, float)) and name not in AXES + SETTINGS
    }


def megatron_tags(r: dict, cfg: config.Log) -> dict[str, float]:
    """The tags of Megatron-DeepSpeed, gated by its own flags. It scores no tasks in training."""
    if r["kind"].startswith("task-"):
        return {}
    if r["kind"] != "train":
        split, _, name = r["kind"].partition("-")
        tag = f"lm-loss-validation/lm loss {'validation' if split == 'val' else 'test'}{name and f' {name}'}"
        ppl = {f"{tag} ppl": megatron_ppl(r)} if cfg.log_validation_ppl_to_tensorboard and has_likelihood(r) else {}
        return {tag: r["loss"]} | ppl
    tags = {
        "lm-loss-training/lm loss": r["loss"],
        "learning-rate/learning-rate": r["lr"],
        "grad-norm/grad-norm": r["grad_norm"],
        "params-norm/params-norm": r["params_norm"],
        "seqlen/actual_seq_length": r["seq_length"],
        "world-size/world-size": world_size(r),
    }
    if cfg.log_batch_size_to_tensorboard:
        tags["batch-size/batch-size"] = r["batch_size"]
    if cfg.log_timers_to_tensorboard:
        tags |= {"iteration-time/iteration-time": r["step_seconds"]} | throughput_tags(r)
    return tags


def throughput_tags(r: dict) -> dict[str, float]:
    return {
        "throughput/iteration-time": r["step_seconds"],
        "throughput/elapsed_ms_per_iteration": 1000 * r["step_seconds"],
        "throughput/samples_per_sec": r["batch_size"] / r["step_seconds"],
        "throughput/tokens_per_sec": r["tokens_per_sec"],
        "throughput/tokens_per_gpu_per_sec": per_gpu(r),
        "throughput/tflops": r["tflops"],
    }


def scalars(r: dict, cfg: config.Log) -> Iterator[tuple[int, dict[str, float]]]:
    """TensorBoard's curves, a group for each x axis: a tag of the reference has copies against samples and tokens."""
    by_step = {} if cfg.log_names == "megatron" else simple_tags(r)
    if cfg.log_names != "simple":
        tags = megatron_tags(r, cfg)
        by_step |= tags
        if r["kind"] == "train":
            by_step |= {"steps-vs-samples/y=samples,x=steps": r["samples"], "steps-vs-tokens/y=tokens,x=steps": r["tokens"]}
        for axis in ("samples", "tokens"):
            steps = {f"steps-vs-{axis}/y=steps,x={axis}": r["step"]} if r["kind"] == "train" else {}
            yield r[axis], {f"{tag} vs {axis}": value for tag, value in tags.items()} | steps
    yield r["step"], by_step


class TensorBoard:
    """An event file, without torch. It opens with a restart mark and the kept records: readers see what the record has."""

    def __init__(self, cfg: config.Log, kept: list[dict]):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.cfg, self.Event, self.Summary = cfg, event_pb2.Event, summary_pb2.Summary
        assert cfg.tensorboard_dir is not None  # who names no folder asks for no event file
        folder = Path(cfg.tensorboard_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = open(folder / name, "xb")
        self.events, self.num_unflushed, self.flushed_at = RecordWriter(self.file), 0, time.monotonic()
        self.add(self.Event(wall_time=time.time(), file_version="brain.Event:2"))
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.add(self.Event(wall_time=time.time(), step=0, session_log=restart))
        for record in kept:
            self.write(record)

    def write(self, record: dict) -> None:
        if record["kind"] == "event":
            return
        for x, tags in scalars(record, self.cfg):
            values = [self.Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()]
            self.add(self.Event(wall_time=record["time"], step=x, summary=self.Summary(value=values)))

    def add(self, event) -> None:
        self.events.write(event.SerializeToString())
        self.num_unflushed += 1
        if self.num_unflushed >= self.cfg.tensorboard_queue_size or time.monotonic() - self.flushed_at > FLUSH_SECONDS:
            self.file.flush()
            self.num_unflushed, self.flushed_at = 0, time.monotonic()

    def close(self) -> None:
        self.file.close()


class WeightsAndBiases:
    """One W&B run for the life of a run directory, whatever restarts; x is `iteration`, since W&B's own step cannot go back."""

    def __init__(
        self, cfg: config.Log, run_dir: Path, name: str, config_dict: dict, wandb_id: str | None, say: Callable[[str], None]
    ):
        import wandb

        self.cfg, self.id = cfg, stable_id(run_dir / "wandb_id.txt", wandb_id)
        folder = Path(cfg.wandb_save_dir or run_dir)
        folder.mkdir(parents=True, exist_ok=True)

        def start(mode: Any):  # WANDB_MODE, which wandb checks itself
            quiet = wandb.Settings(silent=True, console="off", init_timeout=WANDB_INIT_SECONDS)
            return wandb.init(
                project=cfg.wandb_project,
                name=cfg.wandb_exp_name or name,
                group=cfg.wandb_group,
                id=self.id,
                resume="allow",
                dir=str(folder),
                mode=mode,
                config=config_dict,
                allow_val_change=True,
                settings=quiet,
            )

        mode = os.environ.get("WANDB_MODE") or "online"
        later = f"this run is offline, in {folder / 'wandb'} (wandb sync uploads it)"
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            mode = "offline"
            say(f"wandb has no key: {later}")
        try:
            self.run = start(mode)
        except Exception as error:
            if mode != "online":
                raise
            say(f"wandb cannot be reached ({reason(error)}): {later}")
            wandb.teardown()  # its service still holds the id of the failed start
            self.run = start("offline")
        self.run.define_metric("iteration")
        self.run.define_metric("*", step_metric="iteration")

    def write(self, record: dict) -> None:
        if record["kind"] == "event":
            return
        tags = {} if self.cfg.log_names == "megatron" else simple_tags(record)
        if self.cfg.log_names != "simple":
            tags |= megatron_tags(record, self.cfg)
            tags |= throughput_tags(record) if record["kind"] == "train" else {}
        axes = {axis: record[axis] for axis in ("samples", "tokens", "epoch", "flops")}
        self.run.log({"iteration": record["step"], **axes, **tags})

    def close(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)


def stable_id(path: Path, known: str | None) -> str:
    """The W&B id of a run: WANDB_RUN_ID, the one kept in `path`, the one its checkpoint knows, or a new one; kept."""
    kept = path.read_text().strip() if path.exists() else None
    chosen = os.environ.get("WANDB_RUN_ID") or kept or known or secrets.token_hex(4)
    if chosen != kept:
        replace_file(path, f"{chosen}\n".encode())
    return chosen


class StepBar:
    """One line at the bottom of a terminal: bar, steps, loss, time left. Other lines are printed above it."""

    def __init__(self, name: str, total_steps: int, step: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(file=sys.stdout)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("eta"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, refresh_per_second=2, redirect_stdout=False)
        self.task = self.bar.add_task(name, total=total_steps, completed=step, loss="")
        self.bar.start()

    def write(self, record: dict) -> None:
        if record["kind"] == "train":
            self.bar.update(self.task, completed=record["step"], loss=f"loss {record['loss']:.4f}")

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def stop(self) -> None:
        self.bar.stop()
