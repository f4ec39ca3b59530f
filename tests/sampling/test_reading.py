"""Logits with a cache against logits without, in float64, at every kind of layout."""

import pytest
import torch

from megatron import engine as engines
from megatron.config import parse
from megatron.core.mesh import build_mesh
from megatron.objectives import build
from megatron.sampling.reading import NextToken, Places
from megatron.training.device import Where

FLAGS = """--hidden-size 32 --num-attention-heads 4 --ffn-hidden-size 64 --seq-length 12 --init-method-std 0.3
    --micro-batch-size 2 --global-batch-size 8 --train-iters 4 --lr 1e-2 --data-path x --tokenizer-type ByteTokenizer
    --vocab-size 257 --group-query-attention --num-query-groups 2""".split()
ROWS, WIDTH, MASK = 4, 12, 257
LAYOUTS = {
    "tp2": (2, "--tensor-model-parallel-size 2"),
    "pp2 zero-bubble": (2, "--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble"),
    "pp2 interleaved": (
        2,
        "--pipeline-model-parallel-size 2 --pipeline-schedule interleaved --num-layers-per-virtual-pipeline-stage 1",
    ),
    "tp2 pp2": (4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"),
    "dp2 zero3": (2, "--zero-stage 3"),
}


class Uncached:
    """An engine that keeps nothing."""

    def __init__(self, engine):
        self.engine = engine

    def logits(self, batches):
        return self.engine.logits(batches)


def opened(objective, flags=(), layers=4):
    cfg = parse([*FLAGS, *flags, "--num-layers", str(layers)], objective)
    mesh = build_mesh(cfg.parallel.tensor_model_parallel_size, cfg.parallel.pipeline_model_parallel_size, False)
    where = Where(
        device=torch.device("cpu"), dtype=torch.float64, peak_flops=1.0, peak_source="", compile=False, compile_reason=""
    )
    return engines.build(cfg, build(cfg, 257), where, mesh, lambda line: None)


def ids():
    return torch.randint(0, 257, (ROWS, WIDTH), generator=torch.Generator().manual_seed(1))


def next_tokens(model):
    """Of rows at different places, of which some are given up on the way.  -> [n, v]"""
    read, place, found = NextToken(model, ROWS, WIDTH), torch.tensor([3, 1, 5, 2]), []
    for active in ([0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3], [2, 3], [2, 3]):
        found.append(read.logits(ids(), torch.tensor(active), place[active]))
        place += 1
    return torch.cat(found)


def hidden(model, kept):
    """Of blocks of three, which the rows reach in different steps.  -> [n, v]"""
    read, found, z = Places(model, (ROWS, WIDTH), kept, MASK), [], ids()
    at = torch.tensor([0, 0, 1, 2])
    for step in range(5):
        block = torch.arange(WIDTH) // 3 == (at[:, None] + step * torch.tensor([[1], [0], [1], [0]]) // 2)
        asked = block & (torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(step)) < 0.7)
        found.append(read.logits(z, asked, block))
        z = z.where(~asked, (z + 1) % 257)
    return torch.cat(found)


def said(objective, flags=(), layers=4):
    """-> [n, v] with a cache, of each kind"""
    engine = opened(objective, flags, layers)
    return [next_tokens(engine)] if objective == "ar" else [hidden(engine, kept) for kept in ("dual", "prefix", "delayed", None)]


def test_a_next_token_model_says_the_same_with_a_cache():
    torch.testing.assert_close(*said("ar"), next_tokens(Uncached(opened("ar"))), rtol=0, atol=1e-12)


def test_without_a_cache_whole_rows_are_read_and_what_keeps_nothing_has_none():
    dual, prefix, delayed, whole = said("mdm")
    torch.testing.assert_close(whole, hidden(Uncached(opened("mdm")), None), rtol=0, atol=0)
    pairs = ((dual, whole), (prefix, whole), (dual, prefix), (delayed, dual))
    assert min((a - b).abs().max() for a, b in pairs) > 1e-3
    whole = hidden(Uncached(opened("mdm", layers=1)), None)
    for found in said("mdm", layers=1):  # whose keys and values are functions of single ids
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    with pytest.raises(TypeError, match="Uncached keeps nothing"):
        Places(Uncached(opened("mdm")), (ROWS, WIDTH), "dual")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_changes_nothing(pool, layout):
    size, flags = LAYOUTS[layout]
    for objective in ("ar", "mdm"):
        whole = said(objective)
        for found in pool.run(size, said, objective, flags.split()):
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-11)
