"""The door of audits: exit codes, records, and one sentence for what cannot be audited."""

import json
from types import SimpleNamespace

import pytest
import torch

from megatron.objectives.masked import MaskedDiffusion
from megatron.proof.audit import Audit
from megatron.proof.scoring import Posed
from megatron.proof.subjects import Folder, add_own, longest
from tools.audit import describe, main


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


def test_what_training_poses(tmp_path, capsys):
    assert main(["mdm", "--training", "--vocab", "2", "--length", "2", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("mdm's training: loose\n")
    words = ["--output", str(tmp_path), "--vocab", "2", "--length", "2", "--", "--mdm-loss", "low-variance"]
    assert main(["mdm", "--training", *words]) == 1
    assert "part of the text is never paid for" in capsys.readouterr().out


def test_a_folder_of_another_library(tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its folders are not tested here")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=4, initializer_range=0.5, **sizes)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    assert main([str(tmp_path / "llama"), "--vocab", "2", "--length", "3"]) == 0
    said = json.loads((tmp_path / "llama" / "audit.json").read_text())
    (folder,) = [one for one in said["sums"] if one["source"] == "folder"]
    assert said["verdict"] == "tight" and folder["total"] == pytest.approx(1, abs=1e-5) and said["unscored"] == ""


def test_a_verdict_without_a_row_of_the_weights_says_so():
    wide, pairs = Audit(subject="wide"), Audit(subject="pairs")
    network = Folder(lambda input_ids: SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4)))
    posed = Posed(name="own", objective=MaskedDiffusion(mask_id=600).reference())
    add_own(wide, posed, longest(posed, 600), network, "folder", "the folder's 600 tokens")
    assert (
        not wide.sums and wide.record()["unscored"] == "of how it is scored: no row was scored with the folder weights themselves"
    )
    assert "wide: loose (of how it is scored: no row was scored" in describe(wide)
    posed = Posed(name="own", objective=MaskedDiffusion(mask_id=3).reference())
    add_own(pairs, posed, longest(posed, 3), network, "folder", "the folder's 3 tokens")
    assert not pairs.unscored and pairs.sums[0].total == pytest.approx(0.75**4)
    assert pairs.notes == ["folder: all 81 rows of 4 of the folder's 3 tokens"]


def test_a_model_that_sees_later_tokens_is_told():
    def sees_all(input_ids):
        return SimpleNamespace(logits=input_ids.sum(1)[:, None, None].expand(*input_ids.shape, 9).float())

    def sees_before(input_ids):
        return SimpleNamespace(logits=input_ids.cumsum(1)[..., None].expand(*input_ids.shape, 9).float())

    assert Folder(sees_all).leak(9, 4) > 1 and Folder(sees_before).leak(9, 4) == 0


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["nothing_there"], 66, "expected ar, mdm"),
        (["json:nothing"], 66, "module:function"),
        (["json:dumps"], 78, "expected predict"),
        (["json:dumps", "--training"], 2, "only an objective is trained"),
        (["ar", "--checkpoint", "3"], 2, "only a run has them"),
        (["mdm", "--length", "9"], 78, "shorten it"),
        (["mdm", "--vocab", "1"], 2, "expected 2 or more"),
    ],
)
def test_what_cannot_be_audited(words, code, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())
