"""The learning rate as a function of consumed samples: Megatron's rules, so that published recipes mean the same."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from megatron.batch import Progress

if TYPE_CHECKING:
    from megatron import config


def learning_rate(cfg: config.Optim, samples: int) -> float:
    """The rate of the step that begins after `samples` consumed samples (so the first warm-up step has --lr-warmup-init).

    The rules, the order of their cases too, are those of Megatron-LM's megatron/core/optimizer_param_scheduler.py.
    """
    peak, warmup, end = cfg.lr or 0.0, cfg.lr_warmup_samples, cfg.lr_decay_samples or 0
    if warmup and samples <= warmup:
        return cfg.lr_warmup_init + (peak - cfg.lr_warmup_init) * samples / warmup
    if cfg.lr_decay_style == "constant":
        return peak
    if samples > end:
        return cfg.min_lr
    if cfg.lr_decay_style == "inverse-square-root":
        return max(cfg.min_lr, peak * max(warmup, 1) ** 0.5 / max(samples, 1) ** 0.5)
    return cfg.min_lr + (peak - cfg.min_lr) * decay(cfg, samples, warmup, end)


def decay(cfg: config.Optim, samples: int, warmup: int, end: int) -> float:
    """What is left of the way from --lr to --min-lr, 1 to 0."""
    shape: str = cfg.lr_decay_style
    x = (samples - warmup) / (end - warmup)
    if shape == "WSD":
        last = cfg.lr_wsd_decay_samples or 1
        x, shape = max(0.0, (samples - (end - last)) / last), cfg.lr_wsd_decay_style
    return {
        "linear": 1 - x,
        "cosine": 0.5 * (1 + math.cos(math.pi * x)),
        "exponential": 2 * 0.5**x - 1,
        "minus_sqrt": 1 - math.sqrt(x),
    }[shape]


def on_plateau(cfg: config.Optim, at: Progress) -> Progress:
    """After a validation without a new best: the rate is lowered for good once there were more in a row than the patience.

    The rule of torch.optim.lr_scheduler.ReduceLROnPlateau, with any gain counting as one.
    """
    if cfg.lr_plateau_factor == 1:
        return at
    worse = at.worse_in_row + 1
    if worse > cfg.lr_plateau_patience:
        return replace(at, worse_in_row=0, lr_scale=at.lr_scale * cfg.lr_plateau_factor)
    return replace(at, worse_in_row=worse)


def decayed(cfg: config.Optim, samples: int, batch_size: int) -> bool:
    """Whether a run that ends after `samples` samples has come to the end of its schedule: what is left fills no step."""
    ends = cfg.lr_decay_style not in ("constant", "inverse-square-root")
    return ends and cfg.lr_decay_samples is not None and samples + batch_size > cfg.lr_decay_samples
