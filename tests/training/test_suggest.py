"""`--suggest`: what it proposes is legal, fits and is fastest, and where nothing fits it says so."""

import json
import re

import pytest

from megatron.config import parse
from megatron.forecast import forecast, least_bytes
from megatron.machines import GIB, read_machine
from megatron.step_time import step_time
from megatron.training import dry_run, suggest
from tests.pace import within

MODEL = (
    "--num-layers 12 --hidden-size 8192 --num-attention-heads 64 --group-query-attention --num-query-groups 8 --seq-length 4096 "
    "--attention-dropout 0 --hidden-dropout 0 --vocab-size 50000 --tokenizer-type HFTokenizer --tokenizer-model none --bf16 "
    "--dry-run"
)


def shown(words: str, capsys) -> tuple[int, str, str]:
    code = dry_run.show(parse(words.split(), environ={}))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    "words, most",
    [
        ("--world-size 64 --global-batch-size 256", 68),
        ("--world-size 24 --global-batch-size 100 --objective mdm --device-memory 40G", 40),
        ("--world-size 6 --global-batch-size 31 --machine a100,host=4 --optimizer muon", 68),
        ("--world-size 1 --global-batch-size 4 --machine b200", 153),
    ],
)
def test_what_is_proposed_is_legal_and_fits(capsys, words, most):
    with within(15):
        code, out, err = shown(f"{MODEL} {words} --suggest --json", capsys)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["limit_bytes"] == most * GIB and 1 <= len(found["layouts"]) <= suggest.SHOWN
    machine, totals = read_machine(words.partition("--machine ")[2].split(" ")[0] or "h100"), []
    for one in found["layouts"]:
        flags = "" if one["flags"].startswith("(none") else one["flags"]
        cfg = parse(f"{MODEL} {words} {flags}".split(), environ={})  # as pasted; raises where it is not legal
        held = forecast(cfg)
        assert max(load.peak for load in held.loads) == one["peak_bytes"] <= found["limit_bytes"]
        assert step_time(cfg, held, machine).total == one["seconds"]["total"]
        assert cfg.parallel.tensor_model_parallel_size <= machine.host
        totals.append(one["seconds"]["total"])
    assert totals == sorted(totals)


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


def test_the_table_says_why_others_fall_out(capsys):
    code, out, _ = shown(f"{MODEL} --world-size 24 --global-batch-size 48 --suggest", capsys)
    lines = out.splitlines()
    assert code == 0 and "on 24 h100 that fits 68 GiB, 48 rows of 4096 tokens a step" in lines[0]
    assert len([line for line in lines if re.match(r" +[\d.]+ +[\d,]+ +\d+% +[\d.]+  --", line)]) == suggest.SHOWN
    assert lines[7].endswith("(as given), does not fit")
    assert re.match(r"others: [\d,]+ do not fit \(the nearest: --.*GiB\); \d+ fit and are slower; ", lines[8])
    assert "are refused, such as: --tensor-model-parallel-size 3 does not divide --num-attention-heads 64" in out


def test_where_nothing_fits_it_says_what_comes_nearest(capsys):
    code, _, err = shown(f"{MODEL} --world-size 2 --global-batch-size 4 --suggest --device-memory 10G", capsys)
    assert code == 2 and "no layout of 2 GPUs fits 10 GiB each: the smallest, --" in err and "take more GPUs or a smaller" in err
    code, _, err = shown(f"{MODEL} --world-size 67 --global-batch-size 4 --suggest", capsys)
    assert code == 2 and "are refused, such as: --global-batch-size 4 is less than a sample for each of 67" in err
