import json
from dataclasses import replace

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.answers.envelope import Curve, fit_envelope, read_curves
from megatron.scaling.table.table import read_table

ALPHA, BETA = 0.34, 0.28


def law(params, tokens):
    return 1.7 + 406 / params**ALPHA + 410 / tokens**BETA


def curves(sizes=None, points=200):
    """Curves of a law with N* ~ C^(beta / (alpha + beta)), from sparse to dense tokens."""
    found = []
    for number, size in enumerate(np.geomspace(1e7, 1e10, 16) if sizes is None else sizes):
        tokens = np.geomspace(1e8, 1e12, points)
        found.append(Curve(f"r{number}", size, f"r{number}", tokens, 6 * size * tokens, law(size, tokens)))
    return found


def test_curves_of_a_law_give_its_exponents():
    found = fit_envelope(curves(), num_resamples=50)
    a = BETA / (ALPHA + BETA)
    assert found.exponents["a"] == pytest.approx(a, abs=0.01) and found.exponents["b"] == pytest.approx(1 - a, abs=0.01)
    assert found.ci["a"][0] < a < found.ci["a"][1] and found.num_sizes >= 10
    np.testing.assert_allclose(found.loss, law(found.params, found.tokens), rtol=1e-3)
    assert "learning rate" in found.warnings[0]


def test_the_ends_of_the_data_are_left_out():
    found = fit_envelope(curves(), num_resamples=0)
    assert set(found.params[found.bracketed]) <= set(np.geomspace(1e7, 1e10, 16)[1:-1])
    assert not found.bracketed[0] and not found.bracketed[-1]
    few = fit_envelope(curves([1e7, 2e7, 3e7, 6e7]), num_resamples=0).warnings
    assert any("of the range of compute" in warning for warning in few) and any("2 sizes" in warning for warning in few)


def test_two_sizes_have_no_exponent():
    found = fit_envelope(curves([1e8, 1e9]), num_resamples=20)
    assert found.exponents == dict.fromkeys("abg") and found.ci == dict.fromkeys("abg")


def test_rising_curves_are_named():
    noisy = curves()
    random = np.random.default_rng(0)
    noisy[3] = replace(noisy[3], loss=noisy[3].loss * np.exp(0.05 * random.standard_normal(200)))
    assert any("r3 rises" in warning for warning in fit_envelope(noisy, num_resamples=0).warnings)


def test_clusters_are_drawn_whole():
    twice = [replace(curve, run=curve.run + "s") for curve in curves()] + curves()
    apart = [replace(curve, cluster=curve.run) for curve in twice]
    together, loose = (fit_envelope(found, num_resamples=200).ci["a"] for found in (twice, apart))
    assert together[1] - together[0] > loose[1] - loose[0]


def test_tables_with_several_rows_a_run(tmp_path):
    lines = [f"{curve.run},{curve.params},{d},{l}" for curve in curves(points=5) for d, l in zip(curve.tokens, curve.loss)]
    (tmp_path / "t.csv").write_text("\n".join(["run,params,tokens,loss", *reversed(lines)]))
    found = read_curves(read_table([tmp_path / "t.csv"]))
    assert len(found) == 16 and np.all(np.diff(found[0].tokens) > 0)
    np.testing.assert_allclose(found[-1].loss, curves(points=5)[0].loss)
    (tmp_path / "t.csv").write_text("\n".join(["run,params,tokens,loss", *lines[::5]]))
    with pytest.raises(BadData, match="has one point"):
        read_curves(read_table([tmp_path / "t.csv"]))


def test_run_directories(tmp_path):
    result = {"objective": "ar", "params": 1e8, "tokens": 4e9, "flops": 2.4e18, "loss": 3.0, "bits_per_byte": 1.5}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"kind": kind, "step": step, "tokens": step * 1_000_000_000, "flops": 0.0, "loss": loss}) + "\n"
            for step in (1, 2, 3, 4)
            for kind, loss in (("train", 5.0 - step), ("val", 4.0 - step / 4))
        )
    )
    (val,) = read_curves(read_table([tmp_path], flops="6nd"))
    np.testing.assert_allclose(val.flops, 6e8 * val.tokens)
    np.testing.assert_allclose(val.loss, [3.75, 3.5, 3.25, 3.0])
    (train,) = read_curves(read_table([tmp_path], unit="bits-per-byte"), "train")
    np.testing.assert_allclose(train.loss, [2, 1.5, 1, 0.5])
