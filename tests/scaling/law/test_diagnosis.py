import numpy as np
import pytest

from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.law.forms.data_constrained import DataConstrained

LAW = Chinchilla(E=1.7, A=300.0, B=900.0, alpha=0.34, beta=0.37)


def columns(noise=0.003, repeats=1, law=LAW):
    grids = np.meshgrid(np.geomspace(1e18, 1e21, 5), np.geomspace(5e7, 5e9, 6))
    flops, params = (np.repeat(grid.ravel(), repeats) for grid in grids)
    tokens = flops / 6 / params
    loss = law.loss(params, tokens) * np.exp(noise * np.random.default_rng(0).standard_normal(len(params)))
    return {"params": params, "tokens": tokens, "loss": loss}


def warned(table, *words, **more):
    fit = fit_law(table, **{"num_resamples": 0, **more})
    return any(all(word in warning for word in words) for warning in fit.warnings)


def test_a_sound_fit_has_no_warnings():
    assert fit_law(columns(), num_resamples=200).warnings == []


def test_no_repetition_cannot_show_its_value():
    assert warned(columns(), "no row repeats data", form="data-constrained")


def test_one_ratio_of_tokens_to_parameters_cannot_tell_them_apart():
    params = np.geomspace(1e7, 1e10, 12)
    loss = LAW.loss(params, 20 * params) * np.exp(0.003 * np.random.default_rng(0).standard_normal(12))
    assert warned({"params": params, "tokens": 20 * params, "loss": loss}, "rise together")


def test_a_form_that_misses_more_than_the_noise():
    table = columns(noise=1e-3, repeats=3)
    assert warned(table, "scatter of replicates", form="kaplan-params")
    assert not warned(table, "scatter of replicates")


def test_a_form_that_misses_without_replicates_and_one_that_does_not():
    """1 % of false alarms is what the test says: 4 of 380 tables of 20 and 40 rows, one in four with heavy tails."""
    assert warned(columns(noise=2e-3), "lack of fit", form="kaplan")
    coupled = columns(noise=1e-3)
    coupled["loss"] *= 1 + 0.004 * np.log(coupled["params"] / 5e8) * np.log(coupled["tokens"] / 1e11)
    assert warned(coupled, "lack of fit") and not warned(columns(noise=1e-3), "lack of fit")
    checkpoints = {**coupled, "run": np.arange(30) // 3}
    assert not warned(checkpoints, "lack of fit")  # rows of a run are not independent


def test_copies_are_no_replicates():
    table = {name: np.repeat(column, 2) for name, column in columns().items()}
    assert warned(table, "60 rows are 30 clusters")  # though each has a run of its own


def test_a_level_that_single_epochs_do_not_share():
    law = DataConstrained(**vars(LAW), R_D=15.0, R_N=8.0)
    params, unique, epochs = (grid.ravel() for grid in np.meshgrid([5e7, 3e8, 1e9, 4e9], [1e9, 1e10], [1, 2, 4, 8, 16]))
    loss = law.loss(params, unique * epochs, unique) * np.where(epochs == 1, 1.05, 1.0)
    table = {"params": params, "tokens": unique * epochs, "unique_tokens": unique, "loss": loss}
    assert warned(table, "level bias", "-4.8 %", form="data-constrained", chinchilla=vars(LAW))


def test_a_law_that_does_not_extrapolate():
    table = columns(noise=1e-3)
    table["loss"] = np.where(table["tokens"] > 1e11, 1.2 * table["loss"], table["loss"])
    assert warned(table, "hold-out error", holdout="tokens>1e11")


@pytest.mark.parametrize("num_rows, said", [(5, "interpolates"), (10, "cover less")])
def test_few_runs(num_rows, said):
    table = {name: column[::3][:num_rows] for name, column in columns().items()}
    assert warned(table, said)


def test_an_irreducible_loss_that_vanishes_has_no_interval():
    """Resamples that agree on E = 0 would give an interval that excludes any E there may be."""
    table = columns(law=Chinchilla(E=1e-9, A=30.0, B=90.0, alpha=0.15, beta=0.15))
    bent = 1 + 0.02 * np.log(table["params"] / 5e7)  # lower losses than the law's at small sizes: E wants below 0
    fit = fit_law(table | {"loss": table["loss"] / bent}, num_resamples=50)
    assert any("E tends to 0" in warning for warning in fit.warnings)
    assert fit.ci["E"] == [None, None] and "E" not in fit.se and None not in fit.ci["alpha"]


def test_two_definitions_of_the_loss_stand_on_two_levels():
    table = columns()
    mixed = table | {"loss": np.where(np.arange(30) % 3 == 0, table["loss"] / np.log(2), table["loss"])}
    assert warned(mixed, "two levels", "10 rows 1.4", "nats and bits") or warned(
        mixed, "two levels", "20 rows 1.4", "nats and bits"
    )
    assert not warned(columns(noise=0.03), "two levels")
    by_size = {name: np.tile(np.geomspace(1e6, 1e9, 15), 2) if name == "params" else values for name, values in table.items()}
    lengths = np.repeat([1e9, 1e11], 15)
    by_size |= {"tokens": lengths, "unique_tokens": lengths, "loss": LAW.loss(by_size["params"], lengths)}
    assert not warned(by_size, "two levels", form="power-params")


def test_repeated_data_are_no_matter_of_a_law_of_fresh_data():
    table = columns()
    repeated = table | {"unique_tokens": np.where(np.arange(30) < 8, table["tokens"] / 6, table["tokens"])}
    assert warned(repeated, "8 of 30 rows repeat their data, up to 6 epochs, which chinchilla takes for fresh")
    assert not warned(repeated, "takes for fresh", form="data-constrained")
