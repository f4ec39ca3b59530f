"""Rates and batches: what is stated, and published rules against numbers worked out by hand."""

import math
from dataclasses import replace

import pytest

from megatron.scaling.plan.hyperparameters import (
    BATCH_SIZES,
    LEARNING_RATES,
    Choice,
    Facts,
    batch_size,
    learning_rate,
    read_choices,
)

FACTS = Facts(params=10**9, tokens=10**11, flops=1e19, seq_length=2048)


@pytest.mark.parametrize("text, values", [("2e-4", [2e-4]), ("fixed:2e-4", [2e-4]), ("grid:1e-4,2e-4,4e-4", [1e-4, 2e-4, 4e-4])])
def test_stated_values(text, values):
    assert [choice.value for choice in read_choices(text, "--lr", LEARNING_RATES)] == values


@pytest.mark.parametrize(
    "rule, rate",
    [
        ("kaplan", 0.003239 - 0.0001395 * math.log(1e9)),
        ("deepseek", 0.3118 * 10**-2.375),
        ("step-law", 1.79 * 10 ** (-0.713 * 9 + 0.307 * 11)),
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
        learning_rate(Choice(None, "kaplan"), Facts(params=10**11, tokens=1, flops=1.0, seq_length=1))
