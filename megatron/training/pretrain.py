"""The composition root: a config becomes a run. Read `main` as a table of contents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from megatron import engine as engines
from megatron.batch import Progress
from megatron.config import Config
from megatron.core import checkpoint
from megatron.core.checkpoint import Checkpoint
from megatron.core.mesh import Mesh, agreed
from megatron.data import copies
from megatron.data.datasets import build_datasets, read_vectors_as
from megatron.data.pairs import Standard
from megatron.engine import learner as learners
from megatron.errors import BadData, CannotWrite, Refusal, exits
from megatron.files import read_json, replace_file
from megatron.layout import find_place
from megatron.locks import Held, held
from megatron.rundir.folders import read_file
from megatron.rundir.names import CONFIG, EXIT, MANIFEST, RESULT
from megatron.sampling.generate import Source
from megatron.tasks.measure import Exam, read_tasks
from megatron.training import branch, device, dry_run, launch, preflight
from megatron.training.logs import Log, SilentLog
from megatron.training.loop import train
from megatron.training.resume import check_agreement, differences, open_checkpoint, standing
from megatron.training.run import Run
from megatron.training.signals import StopRequest
from megatron.training.teacher import with_teacher
from megatron.training.trained import build_objective, cut_slice, open_tokenizer, sample_spec
from megatron.training.watch import Watch


@exits
def main(cfg: Config, score: Callable[[Config, Callable[[str], None]], None] | None = None) -> int:
    """Train or evaluate as `cfg` says. Returns an exit code of megatron/errors.py.

    `score`: what --final-scores calls for when the run has finished, on every rank (megatron/likelihood/final.py).
    """
    if cfg.train.dry_run:
        return dry_run.show(cfg)
    chief = find_place(os.environ).rank == 0
    if cfg.log.upload_to and chief:
        copies.refuse_unreachable(cfg.log.upload_to)
    code = carry_out(cfg, score)
    if cfg.log.upload_to and chief and code == 0 and not cfg.train.preflight:
        copies.send(Path(cfg.log.run_dir), f"{cfg.log.upload_to.rstrip('/')}/{Path(cfg.log.run_dir).name}")
    return code


def carry_out(cfg: Config, score: Callable[[Config, Callable[[str], None]], None] | None) -> int:
    with StopRequest(cfg.train, cfg.parallel.world_size) as stop, launch.joined(cfg) as (mesh, watch):
        stop.refuse_kill_switch(mesh.control)
        tokenizer = open_tokenizer(cfg)
        cfg = cfg.with_vocabulary(tokenizer.vocab_size)
        where = device.setup(cfg, mesh.control)
        data = build_datasets(cfg.data, sample_spec(cfg, tokenizer))
        objective = build_objective(cfg)
        if data["train"] and not cfg.train.skip_train:
            objective = objective.studied(data["train"])
        lesson = with_teacher(cfg, objective, tokenizer.fingerprint(), mesh, print if mesh.chief else lambda line: None)
        objective, reference = lesson.objective, objective.reference()
        source = Source.of(cfg, tokenizer)
        tasks = read_tasks(cfg.train.eval_tasks or (), source)
        slices = {
            split: cut_slice(cfg, found, reference, tokenizer)
            for split, found in data.items()
            if split != "train" and found and cfg.train.eval_iters
        }
        fingerprints = {
            "tokenizer": tokenizer.fingerprint(),
            **({"teacher": lesson.fingerprint} if lesson.fingerprint else {}),
            **{split: found.fingerprint() if found else None for split, found in data.items()},
        }
        with claimed(cfg, mesh, watch):
            loaded, changed, early = take_up(cfg, mesh, fingerprints)
            if loaded and (learnt := (loaded.facts.get("noted") or {}).get("standard")):
                read_vectors_as(data, Standard.read(learnt))
                fingerprints |= {split: found.fingerprint() for split, found in data.items() if found}
            at, interval = standing(cfg, loaded)
            begun = start_branch(cfg, mesh, at, loaded, changed, early)
            with open_log(cfg, mesh, at, loaded) as log:
                for line in early:
                    log.say(line)
                watch.say = log.say if mesh.chief else watch.say
                with agreed(mesh.control):
                    preflight.check(cfg, where, tokenizer, data, slices, objective, at, mesh, log.say)
                if cfg.train.preflight:
                    log.say("preflight passed: every check above is ok")
                    return 0
                engine = engines.build(cfg, objective, where, mesh, log.say, fresh=loaded is None)
                learner = None if cfg.train.skip_train else learners.build(cfg, objective, mesh, where.device)
                for learning in (engine, learner):
                    if learning and loaded:
                        learning.load(loaded, weights_only=cfg.train.finetune or cfg.train.skip_train)
                epoch, noted = (data["train"].tokens_per_epoch, data["train"].noted()) if data["train"] else (None, {})
                world, rest = (Exam.of(cfg, engine, source, tasks), where, stop, watch, log), (begun, noted, objective.besides())
                run = Run(cfg, engine, learner, reference, slices, *world, fingerprints, epoch, at, *rest, lesson.shapes)
                if cfg.train.skip_train:
                    return run.evaluate_only(at, (loaded.facts if loaded else {}).get("averaged"))
                run.identify()
                assert data["train"] is not None  # flags without training data are refused
                with run:
                    at, reason = train(cfg, engine, objective, data["train"], run, at, interval, learner)
                code = run.leave(at, reason)
                if cfg.train.final_scores and reason is None:
                    assert score is not None  # programs that take the flag bring it
                    stop.end()
                    score(cfg, log.say)
                return code


def take_up(cfg: Config, mesh: Mesh, fingerprints: dict[str, str | None]) -> tuple[Checkpoint | None, list[str], list[str]]:
    """The checkpoint to go on from, what changed since, and what is to be said once there is a log."""
    early: list[str] = []
    try:
        loaded = open_checkpoint(cfg, early.append, mesh.control)
        return loaded, check_agreement(cfg, loaded, fingerprints, early.append) if loaded else [], early
    except Refusal:
        if mesh.chief and early:
            print(*early, sep="\n", flush=True)
        raise


def start_branch(
    cfg: Config, mesh: Mesh, at: Progress, loaded: Checkpoint | None, changed: list[str], early: list[str]
) -> branch.Start:
    """A training leaves behind what it does not begin from; an evaluation or a preflight leaves all as it is."""
    with agreed(mesh.control):
        if mesh.chief and not cfg.train.skip_train and not cfg.train.preflight:
            return branch.begin(cfg, mesh, at, loaded, changed, early.append)
    return branch.Start()


@contextmanager
def claimed(cfg: Config, mesh: Mesh, watch: Watch) -> Iterator[None]:
    """Make the run's folders, refuse those that hold another experiment, and keep other runs out. The chief does it for all."""
    run_dir = Path(cfg.log.run_dir)
    with ExitStack() as stack:
        with agreed(mesh.control):
            ended = ending_of_finished(run_dir)
            for folder in dict.fromkeys(Path(p).resolve() for p in (cfg.log.run_dir, cfg.train.save) if p and mesh.chief):
                stack.enter_context(locked(folder))
            if mesh.chief and not cfg.train.skip_train and not cfg.train.preflight:
                refuse_other_run(cfg)
        with agreed(mesh.control):
            if mesh.chief:
                branch.remove(run_dir / EXIT)
        watch.run_dir = run_dir
        try:
            yield
        except BaseException:
            if ended is not None and (run_dir / RESULT).is_file():  # nothing began: the finished run's own ending stays
                replace_file(run_dir / EXIT, ended)
                watch.run_dir = None
            raise


def ending_of_finished(run_dir: Path) -> bytes | None:
    """exit.json of a run that is finished; None of others."""
    if not (run_dir / RESULT).is_file() or not (run_dir / EXIT).is_file():
        return None
    return (run_dir / EXIT).read_bytes()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder. Raises CannotWrite."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder))
        except Held:
            raise CannotWrite(
                f"{folder} is in use by another running process: choose another --run-dir or --save, or wait for it"
            ) from None
        except OSError as error:
            raise CannotWrite(
                f"{folder} cannot be made or written ({error.strerror}): choose another --run-dir or --save"
            ) from error
        yield


def refuse_other_run(cfg: Config) -> None:
    """A folder's records and checkpoints belong to one experiment; going on from its own checkpoint is checked against that."""
    own = list(dict.fromkeys(Path(p).resolve() for p in (cfg.log.run_dir, cfg.train.save) if p))
    load = Path(cfg.train.load).resolve() if cfg.train.load and not cfg.train.finetune else None
    if load and (load in own or load.parent in own):
        return
    for folder in own:
        try:
            saved = read_file(folder, CONFIG) or checkpointed_config(folder)
        except BadData as error:
            raise CannotWrite(f"{error}; or choose another --run-dir") from None
        other = [line for _, _, line in differences(saved, cfg)] if saved else []
        if other:
            raise CannotWrite(
                f"{folder} holds another run ({'; '.join(other[:6])}): choose another --run-dir or --save, "
                "or --load its checkpoint to go on"
            )


def checkpointed_config(folder: Path) -> dict:
    """The config of a folder of checkpoints alone, as averages are; {} where there is none that can be read."""
    for path in checkpoint.find(folder):
        with suppress(Refusal):
            return read_json(path / MANIFEST, "")["facts"]["config"]
    return {}


def open_log(cfg: Config, mesh: Mesh, at: Progress, loaded: Checkpoint | None) -> Log | SilentLog:
    """A resumed or restarted run rewinds its records to where it begins; an evaluation or a preflight adds to them."""
    if not mesh.chief:
        return SilentLog()
    rewind = None if cfg.train.skip_train or cfg.train.preflight else at.step
    views = replace(cfg.log, wandb_project=None, tensorboard_dir=None) if cfg.train.preflight else cfg.log
    steps = cfg.train.num_samples // cfg.train.global_batch_size
    return Log(
        views,
        Path(cfg.log.run_dir),
        Path(cfg.log.run_dir).name,
        steps,
        cfg.as_dict(),
        resumed_step=rewind,
        wandb_id=loaded.facts["wandb_id"] if loaded and not cfg.train.finetune else None,
    )
