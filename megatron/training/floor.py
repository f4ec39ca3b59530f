"""A model against the oracle of a corpus of known entropy: the same tokens under the same conditioning, paired by row.

The oracle's NLL of a window is the floor of the exact NLL and, by the chain rule in any order, of the masked bound. The mean
difference over rows is an estimate of a KL divergence, which is never negative, so far below zero means a leak.
"""

from __future__ import annotations

import numpy as np

from megatron.catalogue import need_likelihood
from megatron.data.gpt_dataset import PackedDataset
from megatron.data.synthetic.corpus import contiguous, read_source
from megatron.data.synthetic.process import token_nll
from megatron.engine import Engine
from megatron.errors import BadData
from megatron.objectives import Objective, kind_of_loss
from megatron.progress import ProgressLine
from megatron.standard_errors import combined, half_width
from megatron.training.evaluate import Slice, data_error, draw, noise_error
from megatron.training.trained import Trained

SURE = 0.9973  # coverage of three standard errors, when they are well known


def oracle_nll(data: Slice, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's NLL of what validation scores of each row, and which rows it knows the law of.  -> [rows], bool [rows]

    Rows that are spliced from two places are not scored.  Raises BadData or MissingInput when a corpus has no oracle.
    """
    if not isinstance(data.dataset, PackedDataset):
        raise BadData("only packed samples of corpora of known entropy have an oracle; give --data-kind packed")
    numbers = np.arange(data.rows)
    known, rows = contiguous(data.dataset, numbers), data.dataset.rows(numbers)
    origins = np.array([data.dataset.origin(n) for n in numbers.tolist()])
    found = np.zeros(data.rows)
    for prefix in np.unique(origins[known]):
        here = known & (origins == prefix)
        found[here] = window_nll(token_nll(read_source(str(prefix)), rows[here]), data, objective)
    return found, known


def window_nll(nll: np.ndarray, data: Slice, objective: Objective) -> np.ndarray:
    """Sum over the tokens that Slice.convention names: 1..S-1, with the first token scored 1..S (AR) or 0..S-1 (MDM).

    nll [b, S+1] -> [b]
    """
    if data.score_first_token:
        return (nll[:, 1:] if objective.causal else nll[:, :-1]).sum(1)
    return nll[:, 1:-1].sum(1)


def compare(engine: Engine, objective: Objective, data: Slice) -> dict:
    """Model, oracle and their difference in nats per token, with its standard error: rows, and noise where there is any."""
    floor, known = oracle_nll(data, objective)
    if known.sum() < 2:
        raise BadData(
            f"{known.sum()} of {data.rows} validation rows are one stretch of a corpus, expected 2 or more: score more rows"
        )
    line = ProgressLine(data.rows * data.num_mc, "rows")
    draws = [draw(engine, objective, data, m, line) for m in range(data.num_mc)]
    line.clear()
    loss, scored = np.stack([d.loss for d in draws]) * known, draws[0].scored * known  # [draws, rows], [rows]
    excess = loss - floor
    total, (noise, noise_df) = scored.sum(), (None, None) if objective.exact else noise_error(loss, scored)
    error, df = combined((noise, noise_df), (data_error(excess[:, known], scored[known]), known.sum() - 1.0))
    difference = float(excess.mean(0).sum() / total)
    return {
        "model": float(loss.mean(0).sum() / total),
        "oracle": float(floor.sum() / total),
        "difference": difference,
        "se": error,
        "se_df": df,
        "below_floor": difference < -half_width(error or 0.0, df, SURE),
        "se_noise": noise,
        "rows": int(known.sum()),
        "rows_left_out": int((~known).sum()),
        "num_mc": data.num_mc,
        "bound": kind_of_loss(objective),
        "convention": data.convention(objective),
    }


def measure(trained: Trained, which: str = "valid", rows: int | None = None, num_mc: int | None = None) -> dict:
    """`compare` on one of the run's sets, and what was compared. Raises BadData for a set that the run lacks, Mismatch."""
    need_likelihood(trained.cfg.objective.objective, "the floor")
    return {
        "set": which,
        "objective": trained.cfg.objective.objective,
        "checkpoint": str(trained.checkpoint.path),
        "step": trained.checkpoint.step,
        **compare(trained.engine, trained.reference, trained.slice(which, rows, num_mc)),
    }


def describe(found: dict) -> str:
    """What was found, in two lines."""
    left_out = f" ({found['rows_left_out']} spliced rows left out)" if found["rows_left_out"] else ""
    below = (
        "\nbelow the floor by more than three standard errors: the model sees what it should predict, "
        "or the corpus is not its source's"
    )
    return (
        f"{found['objective']} at step {found['step']}, {found['rows']} rows of {found['set']}{left_out}: "
        f"{found['bound']} {found['model']:.6f}, oracle {found['oracle']:.6f} nats per token\n"
        f"model minus oracle {found['difference']:+.6f} +- {found['se']:.6f}{below if found['below_floor'] else ''}"
    )
