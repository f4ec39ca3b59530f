"""Blocks hold every document once, whatever the packing, and reading goes on exactly where a block says."""

import gzip
import json
import tracemalloc

import pytest

from megatron.data import text_files
from megatron.data.text_files import Mark, Reading, input_files, is_plain_text, read_blocks, safe_cut
from megatron.errors import BadData, MissingInput

LINES = [json.dumps({"text": f"document {i} " + "word " * (i % 7)}).encode() for i in range(60)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 200)
    monkeypatch.setattr(text_files, "PARQUET_ROWS", 4)


def zstd(data, frames=1):
    zstandard = pytest.importorskip("zstandard")
    step = -(-len(data) // frames)
    return b"".join(zstandard.compress(data[i : i + step]) for i in range(0, len(data), step))


PACKINGS = {".jsonl": lambda data: data, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstd, ".json.ZST": lambda data: zstd(data, 3)}


def packed(path, ending, data):
    path = path.with_name(path.name + ending)
    path.write_bytes(PACKINGS[ending](data))
    return str(path)


def parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pyarrow.table(columns), path, row_group_size=7)
    return str(path)


def lines_of(blocks):
    return [(block.line + n, line) for block in blocks for n, line in enumerate(block.data.split(b"\n")) if line]


@pytest.mark.parametrize("ending", PACKINGS)
def test_every_line_comes_once_and_reading_goes_on_after_each_block(tmp_path, ending):
    files = [
        packed(tmp_path / "a", ending, b"\n".join(LINES[:40]) + b"\n"),
        packed(tmp_path / "b", ending, b"\n".join(LINES[40:])),
    ]
    blocks = list(read_blocks(files))
    assert len(blocks) > 2
    assert lines_of(blocks) == [*enumerate(LINES[:40], 1), *enumerate(LINES[40:], 1)]
    for number, block in enumerate(blocks):
        assert lines_of(read_blocks(files, block.after)) == lines_of(blocks[number + 1 :])


def test_rows_of_parquet_come_once_and_reading_goes_on_after_each_block(tmp_path):
    texts = [f"row {i} " * (i % 9 + 1) if i % 5 else None for i in range(50)]
    files = [parquet(tmp_path / "a.parquet", other=list(range(50)), text=texts)]
    expected = [(i, (text.encode() if text else None,)) for i, text in enumerate(texts, 1)]
    rows = lambda blocks: [(block.line + n, row) for block in blocks for n, row in enumerate(block.rows)]  # noqa: E731
    blocks = list(read_blocks(files))
    assert len(blocks) > 5 and rows(blocks) == expected and blocks[-1].position <= (tmp_path / "a.parquet").stat().st_size
    for number, block in enumerate(blocks):
        assert rows(read_blocks(files, block.after)) == rows(blocks[number + 1 :])


def test_parquet_strings_of_every_kind_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    kinds = [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.binary(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ]
    for kind in kinds:
        file = parquet(tmp_path / "a.parquet", text=pyarrow.array(["a", None, "\u00e9"]).cast(kind))
        assert [row for block in read_blocks([file]) for row in block.rows] == [(b"a",), (None,), ("\u00e9".encode(),)]


@pytest.mark.parametrize(
    "columns, said", [({"body": ["a"]}, "no 'text' among its columns 'body'"), ({"text": [1, 2]}, "column 'text' holds int64")]
)
def test_a_parquet_file_without_the_text_is_refused(tmp_path, columns, said):
    with pytest.raises(BadData, match=said):
        list(read_blocks([parquet(tmp_path / "a.parquet", **columns)]))


def test_damaged_files_are_refused_with_their_name(tmp_path):
    whole = b"\n".join(LINES * 50)
    damages = {
        "cut.jsonl.zst": zstd(whole)[:-9],
        "two.jsonl.zst": zstd(whole) + zstd(whole)[:50],
        "not.jsonl.zst": whole,
        "flip.jsonl.zst": zstd(whole)[:40] + b"\xff" * 9 + zstd(whole)[49:],
        "cut.jsonl.gz": gzip.compress(whole)[:-9],
        "not.parquet": whole,
        "empty.parquet": b"",
    }
    source = (tmp_path / "a.parquet", ["word %d" % i for i in range(5000)])
    parquet(source[0], text=source[1])
    data = source[0].read_bytes()
    damages |= {"cut.parquet": data[:-100], "hole.parquet": data[: len(data) // 3] + b"\x00" * 999 + data[len(data) // 3 + 999 :]}
    for name, content in damages.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData, match=name):
            list(read_blocks([str(tmp_path / name)]))


def test_a_line_beyond_the_limit_is_named_and_not_held(tmp_path):
    file = tmp_path / "a.jsonl"
    with open(file, "wb") as out:
        out.write(LINES[0] + b"\n" + b"x" * (8 << 20) + b"\n" + LINES[1] + b"\n" + b"y" * (8 << 20))
    tracemalloc.start()
    blocks = list(read_blocks([str(file)], how=Reading(max_line_bytes=1000)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert [(block.line, block.too_long) for block in blocks if block.too_long] == [(2, (8 << 20) + 1), (4, 8 << 20)]
    assert lines_of(blocks) == [(1, LINES[0]), (3, LINES[1])]
    at = next(block.after for block in blocks if block.too_long)
    assert lines_of(read_blocks([str(file)], at, Reading(max_line_bytes=1000))) == [(3, LINES[1])]


def test_plain_text_is_cut_only_where_it_is_safe(tmp_path):
    text = b"".join(b"line %d ends\n\n  indented. \n" % i for i in range(100))
    (tmp_path / "a.txt").write_bytes(text)
    blocks = list(read_blocks([str(tmp_path / "a.txt")]))
    assert b"".join(block.data for block in blocks) == text and len(blocks) > 5
    assert [block.more for block in blocks] == [True] * (len(blocks) - 1) + [False]
    assert all(block.data[-1:].isalnum() for block in blocks[:-1]) and all(block.data[:1] == b"\n" for block in blocks[1:])
    assert [block.begin for block in blocks][1] == len(blocks[0].data)
    assert {block.after for block in blocks[:-1]} == {Mark()} and blocks[-1].after == Mark(1)
    (whole,) = read_blocks([str(tmp_path / "a.txt")], how=Reading(whole_texts=True))
    assert whole.data == text
    assert safe_cut(bytearray(b".\n \n\xc3\xa9\n"), 0) == 0 and safe_cut(bytearray(b"a\nb\nc"), 0) == 3


def test_names_and_globs(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.TXT.gz"):
        (tmp_path / name).touch()
    glob = str(tmp_path / "*.jsonl")
    assert [f[-7:] for f in input_files([str(tmp_path / "b.jsonl"), glob])] == ["b.jsonl", "a.jsonl"]
    assert is_plain_text("c.TXT.gz") and is_plain_text("c.txt.zst") and not is_plain_text("txt.jsonl")
    with pytest.raises(MissingInput, match="no such file"):
        input_files([str(tmp_path / "*.zst")])
