"""The probe starts the real programs; here on a tiny corpus."""

import sys
from dataclasses import replace

import pytest

from megatron.errors import Refusal
from megatron.scaling.plan.entries import make_plan
from megatron.scaling.plan.grid import Request
from megatron.scaling.plan.probe import probe_plan, probe_run


@pytest.fixture(autouse=True)
def starts_at_once(warm, monkeypatch):
    monkeypatch.setattr(sys, "executable", warm.python)


def request(corpus):
    return Request(
        scale="cpu",
        flops=(1e10,),
        sizes=("CPU_5K", "CPU_25K"),
        objectives=("ar",),
        train_data=("1.0", "0:0.8", corpus),
        valid_data=("1.0", "0.8:1", corpus),
    )


def test_the_smallest_and_the_largest_run_are_measured(corpus):
    plan = make_plan(request(corpus))
    speeds, measured = probe_plan(plan, steps=8, gpus=1, timeout=100)
    assert [one["size"] for one in measured] == ["CPU_5K", "CPU_25K"] and all(one["steps"] == 8 for one in measured)
    assert all(one["tokens_per_second"] > 0 and one["memory_bytes"] > 0 and one["startup"] > 0 for one in measured)
    hours = [run["forecast"]["hours"] for run in make_plan(request(corpus), speeds).runs]
    assert min(hours) > 0 and "8 steps of ar CPU_5K and CPU_25K" in speeds["ar"].basis


def test_a_run_that_cannot_start_says_why(corpus):
    run, _ = make_plan(replace(request(corpus), train_data=("no such corpus",))).runs
    with pytest.raises(Refusal, match="no such corpus") as error:
        probe_run(run, steps=2, gpus=1, timeout=100)
    assert error.value.code == 66
