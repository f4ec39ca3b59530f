import pytest

from megatron.errors import BadData
from megatron.scaling.table.plausible import check_plausible
from megatron.scaling.table.table import read_table


def rows(factor=1.0, loss=3.0):
    return [
        {"where": f"t.csv, line {i}", "params": n, "tokens": 2e9, "flops": factor * 6 * n * 2e9, "loss": loss}
        for i, n in enumerate((1e7, 3e7, 1e8, 3e8), 2)
    ]


def test_flops_in_another_unit_are_named():
    assert check_plausible(rows()) == [] == check_plausible(rows(1.4))
    assert "0.333 times 6 N D in the median row" in check_plausible(rows(1 / 3))[0]
    assert check_plausible([row | {"flops_convention": "exact"} for row in rows(3)]) == []
    for change in ({"tokens": 2e3}, {"flops": 1.2e11}):
        with pytest.raises(BadData, match="line 4: C is .* in the other rows 1 times: .*1 such rows of 4"):
            check_plausible([row | (change if i == 2 else {}) for i, row in enumerate(rows())])
    with pytest.raises(BadData, match="line 2: C is 1e-06 times 6 N D, in the other rows 1 times: .*2 such rows of 4"):
        check_plausible([row | ({"tokens": 2e15} if i < 2 else {}) for i, row in enumerate(rows())])


def test_perplexities_are_no_losses(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("params,tokens,loss\n1e8,2e9,24.5\n2e8,4e9,20.1\n")
    assert "perplexities?" in read_table([table]).warnings[-1]
    assert check_plausible(rows(loss=24.5), "bits-per-byte") == []
