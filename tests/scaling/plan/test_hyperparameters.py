"""Rates and batches: what is stated, and published rules against numbers worked out by hand."""

import json
import math
from dataclasses import replace

import pytest

from megatron.errors import MissingInput
from megatron.flags import ConfigError
from megatron.scaling.law.hyper import HyperLaw
from megatron.scaling.plan.axes import read_axis
from megatron.scaling.plan.entries import make_plan
from megatron.scaling.plan.grid import Request
from megatron.scaling.plan.hyperparameters import (
    BATCH_SIZES,
    LEARNING_RATES,
    Choice,
    Facts,
    batch_size,
    learning_rate,
    read_choices,
)

FACTS = Facts(params=10**9, tokens=10**11, flops=1e19, seq_length=2048, hidden_size=240)


@pytest.mark.parametrize("text, values", [("2e-4", [2e-4]), ("fixed:2e-4", [2e-4]), ("grid:1e-4,2e-4,4e-4", [1e-4, 2e-4, 4e-4])])
def test_stated_values(text, values):
    assert [choice.value for choice in read_choices(text, "--lr", LEARNING_RATES)] == values


@pytest.mark.parametrize(
    "rule, rate",
    [
        ("kaplan", 0.003239 - 0.0001395 * math.log(1e9)),
        ("deepseek", 0.3118 * 10**-2.375),
        ("step-law", 1.79 * 10 ** (-0.713 * 9 + 0.307 * 11)),
        ("width", 1e-3),
    ],
)
def test_learning_rate_rules(rule, rate):
    (choice,) = read_choices(f"rule:{rule}", "--lr", LEARNING_RATES)
    assert learning_rate(choice, FACTS) == pytest.approx(rate, rel=5e-3)
    assert 1e-4 < learning_rate(choice, FACTS) < 1e-2


@pytest.mark.parametrize("rule, tokens", [("deepseek", 0.2920 * 10 ** (19 * 0.3271)), ("step-law", 0.58 * 10 ** (11 * 0.571))])
def test_batch_size_rules_give_multiples_of_8(rule, tokens):
    samples = batch_size(read_choices(f"rule:{rule}", "--batch-size", BATCH_SIZES)[0], FACTS)
    assert samples % 8 == 0 and abs(samples - tokens / 2048) <= 4


def deepseek(layers, width, tokens):
    """Facts of a model as its paper counts it: M = 72 l d^2 + 12 l d s FLOPs a token (arXiv:2401.02954, 3.2)."""
    return Facts(
        params=12 * layers * width**2,
        tokens=tokens,
        seq_length=4096,
        hidden_size=width,
        flops=(72 * layers * width**2 + 12 * layers * width * 4096) * tokens,
    )


@pytest.mark.parametrize("layers, width, rate, samples", [(30, 4096, 4.2e-4, 2304), (95, 8192, 3.2e-4, 4608)])
def test_deepseek_s_own_models(layers, width, rate, samples):
    """Table 2 of arXiv:2401.02954: what 7B and 67B were trained with, over 2T tokens."""
    facts = deepseek(layers, width, 2 * 10**12)
    assert learning_rate(Choice(None, "deepseek"), facts) == pytest.approx(rate, rel=0.03)
    assert batch_size(Choice(None, "deepseek"), facts) == pytest.approx(samples, rel=0.1)


def test_published_rules_by_hand():
    """Digits that do not come from the same expression: a billion parameters over 1e11 tokens, 1e19 FLOPs."""
    assert {rule: learning_rate(Choice(None, rule), FACTS) for rule in LEARNING_RATES} == {
        "kaplan": 3.48e-4,
        "deepseek": 1.31e-3,
        "step-law": 1.63e-3,
        "width": 1e-3,
    }
    assert {rule: batch_size(Choice(None, rule), FACTS) for rule in BATCH_SIZES} == {"deepseek": 232, "step-law": 544}
    assert learning_rate(Choice(None, "kaplan"), replace(FACTS, params=10**10)) == pytest.approx(2.7e-5, rel=0.01)
    with pytest.raises(ValueError, match="no rate"):  # a natural logarithm, or it would have one
        learning_rate(Choice(None, "kaplan"), replace(FACTS, params=13 * 10**9))


@pytest.mark.parametrize("text", ["rule:none", "list:1,2", "1,2", "grid:1,x", "fixed:-1", "inf"])
def test_refusals(text):
    with pytest.raises(ValueError, match="--lr"):
        read_choices(text, "--lr", LEARNING_RATES)


def test_no_part_of_a_sample_and_no_rate_below_0():
    with pytest.raises(ValueError, match="whole samples"):
        batch_size(Choice(1.5), FACTS)
    with pytest.raises(ValueError, match="no rate"):
        learning_rate(Choice(None, "kaplan"), Facts(params=10**11, tokens=1, flops=1.0, seq_length=1, hidden_size=1))


def test_a_law_of_batches_counts_tokens_where_it_knows_them():
    for length, samples in ((256, 80), (None, 640)):
        laws = {"": HyperLaw(math.log(640), {}, {}, "total", length)}
        assert batch_size(Choice(None, "hyper.json", laws), replace(FACTS, counts={"total": 1})) == samples  # of 2048 tokens


def test_a_law_of_one_s_own_sets_what_it_says_and_says_where_it_is_beyond_its_data(tmp_path):
    """lr* = N^-0.5 and weight decay* = (D / U)^0.5 / 10 of ar: each planned run has its own, by its exact N, D and U."""
    path = tmp_path / "hyper.json"
    reach = {"params": [1e4, 3e4], "tokens": [1e4, 1e7], "unique_tokens": [1e4, 1e5]}
    laws = {
        "lr": {"constant": 0.0, "exponents": {"params": -0.5}},
        "weight_decay": {"constant": math.log(0.1), "exponents": {"tokens": 0.5, "unique_tokens": -0.5}},
    }
    settings = {name: law | {"range": reach, "params_convention": "total"} for name, law in laws.items()}
    path.write_text(json.dumps({"schema_version": 1, "objectives": {"ar": {"settings": settings}}}))
    asked = Request(
        scale="cpu",
        objectives=("ar",),
        sizes=("CPU_12K", "CPU_46K"),
        unique_tokens=(12800,),
        epochs=(4, 16),
        lr=f"rule:{path}",
        weight_decay=f"rule:{path}",
    )
    plan = make_plan(asked)
    for run in plan.runs:
        assert run["lr"] == pytest.approx(run["params"] ** -0.5, rel=5e-3)
        assert (
            run["weight_decay"] == pytest.approx(0.1 * run["epochs"] ** 0.5, rel=2e-2)
            and f"_wd{run['weight_decay']:g}" in run["name"]
        )
    said = [note for note in plan.notes if "lies outside" in note]
    assert len(said) == 2 and said[0].endswith(f"N lies outside of 10000 to 30000, where --lr rule:{path} was fitted for ar")
    assert "CPU_46K" in said[0] and "and 1 more" in said[0]
    with pytest.raises(ConfigError, match=r"--lr rule:.* has laws of ar, none of mdm"):
        make_plan(replace(asked, objectives=("mdm",)))
    with pytest.raises(ConfigError, match="--weight-decay and --vary weight-decay both set --weight-decay"):
        make_plan(replace(asked, vary=(read_axis("weight-decay=0.1,1"),)))
    with pytest.raises(ConfigError, match="differs with the length"):
        make_plan(replace(asked, schedule="wsd"))
    with pytest.raises(MissingInput, match=r"none.json: No such file"):
        make_plan(replace(asked, lr=f"rule:{tmp_path}/none.json"))


def test_a_grid_of_decays_is_an_axis():
    plan = make_plan(Request(flops=(1e18,), sizes=("57M",), objectives=("ar",), weight_decay="grid:0,0.1,1"))
    assert [run["varied"]["weight_decay"] for run in plan.runs] == [0, 0.1, 1] == [run["weight_decay"] for run in plan.runs]
    assert [run["name"].rpartition("_")[2] for run in plan.runs] == ["wd0", "57M", "wd1"]
