"""Nothing corrupt is trained on: with a sidecar a damaged corpus is refused or read exactly, whatever was done to its files."""

import hashlib
import json
import os
import random
import shutil
import struct
import zlib

import numpy as np
import pytest

from megatron.data import sidecar
from megatron.data.indexed import HEADER, IndexedDataset, IndexedWriter
from megatron.errors import BadData, Refusal

TOKENIZER = {"type": "ByteTokenizer", "fingerprint": "f" * 64, "vocab_size": 257, "eod": 256}
SUFFIXES = ("bin", "idx", "meta.json")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(sidecar, "BLOCK_BYTES", 256)


def write(prefix, seed=0, dtype=np.uint16, **more):
    """40 documents of one or several sequences, about 600 tokens."""
    rng = np.random.default_rng(seed)
    with IndexedWriter(prefix, dtype, **more) as writer:
        for number in range(40):
            lengths = rng.integers(0, 15, 1 + (number % 4 == 3))
            writer.add_document(rng.integers(0, 250, lengths.sum()), lengths)
    return str(prefix)


def facts(prefix):
    return json.loads(open(f"{prefix}.meta.json").read())


def change(prefix, seal=True, **changes):
    """Rewrite facts of a sidecar; with `seal` so that its own hash fits again."""
    meta = facts(prefix) | changes
    data = sidecar.sealed({k: v for k, v in meta.items() if k != "sha256"}) if seal else json.dumps(meta).encode()
    open(f"{prefix}.meta.json", "wb").write(data)


def flip(path, at, bit=0):
    data = bytearray(open(path, "rb").read())
    data[at] ^= 1 << bit
    open(path, "wb").write(data)


def test_a_sidecar_says_what_was_written(tmp_path):
    prefix = write(tmp_path / "c", tokenizer=TOKENIZER, extra={"source": ["a.jsonl"]})
    meta, idx, bin_ = facts(prefix), *(open(f"{prefix}.{suffix}", "rb").read() for suffix in ("idx", "bin"))
    data = IndexedDataset(prefix)
    assert data.meta == meta and meta["tokenizer"] == TOKENIZER and meta["extra"] == {"source": ["a.jsonl"]}
    assert (meta["version"], meta["documents"], meta["sequences"], meta["dtype"]) == (1, 40, 50, "uint16")
    assert (meta["tokens"], meta["bin_bytes"], meta["idx_bytes"]) == (len(bin_) // 2, len(bin_), len(idx))
    assert meta["largest_id"] == np.frombuffer(bin_, "<u2").max() and meta["idx_sha256"] == hashlib.sha256(idx).hexdigest()
    assert meta["block_crc32"] == [zlib.crc32(bin_[at : at + 256]) for at in range(0, len(bin_), 256)]
    assert meta["sizes_crc32"] == zlib.crc32(idx[34 : 34 + 200]) and meta["documents_crc32"] == zlib.crc32(idx[34 + 600 :])
    assert data.verify() == len(meta["block_crc32"]) == -(-len(bin_) // 256)


def test_a_block_is_a_mebibyte(tmp_path, monkeypatch):
    monkeypatch.undo()
    with IndexedWriter(tmp_path / "c", np.int32) as writer:
        writer.add_document(np.arange(100))
        writer.add_document(np.arange(600_000))
    assert facts(tmp_path / "c")["block_bytes"] == 1 << 20
    flip(tmp_path / "c.bin", (1 << 20) + 5)
    data = IndexedDataset(tmp_path / "c")
    assert data.tokens(0, 1 << 18)[-1] == (1 << 18) - 101
    with pytest.raises(BadData, match=r"c.bin: the crc32 of block 1 \(bytes 1048576:2097152\) is \w{8}, expected \w{8} by"):
        data.tokens((1 << 18) - 1, (1 << 18) + 1)


def test_a_block_is_checked_when_it_is_first_read_and_by_verify_again(tmp_path):
    prefix = write(tmp_path / "c")
    data = IndexedDataset(prefix)
    before = data.tokens(130, 140)
    flip(f"{prefix}.bin", 2 * 139)
    assert (data.tokens(130, 140) != before).sum() == 1  # read before, so not again: as sound as when it was checked
    around = int(np.searchsorted(data.document_starts, 139, side="right")) - 1
    for read in (
        IndexedDataset(prefix).verify,
        lambda: IndexedDataset(prefix).tokens(0, data.num_tokens),
        data.verify,
        lambda: IndexedDataset(prefix).document(around),
    ):
        with pytest.raises(BadData, match=r"block 1 \(bytes 256:512\)"):
            read()
    assert len(IndexedDataset(prefix).tokens(0, 128)) == 128


def test_without_a_sidecar_the_structure_alone_is_checked(tmp_path):
    prefix = write(tmp_path / "c")
    kept = IndexedDataset(prefix)
    os.unlink(f"{prefix}.meta.json")
    data = IndexedDataset(prefix)
    assert data.meta is None and data.verify() == 0 and data.fingerprint() == kept.fingerprint()
    assert np.array_equal(data.tokens(0, data.num_tokens), kept.tokens(0, kept.num_tokens))


def test_a_border_moved_in_a_way_that_fits_is_noticed(tmp_path):
    """Sizes and offsets that agree with each other, but not with the sidecar."""
    with IndexedWriter(tmp_path / "c") as writer:
        writer.add_documents([1, 2, 3, 4], [1, 3])
    idx = bytearray((tmp_path / "c.idx").read_bytes())
    idx[34:58] = struct.pack("<2i2q", 3, 1, 0, 6)
    (tmp_path / "c.idx").write_bytes(idx)
    with pytest.raises(BadData, match="c.idx: sizes_crc32 is .* expected .* by .*c.meta.json: one of them is damaged or belongs"):
        IndexedDataset(tmp_path / "c")
    (tmp_path / "c.meta.json").unlink()
    assert IndexedDataset(tmp_path / "c").document(0).tolist() == [1, 2, 3]


def test_a_sequence_moved_to_another_document_is_noticed(tmp_path):
    prefix = write(tmp_path / "c")
    borders = np.frombuffer(open(f"{prefix}.idx", "rb").read(), "<i8", offset=34 + 12 * 50)
    with open(f"{prefix}.idx", "r+b") as file:
        file.seek(34 + 12 * 50 + 8 * 4)  # the end of document 3, which has two sequences
        file.write(struct.pack("<q", borders[4] - 1))
    with pytest.raises(BadData, match="c.idx: documents_crc32 is .* expected .* by .*c.meta.json"):
        IndexedDataset(prefix)


@pytest.mark.parametrize(
    ("changes", "seal", "said"),
    [
        ({"version": 2}, True, "version is 2, expected 1"),
        ({"tokens": "600"}, True, "tokens is 600, expected a whole number"),
        ({"largest_id": True}, True, "largest_id is True, expected a whole number"),
        ({"dtype": 8}, True, "dtype is 8, expected a text"),
        ({"tokenizer": {"type": "x"}}, True, "tokenizer is .* expected an object with type, fingerprint, vocab_size, eod"),
        ({"block_bytes": 1000}, True, "block_bytes is 1000, expected a power of two"),
        ({"block_crc32": [1, 2]}, True, r"block_crc32 is \[1, 2\], expected 3 numbers of 32 bits"),
        ({"largest_id": 3}, False, "its sha256 is .* expected .*: it was changed after it was written"),
        ({"documents": 41}, True, "c.idx: documents is 40, expected 41 by"),
        ({"dtype": "int16"}, True, "c.idx: dtype is uint16, expected int16 by"),
    ],
)
def test_a_sidecar_that_does_not_fit_is_refused_by_name(tmp_path, changes, seal, said):
    prefix = write(tmp_path / "c")
    change(prefix, seal, **changes)
    with pytest.raises(BadData, match=said):
        IndexedDataset(prefix)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"version":' + b"9" * 5000 + b"}", b"[]", b"null", b"NaN"]
)
def test_what_is_no_sidecar_is_one_sentence(tmp_path, content):
    prefix = write(tmp_path / "c")
    (tmp_path / "c.meta.json").write_bytes(content)
    with pytest.raises(BadData, match="c.meta.json: ") as error:
        IndexedDataset(prefix)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_swapped_index_is_noticed_by_verify_as_well(tmp_path):
    prefix = write(tmp_path / "c")
    data = IndexedDataset(prefix)
    flip(f"{prefix}.idx", 40)
    with pytest.raises(BadData, match="c.idx: idx_sha256 is"):
        data.verify()


def test_a_writer_takes_no_half_tokenizer(tmp_path):
    with pytest.raises(TypeError, match="expected an object with type, fingerprint, vocab_size, eod"):
        IndexedWriter(tmp_path / "c", tokenizer={"type": "ByteTokenizer"})


# Fuzz. A mutation takes (random, folder, path of the file): what it does must end in a refusal or change nothing that is read.


def everything(prefix, rng):
    """What a reader can learn of a corpus, read in some order."""
    data = IndexedDataset(prefix)
    parts = {}
    for at in rng.sample(range(0, data.num_tokens, 50), -(-data.num_tokens // 50)):
        parts[at] = data.tokens(at, min(at + 50, data.num_tokens)).tolist()
    documents = [[part.tolist() for part in data.sequences(number)] for number in range(data.num_documents)]
    data.verify()
    data.fingerprint()
    return [token for at in sorted(parts) for token in parts[at]], documents, data.document_starts.tolist(), data.dtype, data.meta


def cut(rng, path):
    os.truncate(path, rng.randrange(os.path.getsize(path)))


def extend(rng, path):
    with open(path, "ab") as file:
        file.write(rng.randbytes(rng.choice([1, 2, 4, 8, 12, 20, 256, 300])))


def flip_bits(rng, path):
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        flip(path, rng.randrange(os.path.getsize(path)), rng.randrange(8))


def flip_early(rng, path):
    flip(path, rng.randrange(min(42, os.path.getsize(path))), rng.randrange(8))


def zero(rng, path):
    data = bytearray(open(path, "rb").read())
    at = rng.randrange(len(data))
    count = min(rng.choice([1, 4, 8, 64, 4096]), len(data) - at)
    data[at : at + count] = bytes(count)
    open(path, "wb").write(data)


def shuffle_words(rng, path):
    data, width = open(path, "rb").read(), rng.choice([1, 2, 4, 8])
    words = [data[at : at + width] for at in range(0, len(data), width)]
    i, j = rng.randrange(len(words)), rng.randrange(len(words))
    words[i], words[j] = words[j], words[i]
    open(path, "wb").write(b"".join(words))


def empty(rng, path):
    os.truncate(path, 0)


def remove(rng, path):
    os.unlink(path)


def no_file(rng, path):
    os.unlink(path)
    rng.choice([os.mkdir, os.mkfifo, lambda where: os.symlink("nowhere", where), lambda where: os.symlink(where, where)])(path)


def another(rng, path):
    """The same file of another corpus, of the same or another shape."""
    folder, name = os.path.split(path)
    shutil.copy(f"{folder}/{rng.choice('bcd')}{name[1:]}", path)


def extreme(rng, path):
    """A field of a header, or anything aligned in a file, as a number that is easily mistaken."""
    value = rng.choice([0, 1, -1, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63), 2**62, 1 << 40])
    places = [9, 18, 26, *range(34, os.path.getsize(path) - 7, 4)]
    with open(path, "r+b") as file:
        file.seek(rng.choice([*places[:3], rng.choice(places)]))
        file.write(struct.pack("<q", value))


def other_dtype(rng, path):
    with open(path, "r+b") as file:
        file.seek(17)
        file.write(bytes([rng.randrange(12)]))


def moved_border(rng, path):
    """A token more in one sequence, a token less in the next, offsets that agree."""
    data = bytearray(open(path, "rb").read())
    num = HEADER.unpack(data[: HEADER.size])[3]
    sizes = np.frombuffer(data, "<i4", num, 34)
    at = rng.choice(np.flatnonzero(sizes[1:]).tolist())
    struct.pack_into("<2i", data, 34 + 4 * at, sizes[at] + 1, sizes[at + 1] - 1)
    struct.pack_into("<q", data, 34 + 4 * num + 8 * (at + 1), struct.unpack_from("<q", data, 34 + 4 * num + 8 * (at + 1))[0] + 2)
    open(path, "wb").write(data)


def other_fact(rng, path):
    prefix = path.removesuffix(".meta.json")
    key = rng.choice(sorted(facts(prefix)))
    value = rng.choice([0, -1, 2**70, 1.5, True, None, "", "x", [], [1], {}, {"a": [0]}, float("nan")])
    meta = facts(prefix) | {key: value}
    if rng.random() < 0.3:
        del meta[key]
    if rng.random() < 0.5:
        meta["sha256"] = sidecar.seal(meta)
    open(path, "w").write(json.dumps(meta))


ANY = [cut, extend, flip_bits, flip_bits, flip_early, zero, shuffle_words, empty, remove, no_file, another]
MUTATIONS = {"bin": ANY, "idx": [*ANY, extreme, extreme, other_dtype, moved_border], "meta.json": [*ANY, *[other_fact] * 4]}


def fuzz(folder, seed, count):
    """Mutate `count` copies of a corpus.  -> (how many were refused, how many read, how many of these lost their sidecar)"""
    for number, name in enumerate("abcd"):
        write(folder / f"original-{name}", seed=number % 3, dtype=[np.uint16, np.uint16, np.uint16, np.int32][number])
    rng, prefix = random.Random(seed), str(folder / "a")
    expected = everything(str(folder / "original-a"), rng)
    tally = [0, 0, 0]
    for name in "bcd":
        for suffix in SUFFIXES:
            shutil.copy(folder / f"original-{name}.{suffix}", folder / f"{name}.{suffix}")
    for _ in range(count):
        for suffix in SUFFIXES:
            restore(folder / f"original-a.{suffix}", folder / f"a.{suffix}")
        history = mutate(rng, prefix)
        try:
            found = everything(prefix, rng)
        except Refusal as error:
            tally[0] += 1
            assert "\n" not in str(error), history
        else:
            tally[1] += 1
            tally[2] += found[4] is None
            assert found[4] is None or found[:4] == expected[:4], history
            resealed = "other_fact" in str(history)
            assert found[4] is None or resealed or found[4] == expected[4], history
    return tally


def restore(source, target):
    if target.is_dir() and not target.is_symlink():
        target.rmdir()
    else:
        target.unlink(missing_ok=True)
    shutil.copy(source, target)


def mutate(rng, prefix):
    """Changes to one or two of the files, never to all three, which could be another corpus; at times no sidecar."""
    history = []
    for suffix in rng.sample(SUFFIXES, rng.choice([1, 1, 1, 2])):
        change = rng.choice(MUTATIONS[suffix])
        change(rng, f"{prefix}.{suffix}")
        history.append((suffix, change.__name__))
    if rng.random() < 0.1 and os.path.isfile(f"{prefix}.meta.json"):
        remove(rng, f"{prefix}.meta.json")
    return history


def test_fuzz(tmp_path):
    refused, read, bare = fuzz(tmp_path, 0, 600)
    assert refused > 400 and read > bare > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_fuzz_of_thousands(tmp_path, seed):
    refused, read, bare = fuzz(tmp_path, seed, 1000)
    assert refused > 800 and read > bare > 10
