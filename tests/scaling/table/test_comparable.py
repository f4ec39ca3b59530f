import pytest

from megatron.errors import Mismatch
from megatron.scaling.table.comparable import check_comparable, differences

RESULT = {
    "run": "small",
    "objective": "ar",
    "loss": 2.5,
    "bound": "exact",
    "tokenizer": "t",
    "eval_slice": "s",
    "params_convention": "total",
    "flops_convention": "6ND",
    "lr_decayed": True,
}


def row(name, **changes):
    return RESULT | {"run": name} | changes


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({"tokenizer": "other"}, "tokenizer"),
        ({"eval_slice": "other"}, "eval_slice"),
        ({"event": "the response and its end, given the prompt"}, "event"),
        ({"params_convention": "non-embedding"}, "params_convention"),
        ({"flops_convention": None}, "flops_convention"),
        ({"lr_decayed": False}, "lr_decayed"),
        ({"bound": "bound"}, "bound"),
    ],
)
def test_what_cannot_be_compared_is_refused_unless_allowed(changes, difference):
    runs = [row("one"), row("two", **changes)]
    with pytest.raises(Mismatch, match=f"two.*--allow {difference}"):
        check_comparable(runs)
    check_comparable(runs, allow=[difference])


def test_all_differences_are_named_at_once():
    runs = [row("one"), row("two", tokenizer="other", lr_decayed=False)]
    assert list(differences(runs)) == ["tokenizer", "lr_decayed"]
    with pytest.raises(Mismatch, match="--allow tokenizer.*--allow lr_decayed"):
        check_comparable(runs)


def test_exact_and_bound_stand_side_by_side_only_with_labels():
    check_comparable([row("one"), row("two", objective="mdm", bound="bound")])
    with pytest.raises(Mismatch, match="two"):
        check_comparable([row("one"), row("two", objective="mdm", bound=None)])


def test_scores_of_one_objective_are_not_mixed():
    ar, mdm = row("a", score="exact"), row("m", objective="mdm", bound="bound", score="korder:16")
    check_comparable([ar, row("b"), mdm])  # what a validation of AR measures is exact
    for score in ("nelbo", None):
        with pytest.raises(Mismatch, match="mdm runs mix scores: korder:16 in m; nelbo in n; .*--allow score"):
            check_comparable([ar, mdm, row("n", objective="mdm", bound="bound", score=score)])
