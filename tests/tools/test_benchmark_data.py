"""The data benchmark at toy size, with stand-ins for megatron-core's interpreter. No absolute time is asserted."""

import json
import sys

import numpy as np
import pytest

from megatron.data.indexed import IndexedDataset
from megatron.data.tokenizer import END_OF_TEXT, byte_symbols
from megatron.errors import Refusal
from tools import benchmark_data, benchmark_data_peers
from tools.benchmark_data import Given

NO_CORE = "not measured: megatron-core is not installed"


def given(folder, **changed):
    usual = {
        "megabytes": 0.01,
        "documents": [3000],
        "epochs": [1, 4],
        "rounds": 1,
        "peer_python": None,
        "vocab_file": None,
        "merge_file": None,
        "folder": folder,
    }
    return Given(**(usual | changed))


@pytest.mark.parametrize(
    "argv", [["indxe"], ["--rounds", "0"], ["--documents", "0"], ["--epochs", "1.5"], ["--megabytes", "nan"], ["--megabyte", "3"]]
)
def test_bad_flags_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as left:
        benchmark_data.main(argv)
    assert left.value.code == 2 and argv[0] in capsys.readouterr().err


def test_counts_and_names_are_read():
    found = benchmark_data.parse(["index", "--documents", "1M", "100M", "--epochs", "4"])
    assert (found.names, found.documents, found.epochs) == (["index"], [10**6, 10**8], [4])


def test_a_sparse_corpus_is_a_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_data, "DOCUMENT_BLOCK", 700)
    benchmark_data.write_sparse_corpus(str(tmp_path / "a"), 3000)
    corpus = IndexedDataset(tmp_path / "a")  # checks the whole index
    assert corpus.num_documents == 3000 and 0.8 < corpus.num_tokens / 3e6 < 1.2
    assert (tmp_path / "a.bin").stat().st_blocks * 512 < 100_000 < (tmp_path / "a.bin").stat().st_size


def test_without_megatron_core_ours_is_measured_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_data, "ACCESS_TOKENS", 200_000)
    monkeypatch.setattr(benchmark_data, "PICKS", 64)
    rows = benchmark_data.index(given(tmp_path)) + benchmark_data.access(given(tmp_path))
    assert [row.verdict().startswith(NO_CORE) for row in rows] == [True] * 8
    assert all(row.ours and row.numbers for row in rows)
    assert [row.what for row in rows[:2]] == ["strict, 0.003M documents, 1 epoch", "reference, 0.003M documents, 1 epoch"]
    assert not list(tmp_path.glob("documents-*"))


@pytest.mark.parametrize("python", [sys.executable, "no-such-python"])
def test_an_interpreter_without_megatron_core_is_said(tmp_path, python):
    assert given(tmp_path, peer_python=python).without_core.startswith("megatron-core is not installed for --peer-python: ")


def test_ratios_with_megatron_core(tmp_path, monkeypatch):
    """A stand-in for the peer: twice our memory, and time without end."""
    monkeypatch.setattr(Given, "without_core", None)
    asked = []

    def peer(python, name, *given):
        asked.append((python, name, *given[1:]))
        return benchmark_data.Spent(1.0, 1.0, 'a warning\n{"cpu": 1e9, "mebibytes": 1e6, "one": 1e9}\n')

    monkeypatch.setattr(benchmark_data, "peer", peer)
    found = {"strict_index": {"cpu": 1.0, "mebibytes": 1e5}, "our_access": {"one by one": 50.0}}
    found["reference_index"] = found["strict_index"]
    monkeypatch.setattr(benchmark_data, "ours", lambda name, *_: found[name])
    rows = benchmark_data.index(given(tmp_path, peer_python="python", epochs=[4]))
    assert [(row.ratio, row.gate) for row in rows] == [(10.0, None)] * 2  # of time and memory the worse
    assert benchmark_data.index_row("strict", "a", 10**7, 4, {"cpu": 9.0, "mebibytes": 1e7}, "").verdict() == "FAILED"
    assert benchmark_data.access(given(tmp_path, peer_python="python"))[0].ratio == 1e9 / 50
    assert asked == [("python", "core_index", 2048, 4), ("python", "core_access", 2048, 4096, 1)]


def test_what_does_not_fit_is_not_built(monkeypatch):
    assert "GiB are free" in benchmark_data.too_large(20, 10**12) and benchmark_data.too_large(20, 10) is None
    row = benchmark_data.index_row("reference", "a", 10**8, 10**4, None, "")
    assert row.verdict().startswith("not measured: it takes about 8382 GiB")


def test_the_text_is_the_same_every_time_and_of_the_size_asked_for(tmp_path, monkeypatch):
    for name in "ab":
        benchmark_data.write_text(tmp_path / name, 0.1)
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes() and 100_000 <= len(data) < 110_000
    monkeypatch.setattr(benchmark_data, "library_texts", lambda: iter(["one two three"]))
    benchmark_data.write_text(tmp_path / "c", 1e-4)
    assert [json.loads(line)["text"].split()[0] for line in (tmp_path / "c").open()] == ["one", "two", "three", "one"]


def test_tokenization_is_compared_on_the_same_bytes(tmp_path):
    vocab, merges = tmp_path / "v.json", tmp_path / "m.txt"
    vocab.write_text(json.dumps({symbol: n for n, symbol in enumerate([*byte_symbols(), "th", END_OF_TEXT])}))
    merges.write_text("#version: 0.2\nt h\n")
    rows = benchmark_data.tokenization(given(tmp_path, vocab_file=str(vocab), merge_file=str(merges)))
    assert [row.what.split()[-1] for row in rows] == ["tiktoken", "gigatoken"]
    for row in rows:
        assert row.why.endswith("is not installed") or (row.ratio > 0 and row.gate is None and row.numbers["tokens"] > 5000)
    with pytest.raises(Refusal, match="differ"):
        benchmark_data.check_same_bytes(vocab, merges)


def test_the_meter_sees_what_is_held():
    with benchmark_data_peers.Meter() as meter:
        held = np.ones(2 * int(benchmark_data_peers.peak_mebibytes()) << 17)
    assert held.nbytes / 2**20 / 3 < meter.mebibytes < held.nbytes / 2**20 + 50 and meter.cpu > 0


def test_json_and_check(tmp_path, monkeypatch, capsys):
    row = benchmark_data.Row(section="index", what="it", ours="1", peer="2", ratio=2.0, gate=10, numbers={"cpu": 1.0})
    monkeypatch.setattr(benchmark_data, "SECTIONS", {"index": lambda flags: [row]})
    assert benchmark_data.main(["--json", str(tmp_path / "out.json"), "--folder", str(tmp_path)]) == 0
    assert benchmark_data.main(["--check"]) == 1 and "gate failed: index: it: 2.000" in capsys.readouterr().err
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert found["numbers"] == {"cpu": 1.0} and found["verdict"] == "FAILED" and found["ratio"] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
