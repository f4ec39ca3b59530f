"""`--suggest`: what it proposes is legal, fits and is fastest, and where nothing fits it says so."""

import json
import re
from dataclasses import asdict

import pytest

from megatron.config import ConfigError, parse
from megatron.forecast import forecast, least_bytes
from megatron.machines import GIB, read_machine
from megatron.step_time import step_time
from megatron.training import suggest
from tests.pace import within

MODEL = (
    "--num-layers 12 --hidden-size 8192 --num-attention-heads 64 --group-query-attention --num-query-groups 8 --seq-length 4096 "
    "--attention-dropout 0 --hidden-dropout 0 --vocab-size 50000 --tokenizer-type HFTokenizer --tokenizer-model none --bf16 "
    "--dry-run"
)
GIVEN = "--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble"  # in place of which the proposals stand


@pytest.mark.parametrize(
    "words, most",
    [
        ("--world-size 64 --global-batch-size 256", 68),
        ("--world-size 24 --global-batch-size 100 --objective mdm --device-memory 40G", 40),
        ("--world-size 6 --global-batch-size 31 --machine a100,host=4 --optimizer muon --use-distributed-optimizer", 68),
        ("--world-size 1 --global-batch-size 4 --machine b200 --log-gradient-noise-scale", 153),
    ],
)
def test_what_is_proposed_is_legal_and_fits(shown, words, most):
    with within(15):
        code, out, err = shown(f"{MODEL} {words} {GIVEN if 'mdm' in words else ''} --suggest --json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["limit_bytes"] == most * GIB and 1 <= len(found["layouts"]) <= suggest.SHOWN
    machine, totals, layouts = read_machine(words.partition("--machine ")[2].split(" ")[0] or "h100"), [], []
    assert found["machine"] == asdict(machine)
    for one in found["layouts"]:
        cfg = parse(f"{MODEL} {words} {one['flags']}".split(), environ={})  # as pasted; raises where it is not legal
        held = forecast(cfg)
        assert max(load.peak for load in held.loads) == one["peak_bytes"] <= found["limit_bytes"]
        assert step_time(cfg, held, machine).total == one["seconds"]["total"]
        assert machine.host % cfg.parallel.tensor_model_parallel_size == 0
        totals.append(one["seconds"]["total"])
        layouts.append((cfg.parallel, cfg.train.micro_batch_size, cfg.train.recompute_granularity))
    assert totals == sorted(totals) and all(layouts.count(one) == 1 for one in layouts)
    given = found["given"]
    assert given is None or given["fits"] is (given["peak_bytes"] <= found["limit_bytes"])


def test_tensor_groups_stay_on_a_host():
    cfg = parse(f"{MODEL} --world-size 24 --global-batch-size 48 --suggest".split(), environ={})
    tried = suggest.layouts(cfg, read_machine("h100,host=4"))
    assert {one["tensor_model_parallel_size"] for one in tried} == {1, 2, 4}


def test_the_first_is_the_fastest_of_all_that_fit():
    """Against trying everything, without bounds."""
    cfg = parse(f"{MODEL} --world-size 8 --global-batch-size 16 --suggest".split(), environ={})
    machine, limit = read_machine("h100"), 60 * GIB
    every = list(suggest.trials(cfg, machine, suggest.Found()))
    best: dict[suggest.Key, float] = {}
    for one in every:
        held = forecast(one.cfg)
        peak, total = max(load.peak for load in held.loads), step_time(one.cfg, held, machine).total
        assert one.least <= total and least_bytes(one.cfg, one.cfg.parallel.stages(12)) <= held.loads[0].peak
        if peak <= limit:
            best[one.key] = min(total, best.get(one.key, total))
    found = suggest.search(cfg, machine, limit)
    assert [one.time.total for one in found.best] == sorted(best.values())[: suggest.SHOWN]
    assert len(found.best) + found.slower + found.unasked + found.too_large == len(every) > 300


def test_the_table_says_why_others_fall_out(shown):
    code, out, _ = shown(f"{MODEL} --world-size 24 --global-batch-size 48 --suggest")
    lines = out.splitlines()
    assert code == 0 and "on 24 h100 (--machine says another) that fits 68 GiB, 48 rows of 4096 tokens a step" in lines[0]
    assert len([line for line in lines if re.match(r" +[\d.]+ +[\d,]+ +\d+% +[\d.]+  --", line)]) == suggest.SHOWN
    assert lines[7].endswith("(as given), does not fit")
    assert re.match(r"others: [\d,]+ do not fit \(the nearest: --.*GiB\); \d+ fit and are slower; ", lines[8])
    assert re.search(r"\nothers: [\d,]+ are refused, such as: --pipeline-schedule zero-bubble with --zero-stage 2 gives", out)


def test_where_nothing_fits_it_says_what_comes_nearest(shown):
    code, _, err = shown(f"{MODEL} --world-size 2 --global-batch-size 4 --suggest --device-memory 10G")
    assert code == 2 and "no layout of 2 GPUs fits 10 GiB each: the smallest, --" in err and "take more GPUs or a smaller" in err
    flags, needed = re.search("the smallest, (--.*), needs ([0-9.]+) GiB; take", err).groups()
    pasted, asked = (parse(f"{MODEL} --world-size 2 --global-batch-size 4 {w}".split(), environ={}) for w in (flags, "--suggest"))
    every = [forecast(one.cfg).peak for one in suggest.trials(asked, read_machine("h100"), suggest.Found())]
    assert f"{forecast(pasted).peak / GIB:.1f}" == needed and forecast(pasted).peak == min(every)
    code, _, err = shown(f"{MODEL} --world-size 67 --global-batch-size 4 --suggest")
    assert code == 2 and "are refused, such as: --global-batch-size 4 is less than a sample for each of 67" in err


def test_layouts_that_do_not_train_the_same_are_not_ranked():
    for words in ("", "--global-batch-size 24 --grad-accum-steps 24"):
        with pytest.raises(ConfigError, match="--suggest needs --global-batch-size, and no --grad-accum-steps: "):
            parse(f"{MODEL} --suggest {words}".split(), environ={})


def test_a_small_model_s_seconds_have_digits(shown):
    small = MODEL.replace("8192", "256").replace("--num-attention-heads 64", "--num-attention-heads 8")
    code, out, _ = shown(f"{small} --world-size 1 --global-batch-size 1 --suggest".replace("4096", "64"))
    assert code == 0 and re.match(r" +0\.00\d{3,} ", out.splitlines()[2]) and "(none: data parallel)" in out
