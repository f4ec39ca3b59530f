"""Runs for transformers and back: the same logits, the same text, the same ids; other models and damage are refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.config import parse
from megatron.core import checkpoint
from megatron.data.indexed import IndexedWriter
from megatron.sampling.draws import How
from megatron.sampling.generate import Source, Template, continued, generate
from megatron.training import open_run
from megatron.training.pretrain import main
from tools import convert_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[hf]'")

FLAGS = """--num-layers 2 --seq-length 32 --global-batch-size 8 --train-iters 2 --lr 1e-2 --init-method-std 0.3
    --micro-batch-size 4 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 1
    --hidden-dropout 0 --attention-dropout 0 --log-interval 1
    --num-threads 1 --device cpu""".split()
SHAPES = {
    "llama": "--hidden-size 32 --num-attention-heads 4 --group-query-attention --num-query-groups 2 --rotary-base 5000",
    "mistral": "--hidden-size 32 --num-attention-heads 3 --kv-channels 8 --untie-embeddings-and-output-weights",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """llama-ar, llama-mdm, mistral-ar and mistral-mdm, each of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    with IndexedWriter(str(folder / "corpus"), np.uint16) as writer:
        for document in np.split(np.random.default_rng(0).integers(97, 123, 4096), 16):
            writer.add_document(document)
    for shape, words in SHAPES.items():
        for objective in ("ar", "mdm"):
            out = ["--data-path", str(folder / "corpus"), "--save", str(folder / f"{shape}-{objective}")]
            assert main(parse([*FLAGS, *words.split(), *out], objective)) == 0
    return folder


def convert(capsys, *words):
    capsys.readouterr()
    code = convert_checkpoint.main([str(word) for word in words])
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err
    return code, said.out + said.err


def validated(folder):
    """The last validation of a run."""
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "val"][-1]


def masks_of(trained, n=3, s=20):
    """Rows whose every other place is the mask."""
    ids = torch.from_numpy(np.random.default_rng(1).integers(97, 123, (n, s)))
    ids[:, ::2] = trained.objective.mask_id
    return ids


@pytest.mark.parametrize("shape", SHAPES)
def test_autoregressive(runs, tmp_path, capsys, shape):
    run, out = runs / f"{shape}-ar", tmp_path / "hf"
    code, said = convert(capsys, run, "--to", "hf", out)
    assert code == 0 and "written to" in said
    model, tokenizer = (auto.from_pretrained(out) for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer))
    assert type(model).__name__.lower() == f"{shape}forcausallm" and model.config.vocab_size == 257
    trained = open_run(run, dtype="fp64")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 257, (2, 32)))
    found = model(input_ids=ids).logits
    assert found.std() > 0.3  # or anything would agree
    torch.testing.assert_close(found.double(), trained.logits(ids), atol=1e-4, rtol=0)
    source = Source.of(trained.cfg, trained.tokenizer)
    (ours,) = generate(
        trained.engine, source, [continued(source, "abc", 24)], "autoregressive", How(temperature=0), ignore_end=True
    ).samples
    prompt = tokenizer("abc", return_tensors="pt").input_ids
    theirs = model.generate(prompt, max_new_tokens=24, do_sample=False, min_new_tokens=24, eos_token_id=None)
    assert theirs[0].tolist() == ours.ids and tokenizer.decode(theirs[0]) == trained.tokenizer.decode(ours.ids)
    val = validated(run)
    card = (out / "README.md").read_text()
    assert f"**{val['loss']:.4f} +- " in card and "exact NLL" in card and "pipeline_tag: text-generation" in card


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_diffusion(runs, tmp_path, capsys, monkeypatch, shape):
    """With the folder's code, and by is_causal of config.json alone; its sampler fills in what ours does."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    run, out = runs / f"{shape}-mdm", tmp_path / "hf"
    assert convert(capsys, run, "--to", "hf", out)[0] == 0
    trained = open_run(run, dtype="fp64")
    model = transformers.AutoModelForMaskedLM.from_pretrained(out, trust_remote_code=True)
    native = transformers.AutoModelForCausalLM.from_pretrained(out)
    ids = masks_of(trained)
    expected = trained.logits(ids)
    for one in (model, native):
        torch.testing.assert_close(one(input_ids=ids).logits[..., :257].double(), expected, atol=1e-4, rtol=0)
    assert (model(input_ids=ids).logits[..., 257] == -torch.inf).all()
    short = model(input_ids=ids[:, :12]).logits
    padded = model(input_ids=ids, attention_mask=torch.arange(20).expand_as(ids).lt(12).long()).logits
    torch.testing.assert_close(padded[:, :12], short, atol=1e-5, rtol=1e-5)
    source = Source.of(trained.cfg, trained.tokenizer)
    templates = [Template(ids=[None if i == 257 else i for i in row], infill=True) for row in ids.tolist()]
    for steps in (10, 4):
        ours = generate(trained.engine, source, templates, "confidence", How(temperature=0, steps=steps))
        assert model.sample(ids, steps=steps).tolist() == [sample.ids for sample in ours.samples]
    assert model.sample(ids, temperature=1.0, rule="random", seed=3).max() < 257
    for call in (lambda: model.generate(ids), lambda: model(input_ids=ids, labels=ids)):
        with pytest.raises(TypeError):
            call()
    assert "upper bound" in (out / "README.md").read_text()
    assert transformers.AutoTokenizer.from_pretrained(out).mask_token_id == 257
    weights = load_file(out / "model.safetensors")
    weights["model.norm.weight"] *= -1
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not the one that was trained"):
        transformers.AutoModelForMaskedLM.from_pretrained(out, trust_remote_code=True)


@pytest.mark.parametrize("name", ["llama-ar", "mistral-mdm"])
def test_back(runs, tmp_path, capsys, name):
    """The tables have the same rows again, and training goes on from them with the same validation loss."""
    assert convert(capsys, runs / name, "--to", "hf", tmp_path / "hf")[0] == 0
    code, said = convert(capsys, "--from", "hf", tmp_path / "hf", tmp_path / "back")
    assert code == 0 and f"--load {tmp_path / 'back'} --finetune --num-layers 2" in said
    before, after = (checkpoint.load(path) for path in (runs / name, tmp_path / "back"))
    found = after.tensors()
    for key, tensor in before.tensors([n for n in before.names() if n.startswith("model/")]).items():
        rows = 257 + name.endswith("mdm") if key in ("model/embed.weight", "model/head.weight") else len(tensor)
        assert torch.equal(found[key][:rows], tensor[:rows]), key
    shape, objective = name.split("-")
    words = [*FLAGS, *SHAPES[shape].split(), "--data-path", str(runs / "corpus"), "--load", str(tmp_path / "back"), "--finetune"]
    assert main(parse([*words, "--run-dir", str(tmp_path / "scored"), "--skip-train"], objective)) == 0
    assert validated(tmp_path / "scored")["loss"] == pytest.approx(validated(runs / name)["loss"], rel=1e-6)
    assert main(parse([*words, "--run-dir", str(tmp_path / "on")], objective)) == 0


def test_bf16_is_compared_with_what_is_stored(runs, tmp_path, capsys):
    code, said = convert(capsys, runs / "llama-ar", "--to", "hf", tmp_path / "hf", "--dtype", "bf16", "--json")
    assert code == 0 and json.loads(said)["logits"] < 1e-4
    assert load_file(tmp_path / "hf" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def other(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def without_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, code, sentence",
    [
        (lambda f: other(f, model_type="qwen2"), 78, "model_type is 'qwen2', expected llama or mistral"),
        (lambda f: other(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), 78, "rope_type is 'yarn'"),
        (lambda f: other(f, attention_bias=True), 78, "attention_bias is True, expected False"),
        (lambda f: other(f, num_hidden_layers=3), 78, "blocks.2.*missing"),
        (lambda f: other(f, vocab_size=200), 78, "tokenizer has 257 ids and the table 200 rows"),
        (lambda f: other(f, num_attention_heads=None), 78, "does not describe a model"),
        (without_tensor, 78, "lacks mlp.up_proj.weight"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), 65, "has no model.safetensors"),
    ],
)
def test_what_is_not_our_network_is_refused(runs, tmp_path, capsys, spoil, code, sentence):
    assert convert(capsys, runs / "llama-ar", "--to", "hf", tmp_path / "hf")[0] == 0
    spoil(tmp_path / "hf")
    found, said = convert(capsys, tmp_path / "hf", tmp_path / "back")
    assert (found, bool(re.search(sentence, said))) == (code, True), said
    assert not (tmp_path / "back").exists()


def test_weights_that_say_something_else_are_not_written(runs, tmp_path, capsys, monkeypatch):
    """A fault in the mapping: gate and up exchanged."""
    from megatron.exchange import llama

    monkeypatch.setattr(llama, "UP_PARTS", llama.UP_PARTS[::-1])
    code, said = convert(capsys, runs / "llama-ar", "--to", "hf", tmp_path / "hf")
    assert code == 78 and "logits differ by" in said and not (tmp_path / "hf").exists()


def test_unfinished_runs_and_idle_flags_are_refused(runs, tmp_path, capsys):
    run = shutil.copytree(runs / "llama-ar", tmp_path / "run")
    assert convert(capsys, run, "--to", "hf", tmp_path / "hf", "--checkpoint", "7")[0] == 66
    assert convert(capsys, run, tmp_path / "hf", "--no-tokenizer")[0] == 2
    assert convert(capsys, "--from", "plain", run, tmp_path / "hf")[0] == 78
    assert not (tmp_path / "hf").exists()
