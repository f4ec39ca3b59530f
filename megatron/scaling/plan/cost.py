"""What a planned run takes: hours, cost, energy and memory, by arithmetic from a stated or measured speed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron.config import Config
from megatron.forecast import forecast as forecast_layout

FORWARD_SHARE = 1 / 3  # of a training step's FLOPs: the backward pass takes twice the forward pass
MEMORY_BASIS = "the most that one process takes, as pretrain_*.py --dry-run forecasts it"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds a training token takes on all devices together: scale x (FLOPs of the token)^exponent."""

    basis: str  # where it comes from
    scale: float
    exponent: float = 0.0  # 1: devices equally busy at every size; below: small models waste more
    startup: float = 0.0  # seconds before the first step

    def seconds(self, flops_per_token: float, tokens: float) -> float:
        return tokens * self.scale * flops_per_token**self.exponent


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the forecast is multiplied with."""

    gpus: int = 1
    price: float | None = None  # of a GPU-hour
    watts: float | None = None  # of a GPU and its share of the machine


def speed_of_peak(mfu: float, peak: float, gpus: int) -> Speed:
    """From a share of the devices' peak FLOP/s."""
    return Speed(basis=f"{mfu:g} of {peak:g} FLOP/s on {gpus} GPU{'s' * (gpus > 1)}", scale=1 / (mfu * peak * gpus), exponent=1.0)


def speed_of_points(points: list[tuple[float, float]], basis: str, startup: float = 0.0) -> Speed:
    """The power law through (FLOPs a token, seconds a token): through two exactly, of more the least squares of the logarithms.

    One point says nothing of other sizes: the time is then in proportion to the FLOPs.
    """
    x, y = np.log(np.array(points, np.float64)).T
    exponent = float(np.cov(x, y, bias=True)[0, 1] / x.var()) if x.var() > 0 else 1.0
    return Speed(basis=basis, scale=float(np.exp(y.mean() - exponent * x.mean())), exponent=exponent, startup=startup)


def forecast(cfg: Config, first_step: int, speed: Speed | None, rates: Rates, valid_tokens: int | None = None) -> dict:
    """Of a run that goes from `first_step` to its end: hours, gpu_hours, cost, energy_kwh, memory_bytes and their bases.

    `valid_tokens` is what the validation data holds, where known. What no speed or rate was said for is None.
    """
    batch, seq_length = cfg.train.global_batch_size, cfg.model.seq_length
    tokens = (cfg.train.num_samples // batch - first_step) * batch * seq_length
    found: dict[str, float | str | None] = {
        "tokens": tokens,
        "hours": None,
        "gpu_hours": None,
        "cost": None,
        "energy_kwh": None,
        "gpus": rates.gpus,
        "memory_bytes": forecast_layout(cfg).peak,
        "memory_basis": MEMORY_BASIS,
        "basis": speed.basis if speed else None,
    }
    if speed:
        work = tokens + FORWARD_SHARE * evaluated_tokens(cfg, first_step, valid_tokens)
        hours = (speed.startup + speed.seconds(cfg.flops_per_token(), work)) / 3600
        found |= {"hours": hours, "gpu_hours": hours * rates.gpus}
        if rates.price is not None:
            found["cost"] = hours * rates.gpus * rates.price
        if rates.watts is not None:
            found["energy_kwh"] = hours * rates.gpus * rates.watts / 1000
    return found


def evaluated_tokens(cfg: Config, first_step: int, valid_tokens: int | None) -> int:
    """Tokens that validation scores in the whole run, every noise draw counted."""
    steps, every = cfg.train.num_samples // cfg.train.global_batch_size, cfg.train.eval_interval
    rounds = (steps - 1) // every - first_step // every + 1  # the last step always is one
    each = cfg.train.eval_iters * cfg.train.global_batch_size * cfg.model.seq_length
    return rounds * cfg.objective.num_mc * (each if valid_tokens is None else min(each, valid_tokens))
