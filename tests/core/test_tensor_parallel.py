"""Layers cut over ranks against the same layers whole: outputs, and gradients of inputs and weights."""

import pytest
import torch

from megatron.batch import Redrawn
from megatron.core.dropout import row_keys
from megatron.core.head import weighted_nll
from megatron.core.mesh import Group, build_mesh
from megatron.core.tensor_parallel import ColumnLinear, RowLinear, VocabEmbedding, enter, part
from megatron.core.transformer import GateUp

ALONE = Group()


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cut(layer, whole, tp):
    layer.weight.data = whole.chunk(tp.size, layer.cut)[tp.rank].clone()
    return layer


def mlp(tp, dtype=torch.float32):
    """Through a column and a row layer and back.  -> output, gradient of the input, gradients of both weights"""
    up, down = cut(GateUp(8, 24, tp, 1.0), numbers(24, 8, seed=1), tp), cut(RowLinear(12, 8, tp, 1.0), numbers(8, 12, seed=2), tp)
    x = part(numbers(3, 4, 8), tp).to(dtype).clone().requires_grad_()
    gate, value = up(x).chunk(2, -1)
    y = down(gate * value)
    (y.float() * part(numbers(3, 4, 8, seed=3), tp)).sum().backward()
    return [t.detach() for t in (y, x.grad, up.weight.grad, down.weight.grad)]


def mlp_on(size, sequence):
    return mlp(build_mesh(size, 1, sequence).tp)


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_column_and_row_layers_are_one_mlp(pool, size, sequence):
    y, d_x, d_up, d_down = mlp(ALONE)
    found = pool.run(size, mlp_on, size, sequence)
    join = (lambda i: torch.cat([f[i] for f in found], 1)) if sequence else (lambda i: found[-1][i])
    torch.testing.assert_close(join(0), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(join(1), d_x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([f[2] for f in found], 0), d_up, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([f[3] for f in found], 1), d_down, rtol=1e-5, atol=1e-5)


def embedded(size, sequence):
    tp = build_mesh(size, 1, sequence).tp if size > 1 else ALONE
    table = cut(VocabEmbedding(12, 8, tp, 1.0, 12, 12), numbers(12, 8), tp)
    ids = torch.randint(0, 12, (2, 4), generator=torch.Generator().manual_seed(0))
    x = table(ids, torch.float32)
    (x * part(numbers(2, 4, 8, seed=1), tp)).sum().backward()
    return x.detach(), table.weight.grad


@pytest.mark.parametrize("sequence", [False, True])
def test_embedding_is_bit_equal_wherever_its_rows_are(pool, sequence):
    x, grad = embedded(1, False)
    found = pool.run(4, embedded, 4, sequence)
    assert torch.equal(torch.cat([f[0] for f in found], 1) if sequence else found[2][0], x)
    torch.testing.assert_close(torch.cat([f[1] for f in found]), grad)


def scored(tp, columns, asked=9, scale=1.0, kept=None):
    table = numbers(16, 8).chunk(tp.size)[tp.rank].clone().requires_grad_()
    x = (scale * numbers(asked, 8, seed=1)).requires_grad_()
    targets = torch.randint(0, columns, (asked,), generator=torch.Generator().manual_seed(2))
    weights = torch.rand(asked, generator=torch.Generator().manual_seed(3))
    redrawn = None
    if kept is not None:
        redrawn = Redrawn(torch.arange(asked) % (columns + 1), torch.full((asked,), kept), (1 + weights) * (1 - kept) / columns)
    loss, nll, hit = weighted_nll(enter(x, tp), table, targets, weights, columns, tp, redrawn)
    (loss / 7).backward()
    with torch.no_grad():
        again = weighted_nll(x, table, targets, weights, columns, tp, redrawn)
    assert torch.equal(again[1], nll) and torch.equal(again[2], hit)
    return loss.detach(), nll, hit, x.grad, table.grad


def scored_on(size, *args):
    return scored(build_mesh(size).tp, *args)


@pytest.mark.parametrize(
    "columns, asked, scale, kept",
    [(16, 9, 1.0, None), (13, 9, 1.0, None), (7, 9, 1.0, None), (13, 0, 1.0, None), (13, 9, 300.0, None), (13, 9, 0.0, None)]
    + [(13, 9, 1.0, 0.6), (7, 9, 3.0, 0.2)],
)
def test_head_over_a_cut_vocabulary(pool, columns, asked, scale, kept):
    """Also where a rank has nothing but padding (7 of 16 columns), nothing is asked, exp would overflow, all ids tie, or inputs
    are noise."""
    loss, nll, hit, d_x, d_table = scored(ALONE, columns, asked, scale, kept)
    found = pool.run(4, scored_on, 4, columns, asked, scale, kept)
    for one in found:
        torch.testing.assert_close(one[0], loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one[1], nll, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one[3], d_x, rtol=1e-5, atol=1e-6)
        assert torch.equal(one[2], hit)
    torch.testing.assert_close(torch.cat([f[4] for f in found]), d_table, rtol=1e-5, atol=1e-6 * scale)
    assert (torch.cat([f[4] for f in found])[columns:] == 0).all()


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a width of 10 does not divide by the tensor-parallel size 4"):
        ColumnLinear(8, 10, Group(ranks=(0, 1, 2, 3)), 1.0)


def test_dropped_weights_are_the_same_whoever_holds_them():
    """A function of the address and of the place in the whole weight: dropped in training alone, the rest scaled."""
    whole = {0: numbers(64, 24), 1: numbers(24, 64)}
    for kind in (ColumnLinear, RowLinear):
        dropped = {}
        for update in (7, 8):
            key = row_keys(1, torch.tensor([update]), torch.tensor([[3]]))[0, 0]
            layers = [cut(kind(*whole[kind.cut].shape[::-1], tp, 1.0), whole[kind.cut], tp) for tp in (ALONE, *parts(4))]
            for layer in layers:
                layer.p, layer.key = 0.25, key
            dropped[update], *of_ranks = (layer.thinned().detach() for layer in layers)
            assert torch.equal(torch.cat(of_ranks, kind.cut), dropped[update])
            assert torch.equal(layers[0].eval().thinned(), layers[0].weight)
        kept = dropped[7] != 0
        assert abs(float(kept.float().mean()) - 0.75) < 0.04
        assert torch.equal(dropped[7][kept], whole[kind.cut][kept] / 0.75)
        assert 0.5 < float((kept == (dropped[8] != 0)).float().mean()) < 0.75  # .625 of independent draws agree


def parts(size):
    return [Group(ranks=tuple(range(size)), rank=rank) for rank in range(size)]
