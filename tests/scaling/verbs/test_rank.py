import csv
import json

import pytest

from megatron.errors import BadData
from megatron.flags import ConfigError
from megatron.scaling.__main__ import main
from tests.scaling.answers.test_ranking import table


def test_the_verb_ranks_draws_and_writes(tmp_path, capsys):
    columns = table()
    path = tmp_path / "table.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values())])
    argv = [
        "rank",
        str(path),
        "--forms",
        "chinchilla",
        "E + A/N^alpha",
        "--leave-out",
        "largest",
        "flops",
        "--out",
        str(tmp_path),
    ]
    assert main(argv) is None or main(argv) == 0
    printed = capsys.readouterr().out
    assert "chinchilla predicts best here" in printed and "all others are further off" in printed
    record = json.loads((tmp_path / "rank.json").read_text())
    assert [one["leave_out"] for one in record["rankings"]] == ["largest", "flops"]
    assert record["rankings"][1]["forms"][0]["form"] == "chinchilla" and (tmp_path / "rank.png").stat().st_size > 10_000
    with pytest.raises(BadData, match="no column width"):
        main.__wrapped__([*argv[:-1], str(tmp_path / "other"), "--leave-out", "width"])
    assert not (tmp_path / "other").exists()
    for words, said in (
        (["--leave-out", "loss"], "what is predicted cannot say"),
        (["--forms", "loss-to-loss"], "give --beside TABLE"),
        (["--out", ""], "--out is followed by an empty word"),
    ):
        with pytest.raises((BadData, ConfigError), match=said):
            main.__wrapped__([*argv[:2], *words])
    with pytest.raises(SystemExit) as left:
        main.__wrapped__([*argv, "--leave-out", "largest:2"])
    assert left.value.code == 2
