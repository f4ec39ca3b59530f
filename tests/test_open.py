"""What a researcher adds, added in this file alone: an objective with a network of its own, a reader and a condition, a sampler.

Each runs in micro-batches at every kind of layout as it does in one process, goes on bit for bit after a restart, and moves
with its checkpoint from one layout to another.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from megatron import engine as engines
from megatron.batch import Batch, Noise, Progress, asked_positions
from megatron.config import parse
from megatron.core import checkpoint
from megatron.core.mesh import build_mesh
from megatron.core.parameters import Spec, collect
from megatron.core.slots import LevelFeatures, Slots
from megatron.core.tensor_parallel import part
from megatron.core.transformer import GPT, Dropout
from megatron.data.borders import Borders
from megatron.engine import learner as learners
from megatron.engine.randomness import untouched
from megatron.objectives import Objective, checked
from megatron.objectives.autoregressive import places
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.vectors import TextAndVector, TextGivenVector, VectorGivenText
from megatron.training.device import Where
from megatron.training.loop import Interval, one_step

VOCAB, MASK, LENGTH, STEPS = 257, 257, 16, 4  # of bytes
WIDTH = 3  # numbers of a vector
RATES, MIXING = 1001, 1002  # purposes of the toys' random numbers


# A dataset: whatever has rows, by number


class Words:
    """Sample i is a function of i; the first two tokens of odd samples are not scored."""

    tokens_per_epoch, rows_in_first_epoch = 10_000, 10_000

    borders = Borders()

    def __init__(self, length=LENGTH):
        self.length = length

    def rows(self, numbers):
        return np.stack([np.random.default_rng(int(n)).integers(0, 50, self.length + 1) for n in numbers])

    def scored(self, numbers):
        kept = np.ones((len(numbers), self.length + 1), bool)
        kept[np.asarray(numbers) % 2 == 1, :2] = False
        return kept

    def check_ids(self, rows, numbers):
        assert (rows < VOCAB).all()

    def vectors(self, numbers):
        return np.stack([np.random.default_rng([int(n), 1]).standard_normal(WIDTH, np.float32) for n in numbers])

    def fingerprint(self):
        return "words"


# An objective with a companion that learns how likely each token is to be missed, and hides the hard ones more often


class Difficulty(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.score = nn.Embedding(VOCAB + 1, 16), nn.Linear(16, 1)

    def specs(self):
        embed, score = Spec(role="embedding"), Spec(role="head", std=0.3)
        return {"embed.weight": embed, "score.weight": score, "score.bias": Spec(init="zeros", decay=False)}

    def forward(self, ids):
        return self.score(torch.tanh(self.embed(ids)))[..., 0]


@dataclass(frozen=True)
class Adaptive(Objective):
    causal: bool = False
    exact: bool = False
    uses_mask: bool = True

    @classmethod
    def build(cls, cfg, mask_id):
        return cls()

    def reference(self):
        return MaskedDiffusion(mask_id=MASK).reference()

    def companion(self, model):
        return Difficulty()

    def pose(self, clean, noise, progress):
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]
        nothing = torch.zeros(tokens.shape)
        draws, level = noise.uniform(RATES, tokens.shape[1]), noise.independent().float()
        said = {"positions": places(scored), "index": clean.index, "asked": asked_positions(nothing)}
        return Batch(inputs=tokens, targets=tokens, weights=nothing, scored=scored, draws=draws, level=level, **said)

    def refine(self, batch, companion):
        rate = (batch.level[:, None] * 2 * torch.sigmoid(companion(batch.inputs))).clamp(0.05, 1.0)
        hidden = (batch.draws < rate) & batch.scored
        weights = hidden / rate
        return replace(batch, inputs=batch.inputs.masked_fill(hidden, MASK), weights=weights, asked=asked_positions(weights))

    def auxiliary(self, batch, companion, nll):
        if int(batch.index[0]) % 4 == 2:
            return None
        return (companion(batch.targets).flatten()[batch.asked] - nll).square().sum()

    def measure(self, batch):
        return {"hidden_share": float(((batch.inputs == MASK) & batch.scored).sum())}


# A reader of k candidates with a vector for each place among them, and norms that know the noise level


class Candidates(nn.Module):
    def __init__(self, width, tp):
        super().__init__()
        self.tp, self.place = tp, nn.Parameter(torch.empty(3, width))

    def specs(self):
        return {"place": Spec(role="embedding", std=0.1, partial=True)}

    def forward(self, batch, embed, dtype):
        return embed.mixed(batch.candidates, batch.mix, dtype) + part((batch.mix @ self.place).to(dtype), self.tp)


@dataclass(frozen=True)
class Mixed(Objective):
    causal: bool = False
    exact: bool = False
    uses_mask: bool = False
    tp: object = None

    @classmethod
    def build(cls, cfg, mask_id):
        return cls()

    def reference(self):
        return self

    def slots(self, model):
        return Slots(reader=Candidates(model.hidden_size, self.tp), condition=LevelFeatures())

    def pose(self, clean, noise, progress):
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]
        level = noise.independent().float()
        draws = noise.uniform(MIXING, tokens.shape[1], 6)
        others = (draws[..., :2] * VOCAB).long()
        mix = torch.softmax(torch.cat((2 - 4 * level[:, None, None].expand(*tokens.shape, 1), draws[..., 2:4]), -1), -1)
        weights = scored.float()
        candidates = torch.cat((tokens[..., None], others), -1)
        said = {"positions": places(scored), "index": clean.index, "asked": asked_positions(weights)}
        told = {"level": level, "candidates": candidates, "mix": mix}
        return Batch(inputs=tokens, targets=tokens, weights=weights, scored=scored, **told, **said)


def turns():
    """Texts given vectors, vectors given texts, and both: a step of each."""
    text = MaskedDiffusion(mask_id=MASK, strata=8)
    alike = {"size": WIDTH, "std": 0.1, "adaptive": True}
    told = TextGivenVector(text=text, dropped=0.3, causal=False, exact=False, uses_mask=True, **alike)
    vector = VectorGivenText(mask_id=MASK, strata=8, **alike)
    return TextAndVector(text=told, vector=vector, turns=(("l2t", 1), ("t2l", 1), ("joint", 1)), drawn=False, batch=8, weight=0.5)


# A sampler, over logits


def most_confident_first(engine, rows=2):
    """Reveal two positions a step, those of which the model is surest; ids from addressed Gumbel noise.  -> [rows, LENGTH]"""
    index, tokens = torch.arange(rows), torch.full((rows, LENGTH), MASK)
    everything = torch.ones(rows, LENGTH)
    for step in range(LENGTH // 2):
        uniform = Noise(7 + step, index).uniform(RATES, LENGTH, VOCAB).double().clamp(1e-12, 1 - 1e-7)
        asked = {"positions": places(tokens), "index": index, "asked": asked_positions(everything)}
        batch = Batch(inputs=tokens, targets=tokens, weights=everything, scored=everything.bool(), **asked)
        (logits,) = engine.logits([batch])
        logits = logits[:, :VOCAB].double().cpu().view(rows, LENGTH, VOCAB)
        drawn = (logits - (-uniform.log()).log()).argmax(-1)
        sure = logits.softmax(-1).amax(-1).round(decimals=4).masked_fill(tokens != MASK, -1.0)  # near ties go to the left
        chosen = sure.sort(dim=1, descending=True, stable=True).indices[:, :2]
        tokens = tokens.scatter(1, chosen, drawn.gather(1, chosen))
    return tokens


# All of them, at every layout


class Silence:
    """The loop's world: remembers what training logs."""

    def __init__(self):
        self.said = []

    def log_train(self, at, done, interval, lr):
        self.said.append((done.loss, done.accuracy, done.grad_norm, *sorted(done.extra.items())))


FLAGS = f"""--num-layers 4 --hidden-size 32 --num-attention-heads 4 --ffn-hidden-size 64 --seq-length {LENGTH}
    --attention-dropout 0 --hidden-dropout 0.1 --init-method-std 0.1 --lr 1e-2 --weight-decay 0.1
    --global-batch-size 8 --micro-batch-size 2 --train-iters {STEPS} --log-interval 1
    --data-path x --tokenizer-type ByteTokenizer""".split()


def job(flags, toy, save=None, load=None, steps=STEPS):
    """Train a toy from its beginning, or from a checkpoint; a checkpoint after each step.  -> what was logged, samples, bits"""
    cfg = parse([*FLAGS, *flags])
    parallel = cfg.parallel
    mesh = build_mesh(parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.sequence_parallel)
    objective = checked({"adaptive": Adaptive, "mixed": lambda: Mixed(tp=mesh.tp), "vectors": turns}[toy]())
    where = place()
    engine = engines.build(cfg, objective, where, mesh, lambda line: None, fresh=load is None)
    learner = learners.build(cfg, objective, mesh, where.device)
    at, interval, world = Progress(), Interval(), Silence()
    if load:
        found = checkpoint.load(Path(load), group=mesh.control)
        at = Progress(step=found.step, samples=8 * found.step)
        for learning in filter(None, (engine, learner)):
            learning.load(found)
    while at.step < steps:
        at, interval = one_step(cfg, engine, objective, Words(LENGTH - (toy == "vectors")), world, at, interval, learner)
        if save:
            pieces = engine.pieces() + (learner.pieces() if learner else [])
            checkpoint.Saving(Path(save), at.step, pieces, {}, group=mesh.control).finish()
    drawn = most_confident_first(engine).tolist() if toy == "adaptive" else None
    return world.said, drawn


def place():
    return Where(
        device=torch.device("cpu"), dtype=torch.float32, peak_flops=1.0, peak_source="", compile=False, compile_reason=""
    )


LAYOUTS = {
    "tp2": (2, "--tensor-model-parallel-size 2"),
    "tp2+sp": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "pp2": (2, "--pipeline-model-parallel-size 2"),
    "pp2+zero-bubble": (2, "--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble"),
    "pp2xdp2+interleaved+zero3": (4, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --zero-stage 3"),
    "dp2": (2, ""),
    "dp2+zero1": (2, "--zero-stage 1"),
    "dp2+zero3": (2, "--zero-stage 3"),
}


def close(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one[0] == pytest.approx(other[0], abs=2e-6) and one[1] == pytest.approx(other[1], abs=1e-12)
        assert one[2] == pytest.approx(other[2], rel=1e-5)
        assert [name for name, _ in one[3:]] == [name for name, _ in other[3:]]
        assert [value for _, value in one[3:]] == pytest.approx([value for _, value in other[3:]], rel=1e-5)


def tensors(folder, step):
    found = checkpoint.load(Path(folder) / f"step-{step:08d}")
    return found.tensors(found.shapes)


@pytest.fixture(scope="module", params=["adaptive", "mixed"])
def alone(request, tmp_path_factory):
    """A toy in one process: what it logged, what it wrote, and its checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, *job([], request.param, save=str(folder)), folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_added_is_one_experiment_at_every_layout(pool, alone, tmp_path, name):
    toy, logged, drawn, folder = alone
    world, flags = LAYOUTS[name]
    ranks = pool.run(world, job, flags.split(), toy, str(tmp_path))
    assert all(rank == ranks[0] for rank in ranks)
    close(ranks[0][0], logged)
    assert ranks[0][1] == drawn
    ours, theirs = tensors(tmp_path, STEPS), tensors(folder, STEPS)
    assert ours.keys() == theirs.keys()
    apart = {n: float((ours[n] - theirs[n]).abs().max()) for n in ours if "optimizer" not in n}
    assert {n: d for n, d in apart.items() if d > 2e-5} == {}  # Adam moves by the rate, 1e-2, even where a gradient is rounding
    # moved from one process to this layout and back, half way
    moved = pool.run(world, job, flags.split(), toy, None, str(folder / "step-00000002"))
    close(moved[0][0], logged[2:])
    close(job([], toy, load=str(tmp_path / "step-00000002"))[0], logged[2:])
    # and started again where it was: the same bits
    again = pool.run(world, job, flags.split(), toy, str(tmp_path / "again"), str(tmp_path / "step-00000002"))
    assert again[0][0] == ranks[0][0][2:]
    last = tensors(tmp_path / "again", STEPS)
    assert all(torch.equal(last[n], ours[n]) for n in ours)


def test_the_toys_learn_what_they_say(alone):
    toy, logged, drawn, folder = alone
    first, last = tensors(folder, 1), tensors(folder, STEPS)
    if toy == "adaptive":
        assert dict(logged[0][3:]).keys() == {"auxiliary_loss", "companion_grad_norm", "hidden_share"}
        assert 0 < dict(logged[0][3:])["hidden_share"] < 1
        assert not torch.equal(first["companion/model/score.weight"], last["companion/model/score.weight"])
        assert max(max(row) for row in drawn) < VOCAB
    else:
        for name in ("reader.place", "blocks.0.norm1.gate", "blocks.3.norm2.gate"):
            assert (first[f"model/{name}"] != last[f"model/{name}"]).any()


# A wrong place is refused


def cfg():
    return parse(FLAGS)


def with_module(**modules):
    """A model class with something more in each block."""

    class More(GPT):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            for name, module in modules.items():
                self.blocks["0"].add_module(name, module)
            self.declared = collect(self)

    return More


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(3))


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def specs(self):
        return {"temperature": Spec(init="ones")}


class Mistyped(nn.Linear):
    def specs(self):
        return {"weight": Spec(role="matrix"), "bias": Spec(), "wieght": Spec()}


class Unsaid(nn.Linear):
    def specs(self):
        return {"weight": Spec(), "bias": Spec()}


@pytest.mark.parametrize(
    "module, said",
    [
        (nn.Linear(4, 4), r"blocks.0.more.weight of Block \(.*transformer.py\) has no spec: give the class `def specs"),
        (nn.Dropout(0.1), "blocks.0.more is a Dropout, which draws from torch's global stream"),
        (WithBuffer(), "blocks.0.more has the buffer table, which checkpoints do not keep"),
        (Scalar(), r"temperature of Scalar \(.*test_open.py\) has 0 dimensions, expected 1 or 2"),
        (Unsaid(4, 4), r"blocks.0.more.weight of Unsaid .*has two dimensions and its spec no role: say Spec\(role="),
        (Mistyped(4, 4), "has no parameter blocks.0.more.wieght, of which specs"),
    ],
)
def test_a_module_that_no_layout_would_keep_alike_is_refused_when_it_is_built(module, said):
    with pytest.raises(TypeError, match=said):
        with_module(more=module)(cfg().model, False, 1)
    with_module(more=Dropout(0.1, 9))(cfg().model, False, 1)


def test_a_condition_with_parameters_is_refused():
    class Learnt(LevelFeatures):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def specs(self):
            return {"weight": Spec()}

    with pytest.raises(TypeError, match="the condition Learnt has parameters, which stages of a pipeline cannot share"):
        GPT(cfg().model, False, 1, slots=Slots(condition=Learnt()))


def test_a_network_that_is_told_nothing_refuses_silence():
    model = GPT(cfg().model, False, 1, slots=Slots(condition=LevelFeatures()))
    tokens = torch.zeros(1, LENGTH, dtype=torch.int64)
    everything = torch.ones(1, LENGTH)
    asked = {"positions": places(tokens), "index": torch.zeros(1, dtype=torch.int64), "asked": asked_positions(everything)}
    with pytest.raises(ValueError, match="told the noise level, and the batch has none"):
        model(Batch(inputs=tokens, targets=tokens, weights=everything, scored=everything.bool(), **asked))


def test_drawing_from_the_global_stream_is_refused():
    with untouched(torch.device("cpu")):
        torch.randn(3, generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="drew from torch's global random stream.*draw in pose"):
        with untouched(torch.device("cpu")):
            torch.rand(3)
