"""What scores of a text are called, and what each one's number is: for flags, tables and figures. Standard library only.

exact               an autoregressive model's NLL
nelbo               upper bound by the count form, noise levels stratified over rows; what validation measures
nelbo:bernoulli     the same bound, each token hidden by itself
nelbo:independent   the same bound by the count form, noise levels independent
nelbo:pilot         the same bound, by the one of these and `chain` that a pilot finds to have the least noise a pass
chain               the same bound by single random orders
korder:K            a tighter upper bound by K random orders inside the logarithm
mixture             what these bound, exactly, for few tokens
tangent:K           lower bound on the same by the tangent of the logarithm at the mean of K orders, for few tokens
rule:NAME[:TOKENS]  exact NLL of the sampler that reveals so many TOKENS a step [1] by one of RULES

chain, korder, mixture, tangent and rule with /B behind: of the model that fills blocks of B places from left to right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron.flags import ConfigError

RULES = ("left-to-right", "confidence", "margin", "entropy", "uncertainty")
PLAIN = ("exact", "nelbo", "nelbo:bernoulli", "nelbo:independent", "nelbo:pilot", "chain", "mixture")
WITHIN_BLOCKS = ("chain", "korder", "mixture", "tangent", "rule")
NAME = re.compile(rf"({'|'.join(PLAIN)}|(?:korder|tangent):[1-9]\d*|rule:(?:{'|'.join(RULES)})(?::[1-9]\d*)?)(?:/([1-9]\d*))?")
EXPECTED = (
    "nelbo, nelbo:bernoulli, nelbo:independent, nelbo:pilot, chain, korder:K, mixture, tangent:K or rule:NAME[:TOKENS] with NAME "
    f"one of {', '.join(RULES)}, the last five also with /B for blocks of B, or exact of an autoregressive model"
)
LEAST_TANGENT = 4  # orders at which the tangent's slack is moderate (arXiv:2605.24292)
MOST_PLACES = {"mixture": 12, "tangent": 10}  # 2^12 passes a row; the slack of a tangent grows with the scatter of an order's NLL


@dataclass(frozen=True, kw_only=True)
class ScoreName:
    """One score, by its name."""

    text: str
    kind: str  # the name up to its numbers
    orders: int = 1  # K
    rule: str | None = None
    tokens: int = 1  # that the rule reveals a step
    block: int | None = None  # places that are filled before those to their right; None: all
    process: str | None = None  # whose NLL it is, where it is of no orders

    @property
    def value(self) -> str:
        """exact, upper bound or lower bound."""
        return {"tangent": "lower bound"}.get(self.kind, "exact" if self.kind in ("exact", "mixture", "rule") else "upper bound")

    @property
    def of(self) -> str:
        """The distribution whose NLL it is, or bounds."""
        blocks = "" if self.block is None else f", blocks of {self.block} from left to right"
        if self.process:
            return self.process
        if self.kind == "exact":
            return "model, left to right"
        if self.kind == "rule":
            return f"sampler by {self.rule}, {self.tokens} token{'s' * (self.tokens > 1)} a step{blocks}"
        return f"mixture over all orders{blocks}"

    @property
    def of_sampler(self) -> bool:
        return self.kind == "rule"


def read_score(text: str, flag: str = "--score") -> ScoreName:
    """Raises ConfigError for a name that does not exist."""
    found = NAME.fullmatch(text)
    if found is None:
        raise ConfigError([f"{flag} {text}: expected {EXPECTED}"])
    name, block = found[1], int(found[2]) if found[2] else None
    head, _, rest = name.partition(":")
    kind = name if name in PLAIN else head
    if block is not None and kind not in WITHIN_BLOCKS:
        raise ConfigError([f"{flag} {text}: /B is for {', '.join(WITHIN_BLOCKS)}; give {kind} without it, or chain/{block}"])
    if kind == "rule":
        rule, _, tokens = rest.partition(":")
        return ScoreName(text=text, kind=kind, rule=rule, tokens=int(tokens or 1), block=block)
    if kind == "tangent" and int(rest) < LEAST_TANGENT:
        raise ConfigError(
            [f"{flag} {text}: with fewer than {LEAST_TANGENT} orders its slack explodes; give tangent:{LEAST_TANGENT} or more"]
        )
    return ScoreName(text=text, kind=kind, orders=int(rest) if kind in ("korder", "tangent") else 1, block=block)


def read_scores(words: list[str], flag: str = "--score") -> list[ScoreName]:
    """Raises ConfigError, also where one is named twice."""
    if twice := next((word for n, word in enumerate(words) if word in words[:n]), None):
        raise ConfigError([f"{flag} {','.join(words)}: names {twice} twice; expected each score once"])
    return [read_score(word, flag) for word in words]
