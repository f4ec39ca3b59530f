"""Parts of a table: differences of parameters, and a plan over decay x dropout x epochs that ends in a law of a coefficient."""

import itertools
import json

import numpy as np
import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.answers.parts import compare_parts, differences, trends
from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.forms.penalty import OverfitPenalty
from megatron.scaling.table.table import read_table

CHINCHILLA = {"E": 1.2, "A": 60.0, "B": 200.0, "alpha": 0.34, "beta": 0.36}
SIZE, SLOPE, DROP = 2e-3, -0.52, -4.0  # P = 2e-3 decay^-0.52 exp(-4 dropout): 10 times the decay takes 70 % off
DECAYS, DROPOUTS = (0.1, 0.3, 1.0), (0.0, 0.1)


def coefficient(decay, dropout):
    return SIZE * decay**SLOPE * np.exp(DROP * dropout)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A plan over decay x dropout x epochs x N x U with simulated losses."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("parts") / "runs.csv"
    lines = ["params,tokens,unique_tokens,loss,weight_decay,hidden_dropout,objective,bound"]
    for decay, dropout in itertools.product(DECAYS, DROPOUTS):
        law = OverfitPenalty(**CHINCHILLA, P=coefficient(decay, dropout))
        for N, U, epochs in itertools.product((1e6, 4e6, 1.6e7), (1e7, 4e7, 1.6e8), (1, 4, 16, 64)):
            loss = law.loss(N, U * epochs, U) * np.exp(0.001 * random.standard_normal())
            lines.append(f"{N},{U * epochs},{U},{loss},{decay},{dropout},ar,exact")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def fits(table):
    rows = read_table([table], by=["weight-decay", "hidden-dropout"])
    held = CHINCHILLA
    return rows, {
        part: fit_law(rows.only(part), "overfit-penalty", num_resamples=60, chinchilla=held) for part in rows.objectives
    }


def test_the_coefficient_s_law_over_decay_and_dropout_is_found_and_covered(fits):
    rows, parts = fits
    (line,) = [one for one in trends(parts, rows.rows, ["weight-decay", "hidden-dropout"]) if one["parameter"] == "P"]
    decay, dropout = line["slopes"]
    assert (decay["of"], dropout["of"], line["of"], line["parts"]) == ("ln weight-decay", "hidden-dropout", "ln P", 6)
    for found, truth in ((decay, SLOPE), (dropout, DROP)):
        low, high = found["ci"]
        assert low < truth < high and high - low < 0.45 * abs(truth)
    assert line["constant"] == pytest.approx(np.log(SIZE), abs=0.1) and 0.1 < line["excess"] < 5


def test_differences_are_of_what_was_fitted_with_their_intervals(fits):
    _, parts = fits
    one, two = (parts[f"ar weight-decay={decay} hidden-dropout=0"] for decay in ("0.1", "1"))
    found = {entry["name"].split(" at ")[0]: entry for entry in differences(one, two)}
    assert list(found) == ["P", "loss"]
    low, high = found["P"]["ci"]
    assert low < coefficient(1.0, 0) - coefficient(0.1, 0) < high < 0
    low, high = found["loss"]["ci"]
    assert high < 0 and found["loss"]["difference"] == found["loss"]["values"][1] - found["loss"]["values"][0]
    assert [pair["other"] for pair in compare_parts({"a": one, "b": two})] == ["b (exact NLL)"]


def test_the_verb_says_it(table, capsys):
    held = ",".join(f"{name}={value}" for name, value in CHINCHILLA.items())
    words = [
        "fit",
        str(table),
        "--form",
        "overfit-penalty",
        "--chinchilla",
        held,
        "--bootstrap",
        "20",
        "--drop",
        "hidden_dropout>0",
    ]
    assert main([*words, "--by", "weight-decay", "--json"]) == 0
    said, aside = capsys.readouterr()
    found = json.loads(said)
    assert found["trends"][0]["slopes"][0]["value"] == pytest.approx(SLOPE, abs=0.15)
    assert "ar: ln P =" in aside and "minus ar weight-decay=0.1" in aside


def test_laws_of_a_column_are_compared_in_the_middle_of_what_both_were_fitted_to(table):
    rows = read_table([table], by=["hidden-dropout"], columns=["weight_decay"])
    fits = {part: fit_law(rows.only(part), "overfit-penalty-decay", num_resamples=20) for part in rows.objectives}
    (pair,) = compare_parts(fits)
    where = pair["differences"][-1]["name"]
    assert where.startswith("loss at N=4e+06") and where.endswith("weight_decay=0.55") and pair["differences"][-1]["ci"][1] < 0
