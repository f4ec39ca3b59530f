"""What a program gets that drives the instrument: one JSON value on stdout from every verb, and the same exit codes."""

import json

import pytest

from megatron.config import declared
from megatron.flags import find, split_words
from megatron.scaling.__main__ import VERBS, main
from megatron.scaling.law.forms.chinchilla import Chinchilla

LAW = Chinchilla(E=1.0, A=15, B=60, alpha=0.4, beta=0.3)


@pytest.fixture
def ask(capfd):
    """Run a verb with --json and give what it answers; nothing else may stand on stdout."""

    def run(*words, code=0):
        assert main([*map(str, words), "--json"]) == code
        out = capfd.readouterr().out
        return json.loads(out) if out else None

    return run


def finish(run, folder):
    """What a run of a plan leaves behind, its loss by the law."""
    folder.mkdir(parents=True)
    table, config = declared(), {}
    for spelled, words in split_words(run["flags"], []):
        name = find(spelled, table)[0]
        config.setdefault(table[name][0], {})[name] = " ".join(words)
    (folder / "config.json").write_text(json.dumps(config))
    same = {"tokenizer": "t", "eval_slice": "s", "params_convention": "total", "flops_convention": "6ND", "bound": "exact"}
    numbers = {name: run[name] for name in ("params", "tokens")} | {"flops": run["flops_6nd"]}
    loss = LAW.loss(run["params"], run["tokens"]) * (1 + 1e-3 * (len(run["name"]) % 3 - 1))
    result = same | numbers | {"objective": "ar", "loss": loss, "lr_decayed": True, "steps": run["steps"]}
    (folder / "result.json").write_text(json.dumps(result))


def test_a_program_drives_plan_fit_predict_and_next(ask, tmp_path):
    budgets = ["--flops", "2e11,6e11,2e12,6e12", "--sizes", "auto", "--num-sizes", "5", "--objectives", "ar", "--scale", "cpu"]
    plan = ask("plan", *budgets, "--out", tmp_path / "plan.json")
    assert len(plan["runs"]) == 20 and plan["written"] == [str(tmp_path / "plan.json")]
    assert ask("status", tmp_path / "plan.json", "--runs-dir", tmp_path / "runs")["total"]["waiting"] == 20
    for run in plan["runs"]:
        finish(run, tmp_path / "runs" / run["name"])
    assert ask("status", tmp_path / "plan.json", "--runs-dir", tmp_path / "runs")["total"]["done"] == 20
    fit = ask("fit", tmp_path / "runs", "--bootstrap", "40", "--out", tmp_path / "fit")
    (path,) = fit["written"]
    assert fit["fits"]["ar"]["params"]["alpha"] == pytest.approx(0.4, abs=0.1) and fit["fits"]["ar"]["rows_used"] == 20
    predicted = ask("predict", path, "--flops", "1e13")["predictions"][0]
    assert predicted["loss"] == pytest.approx(float(LAW.optimal_loss(1e13)), rel=0.02)
    proposal = ask("next", path, "--quantity", "loss@1e13")["proposals"][0]
    assert proposal["runs"][0]["gpu_hours"] > 0 and 0 < proposal["strongest"]["shrinkage"] < 1
    assert ask("isoflop", tmp_path / "runs", "--bootstrap", "20", code=65) is None  # no minimum lies inside these sizes


def test_every_verb_offers_json(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit) as left:
            main([verb, *(["ls"] if verb == "runs" else []), "--help"])
        assert left.value.code == 0 and "--json" in capsys.readouterr().out, verb
