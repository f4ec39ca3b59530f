import json

import pytest

from megatron.errors import BadData, CannotWrite, MissingInput
from megatron.scaling.table.ingest.points import Choices, Sources, ingest, write_points
from tests.scaling.table.ingest.test_event_files import event, write
from tests.scaling.table.ingest.test_run_records import train, val, write_run


def of(choices=None, **sources):
    return ingest(Sources(**sources), choices or Choices())


def test_our_runs_carry_their_facts_and_only_their_end_is_decayed(tmp_path):
    result = {
        "steps": 3,
        "lr_decayed": True,
        "params": 4000,
        "objective": "mdm",
        "flops_convention": "6ND, N = all parameters",
        "bound": "bound",
        "seed": 1,
    }
    write_run(tmp_path / "a", [val(1), val(3, loss=2.5)], run={"tokens_per_epoch": 2000}, result=result)
    (run,), notes = of(metrics=[tmp_path, tmp_path / "a"])
    assert notes == [] and run.run == "a" and len(run) == 2
    assert run.columns["tokens"] == [1024, 3072] and run.columns["unique_tokens"] == [1024, 2000]
    assert run.columns["flops"] == [6e9, 18e9] and run.columns["loss"] == [3.0, 2.5]
    assert run.columns["lr_decayed"] == [False, True] and run.columns["loss_se_noise"] == [0.01, 0.01]
    assert run.columns["objective"] == "mdm" and run.loss_metric == "val/loss"


def test_tokens_come_from_samples_and_never_from_steps(tmp_path):
    write(
        tmp_path / "tb",
        1,
        *(
            event(x, (name, 3.0))
            for step, samples in ((1, 8), (2, 24))  # the batch size ramps up
            for x, name in ((step, "lm loss validation"), (samples, "lm loss validation vs samples"))
        ),
    )
    (run,), notes = of(tensorboard=[tmp_path / "tb"])
    assert run.run == tmp_path.name and run.columns["samples"] == [8, 24] and "tokens" not in run.columns
    assert [note.split(" is not known")[0] for note in notes] == ["params", "tokens"]
    choices = Choices(constants=[("*", "seq_length", 2048), ("nobody", "params", 9), ("*", "params", 10**9)])
    (run,), notes = of(choices, tensorboard=[tmp_path / "tb"])
    assert run.columns["tokens"] == [8 * 2048, 24 * 2048] and notes == []
    assert run.columns["flops"] == [6e9 * 8 * 2048, 6e9 * 24 * 2048] and run.columns["flops_convention"] == "6ND"


def test_the_flags_of_the_design_name_metrics_of_the_reference(tmp_path):
    tag = "lm-loss-validation/lm loss validation"
    axes = ((5, tag), (40, f"{tag} vs samples"), (640, f"{tag} vs tokens"))
    write(tmp_path / "r", 1, *(event(x, (name, 3.0)) for x, name in axes), event(5, ("lm-loss-training/lm loss", 2.0)))
    choices = Choices(mapping={"loss": ("lm-loss-validation", 1.0), "tokens": ("consumed-tokens", 1.0)})
    (run,), _ = of(choices, tensorboard=[tmp_path])
    assert (run.columns["step"], run.columns["tokens"], run.columns["loss"]) == ([5], [640], [3.0])
    (run,), _ = of(Choices(mapping={"loss": ("lm loss", 1.0), "val": (tag, 2.0)}), tensorboard=[tmp_path])
    assert run.columns["loss"] == [2.0] and run.columns["val"] == [6.0]


def test_processes_of_one_run_are_joined_and_namesakes_told_apart(tmp_path):
    write(tmp_path / "x" / "r", 1, event(1, ("loss", 3)), event(2, ("loss", 2)))
    write(tmp_path / "y" / "r", 1, event(2, ("loss", 1)))
    runs, _ = of(tensorboard=[tmp_path / "x", tmp_path / "y"])
    assert [run.run for run in runs] == [(tmp_path / name / "r").as_posix() for name in "xy"]
    (run,), _ = of(Choices(constants=[("r", "run", "one")]), tensorboard=[tmp_path / "x", tmp_path / "y"])
    assert run.run == "one" and run.columns["loss"] == [3, 1] and run.num_overwritten == 1


def test_smoothing_and_the_last_point(tmp_path):
    write(tmp_path / "r", 1, *(event(step, ("loss", step)) for step in range(1, 7)))
    (run,), _ = of(Choices(last_k=5, only_final=True), tensorboard=[tmp_path])
    assert run.columns["loss"] == [4.0] and run.columns["step"] == [6] and run.columns["loss_smoothing"] == "last-k:5"


def test_tables_keep_their_columns_under_new_names(tmp_path):
    (tmp_path / "t.csv").write_text("Name,N,D,final,kept,step\na,0.5,10,3.0,x,2\na,0.5,5,3.5,y,1\na,0.5,11,2.9,z,2\n")
    choices = Choices(mapping={"params": ("N", 1e9), "tokens": ("D", 1.0), "loss": ("final", 1.0)})
    (run,), notes = of(choices, csv=[tmp_path / "t.csv"])
    assert notes == [] and run.run == "a" and run.num_overwritten == 1 and run.columns["kept"] == ["y", "z"]
    assert run.columns["params"] == [0.5e9] * 2 and run.columns["loss"] == [3.5, 2.9] and run.columns["step"] == [1, 2]


def test_rows_without_a_name_are_runs_of_their_own(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"params": 1, "tokens": 2, "loss": 3, "step": 1}\n{"samples": 4, "loss": 2, "step": 1}\n')
    runs, _ = of(Choices(constants=[("*", "seq_length", 8)]), jsonl=[tmp_path / "t.jsonl", tmp_path / "t.jsonl"])
    assert [(run.run, run.columns["tokens"]) for run in runs] == [("t:1", [2]), ("t:2", [32])]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("params,tokens\n1,2\n", "no column for the loss; it has params, tokens"),
        ("params,tokens,loss\n1,many,3\n", "line 2, column tokens: found 'many'"),
    ],
)
def test_tables_that_say_nothing_are_refused(tmp_path, text, sentence):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadData, match=sentence):
        of(csv=[tmp_path / "t.csv"])


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(MissingInput, match="no such file"):
        of(csv=[tmp_path / "t.csv"])
    with pytest.raises(MissingInput, match="no point was found"):
        of()
    write(tmp_path / "r", 1, event(1, ("speed", 3)))
    with pytest.raises(MissingInput, match="r: no loss in .*; it has speed"):
        of(tensorboard=[tmp_path / "r"])


def test_the_table_and_its_record_are_written(tmp_path):
    write_run(tmp_path / "a", [train(1, loss="nan"), train(2)], run={"params": 4000})
    choices = Choices(constants=[("*", "params", 5000)])
    runs, _ = of(choices, metrics=[tmp_path / "a"])
    write_points(tmp_path / "out" / "runs.csv", runs, choices)
    lines = (tmp_path / "out" / "runs.csv").read_text().splitlines()
    assert lines[0].startswith("run,objective,step,params,tokens,unique_tokens,flops,loss,loss_metric")
    assert lines[2].startswith("a,,2,5000,2048,,12000000000,3.0,train/loss")
    write_points(tmp_path / "out" / "runs.jsonl", runs, choices)
    rows = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] is None and rows[1]["loss"] == 3.0 and rows[1]["run"] == "a"
    record = json.loads((tmp_path / "out" / "runs.csv.sources.json").read_text())
    assert record["set"] == [["*", "params", 5000]] and len(record["runs"][0]["files"][0]["sha256"]) == 64
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite):
        write_points(tmp_path / "file" / "runs.csv", runs, choices)
