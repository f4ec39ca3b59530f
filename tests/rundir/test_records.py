"""metrics.jsonl: what is left out, what is refused, and that both readings agree."""

import json
import math

import pytest

from megatron.errors import BadData, MissingInput
from megatron.rundir.records import decode, encode, last_record, last_step, read, scan

OURS = {
    "kind": "train",
    "step": 3,
    "samples": 24,
    "tokens": 6144,
    "flops": 1.5e11,
    "epoch": 0.1,
    "time": 1.0,
    "loss": 3.25,
    "accuracy": 0.5,
}


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else encode(line) for line in lines))
    return path


def test_only_a_torn_end_is_forgiven(tmp_path):
    path = write(tmp_path / "metrics.jsonl", '{"step": 1}\n{"step": 2}\n{"ste')
    assert [record for _, record in read(path)] == [{"step": 1}, {"step": 2}]
    with pytest.raises(BadData, match="line 2: not JSON"):
        list(read(write(path, '{"step": 1}\n{"ste\n{"step": 3}\n')))
    with pytest.raises(MissingInput):
        list(read(tmp_path / "none.jsonl"))


def test_numbers_that_are_not_finite_are_strings_in_the_file():
    found = decode(encode(OURS | {"loss": math.nan, "lr": -math.inf}).encode())
    assert math.isnan(found["loss"]) and found["lr"] == -math.inf and "NaN" not in encode(OURS | {"loss": math.nan})


@pytest.mark.parametrize(
    "line, fault",
    [
        ("nonsense", "not JSON"),
        ("[1]", "found a list"),
        ("7", "found a int"),
        ("null", "found a NoneType"),
        ("[" * 100_000, "not JSON"),
        ('{"kind": "train", "step": "x"}', "step is 'x', expected a count"),
        ('{"kind": "train", "step": -1}', "step is -1, expected a count"),
        ('{"kind": "train", "step": 1.5}', "step is 1.5, expected a count"),
        ('{"kind": "train", "step": true}', "step is True, expected a count"),
        ('{"kind": 3, "step": 1}', "kind is 3, expected a text"),
        ('{"kind": "val", "step": 1, "loss": []}', "loss is list, expected a number"),
        ('{"kind": "val", "step": 1, "loss": {"a": 1}}', "loss is dict, expected a number"),
        (encode(OURS | {"loss": 0}).replace('"loss": 0', '"loss": 1.2.3').strip(), "not JSON"),
        (encode(OURS).strip()[:-20], "not JSON"),
    ],
)
def test_a_line_of_another_type_is_named_in_both_readings(tmp_path, line, fault):
    path = write(tmp_path / "metrics.jsonl", OURS, line + "\n", OURS | {"step": 4})
    for lines in (read(path), scan(path)[1]):
        with pytest.raises(BadData, match="line 2: " + fault):
            list(lines)
    assert last_record(tmp_path)["step"] == 4 and last_step(tmp_path) == "last record at step 4"


def test_the_short_reading_is_the_whole_one(tmp_path):
    val = {"kind": "val", "step": 4, "loss": 2.0}
    path = write(tmp_path / "metrics.jsonl", OURS, val, OURS | {"step": 4, "loss": math.nan}, json.dumps(OURS | {"step": 5}))
    columns, others = scan(path)
    assert columns["step"] == [3, 4, 5] and columns["loss"][::2] == [3.25, 3.25] and math.isnan(columns["loss"][1])
    assert list(others) == [(2, val)]
    write(path, {"loss": 3.25, **OURS}, val)  # another program's order
    columns, others = scan(path)
    assert columns is None and [record["kind"] for _, record in others] == ["train", "val"]
