import numpy as np
import pytest

from megatron.errors import BadData, MissingInput
from megatron.scaling.law.expression import parse_form, read_form
from megatron.scaling.law.fit import fit_law, load_fit, save_fit
from megatron.scaling.law.forms import FORMS

TRUTH = {"E": 1.7, "A": 300.0, "B": 900.0, "P": 2e-3, "alpha": 0.34, "beta": 0.37, "phi": 0.6}
TEXT = "E + A/N^alpha + B/D^beta + P*R^phi"


def table():
    N, U, epochs = (x.ravel() for x in np.meshgrid([5e7, 3e8, 1e9, 4e9], [1e9, 1e10], [1, 4, 30, 100]))
    p = TRUTH
    loss = p["E"] + p["A"] / N ** p["alpha"] + p["B"] / (U * epochs) ** p["beta"] + p["P"] * (epochs - 1.0) ** p["phi"]
    return {"params": N, "tokens": U * epochs, "unique_tokens": U, "loss": loss}


def test_a_formula_is_fitted_and_its_file_says_it(tmp_path):
    fit = fit_law(table(), TEXT, num_resamples=0)
    assert fit.params == pytest.approx(TRUTH, rel=1e-3) and fit.law_form.repeats
    save_fit(fit, tmp_path)
    again = load_fit(tmp_path)
    assert again.params == fit.params and again.predict(1e9, 4e10, 1e10) == pytest.approx(fit.predict(1e9, 4e10, 1e10))


def test_what_is_linear_is_a_term_and_the_rest_is_searched():
    form = parse_form("L = A/N^alpha + (B/D^beta)")
    assert form.names == ("A", "B", "alpha", "beta") and not form.repeats and not form.irreducible
    kaplan = parse_form("((Nc/N)^(aN/aD) + Dc/D)^aD; Nc in 1e10:1e18; Dc in 1e9:1e17")
    assert kaplan.names == ("Nc", "aN", "aD", "Dc") and kaplan.scales == {"Nc", "Dc"}
    assert {one.name: one.exponent for one in parse_form(TEXT).parameters}["P"] == "phi"
    columns = {name: column for name, column in table().items() if name != "unique_tokens"}
    columns["loss"] = (
        FORMS["kaplan"]
        .law_of({"N_c": 9e13, "D_c": 5e13, "alpha_N": 0.08, "alpha_D": 0.1})
        .loss(columns["params"], columns["tokens"])
    )
    found = fit_law(columns, kaplan, num_resamples=0).params
    assert (found["aN"], found["aD"], found["Nc"]) == pytest.approx((0.08, 0.1, 9e13), rel=1e-2)


@pytest.mark.parametrize(
    "text, words",
    [
        ("E + A/N^", "does not parse"),
        ("E + A/K^alpha", "no N, D, U, R and no column"),
        ("E + A/W^alpha; weight-decay", "no column, expected NAME = COLUMN"),
        ("E + A/W^alpha; K = members", "names no free name"),
        ("E + A*(W - M)^alpha; M in 0:min(X); W = loss_of_ar", "is no limit"),
        ("E + A/N^alpha + open('x')", "none of"),
        ("E + A/N.real", "none of"),
        ("E + A/N^alpha if N else 1", "none of"),
        ("E + A/N^alpha; beta in 1:2", "limits no parameter"),
        ("E + A/N^alpha; alpha from 1", "is no limit"),
        ("chinchila", "did you mean chinchilla"),
    ],
)
def test_what_is_no_form_is_refused_in_one_sentence(text, words):
    with pytest.raises(BadData, match="--form") as refused:
        read_form(text, FORMS)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_python_file_may_define_one(tmp_path):
    path = tmp_path / "mine.py"
    text = "from megatron.scaling.law.expression import parse_form\nFORM = parse_form('E + A/N^alpha', 'chinchilla')\n"
    path.write_text(text)
    assert read_form(str(path), FORMS).names == ("A", "E", "alpha")
    columns = {name: column for name, column in table().items() if name != "unique_tokens"}
    fit = fit_law(columns, read_form(str(path), FORMS), num_resamples=0)
    save_fit(fit, tmp_path / "fit")
    assert load_fit(tmp_path / "fit").predict(1e9, 1e10) == fit.predict(1e9, 1e10)
    named = path.read_text()
    path.write_text(named + "# another file now\n")
    with pytest.raises(BadData, match="sha256"):
        load_fit(tmp_path / "fit")
    path.unlink()
    with pytest.raises(MissingInput, match="put that file back"):
        load_fit(tmp_path / "fit")
    path.write_text("FORM = 3\n")
    with pytest.raises(BadData, match="FORM is int"):
        read_form(str(path), FORMS)
    path.write_text("1 / 0\n")
    with pytest.raises(BadData, match="ZeroDivisionError"):
        read_form(str(path), FORMS)


def test_columns_of_the_table_are_variables_and_a_law_is_asked_at_their_values(tmp_path):
    N, W, epochs = (x.ravel() for x in np.meshgrid([5e7, 3e8, 1e9], [0.1, 0.3, 1.0], [1, 4, 30, 100]))
    p = {"E": 1.7, "A": 300.0, "P": 2e-3, "alpha": 0.34, "phi": 0.5}
    loss = p["E"] + p["A"] / N ** p["alpha"] + p["P"] * (epochs - 1.0) / W ** p["phi"]
    columns = {"params": N, "tokens": 1e9 * epochs, "unique_tokens": np.full_like(N, 1e9), "loss": loss, "weight_decay": W}
    fit = fit_law(columns, "E + A/N^alpha + P*R/W^phi; W = weight-decay", num_resamples=0)
    assert fit.params == pytest.approx(p, rel=1e-3) and fit.range["weight_decay"] == [0.1, 1.0]
    save_fit(fit, tmp_path)
    again = load_fit(tmp_path)
    with pytest.raises(BadData, match="predict --at weight-decay"):
        again.predict(1e9, 4e10, 1e9)
    asked = again.given({"weight_decay": 0.3})
    assert asked.predict(1e9, 4e9, 1e9) == pytest.approx(loss[(N == 1e9) & (W == 0.3) & (epochs == 4)][0], rel=1e-4)
    assert not asked.extrapolation() and "weight_decay lies outside" in again.given({"W": 3.0}).extrapolation()[0]
    assert parse_form("E + A*X^alpha; X = task-hs/answer_bpb").columns == {"X": "task-hs/answer_bpb"}
    with pytest.raises(BadData, match="--at dropout"):
        again.given({"dropout": 0.1})
    wide = fit_law(columns | {"loss": loss / N**0.01}, "E + a/N^b", num_resamples=0)  # names that are exponents elsewhere
    assert wide.params.keys() == {"E", "a", "b"} and wide.predict(1e9, 1e10) > 1
    at_zero = {name: np.append(column, column[:1]) for name, column in columns.items()}
    with pytest.raises(
        BadData, match="gives no number on 1 of 37 rows .weight-decay 0.: leave them out with --drop 'weight_decay=0'"
    ):
        fit_law(at_zero | {"weight_decay": np.append(W, 0.0)}, asked.form)
    with pytest.raises(BadData, match="M in 0:max.W. is empty on these rows, where weight-decay is -1 to -0.1"):
        fit_law(columns | {"weight_decay": -W}, "E + A*exp(M*W); M in 0:max(W); W = weight-decay")
    one = fit_law(columns | {"weight_decay": np.where(W < 1, 0.1, 1.0)}, asked.form, num_resamples=0)
    assert any("only 2 values of weight_decay" in warning for warning in one.warnings)
    for column, said in ((None, "no column weight_decay"), (["none", *W[1:]], "found 'none', expected a number")):
        with pytest.raises(BadData, match=said):
            fit_law(
                columns | {"weight_decay": column} if column else {k: v for k, v in columns.items() if k != "weight_decay"},
                asked.form,
            )
