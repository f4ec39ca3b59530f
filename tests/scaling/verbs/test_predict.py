import json

import numpy as np
import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.answers.frontier import frontier_of
from megatron.scaling.answers.isoflop import fit_isoflop
from megatron.scaling.answers.ledger import read_ledger
from megatron.scaling.law.fit import save_fit
from megatron.scaling.table.json_record import by_field, json_text
from tests.scaling.answers.test_critical import AR, MDM, stated_fit


@pytest.fixture
def fits(tmp_path):
    save_fit(stated_fit(AR, 0.002), tmp_path / "ar")
    save_fit(stated_fit(MDM, 0.002, "bound", seed=1), tmp_path / "mdm")
    return str(tmp_path / "ar"), str(tmp_path / "mdm")


def test_several_fits_say_which_how_large_and_how_long(fits, tmp_path, capsys):
    words = ["predict", *fits, "--flops", "1e21", "--unique-tokens", "1e8", "--allow", "bound", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    found = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert found["verdict"] == {"best": fits[1], "share_of_draws": 1.0, "num_draws": 200}
    for one, law in zip(found["predictions"], (AR, MDM)):
        N, D = law.optimum(1e21, 1e8)
        assert one["params"] == pytest.approx(N) and one["epochs"] == pytest.approx(D / 1e8)
        assert one["params_ci"][0] < N < one["params_ci"][1] and one["loss_ci"][0] < one["loss"] < one["loss_ci"][1]
    assert found["answer"] in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert [len(source["sha256"]) for source in found["sources"]] == [64, 64]


def test_one_run_goes_into_the_ledger(fits, tmp_path, capsys):
    ledger = tmp_path / "ledger.jsonl"
    words = ["predict", fits[0], "--params", "1e9", "--tokens", "1e11", "--unique-tokens", "1e10"]
    assert main([*words, "--ledger", str(ledger), "--run", "big"]) == 0
    (entry,) = read_ledger(ledger)
    assert entry["run"] == "big" and entry["loss"] == pytest.approx(AR.loss(1e9, 1e11, 1e10)) and entry["unit"] == "nats"
    assert main([*words, "--run", "big"]) == 2 and "--ledger" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--params", "1e9"], ["--flops", "1e20", "--params", "1e9", "--tokens", "1e10"]])
def test_a_run_is_said_once(fits, words, capsys):
    assert main(["predict", fits[0], *words]) == 2
    assert "--flops, or two of" in capsys.readouterr().err


def test_minima_of_isoflops_say_the_optimum_and_nothing_else(tmp_path, capsys):
    found = {}
    for objective, law in (("ar", AR), ("mdm", MDM)):
        flops = np.repeat([1e19, 1e20, 1e21], 5)
        params = law.optimum(flops)[0] * np.tile(np.geomspace(0.2, 5, 5), 3)
        loss = law.loss(params, flops / 6 / params) + 0.003 * np.sin(17 * np.arange(15))
        isoflop = fit_isoflop(flops, params, flops / 6 / params, loss, num_resamples=50)
        optimum = frontier_of(isoflop)
        found[objective] = {
            "objective": objective,
            "bound": "exact",
            "optimum": optimum,
            "scatter": isoflop.scatter,
            "warnings": [],
        }
    (tmp_path / "iso").mkdir()
    (tmp_path / "iso" / "isoflop.json").write_text(json_text(by_field(found)))
    assert main(["predict", str(tmp_path / "iso"), "--flops", "3e20", "--json"]) == 0
    ar, mdm = json.loads(capsys.readouterr().out)["predictions"]
    for one, law in ((ar, AR), (mdm, MDM)):
        assert one["params"] == pytest.approx(law.optimum(3e20)[0], rel=0.2) and one["flops"] == 3e20
        assert one["loss"] == pytest.approx(law.optimal_loss(3e20), rel=0.01) and one["run_ci"][0] < one["loss"]
    assert main(["predict", str(tmp_path / "iso"), "--params", "1e8", "--tokens", "1e9"]) == 65
    assert "give --flops alone" in capsys.readouterr().err


def test_fits_that_may_not_be_compared_are_refused(fits, tmp_path, capsys):
    save_fit(stated_fit(MDM, unit="bits-per-byte"), tmp_path / "bits")
    assert main(["predict", fits[0], str(tmp_path / "bits"), "--flops", "1e20", "--allow", "bound"]) == 78
    assert "--unit" in capsys.readouterr().err


def test_beyond_the_data_is_a_warning(fits, capsys):
    assert main(["predict", fits[0], "--flops", "1e25"]) == 0
    assert "1e+04x beyond" in capsys.readouterr().out


def test_laws_of_further_columns_are_asked_at_values_and_laws_of_the_loss_follow(tmp_path, capsys):
    N, D, W = (x.ravel() for x in np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11], [0.1, 0.3, 1.0]))
    loss = 1.5 + 200 / N**0.3 + 900 / D**0.35 + 0.05 / W**0.5
    accuracy = 0.25 + 0.7 / (1 + np.exp(6 * (loss - 2.6)))
    rows = zip([f"r{i}" for i in range(len(N))], N, D, loss, W, accuracy)
    (tmp_path / "t.csv").write_text(
        "run,params,tokens,loss,weight_decay,acc\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    form = "E + A/N^alpha + B/D^beta + G/W^phi; W = weight-decay"
    fits, table = [str(tmp_path / "loss"), str(tmp_path / "accuracy")], str(tmp_path / "t.csv")
    assert main(["fit", table, "--bootstrap", "20", "--out", fits[0]]) == 78  # the runs differ in weight decay
    assert main(["fit", table, "--form", form, "--bootstrap", "20", "--out", fits[0]]) == 0
    steps = ["--form", "accuracy", "--map", "task_loss=loss,loss=acc", "--residual", "mse", "--allow", "weight-decay"]
    assert main(["fit", table, *steps, "--bootstrap", "20", "--out", fits[1]]) == 0
    capsys.readouterr()
    asked = ["predict", fits[0], "--params", "1e9", "--tokens", "1e12"]
    assert main([*asked, "--at", "weight-decay=0.3", "--then", fits[1], "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["predictions"]
    true = 1.5 + 200 / 1e9**0.3 + 900 / 1e12**0.35 + 0.05 / 0.3**0.5
    assert found["loss"] == pytest.approx(true, abs=2e-3) and found["accuracy"] is None
    assert found["then"][0]["value"] == pytest.approx(0.25 + 0.7 / (1 + np.exp(6 * (true - 2.6))), abs=2e-3)
    assert found["then"][0]["ci"][0] <= found["then"][0]["value"] <= found["then"][0]["ci"][1]
    for more, said in (([], "predict --at weight-decay"), (["--at", "width=1"], "--at width: the laws are of")):
        assert main([*asked, *more]) in (2, 65) and said in capsys.readouterr().err
    assert main([*asked, "--at", "W=0.3", "--then", fits[0]]) == 65 and "which is the predicted loss" in capsys.readouterr().err


def test_a_direct_law_of_accuracy_predicts_accuracy(tmp_path, capsys):
    C = np.geomspace(1e18, 1e21, 8)
    acc = 0.25 + 0.75 * np.exp(-((3e17 / C) ** 0.1))  # -ln Q = (3e17 / C)^0.1
    rows = zip(np.sqrt(C / 120), 20 * np.sqrt(C / 120), C, acc)
    (tmp_path / "t.csv").write_text("params,tokens,flops,acc\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    argv = [
        "fit",
        str(tmp_path / "t.csv"),
        "--accuracy",
        "acc",
        "--chance",
        "0.25",
        "--form",
        "kaplan-flops",
        "--bootstrap",
        "20",
    ]
    assert main([*argv, "--out", str(tmp_path / "fit")]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "fit"), "--params", "1e10", "--tokens", "2e11", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"][0]["accuracy"]
    assert found["value"] == pytest.approx(0.25 + 0.75 * np.exp(-((3e17 / 1.2e22) ** 0.1)), abs=1e-3)
    assert found["ci"][0] <= found["value"] + 1e-9 and found["of"] == "acc"


def test_what_a_law_cannot_say_is_said(tmp_path, capsys):
    N, D, W = (x.ravel() for x in np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11], [0.1, 0.3, 1.0]))
    loss = 1.5 + 200 / N**0.3 + 900 / D**0.35 + 0.05 / W**0.5
    other, acc = 1.1 + 1.2 * (loss - 1.4) ** 0.9, 0.25 + 0.75 * np.exp(-0.4 * loss)
    rows = zip([f"r{i}" for i in range(len(N))], N, D, loss, W, other, acc)
    (tmp_path / "t.csv").write_text(
        "run,params,tokens,loss,weight_decay,other,acc\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    table, fits = str(tmp_path / "t.csv"), {name: str(tmp_path / name) for name in ("law", "other", "acc")}
    form = ["--form", "E + A/N^alpha + B/D^beta + G/W^phi; W = weight-decay", "--bootstrap", "20"]
    assert main(["fit", table, *form, "--out", fits["law"]]) == 0
    pooled = ["--allow", "weight-decay", "--bootstrap", "20"]
    to_other = ["--form", "loss-to-loss", "--map", "other_loss=loss,loss=other"]
    assert main(["fit", table, *to_other, *pooled, "--out", fits["other"]]) == 0
    direct = ["--form", "E + A*X^k; X = task_loss", "--map", "task_loss=loss", "--accuracy", "acc", "--chance", "0.25"]
    assert main(["fit", table, *direct, *pooled, "--out", fits["acc"]]) == 0
    ledger, asked = str(tmp_path / "ledger.jsonl"), ["predict", fits["law"], "--params", "1e8", "--tokens", "1e10"]
    at = ["--at", "weight-decay=0.3"]
    capsys.readouterr()
    assert main([*asked, *at, "--then", fits["acc"], "--ledger", ledger, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["predictions"]
    then = found["then"][0]
    assert found["at"] == {"weight_decay": 0.3} and then["value"] == pytest.approx(
        0.25 + 0.75 * np.exp(-0.4 * found["loss"]), abs=2e-3
    )
    assert then["ci"][0] <= then["value"] <= then["ci"][1] and then["loss"] == pytest.approx(0.4 * found["loss"], rel=1e-2)
    assert main(["next", "--score", ledger, table, "--allow", "weight-decay", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["scored"]
    assert [one["run"] for one in scored] == [f"r{i}" for i in range(len(N)) if (N[i], D[i], W[i]) == (1e8, 1e10, 0.3)]
    record = json.loads((tmp_path / "other" / "fit.json").read_text())
    for name, choices in (("bits", {"unit": "bits-per-byte"}), ("unsaid", {"map": {"other_loss": "probe"}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "fit.json").write_text(json.dumps(record | {"choices": record["choices"] | choices}))
    assert main([*asked, *at, "--then", str(tmp_path / "unsaid"), fits["other"]]) == 0
    assert capsys.readouterr().out.count("nothing says that both are in one unit") == 1
    record["params"]["F"] = 2.9  # above the loss that is predicted
    (tmp_path / "other" / "fit.json").write_text(json.dumps(record))
    for more, code, said in (
        ([*at, "--then", fits["other"]], 65, "the law gives no number there at other_loss"),
        ([*at, "--then", str(tmp_path / "bits")], 78, "is in bits-per-byte and the predicted loss in nats; fit the loss again"),
        (["--at", "weight-decay=nan"], 2, "expected COLUMN=VALUE"),
        (["--at", "weight-decay=0"], 65, "the law gives no number there (inf)"),
        (["--at", "weight-decay=-1"], 65, "the law gives no number there (nan)"),
        ([*at, *at], 2, "--at weight_decay: it is given twice"),
        ([*at, "--at", "W=1"], 2, "--at weight_decay: it is given twice"),
        ([*at, "--at", "task_loss=2", "--then", fits["acc"]], 65, "which is the predicted loss"),
    ):
        try:
            found = main([*asked, *more])
        except SystemExit as left:
            found = left.code
        assert found == code and said in capsys.readouterr().err
    assert main(["fit", table, *form, "--by", "weight-decay"]) == 2 and "--by or --best-of fixes it" in capsys.readouterr().err
