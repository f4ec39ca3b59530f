"""Differences within pairs of one seed, with Student's interval."""

import numpy as np
import pytest
from scipy.stats import t

from megatron.errors import BadData
from megatron.scaling.table.pairs import paired


def run(mode, seed, loss, **more):
    result = {"objective": "mdm", "params": 10, "tokens": 100, "seed": seed, "loss": loss, **more}
    return {"path": f"{mode}-{seed}-{more}", "status": "done", "config": {"objective": {"atat": mode}}, "result": result}


def test_pairs_of_a_seed_against_the_flags_default():
    seeds, moved = np.array([3.0, 3.2, 2.9, 3.1]), np.array([0.01, 0.03, -0.01, 0.02])
    runs = [run("full", n, loss) for n, loss in enumerate(seeds + moved)] + [run(None, n, loss) for n, loss in enumerate(seeds)]
    runs += [
        run("learned", 0, 3.5),
        run("full", 9, 9.0),
        {**run("full", 1, 7.0), "status": "running"},
        run("full", 0, 8.0, params=11),
    ]
    full, learned = paired(runs, "atat")
    assert (full["value"], full["against"], full["pairs"]) == ("full", "none", 4)
    low, high = t.interval(0.95, 3, moved.mean(), moved.std(ddof=1) / 2)
    assert (full["difference"], full["half_width"]) == pytest.approx((moved.mean(), (high - low) / 2))
    assert (full["least"], full["largest"]) == pytest.approx((-0.01, 0.03))
    assert (learned["pairs"], learned["half_width"]) == (1, None)
    (alone,) = paired([run("full", 0, 3.1), run(None, 0, 3.0)], "atat")
    assert (alone["pairs"], alone["difference"], alone["half_width"]) == (1, pytest.approx(0.1), None)


def test_what_cannot_be_paired_is_refused():
    for runs, name, said in (
        ([run("full", 1, 3.0), run(None, 2, 3.0)], "atat", "no two finished runs differ in it and have seed"),
        ([], "--atat-tilt", "no two finished runs"),
        ([run("full", 1, 3.0), run("full", 1, 4.0) | {"path": "again"}], "atat", "differ in another flag or in nothing"),
        ([], "nothing", "--by nothing: no such flag"),
    ):
        with pytest.raises(BadData, match=said):
            paired(runs, name)
