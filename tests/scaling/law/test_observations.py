import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.law.observations import held_out, observe
from megatron.scaling.table.table import Table

ROWS = [
    {"run": "a", "params": 1e6, "tokens": 2e8, "loss": 3.0, "seed": 1},
    {"run": "a", "params": 1e6, "tokens": 4e8, "loss": 2.9},
    {"run": "b", "params": 4e6, "tokens": 4e8, "loss": 2.5, "unique_tokens": 1e8},
]


def test_rows_columns_and_tables_are_the_same():
    columns = {
        "run": ["a", "a", "b"],
        "params": [1e6, 1e6, 4e6],
        "tokens": [2e8, 4e8, 4e8],
        "loss": [3.0, 2.9, 2.5],
        "unique_tokens": [2e8, 4e8, 1e8],
    }
    for given in (ROWS, Table(ROWS), columns):
        found = observe(given)
        assert list(found.cluster) == [0, 0, 1] and found.names == ["a", "a", "b"]
        assert list(found.columns["unique_tokens"]) == [2e8, 4e8, 1e8]
        assert list(found.columns["flops"]) == [1.2e15, 2.4e15, 9.6e15]


def test_a_fit_states_the_flags_in_which_its_runs_agree():
    rows = [row | {"weight_decay": 0.1, "lr": size, "bf16": True} for size, row in enumerate(ROWS)]
    stated = observe(rows).record["conventions"]
    assert (stated["weight_decay"], stated["lr"], stated["bf16"]) == (0.1, None, True) and "adam_beta2" not in stated


def test_counts_whose_product_overflows_an_integer():
    found = observe({"params": np.array([10**11]), "tokens": np.array([10**12]), "loss": [2.0]})
    assert found.columns["flops"][0] == pytest.approx(6e23)


def test_a_missing_column_and_a_bad_value_are_named():
    with pytest.raises(BadData, match="no column tokens"):
        observe({"params": [1.0], "loss": [1.0]})
    with pytest.raises(BadData, match="column loss, row 2"):
        observe({"params": [1.0, 1.0], "tokens": [1.0, 1.0], "loss": [1.0, 0.0]})


@pytest.mark.parametrize(
    "condition, expected", [("params>=4e6", [0, 0, 1]), ("epochs>1", [0, 0, 1]), ("run=a", [1, 1, 0]), ("seed=1", [1, 0, 0])]
)
def test_conditions_hold_rows_out(condition, expected):
    assert list(held_out(condition, observe(ROWS))[0]) == expected


@pytest.mark.parametrize("condition", ["nonsense", "width>3", "run>a", "params>0", "seed>1"])
def test_other_conditions_are_refused(condition):
    with pytest.raises(BadData, match="--holdout"):
        held_out(condition, observe(ROWS))
