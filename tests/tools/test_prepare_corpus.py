"""The tool as users run it: every corpus from files, the Hub and stores through stand-ins, interruptions, and what it refuses."""

import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from megatron.data import corpus_text
from megatron.data.corpora import CORPORA
from megatron.data.indexed import IndexedDataset
from megatron.data.prepare import corpus as pipeline
from megatron.data.prepare.origins import subset_documents
from megatron.data.token_file import PaperFolder, TokenFile
from megatron.data.tokenizer import build_tokenizer
from tools import prepare_corpus, preprocess_data

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
BYTES = ("--tokenizer-type", "ByteTokenizer")
TEXTS = [f"Document {number} says {'so ' * (number % 9)}\u00e9." for number in range(230)]


def run(name, folder, *args, tokenizer=BYTES):
    return prepare_corpus.main([name, "--output", str(folder), *map(str, args), *tokenizer])


def jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def source(tmp_path):
    return jsonl(tmp_path / "in" / "corpus.jsonl", [{"text": text} for text in TEXTS])


def texts(folder, split):
    data = IndexedDataset(folder / f"{split}_text_document")
    found = [data.document(number) for number in range(data.num_documents)]
    assert all(ids[-1] == 256 for ids in found)
    return [bytes(ids[:-1].tolist()).decode() for ids in found]


def known(folder):
    return json.loads((folder / "corpus.json").read_text())


def content(folder):
    """All files; of a sidecar all but where the text lay."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("corpus.json", ".lock")}
    for name in (name for name in found if name.endswith(".meta.json")):
        meta = json.loads(found[name])
        found[name] = {key: value for key, value in meta.items() if key not in ("extra", "sha256")}
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


INDEXED = [f"{split}_text_document.{end}" for split in ("train", "valid", "test") for end in ("bin", "idx", "meta.json")]
ABOUT = ["config.json", "corpus.json", "tokenizer.json"]


def test_a_file_becomes_three_splits_that_share_nothing(tmp_path, source, capsys):
    assert run("fineweb", tmp_path / "o", "--from", source) == 0
    assert names(tmp_path / "o") == sorted([*INDEXED, *ABOUT])
    found = {split: texts(tmp_path / "o", split) for split in ("train", "valid", "test")}
    assert sorted(sum(found.values(), [])) == sorted(TEXTS) and min(map(len, found.values())) >= 2
    assert found["train"] == [text for text in TEXTS if text in found["train"]]  # in their order
    about = known(tmp_path / "o")
    assert {split: part["documents"] for split, part in about["splits"].items()} == {s: len(t) for s, t in found.items()}
    assert about["splits"]["train"]["tokens"] == sum(len(text.encode()) + 1 for text in found["train"])
    assert about["splits"]["train"]["text_bytes"] == sum(len(text.encode()) for text in found["train"])
    assert about["source"]["files"] == {"train": [["corpus.jsonl", source.stat().st_size]]}
    assert about["tokenizer"]["fingerprint"] == build_tokenizer("ByteTokenizer").fingerprint()
    for name, stated in about["files"].items():
        assert hashlib.sha256((tmp_path / "o" / name).read_bytes()).hexdigest() == stated["sha256"]
    assert set(about["files"]) == set(names(tmp_path / "o")) - {"corpus.json"}
    said = capsys.readouterr()
    assert f"train: {len(found['train'])} documents" in said.out and "one document of every 100" in said.out and not said.err


def test_a_finished_one_does_nothing_and_another_is_refused(tmp_path, source, capsys):
    assert run("fineweb", tmp_path / "o", "--from", source) == 0
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o").iterdir() if path.name != ".lock"}
    assert run("fineweb", tmp_path / "o", "--from", source, "--workers", 2) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o").iterdir() if path.name != ".lock"} == times
    assert run("fineweb", tmp_path / "o", "--from", source, "--max-documents", 5) == 73
    assert "max_documents None there, 5 now" in capsys.readouterr().err
    assert run("fineweb", tmp_path / "o", "--from", source, "--max-documents", 5, "--overwrite") == 0
    assert len(texts(tmp_path / "o", "train")) == 5
    jsonl(source, [{"text": "grown"}, *({"text": text} for text in TEXTS)])
    assert run("fineweb", tmp_path / "o", "--from", source, "--max-documents", 5) == 73  # the file is another
    (tmp_path / "o" / "corpus.json").unlink()
    assert run("fineweb", tmp_path / "o", "--from", source) == 73
    assert "not from this tool" in capsys.readouterr().err


def test_another_format_leaves_nothing_of_the_one_before(tmp_path, source):
    assert run("fineweb", tmp_path / "o", "--from", source, "--format", "memmap", "--keep-text") == 0
    assert run("fineweb", tmp_path / "o", "--from", source, "--overwrite") == 0
    assert names(tmp_path / "o") == sorted([*INDEXED, *ABOUT])


def test_a_full_disk_is_one_sentence(tmp_path, source, monkeypatch, capsys):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "replace_file", full)
    assert run("fineweb", tmp_path / "o", "--from", source) == 73
    assert "No space left on device; make room" in capsys.readouterr().err


def test_own_splits_are_kept_and_a_missing_test_is_half_of_validation(tmp_path, capsys):
    for split, start in (("train", 0), ("validation", 200)):
        jsonl(tmp_path / "in" / f"c4-{split}.00000.json", [{"text": text} for text in TEXTS[start : start + 200]])
    assert run("c4", tmp_path / "o", "--from", tmp_path / "in") == 0
    assert texts(tmp_path / "o", "train") == TEXTS[:200]
    held = texts(tmp_path / "o", "valid"), texts(tmp_path / "o", "test")
    assert sorted(held[0] + held[1]) == sorted(TEXTS[200:]) and len(held[0]) == len(held[1]) == 15
    one, other = (tmp_path / "in" / f"c4-{split}.00000.json" for split in ("validation", "train"))
    third = jsonl(tmp_path / "third.jsonl", [{"text": "only this"}])
    assert run("c4", tmp_path / "o2", "--from", f"train={one}", f"valid={third}", f"test={other}", "--held-out", 0) == 0
    assert texts(tmp_path / "o2", "train") == TEXTS[200:] and texts(tmp_path / "o2", "test") == TEXTS[:200]
    copy = tmp_path / "copy.json"
    copy.write_bytes(one.read_bytes())
    for twice in (one, copy):
        capsys.readouterr()
        assert run("c4", tmp_path / "o3", "--from", f"train={one}", f"valid={twice}") == 78
        assert "the same text is" in capsys.readouterr().err and not (tmp_path / "o3" / "corpus.json").exists()


def test_the_published_subsets_are_prefixes_of_published_lengths(tmp_path, source, capsys):
    assert subset_documents(100_000_000, CORPORA["c4"]) == 208_931
    assert subset_documents(100_000_000, CORPORA["slimpajama"]) == 94_513
    for name, tokens, more in (("a", 4800, ()), ("b", 9600, ()), ("c", 9600, ("--epochs", 4)), ("d", "10M", ("--epochs", 2))):
        assert run("c4", tmp_path / name, "--from", f"train={source}", "--held-out", 0, "--subset", tokens, *more) == 0
    found = {name: texts(tmp_path / name, "train") for name in "abcd"}
    assert found == {"a": TEXTS[:10], "b": TEXTS[:20], "c": TEXTS[:5], "d": TEXTS}
    assert names(tmp_path / "a") == sorted([*INDEXED[:3], *ABOUT])  # no validation was asked for
    said = capsys.readouterr().out
    assert said.count("the corpus ended before") == said.count("the corpus ended before --subset 10,000,000") == 1


def test_epochs_without_a_limit_count_the_documents(tmp_path, source, capsys):
    assert run("openwebtext", tmp_path / "o", "--from", source, "--held-out", 0, "--epochs", 4) == 0
    assert texts(tmp_path / "o", "train") == TEXTS[:57]
    assert run("openwebtext", tmp_path / "o2", "--from", source, "--epochs", 1000) == 65
    assert run("openwebtext", tmp_path / "o3", "--from", source, "--subset", "1M") == 78
    assert "c4, slimpajama" in capsys.readouterr().err


def test_tokens_are_cut_at_documents(tmp_path, source):
    assert run("fineweb", tmp_path / "o", "--from", source, "--max-tokens", "1k") == 0
    train = IndexedDataset(tmp_path / "o" / "train_text_document")
    following = next(text for text in TEXTS[train.num_documents :] if text not in texts(tmp_path / "o", "valid"))
    assert 1000 - len(following.encode()) - 1 < train.num_tokens <= 1000


def test_the_seeds_flags(tmp_path, source):
    code = prepare_corpus.main(
        [
            "openwebtext",
            "--output_dir",
            str(tmp_path / "a_b"),
            "--from",
            str(source),
            "--vocab_size=300",
            "--max_seq_len",
            "64",
            "--num_workers",
            "1",
            "--max_examples_per_split",
            "50",
            "--format",
            "memmap",
        ]
    )
    assert code == 0
    assert names(tmp_path / "a_b") == ["config.json", "corpus.json", "tokenizer.json", "train_tokens.bin", "val_tokens.bin"]
    config = json.loads((tmp_path / "a_b" / "config.json").read_text())
    assert (config["vocab_size"], config["max_seq_len"], config["dtype"]) == (300, 64, "int32")
    train = TokenFile(tmp_path / "a_b" / "train_tokens.bin")
    tokenizer = build_tokenizer("HFTokenizer", tokenizer_model=str(tmp_path / "a_b"))
    assert tokenizer.eod == config["eos_token_id"] and train.dtype == np.dtype("<i4")
    ids = train.tokens(0, train.num_tokens)
    assert (ids == tokenizer.eod).sum() == 50 and tokenizer.decode(ids[: ids.tolist().index(tokenizer.eod)]) == TEXTS[0]
    more = ["--max_examples_per_split", "50", "--full_dataset"]
    assert run("openwebtext", tmp_path / "full", "--from", source, *more) == 0
    assert sum(len(texts(tmp_path / "full", split)) for split in ("train", "valid", "test")) == 230


def test_a_trained_tokenizer_is_the_same_and_only_of_train(tmp_path, source):
    for name in ("a", "b"):
        assert run("fineweb", tmp_path / name, "--from", source, "--train-tokenizer", 320, tokenizer=()) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")
    about = known(tmp_path / "a")
    assert about["tokenizer"]["vocab_size"] == 320 and about["request"]["train_tokenizer"] == 320
    more = [{"text": text} for text in TEXTS] + [{"text": "zzzq " * 500}]
    odd = {"train": jsonl(tmp_path / "t.jsonl", more[:-1]), "valid": jsonl(tmp_path / "v.jsonl", more[-1:])}
    places = [f"{split}={path}" for split, path in odd.items()]
    assert run("fineweb", tmp_path / "c", "--from", *places, "--train-tokenizer", 320, tokenizer=()) == 0
    assert "zq" not in " ".join(json.loads((tmp_path / "c" / "tokenizer.json").read_text())["model"]["vocab"])


def test_a_tokenizer_smaller_than_asked_for_is_said(tmp_path, source, capsys):
    assert run("fineweb", tmp_path / "a", "--from", source, "--train-tokenizer", 5000, tokenizer=()) == 0
    said = capsys.readouterr().out
    assert "no pairs for all 5,000 ids" in said and f"with {known(tmp_path / 'a')['tokenizer']['vocab_size']} ids" in said


def test_papers_become_the_folder_of_papers(tmp_path):
    rows = [{"text": f"Paper {number}. " * 5, "label": number % 11} for number in range(40)]
    for split in ("train", "validation", "test"):
        jsonl(tmp_path / "in" / f"{split}.jsonl", [{**row, "text": split + row["text"]} for row in rows])
    assert run("arxiv-classification", tmp_path / "o", "--from", tmp_path / "in", "--max_examples_per_split", 30) == 0
    folder = PaperFolder(tmp_path / "o")
    assert {split: len(papers) for split, papers in folder.splits.items()} == {"train": 30, "validation": 30, "test": 30}
    paper = folder.split("validation")[12]
    assert (paper.paper_id, paper.cat) == ("validation_12", "cs.CV")
    assert bytes(folder.tokens(paper).tolist()).decode() == "validation" + rows[12]["text"]  # no end of document
    assert len(texts(tmp_path / "o", "test")) == 30
    assert run("arxiv-classification", tmp_path / "p", "--from", tmp_path / "in", "--format", "papers") == 0
    assert names(tmp_path / "p") == sorted(["index.jsonl", "splits.json", "tokens.bin", *ABOUT])


@pytest.mark.parametrize(
    "name, record",
    [
        ("alpaca", {"instruction": "Say {}", "input": "", "output": "{} it is"}),
        ("dolly", {"instruction": "Say {}", "context": "", "response": "{} it is"}),
    ],
)
def test_instructions_become_prompts_and_responses(tmp_path, name, record):
    rows = [{key: value.format(number % 100) for key, value in record.items()} for number in range(300)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert run(name, tmp_path / "o", "--from", tmp_path / "a.json", "--format", "indexed", "tensors", "--max-seq-len", 64) == 0
    found = {}
    for split in ("train", "valid", "test"):
        data = IndexedDataset(tmp_path / "o" / f"{split}_text_document")
        pairs = [
            [bytes(ids.tolist()[: -1 if part else None]).decode() for part, ids in enumerate(data.sequences(n))]
            for n in range(data.num_documents)
        ]
        assert all(prompt.startswith("### Instruction:\nSay ") and prompt.endswith("### Response:\n") for prompt, _ in pairs)
        assert all(prompt.split()[3] == response.split()[0] for prompt, response in pairs)
        found[split] = {prompt for prompt, _ in pairs}
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 100 and len(found["valid"]) == 1
    import torch

    tokens, masks = (torch.load(tmp_path / "o" / f"val_{what}.pt", weights_only=True) for what in ("tokens", "masks"))
    assert tokens.shape == masks.shape == (3, 64) and 0 < masks.sum() < masks.numel()


def test_text_can_be_kept_and_several_workers_write_the_same(tmp_path, source):
    for workers in (1, 2):
        assert run("fineweb", tmp_path / str(workers), "--from", source, "--keep-text", "--workers", workers) == 0
    assert content(tmp_path / "1") == content(tmp_path / "2")
    kept = [json.loads(line)["text"] for line in (tmp_path / "1" / "train.jsonl").read_text().splitlines()]
    assert kept == texts(tmp_path / "1", "train")


def test_bad_records_stop_it_or_are_listed(tmp_path, source, capsys):
    with open(source, "a") as file:
        file.write('{"body": 1}\n{"text": "last"}\n')
    assert run("fineweb", tmp_path / "o", "--from", source) == 65
    assert "corpus.jsonl:231: missing key" in capsys.readouterr().err and "train_text_document.idx" not in names(tmp_path / "o")
    assert run("fineweb", tmp_path / "o", "--from", source, "--on-bad-line", "skip", "--train-tokenizer", 300, tokenizer=()) == 0
    assert [json.loads(line)["line"] for line in (tmp_path / "o" / "rejects.jsonl").read_text().splitlines()] == [231]
    assert known(tmp_path / "o")["skipped_records"] == 1 and "1 records skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, code, said",
    [
        (["nowhere.jsonl"], 66, "no such file"),
        (["{source}", "--format", "papers"], 2, "--format papers is not for fineweb"),
        (["{source}", "--train-tokenizer", "100"], 2, "257 ids are the least"),
        (["{source}", "--max-tokens", "0.5"], 2, "whole number"),
        (["{source}", "--max-tokens", "3"], 65, "the first document has"),
        (["valid={source}"], 66, "train=PATH"),
        (["{source}", "--hub", "a/b"], 2, "--hub"),
        (["{source}", "--upload-to-s3"], 2, "--s3-bucket"),
        (["{source}", "--held-out", "0.5"], 2, "--held-out"),
    ],
)
def test_mistakes_of_the_command_line(tmp_path, source, capsys, args, code, said):
    words = ["--from", *(word.format(source=source) for word in args)]
    if code == 2:
        with pytest.raises(SystemExit) as caught:
            run("fineweb", tmp_path / "o", *words)
        assert caught.value.code == 2
    else:
        assert run("fineweb", tmp_path / "o", *words) == code
    assert said in capsys.readouterr().err


def test_a_name_without_a_split_beside_others_is_not_guessed(tmp_path, source, capsys):
    jsonl(tmp_path / "in" / "train.jsonl", [{"text": "a"}])
    assert run("fineweb", tmp_path / "o", "--from", tmp_path / "in") == 66
    assert "corpus.jsonl: its name says no split" in capsys.readouterr().err


# ---- interruptions


@pytest.mark.parametrize("where", ["gathering", "tokenizing", "publishing"])
def test_an_interrupted_run_goes_on_and_shows_nothing_before(tmp_path, source, monkeypatch, where):
    monkeypatch.setattr(corpus_text, "SAVE_BYTES", 500)
    assert run("fineweb", tmp_path / "whole", "--from", source, "--format", "indexed", "memmap") == 0

    def stop(*args, **named):
        raise KeyboardInterrupt

    add, preprocess, replaced = corpus_text.Gathering.add, pipeline.preprocess, os.replace
    calls = []

    def third(act):
        def counted(*args, **named):
            calls.append(args)
            return stop() if len(calls) == {"gathering": 150, "tokenizing": 2, "publishing": 5}[where] else act(*args, **named)

        return counted

    with monkeypatch.context() as patch:
        if where == "gathering":
            patch.setattr(corpus_text.Gathering, "add", third(add))
        elif where == "tokenizing":
            patch.setattr(pipeline, "preprocess", third(preprocess))
        else:
            moved = third(replaced)
            patch.setattr(pipeline.os, "replace", lambda a, b: moved(a, b) if "out" in Path(a).parts else replaced(a, b))
        assert run("fineweb", tmp_path / "cut", "--from", source, "--format", "indexed", "memmap") == 130
    assert "corpus.json" not in names(tmp_path / "cut")
    if where != "publishing":
        assert names(tmp_path / "cut") == [".prepare"]
    assert run("fineweb", tmp_path / "cut", "--from", source, "--format", "indexed", "memmap") == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole") and names(tmp_path / "cut") == names(tmp_path / "whole")


def test_a_killed_run_goes_on(tmp_path):
    pipe, whole = tmp_path / "in.jsonl", tmp_path / "all.jsonl"
    jsonl(whole, [{"text": text} for text in TEXTS])
    os.mkfifo(pipe)
    command = [
        sys.executable,
        str(ROOT / "tools" / "prepare_corpus.py"),
        "fineweb",
        "--output",
        str(tmp_path / "o"),
        "--from",
        str(pipe),
        *BYTES,
    ]
    tool = subprocess.Popen(command, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    try:
        while not (tmp_path / "o" / ".prepare" / "text").exists() and time.monotonic() < end:
            time.sleep(0.05)
        again = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert again.returncode == 73 and "another process" in again.stderr  # and one at a time
    finally:
        tool.kill()
        tool.communicate()
    assert names(tmp_path / "o") == [".prepare"]
    assert run("fineweb", tmp_path / "o", "--from", whole) == 0  # another request: the rest of the first is cleared
    assert sum(len(texts(tmp_path / "o", split)) for split in ("train", "valid", "test")) == len(TEXTS)


# ---- the Hub and stores


def test_the_hub_is_streamed_pinned_and_limited(tmp_path, monkeypatch, capsys):
    asked, read = [], []

    def load(name, config, *, split, revision, streaming):
        asked.append((name, config, split, revision, streaming))
        return (read.append(split) or {"text": f"{split} {text}", "url": "u"} for text in TEXTS)

    errors = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load, exceptions=errors))
    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(dataset_info=lambda name, revision: SimpleNamespace(sha="c0ffee"))
    )
    assert run("c4", tmp_path / "o", "--max-documents", 20) == 0
    assert asked == [("allenai/c4", "en", split, "c0ffee", True) for split in ("train", "validation")]
    assert texts(tmp_path / "o", "train") == [f"train {text}" for text in TEXTS[:20]]
    assert len(texts(tmp_path / "o", "valid")) + len(texts(tmp_path / "o", "test")) in range(30, 41)
    assert len(read) < 80  # and no further than needed
    assert known(tmp_path / "o")["source"]["revision"] == "c0ffee"
    assert run("c4", tmp_path / "o", "--max-documents", 20) == 0 and "nothing to do" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert run("c4", tmp_path / "o2") == 66 and "Python package datasets" in capsys.readouterr().err


@pytest.fixture
def store():
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return files


def test_there_and_back_through_a_store(tmp_path, source, store, monkeypatch, capsys):
    store.pipe_file("/raw/corpus.jsonl.gz", gzip.compress(source.read_bytes()))
    monkeypatch.setattr(prepare_corpus.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    assert run("fineweb", "memory://made/fw", "--from", "memory://raw") == 0
    assert run("fineweb", tmp_path / "local", "--from", source) == 0
    assert store.cat_file("/made/fw/train_text_document.bin") == (tmp_path / "local" / "train_text_document.bin").read_bytes()
    assert not list((tmp_path / "tmp").iterdir())
    capsys.readouterr()
    assert run("fineweb", "memory://made/fw", "--from", "memory://raw") == 0 and "nothing to do" in capsys.readouterr().out
    assert run("fineweb", "memory://made/fw", "--from", "memory://raw", "--max-documents", 9) == 73
    assert run("fineweb", tmp_path / "back", "--download-from", "memory://made/fw/") == 0
    assert content(tmp_path / "back") == content(tmp_path / "local")
    assert run("fineweb", tmp_path / "back", "--download-from", "memory://made/fw/") == 0
    assert "already there" in capsys.readouterr().out


def test_what_was_uploaded_is_checked_when_it_comes_back(tmp_path, source, store, capsys):
    assert run("fineweb", tmp_path / "a", "--from", source, "--upload-to", "memory://made/fw") == 0
    assert "uploaded" in capsys.readouterr().out
    assert run("fineweb", tmp_path / "a", "--from", source, "--upload-to", "memory://made/fw") == 0
    assert "already there" in capsys.readouterr().out
    data = bytearray(store.cat_file("/made/fw/train_text_document.bin"))
    data[100] ^= 1
    store.pipe_file("/made/fw/train_text_document.bin", bytes(data))
    assert run("fineweb", tmp_path / "b", "--download-from", "memory://made/fw") == 65
    assert "train_text_document.bin: its sha256" in capsys.readouterr().err and "corpus.json" not in names(tmp_path / "b")
    assert run("c4", tmp_path / "c", "--download-from", "memory://made/fw") == 78
    store.rm_file("/made/fw/corpus.json")  # as an upload that did not end leaves it
    assert run("fineweb", tmp_path / "b", "--download-from", "memory://made/fw", "--from", source) == 0
    assert "holds no finished corpus" in capsys.readouterr().out and content(tmp_path / "b") == content(tmp_path / "a")


def test_the_seeds_store_flags_name_an_s3_folder(tmp_path, source, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert run("fineweb", tmp_path / "o", "--from", source, "--download_from_s3", "--s3_bucket", "b", "--s3_prefix", "p/q") == 66
    assert "s3://b/p/q" in capsys.readouterr().err


# ---- published data


@pytest.mark.parametrize(
    "name, file, train, more",
    [
        ("c4", "c4/c4_demo_a.jsonl", 146, []),
        ("slimpajama", "arxiv/arxiv_fulltext_latex_a.jsonl", 13, []),
        ("fineweb", "gutenberg", 10, ["--strip-gutenberg"]),
        ("openwebtext", "speeches/inaugural.jsonl", 57, []),
        ("wikitext103", "wikitext-2/valid.txt", 58, []),
        ("tinystories", "tinystories/tinystories_a.txt", 818, []),
        ("arxiv-classification", "arxiv/arxiv_abstracts_a.jsonl", 1960, []),
        ("alpaca", "instruct/alpaca_en_demo.json", 979, []),
        ("dolly", "instruct/litgpt_dolly_fixture.json", 10, []),
    ],
)
def test_every_corpus_from_published_files(tmp_path, name, file, train, more, capsys):
    if not (SHARED / file).exists():
        pytest.skip(f"{file} of the shared data is not here")
    assert run(name, tmp_path / "o", "--from", SHARED / file, *more) == 0
    assert known(tmp_path / "o")["splits"]["train"]["documents"] == train and set(INDEXED) <= set(names(tmp_path / "o"))


# ---- one's own corpora, and the kinds of files


def test_a_corpus_of_ones_own_from_tables_and_arrays(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "body"), *enumerate(TEXTS[:100])])
    (tmp_path / "in" / "b.json").write_text(json.dumps([{"body": text} for text in TEXTS[100:]], indent=1))
    more = ["--from", tmp_path / "in", "--held-out", 0, "--json-key", "body"]
    assert run("mine", tmp_path / "o", *more, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert texts(tmp_path / "o", "train") == TEXTS and said["corpus"] == "mine" and said == known(tmp_path / "o")
    assert run("mine", tmp_path / "o", *more) == 0 and "nothing to do" in capsys.readouterr().out
    for name, words, wrong in (
        ("mine", (), "name your own files with --from"),
        ("../x", ("--from", "a"), "no name for a corpus"),
    ):
        with pytest.raises(SystemExit):
            run(name, tmp_path / "p", *words)
        assert wrong in capsys.readouterr().err


def test_what_is_skipped_is_what_preprocessing_skips(tmp_path, capsys):
    lines = [
        b'{"text": "good"}',
        b'{"text": "\xff"}',
        b'{"text": "' + b"x" * 999 + b'"}',
        b"[" * 9999,
        b'{"text": 3}',
        b"[1]",
        b"5",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "end"}']))
    (tmp_path / "b.txt").write_bytes(b"fine\n\xff\n")
    inputs, more = [tmp_path / "a.jsonl", tmp_path / "b.txt"], ["--on-bad-line", "skip", "--max-line-bytes", "500"]
    assert run("mine", tmp_path / "o", "--from", *inputs, *more, "--held-out", 0) == 0
    words = ["--input", *inputs, "--output-prefix", tmp_path / "p" / "out", *more, *BYTES]
    assert preprocess_data.main(list(map(str, words))) == 0
    found = []
    for path in (tmp_path / "o" / "rejects.jsonl", tmp_path / "p" / "out.rejects.jsonl"):
        rows = [row for row in map(json.loads, path.read_text().splitlines()) if "file" in row]
        found.append([(row["file"], row["line"]) for row in rows])
    assert found[0] == found[1] and [line for _, line in found[0]] == [2, 3, 4, 5, 6, 7, 0]
    assert texts(tmp_path / "o", "train") == ["good", "end"]


def test_too_few_documents_give_up_the_test_split_that_nobody_asked_for(tmp_path, capsys):
    two = jsonl(tmp_path / "two.jsonl", [{"text": "a"}, {"text": "b"}])
    assert run("mine", tmp_path / "o", "--from", two) == 0 and list(known(tmp_path / "o")["splits"]) == ["train", "valid"]
    assert run("mine", tmp_path / "p", "--from", two, "--held-out", 0.1) == 65
    assert "2 documents are too few: valid and test of 1/10 each would take 2 and leave train none" in capsys.readouterr().err
    assert run("mine", tmp_path / "q", "--from", jsonl(tmp_path / "one.jsonl", [{"text": "a"}])) == 65
    parts = [f"{split}={two}" for split in ("train", "valid", "test")]
    assert run("mine", tmp_path / "r", "--from", *parts, "--held-out", 0.1) == 78


def test_a_planted_folder_for_a_url_is_not_followed(tmp_path, source, store, monkeypatch, capsys):
    """In a shared temporary folder anybody can make one of a name that can be known."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(prepare_corpus.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp" / f"prepare_corpus-{os.geteuid()}").symlink_to(tmp_path / "theirs")
    assert run("mine", "memory://made/x", "--from", source) == 73
    assert "is a symbolic link" in capsys.readouterr().err and not list((tmp_path / "theirs").iterdir())
    (tmp_path / "o").mkdir()
    for name in (".lock", ".prepare"):
        (tmp_path / "o" / name).symlink_to(tmp_path / "theirs" / "file")
        assert run("mine", tmp_path / "o", "--from", source) == 73
        (tmp_path / "o" / name).unlink()
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        ["--tokenizer-megabytes", "3"],
        ["--s3-bucket", "b"],
        ["--train-tokenizer", "300"],  # beside --tokenizer-type
        ["--hub", "a/b"],
    ],
)
def test_no_flag_is_ignored(tmp_path, source, flags):
    with pytest.raises(SystemExit) as caught:
        run("mine", tmp_path / "o", "--from", source, *flags)
    assert caught.value.code == 2


def test_a_dangling_link_is_a_missing_input(tmp_path, capsys):
    jsonl(tmp_path / "in" / "a.jsonl", [{"text": "a"}])
    (tmp_path / "in" / "b.jsonl").symlink_to(tmp_path / "gone")
    for place in (tmp_path / "in", tmp_path / "in" / "b.jsonl"):
        assert run("mine", tmp_path / "o", "--from", place) == 66
        assert "b.jsonl: is a link to" in capsys.readouterr().err
