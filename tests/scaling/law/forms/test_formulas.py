"""The named formulas on tables of known laws, and on the published ladder of a downstream task."""

import csv
from collections import defaultdict

import numpy as np
import pytest

from megatron.scaling.answers.predict import predict_run
from megatron.scaling.law.fit import fit_law

TRUTHS = {
    "power-members": {"F": 0.4, "E": 3.1, "gamma": 0.95},
    "power-epochs": {"F": 0.4, "E": 3.1, "gamma": 0.6},
    "power-params-members": {"A": 200.0, "F": 0.4, "E": 3.1, "alpha": 0.3, "gamma": 0.95},
    "overfit-penalty-decay": {"A": 300.0, "B": 900.0, "P": 2e-3, "E": 1.7, "alpha": 0.34, "beta": 0.37, "phi": 0.5},
    "loss-to-loss": {"K": 1.2, "E": 1.1, "F": 1.6, "kappa": 0.85},
}


@pytest.mark.parametrize("name", TRUTHS)
def test_a_known_law_comes_back(name):
    from megatron.scaling.law.forms import FORMS

    form, truth = FORMS[name], TRUTHS[name]
    N, U, epochs, W = (x.ravel() for x in np.meshgrid([3e7, 2e8, 1e9], [3e8, 5e9], [1, 2, 5, 16], [0.1, 1.0]))
    columns = {
        "members": np.tile([1.0, 2, 4, 8, 3, 6], 8),
        "weight_decay": W,
        "other_loss": 1.7 + 2000 / (U * epochs) ** 0.38 + 100 / N**0.3,
    }
    at = {symbol: columns[column] for symbol, column in form.columns.items()}
    columns |= {"params": N, "tokens": U * epochs, "unique_tokens": U}
    columns["loss"] = form.given(at).law_of(truth).loss(N, U * epochs, U)
    assert fit_law(columns, name, num_resamples=0).params == pytest.approx(truth, rel=5e-3)


def test_accuracy_in_two_steps_on_the_published_ladder(published):
    """arXiv:2412.04403 on HellaSwag: the loss of 16 ladder runs by N and D, accuracy by the loss, and both at 7B and 13B.

    The values are those of a refit by others (60 starts of L-BFGS-B): parameters, objective, and predictions.
    """
    with open(published("olmo_ladder_hellaswag.csv")) as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "train"]
    runs = defaultdict(list)
    for row in sorted(rows, key=lambda row: float(row["step"])):
        runs[row["run"]].append([float(row[name]) for name in ("params", "tokens", "hellaswag_bpb", "hellaswag_acc")])
    runs = {name: np.array(values) for name, values in runs.items()}
    last = np.array([[*values[-1, :2], values[-5:, 2].mean()] for values in runs.values()])
    loss = fit_law(dict(zip(("params", "tokens", "loss"), last.T)), num_resamples=0)
    assert loss.objective == pytest.approx(3.45311e-5, rel=1e-4)
    found = [np.log(loss.params["A"]), np.log(loss.params["B"]), *(loss.params[name] for name in ("alpha", "beta", "E"))]
    assert found == pytest.approx([2.4187, 4.1005, 0.1955, 0.2565, 0.5019], abs=2e-3)

    points = []
    for values in runs.values():
        smooth = np.array([values[max(0, end - 5) : end, 2].mean() for end in range(1, len(values) + 1)])
        points += np.column_stack([values[:, :2], smooth, values[:, 3]])[int(np.ceil(0.1 * len(values))) :].tolist()
    points.append([1e9, 1e10, 1e-9, 1.0])  # the ladder's ideal point
    columns = dict(zip(("params", "tokens", "task_loss", "loss"), np.array(points).T))
    accuracy = fit_law(columns, "accuracy", residual="mse", num_resamples=0)
    assert accuracy.params == pytest.approx({"low": 0.2663, "A": 0.7240, "k": 12.704, "M": 0.7666}, abs=2e-3)
    predictions = [
        predict_run(loss, "ladder", params=params, tokens=tokens, then={"accuracy": accuracy})
        for params, tokens in ((6887575552, 3.945e12), (13202396160, 5e12))
    ]
    assert [one["loss"] for one in predictions] == pytest.approx([0.6713, 0.6532], abs=2e-3)
    assert [one["then"][0]["value"] for one in predictions] == pytest.approx([0.8242, 0.8518], abs=2e-3)
    assert "tokens lies 15.4x beyond" in predictions[0]["warnings"][0]
