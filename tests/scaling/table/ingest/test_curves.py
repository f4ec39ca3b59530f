from pathlib import Path

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.table.ingest.curves import Curves, find_synonym, slug, trailing_mean


def curves(**metrics):
    made = Curves(run="r", path=Path("r"), files=[])
    for name, (steps, values) in metrics.items():
        made.add(name, steps, values)
    return made


def test_a_step_written_again_counts_once():
    made = curves(loss=([1, 2, 3], [9, 8, 7]))
    made.add("loss", [2, 4], [5, 4])
    assert [c.tolist() for c in made.curve("loss")] == [[1, 2, 3, 4], [9, 5, 7, 4]]
    made.forget_from(3)
    assert [c.tolist() for c in made.curve("loss")] == [[1, 2], [9, 5]]


def test_a_later_process_of_the_run_overwrites():
    first, second = curves(loss=([1, 2], [9, 8]), lr=([1], [1])), curves(loss=([2, 3], [5, 4]))
    first.follow(second)
    assert [c.tolist() for c in first.curve("loss")] == [[1, 2, 3], [9, 5, 4]]


def test_progress_lies_even_between_records_and_is_unknown_beyond():
    made = curves(samples=([10, 20], [100, 400]), lr=([10, 20], [1, 2]))
    np.testing.assert_array_equal(made.progress_at("samples", np.array([0, 5, 15, 20, 21])), [0, 50, 250, 400, np.nan])
    np.testing.assert_array_equal(made.at("lr", np.array([5, 10, 20, 30])), [np.nan, 1, 2, np.nan])


REFERENCE = [
    "lm-loss-training/lm loss",
    "lm-loss-validation/lm loss validation",
    "lm-loss-validation/lm loss validation ppl",
    "learning-rate/learning-rate",
    "steps-vs-tokens/y=tokens,x=steps",
]


@pytest.mark.parametrize(
    "names, quantity, found",
    [
        (REFERENCE, "loss", "lm-loss-validation/lm loss validation"),
        (REFERENCE[:1], "loss", "lm-loss-training/lm loss"),
        (REFERENCE, "tokens", "steps-vs-tokens/y=tokens,x=steps"),
        (["lm loss", "lm loss validation"], "loss", "lm loss validation"),
        (["train/loss", "val/loss"], "loss", "val/loss"),
        (["eval_loss", "train_loss"], "loss", "eval_loss"),
        (["consumed samples"], "samples", "consumed samples"),
        (["lr"], "loss", None),
    ],
)
def test_every_trainers_name_of_a_quantity_is_known(names, quantity, found):
    assert find_synonym(names, quantity) == found


@pytest.mark.parametrize(
    "wanted, found",
    [
        ("lm-loss-validation", "lm-loss-validation/lm loss validation"),
        ("lm loss", "lm-loss-training/lm loss"),
        ("lm-loss-validation/lm loss validation ppl", "lm-loss-validation/lm loss validation ppl"),
        ("val/loss", None),
        ("learning_rate", "learning-rate/learning-rate"),
        ("consumed-tokens", "steps-vs-tokens/y=tokens,x=steps"),
    ],
)
def test_a_mapping_means_one_metric(wanted, found):
    made = curves(**{name: ([1], [1]) for name in REFERENCE})
    if found:
        assert made.metric("x", {"x": (wanted, 2.0)}) == (found, 2.0)


@pytest.mark.parametrize(
    "wanted, sentence",
    [
        ("speed", "r: there is no 'speed'; it has train/loss, val/loss; name one in --map x"),
        ("Loss", "'Loss' may be train/loss, val/loss; name one in --map x"),
    ],
)
def test_a_mapping_to_nothing_or_to_several_is_refused(wanted, sentence):
    made = curves(**{name: ([1], [1]) for name in ("train/loss", "val/loss")})
    with pytest.raises(BadData, match=sentence):
        made.metric("x", {"x": (wanted, 1.0)})


def test_small_words():
    assert slug("LM_loss  Validation ") == "lm-loss-validation"
    np.testing.assert_array_equal(trailing_mean(np.array([4.0, 2.0, 6.0, 1.0]), 2), [4, 3, 4, 3.5])
    np.testing.assert_array_equal(trailing_mean(np.array([np.nan, 2.0, 6.0]), 1), [np.nan, 2, 6])
