"""`--dry-run`: a table for any world, in no time, and a refusal that names what would fit."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.config import parse
from megatron.training import dry_run
from tests.pace import within

ROOT = Path(__file__).resolve().parents[2]
LARGE = (
    "--num-layers 64 --hidden-size 8192 --num-attention-heads 64 --attention-dropout 0 --hidden-dropout 0 --bf16 --dry-run "
    "--world-size 512 --tensor-model-parallel-size 8 --pipeline-model-parallel-size 4 --global-batch-size 1024 "
    "--micro-batch-size 2"
)


def shown(words: str, capsys) -> tuple[int, str, str]:
    code = dry_run.show(parse(words.split(), environ={}))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_512_processes_at_once(capsys):
    with within(2):
        code, out, err = shown(f"{LARGE} --device-memory 80G", capsys)
    assert (code, err) == (0, "")
    assert out.startswith("dry run: 512 processes = tensor 8 x pipeline 4 x data 16, 1f1b, ZeRO 0, bf16; nothing is")
    assert "51,919,200,256 parameters, 32 micro-batches of up to 2 x 2048 tokens" in out
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d", line)]
    assert [row[:3] for row in rows[:4]] == [
        ["0", "0-127", "0-15"],
        ["1", "128-255", "16-31"],
        ["2", "256-383", "32-47"],
        ["3", "384-511", "48-63"],
    ]
    assert sum(int(row[3].replace(",", "")) for row in rows[:4]) > 50e9 / 8 and len(rows) == 9
    assert "pipeline bubble: 8.6 % of a step" in out
    parts, total = re.search(r"on h100, s\n.*\n +([\d. e-]+) +([\d.]+)\n", out).groups()
    assert sum(map(float, parts.split())) == pytest.approx(float(total), rel=0.01)
    assert "messages: tensor over nvlink, data over network, pipeline over network; 0 s" in out


@pytest.mark.parametrize(
    "limit, said", [("40G", "ConfigError: stage 0 needs about "), ("1G", "no near layout fits; the smallest has --")]
)
def test_what_does_not_fit_is_refused_with_what_would(capsys, limit, said):
    code, out, err = shown(f"{LARGE} --device-memory {limit}", capsys)
    assert code == 2 and said in err and f"more than --device-memory {limit}: " in err and "dry run: 512" in out
    if limit == "40G":
        remedies = re.search("it fits with (.*)\n", err)[1].split(", or ")
        given = LARGE.split()
        for remedy in remedies:
            words, changed = list(given), remedy.split()
            for name, value in zip(changed[::2], changed[1::2]):
                words = (
                    words + [name, value]
                    if name not in words
                    else [value if i and words[i - 1] == name else w for i, w in enumerate(words)]
                )
            assert shown(" ".join(words) + f" --device-memory {limit}", capsys)[0] == 0, remedy


def test_json_and_the_length_of_a_run(capsys):
    words = f"{LARGE} --machine h200,network=25 --train-iters 1000"
    code, out, _ = shown(f"{words} --json", capsys)
    found = json.loads(out)
    assert code == 0 and found["machine"]["network"] == 25 and [stage["layers"] for stage in found["stages"]][1] == [[16, 32]]
    assert found["days"] == pytest.approx(found["seconds"]["total"] * 1000 / 86400)
    assert f"{found['days']:.3g} days for 1,000 steps" in shown(words, capsys)[1]


def test_the_program_runs_it_without_corpus_and_processes(tmp_path):
    words = "--model-config small --dry-run --pipeline-model-parallel-size 3 --global-batch-size 8 --num-mc 2".split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "pretrain_diff_gpt.py"), *words], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "") and not any(tmp_path.iterdir())
    assert "dry run: 3 processes = tensor 1 x pipeline 3 x data 1, 1f1b" in done.stdout


def test_a_vocabulary_in_a_file_is_opened(tmp_path, capsys):
    absent = f"--tokenizer-type HFTokenizer --tokenizer-model {tmp_path / 'tokenizer.json'} --model-config small --dry-run"
    code, _, err = shown(absent, capsys)
    assert code == 66 and "tokenizer.json" in err
    assert shown(f"{absent} --vocab-size 1000", capsys)[0] == 0
