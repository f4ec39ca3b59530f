"""Sparse distribution diffusion: what is posed, how a run of it is recorded and refused, and that it is one at every layout."""

import contextlib
import json
import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron.batch import Clean, Noise
from megatron.config import parse
from megatron.data.indexed import IndexedWriter
from megatron.flags import ConfigError
from megatron.objectives import build, checked
from megatron.objectives.sdd import EMPTY, OTHER, States, bins
from megatron.proof import trial
from megatron.training.pretrain import main
from tests.objectives.test_schedules import LAYOUTS, words
from tools import audit, entropy_floor, evaluate, scaling_laws

VOCAB = 257
FLAGS = """--objective sdd --num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 16 --global-batch-size 8
    --micro-batch-size 4 --lr 1e-2 --train-iters 40 --tokenizer-type ByteTokenizer --data-path x --device cpu --num-threads 1
    --log-interval 1""".split()
EVERYTHING = "--objective sdd --sdd-denoiser bilateral --time-conditioning --sdd-k 1 3 --sdd-k-steps 2 --sdd-t-weights 0 1 2"


def objective(*flags, data="packed"):
    where = {"packed": [], "instruct": "--data-kind instruct --train-data-path x --valid-data-path x".split()}[data]
    flags = [word for word in FLAGS if data == "packed" or word not in ("--data-path", "x")] + where + list(flags)
    return checked(build(parse(flags), VOCAB))


def clean(rows=64, length=32, given=0, empty=0):
    tokens = torch.randint(0, 256, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    scored = torch.ones(rows, length + 1, dtype=torch.bool)
    scored[:, :given] = scored[:, length - empty :] = False
    return Clean(tokens=tokens, scored=scored, index=torch.arange(rows))


def noised(t, k, schedule="linear", rows=400):
    states = States(vocab=VOCAB, schedule=schedule)
    data, uniform = clean(rows), Noise(3, torch.arange(rows)).uniform(1, 33, 3, k)
    return data.tokens, *states.noised(data.tokens, torch.full((rows,), t), uniform)


def test_a_place_without_noise_is_its_token_among_others_and_with_all_of_it_nothing():
    tokens, ids, p = noised(0.0, 4)
    assert torch.equal(ids[..., 0], tokens) and not (ids[..., 1:] == tokens[..., None]).any()
    assert p[..., 0].unique().tolist() == pytest.approx([1 - 3 * OTHER]) and p[..., 1:].unique().tolist() == pytest.approx(
        [OTHER]
    )
    tokens, ids, p = noised(1.0, 4)
    assert p.unique().tolist() == pytest.approx([1 / VOCAB]) and 0 <= int(ids.min()) and int(ids.max()) == VOCAB - 1
    hits = (ids == tokens[..., None]).float().mean((0, 1))  # every candidate is the token as often as any id is
    assert hits.tolist() == pytest.approx([1 / VOCAB] * 4, abs=5 / math.sqrt(VOCAB * tokens.numel()))


def test_candidates_are_swapped_as_often_as_the_process_says():
    n, k = 0.6, 3
    tokens, ids, p = noised(n, k)
    left = p != torch.tensor(1 / VOCAB)
    for slot, clean_p in ((0, 1 - 2 * OTHER), (1, OTHER), (2, OTHER)):
        chance = n * (1 - (1 - n) * clean_p / (1 - 2 * OTHER))
        error = math.sqrt(chance * (1 - chance) / tokens.numel())
        assert 1 - float(left[..., slot].float().mean()) == pytest.approx(chance, abs=5 * error)
        assert p[..., slot][left[..., slot]].unique().tolist() == pytest.approx([(1 - n) * clean_p + n / VOCAB])
    same = noised(math.acos(1 - n) * 2 / math.pi, k, "cosine")
    assert torch.equal(same[1], ids) and same[2] == pytest.approx(p, abs=1e-6)


def test_the_number_of_candidates_grows_with_the_step_and_validation_has_the_last():
    found = objective("--sdd-k", "1", "2", "4", "--sdd-k-steps", "3")
    assert [found.k_at(step / 40) for step in range(8)] == [1, 1, 1, 2, 2, 2, 4, 4] and found.k_at(1.0) == 4
    assert [objective().k_at(step / 40) for step in range(8)] == [1, 1, 2, 2, 4, 4, 8, 8]  # a twentieth of 40 steps each
    assert found.reference().ks == (4,) and found.reference() == found.reference().reference()
    data = clean(8)
    posed = found.pose(data, Noise(1, data.index), 3 / 40)
    assert posed.candidates.shape == posed.mix.shape == (8, 32, 3) and (posed.candidates[..., -1] == VOCAB).all()
    assert found.measure(posed) == {"k": 2.0 * 8 * 32}
    assert posed.mix.sum(-1) == pytest.approx(torch.ones(8, 32), abs=1e-6)
    cfg = parse([*FLAGS, "--sdd-k", "1", "5", "--sdd-k-steps", "10"])
    assert cfg.objective.candidates(cfg.train) == 1 + (10 * 1 + 30 * 5) / 40


def test_given_text_is_certain_and_empty_places_are_noised_and_weighed_by_their_noise():
    data = clean(64, given=3, empty=5)
    plain, ignoring = (objective(*flags, data="instruct") for flags in ([], ["--sdd-ignore"]))
    batch, other = (one.pose(data, Noise(1, data.index), 1.0) for one in (plain, ignoring))
    assert torch.equal(batch.candidates[:, :3, 0], data.tokens[:, :3]) and (batch.mix[:, :3, 0] == 1).all()
    assert not batch.mix[:, :3, 1:].any() and (batch.inputs[:, 3:] == VOCAB).all()
    assert torch.equal(batch.mix, other.mix) and int(batch.scored.sum()) == int(other.scored.sum()) == 64 * 24
    hidden = batch.mix[:, -5:, 0] < 0.1  # of the noise of rows as much as elsewhere
    assert float(hidden.float().mean()) == pytest.approx(float((batch.mix[:, 3:-5, 0] < 0.1).float().mean()), abs=0.06)
    assert not batch.weights[:, -5:].any() and not other.weights[:, :3].any()
    assert other.weights[:, -5:] == pytest.approx((EMPTY * (1 - other.level) ** 2)[:, None].expand(-1, 5), abs=1e-6)
    hit = torch.ones(len(other.asked))
    counted = ignoring.count_hits(other, hit)
    assert counted[:, 1].tolist() == [16 * 24.0] * 4 + [64 * 5.0] and torch.equal(counted[:, 0], counted[:, 1])


def test_weights_by_time_keep_the_mean():
    data = clean(16)
    found = objective("--sdd-t-weights", "0", "1", "3")
    batch = replace(found, strata=16).pose(data, Noise(1, data.index), 0.5)
    assert torch.equal(batch.weights[:, 0], torch.tensor([0.0, 0.75, 2.25])[bins(batch.level, 3)])
    assert found.reference().t_weights == (1,)


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--objective sdd --sdd-k 51", "--sdd-k 51: at most 50"),
        ("--objective sdd --sdd-k 1 2 --sdd-k-steps 40", "--sdd-k-steps 40: the run would end before k = 2"),
        ("--objective sdd --sdd-k 2 --sdd-k-steps 4", "--sdd-k-steps would do nothing here"),
        ("--objective sdd --sdd-ignore", "use --objective sdd and --data-kind instruct or pairs"),
        ("--objective sdd --sdd-t-weights 0 0", "--sdd-t-weights are all 0"),
        ("--objective sdd --save s --final-scores nelbo", "--final-scores needs a likelihood, and --objective sdd has none"),
        ("--objective sdd --eval-tasks t.jsonl", "--eval-tasks needs a likelihood"),
        ("--objective mdm --sdd-denoiser bilateral", "--sdd-denoiser would do nothing here: use --objective sdd"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, said):
    with pytest.raises(ConfigError) as refused:
        parse([*FLAGS[2:], *flags.split()])
    assert said in str(refused.value)


def test_it_is_one_experiment_at_every_layout_and_goes_on_anywhere(pool, corpus, tmp_path):
    four = " ".join(words(corpus)).replace("--num-layers 2", "--num-layers 4").split()  # zero-bubble has two stages a process
    argv = [*four, *EVERYTHING.split()]
    alone = trial.train(argv, 4, save=str(tmp_path))
    half = trial.train(argv, 2, save=str(tmp_path / "half"))
    again = trial.train(argv, 2, load=str(tmp_path / "half"))
    assert (half.losses + again.losses, half.norms + again.norms) == (alone.losses, alone.norms)  # k grows between them
    zero_bubble = "--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble"
    for layout in (LAYOUTS["tp2+sp"], LAYOUTS["dp2+zero3"], zero_bubble):
        found = pool.run(2, trial.train, [*argv, *layout.split()], 4)
        assert all(rank.losses == found[0].losses for rank in found)
        assert found[0].losses == pytest.approx(alone.losses, abs=5e-6) and found[0].norms == pytest.approx(alone.norms, rel=1e-4)
        assert found[0].validation == pytest.approx(alone.validation, abs=5e-6)
        assert {number: row for rank in found for number, row in rank.samples.items()} == alone.samples
    moved = pool.run(2, trial.train, [*argv, *layout.split()], 2, None, str(tmp_path / "half"))
    assert moved[0].losses == pytest.approx(alone.losses[2:], abs=5e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdd")
    with IndexedWriter(str(folder / "text"), np.uint16) as writer:
        for document in np.split(np.random.default_rng(0).integers(97, 123, 4096), 16):
            writer.add_document(document)
    data = f"--data-path {folder / 'text'} --split 80,20,0 --eval-iters 1 --tensorboard-dir {folder / 'tb'}"
    flags = ["12" if word == "40" else word for word in FLAGS if word not in ("--data-path", "x")]
    shown = ["--log-validation-ppl-to-tensorboard", "--sdd-k-steps", "1", "--save", str(folder / "run")]
    assert main(parse([*flags, *data.split(), *shown])) == 0
    return folder / "run"


def test_no_record_speaks_of_a_likelihood(run, capsys):
    """Its own loss is named for what it is; there is no perplexity in any record or line, and no bits per byte."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train, val = records[0], records[-1]
    assert [r["k"] for r in records if r["kind"] == "train"] == [1, 2, 4] + [8] * 9
    assert {"accuracy_t1", "accuracy_t4"} <= train.keys() | val.keys() and val["bound"] == "denoising"
    assert 0 < val["loss_t1"] and val["accuracy_t4"] < val["accuracy_t1"]
    assert not any({"perplexity", "bits_per_byte"} & r.keys() for r in records)
    log, result = (run / "train.log").read_text(), json.loads((run / "result.json").read_text())
    assert "ppl" not in log.lower() and "perplexity" not in log and "bits per byte" not in log and "denoising nats" in log
    assert result["bound"] == "denoising" and result["bits_per_byte"] is None and "no NLL" in result["convention"]["value"]
    assert b"ppl" not in b"".join(path.read_bytes() for path in (run.parent / "tb").iterdir())


@pytest.mark.parametrize(
    "tool, words",
    [
        (evaluate, "likelihood RUN"),
        (evaluate, "compare RUN RUN"),
        (evaluate, "--checkpoint RUN --metrics perplexity"),
        (entropy_floor, "RUN"),
        (audit, "RUN"),
        (audit, "sdd"),
        (scaling_laws, "fit RUN --score nelbo"),
    ],
)
def test_what_needs_a_likelihood_refuses_it_in_a_sentence(run, capsys, tool, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = tool.main([str(run) if word == "RUN" else word for word in words.split()])
    said = capsys.readouterr()
    assert code == 78 and "likelihood" in said.err and "Traceback" not in said.err and not list(tmp_path.iterdir())
    assert len(said.err.strip().splitlines()) <= 2, said.err


PAGE = (Path(__file__).parents[2] / "docs/sdd.md").read_text().partition("## Document, command, what it prints")[2]
ROWS = re.findall(r"^\| (?!the document)[^|]+ \| `python (\S+) ([^`]+)` \| `([^`]+)` \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def place(run, tmp_path_factory):
    """A folder in which the page's rows run one after the other."""
    return tmp_path_factory.mktemp("page")


@pytest.mark.parametrize("program, words, prints", ROWS, ids=[f"{program} {words}"[:60] for program, words, _ in ROWS])
def test_what_the_page_says_of_a_row_is_printed(run, place, capsys, monkeypatch, program, words, prints):
    """All in this process: a row costs what it does. The rows share a folder, as a reader's shell does."""
    monkeypatch.chdir(place)
    data = f"--data-path {run.parent / 'text'} --split 80,20,0 --eval-iters 1"
    flags = ["12" if word == "40" else word for word in FLAGS[2:] if word not in ("--data-path", "x")] + data.split()
    given = [said for word in words.split() for said in (flags if word == "FLAGS" else [word])]
    monkeypatch.setattr("sys.argv", [program, *given])
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(Path(__file__).parents[2] / program), run_name="__main__")
    said = capsys.readouterr()
    assert prints in said.out + said.err and "Traceback" not in said.err, said.out[-600:] + said.err[-600:]


def test_the_page_has_rows():
    assert len(ROWS) >= 12 and PAGE.count("\n| ") == len(ROWS) + 1
