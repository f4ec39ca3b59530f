"""The samplers that there are, for all who only need to know of them: flags, messages, tables. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from megatron.catalogue import OBJECTIVES
from megatron.errors import Mismatch


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """`--sampler NAME`: a function (model, Rows, How) -> ids [b, s]."""

    title: str  # in a sentence
    run_by: str  # module:function
    serves: tuple[str, ...]  # objectives, by their names in megatron/catalogue.py
    reads: tuple[str, ...] = ()  # of SETTINGS
    any_steps: bool = False  # whether a step may reveal nothing, so that there may be more of them than places

    def load(self) -> Callable:
        module, _, name = self.run_by.partition(":")
        return getattr(import_module(module), name)


# What of `How` some samplers read and others do not; each is a flag of tools/generate.py.
SETTINGS = ("steps", "block_length", "threshold", "factor", "entropy_bound", "eta", "cache", "guidance")
MASKED = "megatron.sampling.masked"
READ_BY_MASKED = ("block_length", "cache", "guidance")
HIDING = ("mdm", "joint")  # objectives of hidden tokens
COUNTED = ("steps", *READ_BY_MASKED)
REMASKING = ("steps", "eta", "guidance")
SAMPLERS = {
    "autoregressive": Sampler(
        title="the next token, left to right", run_by="megatron.sampling.autoregressive:autoregressive", serves=("ar",)
    ),
    "ancestral": Sampler(
        title="the reverse process: each place at a time of its own",
        run_by=f"{MASKED}:ancestral",
        serves=HIDING,
        reads=COUNTED,
        any_steps=True,
    ),
    "left-to-right": Sampler(
        title="masked places from left to right", run_by=f"{MASKED}:left_to_right", serves=HIDING, reads=COUNTED
    ),
    "confidence": Sampler(
        title="the places with the likeliest token first", run_by=f"{MASKED}:confidence", serves=HIDING, reads=COUNTED
    ),
    "margin": Sampler(
        title="the places with the largest lead of the likeliest token first",
        run_by=f"{MASKED}:margin",
        serves=HIDING,
        reads=COUNTED,
    ),
    "entropy": Sampler(title="the places with the least entropy first", run_by=f"{MASKED}:entropy", serves=HIDING, reads=COUNTED),
    "uncertainty": Sampler(
        title="the places with the most entropy first", run_by=f"{MASKED}:uncertainty", serves=HIDING, reads=COUNTED
    ),
    "threshold": Sampler(
        title="all places whose likeliest token reaches a probability, at least one",
        run_by=f"{MASKED}:threshold",
        serves=HIDING,
        reads=("threshold", *READ_BY_MASKED),
    ),
    "factor": Sampler(
        title="the more places, the surer the least sure of them is",
        run_by=f"{MASKED}:factor",
        serves=HIDING,
        reads=("factor", *READ_BY_MASKED),
    ),
    "entropy-bounded": Sampler(
        title="the places of least entropy, as many as a bound on their sum lets in",
        run_by=f"{MASKED}:entropy_bounded",
        serves=HIDING,
        reads=("entropy_bound", *READ_BY_MASKED),
    ),
    "udm-ancestral": Sampler(
        title="the reverse process of noise that is random ids: every place is drawn again at each step",
        run_by="megatron.sampling.uniform:ancestral",
        serves=("udm",),
        reads=("steps",),
        any_steps=True,
    ),
    "sdd-renoise": Sampler(
        title="predict every place, draw it, and noise it again to the next level, as training does",
        run_by="megatron.sampling.sparse:renoised",
        serves=("sdd",),
        reads=("steps",),
        any_steps=True,
    ),
    "sdd-top-k": Sampler(
        title="keep the likeliest candidates of every place with their probabilities, and predict again",
        run_by="megatron.sampling.sparse:kept",
        serves=("sdd",),
        reads=("steps",),
        any_steps=True,
    ),
    "remdm-cap": Sampler(
        title="the reverse process, which hides revealed places again with a capped probability",
        run_by="megatron.sampling.remasking:capped",
        serves=HIDING,
        reads=REMASKING,
        any_steps=True,
    ),
    "remdm-rescale": Sampler(
        title="the reverse process, which hides revealed places again with a share of the largest probability",
        run_by="megatron.sampling.remasking:rescaled",
        serves=HIDING,
        reads=REMASKING,
        any_steps=True,
    ),
    "remdm-confidence": Sampler(
        title="the reverse process, which hides places again that were revealed with the least probability",
        run_by="megatron.sampling.remasking:least_sure",
        serves=HIDING,
        reads=REMASKING,
        any_steps=True,
    ),
}


def default_of(objective: str) -> str:
    """The first sampler that serves an objective.  Raises Mismatch where there is none."""
    found = [name for name, sampler in SAMPLERS.items() if objective in sampler.serves]
    if not found:
        raise Mismatch(
            f"--objective {objective} writes no texts: give --to-vectors"
            if OBJECTIVES[objective].vectors
            else f"no sampler serves the objective {objective}: add it to those of one in megatron/sampling/table.py"
        )
    return found[0]


def sampler_for(name: str, objective: str) -> Sampler:
    """Raises Mismatch for a sampler that does not serve the objective."""
    default_of(objective)
    fitting = ", ".join(n for n, s in SAMPLERS.items() if objective in s.serves)
    if objective not in SAMPLERS[name].serves:
        raise Mismatch(f"--sampler {name} does not serve the objective {objective}: use one of {fitting}")
    return SAMPLERS[name]
