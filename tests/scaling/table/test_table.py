import json

import numpy as np
import pytest

from megatron.errors import BadData, Mismatch, MissingInput
from megatron.scaling.table.table import parse_condition, read_table

RESULT = {
    "name": "small",
    "objective": "ar",
    "params": 4000,
    "params_non_embedding": 3000,
    "params_with_head": 3800,
    "params_published": 3900,
    "tokens": 8_000_000,
    "unique_tokens": 2_000_000,
    "flops": 1.92e11,
    "flops_exact": 2e11,
    "loss": 2.5,
    "bits_per_byte": 1.25,
    "loss_se_noise": 0.02,
    "bound": "exact",
    "tokenizer": "t",
    "eval_slice": "s",
    "params_convention": "total",
    "flops_convention": "6ND, N = all parameters",
    "lr_decayed": True,
}


def table(tmp_path, text, name="t.csv", **choices):
    (tmp_path / name).write_text(text)
    return read_table([tmp_path / name], **choices)


def write_run(folder, losses=(), **changes):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(RESULT | {"name": folder.name} | changes))
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"kind": "val", "step": step, "tokens": step * 2_000_000, "flops": step * 4.8e10, "loss": loss}) + "\n"
            for step, loss in enumerate(losses, 1)
        )
    )
    return folder


def test_three_columns_are_enough(tmp_path):
    found = table(tmp_path, "params,tokens,loss\n10000000000,2000000000000,2.1\n1e9,1e9,3\n")
    assert len(found) == 2 and found.column("flops")[0] == 1.2e23  # overflows an int64
    assert found.column("loss").dtype == np.float64
    np.testing.assert_array_equal(found.column("unique_tokens"), found.column("tokens"))
    assert found.labels("cluster").tolist() == ["t:2", "t:3"] and found.objectives == ["unlabelled"]
    assert found.sources[0]["path"].endswith("t.csv") and len(found.sources[0]["sha256"]) == 64


def test_jsonl_and_objectives(tmp_path):
    found = table(
        tmp_path,
        '{"params": 1e6, "tokens": 2e6, "loss": 3, "flops": 12e12, "objective": "mdm"}\n'
        '{"params": 1e6, "tokens": 2e6, "loss": 4, "flops": 12e12, "objective": "ar"}\n',
        "t.jsonl",
        allow=["bound"],
    )
    assert found.objectives == ["ar", "mdm"] and found.only("mdm").column("loss").tolist() == [3]


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("t.csv", "params,loss\n1,2\n", "line 2: no column tokens"),
        ("t.csv", "N,D,val\n1,2,3\n", r"no column params \(found N, D, val.*--map params=COLUMN"),
        ("t.csv", "params_non_embedding,tokens,loss\n1,2,3\n", "no column params .*--params"),
        ("t.csv", "params,tokens,loss\n1,2,many\n", "line 2, column loss: found 'many'"),
        ("t.csv", "params,tokens,loss\n1,2\n", "line 2: fewer fields"),
        ("t.csv", "params,tokens,loss\n", "no rows"),
        ("t.jsonl", "[1]\n", "line 1: found a list"),
        ("t.jsonl", "nonsense\n", "line 1: not JSON"),
        (
            "t.csv",
            "params,tokens,loss\n1,2,0\n1,2,nan\n",
            r"line 2 \(t:2\): loss is 0; .*line 3.*loss is nan; .*--drop-unfinished",
        ),
        ("t.csv", "params,tokens,loss\n1,2,\n", "loss is empty"),
        (
            "t.csv",
            "params,tokens,loss\n1,-9223372036854775808,2\n",
            "tokens is -9.22337e.18, negative as after an integer overflow",
        ),
        ("t.csv", "params,tokens,loss,unique_tokens\n1,2,3,0\n", "unique_tokens is 0"),
        (
            "t.csv",
            'params,tokens,loss\n"10,000",2,3\n',
            "line 2, column params: found '10,000', expected a number .* no separators",
        ),
        ("t.csv", "params;tokens;loss\n1;2;3,5\n", "line 2, column loss: found '3,5', expected a number with a point"),
        ("t.csv", "params,params,loss\n1,2,3\n", "line 1: params heads 2 columns"),
        ("t.csv", 'params,tokens,loss\n"1,2,3\n', "not a CSV table"),
        ("t.csv", "params,tokens,loss\n1,2,NA\n", "line 2 .*loss is empty"),
        ("t.csv", "params,tokens,loss\n1,2,3B\n", "found '3B'"),
        ("t.jsonl", '{"params": 1, "tokens": 2, "loss": 3}\n{"params": 1, "tok', "line 2: cut short"),
        ("t.jsonl", '{"params": [1], "tokens": 2, "loss": 3}\n', r"line 1, column params: found \[1\]"),
        ("t.jsonl", '{"params": true, "tokens": 2, "loss": 3}\n', "line 1, column params: found True"),
        ("t.json", '[{"params": 1, "tokens": 2, "loss": 3}, 4]', "row 2: found a int"),
        ("t.json", '[{"params": 1, "tokens": 2, "loss": 3}', "not JSON"),
    ],
)
def test_what_no_law_can_have_is_refused_by_line(tmp_path, name, text, sentence):
    with pytest.raises(BadData, match=sentence):
        table(tmp_path, text, name)


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.csv", "\ufeffparams,tokens,loss\r\n2e6,4e9,3\r\n\r\n5e6,4e9,2\r\n"),
        ("t.csv", "params;tokens;loss\n2e6;4e9;3\n5e6;4e9;2\n"),
        ("t.tsv", "params\ttokens\tloss\n2e6\t4e9\t3\n5e6\t4e9\t2\n"),
        ("t.csv", "loss , params , tokens\n 3 , 2e6 , 4e9\n 2 , 5e6, 4e9\n,,\n"),
        ("t.csv", "params,tokens,loss\n2M,4B,3.0\n5m,4.0B,2\n"),
        ("t.csv", "params,tokens,loss\r2_000_000,4E+9,3\r5000000,4e09,2\r"),
        ("t.jsonl", '\n{"params": "2M", "tokens": 4e9, "loss": 3}\n\n{"params": 5000000, "tokens": 4e9, "loss": "2"}'),
        ("t.json", '[{"params": 2e6, "tokens": 4e9, "loss": 3},\n {"params": 5e6, "tokens": 4e9, "loss": 2}]'),
    ],
)
def test_one_table_in_many_spellings(tmp_path, name, text):
    found = table(tmp_path, text, name)
    assert [found.column(column).tolist() for column in ("params", "tokens", "loss")] == [[2e6, 5e6], [4e9, 4e9], [3, 2]]


def test_losses_that_stand_in_bits_per_byte_alone(tmp_path):
    text = "params,tokens,bits_per_byte\n1e6,1e7,1.25\n"
    assert table(tmp_path, text, unit="bits-per-byte").column("loss").tolist() == [1.25]
    with pytest.raises(BadData, match="no column loss"):
        table(tmp_path, text)


def test_unfinished_rows_go_only_when_a_flag_says_so(tmp_path):
    found = table(tmp_path, "run,params,tokens,loss\na,1e6,1e7,2\nb,1e6,1e7,0\nc,1e6,1e7,\n", drop_unfinished=True)
    assert found.labels("run").tolist() == ["a"]
    assert found.dropped == [
        {"run": "b", "line": 3, "reason": "unfinished: loss is 0"},
        {"run": "c", "line": 4, "reason": "unfinished: loss is empty"},
    ]
    with pytest.raises(BadData, match="no row is left of 3"):
        table(tmp_path, "run,params,tokens,loss\na,1e6,1e7,0\nb,1e6,1e7,0\nc,1e6,1e7,\n", drop_unfinished=True)


ROWS = "run,params,tokens,unique_tokens,loss,odd,kind\na,1e6,1e7,1e7,2,True,x\nb,1e6,4e7,1e7,3,false,y\nc,1e6,1e8,1e7,4,,x\n"


@pytest.mark.parametrize(
    "drop, left",
    [
        (["odd"], "bc"),
        (["loss>3"], "ab"),
        (["loss >= 3"], "a"),
        (["epochs>=4"], "a"),
        (["run=b"], "ac"),
        (["kind!=x"], "ac"),
        (["loss<3", "run=c"], "b"),
        (["flops>5e14"], "ab"),
        (["odd=false"], "ac"),
    ],
)
def test_rows_are_dropped_by_column_or_condition(tmp_path, drop, left):
    found = table(tmp_path, ROWS, drop=drop)
    assert "".join(found.labels("run")) == left and len(found.dropped) == 3 - len(left)
    assert found.dropped[0]["reason"] == f"--drop {drop[0]}" and found.choices["drop"] == drop


@pytest.mark.parametrize(
    "drop, sentence",
    [
        ("absent", "no column absent"),
        ("loss", "expects true or false there, found 2.0"),
        ("absent>3", "no column absent"),
        ("kind>3", "compares 'x', which is no number"),
        ("run=d", "--drop run=d: no row has this run; there are a, b, c, ..."),
    ],
)
def test_a_drop_that_cannot_be_is_refused(tmp_path, drop, sentence):
    with pytest.raises(BadData, match=sentence):
        table(tmp_path, ROWS, drop=[drop])


def test_a_condition_that_matches_nothing_is_said(tmp_path):
    for drop in ("loss>99", "odd=maybe"):
        assert table(tmp_path, ROWS, drop=[drop]).warnings == [f"--drop {drop} matches none of the 3 rows: all stay."]


def test_counts_and_millions_in_one_column_are_refused(tmp_path):
    for lines, column in (("7,1e9,3\n7e6,1e9,3\n", "params"), ("7e6,100,3\n7e6,1e9,3\n", "tokens")):
        with pytest.raises(BadData, match=f"line 2: {column} are .* in other rows: units are mixed .1 such rows of 2.; .*--drop"):
            table(tmp_path, "params,tokens,loss\n" + lines)
        assert len(table(tmp_path, "params,tokens,loss\n" + lines, drop=[f"{column}<1000"])) == 1


def test_conditions_are_parsed():
    assert parse_condition("loss>3.4") == ("loss", ">", 3.4) and parse_condition("a b <= 1e9") == ("a b", "<=", 1e9)
    assert parse_condition("run=abc") == ("run", "=", "abc") and parse_condition("excluded") is None


def test_a_header_is_a_flag_as_it_is_written_too(tmp_path):
    header = "params,tokens,loss,weight-decay,task-x/acc,global_batch_size,learning_rate"
    text = f"{header}\n1e6,1e8,3,0.1,0.5,8,1\n1e6,1e9,2.9,0.3,0.6,8,1\n"
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(Mismatch, match="differ in weight-decay"):
        read_table([tmp_path / "t.csv"])
    rows = read_table([tmp_path / "t.csv"], columns=["weight_decay"]).rows
    assert [(row["weight_decay"], row["task-x/acc"]) for row in rows] == [(0.1, 0.5), (0.3, 0.6)]
    assert (rows[0]["batch_size"], rows[0]["lr"]) == (8, 1) and not {"learning_rate", "global_batch_size"} & rows[0].keys()


def test_names_and_factors_are_mapped(tmp_path):
    found = table(tmp_path, "size,D,val,loss\n70,1e9,3,9\n", mapping={"params": "size*1e6", "tokens": "D", "loss": "val"})
    assert found.rows[0]["params"] == 7e7 and found.rows[0]["loss"] == 3 and not found.warnings
    with pytest.raises(BadData, match="no column absent, which --map names for loss"):
        table(tmp_path, "params,tokens,loss\n1,2,3\n", mapping={"loss": "absent"})
    millions = table(tmp_path, "params,tokens,loss\n70,1e9,3\n")
    assert millions.rows[0]["params"] == 70 and "params*1e6" in millions.warnings[0]


def test_conventions_of_params_and_flops(tmp_path):
    run = write_run(tmp_path / "a")
    for params, size in (
        ("params", 4000),
        ("total", 4000),
        ("non-embedding", 3000),
        ("with-head", 3800),
        ("published", 3900),
        ("params_published", 3900),
    ):
        row = read_table([run], params=params).rows[0]
        assert row["params"] == size and row["params_convention"] == ("total" if params == "params" else params)
    for flops, spent in (("column", 1.92e11), ("6nd", 6 * 4000 * 8e6), ("exact", 2e11), ("exact-skipped-head", 2e11)):
        assert read_table([run], flops=flops).rows[0]["flops"] == spent
    assert read_table([run], params="non-embedding", flops="6nd").rows[0]["flops"] == 6 * 3000 * 8e6
    masked = write_run(tmp_path / "b", objective="mdm", bound="bound")  # its head is computed where it is asked: half
    row = read_table([masked], flops="exact-skipped-head").rows[0]
    assert row["flops"] == 2e11 - 3 * 800 * 8e6 and row["flops_convention"] == "exact-skipped-head"
    with pytest.raises(BadData, match="no flops_exact, --flops exact needs it"):
        table(tmp_path, "params,tokens,loss\n1,2,3\n", flops="exact")
    with pytest.raises(BadData, match="params are active"):
        table(tmp_path, "params,tokens,loss,params_convention\n1,2,3,active\n", params="total")


def test_flops_that_cannot_be_are_named_and_replaced_everywhere(tmp_path):
    found = table(tmp_path, "params,tokens,loss,flops\n1e9,1e10,3,-5e18\n1e9,2e10,2,9e19\n")
    assert found.column("flops").tolist() == [6e19, 1.2e20]
    assert "line 2: flops is -5e+18, negative as after an integer overflow (1 such rows): C = 6 N D" in found.warnings[0]
    found = table(tmp_path, "params,tokens,loss,flops\n1e9,1e10,3,\n1e9,2e10,2,9e19\n")
    assert found.column("flops").tolist() == [6e19, 1.2e20] and "flops is empty" in found.warnings[0]


def test_tokens_come_from_flops_where_a_table_has_only_these(tmp_path):
    found = table(tmp_path, "params,flops,loss\n1e6,6e15,3\n")
    assert found.rows[0]["tokens"] == 1e9 and "D = C / 6 N" in found.warnings[0]


def test_bits_per_byte(tmp_path):
    row = read_table([write_run(tmp_path / "a")], unit="bits-per-byte").rows[0]
    assert row["loss"] == 1.25 and row["loss_se_noise"] == 0.01
    found = table(tmp_path, "params,tokens,loss,bytes_per_token\n1e6,1e7,2,4\n", unit="bits-per-byte")
    assert found.rows[0]["loss"] == pytest.approx(2 / np.log(2) / 4)
    with pytest.raises(BadData, match="bits_per_byte or bytes_per_token"):
        table(tmp_path, "params,tokens,loss\n1e6,1e7,2\n", unit="bits-per-byte")


STEPS = "run,params,tokens,step,loss\na,1e6,3e7,3,2.5\na,1e6,1e7,1,4\na,1e6,2e7,2,2\nb,2e6,1e7,1,3\n"


def test_several_rows_a_run(tmp_path):
    every = table(tmp_path, STEPS)
    assert len(every) == 4 and every.labels("cluster").tolist() == list("aaab")
    assert "4 rows are checkpoints of 2 runs" in every.warnings[0]
    for loss, values, tokens in (("best", [2, 3], 2e7), ("last-k:1", [2.5, 3], 3e7), ("last-k:2", [2.25, 3], 3e7)):
        found = table(tmp_path, STEPS, loss=loss)
        assert found.column("loss").tolist() == values and found.rows[0]["tokens"] == tokens
        assert found.dropped == [{"run": "a", "line": None, "reason": f"--loss {loss}: 3 rows became one"}]
    with pytest.raises(BadData, match="--loss last: expected final"):
        table(tmp_path, STEPS, loss="last")


def test_losses_of_run_directories(tmp_path):
    run = write_run(tmp_path / "a", losses=(4, 2, 3, 2.5))
    for loss, value, tokens, flops in (("final", 2.5, 8e6, 1.92e11), ("best", 2, 4e6, 9.6e10), ("last-k:2", 2.75, 8e6, 1.92e11)):
        row = read_table([run], loss=loss).rows[0]
        assert (row["loss"], row["tokens"], row["flops"]) == (value, tokens, flops)
    assert read_table([run], loss="best", unit="bits-per-byte").rows[0]["loss"] == 1.0
    with pytest.raises(BadData, match="no validation records"):
        read_table([write_run(tmp_path / "b")], loss="best")


def test_folders_of_runs_and_the_unfinished_among_them(tmp_path):
    write_run(tmp_path / "sweep" / "a")
    write_run(tmp_path / "sweep" / "b")
    (tmp_path / "sweep" / "c").mkdir()
    (tmp_path / "sweep" / "c" / "metrics.jsonl").write_text('{"kind": "train", "step": 7, "loss": 3.0}\n')
    found = read_table([tmp_path / "sweep", tmp_path / "sweep" / "a"])
    assert found.labels("run").tolist() == ["a", "b"] and found.rows[0]["epochs"] == 4
    assert found.dropped == [
        {"run": "c", "line": None, "reason": "unfinished: no result.json: running or stopped, last record at step 7"}
    ]
    with pytest.raises(MissingInput, match="no such file"):
        read_table([tmp_path / "nowhere"])


def test_clusters(tmp_path):
    for name in ("one/a", "two/a"):
        write_run(tmp_path / name)
    write_run(tmp_path / "one" / "b")
    (tmp_path / "one" / "b" / "run.json").write_text(json.dumps({"resumes": [{"from": f"{tmp_path}/one/a/ckpt/step-1"}]}))
    found = read_table([tmp_path])
    assert found.labels("run").tolist() == ["a", "b", "a"]  # equal names in two sweeps are two runs
    clusters = found.labels("cluster")
    assert clusters[0] == clusters[1] != clusters[2]
    assert table(tmp_path, ROWS, group_by="kind").labels("cluster").tolist() == ["x", "y", "x"]
    with pytest.raises(BadData, match="no absent, which --group-by names"):
        table(tmp_path, ROWS, group_by="absent")


def test_the_lint_looks_at_every_row_that_is_left(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", tokenizer="other")
    write_run(tmp_path / "c", lr_decayed=False)
    with pytest.raises(Mismatch, match="tokenizer.*decayed"):
        read_table([tmp_path])
    assert len(read_table([tmp_path], allow=["tokenizer", "lr_decayed"])) == 3
    assert len(read_table([tmp_path], drop=["run=b", "lr_decayed=false"])) == 1
    assert len(read_table([tmp_path], lint=False)) == 3


@pytest.mark.parametrize(
    "name, drop, rows, clusters",
    [
        ("chinchilla_epoch_svg", ["excluded_in_besiroglu_fit"], 240, 240),
        ("datablations_c4_182", [], 182, 182),
        ("gemstones_hot", [], 220, 22),
        ("isoflop_chinchilla_epoch", [], 123, 123),
        ("misfitting_last_ckpt", [], 261, 261),
    ],
)
def test_published_tables_are_read_as_they_are(published, name, drop, rows, clusters):
    found = read_table([published(f"{name}.csv")], drop=drop)
    assert (len(found), len(set(found.labels("cluster")))) == (rows, clusters) and np.all(found.column("flops") > 0)
