"""The objectives that there are, for all who only need to know of them: flags, recipes, tables and figures. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.errors import Mismatch


@dataclass(frozen=True, kw_only=True)
class Known:
    """One objective: `--objective NAME`."""

    label: str  # in figures and tables
    title: str  # in a sentence
    built_by: str  # module:class, whose `build` reads the flags
    entry_point: str  # the program whose default it is
    causal: bool  # which attention its model has
    uses_mask: bool  # whether the mask's row of the embedding table is an input
    vectors: bool = False  # whether it is of rows with vectors, which it predicts
    exact: bool  # whether its validation loss is an exact NLL
    likelihood: bool = True  # where it is not exact, whether it is an upper bound on one; else it says nothing of an NLL


OBJECTIVES = {
    "ar": Known(
        label="AR",
        title="predict the next token",
        built_by="megatron.objectives.autoregressive:NextToken",
        entry_point="pretrain_gpt.py",
        causal=True,
        uses_mask=False,
        exact=True,
    ),
    "mdm": Known(
        label="MDM",
        title="masked diffusion",
        built_by="megatron.objectives.masked:MaskedDiffusion",
        entry_point="pretrain_diff_gpt.py",
        causal=False,
        uses_mask=True,
        exact=False,
    ),
    "udm": Known(
        label="UDM",
        title="uniform-state diffusion, or a mixture of it and masked diffusion",
        built_by="megatron.objectives.uniform:UniformDiffusion",
        entry_point="pretrain_diff_gpt.py",
        causal=False,
        uses_mask=True,
        exact=False,
    ),
    "sdd": Known(
        label="SDD",
        title="sparse distribution diffusion",
        built_by="megatron.objectives.sdd:SparseDistributions",
        entry_point="pretrain_diff_gpt.py",
        causal=False,
        uses_mask=True,
        exact=False,
        likelihood=False,
    ),
    "t2l": Known(
        label="T2L",
        title="diffusion of vectors given their texts",
        built_by="megatron.objectives.vectors:VectorGivenText",
        entry_point="pretrain_diff_gpt.py",
        causal=False,
        uses_mask=True,
        vectors=True,
        exact=False,
        likelihood=False,
    ),
    "joint": Known(
        label="Joint",
        title="texts given vectors and vectors given texts, in turns or at once",
        built_by="megatron.objectives.vectors:TextAndVector",
        entry_point="pretrain_diff_gpt.py",
        causal=False,
        uses_mask=True,
        vectors=True,
        exact=False,
    ),
}


def default_of(entry_point: str) -> str | None:
    """The objective of a program that is not told one: the first of the table that names it."""
    return next((name for name, known in OBJECTIVES.items() if known.entry_point == entry_point), None)


def need_likelihood(objective: str, what: str) -> None:
    """Raises Mismatch for an objective that has none, saying what needs one."""
    if not OBJECTIVES[objective].likelihood:
        raise Mismatch(
            f"{what} needs a likelihood, and --objective {objective} has none: its loss is one of denoising, which bounds "
            "no NLL; tools/evaluate.py --checkpoint measures what it has"
        )


def need_mask(objective: str, what: str) -> None:
    """Raises Mismatch for an objective whose network does not read a row as its tokens and the mask."""
    if objective == "udm":
        raise Mismatch(
            f"{what} reads each place as its token or the mask, and a run of --objective udm reads random ids too: score it with "
            "tools/evaluate.py likelihood, write with tools/generate.py, or train with --objective mdm"
        )


ENTRY_POINTS = tuple(dict.fromkeys(known.entry_point for known in OBJECTIVES.values()))
DEFAULTS = tuple(dict.fromkeys(filter(None, map(default_of, ENTRY_POINTS))))  # what studies compare where nothing else is said
