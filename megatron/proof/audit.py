"""Is a loss a bound? Three answers, each of which sees what the others are blind to.

Closed form. A loss sum_k w_k n CE_k, with CE_k the mean NLL of a hidden token over all ways to hide k of n places, is an upper
bound on the NLL for every model if sum_k w_k = 1 and w_1 + .. + w_j <= j/n for all j: CE_k never falls with k for a law's own
posteriors, and the NELBO has w_k = 1/n (Uria et al., arXiv:1310.1757; Ou et al., arXiv:2406.03736). It is none otherwise: rows
of which any n - j places tell the rest (MDS codes) have CE_k = 0 up to j and CE_k = ln v after, and (n - j) ln v nats.

Enumeration. exp(-loss) of all rows may not sum to more than one (Kraft, 1949; McMillan, 1956); it is one where a rule is tight.

Floor. On a corpus of known entropy, the trained model minus the oracle, paired by row (megatron/training/floor.py).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from megatron.errors import Mismatch
from megatron.proof.scoring import LONGEST_DRAWN, Posed, Rule, Scorer
from megatron.proof.sources import Meter, Rows, Source, ending, first_of, mean_cross_entropies, packed, sources

TIGHT, LOOSE, NOT_A_BOUND, BIASED = "tight", "loose", "not a bound", "biased"
SIZES = {False: (4, 6), True: (3, 4)}  # tokens and places, without and with draws: some CPU seconds
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # of a sum over rows


@dataclass(frozen=True, kw_only=True)
class Sum:
    """exp(-loss) over all rows of one kind under one model; where the length is given, of the length that is worst."""

    rows: str
    source: str
    total: float
    excess: float | None  # nats a row above the exact NLL, under the source's own law
    nats_total: float | None = None  # where draws are averaged as likelihoods: the total of their mean in nats
    tolerance: float = TOLERANCE[torch.float64]

    @property
    def passed(self) -> bool:
        return self.total <= 1 + self.tolerance


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """w_k, k = 1..n, of a loss that is sum_k w_k n CE_k whatever the model."""

    weights: list[float]

    @property
    def trouble(self) -> str | None:
        n, so_far = len(self.weights), 0.0
        for j, weight in enumerate(self.weights, 1):
            so_far += weight
            if so_far > j / n + 1e-6 and j < n:
                return f"its weights up to {j} of {n} hidden sum to {so_far:.4f}, more than {j}/{n}: easy ones count too much"
        return None if so_far > 1 - 1e-6 else f"its weights sum to {so_far:.4f}, less than 1: part of the text is never paid for"


@dataclass(kw_only=True)
class Audit:
    """What was found of one loss."""

    subject: str
    sums: list[Sum] = field(default_factory=list)
    closed_form: ClosedForm | None = None
    floor: dict | None = None
    faults: list[str] = field(default_factory=list)  # that were seen otherwise, one sentence each
    notes: list[str] = field(default_factory=list)  # what was left out, and why
    unscored: str = ""  # what the verdict is of, where nothing was asked of the weights that it names
    seconds: float = 0.0

    @property
    def bound(self) -> bool:
        return self.verdict in (TIGHT, LOOSE)

    @property
    def verdict(self) -> str:
        wrong = [one for one in self.sums if not one.passed]
        if wrong and all(one.nats_total is not None and one.nats_total <= 1 + one.tolerance for one in self.sums):
            return BIASED
        if self.reasons:
            return NOT_A_BOUND
        known = [one.total for one in self.sums if one.excess is not None]
        return TIGHT if known and min(known) >= 1 - 1e-6 else LOOSE

    @property
    def reasons(self) -> list[str]:
        """Why it is no bound, one sentence each."""
        found = [
            f"{one.rows} rows, {one.source}: exp(-loss) sums to {one.total:.4f}, a likelihood to 1 at most"
            for one in self.sums
            if not one.passed
        ]
        if self.closed_form and self.closed_form.trouble:
            found.append(f"closed form: {self.closed_form.trouble}")
        found += self.faults
        if self.floor and self.floor["below_floor"]:
            found.append(f"floor: {self.floor['difference']:+.6f} +- {self.floor['se']:.6f} nats per token from the oracle")
        return found

    def record(self) -> dict:
        return {
            "subject": self.subject,
            "verdict": self.verdict,
            "bound": self.bound,
            "unscored": self.unscored,
            "reasons": self.reasons,
            "sums": [asdict(one) | {"passed": one.passed} for one in self.sums],
            "closed_form": self.closed_form and asdict(self.closed_form) | {"trouble": self.closed_form.trouble},
            "floor": self.floor,
            "notes": self.notes,
            "seconds": round(self.seconds, 2),
        }


def audit(scoring: Posed | Rule, vocab: int | None = None, length: int | None = None, seed: int = 0) -> Audit:
    """Closed form and enumeration, on rows of `length` places of `vocab` tokens [SIZES]. Raises Mismatch, BadData."""
    began, sizes = time.perf_counter(), SIZES[scoring.noisy]
    vocab, length = vocab or sizes[0], length or sizes[1]
    if scoring.noisy and length > LONGEST_DRAWN:
        raise Mismatch(f"--length {length}: what draws is gone through on {LONGEST_DRAWN} places at most; shorten it")
    found = Audit(subject=scoring.name)
    if isinstance(scoring, Rule) and scoring.noisy:
        few = packed(2, 2)
        scoring.refuse_other_noise(sources(few, seed)[-1], few)
    for rows in (packed(vocab, length), ending(vocab, length)):
        models, loss = sources(rows, seed), scoring.on(rows, scoring.likelihood)
        nats = scoring.on(rows) if scoring.likelihood else None
        losses = [loss(model) for model in models]
        found.sums += [sum_of(scoring, rows, model, x, nats and nats(model)) for model, x in zip(models, losses)]
        if rows.name == "packed" and not scoring.likelihood:
            found.closed_form = closed_form(scoring, rows, models, losses)
    found.seconds = time.perf_counter() - began
    return found


def sum_of(scoring: Posed | Rule, rows: Rows, model: Source, loss: Tensor, nats: Tensor | None) -> Sum:
    excess = None
    if model.law is not None:
        there = model.law > 0
        excess = float((model.law * (loss + model.law.clamp_min(1e-300).log()))[there].sum())
    return Sum(
        rows=rows.name,
        source=model.name,
        total=total(scoring, rows, loss),
        excess=excess,
        nats_total=None if nats is None else total(scoring, rows, nats),
    )


def network_sum(scoring: Posed, rows: Rows, engine: Scorer, name: str) -> Sum:
    """A network in place of a table: what it can see is what its attention lets it."""
    loss = scoring.network_loss(engine, rows)
    return Sum(rows=rows.name, source=name, total=total(scoring, rows, loss), excess=None, tolerance=TOLERANCE[torch.float32])


def total(scoring: Posed | Rule, rows: Rows, loss: Tensor) -> float:
    """Sum of exp(-loss), or the largest of the sums over rows of one length."""
    groups = rows.scored.sum(1) if "length" in scoring.given else torch.zeros(len(loss), dtype=torch.long)
    return max(float((-loss[groups == one]).logsumexp(0).exp()) for one in groups.unique())


def closed_form(scoring: Posed | Rule, rows: Rows, models: list[Source], losses: list[Tensor]) -> ClosedForm | None:
    """The weights, measured with a model that costs a nat at one place and count; None where the loss is of another form."""
    n, loss = rows.tokens.shape[1], scoring.on(first_of(rows))
    meters = [[Meter(vocab=rows.vocab, hidden=k + 1, place=i) for i in range(n)] for k in range(n)]
    weights = torch.tensor([[float(loss(meter)) for meter in row] for row in meters], dtype=torch.float64)
    if (weights - weights[:, :1]).abs().max() > 1e-6:
        return None  # places are not alike
    said = weights.mean(1)
    for model, measured in zip(models, losses):
        if not torch.allclose(n * said @ mean_cross_entropies(model, rows), measured, rtol=1e-6, atol=1e-6):
            return None  # what is hidden depends on the text
    return ClosedForm(weights=said.tolist())
