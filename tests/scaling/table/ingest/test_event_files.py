import struct
import time

import numpy as np
import pytest

from megatron.errors import BadData, MissingInput
from megatron.scaling.table.ingest.event_files import crc32c, read_events, read_tensorboard
from tests.pace import within


def framed(payloads):
    """TFRecords: length, CRC, payload, CRC."""
    lengths = [struct.pack("<Q", len(payload)) for payload in payloads]
    return b"".join(b"".join(parts) for parts in zip(lengths, masked_crcs(lengths), payloads, masked_crcs(payloads)))


def masked_crcs(parts):
    ends = np.cumsum([len(part) for part in parts])
    crcs = crc32c(np.frombuffer(b"".join(parts), np.uint8), np.append(0, ends[:-1]), ends)
    return [struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF) for crc in crcs.tolist()]


def varint(n):
    return bytes([n & 0x7F | (0x80 if n > 0x7F else 0)]) + (varint(n >> 7) if n > 0x7F else b"")


def block(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def event(step, *tags, restart=False):
    """A TensorBoard event by hand: (tag, value) pairs, or a restart mark."""
    values = b"".join(block(1, block(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in tags)
    return (
        b"\x09"
        + struct.pack("<d", time.time())
        + (b"\x10" + varint(step) if step else b"")
        + (block(5, values) if tags else b"")
        + (block(7, b"\x08\x01") if restart else b"")
    )


def write(folder, number, *events):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{number}.host"
    path.write_bytes(framed(events))
    return path


def only(folder):
    (curves,) = read_tensorboard([folder])
    return curves


def test_crc32c_of_the_known_vectors():
    data = np.frombuffer(b"123456789" + b"\0" * 32, np.uint8)
    assert [hex(c) for c in crc32c(data, np.array([0, 9, 3]), np.array([9, 41, 3]))] == ["0xe3069283", "0x8a9136aa", "0x0"]


def test_every_point_is_read_with_samples_and_tokens(tmp_path):
    tag = "lm-loss-training/lm loss"
    events = [
        event(x, (name, 4 - step / 5000))
        for step in range(1, 12001)
        for x, name in ((step, tag), (8 * step, f"{tag} vs samples"), (1024 * step, f"{tag} vs tokens"))
    ]
    write(tmp_path, 1, *events)
    curves = only(tmp_path)
    steps, loss = curves.curve(tag)
    np.testing.assert_array_equal(steps, np.arange(1, 12001))  # TensorBoard's own reader keeps 10,000
    np.testing.assert_array_equal(loss, np.float32(4 - steps / 5000).astype(float))
    np.testing.assert_array_equal(curves.curve("samples")[1], 8.0 * steps)
    np.testing.assert_array_equal(curves.curve("tokens")[1], 1024.0 * steps)
    assert sorted(curves.names) == sorted([tag, "samples", "tokens"])


def test_the_last_write_of_a_step_wins_and_a_restart_mark_voids_what_lay_beyond(tmp_path):
    write(tmp_path / "resumed", 1, *(event(s, ("loss", 10 + s)) for s in range(1, 8)))
    write(tmp_path / "resumed", 2, *(event(s, ("loss", 20 + s)) for s in range(4, 6)))
    steps, loss = only(tmp_path / "resumed").curve("loss")
    assert loss.tolist() == [11, 12, 13, 24, 25, 16, 17] and steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    write(tmp_path / "marked", 1, *(event(s, ("loss", 10 + s)) for s in range(1, 8)))
    write(tmp_path / "marked", 2, event(4, restart=True), *(event(s, ("loss", 20 + s)) for s in range(4, 6)))
    assert only(tmp_path / "marked").curve("loss")[1].tolist() == [11, 12, 13, 24, 25]


def test_every_folder_with_events_is_a_run(tmp_path):
    write(tmp_path / "a", 1, event(1, ("loss", 1)))
    write(tmp_path / "b" / "c", 1, event(1, ("loss", 1)))
    assert [curves.run for curves in read_tensorboard([tmp_path])] == ["a", "c"]
    with pytest.raises(MissingInput, match="no event file"):
        list(read_tensorboard([tmp_path / "a" / "none"]))


def test_a_last_record_cut_short_is_the_end_and_damage_is_refused(tmp_path):
    path = write(tmp_path, 1, *(event(s, ("loss", s), ("lr", 1)) for s in range(1, 5)))
    whole = path.read_bytes()
    size = len(whole) // 4
    for cut in (1, 3, 20, size - 13, size - 1):
        path.write_bytes(whole[:-cut])
        assert read_events(path).series["loss"].steps == [1, 2, 3]
    path.write_bytes(whole[: size + 30] + b"?" + whole[size + 31 :])
    with pytest.raises(BadData, match=f"byte {size + 12}: the checksum is wrong"):
        read_events(path)
    path.write_bytes(whole[: size + 1] + b"?" + whole[size + 2 :])
    with pytest.raises(BadData, match=f"byte {size}: the checksum is wrong"):
        read_events(path)
    path.write_bytes(framed([b"no event at all"]))
    with pytest.raises(BadData, match="not a TensorBoard event"):
        read_events(path)
    path.write_bytes(framed([event(3, ("loss", 2)), b"\x10\x05"]))
    assert read_events(path).series["loss"].steps == [3]
    path.write_bytes(b"")
    assert read_events(path).series == {}


def test_reads_what_tensorboards_own_writers_write(tmp_path):
    summary = pytest.importorskip("tensorboard.summary")
    from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    writer = summary.Writer(str(tmp_path / "tensors"))
    for step in range(3):
        writer.add_scalar("val/loss", 3.0 - step, step)
    writer.close()
    assert [c.tolist() for c in only(tmp_path / "tensors").curve("val/loss")] == [[0, 1, 2], [3, 2, 1]]
    (tmp_path / "text").mkdir()
    with open(tmp_path / "text" / "events.out.tfevents.1", "xb") as file:
        text = tensor_pb2.TensorProto(dtype=7, string_val=[b"2048"])
        value = summary_pb2.Summary.Value
        values = [
            value(tag="seq_length/text_summary", tensor=text),
            value(tag="lm loss", simple_value=2.5),
            value(tag="histogram", tensor=tensor_pb2.TensorProto(dtype=1, float_val=[1, 2])),
        ]
        RecordWriter(file).write(event_pb2.Event(step=2**40, summary=summary_pb2.Summary(value=values)).SerializeToString())
    curves = only(tmp_path / "text")
    assert curves.arguments == {"seq_length": "2048"} and curves.names == ["lm loss"]
    assert [c.tolist() for c in curves.curve("lm loss")] == [[2**40], [2.5]]


def test_a_hundred_runs_of_ten_thousand_points_take_seconds(tmp_path):
    path = write(tmp_path / "0", 1, *(event(s, ("lm loss", 1 / s)) for s in range(1, 10001)))
    for n in range(1, 100):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / path.name).hardlink_to(path)
    with within(60):
        assert sum(len(curves.curve("lm loss")[0]) for curves in read_tensorboard([tmp_path])) == 1_000_000
