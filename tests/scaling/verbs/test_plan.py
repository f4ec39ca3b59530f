"""`plan` on the command line: its table, its files, its refusals."""

import json

import pytest

from megatron.budget import find_size
from megatron.scaling.__main__ import main


def run(tmp_path, *words):
    code = main(["plan", "--out", str(tmp_path / "plan.json"), *words])
    path = tmp_path / "plan.json"
    return code, json.loads(path.read_text()) if path.exists() else None


def test_a_table_and_a_file(tmp_path, capsys):
    code, plan = run(
        tmp_path,
        "--flops",
        "6e18,1e19",
        "--sizes",
        "57M,117M",
        "640,2560,64,10,11",
        "--mfu",
        "0.4",
        "--peak",
        "989e12",
        "--gpus",
        "8",
        "--price",
        "2",
        "--watts",
        "700",
        "--csv",
        str(tmp_path / "plan.csv"),
    )
    said = capsys.readouterr().out
    assert code == 0 and len(plan["runs"]) == 12 and (tmp_path / "plan.csv").exists()
    assert "12 runs" in said and "ar_chinchilla_6e18_11x640" in said and f"{find_size('57M')[1].total():,}" in said
    assert all(run["forecast"]["cost"] > 0 and run["forecast"]["energy_kwh"] > 0 for run in plan["runs"])


def test_json(tmp_path, capsys):
    code, plan = run(tmp_path, "--json", "--flops", "6e18", "--sizes", "57M", "--mfu", "0.4", "--peak", "989e12")
    said, aside = capsys.readouterr()
    found = json.loads(said)
    assert code == 0 and {name: found[name] for name in plan} == plan and "ar_chinchilla_6e18_57M" in aside
    assert found["totals"]["hours"] == pytest.approx(sum(run["forecast"]["hours"] for run in plan["runs"]))
    assert run(tmp_path, "--json", "--flops", "6e18", "--sizes", "58M")[0] == 2 and capsys.readouterr().out == ""


def test_axes_join_and_reach_table_and_status(tmp_path, capsys):
    grid = ["--flops", "1e18", "--sizes", "57M", "--objectives", "ar"]
    _, plan = run(tmp_path, *grid, "--vary", "weight-decay=0.1,0.3", "--vary", "lr=1e-3,2e-3", "--sample", "3")
    assert len(plan["runs"]) == 3 and plan["varied"] == ["weight_decay", "lr"] and "weight_decay" in capsys.readouterr().out
    code, plan = run(tmp_path, *grid, "--append", "--csv", str(tmp_path / "plan.csv"), "--", "--tensorboard-dir", "x/{run}")
    assert code == 0 and [one["varied"] for one in plan["runs"]][3:] == [{}] and plan["varied"] == ["weight_decay", "lr"]
    assert plan["runs"][3]["flags"][-1] == "x/ar_chinchilla_1e18_57M"
    capsys.readouterr()
    assert main(["status", str(tmp_path / "plan.json"), "--runs-dir", str(tmp_path), "--json"]) == 0
    said, aside = capsys.readouterr()
    found = [one["varied"] for one in json.loads(said)["runs"]]
    assert {point["weight_decay"] for point in found[:3]} == {0.1, 0.3} and found[3] == {"weight_decay": None, "lr": None}
    assert "weight_decay" in aside
    assert run(tmp_path, *grid, "--append", "--", "--clip-grad", "2")[0] == 2
    assert "ar_chinchilla_1e18_57M: the plan holds another run of this name" in capsys.readouterr().err


def test_data_that_are_not_here_are_told_or_refused(tmp_path, corpus, capsys):
    grid = ["--flops", "1e9", "--sizes", "CPU_5K", "--scale", "cpu", "--objectives", "ar", "--valid-data", corpus]
    (tmp_path / "list.txt").write_text(f"# here and not\n0.5 0:0.5 {corpus}\n0.5 lost\n")
    for data, lost in ([str(tmp_path / "list.txt")], "lost.idx is missing"), (["gone.txt"], "gone.txt cannot be read"):
        assert run(tmp_path, *grid, "--need-data", "--train-data", *data) == (66, None)
        assert lost in capsys.readouterr().err
    code, plan = run(tmp_path, *grid, "--train-data", "1.0", "0:0.5", corpus, "0.5", "lost")
    assert code == 0 and len(plan["notes"]) == 1 and "lost.idx is missing" in capsys.readouterr().out
    assert run(tmp_path, *grid, "--need-data", "--train-data", "1.0", "0:1e3", corpus)[1]["notes"] == []


def test_data_tokenizer_and_other_flags_reach_every_run(tmp_path):
    _, plan = run(
        tmp_path,
        "--flops",
        "1e18",
        "--sizes",
        "57M",
        "--train-data",
        "0.5",
        "a",
        "0.5",
        "b",
        "--valid-data",
        "v.txt",
        "--tokenizer-type",
        "HFTokenizer",
        "--tokenizer-model",
        "t.json",
        "--vocab-size",
        "32000",
        "--",
        "--eval-iters",
        "7",
    )
    for one in plan["runs"]:
        said = " ".join(one["flags"])
        assert "--train-data-path 0.5 a 0.5 b" in said and "--valid-data-path-file v.txt" in said and "--eval-iters 7" in said
        assert "--tokenizer-model t.json" in said and one["params"] == find_size("57M", 32000)[1].total()


def test_stated_speeds(tmp_path):
    def hours(text):
        return [
            one["forecast"]["hours"]
            for one in run(
                tmp_path,
                "--flops",
                "1e18",
                "--sizes",
                "57M,217M",
                "--objectives",
                "ar",
                "--tokens-per-second",
                text,
                "--",
                "--eval-iters",
                "0",
            )[1]["runs"]
        ]

    one, other = hours("1e6")
    _, plan = run(tmp_path, "--flops", "1e18", "--sizes", "57M,217M", "--objectives", "ar")
    small, large = (each["tokens"] for each in plan["runs"])
    assert (one, other) == pytest.approx((small / 3.6e9, large / 3.6e9))
    assert hours("57M=2e6,217M=5e5") == pytest.approx([one / 2, 2 * other])


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["--flops", "1e18", "--mfu", "0.4"], 2, "--mfu and --peak belong together"),
        (["--flops", "1e18", "--mfu", "0.4", "--peak", "1e15", "--probe"], 2, "exclude each other"),
        (["--flops", "1e18", "--tokens-per-second", "57M=x"], 2, "expected X or SIZE=X"),
        (["--flops", "1e18", "--tokens-per-second", "58M=1"], 2, "did you mean 57M"),
        (["--flops", "1e18", "--tokenizer-type", "HFTokenizer"], 2, "needs --vocab-size"),
        (["--flops", "1e18", "--unique-tokens", "x"], 2, "x"),
        (["--flops", "1e18", "--vary", "weight-decai=1,2"], 2, "did you mean --weight-decay"),
        (["--flops", "1e18", "--sizes", "57M", "--lr", "rule:width", "--", "--use-mup"], 2, "both lower the rate with the size"),
        (["--flops", "1e18", "--optimum", "none.json"], 66, "none.json"),
        (["--flops", "1e18", "--sizes", "57M", "--", "--eval-itres", "4"], 2, "did you mean --eval-iters?"),
    ],
)
def test_refusals_write_nothing(words, code, sentence, tmp_path, capsys):
    assert run(tmp_path, *words) == (code, None)
    assert sentence in capsys.readouterr().err


def test_every_wrong_axis_and_value_is_told_at_once(tmp_path, capsys):
    axes = ("weight-decai=1,2", "hidden-dropout=x,0.1,y", "hidden-size=8,16")
    words = [word for axis in axes for word in ("--vary", axis)] + ["--unique-tokens", "1e9,z"]
    assert run(tmp_path, "--flops", "1e18", *words) == (2, None)
    said = capsys.readouterr().err
    for sentence in ("did you mean --weight-decay", "not 'x'", "not 'y'", "--sizes names the sizes", "--unique-tokens z"):
        assert sentence in said


@pytest.mark.parametrize("words", [["--flops", "-1"], ["--objectives", "gpt"], ["--epochs", "0"], ["--seeds", "x"]])
def test_values_that_argparse_refuses(words, tmp_path):
    with pytest.raises(SystemExit) as error:
        run(tmp_path, *words)
    assert error.value.code == 2
