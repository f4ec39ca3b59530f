"""The dictionary that other trainers share: read back in every bit, and nothing of a file is executed."""

from pathlib import Path

import pytest
import torch

from megatron.config import parse
from megatron.core import checkpoint
from megatron.training.pretrain import main
from tools import convert_checkpoint

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 16 --global-batch-size 4 --lr 1e-3 --train-iters 2
    --eval-iters 1 --tokenizer-type ByteTokenizer --device cpu --num-threads 1 --split 80,20,0""".split()


def test_there_and_back(tmp_path, corpus, capsys):
    run, out = tmp_path / "run", tmp_path / "dict"
    assert main(parse([*FLAGS, "--data-path", corpus, "--run-dir", str(run), "--save", str(run)], "mdm")) == 0
    assert convert_checkpoint.main([str(run), "--to", "dict", str(out)]) == 0
    assert f"written to {out / 'checkpoint.pt'}, a dictionary" in capsys.readouterr().out
    found, tensors = torch.load(out / "checkpoint.pt", weights_only=True), checkpoint.load(run).tensors()
    said = ("global_step", "architecture", "best_val_loss", "scaler_state_dict")
    best = checkpoint.load(run).facts["best_val_loss"]
    assert [found[name] for name in said] == [2, "diffusion", best, {}] and best > 0
    assert (found["model_config"]["hidden_size"], found["train_config"]["lr"]) == (16, 1e-3)
    assert torch.equal(found["model_state_dict"]["norm.weight"], tensors["model/norm.weight"])
    assert torch.equal(found["optimizer_state_dict"]["exp_avg/norm.weight"], tensors["optimizer/exp_avg/norm.weight"])
    assert convert_checkpoint.main([str(run), "--to", "dict", str(tmp_path / "named.pt")]) == 0
    assert torch.load(tmp_path / "named.pt", weights_only=True).keys() == found.keys()
    assert convert_checkpoint.main([str(run), "--to", "plain", str(tmp_path / "w.safetensors")]) == 2
    assert "--to plain writes a folder: give a name without .safetensors" in capsys.readouterr().err
    assert convert_checkpoint.main([str(tmp_path / "named.pt"), str(tmp_path / "back")]) == 0
    longer = [*FLAGS, "--data-path", corpus, "--run-dir", str(run), "--save", str(run), "--load", str(run)]
    longer[longer.index("--train-iters") + 1] = "9"
    assert main(parse([*longer, "--exit-interval", "3"], "mdm")) == 85
    assert convert_checkpoint.main([str(run), "--to", "dict", str(tmp_path / "early")]) == 66
    assert "at step 3 of 9" in capsys.readouterr().err and not (tmp_path / "early").exists()
    back = checkpoint.load(tmp_path / "back").tensors()
    assert back.keys() == {name for name in tensors if name.startswith("model/")}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in back.items())


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "state, code, sentence",
    [
        (lambda sprung: {"facts": Canary(sprung)}, 77, "nothing of it was run"),
        (lambda sprung: {"global_step": 1}, 78, "lacks model_state_dict, model_config, train_config, architecture"),
        (
            lambda sprung: dict.fromkeys(("global_step", "model_state_dict", "model_config", "train_config", "architecture"), 1),
            78,
            "was not written by --to dict of this trainer",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, state, code, sentence):
    sprung = tmp_path / "sprung"
    torch.save(state(sprung), tmp_path / "x.pt")
    assert convert_checkpoint.main([str(tmp_path / "x.pt"), str(tmp_path / "out")]) == code
    assert sentence in capsys.readouterr().err and not sprung.exists() and not (tmp_path / "out").exists()
