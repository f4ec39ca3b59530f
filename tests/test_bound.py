"""A loss is a negative log-likelihood, or an upper bound on one, only if exp(-loss) over all rows sums to at most one.

Every row of a tiny vocabulary is posed as validation poses it, and the mean over the noise is exact: what masked diffusion
does depends on the order of a row's uniforms and on k, and all of both are gone through.
"""

import itertools
import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron.batch import Noise
from megatron.config import Model, Optim, parse
from megatron.core.transformer import GPT, PLAIN
from megatron.data.borders import Borders
from megatron.data.indexed import IndexedWriter
from megatron.data.instruct import Instruct
from megatron.data.pairs import Pairs
from megatron.data.samples import Samples
from megatron.engine.native import NativeEngine
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion
from megatron.training.evaluate import Slice, cleans
from megatron.training.pretrain import main

LETTERS, END, MASK, SEQ = (0, 1), 2, 3, 5  # four tokens behind the first, which is given
MODEL = Model(
    num_layers=1,
    hidden_size=16,
    num_attention_heads=2,
    kv_channels=8,
    ffn_hidden_size=32,
    seq_length=SEQ,
    vocab_size=3,
    padded_vocab_size=16,
    init_method_std=0.5,
    attention_dropout=0.0,
    hidden_dropout=0.0,
)


def engine(causal, slots=PLAIN):
    model = GPT(MODEL, causal, 3, slots=slots)
    for name, p in model.named_parameters():  # what is told must be heard: gates begin at zero
        if name.endswith(("scale", "shift", "gate")):
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(len(name)))
    return NativeEngine([model], Optim(lr=1e-3))


class Ordered(Noise):
    """Noise whose uniforms have one given order behind the first place, and whose level is t in all rows."""

    def __init__(self, index, order, t):
        super().__init__(0, index)
        self.row, self.t = torch.tensor([0.5, *((place + 0.5) / len(order) for place in order)]), t

    def uniform(self, purpose, *shape):
        return self.row.expand(len(self.index), -1)

    def stratified(self, strata):
        return torch.full((len(self.index),), self.t, dtype=torch.float64)


class Whole(Samples):
    """All rows of s tokens after one given token, packed: no row ends before its last place."""

    def rows(self, numbers):
        text = np.array(list(itertools.product((*LETTERS, END), repeat=SEQ - 1)))
        return np.pad(text, ((0, 0), (1, 1)))[numbers]

    tokens_per_epoch = rows_in_first_epoch = 81

    def origin(self, number):
        return "whole"

    describe = fingerprint = lambda self: "whole"


def texts(longest):
    """All texts of letters that end before `longest` tokens, without their end, and all that do not, cut."""
    return [text for n in range(longest + 1) for text in itertools.product(LETTERS, repeat=n)]


def instruct(folder, width=SEQ):
    with IndexedWriter(folder / "c", np.uint16) as writer:
        for text in texts(width - 1):
            response = (*text, END) if len(text) < width - 1 else text
            writer.add_document([1, *response], lengths=[1, len(response)])
    return Instruct(str(folder / "c"), width, 1, 3, END)


def pairs(folder, end=()):
    with IndexedWriter(folder / "c", np.uint16) as writer:
        for text in texts(SEQ - 1):
            writer.add_document([0, *text, *end])
    np.save(folder / "c.vectors.npy", np.zeros((len(texts(SEQ - 1)), 1), np.float32))
    return Pairs(str(folder / "c"), SEQ, 1, 3, END)


DATA = {
    "packed": lambda folder: Whole(SEQ, 1, 3),
    "instruct": instruct,
    "pairs": pairs,
    "pairs that end": lambda folder: pairs(folder, (END,)),
}


def clean_rows(dataset):
    width, count = dataset.seq_length, dataset.rows_in_first_epoch
    data = Slice(dataset=dataset, rows=count, seq_length=width, num_mc=1, seed=1, score_first_token=False)
    (clean,) = cleans(data, 0)
    return clean


def mean_over_noise(model, objective, clean, borders=Borders()):  # noqa: B008  # it is frozen
    """Each row's loss, over all orders of four uniforms and k = 1..L for every L up to 4.  -> [rows]"""
    cases = [(order, (level + 1) / 12) for order in itertools.permutations(range(SEQ - 1)) for level in range(12)]
    posed = [borders.apply(objective.pose(clean, Ordered(clean.index, order, t), 1.0), clean) for order, t in cases]
    return np.mean([scores.loss for scores in model.score(posed)], 0)


@dataclass(frozen=True)
class Oracle:
    """A model that knows the law of the rows, and draws every conclusion from what it sees.  rows [r, s], law [r]

    `told` [b, r]: which rows it knows each one to be among.
    """

    rows: np.ndarray
    law: np.ndarray
    told: np.ndarray | bool = True

    def score(self, batches):
        return [SimpleNamespace(loss=(self.nll(b) * b.weights.numpy()).sum(1)) for b in batches]

    def nll(self, batch):
        seen, wanted = batch.inputs.numpy()[:, None], batch.targets.numpy()[:, None]  # [b, 1, s]
        mass = ((seen == MASK) | (seen == self.rows)).all(-1) * self.told * self.law  # [b, r]
        right = (mass[..., None] * (wanted == self.rows)).sum(1)  # [b, s]
        return -np.log(right / mass.sum(1, keepdims=True))


@pytest.mark.parametrize("kind", DATA)
def test_likelihoods_of_all_rows_sum_to_one(kind, tmp_path):
    """The bound of a model without a fault is tight, so that one bit which a row gives away would carry the sum past one."""
    clean = clean_rows(DATA[kind](tmp_path))
    (exact,) = engine(True).score([NextToken().pose(clean, Noise(0, clean.index), 1.0)])
    assert np.exp(-exact.loss).sum() == pytest.approx(1.0, abs=1e-5)
    law = np.random.default_rng(0).dirichlet(np.full(len(clean.index), 0.3))
    bound = mean_over_noise(Oracle(clean.tokens[:, :-1].numpy(), law), MaskedDiffusion(mask_id=MASK).reference(), clean)
    assert bound == pytest.approx(-np.log(law), rel=1e-5)


BORDERS = {
    "attention": Borders(eod=END, attention=True, positions=True),
    "loss": Borders(eod=END, loss=True),
    "all": Borders(eod=END, attention=True, positions=True, loss=True),
}


@pytest.mark.parametrize("kind", BORDERS)
def test_likelihoods_of_all_rows_with_the_same_borders_sum_to_one(kind, tmp_path):
    """Masked diffusion is told where documents end, by the borders or by the ends themselves, and bounds all else given that."""
    clean, borders, objective = clean_rows(DATA["packed"](tmp_path)), BORDERS[kind], MaskedDiffusion(mask_id=MASK).reference()
    rows = clean.tokens[:, :-1].numpy()
    told = ((rows == END)[:, None] == (rows == END)).all(-1)  # [b, r]
    law = np.random.default_rng(0).dirichlet(np.full(len(rows), 0.3))
    bound = mean_over_noise(Oracle(rows, law, told), objective, clean, borders)
    assert bound == pytest.approx(-np.log(law / (told * law).sum(1)), rel=1e-5, abs=1e-9)
    assert (told @ np.exp(-mean_over_noise(engine(False), objective, clean, borders)) < 1 + 1e-5).all()
    (exact,) = engine(True).score([borders.apply(NextToken().pose(clean, Noise(0, clean.index), 1.0), clean)])
    # With --eod-mask-loss the first token of each document is given: of every row one in which they all are letter 0.
    first = np.pad(rows == END, ((0, 0), (1, 0)))[:, :-1]
    counted = (rows[:, 1:] == 0) | ~first[:, 1:] if borders.loss else np.ones_like(first[:, 1:])
    assert np.exp(-exact.loss)[counted.all(1)].sum() == pytest.approx(1.0, abs=1e-5)


def test_both_objectives_score_the_same_tokens_of_rows_that_end(tmp_path):
    clean = clean_rows(instruct(tmp_path))
    ar, mdm = (o.pose(clean, Noise(0, clean.index), 1.0) for o in (NextToken(), MaskedDiffusion(mask_id=MASK, eps=0.0)))
    assert ar.scored.sum(1).tolist() == mdm.scored.sum(1).tolist()
    assert ar.targets[ar.scored].tolist() == mdm.targets[mdm.scored].tolist()


@pytest.mark.parametrize("told", [False, True])
def test_training_and_validation_pose_the_same_bound(tmp_path, told):
    """The independent form by quadrature over t and all patterns, against the count form over all orders."""
    objective = MaskedDiffusion(mask_id=MASK, eps=0.0, strata=16, told=told)
    clean, model = clean_rows(instruct(tmp_path)), engine(False, objective.slots(MODEL))
    nodes, weights = np.polynomial.legendre.leggauss(12)
    total = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2):
        for hidden in itertools.product((0, 1), repeat=SEQ - 1):
            chance = math.prod(t if h else 1 - t for h in hidden)
            noise = Ordered(clean.index, [0 if h else SEQ - 1.001 for h in hidden], t)
            noise.row = torch.tensor([0.5, *(0.0 if h else 1.0 for h in hidden)])
            posed = objective.pose(clean, noise, 0.0)
            total = total + weight * chance * model.score([posed])[0].loss
    bound = mean_over_noise(model, objective.reference(), clean)
    assert total == pytest.approx(bound, rel=1e-4) and np.exp(-bound).sum() < 1


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_a_trained_loss_on_answers_of_unknown_length_is_not_below_their_entropy(objective, tmp_path):
    """Answers are U{1..24} times the same letter and an end: ln 24 nats of (1 + 24) / 2 + 1 tokens, all of it the length."""
    lengths = np.random.default_rng(0).integers(1, 25, 2400)
    for name, part in (("train", lengths[:1800]), ("valid", lengths[1800:])):
        with IndexedWriter(tmp_path / name, np.uint16) as writer:
            for n in part.tolist():
                writer.add_document([65, *[66] * n, 256], lengths=[1, n + 1])
    flags = f"""--data-kind instruct --train-data-path {tmp_path}/train --valid-data-path {tmp_path}/valid --seq-length 32
        --num-layers 2 --hidden-size 64 --num-attention-heads 2 --hidden-dropout 0 --attention-dropout 0 --train-iters 600
        --micro-batch-size 32 --global-batch-size 32 --lr 3e-3 --min-lr 3e-5 --lr-decay-style cosine --lr-warmup-samples 640
        --tokenizer-type ByteTokenizer --eval-iters 18 --eval-interval 1000 --log-interval 1000 --num-threads 1 --device cpu
        --run-dir {tmp_path}/run"""
    assert main(parse(flags.split(), objective)) == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    error = math.hypot(found["loss_se_noise"], found["loss_se_data"])
    assert -3 * error < found["loss"] - math.log(24) / 13.5 < 0.06
