"""Checkpoints averaged weight by weight: those of one run's last steps, or of several runs of one architecture.

What a run saw last lies around a minimum, and the mean lies nearer to it (Izmailov et al., arXiv:1803.05407; Sanyal et al.,
arXiv:2306.03241). It is no ensemble: one network is left, of one network's cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from megatron.config import declared
from megatron.core import checkpoint
from megatron.core.checkpoint import Checkpoint, whole
from megatron.engine.average import root_of_weights
from megatron.errors import Mismatch, MissingInput
from megatron.flags import ConfigError
from megatron.rundir.names import CHECKPOINT, step_and_attempt
from megatron.training.trained import find_checkpoint, intact, read_config, refuse_untrained, unfinished

ALIKE = {"model": "the architecture", "objective": "the objective"}  # sections of the config that must agree


def average(
    sources: Sequence[Path],
    out: Path,
    *,
    last: int | None = None,
    steps: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """Write a checkpoint of the mean weights into the new folder `out`; what was averaged, as its facts record it.

    `last`, `steps`: of the one run that is given; left out, the newest checkpoint of each source. `weights`: of each in turn, in
    any unit [all alike]. Where a run keeps an exponential average, that is taken: what its validation scores. Sums are float64.
    Raises ConfigError, MissingInput, Mismatch and BadData before anything is written.
    """
    paths = chosen(sources, last, steps)
    shares = shares_of(paths, weights)
    found = [checkpoint.load(path, say=say) for path in paths]
    refuse_others(found)
    tensors = mean(found, shares)
    newest = max(found, key=lambda one: one.step)
    averaged = {
        "checkpoints": [str(path) for path in paths],
        "steps": [one.step for one in found],
        "weights": shares,
        "of": [root_of_weights(one, weights_only=True) for one in found],
        "unfinished": unfinished_runs(paths, say),
    }
    written = checkpoint.Saving(out, newest.step, whole(tensors), newest.facts | {"averaged": averaged}, say=say).finish()
    return averaged | {"out": str(written), "parameters": sum(t.numel() for t in tensors.values())}


def chosen(sources: Sequence[Path], last: int | None, steps: Sequence[int] | None) -> list[Path]:
    """The checkpoints to average, two or more, in the order of their steps where they are of one run."""
    if last is None and steps is None:
        paths = [find_checkpoint(source, None) for source in sources]
    elif len(sources) > 1 or CHECKPOINT.fullmatch(sources[0].name):
        raise ConfigError(["--last and --steps are of one run: give its folder alone, or name the checkpoints one by one"])
    elif steps is not None:
        paths = [find_checkpoint(sources[0], step) for step in steps]
    else:
        assert last is not None
        newest = find_checkpoint(sources[0], None)
        paths = intact(checkpoint.find(newest.parent), sources[0])
        one_a_step = {step_and_attempt(path.name)[0]: path for path in reversed(paths)}
        if last > len(one_a_step):
            raise MissingInput(
                f"--last {last}: {sources[0]} has {len(one_a_step)} intact checkpoints; give as many or fewer, or save more "
                "often (--save-interval, --keep-last)"
            )
        paths = [one_a_step[step] for step in sorted(one_a_step)[-last:]]
    if len(paths) < 2:
        raise ConfigError(["one checkpoint is no average: give --last 2 or more, --steps A,B, or several checkpoints"])
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(["a checkpoint is named twice: name each once, and give --weights to let one count for more"])
    return paths


def shares_of(paths: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    """Of each checkpoint; their sum is 1."""
    if weights is None:
        return [1 / len(paths)] * len(paths)
    if len(weights) != len(paths):
        raise ConfigError([f"--weights: {len(weights)} numbers for {len(paths)} checkpoints; give one each"])
    return [weight / sum(weights) for weight in weights]


def refuse_others(found: Sequence[Checkpoint]) -> None:
    """All must be of one architecture, objective and tokenizer. Raises Mismatch."""
    first = found[0]
    for one in found:
        refuse_untrained(one.path, one.facts)
        for section, what in ALIKE.items():
            a, b = (settled(x.facts["config"], section) for x in (first, one))
            if other := [f"{name} {a[name]} and {b[name]}" for name in a if a[name] != b[name]]:
                raise Mismatch(
                    f"{first.path} and {one.path} differ in {what} ({'; '.join(sorted(other)[:4])}): average checkpoints of one"
                )
        prints = [x.facts["fingerprints"].get("tokenizer") for x in (first, one)]
        if prints[0] != prints[1]:
            raise Mismatch(
                f"{first.path} has the tokenizer {prints[0]} and {one.path} {prints[1]}: their weights are of other tokens"
            )


def unfinished_runs(paths: Sequence[Path], say: Callable[[str], None]) -> list[str]:
    """Folders whose newest checkpoint is not at its run's last step; each is said, for such weights are of a higher rate."""
    found = []
    for folder, one in {path.parent: path for path in paths}.items():
        newest = next((path for path in checkpoint.find(folder) if checkpoint.facts_of_complete(path)), one)
        facts = checkpoint.read_manifest(newest)["facts"]
        if of := unfinished(read_config(facts, newest), facts):
            say(f"{folder} did not finish: its newest checkpoint is at {of}; what is written says so too")
            found.append(str(folder))
    return found


def settled(saved: dict, section: str) -> dict:
    """A section's flags that make an experiment; one that the version which saved it did not have has its default."""
    flags = {name: f for name, (of, f, _) in declared().items() if of == section and f.metadata["identity"] == "experiment"}
    return {name: saved.get(section, {}).get(name, f.default) for name, f in flags.items()}


def mean(found: Sequence[Checkpoint], shares: Sequence[float]) -> dict[str, Tensor]:
    """Of the weights under their logical names, whatever the layouts they were saved at; companions (ATAT's) too.  -> fp32"""
    total: dict[str, Tensor] = {}
    for one, share in zip(found, shares):
        root = root_of_weights(one, weights_only=True)
        names = [name for name in one.shapes if name.startswith((f"{root}/", "companion/model/"))]
        own = {name.replace(f"{root}/", "model/", 1) if name.startswith(f"{root}/") else name: name for name in names}
        if total and own.keys() != total.keys():
            odd = sorted(own.keys() ^ total.keys())
            raise Mismatch(f"{found[0].path} and {one.path} do not hold the same weights ({', '.join(odd[:4])})")
        tensors = one.tensors(names)
        for name, stored in own.items():
            part = tensors.pop(stored).double() * share
            total[name] = total[name].add_(part) if name in total else part
    return {name: tensor.float() for name, tensor in total.items()}
