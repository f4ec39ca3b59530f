"""A table whose loss is a score of the runs' likelihood.jsonl."""

import json
import re

import pytest

from megatron.errors import BadData, Mismatch, MissingInput
from megatron.flags import ConfigError
from megatron.scaling.__main__ import main
from megatron.scaling.answers.compare import side_of_fit
from megatron.scaling.table.scores import by_score
from megatron.scaling.table.table import read_table

CONVENTION = {"slice": "rows 64", "scored_tokens": "tokens 1..15", "conditioned_on": "token 0"}


def entry(score, value, loss):
    errors = {"se_noise": 0.001, "se_noise_df": 3.0, "se_rows": 0.02}
    return {"score": score, "value": value, "nats_per_token": loss, "bits_per_byte": 2 * loss, **errors}


def measured(folder, *entries, **changes):
    one = {"set": "valid", "step": 40, "convention": CONVENTION, "scores": list(entries)} | changes
    with open(folder / "likelihood.jsonl", "a") as file:
        file.write(json.dumps(one) + "\n")


@pytest.fixture
def runs(run_folders):
    """The sweep, its MDM runs scored."""
    for folder in run_folders.iterdir():
        path = folder / "result.json"
        result = json.loads(path.read_text()) | {"steps": 40}
        path.write_text(json.dumps(result))
        scores = [entry("exact", "exact", result["loss"])]
        if result["objective"] == "mdm":
            scores = [entry("nelbo", "upper bound", result["loss"]), entry("rule:margin", "exact", result["loss"] - 0.1)]
            measured(folder, entry("rule:margin", "exact", 7.0), step=20)
            measured(folder, entry("rule:margin", "exact", 7.0), set="test")
            measured(folder, entry("rule:margin", "exact", 7.0))
        measured(folder, *scores)
    return run_folders


def test_the_newest_measurement_of_the_last_step_is_the_loss(runs):
    plain, table = read_table([runs]), read_table([runs], score="rule:margin")
    assert table.choices["score"] == "rule:margin"
    assert table.only("ar").column("loss") == pytest.approx(plain.only("ar").column("loss"))
    assert table.only("mdm").column("loss") == pytest.approx(plain.only("mdm").column("loss") - 0.1)
    assert {(row["objective"], row["score"], row["bound"], row["eval_slice"]) for row in table.rows} == {
        ("ar", "exact", "exact", "rows 64"),
        ("mdm", "rule:margin", "exact", "rows 64"),
    }
    assert table.rows[0]["event"] == "tokens 1..15, given token 0" and table.rows[0]["loss_se_data"] == 0.02


def test_a_run_that_was_not_scored_so_is_named_with_the_command(runs):
    with pytest.raises(MissingInput, match="mdm.*not scored by korder:16 at its last step 40; run python tools/evaluate"):
        read_table([runs], score="korder:16")
    with pytest.raises(ConfigError, match="--score korder: expected nelbo"):
        read_table([runs], score="korder")
    with pytest.raises(BadData, match="leave out --loss"):
        read_table([runs], score="nelbo", loss="best")


def test_rows_that_were_scored_on_others_are_refused(runs):
    ar = next(folder for folder in runs.iterdir() if folder.name.startswith("ar"))
    (ar / "likelihood.jsonl").unlink()  # its validation's own loss is exact, on the rows of its validation
    with pytest.raises(Mismatch, match="eval_slice: slice 2e in ar.*rows 64 in"):
        read_table([runs], score="rule:margin")


def test_a_table_says_by_itself_what_its_loss_is(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("params,tokens,loss,objective,bound,score\n1e6,1e8,3,mdm,bound,korder:16\n2e6,1e8,2.9,ar,exact,\n")
    assert read_table([path], score="korder:16").labels("score").tolist() == ["korder:16", ""]
    with pytest.raises(BadData, match="line 2: the loss is korder:16, --score asks for nelbo"):
        read_table([path], score="nelbo")


def test_a_fit_says_which_score_it_is_of(runs, tmp_path):
    words = ["fit", str(runs), "--score", "rule:margin", "--bootstrap", "0", "--starts", "4", "--out", str(tmp_path / "fit")]
    assert main(words) == 0
    said = {name: json.loads((tmp_path / "fit" / name / "fit.json").read_text()) for name in ("ar", "mdm")}
    assert [said[name]["conventions"]["score"] for name in said] == ["exact", "rule:margin"]
    assert said["mdm"]["choices"]["score"] == "rule:margin"
    assert side_of_fit(tmp_path / "fit" / "mdm").label == "mdm (exact NLL of the sampler rule:margin)"


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"scores": [[1]]}, "scores is list"),
        ({"scores": [{"value": "exact"}]}, "no score"),
        ({"scores": None}, "no scores"),
        ({"convention": []}, "convention is list"),
        ({"scores": [entry("nelbo", "upper bound", "low")]}, "nats_per_token is 'low'"),
        ({"scores": [entry("nelbo", "a guess", 3.0)]}, "nelbo is 'a guess', expected one of exact"),
    ],
)
def test_measurements_of_another_shape_are_one_sentence(tmp_path, odd, said):
    measured(tmp_path, **odd)
    with pytest.raises(BadData, match=re.escape(said)):
        by_score(tmp_path, {"bound": "bound", "steps": 40}, "nelbo")
