"""`--dry-run`: a table for any world, in no time, and a refusal that names what would fit."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.step_time import PARTS
from tests.pace import within

ROOT = Path(__file__).resolve().parents[2]
LARGE = (
    "--num-layers 64 --hidden-size 8192 --num-attention-heads 64 --attention-dropout 0 --hidden-dropout 0 --bf16 --dry-run "
    "--world-size 512 --tensor-model-parallel-size 8 --pipeline-model-parallel-size 4 --global-batch-size 1024 "
    "--micro-batch-size 2"
)


def test_512_processes_at_once(shown):
    with within(2):
        code, out, err = shown(f"{LARGE} --device-memory 80G")
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
    parts, total = re.search(r"on h100 \(--machine says another\), s\n.*\n +([\d. e-]+) +([\d.]+)\n", out).groups()
    assert sum(map(float, parts.split())) == pytest.approx(float(total), rel=0.01)
    bubble = float(re.search(r"pipeline bubble: ([\d.]+) % of a step", out)[1])
    assert bubble == pytest.approx(100 * float(parts.split()[PARTS.index("bubble")]) / float(total), rel=0.01)
    assert "messages: tensor over nvlink, data over network, pipeline over network; 0 s" in out


@pytest.mark.parametrize(
    "limit, said", [("40G", "ConfigError: stage 0 needs about "), ("1G", "no near layout fits; the smallest has --")]
)
def test_what_does_not_fit_is_refused_with_what_would(shown, limit, said):
    code, out, err = shown(f"{LARGE} --device-memory {limit}")
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
            assert shown(" ".join(words) + f" --device-memory {limit}")[0] == 0, remedy


def test_json_and_the_length_of_a_run(shown):
    words = f"{LARGE} --machine h200,network=25 --train-iters 1000"
    code, out, _ = shown(f"{words} --json")
    found = json.loads(out)
    assert code == 0 and found["machine"]["network"] == 25 and [stage["layers"] for stage in found["stages"]][1] == [[16, 32]]
    assert found["days"] == pytest.approx(found["seconds"]["total"] * 1000 / 86400)
    out = shown(words)[1]
    assert f"{found['days']:.3g} days for 1,000 steps" in out
    assert "time of a step on h200,network=25, s" in out and "no published step with h200,network=25 (docs" in out


def test_what_is_said_of_a_gpu_that_nobody_named(shown):
    """A layout of about 78 GiB."""
    words = f"{LARGE} --micro-batch-size 4".replace("--micro-batch-size 2 ", "")
    named, sized, default = (shown(f"{words} {more}")[1] for more in ("--machine a100,memory=40", "--device-memory 192G", ""))
    assert "does not fit: " in named and "a100,memory=40 has 40; --suggest" in named
    assert "does not fit" not in sized + default
    near = "published steps of autoregressive bf16 models with AdamW on A100 and H100 were within 25 % of it"
    assert near in named and near in default
    other = shown(f"{words} --optimizer muon --objective mdm --pipeline-schedule zero-bubble")[1]
    assert "no published step with --objective mdm, --optimizer muon, --pipeline-schedule zero-bubble (docs" in other


def test_the_program_runs_it_without_corpus_and_processes(tmp_path):
    words = "--model-config small --dry-run --pipeline-model-parallel-size 3 --global-batch-size 8 --num-mc 2".split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "pretrain_diff_gpt.py"), *words], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "") and not any(tmp_path.iterdir())
    assert "dry run: 3 processes = tensor 1 x pipeline 3 x data 1, 1f1b" in done.stdout


def test_a_vocabulary_in_a_file_is_opened(tmp_path, shown):
    absent = f"--tokenizer-type HFTokenizer --tokenizer-model {tmp_path / 'tokenizer.json'} --model-config small --dry-run"
    code, _, err = shown(absent)
    assert code == 66 and "tokenizer.json" in err
    assert shown(f"{absent} --vocab-size 1000")[0] == 0
