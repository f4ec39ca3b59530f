import json
import struct
import time
import zlib

import pytest

from megatron.errors import BadData, MissingInput
from megatron.scaling.table.ingest.wandb_files import BLOCK, read_wandb, read_wandb_file


def varint(n):
    return bytes([n & 0x7F | (0x80 if n > 0x7F else 0)]) + (varint(n >> 7) if n > 0x7F else b"")


def block(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def item(field, name, value):
    return block(1, block(field, name.encode()) + block(16, json.dumps(value).encode()))


def history(**values):
    return block(2, b"".join(item(2, name.replace("__", "/"), value) for name, value in values.items()))


def log(path, *records):
    """A LevelDB log by hand, records cut at the 32 KiB blocks."""
    out = bytearray(b":W&B\xe1\xbe\0")
    for record in records:
        first = True
        while True:
            room = BLOCK - len(out) % BLOCK
            if room < 7:
                out += b"\0" * room
                continue
            part, record = record[: room - 7], record[room - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            out += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            first = False
            if not record:
                break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def run_record(run_id="abc", name="small"):
    config = block(4, item(1, "train", {"seed": 7, "lr": 1e-3}) + item(1, "seq_length", 128))
    return block(17, block(1, run_id.encode()) + block(8, name.encode()) + config)


def points(curves, name):
    return [column.tolist() for column in curves.curve(name)]


def test_reads_history_by_iteration_and_config(tmp_path):
    rows = [history(_step=n, iteration=10 * (n + 1), val__loss=3 - n / 10, note="x", lr="NaN") for n in range(3)]
    found = read_wandb_file(log(tmp_path / "offline-run-1" / "run-abc.wandb", run_record(), *rows))
    assert (found.run, found.key) == ("small", "wandb abc")
    assert points(found, "val/loss") == [[10, 20, 30], [3.0, 2.9, 2.8]]
    assert {"seed": 7, "lr": 1e-3, "seq_length": 128}.items() <= found.arguments.items() and "note" not in found.names
    plain = read_wandb_file(log(tmp_path / "b.wandb", history(_step=4, loss=1.5)))
    assert points(plain, "loss") == [[4], [1.5]]


def test_records_span_blocks_and_the_end_may_be_cut(tmp_path):
    rows = [history(_step=n, loss=n, pad="x" * 5000) for n in range(40)]
    path = log(tmp_path / "a.wandb", run_record(), *rows)
    assert points(read_wandb_file(path), "loss")[0] == list(range(40))
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert points(read_wandb_file(path), "loss")[0] == list(range(39))
    path.write_bytes(whole[:-3] + b"???")
    assert points(read_wandb_file(path), "loss")[0] == list(range(39))
    path.write_bytes(whole + b"\0" * 100)
    assert points(read_wandb_file(path), "loss")[0] == list(range(40))
    path.write_bytes(whole[:3000] + b"?" + whole[3001:])
    with pytest.raises(BadData, match="the checksum is wrong"):
        read_wandb_file(path)


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "a.wandb").write_bytes(b"something")
    with pytest.raises(BadData, match="not a .wandb file"):
        read_wandb_file(tmp_path / "a.wandb")
    with pytest.raises(BadData, match="not a W&B record"):
        read_wandb_file(log(tmp_path / "b.wandb", b"\x1a\x09abc"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match="no .wandb file"):
        list(read_wandb([tmp_path / "empty"]))


def test_reads_what_wandb_itself_writes(tmp_path):
    wandb = pytest.importorskip("wandb")
    quiet = wandb.Settings(silent=True, console="off")
    run = wandb.init(
        project="p",
        name="small",
        id="abc",
        dir=str(tmp_path),
        mode="offline",
        config={"model": {"seq_length": 64}},
        settings=quiet,
    )
    for step in range(1, 301):
        run.log({"iteration": step, "val/loss": 4 - step / 100, "samples": 8 * step})
    run.finish()
    give_up = time.monotonic() + 30
    while not (found := list(read_wandb([tmp_path]))) or len(found[0].curve("val/loss")[0]) < 300:  # W&B's service writes
        assert time.monotonic() < give_up
        time.sleep(0.1)
    (found,) = found
    assert (found.run, found.key, found.arguments["seq_length"]) == ("small", "wandb abc", 64)
    steps, loss = points(found, "val/loss")
    assert steps == list(range(1, 301)) and loss == pytest.approx([4 - step / 100 for step in steps], rel=1e-6)
    assert points(found, "samples")[1][-1] == 2400
