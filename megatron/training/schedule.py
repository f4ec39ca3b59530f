"""The learning rate as a function of consumed samples: Megatron's rules, so that published recipes mean the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron import config


def learning_rate(cfg: config.Optim, samples: int) -> float:
    """The rate of the step that begins after `samples` consumed samples (so the first warm-up step has rate 0)."""
    warmup, end = cfg.lr_warmup_samples, cfg.lr_decay_samples
    if warmup and samples <= warmup:
        return cfg.lr * samples / warmup
    if cfg.lr_decay_style == "constant":
        return cfg.lr
    if samples > end:
        return cfg.min_lr
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * decay(cfg, samples, warmup, end)


def decay(cfg: config.Optim, samples: int, warmup: int, end: int) -> float:
    """What is left of the way from --lr to --min-lr, 1 to 0."""
    x = (samples - warmup) / (end - warmup)
    match cfg.lr_decay_style:
        case "linear":
            return 1 - x
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * x))
        case "WSD":
            x = max(0.0, (samples - (end - cfg.lr_wsd_decay_samples)) / cfg.lr_wsd_decay_samples)
            return {
                "linear": 1 - x,
                "cosine": 0.5 * (1 + math.cos(math.pi * x)),
                "exponential": 2 * 0.5**x - 1,
                "minus_sqrt": 1 - math.sqrt(x),
            }[cfg.lr_wsd_decay_style]


def decayed(cfg: config.Optim, samples: int, batch_size: int) -> bool:
    """Whether a run that ends after `samples` samples has come to the end of its schedule: what is left fills no step."""
    return cfg.lr_decay_style != "constant" and cfg.lr_decay_samples is not None and samples + batch_size > cfg.lr_decay_samples
