"""A network that is told vectors uses them: its loss falls by what they hold of the text, within its error."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron.batch import Noise
from megatron.config import parse
from megatron.data.synthetic.topics import Topics, write_pairs
from megatron.evaluation.vectors import describe, measure
from megatron.objectives.vectors import levels
from megatron.training import open_run
from megatron.training.evaluate import cleans
from megatron.training.pretrain import main
from tools import audit, evaluate, generate

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Topics(topics=4, length=7, share=0.3, own=2, common=4, size=4, noise=0.05)
FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 10 --attention-dropout 0 --hidden-dropout 0
    --init-method-std 0.1 --lr 1e-2 --lr-warmup-samples 1000 --lr-decay-style cosine --adam-beta2 0.99 --global-batch-size 64
    --micro-batch-size 64 --train-iters 400 --tokenizer-type ByteTokenizer --data-kind pairs --eval-iters 8 --eval-interval 400
    --log-interval 100 --score-first-token --num-mc 4 --device cpu --num-threads 1 --latent-size 4 --latent-dropout 0.4""".split()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topics")
    write_pairs(SOURCE, folder / "train", 4096)
    write_pairs(SOURCE, folder / "valid", 1024, 10)
    return folder


def trained(corpora, objective, *flags):
    data = ["--train-data-path", str(corpora / "train"), "--valid-data-path", str(corpora / "valid")]
    run = corpora / "-".join([objective, *flags]).replace("--", "")
    assert main(parse([*FLAGS, *data, "--run-dir", str(run), "--save", str(run), *flags], objective)) == 0
    return run


@pytest.fixture(scope="module")
def told(corpora):
    return trained(corpora, "mdm")


def test_the_loss_falls_by_the_information_in_the_vector(told):
    found = measure(open_run(told, vectors=True))
    information, text = found["information"], found["text"]
    assert information["known"] == SOURCE.information()
    assert abs(information["value"] - information["known"]) < 3 * information["error"] < 0.4
    floor = SOURCE.entropy() / (SOURCE.length + 1)
    assert text["told"]["value"] == pytest.approx(floor, abs=3 * text["told"]["error"] + 0.02)
    assert text["another"]["value"] > text["untold"]["value"] > text["told"]["value"]
    assert "in common" in describe(found)


def test_the_record_says_what_the_likelihood_is_conditional_on(told):
    result = json.loads((told / "result.json").read_text())
    assert result["bound"] == "bound" and result["convention"]["conditioned_on"] == "its vector"


def test_vectors_are_read_as_the_network_learnt_to_whatever_is_trained_on_now(told, corpora, tmp_path):
    write_pairs(replace(SOURCE, noise=2.0), tmp_path / "other", 256, 20)  # vectors of other deviations
    words = [*FLAGS, "--train-data-path", str(tmp_path / "other"), "--valid-data-path", str(corpora / "valid")]
    words += ["--load", str(told), "--skip-train", "--run-dir", str(tmp_path / "eval")]
    words[words.index("--train-iters") : words.index("--train-iters") + 2] = []
    assert main(parse(words, "mdm")) == 0
    found = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["valid"]["loss"]
    assert found == pytest.approx(json.loads((told / "result.json").read_text())["loss"], abs=1e-9)


def test_texts_are_written_for_vectors(told, both, tmp_path, capsys):
    centres = SOURCE.centres().astype(np.float32)
    np.save(tmp_path / "v.npy", centres)
    for run, *more in ([told], [told, "--guidance", "0.5", "--block-length", "4", "--cache", "dual"], [both, "--steps", "4"]):
        generate.main([str(run), "--vectors", str(tmp_path / "v.npy"), "--num-samples", "8", "--json", *more])
        samples = json.loads(capsys.readouterr().out)["samples"]
        right = [(word - 4) // 2 == s["number"] // 8 for s in samples for word in s["ids"] if 4 <= word < SOURCE.num_ids]
        assert len(samples) == 32 and len(right) > 30 and np.mean(right) > 0.85
    np.save(tmp_path / "v.npy", centres[:, :3])
    assert generate.main([str(told), "--vectors", str(tmp_path / "v.npy")]) == 65
    assert "expected finite floats [m, 4] or [4]" in capsys.readouterr().err


def test_what_reads_texts_alone_refuses_the_run(told, capsys):
    for argv in (["likelihood", str(told)], ["samples", str(told)]):
        assert evaluate.main(argv) and "its rows begin with a vector" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--latent-adaln"], ["--objective", "ar"], ["--objective", "ar", "--latent-adaln"]])
def test_norms_and_readers_from_left_to_right_use_it_too(corpora, flags):
    run = open_run(trained(corpora, "ar" if "ar" in flags else "mdm", *flags), vectors=True)
    information = measure(run)["information"]
    assert abs(information["value"] - information["known"]) < 4 * information["error"] + 0.1


def test_flags_that_do_not_go_together_are_refused_together(corpora, capsys):
    from megatron.flags import ConfigError

    words = [*FLAGS, "--eval-tasks", "x.jsonl", "--final-scores", "nelbo"]
    with pytest.raises(ConfigError) as refused:
        parse(words, "mdm")
    said = "\n".join(refused.value.mistakes)
    assert (
        "--latent-size needs --train-data-path" in said and "--eval-tasks is of texts" in said and "--final-scores is of" in said
    )
    with pytest.raises(ConfigError, match="--latent-size would do nothing here: use --data-kind pairs"):
        parse("--num-layers 1 --hidden-size 8 --num-attention-heads 1 --latent-size 4 --dry-run".split())
    data = ["--train-data-path", str(corpora / "train"), "--valid-data-path", str(corpora / "valid")]
    wrong = [*FLAGS, *data, "--run-dir", str(corpora / "wrong")]
    wrong[wrong.index("--latent-size") + 1] = "5"
    assert (
        main(parse(wrong, "mdm")) == 78
        and "has vectors of 4 numbers, expected 5: give --latent-size 4" in capsys.readouterr().err
    )


# The other way round


@pytest.fixture(scope="module")
def both(corpora):
    return trained(corpora, "joint", "--latent-mode", "random", "--latent-turns", "l2t=1", "t2l=2")


def least_error(batch, rows, standard):
    """Of v, in the mean, for a reader of a text that knows the source: the posterior is a mixture of the topics' normals."""
    a, s = (x[:, None, None].double() for x in levels(batch.latent_level))
    centres = torch.from_numpy((SOURCE.centres() - standard.mean) / standard.std)  # [K, d]
    tau = torch.from_numpy(SOURCE.noise / standard.std.astype(float))
    words = [{(w - 4) // 2 for w in row if 4 <= w < SOURCE.num_ids} for row in rows.tolist()]
    own = torch.tensor([[k in topics for k in range(4)] for topics in words])
    possible = torch.where(own.any(1, keepdim=True), own, True)
    z, spread = batch.latent[:, None].double(), (a * tau) ** 2 + s**2  # [b, 1, d]
    log_p = -((z - a * centres) ** 2 / spread + spread.log()).sum(-1) / 2  # [b, K]
    weights = log_p.masked_fill(~possible, -torch.inf).softmax(-1)[..., None]
    mean = (weights * (centres + a * tau**2 / spread * (z - a * centres))).sum(1)
    v = (a[:, 0] * batch.latent - mean) / s[:, 0]
    return float((v - batch.latent_target).square().mean())


def test_vectors_are_predicted_almost_as_by_one_who_knows_the_source(both):
    run = open_run(both, vectors=True)
    found = measure(run)
    data, objective = run.slice(), run.objective.vector.reference()
    (clean,) = cleans(data, 0)
    least = least_error(objective.pose(clean, Noise(data.seed, clean.index), 1.0), clean.tokens, run.standard)
    error = found["vector"]
    assert least - 0.02 < error["told"]["value"] < least + 0.15 < error["another"]["value"]
    assert error["told"]["value"] < error["untold"]["value"] < 1
    information = found["information"]
    assert abs(information["value"] - information["known"]) < 4 * information["error"] + 0.15


def test_the_losses_are_apart_in_log_and_record(both, capsys):
    result = json.loads((both / "result.json").read_text())
    assert result["bound"] == "bound" and 0 < result["vector_loss"] < 0.6 and result["loss"] > 1
    records = [json.loads(line) for line in (both / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "train":
            assert record["text_loss"] > 1 > record["vector_loss"]
    assert records[-1]["kind"] == "val" and records[-1]["vector_loss"] == result["vector_loss"]


def test_vectors_are_written_for_texts(both, told, tmp_path, capsys):
    _, words, _ = SOURCE.draw(20, 64)
    own = [{(w - 4) // 2 for w in row if w >= 4} for row in words.tolist()]
    prompts = tmp_path / "texts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": bytes(row.tolist()).decode()}) + "\n" for row in words))
    out = tmp_path / "out.npy"
    argv = ["--prompts", str(prompts), "--to-vectors", str(out)]
    assert generate.main([str(both), *argv, "--steps", "20", "--guidance", "0.5"]) == 0
    found = np.load(out)
    nearest = (found @ SOURCE.centres().T).argmax(1)
    assert found.shape == (64, 4) and np.mean([{k} == topics for k, topics in zip(nearest, own) if topics]) > 0.9
    assert np.linalg.norm(found - SOURCE.centres()[nearest], axis=1).mean() < 0.5
    assert generate.main([str(told), *argv]) == 78 and "predicts no vectors" in capsys.readouterr().err
    assert generate.main([str(both), *argv, "--temperature", "0.5"]) == 2
    assert "--temperature is of tokens" in capsys.readouterr().err


def test_a_run_of_vectors_alone_claims_no_likelihood(corpora, capsys):
    run = trained(corpora, "t2l")
    result = json.loads((run / "result.json").read_text())
    assert result["bound"] not in ("bound", "exact") and result["loss"] < 0.6 and result["bits_per_byte"] is None
    assert result["convention"]["scored_tokens"] == "the vector of each row" and "mean square" in result["convention"]["unit"]
    assert audit.main([str(run)]) and "t2l" in capsys.readouterr().err
    assert "vector, given its text" in describe(measure(open_run(run, vectors=True)))


# What the manual says


PAGE = (ROOT / "docs/vectors.md").read_text()
ROWS = re.findall(r"^\| ([^|`]+) \| `(.+?)` \| (?:[^|`]*)`([^`]+)`", PAGE[PAGE.index("| of the document") :], re.MULTILINE)
SHORT = """--train-iters 6 --num-layers 1 --hidden-size 16 --num-attention-heads 2 --global-batch-size 8 --micro-batch-size 8
    --lr-warmup-samples 8 --log-interval 2 --eval-iters 1 --num-mc 2 --device cpu --num-threads 1"""


@pytest.mark.slow
def test_rows_of_the_document(tmp_path):
    """In their order, each small: the first thing in `` of the last column is printed."""
    assert len(ROWS) > 12
    for name in ("megatron", "tools", "utils", "examples", "pretrain_gpt.py", "pretrain_diff_gpt.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    small = {"SCALE": "cpu", "TOKENS": "20000", "EVAL_ITERS": "1", "PROCESSES": "1", "PYTHON": sys.executable}
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | small
    for what, command, printed in ROWS:
        if "small.yaml" in command:
            command = f"{command} {' '.join(SHORT.split())}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, f"{what}: {command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        assert printed in done.stdout + done.stderr, f"{what}: {done.stdout[-1500:]}"
