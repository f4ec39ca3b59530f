"""What is held out, where it stops, and that an interrupted gathering ends as an undisturbed one."""

import json

import pytest

from megatron.data import corpus_text
from megatron.data.corpus_text import Gathering, Limits, Stream, count_documents, training_texts
from megatron.errors import BadData

HELD = ("valid", "test")


def documents(count, start=0):
    return [{"text": f"document {number} " * (number % 7 + 1)} for number in range(start, start + count)]


def stream(found, held=HELD, period=10, split="train", **more):
    return Stream(split, lambda on_bad: iter(found), held, period, **more)


def splits(one):
    return [split for split, _ in one.assigned(print)]


def gather(folder, streams, limits=None, show=lambda parts: None):
    folder.mkdir(exist_ok=True)
    return Gathering(folder, limits or Limits(), print, show).run(streams)


def held(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_one_document_of_every_block_is_held_out_at_changing_places():
    names = splits(stream(documents(1000)))
    blocks = [names[at : at + 10] for at in range(0, 1000, 10)]
    assert all(block.count("valid") == block.count("test") == 1 for block in blocks)
    assert len({block.index("valid") for block in blocks}) == len({block.index("test") for block in blocks}) == 10


def test_a_longer_corpus_holds_out_the_same_documents():
    assert splits(stream(documents(500)))[:437] == splits(stream(documents(437)))


@pytest.mark.parametrize("count, each", [(3, 1), (15, 2), (19, 2)])
def test_of_few_documents_the_last_are_held_out(count, each):
    names = splits(stream(documents(count)))
    assert names == ["train"] * (count - 2 * each) + ["valid"] * each + ["test"] * each


def test_too_few_documents_are_refused_with_the_arithmetic():
    with pytest.raises(BadData, match="2 documents.*--held-out 0"):
        list(stream(documents(2)).assigned(print))
    assert splits(stream(documents(1), held=())) == ["train"] and splits(stream([])) == []
    assert splits(stream(documents(1), ("test",), 2, "valid")) == ["valid"]  # one is not cut: there is no test then
    assert sorted(splits(stream(documents(2), ("test",), 2, "valid"))) == ["test", "valid"]


def test_a_prompt_is_on_one_side():
    pairs = [{"instruction": f"say {number % 40}", "output": str(number)} for number in range(400)]
    one = stream(pairs, by_prompt=True)
    where = {}
    for split, pair in one.assigned(print):
        where.setdefault(pair["instruction"], set()).add(split)
    assert len(where) == 40 and all(len(found) == 1 for found in where.values())
    assert [sum(found == {name} for found in where.values()) for name in ("train", *HELD)] == [32, 4, 4]
    again = {pair["instruction"]: split for split, pair in stream(pairs[::-1], by_prompt=True).assigned(print)}
    assert all(where[prompt] == {split} for prompt, split in again.items())  # whatever the order of the file


def test_splits_share_nothing_and_lose_nothing(tmp_path):
    found = documents(237)
    parts = gather(tmp_path / "a", [stream(found)])
    written = [document for split in ("train", *HELD) for document in held(tmp_path / "a", split)]
    assert sorted(map(str, written)) == sorted(map(str, found))
    assert sum(part.documents for part in parts.values()) == 237 and parts["valid"].documents in (23, 24)
    assert parts["train"].text_bytes == sum(len(d["text"]) for d in held(tmp_path / "a", "train"))


def test_a_limit_is_a_prefix_with_something_held_out(tmp_path):
    found = documents(300)
    all_of = gather(tmp_path / "all", [stream(found)]) and held(tmp_path / "all", "train")
    for limit in (1, 5, 50):
        parts = gather(tmp_path / str(limit), [stream(found)], Limits({"train": limit, "valid": 2, "test": 2}))
        assert held(tmp_path / str(limit), "train") == all_of[:limit]
        assert 1 <= parts["valid"].documents <= 2 and 1 <= parts["test"].documents <= 2


def test_tokens_stop_at_whole_documents(tmp_path):
    found = documents(100)
    sizes = [len(document["text"]) + 1 for document in found]
    limits = Limits({}, sum(sizes[:9]) + 1, lambda document: len(document["text"]) + 1)
    parts = gather(tmp_path / "a", [stream(found, ()), stream(documents(9, 500), (), split="valid")], limits)
    assert held(tmp_path / "a", "train") == found[:9]
    assert (parts["train"].documents, parts["train"].tokens) == (9, sum(sizes[:9]))
    with pytest.raises(BadData, match="--max-tokens 3: the first document has 12 tokens"):
        gather(tmp_path / "b", [stream(found, ())], Limits({}, 3, lambda document: 12))


@pytest.mark.parametrize("limits", [Limits(), Limits({"train": 120}), Limits({}, 5500, lambda document: len(document["text"]))])
def test_an_interrupted_gathering_goes_on(tmp_path, monkeypatch, limits):
    monkeypatch.setattr(corpus_text, "SAVE_BYTES", 1000)
    read = []

    def failing(at):
        for number, document in enumerate(documents(400)):
            if number == at:
                raise KeyboardInterrupt
            read.append(number)
            yield document

    def streams(at=None):
        return [Stream("train", lambda on_bad: failing(at), ("valid",), 10), stream(documents(30, 900), ("test",), 2, "valid2")]

    gather(tmp_path / "whole", streams(), limits)
    for at in (25, 61, 90):
        with pytest.raises(KeyboardInterrupt):
            gather(tmp_path / "cut", streams(at), limits)
    assert json.loads((tmp_path / "cut" / "gathered.json").read_text())["consumed"]["train"] > 30
    with open(tmp_path / "cut" / "train.jsonl", "ab") as file:
        file.write(b'{"text": "half')  # written after the last note, as by a kill
    parts = gather(tmp_path / "cut", streams(), limits)
    assert parts == gather(tmp_path / "cut", streams(0), limits)  # finished: nothing is read again
    for split in ("train", "valid", "valid2", "test"):
        assert (tmp_path / "cut" / f"{split}.jsonl").read_bytes() == (tmp_path / "whole" / f"{split}.jsonl").read_bytes()


def test_text_that_was_noted_and_is_gone_is_gathered_again(tmp_path):
    whole = gather(tmp_path / "a", [stream(documents(40))])
    (tmp_path / "a" / "train.jsonl").write_bytes(b"")
    assert gather(tmp_path / "a", [stream(documents(40))]) == whole and len(held(tmp_path / "a", "train")) == 32


def test_a_tokenizer_sees_train_documents_within_the_limits():
    found = documents(100)
    train = [document["text"] for split, document in stream(found).assigned(print) if split == "train"]
    assert list(training_texts(stream(found), Limits(), 10**9, print)) == train
    assert list(training_texts(stream(found), Limits({"train": 7}), 10**9, print)) == train[:7]
    assert list(training_texts(stream(found), Limits(), len(train[0]) + 1, print)) == train[:2]
    pair = [{"instruction": "do", "output": "done"}]
    assert list(training_texts(stream(pair, ()), Limits(), 10**9, print)) == ["### Instruction:\ndo\n\n### Response:\n", "done"]


def test_documents_are_counted():
    assert count_documents(stream(documents(200)), "train") == 160
