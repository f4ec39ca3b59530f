"""The coordinate check: muP is flat and the standard parametrization is not, and the interval is the textbook's."""

import numpy as np
import pytest
from scipy import stats

from megatron.proof.coordinates import check, slope

SMALL = """--num-layers 2 --hidden-size 32 --num-attention-heads 2 --ffn-hidden-size 64 --seq-length 32 --global-batch-size 8
    --micro-batch-size 8 --lr 3e-3 --device cpu""".split()


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_mup_is_flat_and_the_standard_one_grows(objective):
    standard, mup = check(SMALL, objective, ["standard", "mup"], "width", [32, 64, 128, 256], say=lambda line: None)
    assert mup.passed and not standard.passed
    grown = standard.slopes()
    assert grown["hidden"].value > 1 and grown["logits"].value > 0.4  # what a rate that suits one width does at another
    assert standard.change["hidden"][0] == mup.change["hidden"][0]  # the base model is the standard one


@pytest.mark.slow
def test_completep_is_flat_in_depth():
    found = check(SMALL, "ar", ["standard", "completep"], "depth", [2, 4, 8, 16], seeds=2, say=lambda line: None)
    standard, completep = (one.slopes()["hidden"].value for one in found)
    assert abs(completep) < 0.3 < standard


def test_the_interval_of_a_slope_is_that_of_least_squares():
    sizes = np.repeat([64, 128, 256], 2)
    values = np.exp(np.random.default_rng(0).normal(size=6)) * sizes**0.5
    found, known = slope(sizes, values, 0.3), stats.linregress(np.log(sizes), np.log(values))
    wide = stats.t.ppf(0.975, 4) * known.stderr
    assert np.allclose([found.value, found.low, found.high], [known.slope, known.slope - wide, known.slope + wide])
