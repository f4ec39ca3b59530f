"""Learning rates, batch sizes and weight decays of a planned run: stated, on a grid, or by a rule: published, or a hyper.json.

The rules are of autoregressive models trained with Adam; rates are peaks, batches count tokens, N is without embeddings.
kaplan      Kaplan et al. 2020, arXiv:2001.08361, equation D.1, with the natural logarithm: it is 0 at N = 1.2e10, and the paper
            says that it breaks down beyond 1e10. (Its critical batch 2e8 / L^(1/0.21) needs the loss, which no plan knows.)
deepseek    DeepSeek LLM, arXiv:2401.02954, equation 1, fitted from 1e17 to 2e19 FLOPs. C = M D, where M is the FLOPs of a token
            with attention and without the vocabulary. (0.3188 for 0.3118, in the tables of others, is a misprint.)
step-law    Li et al. 2025, arXiv:2503.04715, over 3,700 runs to 1e9 parameters and 1e11 tokens, down to a rate of 1e-5.
width       Yang et al. 2022, arXiv:2203.03466: Adam's rate of a matrix falls as 1 / width. The constant is measured, on models
            8 to 64 wide with --init-method small-init (docs/quick-start.md), and says nothing of wide ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron.scaling.law.hyper import HyperLaw, read_hyper
from megatron.scaling.table.covariates import said

SETTINGS = {"--lr": "lr", "--batch-size": "batch_size", "--weight-decay": "weight_decay"}  # what tables call them
SYMBOLS = {"params": "N", "tokens": "D", "unique_tokens": "U"}
MULTIPLE = 8  # of samples, to which a rule's batch size is rounded


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rules read."""

    params: int  # non-embedding
    tokens: int  # D
    flops: float  # training FLOPs without the head and the embedding
    seq_length: int
    hidden_size: int
    objective: str = ""
    unique_tokens: int = 0  # U
    counts: dict[str, int] = field(default_factory=dict)  # N by each params_convention

    def variables(self, law: HyperLaw) -> dict[str, float]:
        """params, tokens and unique_tokens as the law counts them. Raises ValueError."""
        convention = law.params_convention or "total"
        if convention not in self.counts:
            raise ValueError(
                f"N is {convention} there, and a plan has {', '.join(self.counts)}: fit it by one of these (--params)"
            )
        return {"params": self.counts[convention], "tokens": self.tokens, "unique_tokens": self.unique_tokens}


# The rules, and where they stand.
LEARNING_RATES: dict[str, tuple[Callable[[Facts], float], str]] = {
    "kaplan": (lambda f: 0.003239 - 0.0001395 * math.log(f.params), "0.003239 - 0.0001395 ln N (arXiv:2001.08361, eq. D.1)"),
    "deepseek": (lambda f: 0.3118 * f.flops**-0.1250, "0.3118 C^-0.1250 (arXiv:2401.02954, eq. 1)"),
    "step-law": (lambda f: 1.79 * f.params**-0.713 * f.tokens**0.307, "1.79 N^-0.713 D^0.307 (arXiv:2503.04715)"),
    "width": (lambda f: 0.24 / f.hidden_size, "0.24 / hidden size, for small-init (arXiv:2203.03466; docs/quick-start.md)"),
}
BATCH_SIZES: dict[str, tuple[Callable[[Facts], float], str]] = {
    "deepseek": (lambda f: 0.2920 * f.flops**0.3271, "0.2920 C^0.3271 tokens (arXiv:2401.02954, eq. 1)"),
    "step-law": (lambda f: 0.58 * f.tokens**0.571, "0.58 D^0.571 tokens (arXiv:2503.04715)"),
}
WEIGHT_DECAYS: dict[str, tuple[Callable[[Facts], float], str]] = {}  # no rule of these is published with its constants
OF_SIZE_ALONE = {"kaplan", "width"}  # rules whose answer is the same for every length of a run


@dataclass(frozen=True)
class Choice:
    """One value, or the rule that gives it for each run: a published one, or the laws of each objective from a file."""

    value: float | None
    rule: str = ""
    laws: dict[str, HyperLaw] | None = None

    @property
    def needs_length(self) -> bool:
        if self.laws is not None:
            return any(slope for law in self.laws.values() for name, slope in law.exponents.items() if name != "params")
        return bool(self.rule) and self.rule not in OF_SIZE_ALONE

    def by_law(self, flag: str, facts: Facts) -> float:
        """Raises ValueError where the file has no law of this objective."""
        law = self.law(facts)
        if law is None:
            raise ValueError(f"{flag} rule:{self.rule} has laws of {', '.join(self.laws or ())}, none of {facts.objective}")
        try:
            return law.at(**facts.variables(law))
        except ValueError as error:
            raise ValueError(f"{flag} rule:{self.rule}: {error}") from None

    def law(self, facts: Facts) -> HyperLaw | None:
        return (self.laws or {}).get(facts.objective)


def read_choices(text: str, flag: str, rules: dict) -> list[Choice]:
    """`fixed:2e-4`, `2e-4`, `grid:1e-4,2e-4`, `rule:NAME` or `rule:FILE.json`.

    Raises ValueError with a sentence; MissingInput and BadData for a file.
    """
    kind, colon, rest = text.partition(":")
    if kind == "rule" and rest.endswith(".json"):
        return [Choice(None, rest, read_hyper(rest, SETTINGS[flag]))]
    if kind == "rule":
        if rest not in rules:
            raise ValueError(f"{flag} {text}: the rules are {', '.join([*rules, 'FILE.json of the verb hyper'])}")
        return [Choice(None, rest)]
    if colon and kind not in ("fixed", "grid"):
        raise ValueError(f"{flag} {text}: expected fixed:X, grid:X,Y or rule:NAME")
    try:
        values = [float(word) for word in (rest if colon else text).split(",")]
    except ValueError:
        raise ValueError(f"{flag} {text}: expected numbers such as {'grid:1,2' if kind == 'grid' else 'fixed:1'}") from None
    if kind != "grid" and len(values) > 1:
        raise ValueError(f"{flag} {text}: several values are a grid: give grid:{text.removeprefix('fixed:')}")
    least = 0.0 if flag == "--weight-decay" else math.ulp(0.0)
    if not all(least <= value < math.inf for value in values):
        raise ValueError(f"{flag} {text}: expected numbers {'of 0 or more' if least == 0 else 'above 0'}")
    return [Choice(value) for value in values]


def beyond(choice: Choice, flag: str, facts: Facts) -> list[str]:
    """A sentence for each variable in which a run lies outside of what the rule was fitted to."""
    law = choice.law(facts)
    if law is None:
        return []
    return [
        f"{SYMBOLS[name]} lies outside of {' to '.join(said(float(f'{end:.3g}')) for end in law.range[name])}, where {flag} "
        f"rule:{choice.rule} was fitted for {facts.objective}"
        for name in law.outside(**facts.variables(law))
    ]


def learning_rate(choice: Choice, facts: Facts) -> float:
    """The peak rate, a rule's to three digits. Raises ValueError where a rule has none."""
    if choice.value is not None:
        return choice.value
    found = LEARNING_RATES[choice.rule][0](facts) if choice.laws is None else choice.by_law("--lr", facts)
    if found <= 0:
        raise ValueError(f"--lr rule:{choice.rule} has no rate for {facts.params:,} parameters: it was fitted far below that")
    return float(f"{found:.3g}")


def batch_size(choice: Choice, facts: Facts) -> int:
    """Samples a step; a rule's go to a multiple of 8. Raises ValueError for a part of a sample."""
    if choice.value is not None:
        if choice.value != int(choice.value):
            raise ValueError(f"--batch-size {choice.value:g}: expected whole samples")
        return int(choice.value)
    if choice.laws is not None:
        law = choice.law(facts)
        samples = choice.by_law("--batch-size", facts)
        if law is not None and law.seq_length:
            samples *= law.seq_length / facts.seq_length
    else:
        samples = BATCH_SIZES[choice.rule][0](facts) / facts.seq_length
    return max(1, round(samples / MULTIPLE)) * MULTIPLE


def weight_decay(choice: Choice, facts: Facts) -> float:
    """A rule's to three digits. Raises ValueError where a rule has none."""
    return choice.value if choice.value is not None else float(f"{choice.by_law('--weight-decay', facts):.3g}")
