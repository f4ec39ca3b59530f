import csv

import pytest

from megatron.errors import BadData
from megatron.scaling.__main__ import main
from megatron.scaling.table.table import read_table
from tests.scaling.table.ingest.test_event_files import event, write


def ingest(*words):
    return main(["ingest", *map(str, words)])


def test_a_log_and_a_table_become_rows(tmp_path, capsys):
    (tmp_path / "small.log").write_text(
        " iteration 10/ 20 | consumed samples: 80 | lm loss: 3.5 |\n iteration 20/ 20 | consumed samples: 160 | lm loss: 3.0 |\n"
    )
    write(tmp_path / "tb" / "large", 1, event(5, ("lm loss", 2.0)))
    (tmp_path / "t.csv").write_text("N,D,L\n0.5,100,3.1\n")
    out = tmp_path / "runs.csv"
    assert (
        ingest(
            "--log",
            tmp_path / "small.log",
            "--set",
            "small:params=1e3",
            "--set",
            "seq_length=16",
            "--rows",
            "final",
            "--smooth",
            "last-k:2",
            "--out",
            out,
        )
        == 0
    )
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert [row[name] for name in ("run", "step", "params", "tokens", "flops", "loss", "loss_metric")] == [
        "small",
        "20",
        "1000",
        "2560",
        "15360000",
        "3.25",
        "lm loss",
    ]
    assert ingest("--csv", tmp_path / "t.csv", "--map", "params=N*1e9,tokens=D,loss=L", "--out", out) == 0
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert (row["run"], float(row["params"]), float(row["tokens"]), row["loss"]) == ("t:2", 5e8, 100, "3.1")
    assert ingest("--tb", tmp_path / "tb", "--out", out) == 0
    text = capsys.readouterr().out
    assert "params is not known of large: give --set params=124e6" in text and text.endswith("runs.csv: 1 rows of 1 runs\n")


def test_what_was_ingested_can_be_fitted(tmp_path):
    lines = (f" iteration {n}/ 9 | consumed samples: {n} | lm loss: {9 / n} |\n" for n in range(1, 10))
    (tmp_path / "a.log").write_text("".join(lines))
    constants = ("--set", "params=5000", "--set", "seq_length=16")
    assert ingest("--log", tmp_path / "a.log", *constants, "--out", tmp_path / "runs.csv") == 0
    table = read_table([tmp_path / "runs.csv"])
    assert len(table) == 9 and set(table.labels("cluster")) == {"a"} and table.column("tokens")[-1] == 144
    assert len(read_table([tmp_path / "runs.csv"], loss="last-k:1")) == 1


def test_what_the_trainer_was_called_with_is_ingested_and_not_pooled(tmp_path, capsys):
    """Runs that differ in weight decay alone, from run folders and from what Megatron prints, each read apart."""
    from tests.scaling.table.ingest.test_run_records import val, write_run

    known = {"params": 4000, "tokens_per_epoch": 1500, "fingerprints": {"tokenizer": "t"}}
    tables = []
    for decay in (0.1, 0.3):
        config = {"objective": {"objective": "mdm"}, "optim": {"weight_decay": decay}, "model": {"seq_length": 16}}
        run = write_run(tmp_path / f"r{decay}", [val(1, loss=3.0)], run=known, config=config)
        log = tmp_path / f"l{decay}.log"
        log.write_text(
            f"  weight_decay ........... {decay}\n  bf16 ....... True\n iteration 1/ 9 | consumed samples: 1 | lm loss: 3.1 |\n"
        )
        for source in (("--metrics", run), ("--log", log, "--set", "params=4e3", "--set", "seq_length=16")):
            tables.append(tmp_path / f"t{len(tables)}.csv")
            assert ingest(*source, "--out", tables[-1]) == 0
    for pair in (tables[::2], tables[1::2]):
        assert main(["fit", *map(str, pair)]) == 78
        assert "differ in weight-decay: 0.1 in" in capsys.readouterr().err
    by = [read_table(tables[::2], by=["weight-decay"]), read_table(tables[1::2], by=["weight-decay"], lint=False)]
    assert [table.rows[0]["bf16"] for table in by] == [False, True] and all(len(table.objectives) == 2 for table in by)
    with pytest.raises(BadData, match="do not differ in it"):
        read_table(tables[::2], by=["hidden-dropout"])


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("--map", "loss"), "expected NEW=OLD"),
        (("--set", "params"), "expected COLUMN=VALUE"),
        (("--smooth", "5"), "expected last-k:N"),
        ((), "the following arguments are required: --out"),
    ],
)
def test_flags_that_say_nothing_are_refused(words, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        ingest(*words)
    assert left.value.code == 2 and sentence in capsys.readouterr().err


def test_missing_files_have_their_exit_code(tmp_path, capsys):
    assert ingest("--csv", tmp_path / "t.csv", "--out", tmp_path / "runs.csv") == 66
    assert "t.csv: no such file or folder" in capsys.readouterr().err and not (tmp_path / "runs.csv").exists()
