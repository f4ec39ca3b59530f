import json
import shutil
import subprocess
import sys

import pytest

from megatron.config import parse
from megatron.training.pretrain import main as pretrain
from tools import generate

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 1 --seq-length 32 --micro-batch-size 8 --global-batch-size 8
    --lr 1e-2 --train-iters 4 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 1 --num-threads 1 --save-interval 2
    --device cpu""".split()


@pytest.fixture(params=["ar", "mdm"])
def trained(request, corpus, tmp_path):
    folder = tmp_path / request.param
    words = [*FLAGS, "--data-path", corpus, "--run-dir", str(folder), "--save", str(folder)]
    assert pretrain(parse(words, request.param)) == 0
    return folder


def test_the_door(trained, tmp_path, capsys):
    """All ways to ask, and what is refused, of one run of each kind."""

    def said(*words, code=0):
        capsys.readouterr()
        assert generate.main([str(trained), *words]) == code, capsys.readouterr().err
        return capsys.readouterr()

    mdm = trained.name == "mdm"
    found = said("--prompt", "ab", "--num-samples", "2", "--max-new-tokens", "5", "--ignore-end")
    assert found.out.count("--- sample") == 2 and "10 tokens, 10 passes of a row over" in found.err
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a\\nb"}\n{"prompt": ""}\n')
    one = json.loads(said("--prompts", str(prompts), "--seed", "3", "--json").out)
    assert [s["prompt"] for s in one["samples"]] == ["a\nb", ""] and one["samples"][1]["ids"][0] == 256
    assert one["new_tokens"] == sum(s["new_tokens"] for s in one["samples"]) and one["sampler"] == (
        "ancestral" if mdm else "autoregressive"
    )
    again = json.loads(said("--prompts", str(prompts), "--seed", "3", "--json", "--batch-size", "1").out)
    assert again["samples"] == one["samples"]
    if mdm:
        blocks = said("--prompt", "ab", "--max-new-tokens", "6", "--block-length", "3", "--cache", "dual", "--ignore-end")
        assert f"6 passes of a row over {2 * 8 + 4 * 3} places" in blocks.err
        found = said("--infill", "a[MASK:6]b", "--sampler", "confidence", "--steps", "2")
        assert "confidence: 6 tokens, 2 passes of a row over 16 places" in found.err and found.out.rstrip().endswith("b")
        assert "--stop would do nothing with --infill" in said("--infill", "[MASK:6]", "--stop", "x", code=2).err
    else:
        assert "confidence does not serve the objective ar" in said("--sampler", "confidence", code=78).err
        assert "reads only what stands left of a gap" in said("--infill", "a[MASK:6]", code=65).err
    steps = "--steps 0: expected 1 or more" if mdm else "--steps 0: expected 1 or more\n--steps 0 is not read by this sampler"
    assert steps in said("--steps", "0", code=2).err
    assert "--num-samples 0: expected 1 or more" in said("--num-samples", "0", code=2).err
    assert "none.txt: No such file" in said("--prompts", str(tmp_path / "none.txt"), code=66).err
    prompts.write_text('{"text": "a"}\n')
    assert 'expected {"prompt": "a text"} on every line' in said("--prompts", str(prompts), code=65).err
    shutil.rmtree(trained / "step-00000004")
    assert "is not finished: its newest checkpoint is at step 2 of 4" in said("--prompt", "a", code=66).err
    assert said("--prompt", "a", "--checkpoint", "newest").out


def test_help_needs_no_torch():
    done = subprocess.run([sys.executable, "-X", "importtime", generate.__file__, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--infill" in done.stdout and "| torch\n" not in done.stderr
