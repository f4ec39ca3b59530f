"""Axes over flags of pretrain_*.py: what is read, which points are taken, and what runs are called after them."""

import itertools
from collections import Counter

import pytest

from megatron.budget import GPT2_VOCAB
from megatron.config import parse
from megatron.flags import ConfigError
from megatron.scaling.plan.axes import flags_of, latin_hypercube, name_of, points, read_axis
from megatron.scaling.plan.cost import speed_of_peak
from megatron.scaling.plan.entries import make_plan
from megatron.scaling.plan.grid import Request

AXES = ("weight-decay=0,0.1,0.3", "score-first-token=true,false", "lr-decay-style=cosine,linear", "lr=1e-3,2e-3")


def test_every_point_becomes_a_run_with_its_flags_and_its_name():
    axes = tuple(map(read_axis, AXES))
    runs = make_plan(Request(flops=(1e18,), sizes=("57M",), objectives=("mdm",), vary=axes)).runs
    asked = list(itertools.product((0.0, 0.1, 0.3), (True, False), ("cosine", "linear"), (1e-3, 2e-3)))
    assert [tuple(run["varied"].values()) for run in runs] == asked and len({run["name"] for run in runs}) == len(asked)
    for run, (decay, first, style, lr) in zip(runs, asked):
        cfg = parse(run["flags"] + ["--save", "x"], "mdm", environ={}).with_vocabulary(GPT2_VOCAB)
        found = (
            cfg.optim.weight_decay,
            cfg.objective.score_first_token,
            cfg.optim.lr_decay_style,
            cfg.optim.lr,
            cfg.optim.min_lr,
        )
        assert found == (decay, first, style, lr, pytest.approx(lr / 10))
    assert runs[0]["name"] == "mdm_chinchilla_1e18_57M_weight-decay0_score-first-token_lr-decay-style-cosine_lr0.001"


def test_an_axis_reaches_numbers_forecasts_and_trunks():
    vary = (read_axis("num-mc=2,8"), read_axis("hidden-dropout=0,0.1"))
    asked = Request(flops=(1e18, 2e18), sizes=("57M",), objectives=("mdm",), schedule="wsd", vary=vary)
    plan = make_plan(asked, {"mdm": speed_of_peak(0.4, 1e15, 1)})
    trunks, branches = [r for r in plan.runs if not r["trunk"]], [r for r in plan.runs if r["trunk"]]
    assert (len(trunks), len(branches), plan.varied) == (4, 8, ["num_mc", "hidden_dropout"])
    by_name = {run["name"]: run for run in plan.runs}
    assert all(by_name[run["trunk"]]["varied"] == run["varied"] for run in branches)
    few, many = (sum(run["forecast"]["hours"] for run in branches if run["varied"]["num_mc"] == draws) for draws in (2, 8))
    assert many > few


def test_a_latin_hypercube_takes_each_value_about_equally_often_and_no_point_twice():
    found = latin_hypercube([4, 3, 2], 12, seed=0)
    assert len(set(found)) == 12 and found == latin_hypercube([4, 3, 2], 12, seed=0) != latin_hypercube([4, 3, 2], 12, seed=1)
    for side, place in ((4, 0), (3, 1), (2, 2)):
        counts = Counter(point[place] for point in found)
        assert len(counts) == side and max(counts.values()) - min(counts.values()) <= 3
    assert latin_hypercube([3, 2], 6, seed=5) == list(itertools.product(range(3), range(2)))
    axes = (read_axis("weight-decay=0,1,2,3"), read_axis("lr=1,2,3,4"))
    chosen = points(axes, 4, 0)
    assert [{point[name] for point in chosen} for name in ("weight_decay", "lr")] == [{0, 1, 2, 3}, {1, 2, 3, 4}]


def test_an_axis_that_acts_in_some_runs_only_is_told_with_the_way_out():
    vary = (read_axis("randmask-ratio=0,0.3"),)
    with pytest.raises(
        ConfigError, match=r"^mdm_.*ratio0.3: --randmask-ratio would do nothing here: .* join them with --append$"
    ):
        make_plan(Request(flops=(1e18,), sizes=("57M",), vary=vary))


def test_values_with_commas_and_paths():
    axis = read_axis("--split=969,30,1;900,50,50")
    assert axis.values == ("969,30,1", "900,50,50") and name_of({"split": axis.values[0]}) == "_split-969-30-1"
    paths = read_axis("train-data-path=a/b/c4 part,d/e")
    assert [name_of({paths.name: value}) for value in paths.values] == ["_train-data-path-c4-part", "_train-data-path-e"]
    assert flags_of({"swiglu": True, "bias_linear": False}) == ["--swiglu", "--no-bias-linear"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("weight-decai=1,2", "did you mean --weight-decay"),
        ("weight-decay=1,x", "--weight-decay must be a number, not 'x'"),
        ("weight-decay=", "expected FLAG=VALUE"),
        ("weight-decay", "expected FLAG=VALUE"),
        ("weight-decay=0.1,0.10", "a value stands there twice"),
        ("hidden-size=8,16", "--sizes names the sizes"),
        ("epochs=1,2", "give --epochs"),
        ("save=a,b", "where runs live"),
        ("force-cpu=true,false", "vary device"),
        ("lr-decay-style=cosine,step", "must be one of"),
    ],
)
def test_refusals(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_axis(text)
