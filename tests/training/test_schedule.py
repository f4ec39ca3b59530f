import json
import math

import pytest

from megatron.batch import Progress
from megatron.config import Optim
from megatron.training.schedule import decayed, learning_rate, on_plateau


def optim(style="cosine", **changes):
    flags = {
        "lr": 2e-4,
        "min_lr": 2e-5,
        "lr_decay_style": style,
        "lr_warmup_samples": 100,
        "lr_decay_samples": 1100,
        "lr_wsd_decay_samples": 200,
    }
    return Optim(**flags | changes)


def test_warm_up_is_linear_in_consumed_samples_and_starts_at_zero():
    assert [learning_rate(optim(), n) for n in (0, 50, 100)] == pytest.approx([0.0, 1e-4, 2e-4])


@pytest.mark.parametrize("style, middle", [("cosine", 1.1e-4), ("linear", 1.1e-4), ("constant", 2e-4), ("WSD", 2e-4)])
def test_shapes(style, middle):
    assert learning_rate(optim(style), 600) == pytest.approx(middle)
    end = 2e-4 if style == "constant" else 2e-5
    assert learning_rate(optim(style), 1100) == pytest.approx(end) and learning_rate(optim(style), 5000) == pytest.approx(end)


def test_megatrons_cosine_at_a_quarter():
    assert learning_rate(optim(), 350) == pytest.approx(2e-5 + 1.8e-4 * 0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize(
    "shape, left", [("linear", 0.5), ("cosine", 0.5), ("exponential", 2 * 0.5**0.5 - 1), ("minus_sqrt", 1 - 0.5**0.5)]
)
def test_wsd_decays_only_at_the_end(shape, left):
    cfg = optim("WSD", lr_wsd_decay_style=shape)
    assert learning_rate(cfg, 899) == pytest.approx(2e-4) and learning_rate(cfg, 1000) == pytest.approx(2e-5 + 1.8e-4 * left)


def test_megatrons_inverse_square_root_and_warm_up_from_a_rate():
    """Numbers by hand from OptimizerParamScheduler.get_lr (Megatron-LM, megatron/core/optimizer_param_scheduler.py)."""
    root = optim("inverse-square-root", lr_warmup_init=4e-5)
    assert [learning_rate(root, n) for n in (0, 25, 100)] == pytest.approx([4e-5, 8e-5, 2e-4])
    assert [learning_rate(root, n) for n in (400, 900, 1100)] == pytest.approx([1e-4, 2e-4 / 3, 2e-4 / 11**0.5])
    assert learning_rate(root, 1101) == 2e-5 and learning_rate(optim("inverse-square-root", min_lr=9e-5), 900) == 9e-5
    cold = optim("inverse-square-root", lr_warmup_samples=0, min_lr=0.0)
    assert [learning_rate(cold, n) for n in (0, 1, 64)] == pytest.approx([2e-4, 2e-4, 2.5e-5])
    assert not decayed(root, 1100, 8)


def test_no_warm_up():
    assert learning_rate(optim(lr_warmup_samples=0), 0) == pytest.approx(2e-4)


def test_decayed():
    assert decayed(optim(), 1100, 8) and decayed(optim(), 1096, 8) and not decayed(optim(), 1092, 8)
    assert not decayed(optim("constant"), 9999, 8)


def test_the_rate_is_lowered_where_validation_stops_improving():
    cfg, at, scales = optim(lr_plateau_factor=0.5, lr_plateau_patience=1), Progress(), []
    for _ in range(5):
        at = on_plateau(cfg, at)
        scales.append((at.lr_scale, at.worse_in_row))
    assert scales == [(1.0, 1), (0.5, 0), (0.5, 1), (0.25, 0), (0.25, 1)]
    assert on_plateau(optim(), Progress(worse_in_row=99)) == Progress(worse_in_row=99)  # 1: never, and nothing is counted


def test_a_run_on_a_plateau_goes_on_at_its_rate_after_a_restart(trainer, tmp_path):
    """Steps too small to change a weight: no validation is better than the first."""
    flags = {"lr": 1e-14, "lr_decay_style": "constant", "eval_interval": 2, "lr_plateau_factor": 0.5, "lr_plateau_patience": 0}
    flags |= {"train_iters": 8, "save_interval": None, "log_interval": 1}
    assert trainer.run(tmp_path / "a", exit_interval=5, load=tmp_path / "a", **flags) == 85
    assert trainer.run(tmp_path / "a", load=tmp_path / "a", **flags) == 0
    lines = map(json.loads, (tmp_path / "a" / "metrics.jsonl").read_text().splitlines())
    rates = [line["lr"] / 1e-14 for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])
