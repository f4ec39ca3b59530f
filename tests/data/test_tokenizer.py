"""Ids equal those of the libraries' own paths; corpus text never yields a special id; wrong files are refused."""

import base64
import hashlib
import inspect
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron.data import fast_bpe
from megatron.data import tokenizer as module
from megatron.data.tokenizer import GPT2_MERGE_FILE, GPT2_VOCAB_FILE, Vocabulary, build_tokenizer, byte_symbols
from megatron.errors import BadData, Mismatch, MissingInput

FILES = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
TRICKY = [
    "",
    " ",
    "   ",
    "\n\n\n",
    " \t\r\n x",
    "Hello, world!",
    "don't we'll I'VE",
    "<|endoftext|>",
    "a<|endoftext|>b </s><s><unk>",
    "\ufeffmark",
    "caf\u00e9 cafe\u0301",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u65e5\u672c\u8a9e",
    "\u0627\u0644",
    "\x00\x1c\x1f\x85",
    "\u2028\u2029",
    "1234567890 3.14",
    "@-@ <unk> ##x",
    "x" * 5000,
    "\ue000\uffff",
    "tab\tand  two spaces",
    "\u00a0nbsp",
]


def shared(name):
    path = FILES / name
    if not path.exists():
        pytest.skip(f"needs {name} in ../shared/data/tokenizers beside the repository")
    return str(path)


def merges_of(*pairs):
    return "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in pairs)


def vocabulary_of(merges):
    words = [*byte_symbols(), *(line.replace(" ", "") for line in merges.splitlines()[1:]), "<|endoftext|>"]
    return json.dumps({word: i for i, word in enumerate(words)})


PAIRS = [("h", "e"), ("l", "l"), ("he", "ll"), ("\u0120", "t"), ("\u00c3", "\u00a9")]  # the last: UTF-8 of e acute
MERGES = merges_of(*PAIRS)


def tiny(folder, merges=MERGES, vocabulary=None):
    """The flags of a GPT-2-like tokenizer of 256 bytes, a few merges and eod."""
    (folder / "v.json").write_text(vocabulary or vocabulary_of(merges), encoding="utf-8")
    (folder / "m.txt").write_text(merges, encoding="utf-8")
    return dict(vocab_file=str(folder / "v.json"), merge_file=str(folder / "m.txt"))


def random_text(rng):
    ranges = [(0x20, 0x7F), (0x20, 0x250), (0x300, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0x9, 0xD), (0x2000, 0x206F)]
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 60)))


def test_tiny_gpt2_by_hand(tmp_path):
    t = build_tokenizer("GPT2BPETokenizer", **tiny(tmp_path))
    assert (t.vocab_size, t.eod) == (262, 261)
    assert t.encode("hello t\u00e9").tolist() == [258, 78, 259, 260]  # hell o _t e-acute
    assert t.token_bytes()[[258, 78, 259, 260, 261]].tolist() == [4, 1, 2, 2, 0]
    assert t.decode([258, 78, 261]) == "hello<|endoftext|>"


@pytest.mark.parametrize("text", TRICKY)
def test_text_round_trips_and_yields_no_special_id(tmp_path, text):
    for t in (build_tokenizer("GPT2BPETokenizer", **tiny(tmp_path)), build_tokenizer("ByteTokenizer")):
        ids = t.encode(text)
        assert t.decode(ids) == text and t.eod not in ids
        assert t.token_bytes()[ids].sum() == len(text.encode())


def test_gpt2_ids_are_those_of_the_tokenizers_library():
    tokenizers = pytest.importorskip("tokenizers")
    files = dict(vocab_file=shared("gpt2-vocab.json"), merge_file=shared("gpt2-merges.txt"))
    ours = build_tokenizer("GPT2BPETokenizer", **files)
    theirs = tokenizers.ByteLevelBPETokenizer(files["vocab_file"], files["merge_file"])
    rng = random.Random(0)
    for text in TRICKY + [random_text(rng) for _ in range(500)]:
        assert ours.encode(text).tolist() == theirs.encode(text).ids
    assert ours.encode("<|endoftext|>").tolist() == [27, 91, 437, 1659, 5239, 91, 29]
    assert (ours.vocab_size, ours.eod) == (50257, 50256)


@pytest.mark.parametrize(
    "vocabulary, merges, said",
    [
        (vocabulary_of(merges_of(("h", "e"))), merges_of(("l", "l")), "do not belong together"),
        (vocabulary_of(MERGES), merges_of(PAIRS[1], PAIRS[0], *PAIRS[2:]), "do not belong together"),
        (json.dumps({"<|endoftext|>": 0, "h": 1}), MERGES, "as id 1, found 0"),
        (json.dumps({"<s>": 0, "\u65e5": 1}), MERGES, "not a GPT-2 vocabulary"),
        ("[1, 2]", MERGES, "not a GPT-2 vocabulary"),
        ("{", MERGES, "not a GPT-2 vocabulary"),
        (vocabulary_of(MERGES), "no pairs\nhere at all\n", "not a GPT-2 vocabulary"),
        (vocabulary_of(MERGES), "", "not a GPT-2 vocabulary"),
    ],
)
def test_files_that_do_not_agree_are_refused(tmp_path, vocabulary, merges, said):
    with pytest.raises(BadData, match=said):
        build_tokenizer("GPT2BPETokenizer", **tiny(tmp_path, merges, vocabulary))


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """No cache of this machine is visible; the pinned files are tiny stand-ins, given back by kind."""
    for name in ("MEGATRON_DATA_DIR", "DATA_GYM_CACHE_DIR", "HF_HUB_CACHE", "TIKTOKEN_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(module, "CHECKOUT_DATA", tmp_path / "utils-data")
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    contents = {GPT2_VOCAB_FILE: vocabulary_of(MERGES).encode(), GPT2_MERGE_FILE: MERGES.encode()}
    pinned = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
    monkeypatch.setattr(module.GPT2File, "is_right", lambda file, data: hashlib.sha256(data).hexdigest() == pinned[file])
    return contents


def key(file):
    return hashlib.sha1(file.url.encode()).hexdigest()


@pytest.mark.parametrize(
    "variable, name",
    [
        ("MEGATRON_DATA_DIR", lambda file: file.name),
        ("TIKTOKEN_CACHE_DIR", key),
        ("DATA_GYM_CACHE_DIR", key),
        ("HF_HOME", lambda file: f"hub/models--openai-community--gpt2/snapshots/abc/{file.hub_name}"),
        ("HF_HUB_CACHE", lambda file: f"models--gpt2/snapshots/abc/{file.hub_name}"),
        (None, lambda file: f"utils-data/{file.name}"),
        (None, lambda file: f"tmp/data-gym-cache/{key(file)}"),
    ],
)
def test_gpt2_is_found_in_each_place(tmp_path, monkeypatch, bare_machine, variable, name):
    folder = tmp_path / "place" if variable else tmp_path
    if variable:
        monkeypatch.setenv(variable, str(folder))
    for file, data in bare_machine.items():
        (folder / name(file)).parent.mkdir(parents=True, exist_ok=True)
        (folder / name(file)).write_bytes(data)
    assert build_tokenizer("GPT2BPETokenizer").vocab_size == 262


def test_a_missing_gpt2_names_the_command_and_the_places(tmp_path, monkeypatch, bare_machine):
    monkeypatch.setenv("MEGATRON_DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(MissingInput) as refusal:
        build_tokenizer("GPT2BPETokenizer")
    first = str(tmp_path / "mine" / "gpt2-vocab.json")
    for said in ("`python tools/fetch_tokenizer.py`", first, "utils-data", "hf/hub", key(GPT2_VOCAB_FILE)):
        assert said in str(refusal.value)


def test_a_found_file_with_other_bytes_is_refused(tmp_path, bare_machine):
    (tmp_path / "utils-data").mkdir()
    for file, data in bare_machine.items():
        (tmp_path / "utils-data" / file.name).write_bytes(data + b"\n")
    with pytest.raises(BadData, match="gpt2-vocab.json is not GPT-2's: sha256"):
        build_tokenizer("GPT2BPETokenizer")


def test_pinned_hashes_and_patterns_are_tiktokens():
    openai = pytest.importorskip("tiktoken_ext.openai_public")
    source = Path(openai.__file__).read_text()
    for file in (GPT2_VOCAB_FILE, GPT2_MERGE_FILE):
        assert file.sha256 in source and file.url in source
    assert module.CL100K_PATTERN in source
    assert "|".join(re.findall('r"""(.*?)"""', inspect.getsource(openai.o200k_base))) == module.O200K_PATTERN


def ranks_file(path, tokens):
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return str(path)


def test_a_ranks_file_gives_the_same_ids_as_vocabulary_and_merges(tmp_path):
    gpt2 = build_tokenizer("GPT2BPETokenizer", **tiny(tmp_path))
    t = build_tokenizer("TikTokenizer", tokenizer_model=ranks_file(tmp_path / "r.tiktoken", gpt2.tokens[:-1]))
    assert (t.vocab_size, t.eod) == (262, 261)
    for text in TRICKY:
        assert np.array_equal(t.encode(text), gpt2.encode(text))
    assert t.fingerprint() != gpt2.fingerprint()  # the type is part of it


def test_damaged_ranks_files_are_refused(tmp_path):
    ranks = ranks_file(tmp_path / "r.tiktoken", [bytes([b]) for b in range(256)])
    content = Path(ranks).read_bytes()
    damages = {
        content + b"!!! 256\n": ":257: expected a base64",
        content + b"aGU= 300\n": "each once",
        content[:-9]: "single bytes",
    }
    for damage, said in damages.items():
        Path(ranks).write_bytes(damage)
        with pytest.raises(BadData, match=said):
            build_tokenizer("TikTokenizer", tokenizer_model=ranks)


def hf_file(folder, *specials, **parts):
    """A byte-level tokenizer.json with the tiny merges and the given special tokens after the vocabulary."""
    vocabulary = json.loads(vocabulary_of(MERGES))
    del vocabulary["<|endoftext|>"]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": len(vocabulary) + n, "content": content, "special": True, **plain} for n, content in enumerate(specials)]
    model = {"type": "BPE", "vocab": vocabulary, "merges": MERGES.splitlines()[1:]}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    } | parts
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return str(folder)


def test_hf_text_never_yields_a_special_id_and_is_never_cut(tmp_path):
    pytest.importorskip("tokenizers")
    cut = {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}}
    t = build_tokenizer("HFTokenizer", tokenizer_model=hf_file(tmp_path, "<|pad|>", "<|endoftext|>", **cut))
    gpt2 = build_tokenizer("GPT2BPETokenizer", **tiny(tmp_path))
    assert (t.vocab_size, t.eod) == (263, 262)
    for text in TRICKY + ["<|pad|> and <|endoftext|>"]:
        assert np.array_equal(t.encode(text), gpt2.encode(text)), text
        assert t.token_bytes()[t.encode(text)].sum() == len(text.encode()) and t.decode(t.encode(text)) == text
    assert t.token_bytes()[[261, 262]].tolist() == [0, 0]


def test_hf_eod_comes_from_the_config_beside_it_or_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    folder = hf_file(tmp_path, "<stop>")
    with pytest.raises(BadData, match="tokenizer_config.json"):
        build_tokenizer("HFTokenizer", tokenizer_model=folder)
    for eos in ("<stop>", {"content": "<stop>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        assert build_tokenizer("HFTokenizer", tokenizer_model=folder).eod == 261
    assert build_tokenizer("HFTokenizer", tokenizer_model=str(tmp_path / "tokenizer.json")).eod == 261
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(BadData, match="tokenizer_config.json is not"):
        build_tokenizer("HFTokenizer", tokenizer_model=folder)


def test_hf_ids_of_a_published_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    file = shared("pythia-20B_tokenizer.json")
    t, theirs = build_tokenizer("HFTokenizer", tokenizer_model=file), tokenizers.Tokenizer.from_file(file)
    for text in TRICKY:
        if "<|" not in text:
            assert t.encode(text).tolist() == theirs.encode(text).ids
        assert t.eod not in t.encode(text)
    assert (t.vocab_size, t.eod) == (50277, 0)
    text = "if x:\n        return  'caf\u00e9'"
    assert t.token_bytes()[t.encode(text)].sum() == len(text.encode())


def test_sentencepiece_ids_and_specials():
    sentencepiece = pytest.importorskip("sentencepiece")
    file = shared("spm_en_1000.model")
    t = build_tokenizer("SentencePieceTokenizer", tokenizer_model=file)
    theirs = sentencepiece.SentencePieceProcessor(model_file=file)
    assert (t.vocab_size, t.eod) == (1000, theirs.eos_id())
    for text in TRICKY:
        assert t.encode(text).tolist() == theirs.encode(text) and t.eod not in t.encode(text)
    ids = t.encode("the text of a line")
    assert t.decode(ids) == "the text of a line" and t.token_bytes()[ids].sum() == len(" the text of a line")
    assert t.token_bytes()[[0, 1, 2]].tolist() == [0, 0, 0]


def test_fingerprints_tell_tokenizers_apart(tmp_path):
    a = build_tokenizer("GPT2BPETokenizer", **tiny(tmp_path)).fingerprint()
    assert a == build_tokenizer("GPT2BPETokenizer", **tiny(tmp_path)).fingerprint()
    b = build_tokenizer("GPT2BPETokenizer", **tiny(tmp_path, merges_of(("h", "e"), ("l", "o")))).fingerprint()
    c = build_tokenizer("ByteTokenizer").fingerprint()
    assert len({a, b, c}) == 3 and all(len(f) == 64 for f in (a, b, c))


@pytest.mark.parametrize(
    "kind, package",
    [("GPT2BPETokenizer", "tiktoken"), ("HFTokenizer", "tokenizers"), ("SentencePieceTokenizer", "sentencepiece")],
)
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    given = tiny(tmp_path) if kind == "GPT2BPETokenizer" else {"tokenizer_model": str(tmp_path)}
    with pytest.raises(MissingInput, match=rf"{package}: pip install -e '\.\[tokenizers\]'"):
        build_tokenizer(kind, **given)


@pytest.mark.parametrize("kind", ["TikTokenizer", "SentencePieceTokenizer", "HFTokenizer"])
def test_files_that_are_not_tokenizers_are_refused(tmp_path, kind):
    with pytest.raises(MissingInput, match="--tokenizer-model"):
        build_tokenizer(kind)
    with pytest.raises(MissingInput, match="does not exist"):
        build_tokenizer(kind, tokenizer_model=str(tmp_path / "none"))
    (tmp_path / "noise").write_bytes(b"\x00\xff noise\n" * 10)
    with pytest.raises(BadData, match="noise"):
        build_tokenizer(kind, tokenizer_model=str(tmp_path / "noise"))


def test_reserved_ids_follow_the_vocabulary_and_need_room():
    v = Vocabulary(50257, 50304)
    assert (v.mask, v.padding, v.ignore) == (50257, 50258, 50259)
    assert Vocabulary(125, 128).ignore == 127
    with pytest.raises(Mismatch, match="128 rows"):
        Vocabulary(126, 128)


# ---- gigatoken


def both(**files):
    pytest.importorskip("gigatoken")
    return [build_tokenizer("GPT2BPETokenizer", **files, bpe_backend=backend) for backend in ("gigatoken", "tiktoken")]


def both_gpt2():
    return both(vocab_file=shared("gpt2-vocab.json"), merge_file=shared("gpt2-merges.txt"))


HOSTILE = [
    *TRICKY,
    "a\x00b\x00\x00",
    "a\r\nb\r\n\r\n",
    " " * 30000,
    " " * 30000 + "x",
    "\n" * 30000 + "x",
    "\t \n" * 9000,
    "x" * 30000,
    "ab" * 30000,
    "123" * 20000,
    "!?" * 20000,
    "\u65e5\u672c" * 9000,
    "\u00a0\u2003\u3000 \n" * 3000,
    "<|endoftext|>" * 99,
    "<|endoftext|",
    "|endoftext|>",
    " <|endoftext|>\n",
    "\ud7ff\ue000\U0010ffff",
]


def test_gigatokens_ids_are_tiktokens():
    fast, slow = both_gpt2()
    rng = random.Random(0)
    for text in HOSTILE + [random_text(rng) for _ in range(3000)]:
        ids = fast.encode(text)
        assert np.array_equal(ids, slow.encode(text)) and fast.eod not in ids
        assert fast.decode(ids) == slow.decode(ids) == text
    assert fast.fingerprint() == slow.fingerprint() and (fast.eod, fast.vocab_size) == (slow.eod, slow.vocab_size)


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_gigatoken_and_tiktoken_agree_on_every_character(step):
    """Each library has its own tables of letters, digits and spaces."""
    fast, slow = both_gpt2()
    for code in [*range(0, 0xD800, step), *range(0xE000, 0x110000, step)]:
        x = chr(code)
        text = f"a{x}b {x} 1{x}1  {x}\n{x}'{x}s {x}{x}\t{x}"
        assert np.array_equal(fast.encode(text), slow.encode(text)), hex(code)


@pytest.mark.parametrize("most", [60_000, pytest.param(1 << 30, marks=pytest.mark.slow)])
def test_gigatoken_and_tiktoken_agree_on_published_texts(most):
    fast, slow = both_gpt2()
    files = [path for path in FILES.parent.rglob("*") if path.suffix in (".txt", ".jsonl", ".json", ".csv", ".md")]
    if not files:
        pytest.skip("needs ../shared/data beside the repository")
    for file in files:
        text = file.read_bytes()[:most].decode(errors="ignore")
        assert np.array_equal(fast.encode(text), slow.encode(text)), file


def test_end_of_text_in_a_text_is_ordinary_whatever_the_library():
    for tokenizer in both_gpt2():
        assert tokenizer.encode("<|endoftext|>").tolist() == [27, 91, 437, 1659, 5239, 91, 29]
        assert tokenizer.eod not in tokenizer.encode("a<|endoftext|><|endoftext|> b")


def test_auto_is_gigatoken_where_it_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("gigatoken")
    files = tiny(tmp_path)
    assert isinstance(build_tokenizer("GPT2BPETokenizer", **files, bpe_backend="auto").encode, fast_bpe.Gigatoken)
    assert not isinstance(build_tokenizer("GPT2BPETokenizer", **files).encode, fast_bpe.Gigatoken)
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    auto = build_tokenizer("GPT2BPETokenizer", **files, bpe_backend="auto")
    assert auto.encode("hello").tolist() == [258, 78]
    with pytest.raises(MissingInput, match=r"gigatoken: pip install -e '\.\[data\]'"):
        build_tokenizer("GPT2BPETokenizer", **files, bpe_backend="gigatoken")


def test_a_vocabulary_that_the_two_cut_differently_is_left_to_tiktoken(tmp_path):
    pytest.importorskip("gigatoken")
    files = tiny(tmp_path, merges_of(("b", "c"), ("a", "b"), ("ab", "c")))  # gigatoken never comes from a, bc to abc
    auto, slow = (build_tokenizer("GPT2BPETokenizer", **files, bpe_backend=backend) for backend in ("auto", "tiktoken"))
    assert auto.encode("abcabc").tolist() == slow.encode("abcabc").tolist()
    with pytest.raises(Mismatch, match="cuts 'abc' differently"):
        build_tokenizer("GPT2BPETokenizer", **files, bpe_backend="gigatoken")


def test_gigatokens_cache_is_dropped_when_the_process_has_grown(tmp_path, monkeypatch):
    encode = both(**tiny(tmp_path))[0].encode
    built = []
    monkeypatch.setattr(encode, "floor", 0)
    monkeypatch.setattr(encode, "build", lambda spec, real=encode.build: built.append(1) or real(spec))
    monkeypatch.setattr(fast_bpe, "resident_bytes", lambda: fast_bpe.Gigatoken.LIMIT)
    assert encode("hello" * fast_bpe.Gigatoken.PAUSE)[:2].tolist() == [258, 78] and not built
    monkeypatch.setattr(fast_bpe, "resident_bytes", lambda: 2 * fast_bpe.Gigatoken.LIMIT)
    assert encode("hello" * fast_bpe.Gigatoken.PAUSE)[:2].tolist() == [258, 78] and built == [1]
    assert encode("hello").tolist() == [258, 78] and built == [1]  # not at every text


@pytest.mark.parametrize("specials", [(), ("<|endoftext|>", "<|pad|>")])
def test_a_gpt2_like_tokenizer_json_goes_through_gigatoken_as_well(tmp_path, specials):
    pytest.importorskip("tokenizers"), pytest.importorskip("gigatoken")
    folder = hf_file(tmp_path, *(specials or ("<|endoftext|>",)))
    fast, slow = (build_tokenizer("HFTokenizer", tokenizer_model=folder, bpe_backend=name) for name in ("auto", "tiktoken"))
    assert isinstance(fast.encode, fast_bpe.Gigatoken) and fast.fingerprint() == slow.fingerprint()
    for text in [*HOSTILE, "hello<|pad|>hello"]:
        assert np.array_equal(fast.encode(text), slow.encode(text)) and fast.eod not in fast.encode(text)


def test_a_trained_tokenizer_whose_special_token_comes_first_goes_through_gigatoken(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("gigatoken")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(300)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator([" ".join(rng.choices(words, k=50)) for _ in range(300)], trainer)
    model.save(str(tmp_path / "tokenizer.json"))
    fast, slow = (
        build_tokenizer("HFTokenizer", tokenizer_model=str(tmp_path), bpe_backend=name) for name in ("gigatoken", "tiktoken")
    )
    assert fast.eod == slow.eod == 0
    for text in [*HOSTILE, *(" ".join(rng.choices(words, k=20)) for _ in range(200)), "".join(rng.choices("abcdefgh ", k=9999))]:
        assert np.array_equal(fast.encode(text), slow.encode(text)) and 0 not in fast.encode(text)


def test_other_kinds_of_tokenizer_json_keep_their_library(tmp_path):
    pytest.importorskip("tokenizers"), pytest.importorskip("gigatoken")
    few = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}  # not a symbol for each byte
    for parts in ({"model": few}, {"normalizer": {"type": "NFC"}}):
        folder = hf_file(tmp_path, "<|endoftext|>", **parts)
        auto = build_tokenizer("HFTokenizer", tokenizer_model=folder, bpe_backend="auto")
        assert not isinstance(auto.encode, fast_bpe.Gigatoken) and len(auto.encode("ab"))
    with pytest.raises(Mismatch, match="not of GPT-2's kind"):
        build_tokenizer("HFTokenizer", tokenizer_model=folder, bpe_backend="gigatoken")
