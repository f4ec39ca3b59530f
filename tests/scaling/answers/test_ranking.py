import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.answers.ranking import mean_interval, parts_of, rank_forms, usual_forms
from megatron.scaling.law.expression import parse_form
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.law.observations import observe


def table(noise=0.002, epochs=(1,)):
    N, C, e = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 3e9, 6), [1e19, 4e19, 2e20, 1e21], epochs))
    tokens = C / 6 / N
    loss = Chinchilla(E=1.8, A=480, B=2100, alpha=0.35, beta=0.37).loss(N, tokens)
    loss *= np.exp(noise * np.random.default_rng(0).standard_normal(len(N)))
    return {"params": N, "tokens": tokens, "unique_tokens": tokens / e, "loss": loss, "flops": C}


def test_the_true_form_leads_one_that_holds_it_is_not_told_apart_and_a_wrong_one_is():
    forms = {name: FORMS[name] for name in ("kaplan-params", "coupled", "chinchilla")}
    found = rank_forms(table(), forms, "flops")
    order = [one["form"] for one in found["forms"]]
    assert order[-1] == "kaplan-params" and len(found["parts"]) == 4 and found["rows"] == 24
    other = next(one for one in found["forms"][1:] if one["form"] != "kaplan-params")
    assert other["ci"][0] < 0 < found["forms"][2]["ci"][0]
    assert found["forms"][0]["error"] < 0.004 < found["forms"][2]["error"]
    few = rank_forms(table(), {"overfit": FORMS["data-constrained-overfit"], **forms}, "random:2", residual="mse-log")
    assert {one["form"] for one in few["forms"]} | {one["form"] for one in few["not_ranked"]} == {"overfit", *forms}


def test_what_is_left_out_is_said_and_is_everything_once():
    observed = observe(table())
    for how, count in (("flops", 4), ("params", 6), ("random:5", 5), ("tokens", 12)):
        parts = parts_of(how, observed)
        assert len(parts) == count and (np.sum([part.rows for part in parts], axis=0) == 1).all()
    (largest,) = parts_of("largest:0.25", observed)
    assert largest.rows.sum() == 6 and observed.columns["flops"][largest.rows].min() == 1e21
    clustered = observe(table() | {"cluster": np.repeat(np.arange(8), 3)})
    for part in parts_of("random:4", clustered):
        assert len(set(clustered.cluster[part.rows]) & set(clustered.cluster[~part.rows])) == 0
    checkpoints = observe(table() | {"cluster": np.tile(np.arange(6), 4)})
    dense = {name: np.tile(column, 40) * np.repeat(np.geomspace(1, 1e3, 40), 24) for name, column in table().items()}
    bands = parts_of("flops", observe(dense | {"flops": np.geomspace(1e18, 1e22, 960)}))
    assert len(bands) == 12 and {part.rows.sum() for part in bands} == {80}
    uneven = observe(table() | {"flops": table()["flops"] * (1 + 1e-3 * np.random.default_rng(0).standard_normal(24))})
    assert parts_of("largest", uneven)[0].rows.sum() == 6  # a budget is left out whole
    for how, said in (("flops", "rows of one run lie in several parts"), ("random:7", "there are 6 runs")):
        with pytest.raises(BadData, match=said):
            parts_of(how, checkpoints)
    for how, said in (("unique", "no column unique"), ("largest:0.99", "24 of 24"), ("width", "one value of width")):
        with pytest.raises(BadData, match=said):
            parts_of(how, observe(table() | {"width": np.ones(24)}))


def test_a_column_with_one_value_left_is_not_ranked():
    columns = table() | {"width": np.repeat([1.0, 2.0], 12)}
    columns["loss"] *= columns["width"] ** 0.1
    forms = {form.name: form for form in (FORMS["chinchilla"], parse_form("E + A/N^alpha + B/D^beta + G*W; W = width"))}
    (left,) = rank_forms(columns, forms, "width")["not_ranked"]
    assert "width has one value in what is left without width 1" in left["reason"]
    assert "farseer" not in usual_forms(table(), FORMS) and "farseer" in usual_forms(table(epochs=(1, 1)), FORMS)


def test_the_interval_counts_units_and_not_rows():
    random, inside = np.random.default_rng(1), 0
    for _ in range(300):  # 8 units of unequal size whose rows share half of their variance
        unit = np.repeat(np.arange(8), [2, 2, 3, 3, 4, 4, 5, 5])
        low, high = mean_interval(random.standard_normal(8)[unit] + random.standard_normal(len(unit)), unit)
        inside += low < 0 < high
    assert 0.91 < inside / 300 < 0.98
    assert mean_interval(np.ones(3), np.zeros(3)) is None


def test_forms_that_know_repetition_are_usual_where_data_repeat():
    assert {"chinchilla", "kaplan", "coupled"} <= set(usual_forms(table(), FORMS))
    assert "data-constrained" not in usual_forms(table(), FORMS) and "power-params" not in usual_forms(table(), FORMS)
    assert {"data-constrained", "overfit-penalty"} <= set(usual_forms(table(epochs=(1, 4)), FORMS))
