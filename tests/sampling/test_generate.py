"""Whole requests over small models with random weights: one sample at every layout and in every batch, and what is refused."""

from dataclasses import replace

import pytest
import torch

from megatron import engine as engines
from megatron.config import parse
from megatron.core.mesh import build_mesh
from megatron.data.tokenizer import build_tokenizer
from megatron.errors import BadData, Mismatch
from megatron.flags import ConfigError
from megatron.objectives import build
from megatron.sampling.draws import How
from megatron.sampling.generate import Source, Template, continued, generate, with_gaps
from megatron.training.device import Where

FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 4 --ffn-hidden-size 64 --seq-length 24 --init-method-std 0.3
    --micro-batch-size 2 --global-batch-size 8 --train-iters 4 --lr 1e-2 --data-path x --tokenizer-type ByteTokenizer
    --vocab-size 257""".split()
TP, PP = "--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2"
WARM, GREEDY = How(temperature=0.7, top_k=50, top_p=0.9), How(temperature=0)
CASES = {
    "ar": [("autoregressive", WARM), ("autoregressive", GREEDY)],
    "mdm": [
        ("ancestral", replace(WARM, steps=3)),
        ("left-to-right", How(block_length=2, min_p=0.01)),
        ("confidence", replace(WARM, block_length=3)),
        ("margin", GREEDY),
        ("entropy", replace(WARM, steps=2)),
        ("threshold", How(threshold=0.05)),
        ("factor", How(factor=3.0, cache="dual", block_length=3)),
        ("entropy-bounded", How(entropy_bound=5.0, cache="prefix", block_length=2)),
        ("confidence", replace(WARM, cache="dual", block_length=3, guidance=0.5)),
        ("ancestral", How(cache="delayed", block_length=2, steps=4)),
        ("remdm-cap", How(eta=0.3)),
        ("remdm-confidence", replace(WARM, steps=7)),
    ],
    "sdd": [("sdd-renoise", replace(WARM, steps=3)), ("sdd-top-k", How(steps=3))],
}


def opened(objective, flags=()):
    cfg = parse([*FLAGS, *flags], objective)
    mesh = build_mesh(cfg.parallel.tensor_model_parallel_size, cfg.parallel.pipeline_model_parallel_size, False)
    where = Where(
        device=torch.device("cpu"), dtype=torch.float32, peak_flops=1.0, peak_source="", compile=False, compile_reason=""
    )
    engine = engines.build(cfg, build(cfg, 257), where, mesh, lambda line: None)
    return engine, Source.of(cfg, build_tokenizer("ByteTokenizer"))


def answers(objective, flags=(), numbers=None, batch_size=3, seed=5):
    """Of each case the ids of its samples, by number."""
    engine, source = opened(objective, flags)
    templates = [continued(source, "ab", 5), continued(source, "", 5)]
    templates.append(with_gaps(source, "a[MASK:3]bc[MASK:2]") if objective == "mdm" else continued(source, "abcd", 4))
    asked = {"seed": seed, "num_samples": 2, "batch_size": batch_size, "numbers": numbers}
    done = [generate(engine, source, templates, name, how, **asked).samples for name, how in CASES[objective]]
    return [{sample.number: sample.ids for sample in samples} for samples in done]


@pytest.mark.parametrize("objective", CASES)
def test_a_sample_is_the_same_alone_in_any_batch_and_at_any_layout(pool, objective):
    whole = answers(objective)
    assert all(one < 257 for samples in whole for row in samples.values() for one in row)  # never the mask or padding
    assert answers(objective, numbers=[3], batch_size=1) == [{3: samples[3]} for samples in whole]
    fixed = [how is GREEDY for _, how in CASES[objective]]
    assert [a == b for a, b in zip(answers(objective, seed=6), whole)] == fixed
    for flags in (TP, PP):
        assert pool.run(2, answers, objective, flags.split()) == [whole, whole]


def test_a_model_of_blocks_fills_its_own_blocks():
    engine, source = opened("mdm", ["--block-size", "4"])
    templates = [continued(source, "abcde", 6), continued(source, "", 5)]
    for name, how in (("confidence", replace(WARM, steps=5)), ("ancestral", How()), ("threshold", How(threshold=0.05))):
        whole = generate(engine, source, templates, name, how, num_samples=2)
        alone = generate(engine, source, templates, name, how, num_samples=2, numbers=[1], batch_size=1)
        assert alone.samples == [whole.samples[1]] and whole.samples[0] != whole.samples[1]
    with pytest.raises(ConfigError, match="(?s)--block-size 4 of the run makes 2 blocks.*--cache is for models that read whole"):
        generate(engine, source, templates[:1], "confidence", How(steps=1, cache="dual"))
    with pytest.raises(ConfigError, match="returns to whole rows, and this model reads blocks of 4"):
        generate(engine, source, templates[:1], "remdm-cap", How())
    with pytest.raises(BadData, match="reads nothing that stands behind a gap's block"):
        with_gaps(source, "a[MASK:3]b")


def test_gaps_keep_what_stands_around_them():
    engine, source = opened("mdm")
    template = with_gaps(source, "[MASK:2]bc[MASK:3]!")
    (sample,) = generate(engine, source, [template], "confidence", How()).samples
    assert (bytes(sample.ids[2:4]), sample.ids[7], sample.new_tokens) == (b"bc", ord("!"), 5) and "bc" in sample.text


@pytest.mark.parametrize("objective, sampler", [("ar", "autoregressive"), ("mdm", "left-to-right")])
def test_a_sample_ends_at_the_end_of_a_document_or_a_text(objective, sampler):
    engine, source = opened(objective)
    templates = [continued(source, "ab", 20)]

    def made(**settings):
        return generate(engine, source, templates, sampler, How(), seed=1, num_samples=8, **settings).samples

    whole = made(ignore_end=True)
    assert {(s.ended_by, s.new_tokens) for s in whole} == {("length", 20)}
    drawn_at = whole[0].ids[8]  # an id that some sample draws, taken for the end of a document
    source = replace(source, tokenizer=replace(source.tokenizer, eod=drawn_at))
    assert made()[0].ids == whole[0].ids[: whole[0].ids.index(drawn_at, 2)] and made()[0].ended_by == "end"
    source = replace(source, tokenizer=build_tokenizer("ByteTokenizer"))
    text = next(c for c in whole[0].text if c.isascii())
    stopped = made(ignore_end=True, stop=text)[0]
    assert stopped.ended_by == "stop" and stopped.text == whole[0].text[: whole[0].text.index(text)]
    assert stopped.ids[-1] == ord(text) and stopped.ids == whole[0].ids[: len(stopped.ids)]


def test_where_rows_end_the_empty_prompt_is_nothing_and_the_end_closes_a_row():
    engine, source = opened("mdm")
    source = replace(source, rows_end=True)
    assert continued(source, "", 3) == Template(ids=[None] * 3)
    assert continued(replace(source, rows_end=False), "", 3) == Template(ids=[256, None, None, None])
    with pytest.raises(BadData, match="the prompt is empty, and rows of this run begin with no token"):
        continued(replace(source, mask=None), "", 3)
    with pytest.raises(ConfigError, match="--ignore-end: behind the end of this run's rows there is nothing"):
        generate(engine, source, [continued(source, "a")], "margin", How(), ignore_end=True)


def test_what_cannot_be_is_refused_in_a_sentence():
    (engine, source), (_, reader) = opened("mdm"), opened("ar")
    for settings, said in (
        ({"steps": 0}, "--steps 0: expected 1 or more"),
        ({"steps": 9}, "each step fills at least one place, and there are 8"),
        ({"steps": 2, "block_length": 3}, "--block-length 3 makes 3 blocks"),
        ({"temperature": -1.0}, "--temperature -1.0: expected 0 or more"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_k": 0}, "--top-k 0"),
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"min_p": 1.5}, "--min-p 1.5"),
        ({"temperature": 0, "top_k": 3}, "--top-k, --top-p and --min-p would do nothing"),
        ({"threshold": 0.5}, "--threshold 0.5 is not read by this sampler"),
        ({"cache": "half"}, "--cache half: expected prefix, dual, delayed"),
        ({"guidance": 0.0}, "--guidance 0.0: expected above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            generate(engine, source, [continued(source, "a", 8)], "confidence", How(**settings))
    with pytest.raises(Mismatch, match="confidence does not serve the objective ar: use one of autoregressive"):
        generate(engine, reader, [continued(reader, "a", 8)], "confidence", How())
    with pytest.raises(BadData, match="a prompt of 24 tokens leaves 0 of the 24 places"):
        continued(source, "x" * 24)
    with pytest.raises(BadData, match="leaves 4 of the 24 places .* asks for 5"):
        continued(source, "x" * 20, 5)
    with pytest.raises(BadData, match="reads only what stands left of a gap"):
        with_gaps(reader, "a[MASK:3]")
    with pytest.raises(BadData, match="has no gap"):
        with_gaps(source, "a[MASK]")
    with pytest.raises(BadData, match="--infill has 25 tokens, gaps included, and a row 24 places"):
        with_gaps(source, "a[MASK:24]")
