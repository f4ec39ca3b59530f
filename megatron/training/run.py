"""One run and its directory: what it logs, saves and leaves behind."""

from __future__ import annotations

import math
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import megatron
from megatron.batch import Batch, Progress, Step
from megatron.budget import Shape
from megatron.config import Config
from megatron.core import checkpoint
from megatron.core.checkpoint import Piece, Saving, whole
from megatron.core.mesh import agreed, gather_json
from megatron.engine import Engine
from megatron.engine.learner import Learner
from megatron.errors import CannotWrite, TooManyBadSteps
from megatron.objectives import Objective, kind_of_loss
from megatron.rundir import records
from megatron.rundir.folders import read_file
from megatron.rundir.names import BAD_BATCHES, CONFIG, EVALUATION, FACTS, METRICS, RESULT, step_and_attempt
from megatron.tasks.measure import Exam
from megatron.training.branch import Start, remove, write_json
from megatron.training.device import Where, memory_bytes, utilization
from megatron.training.evaluate import Slice, evaluate
from megatron.training.logs import Log, SilentLog
from megatron.training.loop import Interval
from megatron.training.resume import facts
from megatron.training.schedule import decayed, on_plateau
from megatron.training.signals import StopRequest
from megatron.training.watch import Watch

MOST_STEPS_BETWEEN_TRIES = 64  # of a checkpoint that could not be written


class Run:
    """Implements what the loop asks of the world. Every rank has one and calls the same; the chief's writes the files."""

    def __init__(
        self,
        cfg: Config,
        engine: Engine,
        learner: Learner | None,
        reference: Objective,
        slices: dict[str, Slice],
        exam: Exam,
        where: Where,
        stop: StopRequest,
        watch: Watch,
        log: Log | SilentLog,
        fingerprints: dict[str, str | None],
        tokens_per_epoch: int | None,
        at: Progress,
        begun: Start,
        noted: dict,
        besides: dict[str, Objective],
        teachers: Sequence[Shape] = (),
    ):
        self.cfg, self.engine, self.learner, self.reference, self.slices = cfg, engine, learner, reference, slices
        self.exam, self.where, self.stop, self.watch, self.log, self.mesh = exam, where, stop, watch, log, engine.mesh
        self.fingerprints, self.tokens_per_epoch, self.begun = fingerprints, tokens_per_epoch, begun
        self.dir, self.start, self.began = Path(cfg.log.run_dir), time.monotonic(), at
        self.noted, self.besides, self.teachers = noted, besides, teachers
        self.saving: tuple[Saving, Progress] | None = None  # on its way, and of where
        self.owed_at: int | None = None
        self.patience = 1
        self.shape, self.dumps = cfg.model.shape(), 0
        self.stopped: tuple[str, int] | None = None
        self.saved: Path | None = None
        self.last: dict[str, Any] = {}

    def where_at(self, at: Progress) -> dict:
        """The x axes that every record carries."""
        tokens = at.samples * self.cfg.model.seq_length
        return {
            "step": at.step,
            "samples": at.samples,
            "tokens": tokens,
            "flops": 6.0 * self.shape.total() * tokens,
            "epoch": tokens / self.tokens_per_epoch if self.tokens_per_epoch else 0.0,
            "time": time.time(),
        }

    def flops_per_token(self, done: Step) -> tuple[float, float]:
        """Of the model, by the convention that fits use (the head on every token), and those that a step like this executes."""
        cfg, length = self.cfg, self.cfg.model.seq_length
        asked = done.asked / (cfg.train.global_batch_size * length)
        causal, recompute = self.reference.causal, cfg.train.recompute_granularity
        read = cfg.objective.reads, cfg.objective.candidates(cfg.train)
        executed = self.shape.executed_flops_per_token(length, asked, causal, recompute, *read)
        taught = sum(one.executed_flops_per_token(length, asked, causal) / 3 for one in self.teachers)  # forward alone
        return cfg.flops_per_token(), executed + cfg.estimating_flops() + cfg.orthogonalising_flops() + taught

    def log_train(self, at: Progress, done: Step, interval: Interval, lr: float) -> None:
        loss, accuracy = interval.mean(done)
        seconds, gpus = interval.seconds / (interval.steps + interval.skipped), self.mesh.world.size
        rate = self.cfg.train.global_batch_size * self.cfg.model.seq_length / seconds
        speed, executed = (rate / gpus * flops for flops in self.flops_per_token(done))
        text = done.extra.get("loss_of_text", loss)  # of a student the NLL alone, without its teachers' part
        self.last["train"] = text
        self.log.record(
            {
                "kind": "train",
                **self.where_at(at),
                "loss": loss,
                "accuracy": accuracy,
                **({"perplexity": math.exp(min(700.0, text))} if self.reference.likelihood and not self.besides else {}),
                "lr": lr,
                "grad_norm": done.grad_norm,
                "clipped_norm": done.clipped_norm,
                "params_norm": self.engine.params_norm(),
                "batch_size": self.cfg.train.global_batch_size,
                "seq_length": self.cfg.model.seq_length,
                "step_seconds": seconds,
                "tokens_per_sec": rate,
                "tokens_per_gpu_per_sec": rate / gpus,
                "world_size": gpus,
                "tflops": speed / 1e12,
                "mfu": speed / self.where.peak_flops,
                "executed_tflops": executed / 1e12,
                "hfu": executed / self.where.peak_flops,
                "memory_bytes": max(gather_json(memory_bytes(self.where.device), self.mesh.control)),
                "utilization": utilization(self.where.device),
                "skipped": at.skipped,
                "skipped_in_interval": interval.skipped,
                **done.extra,
            }
        )

    def validate(self, at: Progress) -> Progress:
        """Score the validation sets; remembers the best by the first."""
        if "valid" not in self.slices:
            return at
        self.watch.at(at.step, "evaluating")
        loss = self.score("valid", at)["loss"]
        for split in self.slices:
            if split.startswith("valid:"):
                self.score(split, at)
        if at.best_val_loss is None or loss < at.best_val_loss:
            return replace(at, best_val_loss=loss, best_step=at.step, worse_in_row=0)
        if at.samples >= (self.cfg.train.num_samples or 0):  # no step is left; this validation comes again with each start
            return at
        lowered = on_plateau(self.cfg.optim, at)
        if lowered.lr_scale < at.lr_scale:
            self.log.say(f"validation has not improved {at.worse_in_row + 1} times: the rate is {lowered.lr_scale:g} of its own")
        return lowered

    def score(self, split: str, at: Progress) -> dict:
        """Score one set; its records are of kind val, val-NAME or test."""
        kind = split.replace("valid", "val", 1).replace(":", "-")
        data = self.slices[split]
        found = evaluate(self.engine, self.reference, data, self.log.line_of_rows(data.rows * data.num_mc))
        found |= {name: evaluate(self.engine, other, data)["loss"] for name, other in self.besides.items()}
        self.keep(kind, at, found, "loss")
        self.attend(at)
        return found

    def score_tasks(self, at: Progress) -> dict[str, dict]:
        """Score the files of --eval-tasks; their records are of kind task-NAME."""
        for name, found in self.exam.take():
            self.watch.at(at.step, f"scoring {name}")
            self.keep(f"task-{name}", at, found, "answer_bpb")
            self.attend(at)
        return self.tasks()

    def tasks(self) -> dict[str, dict]:
        """The last record of each task."""
        return {task.name: self.last[f"task-{task.name}"] for task in self.exam.tasks if f"task-{task.name}" in self.last}

    def keep(self, kind: str, at: Progress, found: dict, value: str) -> None:
        if self.mesh.chief and not self.has_record(kind, at, value, found[value]):
            self.log.record({"kind": kind, **self.where_at(at), **found})
        self.last[kind] = found

    def has_record(self, kind: str, at: Progress, name: str, value: float) -> bool:
        """Whether an earlier process measured just this: it ended between its last save and its result, or had finished."""
        path = self.dir / METRICS
        return (
            at.step == self.began.step
            and path.exists()
            and any((r.get("kind"), r.get("step"), r.get(name)) == (kind, at.step, value) for _, r in records.read(path))
        )

    def save(self, at: Progress, interval: Interval, last: bool = False) -> bool:
        """Whether it was saved, or is being. One that cannot be written is owed; the last one must be written."""
        train = self.cfg.train
        if not train.save or (at == self.began and train.load == train.save):  # nothing happened since it was loaded
            return True
        self.watch.at(at.step, "saving")
        self.settle()
        beside = train.async_save and not last
        wrote = facts(self.cfg, at, interval, self.fingerprints, self.log.wandb_id, self.begun, self.noted)
        try:
            started = Saving(
                Path(train.save), at.step, self.pieces(), wrote, group=self.mesh.control, say=self.log.say, beside=beside
            )
            self.saving, self.owed_at = (started, at), None
            if not beside:
                self.publish()
        except CannotWrite as error:
            if last:
                raise
            self.owe(error, at)
            return False
        return True

    def attend(self, at: Progress) -> None:
        """Publish what --async-save has written by now; what could not be written is owed."""
        if self.saving and self.saving[0].is_written():
            try:
                self.publish()
            except CannotWrite as error:
                self.owe(error, at)

    def settle(self) -> bool:
        """Wait for what --async-save writes, and publish it. False where it could not be written, which is said."""
        try:
            if self.saving:
                self.publish()
        except CannotWrite as error:
            self.log.say(str(error))
            return False
        return True

    def __enter__(self) -> Run:
        """From here on a signal asks for a save."""
        self.stop.begin()
        return self

    def __exit__(self, kind, *_) -> None:
        """What fails may have left others behind, who answer no more: then no process waits, and nothing is published."""
        if kind and self.saving and (self.mesh.world.size == 1 or issubclass(kind, TooManyBadSteps)):  # which all meet together
            self.settle()
        elif kind and self.saving:
            self.saving[0].drop()

    def publish(self) -> None:
        assert self.saving is not None
        (saving, at), self.saving, train = self.saving, None, self.cfg.train
        self.saved = saving.finish()
        self.patience = 1
        self.log.say(f"saved {self.saved}")
        if self.mesh.chief:
            found = checkpoint.find(saving.folder)
            best = next((p for p in found if at.best_step == step_and_attempt(p.name)[0]), None)
            checkpoint.retain(saving.folder, train.keep_last, train.keep_every, best, train.save_at or (), say=self.log.say)

    def owe(self, error: CannotWrite, at: Progress) -> None:
        """A save that failed is tried again, after twice as many steps each time, and with the last step."""
        last = self.cfg.train.num_samples // self.cfg.train.global_batch_size
        self.owed_at = min(at.step + self.patience, last)
        self.patience = min(2 * self.patience, MOST_STEPS_BETWEEN_TRIES)
        self.log.say(f"{error}; the run goes on and tries again by step {self.owed_at}")

    def owes_save(self, at: Progress) -> bool:
        return at.step == self.owed_at

    def pieces(self) -> list[Piece]:
        return self.engine.pieces() + (self.learner.pieces() if self.learner else [])

    def dump(self, at: Progress, done: Step, batches: list[Batch]) -> None:
        """Keep a step that was not finite, weights and all, for tools/replay.py; at most --max-skipped-steps of them."""
        self.log.say(
            f"step {at.step + 1} is not finite (loss {done.loss}, gradient norm {done.grad_norm}): "
            "skipped, weights and moments untouched"
        )
        if self.dumps >= self.cfg.train.max_skipped_steps:
            self.log.say(f"its batch is not kept: {self.dumps} are in {self.dir / BAD_BATCHES} already")
            return
        self.dumps += 1
        kept = [p for p in self.engine.pieces() if p.name.startswith("model/") or p.name == "optimizer/step"]
        pieces = kept + self.batch_pieces(batches)
        said = {
            "config": self.cfg.as_dict(),
            "samples": at.samples,
            "micro_batches": len(batches) * self.mesh.dp.size,
            "loss": str(done.loss),
            "grad_norm": str(done.grad_norm),
            "fingerprints": self.fingerprints,
            "environment": environment(self.where),
            "host": platform.node(),
        }
        try:
            path = checkpoint.Saving(
                self.dir / BAD_BATCHES, at.step + 1, pieces, said, group=self.mesh.control, audit=False, say=self.log.say
            ).finish()
            self.log.say(f"its batch is in {path}: python tools/replay.py {path}")
        except CannotWrite as error:
            self.log.say(f"its batch could not be kept: {error}")

    def batch_pieces(self, batches: list[Batch]) -> list[Piece]:
        """This replica's micro-batches in their place among all; ranks that have the same ones leave them to the first."""
        if self.mesh.tp.rank or self.mesh.pp.rank:
            return []
        first = self.mesh.dp.rank * len(batches)
        return whole(
            {f"batch/{i}/{name}": value.contiguous() for i, b in enumerate(batches, first) for name, value in b.tensors().items()}
        )

    def stop_reason(self, at: Progress) -> str | None:
        self.watch.at(at.step, "training")
        self.stopped = self.stop.reason(at.step, at.step - self.began.step, self.mesh.control)
        return self.stopped[0] if self.stopped else None

    def leave(self, at: Progress, reason: str | None) -> int:
        """End a finished run with result.json, whose presence says so; an interrupted one with its reason. The exit code."""
        if self.stopped is not None and reason is not None:
            nothing = "nothing was saved: there is no --save"
            if self.cfg.train.save:
                nothing = "no step was done, so there is nothing to save"
            self.log.say(f"stopped at step {at.step}: {reason}; {f'saved {self.saved}' if self.saved else nothing}")
            return self.end(at, self.stopped[1], reason)
        if "test" in self.slices:
            self.score("test", at)
        with agreed(self.mesh.control):
            self.log.require_record()
        if self.mesh.chief:
            write_json(self.dir / RESULT, self.result(at))
        self.log.say(f"finished: {self.dir / RESULT}")
        return self.end(at, 0, "finished")

    def end(self, at: Progress, code: int, reason: str) -> int:
        if self.mesh.chief:
            self.watch.record(code, reason, at.step)
        return code

    def evaluate_only(self, at: Progress, averaged: dict | None = None) -> int:
        """--skip-train: score the slices and leave evaluation.json, which says what the weights are `averaged` from."""
        of = {"averaged": averaged} if averaged else {}
        found = {split: self.score(split, at) for split in self.slices}
        found |= {f"task-{name}": one for name, one in self.score_tasks(at).items()}
        if self.mesh.chief:
            write_json(self.dir / EVALUATION, {"objective": self.cfg.objective.objective, **self.where_at(at), **of, **found})
        return self.end(at, 0, "evaluated")

    def result(self, at: Progress) -> dict:
        cfg, shape, axes = self.cfg, self.shape, self.where_at(at)
        val = self.last.get("val", {})
        seconds = time.monotonic() - self.start
        trained = (at.samples - self.began.samples) * cfg.model.seq_length
        return {
            "name": self.dir.name,
            "objective": cfg.objective.objective,
            "params": shape.total(),
            "params_non_embedding": shape.non_embedding(),
            "params_with_head": shape.with_head(),
            "params_published": shape.published(),
            "params_convention": "total",
            "tokens": axes["tokens"],
            "unique_tokens": min(axes["tokens"], self.tokens_per_epoch or axes["tokens"]),
            "epochs": axes["epoch"],
            "samples": at.samples,
            "steps": at.step,
            "flops": axes["flops"],
            "flops_convention": "6ND, N = all parameters",
            "flops_exact": cfg.flops_per_token() * axes["tokens"],
            "train_loss": self.last.get("train"),
            "loss": val.get("loss"),
            "loss_se_noise": val.get("loss_se_noise"),
            "loss_se_noise_df": val.get("loss_se_noise_df"),
            "loss_se_data": val.get("loss_se_data"),
            "bits_per_byte": val.get("bits_per_byte"),
            "accuracy": val.get("accuracy"),
            **{name: val.get(name) for name in self.besides},
            "bound": kind_of_loss(self.reference),
            "test_loss": self.last.get("test", {}).get("loss"),
            "valid_sets": self.valid_sets(),
            "tasks": self.tasks(),
            "best_loss": at.best_val_loss,
            "seq_length": cfg.model.seq_length,
            "batch_size": cfg.train.global_batch_size,
            "lr": cfg.optim.lr,
            "lr_decay_style": cfg.optim.lr_decay_style,
            "lr_decayed": decayed(cfg.optim, at.samples, cfg.train.global_batch_size),
            "seed": cfg.train.seed,
            "tokenizer": self.fingerprints["tokenizer"],
            "vocab_size": cfg.model.vocab_size,
            "eval_slice": self.slices["valid"].fingerprint() if "valid" in self.slices else None,
            "convention": val.get("convention"),
            "attention_dropout": cfg.model.attention_dropout,
            "hidden_dropout": cfg.model.hidden_dropout,
            "seconds": seconds,
            "tokens_per_sec": trained / seconds,
            "world_size": self.mesh.world.size,
            "skipped": at.skipped,
        }

    def valid_sets(self) -> dict[str, dict]:
        """Each named validation set's last scores with their errors; the first set's are the run's own."""
        names = [name for name, _ in self.cfg.data.valid_sets()]
        kinds = ["val", *(f"val-{name}" for name in names[1:])]
        wanted = ("loss", "loss_se_noise", "loss_se_noise_df", "loss_se_data", "bits_per_byte", "accuracy", "rows", "convention")
        return {
            name: {key: self.last[kind].get(key) for key in wanted}
            for name, kind in zip(names, kinds)
            if name and kind in self.last
        }

    def identify(self) -> None:
        """config.json and run.json: who this run is. An earlier process's result is no longer one."""
        if not self.mesh.chief:
            return
        write_json(self.dir / CONFIG, self.cfg.as_dict())
        remove(self.dir / RESULT)
        write_json(
            self.dir / FACTS,
            read_file(self.dir, FACTS)  # how it began and went on: training/branch.py
            | {
                "version": megatron.__version__,
                "code": code_version(),
                "environment": environment(self.where),
                "fingerprints": self.fingerprints,
                "tokens_per_epoch": self.tokens_per_epoch,
                "params": self.shape.total(),
                "params_non_embedding": self.shape.non_embedding(),
                "params_with_head": self.shape.with_head(),
                "params_published": self.shape.published(),
                "flops_per_token": self.cfg.flops_per_token(),
                "noise_seed": self.cfg.train.seed,
                "eval_seed": self.cfg.train.eval_seed,
                "host": platform.node(),
                "objective": self.cfg.objective.objective,
                "bound": kind_of_loss(self.reference),
                "params_convention": "total",
                "flops_convention": "6ND, N = all parameters",
                "eval_slice": self.slices["valid"].fingerprint() if "valid" in self.slices else None,
                "convention": self.slices["valid"].convention(self.reference) if "valid" in self.slices else None,
            },
        )


def environment(where: Where) -> dict:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if where.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(where.dtype).removeprefix("torch."),
        "compile": where.compile,
        "peak_flops": where.peak_flops,
        "peak_source": where.peak_source,
    }


def code_version() -> str:
    """The commit of the checkout, `+` when files differ from it; the package's version outside a checkout."""
    root = Path(megatron.__file__).parents[1]
    try:
        said = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return megatron.__version__
    return said.stdout.strip() if said.returncode == 0 else megatron.__version__
