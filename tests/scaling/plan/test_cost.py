"""The forecast: its arithmetic by hand, its memory that of the layout."""

from dataclasses import replace

import pytest

from megatron import config
from megatron.budget import find_size
from megatron.forecast import CONTEXT_BYTES
from megatron.forecast import forecast as forecast_layout
from megatron.scaling.plan.cost import Rates, Speed, forecast, speed_of_peak, speed_of_points
from megatron.scaling.plan.flags import data_flags, model_flags, optim_flags


def parsed(size="217M", samples=256_000, batch=256, *more, world=1):
    shape = find_size(size)[1]
    words = [
        *model_flags(shape, 2048, ("--bf16",), 1234, batch),
        *optim_flags(samples, 100, 2e-4, 0.1, {"--lr-decay-style": "cosine"}),
        *data_flags(("x",), ("y",), ()),
        "--eval-iters",
        "0",
        "--vocab-size",
        "50257",
        *more,
    ]
    return config.parse(words, "ar", environ={"RANK": "0", "WORLD_SIZE": str(world)} if world > 1 else {})


def test_hours_cost_and_energy_by_hand():
    cfg = parsed()
    found = forecast(cfg, 0, speed_of_peak(0.4, 1e15, 8), Rates(gpus=8, price=2.5, watts=700))
    tokens = 1000 * 256 * 2048
    hours = tokens * cfg.model.shape().flops_per_token(2048) / (0.4 * 8e15) / 3600
    assert found["tokens"] == tokens and found["hours"] == pytest.approx(hours)
    assert (found["gpu_hours"], found["cost"], found["energy_kwh"]) == pytest.approx((8 * hours, 20 * hours, 5.6 * hours))


def test_a_branch_counts_its_own_steps_alone():
    speed = Speed(basis="x", scale=1e-6)
    whole, rest = (forecast(parsed(), step, speed, Rates()) for step in (0, 800))
    assert rest["tokens"] == whole["tokens"] / 5 and rest["hours"] == pytest.approx(whole["hours"] / 5)


def test_validation_takes_a_third_of_training():
    speed = Speed(basis="x", scale=1.0)
    cfg = parsed("217M", 256_000, 256, "--eval-interval", "300", "--objective", "mdm", "--num-mc", "4")
    scored = replace(cfg, train=replace(cfg.train, eval_iters=2))

    def seconds(cfg, valid_tokens=None):
        return forecast(cfg, 0, speed, Rates(), valid_tokens)["hours"] * 3600

    assert seconds(scored) - seconds(cfg) == pytest.approx(4 * (2 * 256 * 2048) * 4 / 3)  # steps 300, 600, 900 and the last
    assert seconds(scored, 1000) - seconds(cfg) == pytest.approx(4 * 1000 * 4 / 3)


def test_nothing_is_forecast_from_nothing():
    found = forecast(parsed(), 0, None, Rates(price=2.0, watts=700))
    assert [found[name] for name in ("hours", "gpu_hours", "cost", "energy_kwh", "basis")] == [None] * 5
    assert found["memory_bytes"] > 0


@pytest.mark.parametrize(
    "points, low, high",
    [
        ([(1e8, 1e-6), (1e9, 2e-6)], 1e-6, 2e-6),
        ([(1e8, 1e-7), (1e9, 2e-6)], 1e-7, 2e-6),
        ([(1e7, 1e-8), (1e8, 1e-7), (1e9, 1e-6)], 1e-7, 1e-6),
        ([(1e9, 2e-6)], 2e-7, 2e-6),
    ],
)
def test_the_power_law_through_measured_speeds(points, low, high):
    speed = speed_of_points(points, "measured")
    assert (speed.seconds(1e8, 1), speed.seconds(1e9, 1)) == pytest.approx((low, high))


@pytest.mark.parametrize("world, words", [(1, ()), (8, ("--zero-stage", "1")), (2, ("--tensor-model-parallel-size", "2"))])
def test_memory_is_the_layout_s(world, words):
    """Weights, gradients and moments are 16 bytes a parameter in one process; what is cut over several is counted once."""
    cfg = parsed("217M", 256_000, 256, *words, world=world)
    found = forecast(cfg, 0, None, Rates(gpus=world))["memory_bytes"]
    (load,) = forecast_layout(cfg).loads
    state = load.weights + load.gradients + load.moments
    assert found == load.peak > state + load.activations
    share = {1: 16, 8: 8 + 8 / 8, 2: 16 / 2}[world]
    assert state == pytest.approx(share * cfg.model.shape().total(), rel=1e-3)


def test_a_cpu_has_no_runtime_of_a_gpu():
    here, there = (forecast(parsed("57M", 256, 8, "--device", device), 0, None, Rates()) for device in ("cpu", "cuda"))
    assert there["memory_bytes"] - here["memory_bytes"] == CONTEXT_BYTES
