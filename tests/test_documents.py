"""Every row of docs/documents.md does what it says, at a small size: the first thing in `` of its last column is printed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.config import parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/documents.md").read_text()
ROWS = re.findall(r"^\| ([^|`]+) \| `(.+?)` \| (?:[^|`]*)`([^`]+)`", PAGE, re.MULTILINE)
RECIPES = [row for row in ROWS if ".sh" in row[1]]
PLACES = ("megatron", "tools", "utils", "examples", "pretrain_gpt.py", "pretrain_diff_gpt.py")
# What a command is given besides, so that it takes seconds.
SMALL = {
    "SCALE": "cpu",
    "DATA_CNT": "4000",
    "EPOCH_CNT": "1",
    "EVAL_ITERS": "1",
    "SAMPLE": "2",
    "EPOCHS": "1 2 4",
    "FLOPS": "1e10",
    "SIZES": "CPU_8K",
    "SEEDS": "1,2",
    "MODES": "none,full",
    "PROCESSES": "1",
    "PYTHON": sys.executable,
}
TRAINING = """--max-steps 6 --num-layers 1 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --global-batch-size 4
    --micro-batch-size 4 --lr-warmup-iters 1 --log-interval 2 --eval-iters 1 --atat-width 16 --no-bf16 --device cpu --no-wandb
    --tokenizer-type HFTokenizer --tokenizer-model data/wikitext103/tokenizer.json""".replace("\n", " ")


def test_every_row_is_read():
    assert len(ROWS) == len(re.findall(r"^\| (?!of the document|---)", PAGE, re.MULTILINE)) > 25
    assert all((ROOT / path).exists() for _, command, _ in ROWS for path in re.findall(r"[\w/]+\.(?:py|sh|yaml)", command))


@pytest.fixture
def folder(tmp_path):
    for name in PLACES:
        (tmp_path / name).symlink_to(ROOT / name)
    pages = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    parts = [page[at : at + 2000] for page in pages for at in range(0, len(page), 2000)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in (parts * 2)[:180]))
    return tmp_path


def run(folder, command, **more):
    """What a row prints, on both streams."""
    if "prepare_corpus" in command:
        command += " --from text.jsonl --train-tokenizer 300 --held-out 0.2"
    if "pretrain_diff_gpt.py" in command and "--dry-run" not in command and "--print-config" not in command:
        command = f"{re.sub(r'--max-steps [0-9]+', '', command)} {TRAINING}"
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | more
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_rows_of_atat(folder):
    """All but its recipes, in their order."""
    (folder / "data").mkdir()
    (folder / "data/openwebtext").symlink_to("wikitext103")
    rows = [row for row in ROWS if row not in RECIPES and "megatron.budget" not in row[1]]
    assert len(rows) > 10
    for what, command, printed in rows:
        assert printed in run(folder, command), what


def test_rows_of_arithmetic(folder):
    for what, command, printed in ROWS:
        if "megatron.budget" in command or "DRY_RUN" in command:
            assert printed in run(folder, command, **SMALL), what


@pytest.mark.slow
@pytest.mark.parametrize("what, command, printed", RECIPES, ids=[row[0] for row in RECIPES])
def test_rows_of_recipes(what, command, printed, folder):
    longer = {"EPOCH_CNT": "30"} if "_lr.sh" in command else {}  # than its longest warm-up
    assert printed in run(folder, command, **SMALL | longer, CORPUS=str(folder / "text.jsonl")), what


@pytest.mark.parametrize("name", ["wikitext103_validation", "tiny", "base"])
def test_files_of_atat_are_whole_and_say_what_does_not_act(name):
    said: list[str] = []
    cfg = parse(["--config", str(ROOT / f"examples/atat/{name}.yaml")], "mdm", environ={}, said=said)
    assert (cfg.objective.atat, cfg.objective.noise_schedule, cfg.model.seq_length) == ("full", "log-linear", 1024)
    steps = 50_000 if name.startswith("wiki") else 500_000
    assert (cfg.train.train_samples, cfg.train.eval_interval) == (64 * steps, 5000)
    text = "\n".join(said)
    for key in ("diffusion", "parameterization", "noise.sigma_min", "noise.sigma_max", "sampling.predictor", "sampling.steps"):
        assert f"yaml: {key} " in text
    assert "noise.sigma_min 1e-4 does not act: the schedule loglinear has no sigma_min" in text and len(said) == 6
