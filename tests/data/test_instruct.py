import json

import numpy as np
import pytest
import torch

from megatron.batch import Clean, Noise
from megatron.data.indexed import IndexedWriter
from megatron.data.instruct import FORMATS, BadRecord, Instruct, Keys, encode_pair, pair_of, prompt_of, read_records, recognized
from megatron.data.tokenizer import build_tokenizer
from megatron.errors import BadData, MissingInput
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion
from megatron.training.evaluate import Slice

EOD = 99


def corpus(tmp_path, sizes):
    """Pairs whose prompts are 1, 1, ... and whose responses 2, 2, ..., eod."""
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for prompt, response in sizes:
            writer.add_document(np.array([1] * prompt + ([2] * (response - 1) + [EOD])[:response]), lengths=[prompt, response])
    return str(tmp_path / "c")


def dataset(tmp_path, sizes, seq_length=8):
    return Instruct(corpus(tmp_path, sizes), seq_length, 1, 100, EOD)


# Records


def test_the_template():
    assert prompt_of("Say hi", "to Ann") == "### Instruction:\nSay hi\n\n### Input:\nto Ann\n\n### Response:\n"
    assert prompt_of("Say hi") == prompt_of("Say hi", " \n") == "### Instruction:\nSay hi\n\n### Response:\n"


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("alpaca", {"instruction": "I", "input": "C", "output": "R"}),
        ("dolly", {"instruction": "I", "context": "C", "response": "R"}),
    ],
)
def test_formats(name, record):
    keys = FORMATS[name]
    pair = pair_of(record, keys)
    assert recognized("f:1", record) == keys and (pair.prompt, pair.response) == (prompt_of("I", "C"), "R")
    for empty in ({keys.context: ""}, {keys.context: None}):
        assert pair_of(record | empty, keys).prompt == prompt_of("I")
    del record[keys.context]
    assert pair_of(record, keys).prompt == prompt_of("I")


def test_prompts_of_pairs_stay_as_they_are_and_keys_can_be_ones_own():
    record = {"prompt": "P", "response": "R", "question": "Q", "answer": "A", "why": "W"}
    assert recognized("f:1", record) == FORMATS["pairs"] and pair_of(record, FORMATS["pairs"]).prompt == "P"
    assert pair_of(record, Keys("question", "answer", "why")).prompt == prompt_of("Q", "W")
    with pytest.raises(BadData, match="f:1: has the keys 'text', expected instruction and output"):
        recognized("f:1", {"text": "a"})


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (["a"], "no object"),
        ({"instruction": "a"}, "missing key"),
        ({"instruction": "a", "output": 3}, "not a string"),
        ({"instruction": "a", "output": " \n"}, "no text"),
        ({"instruction": "", "output": "b"}, "no text"),
        ({"instruction": "a", "input": ["x"], "output": "b"}, "not a string"),
        ({"instruction": "a", "output": "\ud800"}, "invalid UTF-8"),
    ],
)
def test_records_that_are_no_pairs(record, kind):
    with pytest.raises(BadRecord) as caught:
        pair_of(record, FORMATS["alpaca"])
    assert caught.value.args[0] == kind


def test_arrays_and_lines_are_read_alike(tmp_path):
    records = [{"prompt": str(n), "response": "r\u2028\n"} for n in range(3)]
    (tmp_path / "a.json").write_text("\ufeff \n" + json.dumps(records, indent=1), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    array, lines = (list(read_records(tmp_path / name)) for name in ("a.json", "b.jsonl"))
    assert [r for _, r in array] == [r for _, r in lines] == records
    assert array[1][0].endswith("a.json: record 2") and lines[1][0].endswith("b.jsonl:3")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, {"b"')
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    (tmp_path / "c.jsonl").write_text('{"a": 1}\n{"b"\n')
    for name, said in (("a.json", "begins like a JSON array"), ("b.json", "byte 0 is not UTF-8")):
        with pytest.raises(BadData, match=said):
            list(read_records(tmp_path / name))
    with pytest.raises(MissingInput, match="none.json"):
        list(read_records(tmp_path / "none.json"))
    where, bad = list(read_records(tmp_path / "c.jsonl"))[1]
    assert where.endswith("c.jsonl:2") and bad.args[0] == "bad JSON"


def test_the_border_of_prompt_and_response_is_a_border_of_tokens():
    tokenizer = build_tokenizer("ByteTokenizer")
    prompt, response = encode_pair(pair_of({"prompt": "ab", "response": "cd"}, FORMATS["pairs"]), tokenizer.encode, tokenizer.eod)
    assert prompt.tolist() == [97, 98] and response.tolist() == [99, 100, 256]


# Samples


def test_rows_and_what_is_scored(tmp_path):
    sizes = [(3, 2), (7, 5), (2, 6), (1, 1), (4, 9), (6, 2)]
    data = dataset(tmp_path, sizes)
    rows, scored = data.rows(np.arange(6)), data.scored(np.arange(6))
    assert rows.shape == scored.shape == (6, 9) and (rows[~scored] != 2).all()
    for row, mask, document in zip(rows, scored, data.documents(np.arange(6)), strict=True):
        prompt, response = sizes[document]
        response = min(response, 8 - prompt)
        assert row[:prompt].tolist() == [1] * prompt and (row[prompt + response :] == EOD).all()
        assert np.flatnonzero(mask).tolist() == list(range(prompt, prompt + response))
    assert not scored[:, 8].any() and "6 pairs of 6" in data.describe() and "2 responses cut, 0 pairs left out" in data.describe()


def test_both_objectives_score_the_same_tokens(tmp_path):
    data, numbers = dataset(tmp_path, [(1, 1), (7, 9), (2, 3), (4, 4)]), np.arange(4)
    clean = Clean(
        tokens=torch.from_numpy(data.rows(numbers)),
        scored=torch.from_numpy(data.scored(numbers)),
        index=torch.from_numpy(numbers),
    )
    noise = Noise(1, clean.index)
    ar, mdm = NextToken().pose(clean, noise, 0.0), MaskedDiffusion(mask_id=100).pose(clean, noise, 0.0)
    assert ar.scored.sum(1).tolist() == mdm.scored.sum(1).tolist()
    assert sorted(ar.targets[ar.scored].tolist()) == sorted(mdm.targets[mdm.scored].tolist())
    assert set(mdm.inputs[:, :1].flatten().tolist()) == {1}  # a prompt is never hidden


def test_the_records_say_what_is_scored_and_what_is_given(tmp_path):
    data = Slice(dataset=dataset(tmp_path, [(1, 1)]), rows=1, seq_length=8, num_mc=1, seed=1, score_first_token=False)
    ar, mdm = (data.convention(objective) for objective in (NextToken(), MaskedDiffusion(mask_id=100)))
    for said in (ar, mdm):
        assert said["scored_tokens"] == "the response and its end, as far as it fits into 8 tokens"
        assert said["conditioned_on"] == "the prompt"
    assert (ar["value"], mdm["value"]) == ("exact NLL", "upper bound on the NLL")


def test_prompts_that_fill_a_row_are_left_out_and_counted(tmp_path):
    data = dataset(tmp_path, [(8, 1), (7, 1), (9, 5), (0, 4), (3, 0)])
    assert data.kept.tolist() == [1] and data.rows_in_first_epoch == 1 and "4 pairs left out" in data.describe()
    with pytest.raises(BadData, match="none of 1 pairs has a prompt of 1 to 7 tokens"):
        dataset(tmp_path, [(8, 1)])


def test_every_pair_once_an_epoch(tmp_path):
    data = dataset(tmp_path, [(1 + n % 5, 1 + n % 3) for n in range(20)])
    documents = data.documents(np.arange(100)).reshape(5, 20)
    assert (np.sort(documents, 1) == np.arange(20)).all() and len({tuple(d) for d in documents.tolist()}) == 5


def test_a_corpus_of_texts_is_refused(tmp_path):
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        writer.add_document(np.arange(10))
    with pytest.raises(BadData, match="1 sequences in 1 documents, expected a prompt and a response"):
        Instruct(str(tmp_path / "c"), 8, 1, 100, EOD)


def test_the_fingerprint_tells_where_prompts_end(tmp_path):
    first = dataset(tmp_path, [(3, 2)]).fingerprint()
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        writer.add_document(np.array([1, 1, 1, 2, EOD]), lengths=[2, 3])
    assert Instruct(str(tmp_path / "c"), 8, 1, 100, EOD).fingerprint() != first
