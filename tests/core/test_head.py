import pytest
import torch
import torch.nn.functional as F

from megatron.core import head


def problem(n=37, h=16, v=50, rows=64, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, h, generator=rng).to(dtype).requires_grad_()
    table = torch.randn(rows, h, generator=rng).requires_grad_()
    return x, table, torch.randint(0, v, (n,), generator=rng), torch.rand(n, generator=rng) * 3


def plain(x, table, targets, weights, v):
    nll = F.cross_entropy(x @ table[:v].t(), targets, reduction="none")
    return (weights * nll).sum(), nll


@pytest.mark.parametrize("chunk, group, product", [(26 << 20, 30 << 20, 8 << 20), (4 * 50 * 5, 4 * 50 * 11, 4 * 16 * 7)])
def test_equals_the_plain_head_in_value_and_gradient(monkeypatch, chunk, group, product):
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(head, "GROUP_BYTES", group)
    monkeypatch.setattr(head, "PRODUCT_BYTES", product)
    x, table, targets, weights = problem()
    loss, nll, hit = head.weighted_nll(x, table, targets, weights, 50)
    (loss / 7).backward()
    ours = x.grad.clone(), table.grad.clone()
    x.grad = table.grad = None
    expected, each = plain(x, table, targets, weights, 50)
    (expected / 7).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(nll, each, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[0], x.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], table.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(hit, ((x @ table[:50].t()).argmax(-1) == targets).float())


def test_a_tie_counts_as_its_share():
    """What a choice at random among the most likely ids would hit; as many for a table that is cut (test_tensor_parallel)."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [5.0, 5.0, 5.0, 5.0], [1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    for targets, shares in (([1, 0, 0, 3], [1 / 2, 1 / 4, 0, 1]), ([2, 3, 3, 0], [1 / 2, 1 / 4, 0, 0])):
        _, _, hit = head.weighted_nll(torch.eye(4), logits.t().contiguous(), torch.tensor(targets), torch.ones(4), 4)
        assert hit.tolist() == shares


def test_bf16_does_not_read_high():
    """Over many rows the share of ties is what fp32, which has none, finds."""
    rng = torch.Generator().manual_seed(0)
    x, table = torch.randn(4000, 16, generator=rng), torch.randn(500, 16, generator=rng)
    targets = (x @ table.t() + 3 * torch.randn(4000, 500, generator=rng)).argmax(-1)
    exact, rounded = (
        head.weighted_nll(x.to(kind), table, targets, torch.ones(4000), 500)[2] for kind in (torch.float32, torch.bfloat16)
    )
    assert abs(rounded.mean() - exact.mean()) < 2e-3 < (rounded.ceil() - rounded).mean()


def test_reserved_rows_are_not_predicted_and_get_no_gradient():
    x, table, targets, weights = problem()
    with torch.no_grad():
        table[50:] = 100.0  # would win every softmax
    loss, nll, _ = head.weighted_nll(x, table, targets, weights, 50)
    loss.backward()
    assert torch.isfinite(nll).all() and (table.grad[50:] == 0).all()
    assert torch.equal(nll, head.weighted_nll(x, table[:50], targets, weights, 50)[1])


def test_without_gradient_gives_the_same_nll():
    x, table, targets, weights = problem()
    with torch.no_grad():
        scored = head.weighted_nll(x, table, targets, weights, 50)
    trained = head.weighted_nll(x, table, targets, weights, 50)
    assert all(torch.equal(a, b) for a, b in zip(scored, trained))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logits_are_what_the_nll_is_of(dtype):
    x, table, targets, weights = problem(dtype=dtype)
    with torch.no_grad():
        nll = head.weighted_nll(x, table, targets, weights, 50)[1]
        logits = head.whole_logits(x, table, 50)
    assert nll.dtype == logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none"), rtol=limit, atol=limit)


def test_no_asked_position_is_a_loss_of_zero():
    x, table, _, _ = problem()
    loss, nll, hit = head.weighted_nll(x[:0], table, torch.zeros(0, dtype=torch.int64), torch.zeros(0), 50)
    loss.backward()
    assert loss == 0 and len(nll) == len(hit) == 0 and (table.grad == 0).all()


def test_extreme_logits_stay_exact():
    x = torch.tensor([[1.0], [1.0]], requires_grad=True)
    table = torch.tensor([[200.0], [-200.0], [0.0]], requires_grad=True)
    loss, nll, _ = head.weighted_nll(x, table, torch.tensor([0, 1]), torch.ones(2), 3)
    assert nll.tolist() == [0.0, 400.0] and torch.isfinite(loss)


def test_bf16_is_near_fp32():
    x, table, targets, weights = problem(n=200, h=64)
    exact, _ = plain(x, table, targets, weights, 50)
    exact.backward()
    expected = table.grad.clone()
    table.grad = None
    loss, _, _ = head.weighted_nll(x.detach().bfloat16().requires_grad_(), table, targets, weights, 50)
    loss.backward()
    assert table.grad.dtype == torch.float32
    assert abs(loss / exact - 1) < 5e-3 and (table.grad - expected).norm() / expected.norm() < 2e-2


def test_nan_is_not_hidden():
    x, table, targets, weights = problem()
    with torch.no_grad():
        x[3, 2] = torch.nan
    loss, nll, _ = head.weighted_nll(x, table, targets, weights, 50)
    assert torch.isnan(loss) and torch.isnan(nll[3]) and torch.isnan(nll).sum() == 1


def test_pieces_cover_once():
    for n in (0, 1, 7, 100):
        for size in (0, 1, 3, 100, 1000):
            covered = [i for s in head.pieces(n, size) for i in range(s.start, s.stop)]
            assert covered == list(range(n))
