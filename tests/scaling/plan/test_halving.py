import json

import pytest

from megatron.errors import BadData
from megatron.flags import ConfigError
from megatron.scaling.plan.axes import read_axis
from megatron.scaling.plan.cost import speed_of_peak
from megatron.scaling.plan.entries import load_plan, make_plan, save_plan
from megatron.scaling.plan.grid import Request

ASKED = {"sizes": ("57M",), "objectives": ("ar",), "vary": (read_axis("weight-decay=0,0.1,0.3,1,3"),), "halving": 2}


def test_rungs_are_lengths_settings_keep_their_order_and_sums_are_of_what_will_run(tmp_path):
    plan = make_plan(Request(flops=(4e18, 1e18, 2e18), seeds=(1, 2), **ASKED), {"ar": speed_of_peak(0.4, 1e15, 1)})
    (group,) = plan.halving
    entries = {run["name"]: run for run in plan.runs}
    lengths = [{entries[name]["budget"]["flops"] for names in rung for name in names} for rung in group["rungs"]]
    assert lengths == [{1e18}, {2e18}, {4e18}] and group["keep"] == [5, 3, 2]
    for rung in group["rungs"]:
        assert [{entries[name]["weight_decay"] for name in names} for names in rung] == [{0}, {0.1}, {0.3}, {1}, {3}]
        assert all(sorted(entries[name]["seed"] for name in names) == [1, 2] for names in rung)
    hours = [sum(entries[name]["forecast"]["hours"] for names in rung for name in names) for rung in group["rungs"]]
    totals = plan.totals()
    assert totals["runs"] == 20 and totals["hours"] == pytest.approx(hours[0] + hours[1] * 3 / 5 + hours[2] * 2 / 5)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").halving == plan.halving
    held = json.loads((tmp_path / "plan.json").read_text())
    held["halving"][0]["rungs"][0][0] = ["another"]
    (tmp_path / "plan.json").write_text(json.dumps(held))
    with pytest.raises(BadData, match="halving: expected groups with rungs of the plan's runs"):
        load_plan(tmp_path / "plan.json")


def test_epochs_over_the_same_tokens_are_lengths():
    more = {"unique_tokens": (10**8,), "epochs": (1, 4)} | ASKED
    (group,) = make_plan(Request(**more)).halving
    assert [len(rung) for rung in group["rungs"]] == [5, 5] and group["keep"] == [5, 3]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"flops": (1e18,)}, "1 lengths and 5 settings"),
        ({"flops": (1e18, 2e18), "vary": ()}, "2 lengths and 1 settings"),
        ({"flops": (1e18, 2e18), "halving": 1}, "--halving 1: expected a whole number of 2 or more"),
        ({"flops": (1e18, 2e18), "schedule": "wsd"}, "--halving and --schedule wsd exclude each other"),
    ],
)
def test_refusals(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_plan(Request(**ASKED | change))
