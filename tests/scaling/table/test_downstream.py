import math

import pytest

from megatron.errors import BadData
from megatron.scaling.table.downstream import beside, by_accuracy


def row(name, objective="ar", n=1e6, d=1e8, **more):
    return {"run": name, "line": 1, "where": name, "objective": objective, "params": n, "tokens": d, "unique_tokens": d, **more}


def test_the_share_of_accuracy_above_chance_is_the_loss():
    rows = [row("a", acc=0.625, loss=2.0, loss_se_noise=0.1, loss_se=0.1), row("b", acc=0.24), row("c", acc=1.0), row("d")]
    kept, left_out = by_accuracy(rows, "acc", 0.25)
    assert [one["run"] for one in kept] == ["a"] and kept[0]["loss"] == pytest.approx(math.log(2))
    assert kept[0]["bound"] == "accuracy" and not {"loss_se", "loss_se_noise"} & set(kept[0])
    assert [one["run"] for one in left_out] == ["b", "c", "d"] and "0.24 is not between chance 0.25" in left_out[0]["reason"]
    for column, value, said in (("acck", 0.5, "no such column"), ("acc", 62.5, "from 0 to 1"), ("acc", 0.1, "no row of 1")):
        with pytest.raises(BadData, match=said):
            by_accuracy([row("a", acc=value)], column, 0.25)


def test_the_loss_of_runs_at_the_same_place_stands_beside():
    rows = [row("a", "mdm", loss=3.0), row("far", "mdm", n=2e6, loss=2.9), row("near", "mdm", n=3.01e6, loss=2.8)]
    others = [row("b", loss=2.0), row("b2", loss=2.2), row("e", n=3e6, loss=1.9), row("m", "mdm", loss=9.0)]
    kept, left_out = beside(rows, others)
    assert {one["run"]: one["other_loss"] for one in kept} == pytest.approx({"a": 2.1, "near": 1.9})
    assert [one["run"] for one in left_out] == ["far"]
    with pytest.raises(BadData, match="stands beside ar, udm"):
        beside(rows, [*others, row("u", "udm", loss=2.0)])
    kept, left_out = beside(others[:3], others[:3])  # none is its own
    assert {one["run"]: one["other_loss"] for one in kept} == {"b": 2.2, "b2": 2.0} and [one["run"] for one in left_out] == ["e"]
    with pytest.raises(BadData, match="none of 1 runs"):
        beside(rows, [row("b", n=7e6, loss=2.0)])
