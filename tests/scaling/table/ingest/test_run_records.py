import json

import pytest

from megatron.errors import BadData, MissingInput
from megatron.scaling.table.ingest.run_records import read_run, read_runs
from tests.pace import within

RECORD = {
    "kind": "train",
    "step": 1,
    "samples": 8,
    "tokens": 1024,
    "flops": 6e9,
    "epoch": 0.1,
    "time": 1.5,
    "loss": 3.0,
    "accuracy": 0.1,
    "perplexity": 20.1,
    "lr": 1e-3,
    "grad_norm": 0.5,
}


def train(step, **changes):
    return RECORD | {"step": step, "samples": 8 * step, "tokens": 1024 * step, "flops": 6e9 * step} | changes


def val(step, **changes):
    return train(step, kind="val", loss_se_noise=0.01, bound="bound", convention={"rows": 4}, **changes)


def write_run(folder, records, tail="", **files):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def points(curves, name):
    return [column.tolist() for column in curves.curve(name)]


def test_train_records_count_only_where_there_is_no_validation(tmp_path):
    plain = read_run(write_run(tmp_path / "a", [train(1), train(2, loss="nan")], tail='{"kind": "train", "step": 3, "sam'))
    steps, loss = points(plain, "train/loss")
    assert steps == [1, 2] and loss[0] == 3.0 and loss[1] != loss[1]
    assert points(plain, "tokens") == [[1, 2], [1024, 2048]]
    both = write_run(tmp_path / "b", [train(1), train(2), val(2, loss=2.5), train(3)])
    assert sorted(read_run(both).names) == sorted(
        [
            "val/loss",
            "val/loss_se_noise",
            "val/accuracy",
            "val/perplexity",
            "val/lr",
            "val/grad_norm",
            "val/epoch",
            "val/time",
            "samples",
            "tokens",
            "flops",
        ]
    )
    assert points(read_run(both, ["train/loss"]), "train/loss") == [[1, 2, 3], [3, 3, 3]]
    assert points(read_run(both, ["train/grad_norm"]), "train/grad_norm") == [[1, 2, 3], [0.5] * 3]


def test_records_in_another_order_are_read_in_full(tmp_path):
    found = read_run(write_run(tmp_path / "a", [dict(reversed(train(1).items())), train(2)]))
    assert points(found, "train/loss") == [[1, 2], [3, 3]] and "train/lr" in found.names


def test_the_files_of_the_run_say_the_rest(tmp_path):
    known = {"params": 4000, "tokens_per_epoch": 1500, "fingerprints": {"tokenizer": "t"}, "resumes": []}
    config = {"model": {"seq_length": 128}, "objective": {"objective": "mdm"}, "train": {"seed": 7, "global_batch_size": 8}}
    going = read_run(write_run(tmp_path / "going", [val(1)], run=known, config=config))
    stated = going.facts.pop("covariates")
    assert (stated["weight_decay"], stated["global_batch_size"], stated["seq_length"]) == (0.01, 8, 128)
    assert going.facts == {
        "objective": "mdm",
        "params": 4000,
        "tokenizer": "t",
        "seed": 7,
        "seq_length": 128,
        "batch_size": 8,
        "tokens_per_epoch": 1500,
        "bound": "bound",
    }
    result = {"steps": 1, "lr_decayed": True, "eval_slice": "s", "params_convention": "total", "bound": "bound"}
    done = read_run(write_run(tmp_path / "done", [val(1)], run=known, config=config, result=result))
    assert done.facts["eval_slice"] == "s" and done.facts["last_step"] == 1 and done.facts["lr_decayed_at_end"] is True


@pytest.mark.parametrize("line, sentence", [("nonsense", "line 2: not JSON"), ("[1]", "line 2: found a list")])
def test_a_damaged_line_is_refused_by_number(tmp_path, line, sentence):
    with pytest.raises(BadData, match=sentence):
        read_run(write_run(tmp_path / "a", [train(1)], tail=f"{line}\n{json.dumps(train(2))}\n"))


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(MissingInput, match="no run"):
        list(read_runs([tmp_path]))


def test_a_hundred_runs_of_ten_thousand_points_take_seconds(tmp_path):
    run = write_run(tmp_path / "0", [train(step) for step in range(1, 10001)])
    for n in range(1, 100):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "metrics.jsonl").hardlink_to(run / "metrics.jsonl")
    with within(100):
        assert sum(len(curves.curve("train/loss")[0]) for curves in read_runs([tmp_path])) == 1_000_000
