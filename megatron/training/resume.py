"""Going on from a checkpoint: what it must agree with, and what may have changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from megatron.batch import Progress
from megatron.config import Config, declared, experiment, spelling
from megatron.core import checkpoint
from megatron.core.checkpoint import Checkpoint
from megatron.core.mesh import ALONE, Group, gather_json
from megatron.errors import Mismatch, MissingInput
from megatron.rundir.names import step_of
from megatron.training import branch
from megatron.training.loop import Interval

KINDS = {"tokenizer": "", "teacher": " (its weights)"}  # of fingerprints that are not of data


def differences(saved: dict[str, dict], cfg: Config) -> list[tuple[str, str, str]]:
    """(section, name, sentence) of every flag that differs from a saved config and is not free to."""
    table, old = declared(), experiment(saved)
    return [
        (table[name][0], name, f"{spelling(name)} was {old[name]}, is {value}")
        for name, value in experiment(cfg.as_dict()).items()
        if old[name] != value
    ]


def open_checkpoint(cfg: Config, say: Callable[[str], None], group: Group = ALONE) -> Checkpoint | None:
    """The checkpoint that --load names; None for a fresh start, which is only silent agreement when --load is --save.

    All ranks of the group take the same one, whatever layout it was saved at.
    """
    if not cfg.train.load:
        return None
    path = Path(cfg.train.load)
    named = step_of(path.name) is not None
    ledger = branch.read_ledger(cfg, path.parent if named else path) if group.rank == 0 else None
    refuse = partial(branch.refusal, gather_json(ledger, group)[0])
    if named:
        return given(cfg, checkpoint.load(path, group=group, say=say), refuse)
    found = checkpoint.load_latest(path, group=group, say=say, refuse=refuse)
    if found is None and (cfg.train.load != cfg.train.save or cfg.train.finetune or cfg.train.skip_train):
        raise MissingInput(f"--load {path}: there is no checkpoint in it; check the path")
    if found is None:
        say(f"--load {path} holds no checkpoint yet: starting from step 0")
    return found


def given(cfg: Config, loaded: Checkpoint, refuse: checkpoint.Refuse) -> Checkpoint:
    """The checkpoint that --load names one by one. Raises Mismatch where its run would go on from it without its records."""
    goes_on = branch.is_own(cfg, loaded.path.parent) and not (cfg.train.finetune or cfg.train.skip_train)
    if goes_on and (why := refuse(loaded.step, loaded.facts)):
        raise Mismatch(f"--load {loaded.path}: {why}; give another --save and --run-dir, to branch off from it")
    return loaded


def check_agreement(
    cfg: Config, loaded: Checkpoint, fingerprints: dict[str, str | None], say: Callable[[str], None]
) -> list[str]:
    """What changed since the checkpoint. Raises Mismatch with every difference that would make it another experiment."""
    imported = "imported_from" in loaded.facts  # by tools/convert_checkpoint.py: what is not known differs from nothing
    if imported and not cfg.train.finetune:
        raise Mismatch(f"--load {loaded.path}: it holds imported weights and no place in a run: add --finetune")
    only_weights = cfg.train.finetune or cfg.train.skip_train
    if "averaged" in loaded.facts and not only_weights:
        raise Mismatch(f"--load {loaded.path}: it holds an average of checkpoints and no place in a run: add --finetune")
    if "progress" not in loaded.facts and not imported:
        raise Mismatch(
            f"--load {loaded.path}: this is no training checkpoint (a dumped batch is for tools/replay.py); "
            "give a folder of --save"
        )
    fatal: list[str] = []
    architecture = False
    noted: list[str] = []
    saved, prints = loaded.facts["config"], loaded.facts["fingerprints"]
    for section, name, line in differences(saved, cfg):
        if imported and saved.get(section, {}).get(name) is None:
            continue
        harmless = (
            declared()[name][1].metadata["identity"] == "noted"
            or (cfg.train.finetune and section != "model")
            or (cfg.train.skip_train and section in ("train", "data"))
        )
        (noted if harmless else fatal).append(line)
        architecture |= not harmless and section == "model"
    for what, value in fingerprints.items():
        old = prints.get(what, value if imported else None)
        if value not in (None, old):
            harmless = what.partition(":")[0] in ("valid", "test") or (what in ("train", "teacher") and only_weights)
            (noted if harmless else fatal).append(f"the {what}{KINDS.get(what, ' data')} was {old}, is {value}")
    if fatal:
        raise Mismatch(
            f"{loaded.path} was made by another experiment: {'; '.join(fatal)}. Give the same flags"
            + ("" if architecture or cfg.train.finetune else ", or --finetune to take only the weights")
        )
    for line in noted:
        say(f"changed since {loaded.path.name}: {line}")
    return noted


def standing(cfg: Config, loaded: Checkpoint | None) -> tuple[Progress, Interval]:
    """The place in the run and the sums of its open log interval; the beginning, for a fresh start and --finetune."""
    if loaded is None or cfg.train.finetune:
        return Progress(), Interval()
    return Progress(**loaded.facts["progress"]), Interval(**loaded.facts["interval"])


def facts(
    cfg: Config,
    at: Progress,
    interval: Interval,
    fingerprints: dict[str, str | None],
    wandb_id: str | None,
    start: branch.Start,
    noted: dict,
) -> dict:
    """What a checkpoint says beside its tensors; the first six fields are those that readers of other trainers expect."""
    return {
        "global_step": at.step,
        "architecture": cfg.objective.objective,
        "model_config": asdict(cfg.model),
        "train_config": asdict(cfg.train) | asdict(cfg.optim),
        "best_val_loss": at.best_val_loss,
        "samples": at.samples,
        "config": cfg.as_dict(),
        "progress": asdict(at),
        "interval": asdict(interval),
        "fingerprints": fingerprints,
        "wandb_id": wandb_id,
        "branch": start.branch,
        "parent": start.parent,
        "noted": noted,
    }
