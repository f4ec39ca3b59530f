"""The benchmark's sections at toy size. No absolute time is asserted."""

import importlib.util
import json
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron.core import head
from megatron.core.mesh import Group
from megatron.core.transformer import Block, rotary
from tools import (
    benchmark,
    benchmark_generate,
    benchmark_gpu,
    benchmark_layouts,
    benchmark_plain,
    benchmark_startup,
    benchmark_step,
    benchmark_sweep,
    benchmark_timing,
)
from tools.benchmark_timing import Row

TOY = replace(benchmark_step.MINIATURE, num_layers=1, seq_length=32)


def measured(rows):
    return all(row.ratio > 0 for row in rows)


def test_help_does_not_import_torch():
    done = subprocess.run([sys.executable, "-X", "importtime", benchmark.__file__, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--check" in done.stdout and "| torch\n" not in done.stderr


@pytest.mark.parametrize("argv", [["stpe"], ["--rounds", "0"], ["--rond", "2"]])
def test_bad_flags_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as left:
        benchmark.main(argv)
    assert left.value.code == 2 and argv[0] in capsys.readouterr().err


def test_a_peer_that_is_not_there_is_not_measured(monkeypatch):
    monkeypatch.setattr(benchmark_step.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(benchmark_step.shutil, "which", lambda name: None)
    for peer, why in (("HF", "transformers is not installed"), ("compiled plain", "C++ compiler")):
        row = benchmark_step.compare("step", 1, TOY, "float32", peer, 1.0)
        assert row.ratio is None and row.verdict().startswith("not measured: ") and why in row.why


def test_the_faster_mode_of_a_peer_counts():
    seconds = {"matmul": [1.0], "ours": [2.0], "pure bf16": [3.0], "autocast": [5.0]}
    row = benchmark_step.fastest_row("step", "against plain", ["pure bf16", "autocast"], TOY, seconds, 1.2)
    assert (row.what, row.ratio, row.verdict()) == ("against plain, pure bf16", 1.5, "passed")


def test_ratios_are_taken_within_a_round():
    assert benchmark_timing.median_ratio([2.0, 20.0, 200.0], [1.0, 10.0, 50.0]) == 2.0


def test_variants_run_in_turn(monkeypatch):
    calls = Calls()
    monkeypatch.setattr(benchmark_timing, "process", ThreadPoolExecutor)
    seconds = benchmark_timing.in_turn({"a": (note, calls, "a"), "b": (note, calls, "b")}, 3)
    assert calls == ["a", "b"] * 5 and [len(s) for s in seconds.values()] == [3, 3]


class Calls(list):
    __hash__ = object.__hash__


def note(calls, name):
    return lambda: calls.append(name)


def test_the_members_of_a_team_run_at_once(monkeypatch):
    together = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(benchmark_timing, "process", lambda: ThreadPoolExecutor(1))
    found = benchmark_timing.side_by_side({"pair": [(meet, together)] * 2}, 1)["pair"]
    assert [len(each) for each in found] == [2]


def meet(together):
    return together.wait


def test_a_thread_that_waits_does_not_compute():
    spent = benchmark_timing.timed_call(nap)
    assert spent.wall > 0.2 > 2 * spent.computing


def nap():
    return lambda: time.sleep(0.2)


def test_exposed_is_what_the_fastest_round_did_not_compute(monkeypatch):
    def spent(wall, computing):
        return benchmark_timing.Spent(wall=wall, cpu=0.0, computing=computing)

    rounds = [[spent(9.0, 2.0), spent(9.0, 2.0)], [spent(4.0, 2.0), spent(4.0, 4.0)]]
    monkeypatch.setattr(benchmark_layouts, "side_by_side", lambda teams, count: dict.fromkeys(teams, rounds))
    row = benchmark_layouts.exposed_row("tp2", [], 2)
    assert (row.what, row.ratio, row.verdict()) == ("tp2, 25% of the step exposed", 0.75, "no gate")


def test_summed_tokens_of_two_replicas(monkeypatch):
    def both(*walls):
        return [[benchmark_timing.Spent(wall=wall, cpu=0.0, computing=0.0) for wall in walls]]

    monkeypatch.setattr(benchmark_layouts, "side_by_side", lambda teams, count: {"ours": both(4.0, 4.0), "apart": both(2.0, 4.0)})
    (row,) = benchmark_layouts.dp(1, TOY, 2)
    assert row.ratio == pytest.approx(2 / 3) and (row.ours, row.verdict()) == ("32 tok/s", "FAILED")


@pytest.mark.slow
def test_two_replicas_run():
    assert measured(benchmark_layouts.dp(1, TOY, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tp2+sp", ""])
def test_every_layout_has_its_exposed_communication(name, monkeypatch):
    monkeypatch.setattr(benchmark_layouts, "LAYOUTS", {n: p for n, p in benchmark_layouts.LAYOUTS.items() if name in n})
    rows = benchmark_layouts.communication(1, replace(TOY, num_layers=2), 2)
    assert [row.what.partition(",")[0] for row in rows] == ["two processes apart", *benchmark_layouts.LAYOUTS]
    assert all(0 < row.ratio <= 1.05 and row.gate is None for row in rows)


def test_the_block_with_plain_linears_computes_the_same():
    ours, plain = (Block(TOY, True, Group(), False) for _ in range(2))
    benchmark_layouts.use_plain_linears(plain)
    for name, p in ours.named_parameters():
        torch.nn.init.normal_(p, std=0.05)
        stored = p.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) if name == "mlp.up.weight" else p
        plain.get_parameter(name).data.copy_(stored)
    x, rope = torch.randn(2, 8, TOY.hidden_size), rotary(torch.arange(8)[None], TOY.kv_channels, 1e4, torch.float32)
    assert isinstance(plain.mlp.up, torch.nn.Linear) and torch.allclose(ours(x, rope, None), plain(x, rope, None), atol=1e-5)


def test_layers_are_gated_on_a_gpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu, on_gpu = benchmark_layouts.layers(1, TOY)
    assert measured([on_cpu]) and on_cpu.verdict() == "no gate"
    assert on_gpu.gate == 0.98 and on_gpu.verdict() == "not measured: torch sees no GPU here"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_layers_on_a_gpu():
    assert measured([benchmark_layouts.layers_row(TOY, 2, 2, "cuda", 0.98)])


def test_the_plain_step_learns(monkeypatch):
    """The peer is a real training step: its loss on its one batch falls."""
    losses, original = [], benchmark_step.plain_loss

    def watched(*given):
        losses.append(original(*given))
        return losses[-1]

    monkeypatch.setattr(benchmark_step, "plain_loss", watched)
    step = benchmark_step.plain_step(TOY, "float32", False)
    for _ in range(8):
        step()
    first, last = losses[0].item(), losses[-1].item()
    assert 6.0 < first < 6.5 and last < first - 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_the_plain_script_trains_either_way(masked, tmp_path, monkeypatch):
    """A whole run of the peer is a real training: it begins at the loss of a uniform guess over its 384 ids, and learns."""
    np.random.default_rng(0).integers(97, 105, 4000).astype(np.uint16).tofile(tmp_path / "ids.bin")
    given = asdict(benchmark_sweep.SIZES[0]) | {"ids": str(tmp_path / "ids.bin"), "batch": 64, "compile": False}
    torch.manual_seed(0)
    monkeypatch.setattr(benchmark_plain, "LEARNING_RATE", 1e-2)
    step = benchmark_plain.training(SimpleNamespace(**given, masked=masked, mask_id=257))
    losses = [float(step()) for _ in range(12)]
    assert losses[0] == pytest.approx(math.log(384), abs=0.5 if masked else 0.05)
    assert masked or losses[-1] < losses[0] - 0.1


def test_a_whole_run_counts_its_start():
    ours, plain = [benchmark_sweep.Cost(3.0, 0.01)] * 3, [benchmark_sweep.Cost(2.01, 0.02)] * 3
    whole, step = benchmark_sweep.compared("12 k ar", "plain", ours, plain, 1.0)
    assert whole.ratio == pytest.approx((2.01 + 19.98) / (3.0 + 9.99)) and (whole.gate, step.gate) == (1.0, None)
    assert step.ratio == pytest.approx(2) and (step.ours, step.peer) == ("102400 tok/cpu-s", "51200 tok/cpu-s")


@pytest.mark.slow
def test_the_sweep_runs(monkeypatch):
    monkeypatch.setattr(benchmark_sweep.shutil, "which", lambda name: None)
    rows = benchmark_sweep.sweep(1, (replace(benchmark_sweep.SIZES[0], steps=40),))
    in_cpp = [False, False] * (importlib.util.find_spec("megatron.engine._cpp_step") is not None)
    assert [row.ratio is None for row in rows] == [False, False, *in_cpp, True] * 2 and rows[0].ratio > 0.3


@pytest.mark.slow
def test_a_step_section_runs():
    row = benchmark_step.compare("step", 1, TOY, "bfloat16", "plain", 1.2)
    assert measured([row]) and row.what.endswith(("pure bf16", "autocast"))


@pytest.mark.slow
def test_every_step_section_runs():
    pytest.importorskip("transformers")
    assert measured(benchmark_step.step(1, TOY) + benchmark_step.step_fp32(1, TOY) + benchmark_step.step_compiled(1, TOY))


def test_mdm_runs_and_its_equality_is_checked_for_real(monkeypatch, spawned_warm):
    step, equal = benchmark_step.mdm(1, TOY, TOY, samples=2)
    assert measured([step]) and equal.verdict() == "passed"
    original = head._WeightedNLL.forward

    def careless(ctx, x, table, targets, weights, *rest):
        return original(ctx, x, table, targets, weights * (1 + 1e-4 * (len(x) == 4 * TOY.seq_length)), *rest)

    monkeypatch.setattr(head._WeightedNLL, "forward", careless)
    assert benchmark_step.largest_difference(TOY) > 5e-5


def test_sampling_is_measured_with_caches_and_against_generate(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(benchmark_generate, "in_turn", once)
    rows = benchmark_generate.generate(1, replace(TOY, num_layers=2, seq_length=128), TOY)
    assert measured(rows) and [row.gate for row in rows] == [1.0, 1.0, 1.5, 1.5, 2.5, 3.0]


def once(variants, rounds):
    """Each variant in this process, where its weights are compared and its samples drawn."""
    found = {}
    for name, (build, *given) in variants.items():
        run, began = build(*given), time.process_time()
        run()
        found[name] = [time.process_time() - began]
    return found


def test_head_runs_each_variant_in_its_own_process():
    memory, seconds = benchmark_step.head(1, 512, 4096, 32)
    assert measured([memory, seconds]) and "limit 400 MiB" in memory.peer


def test_startup_notices_torch(monkeypatch):
    monkeypatch.setattr(benchmark_startup, "trainer", lambda *given: "import time: 1 | 2 | torch\n")
    assert benchmark_startup.answer_row("--help", 0, 1).verdict() == "FAILED"


def test_an_unexpected_exit_code_is_no_measurement():
    with pytest.raises(RuntimeError, match="left with 2, expected 0"):
        benchmark_startup.trainer(["--no-such-flag"], 0)


@pytest.mark.slow
def test_startup_runs():
    assert measured(benchmark_startup.startup(1))


def test_without_a_gpu_every_cell_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark_gpu.gpu(1) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 12 + 1 and all(line.count("not measured") == 6 for line in lines[2:-1]) and "no GPU" in lines[-1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_cells():
    cells = benchmark_gpu.gpu_cells(TOY, "mdm", False, benchmark_gpu.gpu_matmul_flops(512), 2)
    assert len(cells) == 6 and cells[0] == str(benchmark_gpu.GPU_BATCHES[0])


@pytest.mark.parametrize("ratio, code", [(1.19, 1), (1.21, 0), (None, 0)])
def test_check_fails_below_the_gate_only(ratio, code, monkeypatch, capsys):
    row = Row(section="step", what="toy", ratio=ratio, gate=1.2, why="no peer")
    monkeypatch.setitem(benchmark.SECTIONS, "step", lambda rounds: [row])
    assert benchmark.main(["step", "--check"]) == code and benchmark.main(["step"]) == 0
    said = capsys.readouterr()
    assert benchmark.main(["step", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["ratio"], found["gate"], found["verdict"]) == (ratio, 1.2, row.verdict())
    assert ("gate failed: step: toy: 1.190" in said.err) == bool(code)
    assert ("not measured: no peer" in said.out) == (ratio is None)
