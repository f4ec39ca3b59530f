"""Automatic sizes: they bracket the expected optimum, whatever states it."""

import json
import math

import pytest

from megatron.budget import find_size, sizes
from megatron.errors import BadData, MissingInput
from megatron.scaling.plan.sizes import LAWS, counted_well, expected_optimum, make_size, sizes_between

GPU = dict(scale="gpu", vocab_size=50257, count="published")
CPU = dict(scale="cpu", vocab_size=257, count="total")


def counts(found, vocab_size, count, **_):
    return [getattr(find_size(size, vocab_size)[1], count)() for size in found]


@pytest.mark.parametrize("flops", [1e18, 1e19, 1e20, 1e22, 1e24])
@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_published_scale_brackets_the_optimum(flops, objective):
    target = expected_optimum("published", objective, flops)
    params = counts(sizes_between(target / 3, target * 3, 5, **GPU), **GPU)
    assert params == sorted(set(params)) and len(params) == 5
    assert params[0] < target / 2.2 and params[-1] > target * 2.2
    assert all(1.4 < b / a < 2.2 for a, b in zip(params, params[1:]))


@pytest.mark.parametrize("flops", [3e11, 7e11, 1e13])
def test_cpu_scale_brackets_the_optimum(flops):
    target = expected_optimum("published", "ar", flops)
    params = counts(sizes_between(target / 3, target * 3, 5, **CPU), **CPU)
    assert params[0] < target / 2 < target * 2 < params[-1]


def test_published_optima_are_found():
    """arXiv:2507.15857: the compute-optimal sizes of its three budgets."""
    for objective, best in {
        "ar": {1e19: "217M", 3e19: "425M", 1e20: "724M"},
        "mdm": {1e19: "117M", 3e19: "217M", 1e20: "425M"},
    }.items():
        for flops, size in best.items():
            assert expected_optimum("published", objective, flops) == pytest.approx(find_size(size)[1].published(), rel=0.1), (
                objective,
                flops,
            )


def test_rules_agree_with_their_formulas():
    assert expected_optimum("ratio:20", "ar", 1e21) == pytest.approx(math.sqrt(1e21 / 120))
    assert expected_optimum("besiroglu", "ar", 1e21) == pytest.approx(LAWS["besiroglu"].optimum(1e21)[0])
    assert expected_optimum("ar=ratio:20,mdm=ratio:100", "mdm", 6e20) == pytest.approx(1e9)


def test_a_fit_states_the_optimum(tmp_path):
    law = dict(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    (tmp_path / "fit.json").write_text(json.dumps({"params": law}))
    assert expected_optimum(str(tmp_path / "fit.json"), "ar", 1e20) == expected_optimum("hoffmann", "ar", 1e20)
    (tmp_path / "fit.json").write_text(json.dumps({"params": {"E": 1.0}}))
    with pytest.raises(BadData, match="fit --form chinchilla"):
        expected_optimum(str(tmp_path / "fit.json"), "ar", 1e20)
    with pytest.raises(MissingInput):
        expected_optimum(str(tmp_path / "none.json"), "ar", 1e20)


@pytest.mark.parametrize("rule", ["nonsense", "ratio:x", "ratio:-1", "mdm=ratio:1"])
def test_unknown_rules_are_refused(rule):
    with pytest.raises(ValueError, match="--optimum"):
        expected_optimum(rule, "ar", 1e20)


def test_no_sizes_below_the_vocabulary():
    with pytest.raises(ValueError, match="--scale cpu"):
        sizes_between(1e5, 1e6, 5, **GPU)


def test_sizes_whose_published_count_misses_are_not_taken():
    assert [name for name in sizes() if not name.startswith("CPU") and not counted_well(name, 50257, "published")] == [
        "20M",
        "35M",
        "11452M",
        "12569M",
        "13735M",
        "14940M",
    ]


@pytest.mark.parametrize("target", [2e7, 1.5e8, 3e9, 3e10, 2e11])
def test_made_up_shapes_come_close_and_look_like_the_table(target):
    _, shape = find_size(make_size(target, **GPU))
    assert shape.published() == pytest.approx(target, rel=0.08)
    assert shape.attention_width == shape.hidden_size and 20 < shape.hidden_size / shape.num_layers < 200
