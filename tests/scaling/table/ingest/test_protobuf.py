import pytest

from megatron.scaling.table.ingest.protobuf import fields, float64, varint


def test_reads_every_wire_type():
    message = b"\x08\x96\x01" + b"\x11" + b"\0" * 6 + b"\xf0\x3f" + b"\x1a\x03abc" + b"\x25\0\0\x80\x3f"
    found = dict(fields(message))
    assert found[1] == 150 and found[3] == b"abc"
    assert float64(found[2]) == 1.0 and found[4] == b"\0\0\x80\x3f"
    assert varint(b"\xff\xff\x03x", 0) == (65535, 3)


@pytest.mark.parametrize("message", [b"\x1a\x09abc", b"\x08", b"\x08\xff", b"\x0b\x00", b"\x25\0"])
def test_what_is_cut_short_or_no_message_is_refused(message):
    with pytest.raises(ValueError, match="goes beyond its message"):
        list(fields(message))
