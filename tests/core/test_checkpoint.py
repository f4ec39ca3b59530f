"""Checkpoints survive damage, kills and full disks: refused by name, or the previous good one, never other tensors."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from megatron.core import checkpoint
from megatron.core.checkpoint import Piece, Saving, find, load, load_latest, render, retain, verify, whole
from megatron.core.mesh import Group, build_mesh
from megatron.errors import BadData, CannotWrite, Mismatch, MissingInput, Refusal, Untrusted
from megatron.layout import split_evenly
from megatron.rundir.names import step_and_attempt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lines():
    return []


def tensors_of(seed):
    """Every dtype and awkward shape, in an order that would misalign a writer that kept it."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(7, 5, generator=rng)
    return {
        "flag": x > 0,
        "byte": torch.arange(3, dtype=torch.uint8),
        "w": x,
        "w.half": x.half(),
        "w.bf16": x.bfloat16(),
        "w.fp64": x.double(),
        "w.t": x.t(),
        "w.every_other": x[:, ::2],
        "w.expanded": x[:1].expand(4, 5),
        "step": torch.tensor(seed),
        "scale": torch.tensor(0.5),
        "empty": torch.empty(0, 3),
        "ids": torch.arange(9),
        "int32": torch.arange(3, dtype=torch.int32),
        "int16": torch.arange(3, dtype=torch.int16),
        "int8": torch.arange(5, dtype=torch.int8),
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def two_checkpoints(folder, say):
    return [Saving(folder, step, whole(tensors_of(step)), {"global_step": step}, say=say).finish() for step in (100, 200)]


def flip(file, offset, bit=0):
    was = file.read_bytes()[offset]
    put(file, offset, was ^ 1 << bit)


def put(file, offset, value):
    with open(file, "r+b") as opened:
        opened.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        opened.write(bytes([value]))


def rewrite(path, change):
    """A manifest whose own hash is right: what an attacker would write, not what a bad disk does."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("manifest_sha256")
    change(manifest)
    (path / "manifest.json").write_bytes(render(manifest))


# What is written is what is read


@pytest.mark.parametrize("shard_bytes", [2 << 30, 100])
def test_round_trip_of_every_dtype(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", shard_bytes)
    facts = {"global_step": 7, "best_val_loss": 1 / 3, "model_config": {"num_layers": 2}, "name": "\u00e9", 1: None}
    path = Saving(tmp_path / "new" / "folder", 7, whole(tensors_of(7)), facts).finish()
    assert path.name == "step-00000007" and (path.parent / "latest").read_text() == "step-00000007\n"
    found = load(path)
    assert found.path == path and found.step == 7 and found.facts == json.loads(json.dumps(facts))
    assert_same(found.tensors(), tensors_of(7))
    assert_same(load(path.parent).tensors(), tensors_of(7))
    assert (len(list(path.glob("*.safetensors"))) > 3) == (shard_bytes == 100)
    assert not list(path.parent.glob(".*"))


def test_safetensors_reads_the_shards(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    found = library.load_file(path / "shard-00000-00001.safetensors")
    assert_same({name: found[name] for name in tensors_of(1)}, tensors_of(1))
    entries = json.loads((path / "manifest.json").read_text())["tensors"]
    assert all(entry["offset"] % found[entry["name"]].element_size() == 0 for entry in entries)  # readers may map the file


def test_fields_of_the_manifest(tmp_path):
    path = Saving(tmp_path, 1, whole({"w": torch.zeros(2, 3)}), {}).finish()
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert set(manifest["files"]["shard-00000-00001.safetensors"]) == {"bytes", "header_sha256"}
    entry = manifest["tensors"][0]
    assert (entry["name"], entry["dtype"], entry["shape"], entry["slice"]) == ("w", "F32", [2, 3], [[0, 2], [0, 3]])


def test_checkpoints_of_the_first_program_load(tmp_path):
    """It wrote whole tensors only, and its files had no rank in their names."""
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    (path / "shard-00000-00001.safetensors").rename(path / "shard-00001.safetensors")

    def rename(manifest):
        manifest["files"]["shard-00001.safetensors"] = manifest["files"].pop("shard-00000-00001.safetensors")
        for entry in manifest["tensors"]:
            entry["file"] = "shard-00001.safetensors"

    rewrite(path, rename)
    assert_same(load(path).tensors(), tensors_of(1))


def test_some_tensors_are_read_and_all_are_verified(tmp_path):
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    found = load(path)
    assert found.names() == list(tensors_of(1)) and found.shapes["w"] == (7, 5) and found.shapes["step"] == ()
    assert list(found.tensors(["w", "ids"])) == ["w", "ids"]
    with pytest.raises(Mismatch, match=r"lacks 1 tensors \(head\)"):
        found.tensors(["w", "head"])
    flip(path / "shard-00000-00001.safetensors", -1)
    assert torch.equal(found.tensors(["w"])["w"], tensors_of(1)["w"])
    with pytest.raises(BadData, match="has sha256"):  # it changed after it was verified
        found.tensors()
    with pytest.raises(BadData, match="tensor byte|tensor flag|tensor int8"):
        load(path)


def test_misfits_are_listed_before_anything_is_touched(tmp_path):
    found = load(Saving(tmp_path, 1, whole({"a": torch.ones(2), "b": torch.ones(2, 3)}), {}).finish())
    a = torch.zeros(2)
    with pytest.raises(Mismatch, match=r"does not fit the model: head is missing; b has shape \[2, 3\], expected \[3, 2\]"):
        found.fill(whole({"a": a, "b": torch.zeros(3, 2), "head": torch.zeros(1)}))
    assert a.sum() == 0


def test_rectangles_are_filled_in_place_and_in_their_own_type(tmp_path):
    x = torch.arange(24.0).view(4, 6)
    found = load(Saving(tmp_path, 1, whole({"w": x}), {}).finish())
    held = torch.full((4, 4), -1.0, dtype=torch.float64)
    held.requires_grad_()
    left = torch.zeros(4, 1, dtype=torch.bfloat16)
    found.fill([Piece("w", (4, 6), (1, 2), held[1:3, ::2]), Piece("w", (4, 6), (0, 0), left)])
    assert held[1:3, ::2].tolist() == x[1:3, 2:4].tolist() and (held == -1).sum() == 12
    assert left.flatten().tolist() == [0, 6, 12, 18]


HOLES = {
    "hold 3 of its 6 values": [[[0, 1], [0, 3]]],
    "overlap": [[[0, 1], [0, 3]], [[0, 1], [0, 3]]],
    "hold 5 of its 6 values": [[[0, 2], [0, 1]], [[0, 1], [1, 3]], [[1, 2], [2, 3]]],
    "lies outside": [[[0, 3], [0, 2]]],
    "of shape .2, 3. lies outside": [[[0, 2]]],
    "differ in shape": [[[0, 2], [0, 3]], [[0, 0], [0, 3]]],
}


@pytest.mark.parametrize("sentence", HOLES)
def test_pieces_that_do_not_fill_their_tensor_are_refused(tmp_path, sentence):
    path = Saving(tmp_path, 1, whole({"w": torch.zeros(2, 3)}), {}).finish()

    def cut(manifest):
        entry = manifest["tensors"].pop()
        manifest["tensors"] = [entry | {"slice": box} for box in HOLES[sentence]]
        if "shape" in sentence.split():
            manifest["tensors"][-1]["dtype"] = "F64"

    rewrite(path, cut)
    with pytest.raises(BadData, match=f"manifest.json is damaged: .*tensor w.* {sentence}"):
        load(path)


def test_overlaps_are_found_as_by_comparing_all_with_all():
    rng, seen = random.Random(0), set()
    for _ in range(300):
        corners = [[sorted(rng.choices(range(7), k=2)) for _ in range(2)] for _ in range(rng.randrange(5))]
        expected = any(checkpoint.volume(checkpoint.common(a, b)) for i, a in enumerate(corners) for b in corners[:i])
        assert checkpoint.overlapping(corners) == expected
        seen.add(expected)
    assert seen == {True, False}


def test_loaded_tensors_are_not_a_map_of_the_file(tmp_path):
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    found = load(path).tensors()
    file = path / "shard-00000-00001.safetensors"
    with open(file, "r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    assert_same(found, tensors_of(1))


def test_no_tensors_and_parameters(tmp_path):
    assert load(Saving(tmp_path, 0, whole({}), {"global_step": 0}).finish()).tensors() == {}
    weight = torch.nn.Parameter(torch.ones(3))
    assert torch.equal(load(Saving(tmp_path, 1, whole({"w": weight}), {}).finish()).tensors()["w"], weight.detach())


# Publishing


def test_same_step_twice_never_overwrites(tmp_path):
    paths = [Saving(tmp_path, 200, whole({"w": torch.full((3,), float(k))}), {}).finish() for k in range(3)]
    assert [p.name for p in paths] == ["step-00000200", "step-00000200.a1", "step-00000200.a2"]
    assert [load(p).tensors()["w"][0].item() for p in paths] == [0, 1, 2]
    assert load_latest(tmp_path).path == paths[2] and find(tmp_path) == paths[::-1]
    shutil.rmtree(paths[0])
    assert (
        Saving(tmp_path, 200, whole({}), {}).finish().name == "step-00000200.a3"
    )  # the freed first name would sort as the oldest


def test_newest_is_by_number_not_by_name(tmp_path):
    names = ["step-100000000", "step-00000200.a10", "step-00000200.a2", "step-00000200", "step-00000030"]
    for name in [*names, "step-", "step-1.b", "steps", ".tmp-step-00000900"]:
        (tmp_path / name).mkdir()
    assert [path.name for path in find(tmp_path)] == names


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_tensors_are_not_published(tmp_path, bad):
    good = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    tensors = {"fine": torch.ones(3), "blocks.3.weight": torch.tensor([1, bad]).bfloat16(), "later": torch.tensor(bad)}
    with pytest.raises(BadData, match="tensor blocks.3.weight holds NaN or Inf"):
        Saving(tmp_path, 2, whole(tensors), {}).finish()
    assert find(tmp_path) == [good]
    assert load(Saving(tmp_path, 2, whole(tensors), {}, audit=False).finish()).tensors()["fine"].sum() == 3


def test_dtype_without_a_name_is_refused(tmp_path):
    with pytest.raises(BadData, match="tensor z is torch.complex64"):
        Saving(tmp_path, 1, whole({"z": torch.zeros(2, dtype=torch.complex64)}), {}).finish()
    assert not list(tmp_path.iterdir())


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    good = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 1000)
    with pytest.raises(CannotWrite, match=r"step-00000002 was not written: No space left.* needs 10485\d\d bytes, 1000 are free"):
        Saving(tmp_path, 2, whole({"w": torch.zeros(3)}), {}).finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", good.name]


@pytest.mark.parametrize("function", ["write_shard", "write_synced", "sync_folder", "publish"])
def test_any_failure_leaves_nothing_half_written(tmp_path, monkeypatch, function):
    good = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, function, fail)
    with pytest.raises(CannotWrite, match="No space left"):
        Saving(tmp_path, 2, whole(tensors_of(2)), {}).finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", good.name]
    assert_same(load_latest(tmp_path).tensors(), tensors_of(1))


def test_interrupt_removes_the_temporary(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "render", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Saving(tmp_path, 2, whole(tensors_of(2)), {}).finish()
    assert not list(tmp_path.iterdir())


def test_unwritable_hint_does_not_fail_the_save(tmp_path, lines):
    (tmp_path / "latest").mkdir()
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}, say=lines.append).finish()
    assert "latest could not be written" in lines[0]
    assert load_latest(tmp_path, say=lines.append).path == path
    assert not list(tmp_path.glob(".tmp-*"))


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match="File exists"):
        Saving(tmp_path / "file", 1, whole(tensors_of(1)), {}).finish()


# A thread that writes


def test_what_a_thread_writes_is_what_was_there(tmp_path):
    """The same bytes as a save at once, whatever becomes of the tensors before they are written."""
    tensors = {name: t.clone() for name, t in tensors_of(1).items()}
    given = {"global_step": 1}
    expected = Saving(tmp_path / "at once", 1, whole(tensors), given).finish()
    started = Saving(tmp_path / "beside", 1, whole(tensors), given, beside=True)
    for t in tensors.values():
        t.zero_()
    assert not find(tmp_path / "beside")
    found = started.finish()
    assert started.is_written() and (tmp_path / "beside" / "latest").read_text() == f"{found.name}\n"
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {p.name: p.read_bytes() for p in expected.iterdir()}


def test_what_was_verified_is_hashed_once_unless_its_file_changed(tmp_path, monkeypatch):
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    (file,) = path.glob("*.safetensors")
    hashed = []
    monkeypatch.setattr(checkpoint, "sha256", lambda data, plain=checkpoint.sha256: hashed.append(len(data)) or plain(data))
    num_pieces = len(tensors_of(1)) - 1  # one is empty

    def fill(found):
        hashed.clear()
        assert_same(found.tensors(), tensors_of(1))
        return len(hashed)

    assert fill(load(path)) == num_pieces  # the file is too new for its time to tell a change
    monkeypatch.setattr(checkpoint, "NEW_NANOSECONDS", 0)
    found = load(path)
    assert fill(found) == 0
    os.utime(file)
    assert fill(found) == num_pieces
    flip(file, -1)
    with pytest.raises(BadData, match="has sha256"):
        found.tensors()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """What was verified is not hashed again, but for a change between a look at the file and the end of its reading."""
    path = Saving(tmp_path, 1, whole({"w": torch.ones(4)}), {}).finish()
    (file,) = path.glob("*.safetensors")
    monkeypatch.setattr(checkpoint, "NEW_NANOSECONDS", 0)

    def read_while(change):
        class Changing(io.BufferedReader):
            def readinto(self, data):
                change()
                return super().readinto(data)

        with monkeypatch.context() as patch:
            found = load(path)
            patch.setattr(checkpoint, "open_regular", lambda path: Changing(open(path, "rb", buffering=0)))
            found.tensors()

    last = file.read_bytes()[-1]
    with pytest.raises(BadData, match="has sha256"):
        read_while(partial(put, file, -1, last ^ 1))
    put(file, -1, last)
    with pytest.raises(BadData, match="ends within tensor"):
        read_while(partial(os.truncate, file, file.stat().st_size - 1))


def test_a_save_that_is_given_up_leaves_nothing(tmp_path, monkeypatch):
    good = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    Saving(tmp_path, 2, whole(tensors_of(2)), {}, beside=True).drop()
    monkeypatch.setattr(checkpoint, "write_shard", stumble)
    Saving(tmp_path, 2, whole(tensors_of(2)), {}, beside=True).drop()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", good.name]


# Processes that die

CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from megatron.core import checkpoint
folder, failpoint = Path(sys.argv[1]), sys.argv[2]
plain, calls = getattr(checkpoint, failpoint), []
def die_before(*given):
    calls.append(1)
    if failpoint != "write_and_hash" or len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*given)
setattr(checkpoint, failpoint, die_before)
pieces = checkpoint.whole({"a": torch.ones(5), "b": torch.zeros(5)})
checkpoint.Saving(folder, 200, pieces, {}, beside=failpoint in ("write_and_hash", "publish")).finish()
"""


def run_child(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("failpoint", ["write_and_hash", "render", "publish", "write_latest"])
def test_kill_at_every_stage(tmp_path, lines, failpoint):
    Saving(tmp_path, 100, whole(tensors_of(100)), {}).finish()
    assert run_child(CHILD, tmp_path, failpoint).returncode == -signal.SIGKILL
    torn = list(tmp_path.glob(".tmp-*"))
    found = load_latest(tmp_path, say=lines.append)
    if failpoint == "write_latest":
        assert found.step == 200 and "names step-00000100, but step-00000200 is newer" in lines[0] and not torn
    else:
        assert_same(found.tensors(), tensors_of(100))
        assert len(torn) == 1 and not lines
    Saving(tmp_path, 300, whole(tensors_of(3)), {}, say=lines.append).finish()
    assert not list(tmp_path.glob(".tmp-*")) and len(lines) == 1
    assert "left by a run that was killed" in lines[0] or failpoint == "write_latest"


def test_temporaries_of_the_living_are_left_alone(tmp_path, lines):
    mine = checkpoint.aside_path(tmp_path, "step-00000001").name
    pid = f"-{os.getpid()}-"
    parent = mine.replace(pid, f"-{os.getppid()}-")
    elsewhere, old = ".tmp-step-00000001-elsewhere-1-0a0a0a0a", ".tmp-step-00000001-elsewhere-1-0b0b0b0b"
    for name in (mine, parent, elsewhere, old, ".trash-step-00000001-0a0a0a0a"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / old, times=(time.time() - 2 * 86400,) * 2)
    Saving(tmp_path, 1, whole(tensors_of(1)), {}, say=lines.append).finish()
    assert {p.name for p in tmp_path.glob(".t*")} == {parent, elsewhere} and len(lines) == 3


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from megatron.core.checkpoint import Saving, whole
from megatron.errors import exits
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
@exits
def main():
    Saving(Path(sys.argv[1]), 200, whole({"w": torch.ones(100_000)}), {}).finish()
sys.exit(main())
"""


def test_write_that_fails_midway_is_a_sentence(tmp_path):
    Saving(tmp_path, 100, whole(tensors_of(100)), {}).finish()
    child = run_child(FULL, tmp_path)
    assert child.returncode == 73 and child.stderr.count("\n") == 1
    for part in ("CannotWrite", str(tmp_path), "step-00000200", "File too large", "needs 1448576 bytes", "are free"):
        assert part in child.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000100"]
    assert_same(load_latest(tmp_path).tensors(), tensors_of(100))


# Damage


def damage(file, kind, rng):
    size = file.stat().st_size
    if kind == "flip":
        flip(file, rng.randrange(size), rng.randrange(8))
    elif kind == "truncate":
        os.truncate(file, rng.randrange(size))
    elif kind == "append":
        file.write_bytes(file.read_bytes() + rng.randbytes(rng.randrange(1, 9)))
    elif kind == "zero":
        os.truncate(file, 0)
    else:
        file.unlink()


def test_no_mutation_of_any_file_yields_other_tensors(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 400)
    older, newer = two_checkpoints(tmp_path, lines.append)
    shutil.copytree(newer, tmp_path / "copy")
    files = sorted(path.name for path in newer.iterdir())
    assert len(files) > 3
    rng = random.Random(0)
    fell_back = 0
    for _ in range(120):
        file = newer / rng.choice(files)
        damage(file, rng.choice(["flip", "flip", "flip", "truncate", "append", "zero", "delete"]), rng)
        with pytest.raises(Refusal) as refusal:
            load(newer)
        assert file.name in str(refusal.value)
        lines.clear()
        try:
            found = load_latest(tmp_path, say=lines.append)
            assert found.path == older and "step-00000200 is refused" in lines[0] and "going on from" in lines[1]
            assert_same(found.tensors(), tensors_of(100))
            fell_back += 1
        except (Untrusted, Mismatch):  # a flipped bit made a name a path, or the version a later one
            pass
        shutil.rmtree(newer)
        shutil.copytree(tmp_path / "copy", newer)
    assert fell_back > 110
    assert_same(load_latest(tmp_path).tensors(), tensors_of(200))


def test_every_bit_of_the_manifest_counts(tmp_path):
    path = Saving(tmp_path, 1, whole({"w": torch.ones(2)}), {"best_val_loss": 1e-30, "name": "\u00e9"}).finish()
    intact = (path / "manifest.json").read_bytes()
    for offset in range(len(intact)):
        for bit in (0, 5):
            flip(path / "manifest.json", offset, bit)
            with pytest.raises(Refusal):
                load(path)
            (path / "manifest.json").write_bytes(intact)


def test_refusal_names_file_tensor_and_both_hashes(tmp_path):
    path = Saving(tmp_path, 1, whole({"a": torch.zeros(64), "b": torch.zeros(64)}), {}).finish()
    flip(path / "shard-00000-00001.safetensors", -1)
    with pytest.raises(BadData, match=r"shard-00000-00001.safetensors: tensor b has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        verify(path)
    os.truncate(path / "shard-00000-00001.safetensors", 40)
    with pytest.raises(BadData, match=r"shard-00000-00001.safetensors has 40 bytes, expected \d+"):
        verify(path)


def test_one_checkpoint_given_directly_has_no_fallback(tmp_path, lines):
    _, newer = two_checkpoints(tmp_path, lines.append)
    verify(newer)
    (newer / "manifest.json").unlink()
    with pytest.raises(BadData, match="manifest.json cannot be read: No such file"):
        load(newer, say=lines.append)
    assert not lines


def test_only_damaged_checkpoints_are_never_a_fresh_start(tmp_path, lines):
    for path in two_checkpoints(tmp_path, lines.append):
        flip(path / "shard-00000-00001.safetensors", -1)
    with pytest.raises(BadData, match="none of the 2 checkpoints .* is intact"):
        load_latest(tmp_path, say=lines.append)
    assert len(lines) == 2


def test_nothing_there_is_a_fresh_start(tmp_path, lines):
    assert load_latest(tmp_path, say=lines.append) is None and load_latest(tmp_path / "missing") is None
    for path in (tmp_path, tmp_path / "missing", tmp_path / "step-00000100"):
        with pytest.raises(MissingInput, match="there is no checkpoint"):
            load(path)
    assert not lines


@pytest.mark.parametrize(
    "text", ["", "garbage\n", "../../etc", "/etc/passwd", "step-00000900", "step-00000100/../step-00000200", "\udcff"]
)
def test_latest_is_only_a_hint(tmp_path, lines, text):
    two_checkpoints(tmp_path, lines.append)
    (tmp_path / "latest").write_bytes(text.encode(errors="surrogateescape"))
    assert load_latest(tmp_path, say=lines.append).step == 200
    assert len(lines) == 1 and "latest is ignored" in lines[0]
    (tmp_path / "latest").unlink()
    assert load_latest(tmp_path, say=lines.append).step == 200 and len(lines) == 1


# Malice


@pytest.mark.parametrize(
    "name",
    [
        "../step-00000100/shard-00000-00001.safetensors",
        "/etc/passwd",
        "..",
        "",
        "canary.pt",
        "a\\b.safetensors",
        "sub/shard.safetensors",
        "shard.safetensors\n",
    ],
)
@pytest.mark.parametrize("where", ["files", "tensors"])
def test_paths_out_of_the_folder_are_untrusted(tmp_path, lines, name, where):
    _, path = two_checkpoints(tmp_path, lines.append)

    def point(manifest):
        if where == "files":
            manifest["files"][name] = manifest["files"].pop("shard-00000-00001.safetensors")
        else:
            manifest["tensors"][0]["file"] = name

    rewrite(path, point)
    for target in (path, tmp_path):
        with pytest.raises(Untrusted, match="manifest.json names"):
            load(target)


@pytest.mark.parametrize("name", ["shard-00000-00001.safetensors", "manifest.json"])
def test_links_and_pipes_are_untrusted(tmp_path, name):
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Untrusted, match="is a link"):
        load(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(Untrusted, match="no regular file"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("tensors"),
        lambda m: m.pop("step"),
        lambda m: m.update(files=[]),
        lambda m: m.update(format_version=None),
        lambda m: m["files"]["shard-00000-00001.safetensors"].pop("bytes"),
        lambda m: m["tensors"][0].pop("sha256"),
        lambda m: m["tensors"][0].update(shape=[-5, -7], slice=[[0, -5], [0, -7]]),
        lambda m: m["tensors"][0].update(dtype="object"),
        lambda m: m["tensors"][0].update(offset=-1),
        lambda m: m["tensors"][0].update(offset="x"),
    ],
)
def test_malformed_manifest_with_a_right_hash_is_refused(tmp_path, change):
    path = Saving(tmp_path, 1, whole({"w": torch.ones(5, 7)}), {}).finish()
    rewrite(path, change)
    with pytest.raises(BadData, match=str(path)):
        load(path)


def test_no_memory_is_asked_for_more_than_the_file_holds(tmp_path):
    path = Saving(tmp_path, 1, whole({"w": torch.ones(5)}), {}).finish()
    rewrite(path, lambda m: m["tensors"][0].update(shape=[10**15], slice=[[0, 10**15]]))
    with pytest.raises(BadData, match="tensor w has 4000000000000000 bytes, more than its file"):
        load(path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_none(tmp_path, text):
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    (path / "manifest.json").write_bytes(text)
    with pytest.raises(BadData, match="manifest.json is damaged"):
        load(path)


def test_later_format_is_a_mismatch(tmp_path):
    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    rewrite(path, lambda m: m.update(format_version=9))
    for target in (path, tmp_path):
        with pytest.raises(Mismatch, match="format version 9, and this program reads 1"):
            load(target)


def test_nothing_unpickles(tmp_path, monkeypatch):
    class Canary:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    torch.save(Canary(), path / "canary.pt")
    shutil.copy(path / "canary.pt", path / ".metadata")
    opened = []
    monkeypatch.setattr(checkpoint, "open", lambda file, *given: opened.append(file.name) or open(file, *given), raising=False)
    assert_same(load_latest(tmp_path).tensors(), tensors_of(1))
    assert set(opened) == {"latest", "manifest.json", "shard-00000-00001.safetensors"}
    shutil.copy(path / "canary.pt", path / "shard-00000-00001.safetensors")
    with pytest.raises(BadData, match="shard-00000-00001.safetensors has"):
        load(path)
    assert not (tmp_path / "sprung").exists()


# Several processes


def cut(tensors, cuts, rank, alone=True):
    """A rank's rectangles of a rows x columns cut; of what is not cut so far, `alone` leaves one owner."""
    places = divmod(rank, cuts[1])
    pieces = []
    for name, t in tensors.items():
        spans = [split_evenly(n, parts)[i] for n, parts, i in zip(t.shape, cuts, places)]
        if not alone or not any(places[t.dim() :]):
            data = t[tuple(slice(s.start, s.stop) for s in spans)].clone()
            pieces.append(Piece(name, tuple(t.shape), tuple(s.start for s in spans), data))
    return pieces


def save_cut(folder, step, cuts):
    group = build_mesh().control
    return Saving(
        folder, step, cut(tensors_of(step), cuts, group.rank), {"global_step": step, "rank": group.rank}, group=group
    ).finish()


def check_filled(folder, step, cuts):
    group = build_mesh().control
    found, expected = load(folder, group=group), cut(tensors_of(step), cuts, group.rank, alone=False)
    asked = [Piece(p.name, p.shape, p.start, torch.zeros_like(p.tensor)) for p in expected]
    found.fill(asked)
    assert all(torch.equal(a.tensor, b.tensor) and a.tensor.dtype == b.tensor.dtype for a, b in zip(asked, expected))
    assert found.step == step and found.facts == {"global_step": step, "rank": 0}


@pytest.mark.parametrize(
    "saved, loaded", [((1, 1), (2, 2)), ((2, 2), (1, 1)), ((4, 1), (1, 3)), ((1, 4), (3, 1)), ((2, 2), (4, 1)), ((1, 3), (1, 2))]
)
def test_saved_at_one_cut_loads_at_another(tmp_path, pool, saved, loaded):
    paths = pool.run(saved[0] * saved[1], save_cut, tmp_path, 7, saved)
    assert set(paths) == {tmp_path / "step-00000007"} and (tmp_path / "latest").read_text() == "step-00000007\n"
    pool.run(loaded[0] * loaded[1], check_filled, tmp_path, 7, loaded)
    whole_again = load(tmp_path).tensors()
    assert set(whole_again) == set(tensors_of(7)) and not list(tmp_path.glob(".*"))
    assert_same({name: whole_again[name] for name in tensors_of(7)}, tensors_of(7))


def test_safetensors_reads_every_ranks_shards(tmp_path, pool):
    library = pytest.importorskip("safetensors.torch")
    path = pool.run(2, save_cut, tmp_path, 7, (2, 1))[0]
    first, second = (library.load_file(file) for file in sorted(path.glob("*.safetensors")))
    assert "step" in first and "step" not in second
    assert torch.equal(torch.cat((first["w[0:4,0:5]"], second["w[4:7,0:5]"])), tensors_of(7)["w"])


def test_a_rank_reads_only_what_it_asks_for(tmp_path, pool):
    path = pool.run(2, save_cut, tmp_path, 7, (2, 1))[0]
    found = load(path)
    (path / "shard-00001-00001.safetensors").unlink()
    found.fill(cut(tensors_of(7), (2, 1), 0))
    with pytest.raises(BadData, match="shard-00001-00001.safetensors cannot be read"):
        found.fill(cut(tensors_of(7), (2, 1), 1))


def outcome(job, *given, **named):
    try:
        return str(job(*given, **named))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def fail(*_):
    raise OSError(28, "No space left on device")


def stumble(*_):
    raise ZeroDivisionError("oops")


def save_with_trouble(folder, trouble, beside=False):
    """Rank 1 is in trouble; what save came to."""
    group = build_mesh().control
    tensors = tensors_of(2)
    pieces = cut(tensors, (2, 1), group.rank)
    with pytest.MonkeyPatch.context() as patch:
        if group.rank == 1:
            pieces = {
                "overlap": cut(tensors, (2, 1), 0),
                "hole": pieces[1:],
                "nan": [Piece("w", (7, 5), (4, 0), torch.full((3, 5), torch.nan))],
            }.get(trouble, pieces)
            if trouble == "memory":
                pieces = [Piece("w", (2**50,), (0,), torch.zeros(1, dtype=torch.uint8).expand(2**50))]
            if trouble in ("full", "mistake"):
                patch.setattr(checkpoint, "write_shard", fail if trouble == "full" else stumble)
            if trouble == "death":
                patch.setattr(checkpoint, "write_shard", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        patch.setattr(checkpoint, "free_bytes", lambda folder: 2**60)
        own = folder / f"node{group.rank}" if trouble == "nodes" else folder
        return outcome(lambda: Saving(own, 2, pieces, {}, group=group, beside=beside).finish())


TROUBLE = {
    "full": "CannotWrite: rank 1: .*step-00000002 was not written: No space left",
    "nan": "BadData: rank 1: tensor w holds NaN",
    "overlap": "BadData: rank 0: .*pieces of tensor flag overlap",
    "hole": "BadData: rank 0: step 2 was not saved: the pieces of tensor flag hold 20 of its 35 values",
    "nodes": "CannotWrite: rank 1: .*node1 is not the same folder on every node",
    "memory": f"CannotWrite: rank 1: no checkpoint was written: --async-save found no CPU memory for a copy of {2**50} bytes",
}
AT_ONCE = [name for name in TROUBLE if name != "memory"]


@pytest.mark.parametrize(
    "trouble, beside", [*((trouble, False) for trouble in AT_ONCE), *((t, True) for t in ("full", "nodes", "memory"))]
)
def test_what_one_rank_cannot_save_nobody_saves(tmp_path, pool, trouble, beside):
    good = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    first, second = pool.run(2, save_with_trouble, tmp_path, trouble, beside)
    assert re.match(TROUBLE[trouble], first) and first == second
    assert {p.name for p in tmp_path.iterdir()} - {"node0"} == {"latest", good.name}
    assert not list(tmp_path.glob("node0/*"))


def test_a_mistake_of_ours_on_one_rank_ends_all(tmp_path, pool):
    said = pool.run(2, save_with_trouble, tmp_path, "mistake")
    assert said == ["Refusal: rank 1: ZeroDivisionError: oops", "ZeroDivisionError: oops"] and not list(tmp_path.iterdir())


def test_the_room_that_all_ranks_need_is_asked_for(tmp_path, pool):
    alone = Saving(tmp_path, 1, whole({"w": torch.zeros(6)}), {}).finish().parent
    said = pool.run(3, save_without_room, alone)
    assert len(set(said)) == 1 and "needs 1048648 bytes, 1000 are free" in said[0]


def save_without_room(folder):
    group = build_mesh().control
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "free_bytes", lambda folder: 1000)
        return outcome(Saving, folder, 2, cut({"w": torch.zeros(6, 3)}, (3, 1), group.rank), {}, group=group)


def test_a_rank_killed_while_writing_leaves_the_earlier_checkpoint(tmp_path, pool, lines):
    good = Saving(tmp_path, 1, whole(tensors_of(1)), {}).finish()
    with pytest.raises(RuntimeError, match="rank 1 of 2: died"):
        pool.run(2, save_with_trouble, tmp_path, "death")
    assert find(tmp_path) == [good] and load_latest(tmp_path, say=lines.append).path == good and not lines
    pool.run(2, save_cut, tmp_path, 2, (2, 1))
    assert not list(tmp_path.glob(".tmp-*")) and load(tmp_path).step == 2


def load_and_tell(folder, own=False):
    group, lines = build_mesh().control, []
    folder = folder / f"node{group.rank}" if own else folder
    return outcome(lambda: load(folder, group=group, say=lines.append).path.name), lines


@pytest.mark.parametrize("shard", range(3))
def test_damage_that_one_rank_finds_makes_all_fall_back(tmp_path, pool, shard):
    pool.run(3, save_cut, tmp_path, 1, (3, 1))
    newer = pool.run(3, save_cut, tmp_path, 2, (3, 1))[0]
    flip(newer / f"shard-{shard:05d}-00001.safetensors", -1)
    found = pool.run(3, load_and_tell, tmp_path)
    assert [name for name, _ in found] == ["step-00000001"] * 3
    assert [len(lines) for _, lines in found] == [2, 0, 0] and "step-00000002 is refused: rank " in found[0][1][0]
    (text, *others) = {text for text, _ in pool.run(3, load_and_tell, newer)}
    assert text.startswith("BadData: rank ") and f"shard-{shard:05d}-00001.safetensors: tensor" in text and not others


@pytest.mark.parametrize(
    "what, sentence",
    [
        ("same", "step-00000001"),
        ("other", "Mismatch: .* is not the same checkpoint"),
        ("none", "MissingInput: rank 1: .*step-00000001 is not there on"),
    ],
)
def test_nodes_with_folders_of_their_own(tmp_path, pool, what, sentence):
    Saving(tmp_path / "node0", 1, whole(tensors_of(1)), {}).finish()
    if what == "same":
        shutil.copytree(tmp_path / "node0", tmp_path / "node1")
    if what == "other":
        Saving(tmp_path / "node1", 1, whole(tensors_of(2)), {}).finish()
    for name, _ in pool.run(2, load_and_tell, tmp_path, True):
        assert re.match(sentence, name)


def test_nothing_there_is_a_fresh_start_for_all(tmp_path, pool):
    assert {text for text, _ in pool.run(2, load_and_tell, tmp_path)} == {
        f"MissingInput: there is no checkpoint in {tmp_path}: expected step-00000100 or the like; check --load"
    }


@pytest.mark.parametrize("sizes, num_ranks", [([4] * 12, 3), ([100, 1, 1, 1], 4), ([0, 0], 2), ([], 2), ([0, 5, 0, 5, 0], 2)])
def test_bytes_to_verify_are_dealt_out_once(sizes, num_ranks):
    entries = [{"name": i, "slice": [[0, n]], "dtype": "U8"} for i, n in enumerate(sizes)]
    shares = [checkpoint.share(entries, Group(ranks=tuple(range(num_ranks)), rank=rank)) for rank in range(num_ranks)]
    assert sum(shares, []) == entries
    if sizes == [4] * 12:
        assert [len(s) for s in shares] == [4, 4, 4]


# Retention


def steps(folder):
    return [step_and_attempt(path.name)[0] for path in find(folder)]


@pytest.mark.parametrize(
    "keep_last, keep_every, best, kept",
    [
        (None, None, None, [60, 50, 40, 30, 20, 10]),
        (None, 50, None, [60, 50, 40, 30, 20, 10]),
        (2, None, None, [60, 50]),
        (1, 30, None, [60, 30]),
        (1, None, 20, [60, 20]),
        (2, 30, 10, [60, 50, 30, 10]),
        (9, None, None, [60, 50, 40, 30, 20, 10]),
    ],
)
def test_retention(tmp_path, keep_last, keep_every, best, kept):
    for step in range(10, 70, 10):
        Saving(tmp_path, step, whole({"w": torch.ones(2)}), {}).finish()
    retain(tmp_path, keep_last, keep_every, tmp_path / f"step-{best:08d}" if best else None)
    assert steps(tmp_path) == kept and not list(tmp_path.glob(".*"))
    assert load_latest(tmp_path).step == 60


def test_steps_that_were_asked_for_are_kept(tmp_path):
    for step in range(10, 70, 10):
        Saving(tmp_path, step, whole({"w": torch.ones(2)}), {}).finish()
    retain(tmp_path, 1, steps=[20, 50])
    assert steps(tmp_path) == [60, 50, 20]


def test_retention_counts_complete_checkpoints_only(tmp_path, lines):
    for step in (10, 20, 30):
        Saving(tmp_path, step, whole({"w": torch.ones(2)}), {}).finish()
    (tmp_path / "step-00000030" / "manifest.json").unlink()
    os.truncate(tmp_path / "step-00000020" / "shard-00000-00001.safetensors", 5)
    (tmp_path / "latest").unlink()
    retain(tmp_path, 1, say=lines.append)
    assert steps(tmp_path) == [30, 20, 10] and load_latest(tmp_path, say=lines.append).step == 10


def test_retention_spares_what_was_just_saved_after_going_back(tmp_path):
    for step in (10, 20, 30, 15):
        Saving(tmp_path, step, whole({"w": torch.ones(2)}), {}).finish()
    retain(tmp_path, 1)
    assert steps(tmp_path) == [30, 15]


def test_deletion_cut_short_leaves_no_torn_checkpoint(tmp_path, monkeypatch, lines):
    for step in (10, 20):
        Saving(tmp_path, step, whole({"w": torch.ones(2)}), {}).finish()
    monkeypatch.setattr(checkpoint, "remove", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    retain(tmp_path, 1, say=lines.append)
    assert steps(tmp_path) == [20] and "could not be deleted: Input/output error" in lines[0]
    monkeypatch.undo()
    Saving(tmp_path, 30, whole({"w": torch.ones(2)}), {}, say=lines.append).finish()
    assert not list(tmp_path.glob(".*")) and "removed" in lines[1]
