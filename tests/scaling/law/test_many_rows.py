import numpy as np

from megatron.scaling.law import many_rows
from megatron.scaling.law.fit import fit_law


def test_fit_of_very_many_rows_is_that_of_all_rows(monkeypatch):
    random, count = np.random.default_rng(0), 900
    params, tokens = 10 ** random.uniform(7, 9, count), 10 ** random.uniform(8.5, 10.5, count)
    clusters = np.arange(count) // 3
    noise = 0.01 * np.repeat(random.standard_normal(count // 3), 3) + 0.005 * random.standard_normal(count)
    loss = (1.8 + 480 / params**0.35 + 2100 / tokens**0.37) * np.exp(noise)
    table = {"params": params, "tokens": tokens, "loss": loss, "run": clusters}
    resampled = fit_law(table, num_resamples=100)
    monkeypatch.setattr(many_rows, "MANY_ROWS", 600)
    monkeypatch.setattr(many_rows, "SAMPLE_ROWS", 400)
    many = fit_law(table, num_resamples=100)
    assert (resampled.ci_method, many.ci_method) == ("percentile", "normal")
    assert many.share_at_optimum > 0.9 and many.rows_used == count
    assert np.isclose(many.objective, resampled.objective, rtol=1e-9)
    for name, value in resampled.params.items():
        assert np.isclose(many.params[name], value, rtol=1e-4)
        assert 0.7 < many.se[name] / resampled.se[name] < 1.4
    for name, (low, high) in resampled.profile.items():
        assert 0.7 < np.diff(many.profile[name])[0] / (high - low) < 1.4
        assert many.profile[name][0] < many.params[name] < many.profile[name][1]
