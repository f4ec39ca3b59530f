import pytest

from megatron.scaling.show.report.study import by_budget, study_runs


def test_objectives_are_fitted_apart(sweep):
    apart = study_runs("ar", sweep(objectives=("ar",)).rows, num_resamples=0)
    together = study_runs("ar", sweep().only("ar").rows, num_resamples=0)
    assert together.law.params == pytest.approx(apart.law.params)
    assert together.label == "AR (exact NLL)" and len(together.column("loss")) == 15


def test_too_few_runs_for_a_law_are_a_warning(sweep):
    study = study_runs("ar", sweep(objectives=("ar",), budgets=(6e11,), sizes=4).rows, num_resamples=20)
    assert study.law is None and any("no L(N, D)" in warning for warning in study.warnings)


def test_repeated_data_is_a_warning(sweep):
    rows = [row | {"unique_tokens": row["tokens"] / (1 + number % 3)} for number, row in enumerate(sweep(("ar",)).rows)]
    warnings = study_runs("ar", rows, num_resamples=0).warnings
    assert len(warnings) == 1 and warnings[0].startswith("10 of 15 runs repeat their data, up to 3 epochs")
    assert study_runs("ar", sweep(("ar",)).rows, num_resamples=0).warnings == []


def test_runs_stand_by_budget_then_size(sweep):
    rows = by_budget(sweep(objectives=("ar",)).rows[::-1])
    assert [(row["flops"], row["params"]) for row in rows] == sorted((row["flops"], row["params"]) for row in rows)


def test_a_nominal_budget_goes_before_the_compute_spent(sweep):
    rows = [row | {"budget": 1e12} for row in sweep(objectives=("ar",), budgets=(0.97e12, 1.04e12)).rows]
    assert [minimum.flops for minimum in study_runs("ar", rows, num_resamples=0).isoflop.minima] == [1e12]
