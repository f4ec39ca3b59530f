"""Laws of hyperparameters: known optima are found and covered, and what runs cannot tell is refused in words."""

import itertools
import math

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.law.hyper import as_record, fit_hyper, read_hyper, settings_of

LR = {"constant": math.log(0.5), "params": -0.35, "tokens": 0.1, "unique_tokens": 0.05}
DECAY = {"constant": math.log(0.3), "params": 0.5, "tokens": 0.0, "unique_tokens": -0.5}
SIZES, LENGTHS, PARTS = (1e6, 4e6, 1.6e7), (2e8, 8e8), (1.0, 0.1)


def best(law, N, D, U):
    return law["constant"] + law["params"] * math.log(N) + law["tokens"] * math.log(D) + law["unique_tokens"] * math.log(U)


def runs(noise, seed=0, cubic=0.0, rates=5, decays=(0.25, 1, 4), coupling=0.004):
    """A grid around the optimum of each place, as somebody who does not know it would choose: up to a factor off."""
    random, rows = np.random.default_rng(seed), []
    for N, D, part in itertools.product(SIZES, LENGTHS, PARTS):
        x = [best(law, N, D, D * part) for law in (LR, DECAY)]
        off = random.uniform(-0.4, 0.4, 2)
        grid = itertools.product(np.linspace(-1.4, 1.4, rates) + off[0], np.log(decays) + off[1])
        for a, b in grid:
            loss = 0.03 * a**2 + 0.01 * b**2 + coupling * a * b + cubic * a**3 + noise * random.standard_normal()
            rows.append(
                {
                    "run": f"r{len(rows)}",
                    "objective": "ar",
                    "params": N,
                    "tokens": D,
                    "unique_tokens": D * part,
                    "loss": (2 + 100 / N**0.3) * math.exp(loss),
                    "lr": math.exp(x[0] + a),
                    "weight_decay": math.exp(x[1] + b),
                    "params_convention": "total",
                }
            )
    return rows


def test_without_noise_the_law_is_what_it_was():
    rows = runs(0.0)
    fit = fit_hyper(rows, settings_of(rows, []), window=1.0)
    for name, law in (("lr", LR), ("weight_decay", DECAY)):
        found = {"constant": fit.laws[name].constant, **fit.laws[name].exponents}
        assert found == pytest.approx(law, abs=1e-6)
        assert fit.laws[name].at(params=4e6, tokens=1e9, unique_tokens=1e8) == pytest.approx(
            math.exp(best(law, 4e6, 1e9, 1e8)), rel=1e-6
        )
    assert fit.curvature == pytest.approx(np.array([[0.03, 0.002], [0.002, 0.01]]), abs=1e-9)
    assert fit.warnings == [] and len(fit.places) == 12
    assert fit.laws["lr"].outside(params=1e7, tokens=1e10, unique_tokens=1e8) == ["tokens"]


def test_intervals_cover_as_they_say():
    inside, places = [], []
    for seed in range(60):
        rows = runs(0.004, seed)
        fit = fit_hyper(rows, ["lr", "weight_decay"], window=1.0, seed=seed)
        for name, law in (("lr", LR), ("weight_decay", DECAY)):
            inside += [low <= law[what] <= high for what, (low, high) in fit.ci[name].items()]
            for place in fit.places:
                truth = math.exp(best(law, *(place[v] for v in ("params", "tokens", "unique_tokens"))))
                places.append(place[name]["low"] <= truth <= place[name]["high"])
    assert 0.91 <= np.mean(inside) <= 0.985 and 0.92 <= np.mean(places) <= 0.98


def test_a_variable_that_does_not_vary_has_no_exponent():
    rows = [row for row in runs(0.001, decays=(1.0,), coupling=0.0) if row["tokens"] == row["unique_tokens"] == 2e8]
    fit = fit_hyper(rows, ["lr"], window=1.0)
    assert list(fit.laws["lr"].exponents) == ["params"]
    low, high = fit.ci["lr"]["params"]
    assert low < LR["params"] < high


def test_losses_that_are_no_parabola_are_said():
    assert any(
        "no parabola" in line for line in fit_hyper(runs(0.0005, cubic=0.008), ["lr", "weight_decay"], window=1.0).warnings
    )
    assert not any("no parabola" in line for line in fit_hyper(runs(0.0005), ["lr", "weight_decay"], window=1.0).warnings)


def test_best_values_off_the_power_law_are_said():
    bent = [row | {"lr": row["lr"] * (3 if row["params"] == 4e6 else 1)} for row in runs(0.002)]  # ln lr* no line over ln N
    assert any("lack of fit: the best lr of single places" in line for line in fit_hyper(bent, ["lr"], 9).warnings)
    assert not any("lack of fit" in line for line in fit_hyper(runs(0.002), ["lr", "weight_decay"], 1.0).warnings)


def test_batches_of_runs_of_other_lengths_count_tokens():
    rows = [row | {"batch_size": row["lr"] * 1e6, "seq_length": 128.0} for row in runs(0.0, decays=(1,), coupling=0.0)]
    plain = fit_hyper(rows, ["batch_size"], 9)
    longer = [row | {"seq_length": 512.0, "batch_size": row["batch_size"] / 4} if i % 2 else row for i, row in enumerate(rows)]
    mixed = fit_hyper(longer, ["batch_size"], 9)
    assert "batches of equal tokens are equal, counted in samples of 128" in mixed.warnings[0]
    assert mixed.laws["batch_size"].constant == pytest.approx(plain.laws["batch_size"].constant, rel=1e-6)
    assert mixed.laws["batch_size"].seq_length == 128 and as_record(mixed)["settings"]["batch_size"]["seq_length"] == 128
    with pytest.raises(BadData, match=r"some runs do not say of how many tokens \(seq-length 128 in others\)"):
        fit_hyper([*rows[1:], rows[0] | {"seq_length": None}], ["batch_size"], 9)


def test_what_runs_cannot_tell_is_refused():
    rows = runs(0.0)
    with pytest.raises(BadData, match="differ in none of lr, batch-size, weight-decay"):
        settings_of([row | {"lr": 1e-3, "weight_decay": 0.1} for row in rows], [])
    with pytest.raises(BadData, match="no minimum in weight-decay between"):
        fit_hyper(
            [row | {"loss": row["loss"] * row["weight_decay"] ** -0.05 / (1 + row["weight_decay"])} for row in rows],
            ["weight_decay"],
            9,
        )
    with pytest.raises(BadData, match="do not tell where weight-decay is best: each needs three"):
        fit_hyper(runs(0.0, decays=(0.5, 2)), ["lr", "weight_decay"], 9)
    with pytest.raises(BadData, match="no run states a weight-decay above 0"):
        fit_hyper([row | {"weight_decay": 0.0} for row in rows], ["weight_decay"])
    with pytest.raises(BadData, match="within 1e-09 in ln L of the best: give a larger --window"):
        fit_hyper(rows, ["lr", "weight_decay"], 1e-9)
    fit = fit_hyper(rows + [rows[0] | {"weight_decay": 0.0}], ["lr", "weight_decay"], 1.0)
    assert "1 runs have no logarithm" in fit.warnings[0]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{}", "no laws of hyperparameters of version 1"),
        ('{"schema_version": 1, "objectives": {}}', "no law of lr: fit it with `hyper --of lr`"),
        ('{"schema_version": 1, "objectives": {"ar": {"settings": {"lr": {"constant": "x"}}}}}', "no laws of hyperparameters"),
    ],
)
def test_files_that_hold_no_laws(tmp_path, text, sentence):
    (tmp_path / "hyper.json").write_text(text)
    with pytest.raises(BadData, match=sentence):
        read_hyper(tmp_path / "hyper.json", "lr")
