"""Borders of documents in packed rows: Megatron's masks, and rows that are the documents alone, at every layout."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron import engine as engines
from megatron.batch import Clean, Noise, Progress, asked_positions
from megatron.config import ConfigError, parse
from megatron.core.mesh import build_mesh
from megatron.core.transformer import visible
from megatron.data.borders import Borders
from megatron.data.datasets import SampleSpec, build_datasets
from megatron.data.tokenizer import build_tokenizer
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion
from megatron.training.evaluate import Slice, cleans, pose
from megatron.training.loop import pose as pose_training
from tests.test_open import place

EOD, LENGTH = 256, 12
ROW = [EOD, 7, 8, EOD, EOD, 9, 10, 11, 12, EOD, 13, 14, 15]
DOCUMENTS = ((0, 1), (1, 4), (4, 5), (5, 10), (10, 12))
OBJECTIVES = {"ar": NextToken(), "mdm": MaskedDiffusion(mask_id=257, eps=0.5)}
FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 12 --lr 1e-2 --init-method-std 0.1
    --attention-dropout 0 --hidden-dropout 0 --tokenizer-type ByteTokenizer --vocab-size 257""".split()


def posed(objective, **what):
    clean = Clean(tokens=torch.tensor([ROW]), scored=torch.ones(1, LENGTH + 1, dtype=torch.bool), index=torch.tensor([3]))
    return Borders(eod=EOD, **what).apply(objective.pose(clean, Noise(0, clean.index), 0.0), clean)


def test_masks_and_positions_are_megatrons():
    """get_ltor_masks_and_position_ids, by its loop over the ends of a row."""
    mask, positions, previous = np.tril(np.ones((LENGTH, LENGTH), bool)), np.arange(LENGTH), 0
    for i in [at for at, token in enumerate(ROW[:-1]) if token == EOD]:
        mask[i + 1 :, : i + 1] = False
        positions[i + 1 :] -= i + 1 - previous
        previous = i + 1
    batch = posed(OBJECTIVES["ar"], attention=True, positions=True, loss=True)
    assert np.array_equal(visible(batch, True)[0, 0].numpy(), mask)
    assert batch.positions[0].tolist() == positions.tolist()
    assert np.array_equal(batch.weights[0].numpy(), np.array(ROW[:-1]) != EOD)
    assert posed(OBJECTIVES["ar"]).segments is None


def test_an_end_that_is_not_scored_is_never_hidden():
    ends = torch.tensor([ROW[:-1]]) == EOD
    plain, given = posed(OBJECTIVES["mdm"]), posed(OBJECTIVES["mdm"], loss=True)
    assert (plain.inputs[ends] != EOD).any() and (given.inputs[ends] == EOD).all()
    assert torch.equal(given.inputs[~ends], plain.inputs[~ends]) and torch.equal(given.scored, ~ends)
    assert not given.weights[ends].any() and not ends.flatten()[given.asked].any()


def losses(flags):
    """Of a packed row, and of its documents as rows of their own, under each objective, on the last stage."""
    cfg = parse([*FLAGS, *flags, "--skip-train", "--data-path", "x"])
    p = cfg.parallel
    mesh, found = build_mesh(p.tensor_model_parallel_size, p.pipeline_model_parallel_size, p.sequence_parallel), []
    for objective in OBJECTIVES.values():
        engine = engines.build(cfg, objective, place(), mesh, lambda line: None)
        whole = posed(objective, attention=True, positions=True)
        parts = []
        for first, last in DOCUMENTS:
            names = ("inputs", "targets", "weights", "scored", "positions")
            cut = {name: getattr(whole, name)[:, first:last] for name in names}
            parts.append(replace(whole, segments=None, asked=asked_positions(cut["weights"]), **cut))
        batches = [whole, *parts, posed(objective)]
        scores = [float(engine.score([batch])[0].loss[0]) for batch in batches] if mesh.pp.size == 1 else None
        found.append(scores or [float(s.loss[0]) for batch in batches for s in engine.score([batch, batch])][::2])
    return found


@pytest.mark.parametrize("size, flags", [(2, "--tensor-model-parallel-size 2"), (2, "--pipeline-model-parallel-size 2")])
def test_a_packed_row_is_its_documents(pool, size, flags):
    found = [scores for scores in pool.run(size, losses, flags.split()) if scores[0]]
    alone = pool.run(1, losses, [])[0]
    for ranks in (*found, alone):
        for packed, *documents, plain in ranks:
            assert packed == pytest.approx(sum(documents), rel=1e-5) and abs(packed - plain) > 1e-3
    assert np.allclose(found[-1], alone, rtol=1e-5)


def test_flags_reach_training_and_validation_and_records_say_what_is_given(corpus):
    words = ["--reset-attention-mask", "--reset-position-ids", "--data-path", corpus, "--split", "50,50,0"]
    cfg = parse([*FLAGS, *words, "--train-iters", "2"])
    tokenizer = build_tokenizer("ByteTokenizer")
    data = build_datasets(cfg.data, SampleSpec(seq_length=LENGTH, seed=1, eval_seed=2, tokenizer=tokenizer))
    assert data["train"].borders == data["valid"].borders == Borders(eod=tokenizer.eod, attention=True, positions=True)
    data["train"].borders = data["valid"].borders = replace(data["valid"].borders, eod=7)  # the corpus has no end tokens
    valid = Slice(dataset=data["valid"], rows=40, seq_length=LENGTH, num_mc=1, seed=1, score_first_token=False)
    for batch in (
        *(pose(OBJECTIVES["mdm"], valid, clean) for clean in cleans(valid, 0)),
        pose_training(OBJECTIVES["ar"], data["train"], replace(cfg, train=replace(cfg.train, global_batch_size=40)), Progress())[
            0
        ],
    ):
        assert batch.segments is not None
    said = {name: valid.convention(objective)["conditioned_on"] for name, objective in OBJECTIVES.items()}
    assert said == {"ar": "token 0", "mdm": "token 0 and document borders"}
    with pytest.raises(ConfigError, match="--reset-attention-mask.*use --data-kind packed"):
        parse([*FLAGS, "--data-kind", "instruct", "--train-data-path", "x", "--reset-attention-mask", "--train-iters", "2"])
