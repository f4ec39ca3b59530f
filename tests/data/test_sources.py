import pytest

from megatron.data.sources import Source, deal, open_corpus, parse_paths, read_path_file, take_first
from megatron.errors import BadData, MissingInput


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a", [(1.0, 0, 1.0, "a")]),
        ("a b", [(1.0, 0, 1.0, "a"), (1.0, 0, 1.0, "b")]),
        ("0.3 a 0.7 b", [(0.3, 0, 1.0, "a"), (0.7, 0, 1.0, "b")]),
        ("1 0.9:1 a", [(1.0, 0.9, 1.0, "a")]),
        ("1 :0.5 a 2 0.5: a", [(1.0, 0.0, 0.5, "a"), (2.0, 0.5, 1.0, "a")]),
        ("1 0:100M a", [(1.0, 0, 100_000_000, "a")]),
        ("1 1e6:2e6 a", [(1.0, 1_000_000, 2_000_000, "a")]),
        ("1 5k: a", [(1.0, 5000, 1.0, "a")]),
        (":0.5 a", [(1.0, 0.0, 0.5, "a")]),
        ("1 data/c4:v2", [(1.0, 0, 1.0, "data/c4:v2")]),
    ],
)
def test_entries(words, expected):
    sources = parse_paths(words.split())
    assert sources == [Source(*e) for e in expected]
    assert all(type(s.start) is type(s.stop) or s.start == 0 or s.stop == 1.0 for s in sources)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "names no corpus"),
        ("0.5", "0.5 stands at the end"),
        ("0.5 a 0.5", "0.5 stands at the end"),
        ("0.5 a 0:1", "0:1 stands at the end"),
        ("-0.5 a 1 b", "the weight of a is -0.5"),
        ("1 a nan b", "the weight of b is nan"),
        ("1 a inf b", "the weight of b is inf"),
        ("0 a 0 b", r"every weight is 0 \(a, b\)"),
        ("0.5 a b", "b has no weight"),
        ("1 0.9:0.1 a", "range 0.9:0.1 of a"),
        ("1 5:5 a", "range 5:5 of a"),
        ("1 -5:10 a", "range -5:10 of a"),
        ("1 0.5:10 a", "range 0.5:10 of a"),
        ("1 0:1e999 a", "range 0:1e999 of a"),
        ("1 0:5x a", "range 0:5x of a"),
    ],
)
def test_mistakes_are_named(words, said):
    with pytest.raises(BadData, match=f"--train-data-path: .*{said}"):
        parse_paths(words.split(), "--train-data-path")


@pytest.mark.parametrize(
    "text", ['"0.3 a" "0.7 b"\n', '"0.3 a 0.7 b"', "0.3 a\n0.7 b\n", "# two corpora\n\n0.3 a  # the first\n   0.7   b\n\n"]
)
def test_files_of_both_kinds(tmp_path, text):
    (tmp_path / "paths.txt").write_text(text)
    (tmp_path / "spaces.txt").write_text("0.3 'a b/c'\n0.7 b")
    assert read_path_file(tmp_path / "spaces.txt")[0].prefix == "a b/c"
    assert read_path_file(tmp_path / "paths.txt") == [Source(0.3, 0, 1.0, "a"), Source(0.7, 0, 1.0, "b")]


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "paths.txt"
    with pytest.raises(MissingInput, match="paths.txt: No such file"):
        read_path_file(path)
    for content in (b"# nothing\n", b"-1 a", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(BadData, match="paths.txt: "):
            read_path_file(path)


# --unique-tokens


def ranges(sources):
    return [(source.start, source.stop) for source in sources]


def test_the_first_tokens_of_a_range(two):
    source = Source(1.0, 100, 900, two[0])
    assert ranges(take_first([source], 300)) == [(100, 400)]
    assert ranges(take_first([source], 0.25)) == [(100, 300)]
    assert ranges(take_first([source], 1)) == [(100, 900)]


def test_a_blend_is_cut_in_proportion_to_its_weights(two):
    blend = [Source(0.3, 0, 1.0, two[0]), Source(0.0, 0, 1.0, two[0]), Source(0.7, 0, 1.0, two[1])]
    assert ranges(take_first(blend, 1000)) == [(0, 300), (0, 700)]
    assert ranges(take_first(blend, 0.5)) == [(0, 500), (0, 1500)]


@pytest.mark.parametrize("weights", [[1.0], [0.3, 0.7], [1 / 3, 1 / 3, 1 / 3], [5.0, 0.01, 2.0, 2.0]])
def test_smaller_amounts_lie_inside_larger_ones(weights):
    before = [0] * len(weights)
    for total in range(1, 2000):
        counts = deal(total, weights)
        assert sum(counts) == total and all(b <= c for b, c in zip(before, counts))
        assert all(abs(c - total * w / sum(weights)) < len(weights) for c, w in zip(counts, weights))
        before = counts


def test_more_unique_tokens_than_there_are_is_refused(two):
    with pytest.raises(BadData, match="--unique-tokens 1001: .*a has 1000 tokens from 0 to 1000; ask for fewer"):
        take_first([Source(1.0, 0, 1.0, two[0])], 1001)
    with pytest.raises(BadData, match="of 3000 tokens .*a gives 1500 by its weight, but .*a has 1000 tokens"):
        take_first([Source(1.0, 0, 1.0, two[0]), Source(1.0, 0, 1.0, two[1])], 3000)


# Opening


def test_a_corpus_is_opened_once_until_its_files_change(counting):
    first = open_corpus(counting("again", 100))
    assert open_corpus(first.prefix) is first
    assert open_corpus(counting("again", 200)).num_tokens == 200
