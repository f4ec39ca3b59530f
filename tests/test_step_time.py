"""The forecast of a step's time against published steps, closed forms, and what must not make a step shorter."""

from pathlib import Path
from statistics import median

import pytest

from megatron.config import Config, parse
from megatron.forecast import forecast
from megatron.layout import Ranks, make_stages
from megatron.machines import MACHINES, read_machine
from megatron.step_time import (
    BUSY,
    HOP,
    LINK,
    PARTS,
    StepTime,
    Turn,
    exchange_seconds,
    link_of,
    passes_seconds,
    ring_seconds,
    step_time,
)

H100 = MACHINES["h100"]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "layouts.md"
LLAMA = {
    "8B": "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --num-query-groups 8 --ffn-hidden-size 14336",
    "70B": "--num-layers 80 --hidden-size 8192 --num-attention-heads 64 --num-query-groups 8 --ffn-hidden-size 28672",
}
SLOW_H100 = "h100,matmul=620,bandwidth=2400"  # 500 W, HBM2e


def config(words: str) -> Config:
    return parse(f"{words} --bf16 --dry-run --tokenizer-type HFTokenizer --tokenizer-model none".split(), environ={})


def timed(words: str, machine: str = "h100") -> StepTime:
    cfg = config(words)
    return step_time(cfg, forecast(cfg), read_machine(machine))


def gpt(layers, hidden, heads, gpus, tp, pp, batch, more="", recompute="full"):
    """Of the GPTs of Narayanan et al. and after: our SwiGLU of 8/3 h has the FLOPs of their 4 h."""
    return [
        f"--num-layers {layers} --hidden-size {hidden} --num-attention-heads {heads} --ffn-hidden-size {round(hidden / 24) * 64} "
        f"--seq-length 2048 --attention-dropout 0.1 --hidden-dropout 0.1 --vocab-size 51197 --world-size {gpus} "
        f"--tensor-model-parallel-size {tp} --pipeline-model-parallel-size {pp} --global-batch-size {batch} "
        f"--recompute-granularity {recompute} {more}"
    ]


def narayanan(layers, hidden, heads, gpus, tp, pp, batch, teraflops, more=""):
    flops = 96 * batch * 2048 * layers * hidden**2 * (1 + 2048 / 6 / hidden + 51200 / 16 / layers / hidden)
    return gpt(layers, hidden, heads, gpus, tp, pp, batch, more), "a100", flops / (teraflops * 1e12 * gpus)


def llama(size, gpus, rows, batch, rate, machine, recompute, more=""):
    """torchtitan's `selective` computes every other block again, or every other product: half way between none and full."""
    kinds = {"half": ("", "--recompute-granularity full"), "full": ("--recompute-granularity full",)}[recompute]
    shape = f"{LLAMA[size]} --group-query-attention --untie-embeddings-and-output-weights --vocab-size 128256 --seq-length 8192"
    words = f"{shape} --attention-dropout 0 --hidden-dropout 0 --zero-stage 3 --world-size {gpus} --global-batch-size {batch}"
    return [f"{words} --micro-batch-size {rows} {more} {kind}" for kind in kinds], machine, batch * 8192 / rate / gpus


TP8 = "--tensor-model-parallel-size 8 --sequence-parallel"
INTERLEAVED = "--num-layers-per-virtual-pipeline-stage"
SELECTIVE = "--sequence-parallel"
# Name as in the page -> flags (the mean of several), machine, published seconds
ROWS = {
    "GPT 1.7B, 32": narayanan(24, 2304, 24, 32, 1, 1, 512, 137, "--micro-batch-size 16"),
    "GPT 7.5B, 128": narayanan(36, 4096, 32, 128, 4, 1, 512, 142, "--micro-batch-size 4"),
    "GPT 39B, 512": narayanan(48, 8192, 64, 512, 8, 2, 1536, 138, f"--micro-batch-size 4 {INTERLEAVED} 6"),
    "GPT 146B, 1536": narayanan(80, 12288, 96, 1536, 8, 8, 2304, 148, f"--micro-batch-size 2 {INTERLEAVED} 5"),
    "GPT 1008B, 3072": narayanan(128, 25600, 160, 3072, 8, 64, 3072, 163, f"{INTERLEAVED} 1"),
    "Llama 8B eager, 8": llama("8B", 8, 2, 16, 5762, SLOW_H100, "half", "--compile off"),
    "Llama 8B, 8": llama("8B", 8, 2, 16, 6667, SLOW_H100, "half"),
    "Llama 8B, 128": llama("8B", 128, 2, 256, 6514, SLOW_H100, "half"),
    "Llama 8B tp8, 64": llama("8B", 64, 12, 96, 4378, SLOW_H100, "half", TP8),
    "Llama 70B tp8, 256": llama("70B", 256, 16, 512, 597, SLOW_H100, "full", TP8),
    "GPT 22B, 8": (gpt(48, 6144, 64, 8, 8, 1, 4, "--micro-batch-size 4"), "a100", 1.42),
    "GPT 22B selective, 8": (gpt(48, 6144, 64, 8, 8, 1, 4, f"--micro-batch-size 4 {SELECTIVE}", "selective"), "a100", 1.10),
    "GPT 175B, 64": (gpt(96, 12288, 96, 64, 8, 8, 64, f"{INTERLEAVED} 4"), "a100", 18.13),
    "GPT 175B selective, 64": (gpt(96, 12288, 96, 64, 8, 8, 64, f"{INTERLEAVED} 4 {SELECTIVE}", "selective"), "a100", 13.75),
    "GPT 530B selective, 280": (
        gpt(105, 20480, 128, 280, 8, 35, 280, f"{INTERLEAVED} 1 {SELECTIVE}", "selective"),
        "a100",
        37.83,
    ),
    "GPT 1000B selective, 512": (gpt(128, 25600, 160, 512, 8, 64, 512, SELECTIVE, "selective"), "a100", 71.49),
    "MT-NLG 530B, 2240": (gpt(105, 20480, 128, 2240, 8, 35, 1920), "a100", 60.1),
    "MT-NLG 530B, 2800": (gpt(105, 20480, 128, 2800, 8, 35, 1920), "a100", 50.2),
    "MT-NLG 530B, 3360": (gpt(105, 20480, 128, 3360, 8, 35, 1920), "a100", 44.4),
    "Llama 8B, 64 A100": llama("8B", 64, 1, 64, 2904, "a100", "half", "--compile off"),
    "Llama 70B, 64 A100": llama("70B", 64, 1, 64, 331, "a100", "full", "--compile off"),
}


def test_published_steps_are_met_as_the_page_says():
    """A line is `| name | where it stands | published | forecast | error | used for the constant |`."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    told = {line[0]: line[1:] for line in lines if len(line) == 6 and line[0] in ROWS}
    assert set(told) == set(ROWS)
    errors = {True: [], False: []}
    for name, (words, machine, published) in ROWS.items():
        found = sum(timed(one, machine).total for one in words) / len(words)
        error = found / published - 1
        assert told[name][1:4] == [f"{published:.2f}", f"{found:.2f}", f"{100 * error:+.0f} %"], (name, published, found, error)
        errors[told[name][4] == "yes"].append(abs(error))
    assert max(errors[True] + errors[False]) < 0.25 and len(errors[True]) == 16 and len(errors[False]) == 5
    assert median(errors[True]) < 0.10 and median(errors[False]) < 0.10


SMALL = (
    "--num-layers 16 --hidden-size 4096 --num-attention-heads 32 --num-query-groups 8 --group-query-attention --seq-length 2048 "
    "--attention-dropout 0 --hidden-dropout 0 --vocab-size 256 --global-batch-size 64"
)


def test_closed_forms():
    nvlink, network = H100.nvlink * LINK * 1e9, H100.network * LINK * 1e9
    # A ring sends 2 (n - 1) / n of what it sums.
    sent = 2 * 7 / 8 * 1e9
    assert ring_seconds(sent, 0, Ranks(8, 1, 64), H100, sums=True) == pytest.approx(2 * 7 / 8 * 1e9 / nvlink)
    assert ring_seconds(sent, 0, Ranks(8, 8, 64), H100, sums=True) == pytest.approx(sent / network)  # one of each of 8 hosts
    assert ring_seconds(sent, 0, Ranks(8, 4, 64), H100, sums=True) == pytest.approx(sent / network / 2)  # two of each of 4 hosts
    # NVLink and eight links alike.
    assert ring_seconds(sent, 0, Ranks(64, 1, 64), H100, sums=True) == pytest.approx(sent / network / 8)
    assert ring_seconds(0, 1, Ranks(16, 1, 64), H100, sums=False) == pytest.approx(14 * HOP["nvlink"] + HOP["network"])
    assert ring_seconds(0, 1, Ranks(6, 4, 24), H100, sums=False) == pytest.approx(3 * HOP["nvlink"] + 2 * HOP["network"])
    assert ring_seconds(1e9, 5, Ranks(1, 1, 64), H100, sums=True) == 0
    # Twelve in a row lie on eight of one host and four of another, and every other three of a host of four on two.
    assert ring_seconds(sent, 0, Ranks(12, 1, 24), H100, sums=True) == pytest.approx(sent / network / 4)
    four = read_machine("h100,host=4")
    assert ring_seconds(sent, 0, Ranks(3, 1, 24), four, sums=True) == pytest.approx(sent / network)
    assert [link_of(Ranks(3, 1, world), four) for world in (24, 3)] == ["network", "nvlink"]
    assert [link_of(Ranks(2, stride, 24), four) for stride in (1, 2, 4)] == ["nvlink", "nvlink", "network"]
    # To each of fifteen others a part, to eight of them by the process's own link.
    assert exchange_seconds(15e9, 0, Ranks(16, 1, 16), H100) == pytest.approx(8e9 / network)
    assert exchange_seconds(7e9, 2, Ranks(8, 1, 64), H100) == pytest.approx(7e9 / nvlink + 2 * HOP["nvlink"])
    # p stages, v of them a rank, m micro-batches: (p - 1) / (v m + p - 1) is idle.
    turn = Turn(forward=1.0, inputs=1.0, weights=1.0)
    for p, v, m in ((4, 1, 8), (4, 2, 8), (6, 3, 12)):
        whole = passes_seconds(make_stages(p * v * 2, p, v), m, [turn] * p)
        assert 1 - 3 * m / whole == pytest.approx((p - 1) / (v * m + p - 1))
    assert passes_seconds(make_stages(8, 4, 2, v_shaped=True), 8, [turn] * 4) == 24.0  # ZB-V's is none
    uneven = [Turn(forward=seconds, inputs=0, weights=0) for seconds in (1.0, 3.0, 2.0)]
    assert passes_seconds(make_stages(6, 3), 4, uneven) == 4 * 3 + 1 + 2


def test_parts_add_up_and_follow_what_they_depend_on():
    one = timed(f"{SMALL} --world-size 1")
    assert one.compute / one.total > 0.9 and (one.tensor, one.pipeline, one.bubble, one.data, one.hidden) == (0,) * 5
    # 6 N D and attention, at the rate of large products or below it.
    assert 0.4 < one.mfu < one.total * one.mfu * H100.peak / H100.matmul / one.compute and 0.4 < one.executed < one.mfu
    found = {
        words: timed(f"{SMALL} {words}")
        for words in (
            "--world-size 3",
            "--world-size 16",
            "--world-size 16 --zero-stage 1",
            "--world-size 16 --zero-stage 3",
            "--world-size 16 --zero-stage 3 --recompute-granularity full",
            "--world-size 4 --tensor-model-parallel-size 4 --sequence-parallel",
            "--world-size 12 --pipeline-model-parallel-size 6",
            "--world-size 8 --pipeline-model-parallel-size 8",
            "--world-size 8 --pipeline-model-parallel-size 8 --pipeline-schedule zero-bubble",
            "--world-size 8 --pipeline-model-parallel-size 8 --num-layers-per-virtual-pipeline-stage 1",
            "--world-size 8 --pipeline-model-parallel-size 2 --cpu-optimizer --zero-stage 2",
            "--world-size 8 --optimizer muon --micro-batch-size 8 --zero-stage 1",
        )
    }
    for words, time in found.items():
        assert sum(getattr(time, part) for part in PARTS) == pytest.approx(time.total), words
        assert min(getattr(time, part) for part in PARTS) >= 0 and 0 < time.mfu < 0.8, words
        assert time.total < one.total, words
        assert time.tokens_per_second == pytest.approx(64 * 2048 / time.total)
    eight = [time for words, time in found.items() if "-size 8" in words and "pipeline" in words]
    assert eight[0].bubble > eight[2].bubble > 0 and eight[0].bubble > eight[1].bubble
    full, kept = (found[f"--world-size 16 --zero-stage 3{more}"] for more in (" --recompute-granularity full", ""))
    assert full.compute / kept.compute == pytest.approx(4 / 3, rel=0.05) and full.executed > kept.executed * 0.95
    assert timed(f"{SMALL} --world-size 16 --async-save --save x") == found["--world-size 16"]  # a copy is no part of a step
    slow = [timed(f"{SMALL} --world-size 16", f"h100,network={rate}").total for rate in (50, 5, 0.5)]
    assert slow[0] <= slow[1] < slow[2]


def llama_on(gpus: int, more: str = "", size: str = "8B") -> StepTime:
    (words, *_), _, _ = llama(size, gpus, 1, gpus, 1, "h100", "half", more)
    return timed(words.replace("--zero-stage 3", "", 1))


def test_messages_of_replicas_and_stages_by_hand():
    parameters = config(f"{LLAMA['8B']} --group-query-attention --untie-embeddings-and-output-weights --vocab-size 128256")
    weights, ranks = 4 * parameters.model.shape().total(), Ranks(512, 1, 512)
    sent, messages = weights * 511 / 512, -(-weights // (64 << 20))
    plain, cut = llama_on(512), llama_on(512, "--zero-stage 1")
    summed = ring_seconds(2 * sent, 2 * messages, ranks, H100, sums=True)
    gathered = ring_seconds(sent, messages, ranks, H100, sums=False)
    assert plain.data + plain.hidden == pytest.approx(summed, rel=1e-6)
    assert cut.data + cut.hidden == pytest.approx(summed + gathered, rel=1e-6) and cut.hidden == plain.hidden
    one, two = (
        timed(f"{SMALL} --world-size 8 --pipeline-model-parallel-size 8 --untie-embeddings-and-output-weights {more}").pipeline
        for more in ("", f"{INTERLEAVED} 1")
    )
    state = 2048 * 4096 * 2 / (H100.nvlink * LINK * 1e9) + HOP["nvlink"]
    assert (one, two) == pytest.approx((2 * 64 * state, 4 * 64 * state))


def test_a_matrix_that_muon_works_on_is_whole_on_one_rank():
    h, f = 8192, 28672
    up = 2 * 5 * (4 * h * h * f + 2 * h**3) / (H100.fp32 * 1e12 * BUSY)
    words = "--optimizer muon --zero-stage 3 --recompute-granularity full"
    many, most = (llama_on(gpus, words, "70B") for gpus in (512, 4096))
    adam = llama_on(512, words.replace("muon", "adam"), "70B")
    assert up < most.update < many.update < 1.1 * up and many.hidden == adam.hidden  # nothing hides what Muon exchanges
    shares = [llama_on(8, f"--optimizer muon {more}").update for more in ("", "--zero-stage 1", TP8)]
    assert shares[0] / 8 < shares[1] < shares[0] / 6 and shares[0] / 8 < shares[2] < shares[0] / 6
    words = f"{SMALL} --optimizer muon --world-size 3 --pipeline-model-parallel-size 3"  # of sixteen layers one rank has six
    three, one = (timed(each).update for each in (words, words.replace("-size 3", "-size 1")))
    assert three / one == pytest.approx(6 / 16, rel=0.05)


def test_an_mdm_reads_half_of_its_head_and_all_of_its_attention():
    words = f"{SMALL} --world-size 8".replace("--vocab-size 256", "--vocab-size 128000 --untie-embeddings-and-output-weights")
    causal, masked, blocks = (timed(f"{words} --objective {more}") for more in ("ar", "mdm", "mdm --block-size 32"))
    assert masked.total < causal.total < blocks.total
    small = [timed(f"{SMALL} --world-size 8 --objective {name}").total for name in ("ar", "mdm")]
    assert small[0] < small[1]
