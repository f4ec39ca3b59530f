"""Parts of a table: differences of parameters, and a plan over decay x dropout x epochs that ends in a law of a coefficient."""

import itertools
import json

import numpy as np
import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.answers.parts import compare_parts, differences, trends
from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.forms.data_constrained import DataConstrained
from megatron.scaling.table.table import read_table

CHINCHILLA = {"E": 1.2, "A": 60.0, "B": 200.0, "alpha": 0.34, "beta": 0.36}
WORTH, SLOPE, DROP = 12.0, 0.5, 4.0  # R_D* = 12 decay^0.5 exp(4 dropout)
DECAYS, DROPOUTS = (0.1, 0.3, 1.0), (0.0, 0.1)


def coefficient(decay, dropout):
    return WORTH * decay**SLOPE * np.exp(DROP * dropout)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A plan over decay x dropout x epochs x N x U with simulated losses."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("parts") / "runs.csv"
    lines = ["params,tokens,unique_tokens,loss,weight_decay,hidden_dropout,objective,bound"]
    for decay, dropout in itertools.product(DECAYS, DROPOUTS):
        law = DataConstrained(**CHINCHILLA, R_D=coefficient(decay, dropout), R_N=1e6)
        for N, U, epochs in itertools.product((1e6, 4e6), (1e7, 4e7, 1.6e8), (1, 4, 16, 64)):
            loss = law.loss(N, U * epochs, U) * np.exp(0.001 * random.standard_normal())
            lines.append(f"{N},{U * epochs},{U},{loss},{decay},{dropout},ar,exact")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def fits(table):
    rows = read_table([table], by=["weight-decay", "hidden-dropout"])
    held = CHINCHILLA
    return rows, {
        part: fit_law(rows.only(part), "data-constrained", num_resamples=60, chinchilla=held) for part in rows.objectives
    }


def test_the_coefficient_s_law_over_decay_and_dropout_is_found_and_covered(fits):
    rows, parts = fits
    (line,) = [one for one in trends(parts, rows.rows, ["weight-decay", "hidden-dropout"]) if one["parameter"] == "R_D"]
    decay, dropout = line["slopes"]
    assert (decay["of"], dropout["of"], line["of"], line["parts"]) == ("ln weight-decay", "hidden-dropout", "ln R_D", 6)
    for found, truth in ((decay, SLOPE), (dropout, DROP)):
        low, high = found["ci"]
        assert low < truth < high and high - low < 0.3 * truth
    assert line["constant"] == pytest.approx(np.log(WORTH), abs=0.1) and 0.1 < line["excess"] < 5


def test_differences_are_of_what_was_fitted_with_their_intervals(fits):
    _, parts = fits
    one, two = (parts[f"ar weight-decay={decay} hidden-dropout=0"] for decay in ("0.1", "1"))
    found = {entry["name"].split(" at ")[0]: entry for entry in differences(one, two)}
    assert list(found) == ["R_D", "R_N", "loss"]
    low, high = found["R_D"]["ci"]
    assert low < coefficient(1.0, 0) - coefficient(0.1, 0) < high and low > 0
    low, high = found["loss"]["ci"]
    assert high < 0 and found["loss"]["difference"] == found["loss"]["values"][1] - found["loss"]["values"][0]
    assert [pair["other"] for pair in compare_parts({"a": one, "b": two})] == ["b (exact NLL)"]


def test_the_verb_says_it(table, capsys):
    held = ",".join(f"{name}={value}" for name, value in CHINCHILLA.items())
    words = [
        "fit",
        str(table),
        "--form",
        "data-constrained",
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
    assert "ar: ln R_D =" in aside and "minus ar weight-decay=0.1" in aside
