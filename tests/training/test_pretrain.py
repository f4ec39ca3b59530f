"""Two of the four tests that carry the project: resume and golden. (Layout is in test_loop, bound in objectives/test_masked.)"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron.data.indexed import IndexedWriter
from megatron.data.token_file import write_paper_folder
from megatron.flags import ConfigError
from tests.training.conftest import ROOT


def losses(found):
    return [r["loss"] for r in found if r["kind"] == "train"]


def hashes(checkpoint):
    return {t["name"]: t["sha256"] for t in json.loads((checkpoint / "manifest.json").read_text())["tensors"]}


@pytest.mark.parametrize("objective", ["ar", "mdm"])
@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_resume_is_bit_exact(run, corpus, tmp_path, objective, compile):
    """20 steps equal 7 + restart + 13: every record, and every bit of weights and moments; dropout is on."""
    _, whole = run(corpus, tmp_path / "whole", objective, "--save", str(tmp_path / "whole"), "--compile", compile)
    parts = ("--save", str(tmp_path / "cut"), "--compile", compile)
    code, _ = run(corpus, tmp_path / "cut", objective, *parts, "--exit-interval", "7")
    assert code == 85
    code, cut = run(corpus, tmp_path / "cut", objective, *parts, "--load", str(tmp_path / "cut"))
    assert code == 0 and cut == whole and len(losses(whole)) == 20
    assert hashes(tmp_path / "whole/step-00000020") == hashes(tmp_path / "cut/step-00000020")


def test_resume_keeps_the_means_of_an_open_log_interval(run, corpus, tmp_path):
    _, whole = run(corpus, tmp_path / "whole", "mdm", "--log-interval", "5")
    parts = ("--log-interval", "5", "--save", str(tmp_path / "cut"))
    run(corpus, tmp_path / "cut", "mdm", *parts, "--exit-interval", "7")
    _, cut = run(corpus, tmp_path / "cut", "mdm", *parts, "--load", str(tmp_path / "cut"))
    assert cut == whole


@pytest.fixture
def squares(tmp_path):
    """A corpus that can be learned: squares modulo 61, over and over."""
    with IndexedWriter(str(tmp_path / "squares"), np.uint16) as writer:
        writer.add_document(np.arange(6100) ** 2 % 61)
    return str(tmp_path / "squares")


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_golden(run, squares, tmp_path, objective):
    """The losses of 20 steps are those of the day this was written; a tolerance for other machines' kernels."""
    path = Path(__file__).parents[1] / "golden" / f"{objective}.txt"
    _, found = run(squares, tmp_path / "run", objective)
    expected = [float(line) for line in path.read_text().split()]
    assert losses(found) + [found[-1]["loss"]] == pytest.approx(expected, rel=1e-4)


def test_mdm_is_above_ar_on_text_that_can_be_learned(run, tmp_path):
    """A cycle of four bytes: AR knows each next one; MDM has rows with nothing visible, where the bound stays above.

    Both beat ln 4.
    """
    prefix = str(tmp_path / "cycle")
    with IndexedWriter(prefix, np.uint16) as writer:
        writer.add_document(np.tile(np.arange(4) * 3, 2400))
    flags = (
        "--train-iters",
        "400",
        "--lr",
        "5e-3",
        "--lr-warmup-samples",
        "100",
        "--hidden-dropout",
        "0",
        "--attention-dropout",
        "0",
        "--log-interval",
        "400",
    )
    last = {objective: run(prefix, tmp_path / objective, objective, *flags)[1][-1] for objective in ("ar", "mdm")}
    assert last["ar"]["loss"] < 0.01 < last["mdm"]["loss"] < 0.5 * math.log(4)
    assert last["ar"]["bound"] == "exact" and last["mdm"]["bound"] == "bound"


def test_evaluation_alone_repeats_the_runs_last_value(run, corpus, tmp_path):
    _, trained = run(corpus, tmp_path / "run", "mdm", "--save", str(tmp_path / "run"))
    code, _ = run(corpus, tmp_path / "eval", "mdm", "--load", str(tmp_path / "run"), "--skip-train", "")
    found = json.loads((tmp_path / "eval/evaluation.json").read_text())
    assert code == 0 and found["valid"]["loss"] == trained[-1]["loss"] and found["step"] == 20


def test_bf16_and_recompute_change_little_and_nothing(run, corpus, tmp_path):
    _, plain = run(corpus, tmp_path / "plain", "ar")
    _, again = run(corpus, tmp_path / "again", "ar", "--recompute-granularity", "full")
    _, low = run(corpus, tmp_path / "low", "ar", "--bf16", "")
    assert losses(again) == losses(plain)
    assert losses(low) == pytest.approx(losses(plain), rel=5e-3) and losses(low) != losses(plain)


def test_result_says_what_was_done(run, corpus, tmp_path):
    run(corpus, tmp_path / "run", "mdm")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["tokens"] == 20 * 8 * 32 and result["flops"] == 6 * result["params"] * result["tokens"]
    assert result["bound"] == "bound" and result["lr_decayed"] and result["loss_se_noise"] > 0
    assert result["unique_tokens"] == result["tokens"]
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["train_samples"] == 160


def test_keeps_the_best_checkpoint(run, corpus, tmp_path):
    code, found = run(
        corpus,
        tmp_path / "run",
        "ar",
        "--save",
        str(tmp_path / "run"),
        "--save-interval",
        "2",
        "--eval-interval",
        "2",
        "--keep-last",
        "1",
    )
    best = min((r for r in found if r["kind"] == "val"), key=lambda r: r["loss"])["step"]
    assert {p.name for p in (tmp_path / "run").glob("step-*")} == {f"step-{best:08d}", "step-00000020"}


# Other kinds of data, through the flags


@pytest.fixture
def kinds(tmp_path):
    """Flags of each kind of dataset over a small corpus of its own."""
    rng = np.random.default_rng(0)
    papers = [("train" if n % 4 else "val", f"p{n}", "ab"[n % 2], rng.integers(0, 250, 60 + n)) for n in range(24)]
    write_paper_folder(tmp_path / "papers", papers, 257)
    for split in ("train", "valid"):
        with IndexedWriter(tmp_path / f"chat_{split}", np.uint16) as writer:
            for prompt, response in rng.integers(3, 24, (40, 2)):
                writer.add_document(rng.integers(0, 250, prompt + response), lengths=[prompt, response])
        with IndexedWriter(tmp_path / f"stream_{split}", np.uint16) as writer:
            for length in rng.integers(1, 200, 60):
                writer.add_document(rng.integers(0, 250, length))

    def apart(name):
        return {f"{split}_data_path": tmp_path / f"{name}_{split}" for split in ("train", "valid")}

    return {
        "random-window": {
            "data_kind": "random-window",
            "data_path": tmp_path / "papers",
            "categories": ["a"],
            "tokens_per_category": 300,
            "train_data_path": None,
            "valid_data_path": None,
        },
        "instruct": {"data_kind": "instruct", **apart("chat")},
        "reference": {"epoch_order": "reference", **apart("stream")},
    }


@pytest.mark.parametrize("objective", ["ar", "mdm"])
@pytest.mark.parametrize("kind", ["random-window", "instruct", "reference"])
def test_every_kind_of_data_trains_validates_and_resumes(tmp_path, trainer, records, kinds, kind, objective):
    assert trainer.run(tmp_path / "whole", objective, **kinds[kind]) == 0
    assert trainer.run(tmp_path / "cut", objective, exit_interval=5, **kinds[kind]) == 85
    assert trainer.run(tmp_path / "cut", objective, load=tmp_path / "cut", **kinds[kind]) == 0
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert math.isfinite(result["loss"]) and result["loss_se_data"] > 0 and result["steps"] == 12


def test_another_amount_of_unique_tokens_is_another_experiment(tmp_path, trainer, capsys):
    assert trainer.run(tmp_path / "run", unique_tokens=1000, exit_interval=5) == 85
    assert trainer.run(tmp_path / "run", unique_tokens=2000, load=tmp_path / "run") == 78
    assert "the train data was" in capsys.readouterr().err
    assert trainer.run(tmp_path / "run", unique_tokens=1000, load=tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["unique_tokens"], result["epochs"]) == (1000, 12 * 8 * 32 / 1000)


def test_a_finished_run_goes_to_a_url(trainer, tmp_path, capsys):
    fsspec = pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}/runs"
    assert trainer.run(tmp_path / "a", train_iters=2, save_interval=None, upload_to=url) == 0
    there = {name.rpartition("/runs/a/")[2] for name in fsspec.filesystem("memory").find(f"/{tmp_path.name}")}
    here = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert there == {name for name in here if not name.startswith(".")} | {"files.json"} and "result.json" in there
    assert trainer.run(tmp_path / "b", train_iters=2, upload_to="nonsense://x") == 73 and not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="--upload-to elsewhere: expected a URL"):
        trainer.run(tmp_path / "b", upload_to="elsewhere")


def test_a_short_run_imports_no_compiler_and_no_sharding(tmp_path, trainer):
    """They take as long as a thousand steps of a tiny model."""
    words = trainer.argv(tmp_path / "run", train_iters=1, eval_iters=0)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "pretrain_gpt.py"), *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-500:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch.optim.adamw" in imported
    assert not imported & {"torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "torch.distributed.pipelining", "sympy"}
