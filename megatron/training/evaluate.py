"""Validation that can be compared: one fixed slice, fixed noise, the same tokens under the same conditioning.

AR and MDM both score tokens 1 .. S-1 of each row of S+1 and see token 0, so their curves speak of the same tokens.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from megatron.batch import Batch, Clean, Noise, RowScores
from megatron.data.loader import micro_batches
from megatron.data.samples import Samples
from megatron.engine import Engine
from megatron.engine.scoring import TOKENS_A_PASS, score_in_turn
from megatron.objectives import REFERENCE_STRATA, Objective, kind_of_loss
from megatron.progress import ProgressLine

VALUES = {
    "exact": "exact NLL",
    "bound": "upper bound on the NLL",
    "denoising": "cross-entropy of denoising, a mean over t: no NLL",
}
QUARTERS = 4  # of the noise level


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows that every evaluation of a run scores, and how."""

    dataset: Samples
    rows: int
    seq_length: int
    num_mc: int
    seed: int
    score_first_token: bool
    bytes_per_token: float = math.nan

    def fingerprint(self) -> str:
        said = (
            f"{self.dataset.fingerprint()} rows {self.rows} length {self.seq_length} seed {self.seed} "
            f"first {self.score_first_token}"
        )
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def convention(self, objective: Objective) -> dict:
        """What a number measured on this slice means."""
        last = self.seq_length if self.score_first_token and objective.causal else self.seq_length - 1
        first = 0 if self.score_first_token and (objective.given or not objective.causal) else 1
        scored, given = self.dataset.borders.event(*self.dataset.event(first, last), objective.causal)
        if objective.scores:
            scored, given = objective.scores, objective.given
        elif objective.given:
            given = objective.given if given == "nothing" else f"{given} and {objective.given}"
        return {
            "slice": self.fingerprint(),
            "rows": self.rows,
            "scored_tokens": scored,
            "conditioned_on": given,
            "eps": None if objective.exact else 0.0,
            "noise_seed": None if objective.exact else self.seed,
            "num_mc": self.num_mc,
            "unit": objective.unit,
            "value": VALUES[kind_of_loss(objective)] if not objective.scores else "no NLL",
        }


def evaluate(engine: Engine, objective: Objective, data: Slice, line: ProgressLine | None = None) -> dict:
    """Loss with both of its errors, accuracy and bits per byte on the slice; `line` shows the rows scored, of all draws."""
    draws = [draw(engine, objective, data, m, line) for m in range(data.num_mc)]
    loss = np.stack([d.loss for d in draws])  # [draws, rows]
    scored = draws[0].scored
    asked, hits = sum(int(d.asked.sum()) for d in draws), sum(float(d.hits.sum()) for d in draws)
    value = float(loss.mean(0).sum() / scored.sum())
    noise, df = (0.0, None) if objective.exact else noise_error(loss, scored)
    of_text = {"perplexity": math.exp(min(700.0, value)), "bits_per_byte": value / (math.log(2) * data.bytes_per_token)}
    return {
        "loss": value,
        "loss_se_noise": noise,
        "loss_se_noise_df": df,
        "loss_se_data": data_error(loss, scored),
        **(of_text if objective.likelihood else {}),
        "accuracy": hits / max(1, asked),
        **by_level(objective, data, draws),
        "bound": kind_of_loss(objective),
        "rows": data.rows,
        "num_mc": data.num_mc,
        "convention": data.convention(objective),
    }


def by_level(objective: Objective, data: Slice, draws: list[RowScores]) -> dict[str, float]:
    """Loss and accuracy in each quarter of the noise level, from little to all, where the objective says its rows' levels."""
    rows = np.arange(data.rows)
    found = [objective.levels(Noise(data.seed, torch.from_numpy(rows + first_number(data, m)))) for m in range(data.num_mc)]
    if found[0] is None:
        return {}
    level = torch.cat([one for one in found if one is not None]).numpy()
    quarter = np.ceil(level * QUARTERS).clip(1, QUARTERS).astype(int) - 1
    loss, scored, hits, asked = (
        np.bincount(quarter, np.concatenate([getattr(d, name) for d in draws]), QUARTERS)
        for name in ("loss", "scored", "hits", "asked")
    )
    shares = {"loss": loss / scored.clip(min=1), "accuracy": hits / asked.clip(min=1)}
    return {f"{name}_t{i + 1}": float(share[i]) for name, share in shares.items() for i in range(QUARTERS) if scored[i]}


def cleans(data: Slice, draw: int) -> list[Clean]:
    """The slice in passes; each draw of the noise has sample numbers of its own."""
    offset, out = first_number(data, draw), []
    for clean in micro_batches(data.dataset, 0, data.rows, max(1, TOKENS_A_PASS // data.seq_length)):
        scored = clean.scored.clone()
        if not data.score_first_token:
            scored[:, 0] = scored[:, -1] = False
        out.append(replace(clean, scored=scored, index=clean.index + offset))
    return out


def first_number(data: Slice, draw: int) -> int:
    """The sample number of a draw's first row: blocks that share a stratification belong to one draw."""
    return draw * -(-data.rows // REFERENCE_STRATA) * REFERENCE_STRATA


def pose(objective: Objective, data: Slice, clean: Clean) -> Batch:
    return data.dataset.borders.apply(objective.pose(clean, Noise(data.seed, clean.index), 1.0), clean)


def draw(engine: Engine, objective: Objective, data: Slice, number: int, line: ProgressLine | None = None) -> RowScores:
    """One pass over the slice: replicas take turns, and every rank learns all rows."""
    passes = cleans(data, number)

    def show(rows: int) -> None:
        if line:
            line.show(number * data.rows + rows, f"validation draw {number + 1} of {data.num_mc}")

    return score_in_turn(engine, [len(clean.index) for clean in passes], lambda i: pose(objective, data, passes[i]), show)


def noise_error(loss: np.ndarray, scored: np.ndarray) -> tuple[float | None, float | None]:
    """Standard error of the mean over draws of t and masks, given the rows, and its degrees of freedom; None with one draw.

    Rows that share a stratification of t are dependent, blocks of REFERENCE_STRATA rows and draws are not: the variance
    between draws is taken block by block and summed. The degrees of freedom are Satterthwaite's, (sum v)^2 / sum v^2 times
    those of a block, with unbiased estimates of both sums, and lie between those of one block and of all.
    loss [draws, rows], scored [rows]
    """
    num_draws, num_rows = loss.shape
    if num_draws < 2:
        return None, None
    blocks = np.add.reduceat(loss, np.arange(0, num_rows, REFERENCE_STRATA), axis=1)  # [draws, blocks]
    variance, each = blocks.var(0, ddof=1), num_draws - 1
    squares = each / (each + 2) * (variance**2).sum()  # of the true variances
    square_of_sum = variance.sum() ** 2 - 2 / each * squares
    df = each * (square_of_sum / squares if squares else len(variance))
    error = np.sqrt(variance.sum() / num_draws) / scored.sum()
    return float(error), float(np.clip(df, each, each * len(variance)))


def data_error(loss: np.ndarray, scored: np.ndarray) -> float | None:
    """Standard error from the choice of rows, of len(rows) - 1 degrees of freedom; the scatter that is noise is taken off.

    The value is a ratio, the loss of all rows over their scored tokens, so what scatters is each row's loss beyond the
    value times its tokens (the ratio estimator: Cochran, Sampling Techniques, 1977, 6.4). With a single draw, or rows too few
    to tell, nothing can be taken off and the error is an upper one.  loss [draws, rows], scored [rows]
    """
    num_draws, num_rows = loss.shape
    if num_rows < 2:
        return None
    mean = loss.mean(0)
    beyond = mean - mean.sum() / scored.sum() * scored  # [rows]
    between = num_rows / (num_rows - 1) * (beyond**2).sum()
    within = loss.var(0, ddof=1).sum() / num_draws if num_draws > 1 else 0.0
    return float(np.sqrt(between - within if between > within else between) / scored.sum())


def bytes_per_token(data: Slice, objective: Objective, token_bytes: np.ndarray) -> float:
    """Mean UTF-8 bytes behind a scored token of the slice.  token_bytes [V]"""
    tokens = num_bytes = 0
    for clean in cleans(data, 0):
        batch = pose(objective, data, clean)
        ids = batch.targets[batch.scored].numpy()
        tokens, num_bytes = tokens + len(ids), num_bytes + int(token_bytes[ids].sum())
    return num_bytes / tokens
