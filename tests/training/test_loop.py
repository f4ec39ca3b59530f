"""Layout: the same experiment whatever the micro-batch. (More layouts come with parallelism.)"""

import pytest

from megatron.batch import Progress, Step
from megatron.training.loop import Interval, after, due


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_micro_batches_do_not_change_the_experiment(run, corpus, tmp_path, objective):
    curves = {}
    for micro in (1, 2, 8):
        _, found = run(
            corpus,
            tmp_path / f"micro{micro}",
            objective,
            "--micro-batch-size",
            str(micro),
            "--train-iters",
            "6",
            "--clip-grad",
            "0.5",
            "--eval-interval",
            "3",
        )
        curves[micro] = [(r["loss"], r.get("grad_norm", 1.0)) for r in found]
    for micro in (1, 2):
        for (loss, norm), (other_loss, other_norm) in zip(curves[8], curves[micro], strict=True):
            assert abs(loss - other_loss) < 2e-6 * 8 and norm == pytest.approx(other_norm, rel=1e-5)


def test_interval_means_leave_out_what_was_skipped():
    interval = Interval()
    for loss, skipped in ((2.0, False), (float("nan"), True), (4.0, False)):
        interval.add(Step(loss=loss, accuracy=0.5, grad_norm=1.0, clipped_norm=1.0, skipped=skipped, scored=8, asked=8), 0.1)
    last = Step(loss=9.0, accuracy=0.0, grad_norm=1.0, clipped_norm=1.0, skipped=False, scored=8, asked=8)
    assert interval.mean(last) == (3.0, 0.5)
    assert interval.skipped == 1


def test_after_counts_skips_in_a_row():
    at, bad = Progress(), Step(loss=float("nan"), accuracy=0.0, grad_norm=1.0, clipped_norm=1.0, skipped=True, scored=8, asked=8)
    at = after(after(at, bad, 8), bad, 8)
    assert (at.step, at.samples, at.skipped, at.skipped_in_row) == (2, 16, 2, 2)
    at = after(at, Step(loss=1.0, accuracy=0.0, grad_norm=1.0, clipped_norm=1.0, skipped=False, scored=8, asked=8), 8)
    assert (at.skipped, at.skipped_in_row) == (2, 0)


def test_due():
    assert due(Progress(step=20), 10) and not due(Progress(step=21), 10) and not due(Progress(step=20), None)
