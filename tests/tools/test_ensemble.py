"""Runs as one network, through the door: against their own scores, and what is no ensemble is refused."""

import csv
import json

import pytest

from megatron.config import parse
from megatron.training.pretrain import main as train
from tools import ensemble, evaluate

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 16 --global-batch-size 4 --lr 1e-2 --train-iters 4
    --eval-iters 2 --tokenizer-type ByteTokenizer --device cpu --num-threads 1 --split 80,20,0""".split()


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_members_alone_and_together(tmp_path, corpus, capsys, objective):
    runs = [str(tmp_path / "runs" / f"seed-{seed}") for seed in (1, 2, 3)]
    for seed, run in enumerate(runs, 1):
        assert train(parse([*FLAGS, "--data-path", corpus, "--save", run, "--seed", str(seed)], objective)) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    words = ["--runs-dir", str(tmp_path / "runs"), "--where", "hidden-size=16", "--out", str(out), "--score"]
    assert ensemble.main([*words, "exact" if objective == "ar" else "nelbo"]) == 0
    found = json.loads((out / "ensemble.json").read_text())
    curve = found["distributions"][0]["curve"]
    assert [one["of"] for one in found["distributions"]] == ["tokens", "sequences"][: 2 if objective == "ar" else 1]
    assert [(point["members"], point["subsets"]) for point in curve] == [(1, 3), (2, 3), (3, 1)]
    assert curve[0]["nats_per_token"] > curve[1]["nats_per_token"] > curve[2]["nats_per_token"]
    # all members as one network, scored as any network is
    assert found["of_all"]["scores"][0]["nats_per_token"] == pytest.approx(curve[2]["nats_per_token"], abs=1e-12)
    alone = []
    for run in runs:
        capsys.readouterr()
        assert evaluate.main(["likelihood", run, "--json"]) == 0
        alone.append(json.loads(capsys.readouterr().out)[0]["scores"][0]["nats_per_token"])
    if objective == "ar":  # of a bound, each run alone draws with its own seed
        assert curve[0]["nats_per_token"] == pytest.approx(sum(alone) / 3, abs=1e-12)
    with open(out / "ensemble.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["members"] for row in table] == ["1", "2", "3"] and float(table[2]["loss"]) == curve[2]["nats_per_token"]
    for words, code, sentence in (
        ([runs[0], runs[0]], 78, "are the same network"),
        ([runs[0]], 2, "two members or more"),
        ([runs[0], "--where", "lr=1"], 2, "--where acts on --runs-dir"),
        (["--runs-dir", str(tmp_path / "runs"), "--where", "seed=9"], 66, "0 of 3 finished runs have seed=9"),
        (["--runs-dir", str(tmp_path / "runs"), "--where", "seeds=9"], 2, "no such flag"),
    ):
        assert ensemble.main(words) == code
        assert sentence in capsys.readouterr().err
