"""Weights in and out of other forms: what went in comes out, other architectures are refused, nothing is executed."""

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.core import checkpoint
from megatron.core.checkpoint import whole
from megatron.exchange.weights import shapes
from tools import convert_checkpoint

H, HEADS, FFN, ROWS, LAYERS = 16, 4, 24, 384, 3
MODEL = {
    "num_layers": LAYERS,
    "hidden_size": H,
    "num_attention_heads": HEADS,
    "kv_channels": H // HEADS,
    "ffn_hidden_size": FFN,
    "padded_vocab_size": ROWS,
    "untie_embeddings_and_output_weights": False,
}
ARGS = {
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "swiglu": True,
    "normalization": "rmsnorm",
    "use_rotary_position_embeddings": True,
    "rotary_percent": 1.0,
    "layernorm_epsilon": 1e-6,
    "num_experts": [1],
    "params_dtype": torch.bfloat16,
}


def weights(untied=False):
    rng = torch.Generator().manual_seed(0)
    expected = shapes(MODEL | {"untie_embeddings_and_output_weights": untied})
    return {name: torch.randn(shape, generator=rng) for name, shape in expected.items()}


def run(capsys, *argv):
    code = convert_checkpoint.main([str(word) for word in argv])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out + said.err


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def model_of(path):
    found = checkpoint.load(path)
    return {name.removeprefix("model/"): t for name, t in found.tensors().items()}


@pytest.fixture
def ours(tmp_path):
    """A checkpoint as a run leaves it, with an optimizer."""
    tensors = {f"model/{name}": t for name, t in weights().items()} | {"optimizer/step": torch.ones(())}
    facts = {
        "config": {"model": MODEL | {"norm_epsilon": 1e-5}, "objective": {"objective": "mdm"}},
        "samples": 800,
        "fingerprints": {"tokenizer": "abc", "train": "def"},
        "progress": {},
    }
    return checkpoint.Saving(tmp_path / "run", 100, whole(tensors), facts).finish().parent


# Plain weights


@pytest.mark.parametrize("shard_bytes", [2 << 30, 9000])
def test_plain_weights_and_back(tmp_path, ours, capsys, monkeypatch, shard_bytes):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", shard_bytes)
    code, said = run(capsys, ours, tmp_path / "plain")
    assert code == 0 and "as plain" in said
    names = sorted(p.name for p in (tmp_path / "plain").glob("*.safetensors"))
    assert (names == ["model.safetensors"]) == (shard_bytes == 2 << 30)
    found = {}
    for name in names:
        found |= load_file(tmp_path / "plain" / name)
    assert_same(found, weights())
    if len(names) > 1:
        index = json.loads((tmp_path / "plain" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights().values())
        assert names[0] == f"model-00001-of-{len(names):05d}.safetensors" and set(index["weight_map"].values()) == set(names)
    known = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert known["model"]["hidden_size"] == H and (known["objective"], known["step"], known["tokenizer"]) == ("mdm", 100, "abc")
    code, said = run(capsys, tmp_path / "plain", tmp_path / "back")
    assert code == 0 and f"train with --load {tmp_path / 'back'} --finetune" in said
    assert_same(model_of(tmp_path / "back"), weights())


def test_bf16(tmp_path, ours, capsys):
    code, said = run(capsys, ours, tmp_path / "plain", "--dtype", "bf16", "--json")
    found = json.loads(said)
    assert code == 0 and (found["to"], found["known"]["step"]) == ("plain", 100)
    assert found["parameters"] == sum(t.numel() for t in weights().values())
    halves = {name: t.bfloat16() for name, t in weights().items()}
    assert_same(load_file(tmp_path / "plain" / "model.safetensors"), halves)
    assert run(capsys, tmp_path / "plain", tmp_path / "back")[0] == 0
    assert_same(model_of(tmp_path / "back"), {name: t.float() for name, t in halves.items()})


def test_a_run_goes_on_from_converted_weights(tmp_path, corpus, capsys):
    """What --load --finetune evaluates is the same from the run's checkpoint and from plain weights read back."""
    from megatron.config import parse
    from megatron.training.pretrain import main

    flags = (
        "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 16 --global-batch-size 4 --lr 1e-3 "
        "--train-iters 2 --eval-iters 1 --tokenizer-type ByteTokenizer --device cpu --num-threads 1 --split 80,20,0 "
        "--data-path"
    ).split()
    train = [*flags, corpus, "--run-dir", str(tmp_path / "run"), "--save", str(tmp_path / "run")]
    assert main(parse(train, "ar")) == 0
    assert run(capsys, tmp_path / "run", tmp_path / "plain")[0] == run(capsys, tmp_path / "plain", tmp_path / "back")[0] == 0
    losses = []
    for source in ("run", "back"):
        out = tmp_path / f"from-{source}"
        more = ["--run-dir", str(out), "--load", str(tmp_path / source), "--finetune"]
        assert main(parse([*flags, corpus, *more], "ar")) == 0
        losses.append([json.loads(line).get("loss") for line in (out / "metrics.jsonl").read_text().splitlines()])
    assert losses[0] == losses[1] and None not in losses[0][:1]
    capsys.readouterr()
    again = [*flags, corpus, "--run-dir", str(tmp_path / "x"), "--load", str(tmp_path / "back")]
    assert main(parse(again, "ar")) == 78 and "add --finetune" in capsys.readouterr().err
    wide = [*(word if word != "16" else "32" for word in flags), corpus]
    assert main(parse([*wide, "--run-dir", str(tmp_path / "y"), "--load", str(tmp_path / "back"), "--finetune"], "ar")) == 78


def break_shape(plain):
    save_file(load_file(plain / "model.safetensors") | {"norm.weight": torch.ones(H + 1)}, plain / "model.safetensors")


def index_outside(plain):
    (plain / "model.safetensors.index.json").write_text('{"weight_map": {"norm.weight": "../run/x.safetensors"}}')


def cut_short(plain):
    (plain / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes()[:-8])


@pytest.mark.parametrize(
    "spoil, code, sentence",
    [
        (break_shape, 78, r"norm.weight has shape \[17\], expected \[16\]"),
        (index_outside, 77, "names '../run/x.safetensors'"),
        (cut_short, 65, "model.safetensors cannot be read"),
        (lambda plain: (plain / "config.json").unlink(), 66, "config.json: No such file"),
        (
            lambda plain: (plain / "config.json").write_text("{}"),
            78,
            "does not describe a model of this trainer: KeyError 'model'",
        ),
        (lambda plain: (plain / "config.json").write_text("[]"), 65, "found a list"),
    ],
)
def test_plain_weights_that_are_not_ours_are_refused(tmp_path, ours, capsys, spoil, code, sentence):
    run(capsys, ours, tmp_path / "plain")
    spoil(tmp_path / "plain")
    found, said = run(capsys, tmp_path / "plain", tmp_path / "back")
    assert found == code and re.search(sentence, said) and not (tmp_path / "back").exists()


def test_other_mistakes_get_a_sentence(tmp_path, ours, capsys):
    assert run(capsys, tmp_path / "nowhere", tmp_path / "out")[0] == 66
    code, said = run(capsys, ours, ours)
    assert code == 73 and "is taken: give a path that is new, or an empty folder" in said
    checkpoint.Saving(tmp_path / "other", 1, whole({"a": torch.ones(1)}), {}).finish()
    assert run(capsys, tmp_path / "other", tmp_path / "out")[0] == 78 and not (tmp_path / "out").exists()


# Megatron-DeepSpeed


def part_of(name, t, tp, rank):
    """A rank's part of one of our tensors, in Megatron's order."""
    if name.endswith("mlp.up.weight"):
        gate, up = t.unflatten(0, (-1, 2)).unbind(1)
        return torch.cat((gate.chunk(tp)[rank], up.chunk(tp)[rank]))
    if t.dim() == 1:
        return t
    return t.chunk(tp, dim=1 if name.endswith(("attention.out.weight", "mlp.down.weight")) else 0)[rank].clone()


BLOCK = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attention.qkv": "self_attention.query_key_value",
    "attention.out": "self_attention.dense",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}


def megatron_name(name):
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    return (
        f"encoder.layers.{block[1]}.{BLOCK[block[2]]}.weight"
        if block
        else {
            "embed.weight": "embedding.word_embeddings.weight",
            "head.weight": "output_layer.weight",
            "norm.weight": "encoder.final_layernorm.weight",
        }[name]
    )


def module_of(tensors, tp, rank):
    return {f"language_model.{megatron_name(name)}": part_of(name, t, tp, rank) for name, t in tensors.items()}


def nested(module):
    """As Megatron's state_dict_for_save_checkpoint: two levels of dictionaries, then dotted names."""
    found = {"language_model": {"embedding": {}, "encoder": {}}, "moe_state_dict": {}}
    for name, t in module.items():
        _, part, rest = name.split(".", 2)
        if part == "embedding":
            found["language_model"]["embedding"]["word_embeddings"] = {"weight": t}
        else:
            found["language_model"].setdefault(part, {})[rest] = t
    return found


def beside(tp, args=ARGS, version=3.0):
    """What Megatron-DeepSpeed stores with the weights."""
    states = [{"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state(), "rng_tracker_states": {}}]
    return {
        "optimizer": None,
        "param_shapes": [{"a": torch.Size([2])}],
        "mp_world_size": tp,
        "ds_version": "0.14",
        "iteration": 500,
        "args": argparse.Namespace(**args),
        "checkpoint_version": version,
        "rng_state": states,
    }


def write_parts(folder, tp, shape=dict, tensors=None, **over):
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(tp):
        module = shape(module_of(tensors or weights(), tp, rank))
        torch.save({"module": module} | beside(tp, **over), folder / f"mp_rank_{rank:02d}_model_states.pt")
    return folder


def write_layers(folder, tp, tensors):
    """A pipeline's form: a file for each layer and part; with tied tables the last stage has its copy."""
    folder.mkdir()
    for rank in range(tp):
        module = {name.removeprefix("language_model."): t for name, t in module_of(tensors, tp, rank).items()}
        files = [{"word_embeddings.weight": module["embedding.word_embeddings.weight"]}]
        for i in range(LAYERS):
            prefix = f"encoder.layers.{i}."
            files.append({name.removeprefix(prefix): t for name, t in module.items() if name.startswith(prefix)})
        files.append({"weight": module["encoder.final_layernorm.weight"]})
        files.append({"lm_head.weight": module["output_layer.weight"]} if "output_layer.weight" in module else files[0])
        for number, state in enumerate(files, 1):
            torch.save(state, folder / f"layer_{number:02d}-model_{rank:02d}-model_states.pt")
        torch.save({"module": None} | beside(tp), folder / f"mp_rank_{rank:02d}_model_states.pt")
    return folder


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("form", ["flat", "nested", "pipeline"])
def test_megatron_weights(tmp_path, capsys, tp, untied, form):
    tensors, folder = weights(untied), tmp_path / "global_step500"
    if form == "pipeline":
        write_layers(folder, tp, tensors)
    else:
        write_parts(folder, tp, nested if form == "nested" else dict, tensors)
    assert run(capsys, folder, tmp_path / "out")[0] == 0
    assert_same(model_of(tmp_path / "out"), tensors)
    found = checkpoint.load(tmp_path / "out")
    assert found.step == 500 and found.facts["imported_from"] == str(folder)
    model = MODEL | {"untie_embeddings_and_output_weights": untied, "norm_epsilon": 1e-6}
    assert found.facts["config"]["model"] == model and found.path.name == "step-00000500"


def test_gate_and_up_keep_their_places(tmp_path, capsys):
    """Written out by hand: of two parts [g0 g1 u0 u1] and [g2 g3 u2 u3], ours is g0 u0 g1 u1 g2 u2 g3 u3."""
    rows = torch.arange(2 * FFN).float()[:, None].expand(-1, H)
    gate, up = rows[:FFN], rows[FFN:]
    by_hand = iter(torch.cat((gate[mine], up[mine])) for mine in (slice(FFN // 2), slice(FFN // 2, None)))
    run(
        capsys,
        write_parts(
            tmp_path / "global_step1",
            2,
            shape=lambda module: module | {"language_model.encoder.layers.0.mlp.dense_h_to_4h.weight": next(by_hand)},
        ),
        tmp_path / "out",
    )
    column = model_of(tmp_path / "out")["blocks.0.mlp.up.weight"][:, 0]
    assert column[:4].tolist() == [0, FFN, 1, FFN + 1] and column[-2:].tolist() == [FFN - 1, 2 * FFN - 1]


def test_megatron_weights_to_plain_by_the_top_folder(tmp_path, capsys):
    write_parts(tmp_path / "run" / "global_step20", 1, tensors={name: t.bfloat16() for name, t in weights().items()})
    (tmp_path / "run" / "latest").write_text("global_step20")
    code, said = run(capsys, tmp_path / "run", tmp_path / "plain", "--to", "plain")
    assert code == 0 and "384 rows" in said
    assert_same(load_file(tmp_path / "plain" / "model.safetensors"), {n: t.bfloat16().float() for n, t in weights().items()})


def test_heads_are_asked_for_where_the_file_does_not_say(tmp_path, capsys):
    folder = write_parts(tmp_path / "global_step1", 1, args={})
    code, said = run(capsys, folder, tmp_path / "out")
    assert code == 78 and "give --num-attention-heads" in said
    assert run(capsys, folder, tmp_path / "out", "--num-attention-heads", 2)[0] == 0
    assert checkpoint.load(tmp_path / "out").facts["config"]["model"]["kv_channels"] == 8
    code, said = run(capsys, write_parts(tmp_path / "global_step2", 1), tmp_path / "new", "--num-attention-heads", 2)
    assert code == 78 and "was trained with 4 attention heads" in said


def test_the_old_format_of_torch_is_read(tmp_path, capsys):
    folder = write_parts(tmp_path / "global_step1", 1)
    torch.save(
        {"module": module_of(weights(), 1, 0)} | beside(1),
        folder / "mp_rank_00_model_states.pt",
        _use_new_zipfile_serialization=False,
    )
    assert run(capsys, folder, tmp_path / "out")[0] == 0
    assert_same(model_of(tmp_path / "out"), weights())


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["module", "args", "rng_state", "checkpoint_version"])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(tmp_path, capsys, place, zipped):
    folder, sprung = write_parts(tmp_path / "global_step1", 1), tmp_path / "sprung"
    state = {"module": module_of(weights(), 1, 0)} | beside(1)
    state[place] = {"x": Canary(sprung)}
    torch.save(state, folder / "mp_rank_00_model_states.pt", _use_new_zipfile_serialization=zipped)
    code, said = run(capsys, folder, tmp_path / "out")
    assert code == 77 and "mp_rank_00_model_states.pt" in said and "nothing of it was run" in said
    assert not sprung.exists() and not (tmp_path / "out").exists()


def test_shells_are_no_weights(tmp_path, capsys):
    folder = write_parts(tmp_path / "global_step1", 1, shape=lambda module: module | {"extra": argparse.Namespace(a=1)})
    code, said = run(capsys, folder, tmp_path / "out")
    assert code == 77 and "extra is a Shell: a model's state holds tensors" in said


def with_tensor(name, tensor):
    return lambda module: module | {f"language_model.{name}": tensor}


@pytest.mark.parametrize(
    "over, code, sentence",
    [
        ({"version": 2.0}, 78, "checkpoint_version 2.0, whose rows are in another order"),
        ({"args": ARGS | {"swiglu": False}}, 78, "swiglu is False, expected True"),
        ({"args": ARGS | {"num_key_value_heads": 2}}, 78, "attention.qkv.weight has shape"),
        (
            {"shape": with_tensor("encoder.layers.0.mlp.dense_4h_to_h.bias", torch.ones(H))},
            78,
            "biases, which this model has not",
        ),
        ({"shape": with_tensor("embedding.position_embeddings.weight", torch.ones(4, H))}, 78, "position_embeddings"),
        (
            {"shape": with_tensor("encoder.layers.0.mlp.dense_h_to_4h.weight", torch.ones(FFN // 2, H))},
            78,
            "mlp.up.weight has shape",
        ),
        (
            {"shape": lambda module: module | {"language_model.encoder.final_layernorm.weight": torch.rand(H)}},
            65,
            "norm.weight differs between",
        ),
        ({"shape": lambda module: {}}, 78, "no transformer of this architecture"),
        ({"shape": lambda module: torch.ones(3)}, 78, "another architecture"),
    ],
)
def test_other_architectures_are_refused(tmp_path, capsys, over, code, sentence):
    found, said = run(capsys, write_parts(tmp_path / "global_step1", 2, **over), tmp_path / "out")
    assert found == code and sentence in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [write_parts, write_layers])
def test_missing_and_torn_parts_are_named(tmp_path, capsys, form):
    folder = form(tmp_path / "global_step1", 2, tensors=weights())
    victim = sorted(folder.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    code, said = run(capsys, folder, tmp_path / "out")
    assert code == 65 and f"{victim.name} cannot be read" in said
    victim.unlink()
    code, said = run(capsys, folder, tmp_path / "out")
    assert code == 66 and f"lacks {victim.name}" in said
