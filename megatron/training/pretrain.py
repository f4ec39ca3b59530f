"""The composition root: a config becomes a run. Read `main` as a table of contents."""
from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from megatron import objectives
from megatron.batch import Progress
from megatron.config import Config
from megatron.core.checkpoint import Checkpoint
from megatron.core.transformer import GPT
from megatron.data.gpt_dataset import PackedDataset, build_datasets
from megatron.data.tokenizer import Tokenizer, Vocabulary, build_tokenizer
from megatron.engine.native import NativeEngine
from megatron.errors import CannotWrite, Refusal, exits
from megatron.objectives import Objective
from megatron.training import device, preflight
from megatron.training.device import Where
from megatron.training.evaluate import Slice, bytes_per_token
from megatron.training.logs import Log
from megatron.training.loop import train
from megatron.training.resume import check_agreement, differences, open_checkpoint, standing
from megatron.training.run import Run
from megatron.training.signals import StopRequest


@exits
def main(cfg: Config) -> int:
    """Train or evaluate as `cfg` says. Returns an exit code of megatron/errors.py."""
    with StopRequest(cfg.train) as stop:
        tokenizer = build_tokenizer(cfg.data.tokenizer_type, cfg.data.vocab_file, cfg.data.merge_file, cfg.data.tokenizer_model)
        cfg = cfg.with_vocabulary(tokenizer.vocab_size)
        where = device.setup(cfg)
        data = build_datasets(cfg.data, cfg.model.seq_length, cfg.train.seed, cfg.train.eval_seed, cfg.model.vocab_size)
        mask = Vocabulary(cfg.model.vocab_size, cfg.model.padded_vocab_size).mask
        objective = objectives.build(cfg.objective, mask, cfg.train.global_batch_size)
        reference = objectives.build_reference(cfg.objective, mask)
        slices = {split: cut_slice(cfg, data[split], reference, tokenizer)
                  for split in ("valid", "test") if data[split] and cfg.train.eval_iters}
        fingerprints = {"tokenizer": tokenizer.fingerprint(),
                        **{split: found and found.fingerprint() for split, found in data.items()}}
        with claimed(cfg):
            loaded, changed, early = take_up(cfg, fingerprints)
            at, interval = standing(cfg, loaded)
            with open_log(cfg, at, loaded) as log:
                for line in early:
                    log.say(line)
                preflight.check(cfg, where, tokenizer, data, slices, objective, at, log.say)
                if cfg.train.preflight:
                    log.say("preflight passed: every check above is ok")
                    return 0
                engine = build_engine(cfg, objective, where)
                if loaded:
                    engine.load(loaded.tensors, weights_only=cfg.train.finetune)
                epoch = data["train"].tokens_per_epoch if data["train"] else None
                run = Run(cfg, engine, reference, slices, where, stop, log, fingerprints, epoch, at)
                if cfg.train.skip_train:
                    return run.evaluate_only(at)
                run.identify(at, loaded, changed)
                at, reason = train(cfg, engine, objective, data["train"], run, at, interval)
                return run.leave(at, reason)


def cut_slice(cfg: Config, dataset: PackedDataset, reference: Objective, tokenizer: Tokenizer) -> Slice:
    """The first rows of the validation data's own order; never a row twice."""
    rows = min(cfg.train.eval_iters * cfg.train.global_batch_size, dataset.rows_in_first_epoch)
    found = Slice(dataset=dataset, rows=rows, seq_length=cfg.model.seq_length, num_mc=cfg.objective.num_mc,
                  seed=cfg.train.eval_seed, score_first_token=cfg.objective.score_first_token)
    return replace(found, bytes_per_token=bytes_per_token(found, reference, tokenizer.token_bytes()))


def take_up(cfg: Config, fingerprints: dict[str, str | None]) -> tuple[Checkpoint | None, list[str], list[str]]:
    """The checkpoint to go on from, what changed since, and what is to be said once there is a log."""
    early: list[str] = []
    try:
        loaded = open_checkpoint(cfg, early.append)
        return loaded, check_agreement(cfg, loaded, fingerprints, early.append) if loaded else [], early
    except Refusal:
        print(*early, sep="\n", flush=True)
        raise


def build_engine(cfg: Config, objective: Objective, where: Where) -> NativeEngine:
    recompute = bool(cfg.train.recompute_granularity)
    model = GPT(cfg.model, objective.causal, cfg.train.seed, where.dtype, recompute=recompute).to(where.device)
    if where.compile:
        model.compile_blocks()
    live_rows = cfg.model.padded_vocab_size if cfg.model.predict_reserved else cfg.model.vocab_size + objective.uses_mask
    return NativeEngine(model, cfg.optim, live_rows)


@contextmanager
def claimed(cfg: Config) -> Iterator[None]:
    """Make the run's folders, refuse those that hold another experiment, and keep other processes out."""
    with ExitStack() as stack:
        for folder in dict.fromkeys(Path(p).resolve() for p in (cfg.log.run_dir, cfg.train.save) if p):
            stack.enter_context(locked(folder))
        if not cfg.train.skip_train and not cfg.train.preflight:
            refuse_other_run(cfg, Path(cfg.log.run_dir) / "config.json")
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system lets go when the process ends in whatever way. Raises CannotWrite."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise CannotWrite(f"{folder} cannot be made or written ({error.strerror}): choose another --run-dir or --save") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotWrite(f"{folder} is in use by another running process: "
                              "choose another --run-dir or --save, or wait for it") from None
        yield


def refuse_other_run(cfg: Config, path: Path) -> None:
    """A folder's records belong to one experiment; going on from its own checkpoint is checked against that."""
    own = [Path(p).resolve() for p in (cfg.log.run_dir, cfg.train.save) if p]
    load = Path(cfg.train.load).resolve() if cfg.train.load and not cfg.train.finetune else None
    if not path.exists() or (load and (load in own or load.parent in own)):
        return
    try:
        saved = json.loads(path.read_text())
    except ValueError:
        raise CannotWrite(f"{path} is damaged: move the folder away, or choose another --run-dir") from None
    other = [line for _, _, line in differences(saved, cfg)]
    if other:
        raise CannotWrite(f"{path.parent} holds another run ({'; '.join(other[:6])}): choose another --run-dir or --save, "
                          "or --load its checkpoint to go on")


def open_log(cfg: Config, at: Progress, loaded: Checkpoint | None) -> Log:
    """A resumed or restarted run rewinds its records to where it begins; an evaluation or a preflight adds to them."""
    rewind = None if cfg.train.skip_train or cfg.train.preflight else at.step
    views = replace(cfg.log, wandb_project=None, tensorboard_dir=None) if cfg.train.preflight else cfg.log
    steps = (cfg.train.train_samples or 0) // cfg.train.global_batch_size
    return Log(views, Path(cfg.log.run_dir), Path(cfg.log.run_dir).name, steps, cfg.as_dict(), resumed_step=rewind,
               wandb_id=loaded.facts["wandb_id"] if loaded and not cfg.train.finetune else None)
