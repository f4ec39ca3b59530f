"""Checkpoints survive damage, kills and full disks: refused by name, or the previous good one, never other tensors."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron.core import checkpoint
from megatron.core.checkpoint import find, load, load_latest, render, retain, save, verify
from megatron.errors import BadData, CannotWrite, Mismatch, MissingInput, Refusal, Untrusted

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lines():
    return []


def tensors_of(seed):
    """Every dtype and awkward shape, in an order that would misalign a writer that kept it."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(7, 5, generator=rng)
    return {"flag": x > 0, "byte": torch.arange(3, dtype=torch.uint8), "w": x, "w.half": x.half(), "w.bf16": x.bfloat16(),
            "w.fp64": x.double(), "w.t": x.t(), "w.every_other": x[:, ::2], "w.expanded": x[:1].expand(4, 5),
            "step": torch.tensor(seed), "scale": torch.tensor(0.5),
            "empty": torch.empty(0, 3), "ids": torch.arange(9), "int32": torch.arange(3, dtype=torch.int32),
            "int16": torch.arange(3, dtype=torch.int16), "int8": torch.arange(5, dtype=torch.int8)}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def two_checkpoints(folder, say):
    return [save(folder, step, tensors_of(step), {"global_step": step}, say=say) for step in (100, 200)]


def flip(file, offset, bit=0):
    data = bytearray(file.read_bytes())
    data[offset] ^= 1 << bit
    file.write_bytes(data)


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
    path = save(tmp_path / "new" / "folder", 7, tensors_of(7), facts)
    assert path.name == "step-00000007" and (path.parent / "latest").read_text() == "step-00000007\n"
    found = load(path)
    assert found.path == path and found.step == 7 and found.facts == json.loads(json.dumps(facts))
    assert_same(found.tensors, tensors_of(7))
    assert_same(load(path.parent).tensors, tensors_of(7))
    assert (len(list(path.glob("*.safetensors"))) > 3) == (shard_bytes == 100)
    assert not list(path.parent.glob(".*"))


def test_safetensors_reads_the_shards(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    path = save(tmp_path, 1, tensors_of(1), {})
    found = library.load_file(path / "shard-00001.safetensors")
    assert_same({name: found[name] for name in tensors_of(1)}, tensors_of(1))
    entries = json.loads((path / "manifest.json").read_text())["tensors"]
    assert all(entry["offset"] % found[entry["name"]].element_size() == 0 for entry in entries)     # readers may map the file


def test_manifest_leaves_room_for_slices(tmp_path):
    path = save(tmp_path, 1, {"w": torch.zeros(2, 3)}, {})
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format_version"] == 1 and set(manifest["files"]["shard-00001.safetensors"]) == {"bytes", "header_sha256"}
    entry = manifest["tensors"][0]
    assert (entry["name"], entry["dtype"], entry["shape"], entry["slice"]) == ("w", "F32", [2, 3], [[0, 2], [0, 3]])
    rewrite(path, lambda m: m["tensors"][0].update(slice=[[0, 1], [0, 3]]))
    with pytest.raises(BadData, match="tensor w is the slice"):
        load(path)


def test_tensors_are_picked_by_name_and_all_are_verified(tmp_path):
    path = save(tmp_path, 1, tensors_of(1), {})
    assert list(load(path, names={"w", "ids"}).tensors) == ["w", "ids"]
    with pytest.raises(Mismatch, match="lacks 1 tensors of the model .head."):
        load(path, names={"w", "head"})
    flip(path / "shard-00001.safetensors", -1)
    with pytest.raises(BadData, match="tensor byte|tensor flag|tensor int8"):
        load(path, names={"w"})


def test_loaded_tensors_are_not_a_map_of_the_file(tmp_path):
    path = save(tmp_path, 1, tensors_of(1), {})
    found = load(path).tensors
    file = path / "shard-00001.safetensors"
    with open(file, "r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    assert_same(found, tensors_of(1))


def test_no_tensors_and_parameters(tmp_path):
    assert load(save(tmp_path, 0, {}, {"global_step": 0})).tensors == {}
    weight = torch.nn.Parameter(torch.ones(3))
    assert torch.equal(load(save(tmp_path, 1, {"w": weight}, {})).tensors["w"], weight.detach())


# Publishing

def test_same_step_twice_never_overwrites(tmp_path):
    paths = [save(tmp_path, 200, {"w": torch.full((3,), float(k))}, {}) for k in range(3)]
    assert [p.name for p in paths] == ["step-00000200", "step-00000200.a1", "step-00000200.a2"]
    assert [load(p).tensors["w"][0].item() for p in paths] == [0, 1, 2]
    assert load_latest(tmp_path).path == paths[2] and find(tmp_path) == paths[::-1]
    shutil.rmtree(paths[0])
    assert save(tmp_path, 200, {}, {}).name == "step-00000200.a3"       # the freed first name would sort as the oldest


def test_newest_is_by_number_not_by_name(tmp_path):
    names = ["step-100000000", "step-00000200.a10", "step-00000200.a2", "step-00000200", "step-00000030"]
    for name in [*names, "step-", "step-1.b", "steps", ".tmp-step-00000900"]:
        (tmp_path / name).mkdir()
    assert [path.name for path in find(tmp_path)] == names


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_tensors_are_not_published(tmp_path, bad):
    good = save(tmp_path, 1, tensors_of(1), {})
    tensors = {"fine": torch.ones(3), "blocks.3.weight": torch.tensor([1, bad]).bfloat16(), "later": torch.tensor(bad)}
    with pytest.raises(BadData, match="tensor blocks.3.weight holds NaN or Inf"):
        save(tmp_path, 2, tensors, {})
    assert find(tmp_path) == [good]
    assert load(save(tmp_path, 2, tensors, {}, audit=False)).tensors["fine"].sum() == 3


def test_dtype_without_a_name_is_refused(tmp_path):
    with pytest.raises(BadData, match="tensor z is torch.complex64"):
        save(tmp_path, 1, {"z": torch.zeros(2, dtype=torch.complex64)}, {})
    assert not list(tmp_path.iterdir())


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    good = save(tmp_path, 1, tensors_of(1), {})
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 1000)
    with pytest.raises(CannotWrite, match=r"step-00000002 was not written: No space left.* needs 10485\d\d bytes, 1000 are free"):
        save(tmp_path, 2, {"w": torch.zeros(3)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", good.name]


@pytest.mark.parametrize("function", ["write_shard", "write_synced", "sync_folder", "publish"])
def test_any_failure_leaves_nothing_half_written(tmp_path, monkeypatch, function):
    good = save(tmp_path, 1, tensors_of(1), {})

    def fail(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoint, function, fail)
    with pytest.raises(CannotWrite, match="No space left"):
        save(tmp_path, 2, tensors_of(2), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", good.name]
    assert_same(load_latest(tmp_path).tensors, tensors_of(1))


def test_interrupt_removes_the_temporary(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(checkpoint, "render", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, tensors_of(2), {})
    assert not list(tmp_path.iterdir())


def test_unwritable_hint_does_not_fail_the_save(tmp_path, lines):
    (tmp_path / "latest").mkdir()
    path = save(tmp_path, 1, tensors_of(1), {}, say=lines.append)
    assert "latest could not be written" in lines[0]
    assert load_latest(tmp_path, say=lines.append).path == path
    assert not list(tmp_path.glob(".tmp-*"))


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match="File exists"):
        save(tmp_path / "file", 1, tensors_of(1), {})


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
checkpoint.save(folder, 200, {"a": torch.ones(5), "b": torch.zeros(5)}, {})
"""


def run_child(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("failpoint", ["write_and_hash", "render", "publish", "write_latest"])
def test_kill_at_every_stage(tmp_path, lines, failpoint):
    save(tmp_path, 100, tensors_of(100), {})
    assert run_child(CHILD, tmp_path, failpoint).returncode == -signal.SIGKILL
    torn = list(tmp_path.glob(".tmp-*"))
    found = load_latest(tmp_path, say=lines.append)
    if failpoint == "write_latest":
        assert found.step == 200 and "names step-00000100, but step-00000200 is newer" in lines[0] and not torn
    else:
        assert_same(found.tensors, tensors_of(100))
        assert len(torn) == 1 and not lines
    save(tmp_path, 300, tensors_of(3), {}, say=lines.append)
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
    save(tmp_path, 1, tensors_of(1), {}, say=lines.append)
    assert {p.name for p in tmp_path.glob(".t*")} == {parent, elsewhere} and len(lines) == 3


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from megatron.core.checkpoint import save
from megatron.errors import exits
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
@exits
def main():
    save(Path(sys.argv[1]), 200, {"w": torch.ones(100_000)}, {})
sys.exit(main())
"""


def test_write_that_fails_midway_is_a_sentence(tmp_path):
    save(tmp_path, 100, tensors_of(100), {})
    child = run_child(FULL, tmp_path)
    assert child.returncode == 73 and child.stderr.count("\n") == 1
    for part in ("CannotWrite", str(tmp_path), "step-00000200", "File too large", "needs 1448576 bytes", "are free"):
        assert part in child.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000100"]
    assert_same(load_latest(tmp_path).tensors, tensors_of(100))


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
            assert_same(found.tensors, tensors_of(100))
            fell_back += 1
        except (Untrusted, Mismatch):               # a flipped bit made a name a path, or the version a later one
            pass
        shutil.rmtree(newer)
        shutil.copytree(tmp_path / "copy", newer)
    assert fell_back > 110
    assert_same(load_latest(tmp_path).tensors, tensors_of(200))


def test_every_bit_of_the_manifest_counts(tmp_path):
    path = save(tmp_path, 1, {"w": torch.ones(2)}, {"best_val_loss": 1e-30, "name": "\u00e9"})
    whole = (path / "manifest.json").read_bytes()
    for offset in range(len(whole)):
        for bit in (0, 5):
            flip(path / "manifest.json", offset, bit)
            with pytest.raises(Refusal):
                load(path)
            (path / "manifest.json").write_bytes(whole)


def test_refusal_names_file_tensor_and_both_hashes(tmp_path):
    path = save(tmp_path, 1, {"a": torch.zeros(64), "b": torch.zeros(64)}, {})
    flip(path / "shard-00001.safetensors", -1)
    with pytest.raises(BadData, match=r"shard-00001.safetensors: tensor b has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        verify(path)
    os.truncate(path / "shard-00001.safetensors", 40)
    with pytest.raises(BadData, match=r"shard-00001.safetensors has 40 bytes, expected \d+"):
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
        flip(path / "shard-00001.safetensors", -1)
    with pytest.raises(BadData, match="none of the 2 checkpoints .* is intact"):
        load_latest(tmp_path, say=lines.append)
    assert len(lines) == 2


def test_nothing_there_is_a_fresh_start(tmp_path, lines):
    assert load_latest(tmp_path, say=lines.append) is None and load_latest(tmp_path / "missing") is None
    for path in (tmp_path, tmp_path / "missing", tmp_path / "step-00000100"):
        with pytest.raises(MissingInput, match="there is no checkpoint"):
            load(path)
    assert not lines


@pytest.mark.parametrize("text", ["", "garbage\n", "../../etc", "/etc/passwd", "step-00000900",
                                  "step-00000100/../step-00000200", "\udcff"])
def test_latest_is_only_a_hint(tmp_path, lines, text):
    two_checkpoints(tmp_path, lines.append)
    (tmp_path / "latest").write_bytes(text.encode(errors="surrogateescape"))
    assert load_latest(tmp_path, say=lines.append).step == 200
    assert len(lines) == 1 and "latest is ignored" in lines[0]
    (tmp_path / "latest").unlink()
    assert load_latest(tmp_path, say=lines.append).step == 200 and len(lines) == 1


# Malice

@pytest.mark.parametrize("name", ["../step-00000100/shard-00001.safetensors", "/etc/passwd", "..", "", "canary.pt",
                                  "a\\b.safetensors", "sub/shard.safetensors", "shard.safetensors\n"])
@pytest.mark.parametrize("where", ["files", "tensors"])
def test_paths_out_of_the_folder_are_untrusted(tmp_path, lines, name, where):
    _, path = two_checkpoints(tmp_path, lines.append)

    def point(manifest):
        if where == "files":
            manifest["files"][name] = manifest["files"].pop("shard-00001.safetensors")
        else:
            manifest["tensors"][0]["file"] = name
    rewrite(path, point)
    for target in (path, tmp_path):
        with pytest.raises(Untrusted, match="manifest.json names"):
            load(target)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "manifest.json"])
def test_links_and_pipes_are_untrusted(tmp_path, name):
    path = save(tmp_path, 1, tensors_of(1), {})
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Untrusted, match="is a link"):
        load(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(Untrusted, match="no regular file"):
        load(path)


@pytest.mark.parametrize("change", [
    lambda m: m.pop("tensors"), lambda m: m.pop("step"), lambda m: m.update(files=[]), lambda m: m.update(format_version=None),
    lambda m: m["files"]["shard-00001.safetensors"].pop("bytes"), lambda m: m["tensors"][0].pop("sha256"),
    lambda m: m["tensors"][0].update(shape=[-5, -7], slice=[[0, -5], [0, -7]]), lambda m: m["tensors"][0].update(dtype="object"),
    lambda m: m["tensors"][0].update(offset=-1), lambda m: m["tensors"][0].update(offset="x")])
def test_malformed_manifest_with_a_right_hash_is_refused(tmp_path, change):
    path = save(tmp_path, 1, {"w": torch.ones(5, 7)}, {})
    rewrite(path, change)
    with pytest.raises(BadData, match=str(path)):
        load(path)


def test_no_memory_is_asked_for_more_than_the_file_holds(tmp_path):
    path = save(tmp_path, 1, {"w": torch.ones(5)}, {})
    rewrite(path, lambda m: m["tensors"][0].update(shape=[10 ** 15], slice=[[0, 10 ** 15]]))
    with pytest.raises(BadData, match="tensor w has 4000000000000000 bytes, more than its file"):
        load(path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_none(tmp_path, text):
    path = save(tmp_path, 1, tensors_of(1), {})
    (path / "manifest.json").write_bytes(text)
    with pytest.raises(BadData, match="manifest.json is damaged"):
        load(path)


def test_later_format_is_a_mismatch(tmp_path):
    path = save(tmp_path, 1, tensors_of(1), {})
    rewrite(path, lambda m: m.update(format_version=9))
    for target in (path, tmp_path):
        with pytest.raises(Mismatch, match="format version 9, and this program reads 1"):
            load(target)


def test_nothing_unpickles(tmp_path, monkeypatch):
    class Canary:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)
    path = save(tmp_path, 1, tensors_of(1), {})
    torch.save(Canary(), path / "canary.pt")
    shutil.copy(path / "canary.pt", path / ".metadata")
    opened = []
    monkeypatch.setattr(checkpoint, "open", lambda file, *given: opened.append(file.name) or open(file, *given), raising=False)
    assert_same(load_latest(tmp_path).tensors, tensors_of(1))
    assert set(opened) == {"latest", "manifest.json", "shard-00001.safetensors"}
    shutil.copy(path / "canary.pt", path / "shard-00001.safetensors")
    with pytest.raises(BadData, match="shard-00001.safetensors has"):
        load(path)
    assert not (tmp_path / "sprung").exists()


# Retention

def steps(folder):
    return [checkpoint.step_and_attempt(path.name)[0] for path in find(folder)]


@pytest.mark.parametrize("keep_last, keep_every, best, kept", [
    (None, None, None, [60, 50, 40, 30, 20, 10]), (None, 50, None, [60, 50, 40, 30, 20, 10]), (2, None, None, [60, 50]),
    (1, 30, None, [60, 30]), (1, None, 20, [60, 20]), (2, 30, 10, [60, 50, 30, 10]), (9, None, None, [60, 50, 40, 30, 20, 10])])
def test_retention(tmp_path, keep_last, keep_every, best, kept):
    for step in range(10, 70, 10):
        save(tmp_path, step, {"w": torch.ones(2)}, {})
    retain(tmp_path, keep_last, keep_every, tmp_path / f"step-{best:08d}" if best else None)
    assert steps(tmp_path) == kept and not list(tmp_path.glob(".*"))
    assert load_latest(tmp_path).step == 60


def test_retention_counts_complete_checkpoints_only(tmp_path, lines):
    for step in (10, 20, 30):
        save(tmp_path, step, {"w": torch.ones(2)}, {})
    (tmp_path / "step-00000030" / "manifest.json").unlink()
    os.truncate(tmp_path / "step-00000020" / "shard-00001.safetensors", 5)
    (tmp_path / "latest").unlink()
    retain(tmp_path, 1, say=lines.append)
    assert steps(tmp_path) == [30, 20, 10] and load_latest(tmp_path, say=lines.append).step == 10


def test_retention_spares_what_was_just_saved_after_going_back(tmp_path):
    for step in (10, 20, 30, 15):
        save(tmp_path, step, {"w": torch.ones(2)}, {})
    retain(tmp_path, 1)
    assert steps(tmp_path) == [30, 15]


def test_deletion_cut_short_leaves_no_torn_checkpoint(tmp_path, monkeypatch, lines):
    for step in (10, 20):
        save(tmp_path, step, {"w": torch.ones(2)}, {})
    monkeypatch.setattr(checkpoint, "remove", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    retain(tmp_path, 1, say=lines.append)
    assert steps(tmp_path) == [20] and "could not be deleted: Input/output error" in lines[0]
    monkeypatch.undo()
    save(tmp_path, 30, {"w": torch.ones(2)}, {}, say=lines.append)
    assert not list(tmp_path.glob(".*")) and "removed" in lines[1]
