"""Readers of several ids a position: their order says nothing, and attention among them begins as their mean."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron.batch import Clean, Noise
from megatron.config import parse
from megatron.core.transformer import GPT
from megatron.forecast import forecast
from megatron.objectives import build
from tests.objectives.test_sdd import FLAGS, VOCAB


@pytest.fixture
def batch():
    data = Clean(tokens=torch.arange(136).view(8, 17), scored=torch.ones(8, 17, dtype=torch.bool), index=torch.arange(8))
    return build(parse([*FLAGS, "--sdd-k", "5"]), VOCAB).pose(data, Noise(1, data.index), 0.0)


def nll(denoiser, batch, scale=0.0):
    cfg = parse([*FLAGS, "--sdd-denoiser", denoiser, "--init-method-std", "0.3"])
    model = GPT(cfg.model, False, 1, slots=build(cfg, VOCAB).slots(cfg.model)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))) if "reader" in name else None
        return model(batch)[1]


@pytest.mark.parametrize("denoiser", ["pooled", "bilateral"])
def test_the_order_of_candidates_is_not_read(batch, denoiser):
    order = torch.rand(batch.mix.shape, generator=torch.Generator().manual_seed(3)).argsort(-1)
    other = replace(batch, candidates=batch.candidates.gather(-1, order), mix=batch.mix.gather(-1, order))
    assert not torch.equal(other.candidates, batch.candidates)
    assert nll(denoiser, other, 0.5) == pytest.approx(nll(denoiser, batch, 0.5), abs=2e-5)


def test_attention_among_candidates_begins_as_their_mean(batch):
    assert nll("bilateral", batch) == pytest.approx(nll("pooled", batch), abs=2e-5)
    assert (nll("bilateral", batch, 0.5) - nll("pooled", batch)).abs().max() > 0.1


def test_plain_ids_are_read_as_certain(batch):
    plain = replace(batch, candidates=None, mix=None)
    certain = replace(batch, candidates=batch.inputs[..., None], mix=torch.ones(*batch.inputs.shape, 1))
    assert torch.equal(nll("bilateral", plain, 0.5), nll("bilateral", certain, 0.5))


def test_its_shapes_and_products_are_those_that_are_counted(batch):
    cfg = parse([*FLAGS, "--sdd-denoiser", "bilateral", "--sdd-k", "5"])
    model, shape = GPT(cfg.model, False, 1, slots=build(cfg, VOCAB).slots(cfg.model)), cfg.model.shape()
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {n: p.shape for n, p in shape.tensors().items()}
    assert sum(p.numel() for p in model.parameters()) == shape.total()
    with FlopCounterMode(display=False) as counter:
        model.read(batch)
    tokens = batch.inputs.numel()
    assert counter.get_total_flops() == pytest.approx(tokens * shape.mixing_flops(6), rel=0.03)  # of lookups it counts nothing
    added = shape.flops_per_token(16, candidates=6) - shape.flops_per_token(16)
    assert added == 3 * shape.mixing_flops(6) and cfg.objective.candidates(cfg.train) == 6
    assert forecast(cfg.with_vocabulary(257)).loads[0].num_parameters == shape.total()
