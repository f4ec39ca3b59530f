"""Files of a run folder that are not as a run wrote them: one sentence each, wherever they are read."""

import json
import re
from functools import partial

import pytest

from megatron.errors import BadData, MissingInput
from megatron.rundir.folders import find_runs, read_file
from megatron.rundir.status import status
from megatron.scaling.answers.compare import is_fit
from megatron.scaling.answers.frontier import is_isoflop
from megatron.scaling.run.progress import seconds_so_far, stand
from megatron.scaling.table.ingest.run_records import read_run
from megatron.scaling.table.registry import describe
from megatron.scaling.table.runs import read_result, records
from megatron.scaling.table.scores import measurements

DAMAGED = {
    "empty": b"",
    "zeros": b"\0" * 64,
    "cut": b'{"name": "a", "crea',
    "list": b"[1, 2]",
    "number": b"7",
    "null": b"null",
    "not utf-8": b'{"name": "\xff"}',
    "deep": b"[" * 100_000,
}
ODD = {
    "run.json": {"resumes": [1], "created": "x", "fingerprints": 3, "params": [1]},
    "result.json": {"steps": "x", "loss": [], "flops": {}, "seconds": "y", "lr_decayed": "no"},
    "config.json": {"objective": [1], "model": 3, "train": "x"},
    "exit.json": {"code": "x", "reason": 7, "step": {}},
}
READERS = {
    "run.json": [describe, read_run, read_result],
    "result.json": [describe, read_run, read_result],
    "config.json": [describe, read_run],
    "exit.json": [],
}


def run_folder(folder):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 4, "tokens": 9, "flops": 1.0, "loss": 3.0}\n')
    (folder / "run.json").write_text('{"name": "a", "created": 1.0}')
    (folder / "config.json").write_text("{}")
    if folder.name != "unfinished":
        (folder / "result.json").write_text('{"steps": 4, "loss": 3.0}')
    return folder


@pytest.mark.parametrize("name", ODD)
def test_damage_is_one_sentence_everywhere(tmp_path, name):
    cases = DAMAGED | {f"{name} {key}": json.dumps({key: value}).encode() for key, value in ODD[name].items()}
    run = run_folder(tmp_path / ("unfinished" if name == "exit.json" else "a"))
    for case, data in cases.items():
        (run / name).write_bytes(data)
        for reader in (lambda folder: read_file(folder, name), *READERS[name]):
            with pytest.raises(BadData) as refused:
                reader(run)
            assert f"{run / name}: " in str(refused.value) and len(str(refused.value)) < 400, case
        now = status(run)
        if name in ("result.json", "exit.json"):
            assert now.state == "failed" and name in now.reason and now.code is None
        stand({"name": "a", "tokens": 10, "steps": 10, "flops_6nd": 1.0}, run)
        assert name != "run.json" or seconds_so_far(run) is None


def test_null_in_the_place_of_an_object_is_as_good_as_nothing(tmp_path):
    run = run_folder(tmp_path / "a")
    (run / "run.json").write_text('{"fingerprints": null, "resumes": null, "params": null}')
    assert read_file(run, "run.json") == {"params": None} and describe(run)["facts"] == {"params": None}


def test_each_run_is_found_once(tmp_path):
    one = run_folder(tmp_path / "a")
    (one / "step-00000004").mkdir()
    (one / "step-00000004" / "run.json").write_text("{}")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "exit.json").write_text("{}")
    (tmp_path / "none").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "another-name").symlink_to(one)  # a link to a run is one, a link to a folder of runs is not followed
    (tmp_path / "links" / "round").symlink_to(tmp_path)
    assert find_runs([tmp_path / "links"]) == [tmp_path / "links" / "another-name"]
    assert find_runs([tmp_path / "links", tmp_path]) == [one, tmp_path / "b"]
    assert find_runs([tmp_path, one, tmp_path / "none"]) == [one, tmp_path / "b"]


@pytest.mark.parametrize(
    "name, odd, said",
    [
        ("run.json", {"resumes": [{"step": 3}, {"step": "x"}]}, "resumes: step is 'x', expected a count"),
        ("run.json", {"resumes": [{"changed": ["--lr", 1]}]}, "resumes: changed holds 1, expected texts"),
        ("result.json", {"convention": {"rows": [1]}}, "convention: rows is list, expected a count"),
    ],
)
def test_what_stands_inside_an_object_is_looked_at_too(tmp_path, name, odd, said):
    run = run_folder(tmp_path / "a")
    (run / name).write_text(json.dumps(odd))
    with pytest.raises(BadData, match=f"{name}: {re.escape(said)}"):
        describe(run)


def test_a_record_that_is_a_link_to_nothing_is_lost_and_no_record_that_never_was(tmp_path):
    """A run whose result.json is gone is no unfinished run, and a law's folder no folder of runs."""
    whose = {"fit.json": is_fit, "isoflop.json": is_isoflop, "likelihood.jsonl": measurements, "result.json": read_result}
    whose["metrics.jsonl"] = partial(records, kind="val")
    for name in (*whose, "run.json", "config.json", "exit.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).symlink_to("gone")
        with pytest.raises(MissingInput, match=f"{name}: a link to gone, which is not there"):
            whose.get(name, partial(read_file, name=name))(folder)
    assert status(tmp_path / "result").state == "failed"
