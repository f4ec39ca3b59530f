"""Every kind of file and every trap in one, down to the documents; the Hub through a stand-in for `datasets`."""

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron.data import corpora
from megatron.data.corpora import CORPORA, Bad, HubSplit, Manner, file_documents, source_files, split_of, text_documents
from megatron.errors import BadData, MissingInput

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RECORDS = [{"text": "one"}, {"text": "two\nlines"}, {"text": " \n"}, {"text": "caf\u00e9 <|endoftext|>"}]
TEXTS = ["one", "two\nlines", "caf\u00e9 <|endoftext|>"]  # a mark inside a text is text; blank ones are none
WIKI = " \n = First = \n \n Some text . \n \n = = Section = = \n \n a = b = c \n \n = Second = \n \n More . \n"


def refuse(bad: Bad):
    raise BadData(f"{bad.file}:{bad.line}: {bad.reason}")


def texts(name, *files, **more):
    return [document["text"] for document in file_documents(CORPORA[name], list(map(str, files)), refuse, **more)]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} of the shared data is not here")
    return SHARED / name


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.jsonl", b"\xef\xbb\xbf" + lines(RECORDS).replace(b"\n", b"\r\n\r\n")),
        ("a.json", lines(RECORDS)),
        ("a.json", b"\xef\xbb\xbf \n" + json.dumps(RECORDS, indent=1).encode()),
        ("a.json.gz", gzip.compress(lines(RECORDS), mtime=0)),
        ("a.jsonl.gz", gzip.compress(json.dumps(RECORDS).encode(), mtime=0)),
    ],
)
def test_json_lines_and_arrays_of_any_spelling(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert texts("c4", tmp_path / name) == TEXTS


def test_parquet_and_zst(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    with pyarrow.CompressedOutputStream(str(tmp_path / "b.jsonl.zst"), "zstd") as file:
        file.write(lines(RECORDS))
    assert texts("slimpajama", tmp_path / "a.parquet", tmp_path / "b.jsonl.zst") == TEXTS + TEXTS
    whole = (tmp_path / "b.jsonl.zst").read_bytes()
    (tmp_path / "c.jsonl.zst").write_bytes(whole[:10] + b"\xff" * 9 + whole[19:])
    (tmp_path / "d.jsonl.zst").write_bytes(whole[:-8])
    (tmp_path / "e.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    for name in ("c.jsonl.zst", "d.jsonl.zst", "e.parquet"):
        with pytest.raises(BadData, match=name):
            texts("c4", tmp_path / name)


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"text": "a"', "bad JSON"),
        (b'["text"]\n', "bad JSON|JSON array"),
        (b'{"body": "a"}', "'text'"),
        (b'{"text": 3}', "int"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'{"a":' * 100000, "bad JSON"),
    ],
)
def test_a_record_that_is_no_document_is_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "end"}\n')
    with pytest.raises(BadData, match=rf"a.jsonl:3: .*({said})"):
        texts("c4", tmp_path / "a.jsonl")
    seen = []
    found = [d["text"] for d in file_documents(CORPORA["c4"], [str(tmp_path / "a.jsonl")], seen.append)]
    assert found == ["good", "end"] and [bad.line for bad in seen] == [3]


def test_an_array_names_its_records(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"}, 3, {"text": "b"}]')
    with pytest.raises(BadData, match="a.json:2: expected an object, found int"):
        texts("c4", tmp_path / "a.json")
    (tmp_path / "b.json").write_text('[{"text": "a"}, ')
    with pytest.raises(BadData, match="b.json: begins as a JSON array"):
        texts("c4", tmp_path / "b.json")


def test_a_cut_gzip_and_text_that_is_none_are_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(RECORDS * 100))[:-20])
    (tmp_path / "b.txt").write_bytes(b"latin \xe9\n")
    for name in ("a.jsonl.gz", "b.txt"):
        with pytest.raises(BadData, match=name):
            texts("c4", tmp_path / name)


def test_plain_text_is_one_document_without_mark_and_line_end_traps(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo <|endoftext|> three\r\n")
    assert texts("openwebtext", tmp_path / "a.txt") == ["one\n\ntwo <|endoftext|> three\n"]


@pytest.mark.parametrize("name", ["tinystories", "c4"])
def test_a_line_with_the_mark_ends_a_document(tmp_path, name):
    text = "One.\nStill one.\n<|endoftext|>\n\nTwo <|endoftext|> goes on.\n<|endoftext|>\n"
    (tmp_path / "a.txt").write_bytes(text.replace("\n", "\r\n").encode())
    assert texts(name, tmp_path / "a.txt") == ["One.\nStill one.\n", "\nTwo <|endoftext|> goes on.\n"]


def test_stories_without_marks(tmp_path):
    story = "Once upon a time " + "there was a dog. " * 12 + "\n\nHe ran.\n"
    (tmp_path / "a.txt").write_text(story * 3 + "It was hot.\nThey all " + "went home. " * 30 + "\n\nThe end.\n")
    found = texts("tinystories", tmp_path / "a.txt")
    assert found[:3] == [story] * 3 and len(found) == 4 and found[3].startswith("It was hot.\nThey")
    assert len(texts("c4", tmp_path / "a.txt")) == 1


def test_articles_begin_at_titles_in_files_and_in_records_of_a_line(tmp_path):
    expected = [" \n = First = \n \n Some text . \n \n = = Section = = \n \n a = b = c \n \n", " = Second = \n \n More . \n"]
    (tmp_path / "a.txt").write_text(WIKI)
    (tmp_path / "wiki.train.tokens").write_text(WIKI)
    (tmp_path / "a.jsonl").write_bytes(lines({"text": line if line.strip() else ""} for line in WIKI.splitlines(keepends=True)))
    (tmp_path / "b.jsonl").write_bytes(lines([{"text": "A whole\narticle."}, {"text": "Another\none."}]))
    assert texts("wikitext103", tmp_path / "a.txt") == texts("wikitext103", tmp_path / "wiki.train.tokens")
    assert [text.split() for text in texts("wikitext103", tmp_path / "a.txt")] == [text.split() for text in expected]
    assert [text.split() for text in texts("wikitext103", tmp_path / "a.jsonl")] == [text.split() for text in expected]
    assert texts("wikitext103", tmp_path / "b.jsonl") == ["A whole\narticle.", "Another\none."]


def test_a_book_without_its_licence(tmp_path):
    (tmp_path / "a.txt").write_text(
        "Head\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\nBody\n***\nMore\n"
        "***END OF THE PROJECT GUTENBERG EBOOK X***\nFoot\n"
    )
    (tmp_path / "b.txt").write_text("No header\n")
    assert texts("c4", tmp_path / "a.txt", tmp_path / "b.txt", manner=Manner(strip_gutenberg=True)) == [
        "Body\n***\nMore\n",
        "No header\n",
    ]
    assert texts("c4", tmp_path / "a.txt")[0].startswith("Head")


def test_papers_have_categories_and_records_only_their_own_keys(tmp_path):
    rows = [
        {"text": "a", "label": 0},
        {"text": "b", "label": 10},
        {"text": "c", "categories": "math.CO cs.CG"},
        {"text": "d", "cat": ["cs.LG", "cs.AI"]},
        {"text": "e"},
        {"text": "f", "label": 99},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    found = list(file_documents(CORPORA["arxiv-classification"], [str(tmp_path / "a.jsonl")], refuse))
    assert [d["category"] for d in found] == ["math.AC", "math.ST", "math.CO", "cs.LG", "unknown", "99"]
    (tmp_path / "b.json").write_text(
        json.dumps(
            [
                {"instruction": "i", "input": "", "output": "o", "text": "i o"},
                {"instruction": "i", "input": "x", "output": " "},
                {"prompt": "p", "response": "r"},
            ]
        )
    )
    assert list(file_documents(CORPORA["alpaca"], [str(tmp_path / "b.json")], refuse)) == [
        {"instruction": "i", "input": "", "output": "o"},
        {"prompt": "p", "response": "r"},
    ]


def test_files_of_a_folder_are_found_and_named(tmp_path):
    for name in (
        "train/0.jsonl.zst",
        "validation/0.json.gz",
        "test.parquet",
        "notes.md",
        "dataset_infos.json",
        "a.idx",
        ".b.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(Path(path).relative_to(tmp_path)) for path in source_files(str(tmp_path))]
    assert found == ["test.parquet", "train/0.jsonl.zst", "validation/0.json.gz"]
    assert [split_of(name) for name in found] == ["test", "train", "valid"]
    assert len(source_files(str(tmp_path / "*" / "*.gz"))) == 1
    for place in ("nowhere", str(tmp_path / "*.csv")):
        with pytest.raises(MissingInput, match="no such file"):
            source_files(place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match=r"\*.jsonl"):
        source_files(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "name, split",
    [
        ("c4-train.00000-of-01024.json.gz", "train"),
        ("c4-validation.00000-of-00008.json.gz", "valid"),
        ("wiki.valid.tokens", "valid"),
        ("TinyStoriesV2-GPT4-valid.txt", "valid"),
        ("train/chunk1/example_train_0.jsonl.zst", "train"),
        ("alpaca.json", None),
        ("constraints.jsonl", None),
        ("dolly_train_small.jsonl", "train"),
    ],
)
def test_names_say_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    "name, file, count",
    [
        ("wikitext103", "wikitext-2/valid.txt", 60),
        ("c4", "c4/c4_demo_a.jsonl", 150),
        ("alpaca", "instruct/alpaca_en_demo.json", 999),
        ("dolly", "instruct/litgpt_dolly_fixture.json", 12),
        ("dolly", "instruct/dolly_hhrlhf_prompt_response.jsonl", 500),
        ("fineweb", "gutenberg/alice.txt", 1),
    ],
)
def test_published_files_have_their_known_numbers_of_documents(name, file, count):
    assert len(list(file_documents(CORPORA[name], [str(shared(file))], refuse))) == count


def test_published_stories_without_marks_begin_as_stories_do():
    stories = list(text_documents(str(shared("tinystories/tinystories_a.txt")), "stories", Manner(), refuse))
    assert 780 < len(stories) < 900 and sum(story.startswith("Once") for story in stories) > 500


# ---- the Hub


class Stream(list):
    features = {"label": SimpleNamespace(names=["x.X", "y.Y"])}


def stand_in(monkeypatch, load, **more):
    errors = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    module = SimpleNamespace(load_dataset=load, exceptions=errors, **more)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_the_hub_is_streamed_at_a_revision(monkeypatch):
    asked, rows = [], Stream([{"text": "a", "label": 1}, {"text": " "}])
    stand_in(monkeypatch, lambda *args, **named: asked.append((args, named)) or rows)
    found = list(HubSplit(CORPORA["arxiv-classification"], "valid").documents(refuse))
    assert found == [{"text": "a", "category": "y.Y"}]
    assert asked == [
        (("ccdv/arxiv-classification", "no_ref"), {"split": "validation", "revision": "refs/convert/parquet", "streaming": True})
    ]


def test_lines_of_the_hub_become_articles(monkeypatch):
    rows = [{"text": line if line.strip() else ""} for line in WIKI.splitlines(keepends=True)]
    stand_in(monkeypatch, lambda *args, **named: rows)
    assert len(list(HubSplit(CORPORA["wikitext103"], "train").documents(refuse))) == 2


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch):
    def fail(*args, **named):
        raise ConnectionError("Couldn't reach it\nsecond line")

    stand_in(monkeypatch, fail)
    with pytest.raises(MissingInput, match="allenai/c4:en:train cannot be read .*ConnectionError.*--from") as caught:
        list(HubSplit(CORPORA["c4"], "train").documents(refuse))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingInput, match="the Python package datasets"):
        list(HubSplit(CORPORA["c4"], "train").documents(refuse))


def test_numbers_of_records_come_from_the_builder(monkeypatch):
    info = SimpleNamespace(splits={"train": SimpleNamespace(num_examples=7)})
    stand_in(monkeypatch, None, load_dataset_builder=lambda *args, **named: SimpleNamespace(info=info))
    assert HubSplit(CORPORA["c4"], "train").num_records() == 7 and HubSplit(CORPORA["c4"], "valid").num_records() is None


def test_a_revision_is_pinned_to_its_commit_where_the_hub_says_it(monkeypatch):
    hub = SimpleNamespace(dataset_info=lambda name, revision: SimpleNamespace(sha=f"{name}@{revision}"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert corpora.pinned_revision(CORPORA["c4"]) == "allenai/c4@None"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert corpora.pinned_revision(CORPORA["arxiv-classification"]) == "refs/convert/parquet"
