import json

import pytest

from megatron.data.indexed import IndexedDataset
from megatron.data.synthetic.corpus import read_source
from megatron.data.synthetic.presets import PRESETS, build
from tools.make_entropy_corpus import main


def make(*words):
    return main([str(word) for word in words])


def test_a_preset_is_written_and_its_floor_is_said(tmp_path, capsys):
    assert make("golden-mean", "--tokens", "10K", "--output", tmp_path / "data" / "g") == 0
    said = capsys.readouterr().out
    assert "10000 tokens of 2 symbols, 2 hidden states" in said and "0.462098 nats per token, in closed form" in said
    found = IndexedDataset(tmp_path / "data" / "g")
    assert found.num_tokens == 10_000 and found.meta["extra"]["entropy"]["entropy_rate"] == pytest.approx([0.4620981] * 2)


def test_a_hidden_source_says_its_bounds(tmp_path, capsys):
    assert make("noisy-golden-mean", "--tokens", "3000", "--output", tmp_path / "c") == 0
    assert "entropy rate between 0.6012" in capsys.readouterr().out


def test_every_preset_and_flag(tmp_path):
    for name in PRESETS:
        assert (
            make(
                name,
                "--tokens",
                "2500",
                "--output",
                tmp_path / name,
                "--symbols",
                3,
                "--order",
                2,
                "--states",
                2,
                "--components",
                2,
                "--document-length",
                50,
                "--sharpness",
                1,
                "--source-seed",
                7,
                "--seed",
                2,
            )
            == 0
        )
    chain = build("markov", symbols=3, order=2, sharpness=1.0, seed=7)
    assert (read_source(str(tmp_path / "markov")).transitions == chain.transitions).all()


def test_fewer_tokens_are_the_beginning_of_more(tmp_path):
    for n in (5000, 10000):
        make("mixture", "--tokens", n, "--output", tmp_path / str(n))
    assert (IndexedDataset(tmp_path / "5000").tokens(0, 5000) == IndexedDataset(tmp_path / "10000").tokens(0, 5000)).all()


def test_a_source_from_a_file(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"kind": "markov", "order": 1, "conditionals": [[0.9, 0.1], [0.4, 0.6]]}))
    assert make(tmp_path / "s.json", "--tokens", "3K", "--output", tmp_path / "c") == 0
    assert read_source(str(tmp_path / "c")).start == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["nosuch", "--tokens", "10"], 66, "give a JSON file, or one of the presets coin, golden-mean"),
        (["coin", "--tokens", "0"], 2, "--tokens 0: expected a whole number, 1 or more"),
        (["markov", "--tokens", "10", "--symbols", "0"], 2, "--symbols 0: expected 1 or more"),
        (["markov", "--tokens", "10", "--sharpness", "-1"], 2, "--sharpness -1"),
        (["mixture", "--tokens", "10", "--document-length", "1"], 65, "more than 1 token"),
        (["markov", "--tokens", "10", "--order", "9"], 65, "lower --symbols, --order"),
        (["broken.json", "--tokens", "10"], 65, "is not JSON"),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(tmp_path, monkeypatch, capsys, words, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    assert make(*words, "--output", tmp_path / "out" / "c") == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.glob("out/c*"))


def test_a_source_from_a_file_takes_no_shape(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        make(tmp_path / "own.json", "--tokens", "10", "--output", tmp_path / "c", "--states", 4)
    assert caught.value.code == 2 and "--states shapes a preset" in capsys.readouterr().err
    assert make("coin", "--tokens", "10", "--output", tmp_path / "c", "--json") == 0
    assert json.loads(capsys.readouterr().out)["entropy_rate"] == pytest.approx([0.6108643] * 2)
