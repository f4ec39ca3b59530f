"""The tool that compares layouts, in this process."""

import json

import pytest

from megatron.proof import layouts
from megatron.proof.agreement import Verifier
from tools import verify_layouts


def run(capsys, *words):
    code = verify_layouts.main([*map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_tool_prints_a_table_and_leaves_with_0(capsys):
    code, out, err = run(capsys, "--layouts", "tp1+micro1,dp2", "--objective", "mdm", "--steps", 2, "--checkpoints")
    assert (code, err) == (0, "")
    assert out.count("same bits") == 6 and "2 of 2 layouts do what one process does" in out


def test_layout_with_another_seed_is_found_out(capsys, monkeypatch):
    monkeypatch.setitem(layouts.MODIFIERS, "micro1", "--seed 99")
    code, out, err = run(capsys, "--layouts", "tp1+micro1", "--objective", "ar", "--steps", 2)
    assert code == 1 and "ar tp1+micro1: differs from one process" in err
    assert "32 of 32 differ" in out and out.count(" > ") == 4 and "0 of 1 layouts" in out


def test_layout_that_fails_is_named_with_its_cause(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(layouts.MODIFIERS, "micro1", f"--data-path {tmp_path}/gone")
    code, out, err = run(capsys, "--layouts", "tp1+micro1", "--objective", "ar", "--steps", 2)
    assert code == 1 and "failed" in out and "ar tp1+micro1: rank 0 of 1: MissingInput:" in err


def test_own_flags_are_verified_at_the_layout_they_name(capsys, corpus):
    flags = [
        "--num-layers",
        2,
        "--hidden-size",
        32,
        "--num-attention-heads",
        2,
        "--seq-length",
        16,
        "--global-batch-size",
        4,
        "--lr",
        "1e-3",
        "--device",
        "cpu",
        "--data-path",
        corpus,
        "--split",
        "80,20,0",
        "--tokenizer-type",
        "ByteTokenizer",
    ]
    code, out, err = run(capsys, "--objective", "ar", "--steps", 2, "--", *flags, "--tensor-model-parallel-size", 2)
    assert (code, err) == (0, "") and "as given" in out and "1 of 1" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (("--layouts", "tp2+magic"), "tp2+magic: expected sizes such as tp2xpp2xdp2, and behind a + any of sp, "),
        (("--layouts", "tp0"), "tp0: expected sizes"),
        (("--layouts", "tp3"), "tp3: "),
        (("--layouts", "tp2", "--zero-stage", "1"), "--layouts tp2: the other flags name a layout too; give it in one way"),
        (("--layouts", "tp4xpp4"), "it needs 16 processes, and there is room for 8"),
        (("--hidden-sice", "3"), "--hidden-sice is not a flag; did you mean --hidden-size?"),
    ],
)
def test_what_cannot_be_verified_is_refused_before_anything_starts(capsys, words, said):
    code, out, err = run(capsys, *words)
    assert code == 2 and said in err and "Traceback" not in err


def test_of_the_usual_list_what_does_not_fit_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(layouts, "LAYOUTS", ["tp1", "tp4xpp4"])
    code, out, _ = run(capsys, "--objective", "ar", "--steps", 2)
    assert code == 0 and "left out: tp4xpp4: it needs 16 processes" in out and "1 of 1" in out


def test_rows_come_one_by_one_and_stay_when_it_is_stopped(capsys, monkeypatch):
    verify = Verifier.verify

    def stopped_at_the_second(self, layout):
        if layout.name == "tp1+micro3":
            assert "tp1+micro1" in capsys.readouterr().err
            raise KeyboardInterrupt
        return verify(self, layout)

    monkeypatch.setattr(Verifier, "verify", stopped_at_the_second)
    code, out, err = run(capsys, "--layouts", "tp1+micro1,tp1+micro3", "--objective", "ar", "--steps", 2, "--json")
    (row,) = json.loads(out)
    assert (row["layout"], row["ranks"], row["passed"]) == ("tp1+micro1", 1, True)
    assert code == 130 and "1 of 1 layouts do what one process does" in err and "Interrupted" in err
