"""Instruction files become pairs of token sequences, in Megatron's format and as tensors, and no prompt is on both sides."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron.data.indexed import IndexedDataset
from megatron.data.instruct import Instruct, prompt_of
from megatron.data.lineage import shared
from megatron.data.tokenizer import build_tokenizer
from tools import prepare_instruct

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def alpaca(n=40):
    return [{"instruction": f"Say {i // 2}", "input": "x" if i % 4 == 0 else "", "output": f"answer {i}"} for i in range(n)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(alpaca()))
    return path


def run(tmp_path, source, *more, name="p"):
    return prepare_instruct.main(
        [
            "--input",
            str(source),
            "--output-prefix",
            str(tmp_path / "out" / name),
            "--tokenizer-type",
            "ByteTokenizer",
            *map(str, more),
        ]
    )


def pairs_of(prefix):
    """(prompt, response) texts of a corpus of bytes; every response must end with the eod."""
    corpus, found = IndexedDataset(prefix), []
    for n in range(corpus.num_documents):
        prompt, response = corpus.sequences(n)
        assert response[-1] == 256 and (response[:-1] < 256).all()
        found.append((bytes(prompt.tolist()).decode(), bytes(response[:-1].tolist()).decode()))
    return found


def wanted(record):
    return prompt_of(record["instruction"], record["input"]), record["output"]


def test_all_pairs_come_out_in_order_and_prompts_are_on_one_side(tmp_path, source, capsys):
    assert run(tmp_path, source, "--valid-fraction", 0.2) == 0
    train, valid = (pairs_of(tmp_path / "out" / f"p_{split}") for split in ("train", "valid"))
    everything = [wanted(record) for record in alpaca()]
    assert train == [pair for pair in everything if pair not in valid] and valid == [pair for pair in everything if pair in valid]
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in valid} and 8 <= len(valid) <= 9
    assert f"p_train: {len(train)} pairs" in capsys.readouterr().out
    meta = json.loads((tmp_path / "out" / "p_train.meta.json").read_text())
    assert meta["tokenizer"]["type"] == "ByteTokenizer" and meta["tokenizer"]["eod"] == 256


def test_the_choice_depends_on_the_seed_and_not_on_the_files_order(tmp_path, source):
    (tmp_path / "turned.json").write_text(json.dumps(alpaca()[::-1]))
    chosen = []
    for name, path, seed in (("a", source, 0), ("b", tmp_path / "turned.json", 0), ("c", source, 1)):
        assert run(tmp_path, path, "--valid-fraction", 0.3, "--seed", seed, name=name) == 0
        chosen.append(sorted(pairs_of(tmp_path / "out" / f"{name}_valid")))
    assert chosen[0] == chosen[1] != chosen[2]
    assert run(tmp_path, source, "--valid-fraction", 0, name="d") == 0
    assert len(pairs_of(tmp_path / "out" / "d_train")) == 40 and not (tmp_path / "out" / "d_valid.bin").exists()


def test_files_of_several_formats_go_together(tmp_path, source):
    (tmp_path / "d.jsonl").write_text('{"instruction": "a", "context": "b", "response": "c", "category": "x"}\n')
    (tmp_path / "p.jsonl").write_text('{"prompt": "whole", "response": "r"}\n')
    assert run(tmp_path, source, "--input", tmp_path / "d.jsonl", tmp_path / "p.jsonl", "--valid-fraction", 0) == 0
    assert pairs_of(tmp_path / "out" / "p_train")[40:] == [(prompt_of("a", "b"), "c"), ("whole", "r")]
    (tmp_path / "own.json").write_text('[{"q": "why", "more": "b", "a": "so"}]')
    assert run(tmp_path, tmp_path / "own.json", "--keys", "q", "more", "a", "--valid-fraction", 0, name="own") == 0
    assert pairs_of(tmp_path / "out" / "own_train") == [(prompt_of("why", "b"), "so")]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"instruction": "a", "output": ""}, "record 3: no text: 'output' is blank"),
        ({"instruction": "a"}, "record 3: missing key"),
        ({"instruction": 1, "output": "b"}, "record 3: not a string"),
        (5, "record 3: no object"),
    ],
)
def test_bad_records_end_it_or_are_counted(tmp_path, record, said, capsys):
    (tmp_path / "a.json").write_text(json.dumps([*alpaca(2), record, *alpaca(4)]))
    assert run(tmp_path, tmp_path / "a.json") == 65
    error = capsys.readouterr().err
    assert f"a.json: {said}" in error and error.count("\n") == 1 and not list((tmp_path).glob("out/*"))
    assert run(tmp_path, tmp_path / "a.json", "--on-bad", "skip", "--valid-fraction", 0) == 0
    assert "1 records skipped: 1 " in capsys.readouterr().out and len(pairs_of(tmp_path / "out" / "p_train")) == 6


def test_what_cannot_be_split_or_recognized_is_refused(tmp_path, capsys):
    (tmp_path / "one.json").write_text(json.dumps(alpaca(1)))
    assert run(tmp_path, tmp_path / "one.json") == 65 and "leave none to train on" in capsys.readouterr().err
    (tmp_path / "texts.json").write_text('[{"text": "a"}]')
    assert run(tmp_path, tmp_path / "texts.json") == 65 and "has the keys 'text'" in capsys.readouterr().err
    (tmp_path / "none.json").write_text("[]")
    assert run(tmp_path, tmp_path / "none.json") == 65 and "none.json: no pair;" in capsys.readouterr().err


# Tensors for other trainers


def test_tensors(tmp_path, source):
    length = 50
    assert run(tmp_path, source, "--write-pt", tmp_path / "pt", "--max-seq-len", length, "--valid-fraction", 0.2) == 0
    assert sorted(path.name for path in (tmp_path / "pt").iterdir()) == [
        "config.json",
        "tokenizer.json",
        "train_masks.pt",
        "train_tokens.pt",
        "val_masks.pt",
        "val_tokens.pt",
    ]
    assert build_tokenizer("HFTokenizer", tokenizer_model=str(tmp_path / "pt")).encode("hi").tolist() == [104, 105]
    for split, corpus in (("train", "train"), ("val", "valid")):
        tokens, masks = (torch.load(tmp_path / "pt" / f"{split}_{what}.pt", weights_only=True) for what in ("tokens", "masks"))
        pairs = [(p, r) for p, r in pairs_of(tmp_path / "out" / f"p_{corpus}") if len(p) < length]
        assert tokens.shape == masks.shape == (len(pairs), length) and set(masks.unique().tolist()) == {0, 1}
        for row, mask, (prompt, response) in zip(tokens, masks, pairs, strict=True):
            ids = [*prompt.encode(), *response.encode(), 256][:length]
            assert row.tolist() == ids + [256] * (length - len(ids))
            assert mask.tolist() == [int(len(prompt) <= at < len(ids)) for at in range(length)]
    config = json.loads((tmp_path / "pt" / "config.json").read_text())
    assert config["vocab_size"] == 257 and config["max_seq_len"] == length and config["pad_token_id"] == 256
    assert config["val_rows"] == len(pairs)


def test_overwrite_leaves_nothing_old(tmp_path, source, capsys):
    pt = ["--write-pt", tmp_path / "pt", "--max-seq-len", 50]
    assert run(tmp_path, source, *pt) == 0 and run(tmp_path, source, *pt) == 73 and "exists" in capsys.readouterr().err
    assert run(tmp_path, source, *pt, "--overwrite", "--valid-fraction", 0) == 0
    assert {path.name for path in (tmp_path / "pt").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "train_masks.pt",
        "train_tokens.pt",
    }
    assert not list((tmp_path / "out").glob("p_valid*"))


def test_tensors_are_read_back(tmp_path, source):
    assert run(tmp_path, source, "--write-pt", tmp_path / "pt", "--max-seq-len", 200) == 0
    assert (
        prepare_instruct.main(
            [
                "--from-pt",
                str(tmp_path / "pt"),
                "--output-prefix",
                str(tmp_path / "out" / "q"),
                "--tokenizer-type",
                "ByteTokenizer",
            ]
        )
        == 0
    )
    for split in ("train", "valid"):
        for end in (".bin", ".idx"):
            assert (tmp_path / "out" / f"q_{split}{end}").read_bytes() == (tmp_path / "out" / f"p_{split}{end}").read_bytes()


class Armed:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


TOKENS, MASKS = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]]), torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]])


@pytest.mark.parametrize(
    ("tokens", "masks", "said"),
    [
        (TOKENS, MASKS[:1], r"train_masks.pt: is \[1, 4\]"),
        (TOKENS, MASKS * 2, "values 0 to 2"),
        (TOKENS, 1 - MASKS, "row 0 marks 2 places from 0 on"),
        (TOKENS, torch.zeros_like(MASKS), "row 0 marks 0 places"),
        (TOKENS, torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1]]), "row 1 marks 2 places from 1 on"),
        (TOKENS + 250, MASKS, "train_tokens.pt: row 0 has ids 255 to 258, expected 0 or more and below 257"),
        (TOKENS + 0.5, MASKS, "train_tokens.pt: holds torch.float32"),
        ({"a": 1}, MASKS, "train_tokens.pt: holds dict"),
        (None, MASKS, "No such file"),
        (b"no archive", MASKS, "train_tokens.pt: is not a tensor"),
        (Armed, MASKS, "is not a tensor that can be read safely"),
    ],
)
def test_tensors_that_are_no_pairs(tmp_path, capsys, tokens, masks, said):
    path = tmp_path / "train_tokens.pt"
    if isinstance(tokens, bytes):
        path.write_bytes(tokens)
    elif tokens is not None:
        torch.save(Armed(tmp_path / "ran") if tokens is Armed else tokens, path)
    torch.save(masks, tmp_path / "train_masks.pt")
    assert prepare_instruct.main(
        ["--from-pt", str(tmp_path), "--output-prefix", str(tmp_path / "out" / "q"), "--tokenizer-type", "ByteTokenizer"]
    ) == (66 if tokens is None else 65)
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--write-pt", "x"],
        ["--from-pt", "x"],
        ["--max-seq-len", 9],
        ["--keys", "a"],
        ["--valid-fraction", 1],
        ["--keys", "a", "b", "--format", "dolly"],
    ],
)
def test_flags_that_do_not_go_together(tmp_path, source, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, source, *flags)
    assert ended.value.code == 2 and flags[0] in capsys.readouterr().err


# Published files


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("alpaca_en_demo.json", 999),
        ("litgpt_alpaca_fixture.json", 23),
        ("litgpt_dolly_fixture.json", 12),
        ("dolly_format.jsonl", 500),
        ("dolly_hhrlhf_prompt_response.jsonl", 500),
    ],
)
def test_published_files(tmp_path, name, count):
    path = SHARED / "instruct" / name
    vocab, merges = (SHARED / "tokenizers" / f"gpt2-{kind}" for kind in ("vocab.json", "merges.txt"))
    if not all(file.exists() for file in (path, vocab, merges)):
        pytest.skip(f"needs ../shared/data/instruct/{name} and GPT-2's files beside the repository")
    code = prepare_instruct.main(
        ["--input", str(path), "--output-prefix", str(tmp_path / "p"), "--vocab-file", str(vocab), "--merge-file", str(merges)]
    )
    train, valid = (Instruct(str(tmp_path / f"p_{split}"), 512, 1, 50257, 50256) for split in ("train", "valid"))
    assert code == 0 and len(train.lengths) + len(valid.lengths) == count
    numbers = np.arange(len(train.kept))
    rows, scored = train.rows(numbers), train.scored(numbers)
    train.check_ids(rows, numbers)
    assert scored.any(1).all() and (scored[:, :-1].sum(1) + train.given[train.documents(numbers)] <= 512).all()
    whole = train.lengths[train.documents(numbers)] <= 512
    last = scored.shape[1] - 1 - scored[:, ::-1].argmax(1)
    assert (rows[whole, last[whole]] == 50256).all()


def test_nested_records_are_reached_by_a_path(tmp_path, capsys):
    """As Self-Instruct's seed tasks keep them."""
    rows = [{"instruction": f"Do {n}", "instances": [{"input": f"in {n}", "output": f"out {n}"}]} for n in range(3)]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path, whole = tmp_path / "seeds.jsonl", ["--valid-fraction", 0]
    assert run(tmp_path, path, "--response", "instances.0.output", *whole, name="a") == 0
    more = ["--prompt", "instances.0.input", "--response", "instances.0.output", "--json"]
    assert run(tmp_path, path, *more, *whole, name="b") == 0
    more = ["--instruction", "instruction", "--context", "instances.0.input", "--response", "instances.0.output"]
    assert run(tmp_path, path, *more, *whole, name="c") == 0
    found = [pairs_of(tmp_path / "out" / f"{name}_train")[1] for name in "abc"]
    assert found == [(prompt_of("Do 1"), "out 1"), ("in 1", "out 1"), (prompt_of("Do 1", "in 1"), "out 1")]
    assert json.loads([line for line in capsys.readouterr().out.splitlines() if line[0] == "{"][0])["pairs"] == 3
    assert run(tmp_path, path, "--response", "instances.1.output", *whole, name="d") == 65
    assert "missing key: has no 'instances.1.output'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--from-pt", "x", "--seed", "3"], ["--input", "a", "--prompt", "x"], ["--input", "a", "--keys", "a", "b", "--prompt", "x"]],
)
def test_a_flag_that_would_not_be_read_is_usage(tmp_path, flags):
    with pytest.raises(SystemExit) as caught:
        prepare_instruct.main([*flags, "--output-prefix", str(tmp_path / "p")])
    assert caught.value.code == 2


def test_a_corpus_says_what_it_was_made_of(tmp_path, source):
    """So that two of one file are not trained on and validated by, but for the two sides of one split."""
    assert run(tmp_path, source) == 0 and run(tmp_path, source, "--seed", 1, name="q") == 0
    train, valid, other = (IndexedDataset(tmp_path / "out" / name) for name in ("p_train", "p_valid", "q_valid"))
    spans = [(found, 0, found.num_tokens) for found in (train, valid, other)]
    assert shared(spans[0], spans[1]) is None and shared(spans[0], spans[2]) == f"the documents of {source}"
