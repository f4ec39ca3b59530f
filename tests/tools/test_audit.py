"""The door of audits: exit codes, records, and one sentence for what cannot be audited."""

import json

import pytest

from tools.audit import main


def test_a_rule_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_rule.py").write_text(
        "def half(tokens, vocab, predict):\n"
        "    return -0.5 * predict(tokens * 0 + vocab).gather(2, tokens[..., None])[..., 0].sum(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["own_rule:half", "--vocab", "2", "--length", "3", "--output", "out", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "out" / "audit.json").read_text())
    assert said["verdict"] == "not a bound" and (tmp_path / "out" / "audit.png").stat().st_size > 10_000


def test_an_objective_is_also_audited_with_a_network(tmp_path, capsys):
    assert main(["mdm", "--vocab", "2", "--length", "2", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "network" in out and out.endswith("mdm: tight\n")


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["nothing_there"], 66, "expected ar, mdm"),
        (["json:nothing"], 66, "module:function"),
        (["json:dumps"], 78, "expected predict"),
        (["ar", "--checkpoint", "3"], 65, "only a run has checkpoints"),
        (["mdm", "--length", "9"], 78, "shorten it"),
        (["mdm", "--vocab", "1"], 65, "expected 2 or more"),
    ],
)
def test_what_cannot_be_audited(words, code, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())
