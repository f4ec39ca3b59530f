"""The objectives that there are, for all who only need to know of them: flags, recipes, tables and figures. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Known:
    """One objective: `--objective NAME`."""

    label: str  # in figures and tables
    title: str  # in a sentence
    built_by: str  # module:class, whose `build` reads the flags
    entry_point: str  # the program whose default it is
    causal: bool  # which attention its model has
    exact: bool  # whether its validation loss is an exact NLL; else an upper bound


OBJECTIVES = {
    "ar": Known(
        label="AR",
        title="predict the next token",
        built_by="megatron.objectives.autoregressive:NextToken",
        entry_point="pretrain_gpt.py",
        causal=True,
        exact=True,
    ),
    "mdm": Known(
        label="MDM",
        title="masked diffusion",
        built_by="megatron.objectives.masked:MaskedDiffusion",
        entry_point="pretrain_diff_gpt.py",
        causal=False,
        exact=False,
    ),
}
