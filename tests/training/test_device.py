"""Where a run computes, and when it compiles."""

import pytest
import torch

from megatron.config import parse
from megatron.training import device


def test_cuda_without_a_gpu_gets_a_sentence(tmp_path, trainer, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert trainer.run(tmp_path / "run", device="cuda") == 66
    assert capsys.readouterr().err == "MissingInput: --device cuda: torch sees no GPU here; use --device cpu or auto\n"


def test_compile_on_without_a_compiler_gets_a_sentence(tmp_path, trainer, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert trainer.run(tmp_path / "run", compile="on") == 66
    said = capsys.readouterr().err
    assert "--compile on: torch.compile needs the C++ compiler" in said and "use --compile off" in said
    assert "Traceback" not in said


def test_compile_auto_without_a_compiler_trains_eagerly(tmp_path, trainer, capsys, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert trainer.run(tmp_path / "run", train_iters=2) == 0
    assert f"compile: off: torch.compile needs the C++ compiler {tmp_path / 'no-such-compiler'}" in capsys.readouterr().out


def test_compile_without_headers_is_known_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(device.shutil, "which", lambda name: name)
    assert "Python.h is not there" in device.missing_for_compile()


def test_compiling_is_chosen_where_it_repays_itself(tmp_path, trainer, monkeypatch):
    monkeypatch.setattr(device, "missing_for_compile", lambda: "")

    def chosen(peak, **over):
        cfg = parse(trainer.argv(tmp_path, **over)).with_vocabulary(257)
        return device.choose_compile(cfg, kind, peak)

    kind = "cpu"
    assert chosen(1e3) == (False, "on a CPU the eager step is as fast (tools/benchmark.py step step-compiled)")
    kind = "cuda"
    assert chosen(1e12)[0] is False and chosen(1e3)[0] is True
    assert "compiling repays itself after 120 s" in chosen(1e12)[1]
    assert chosen(1e12, compile="on") == (True, "--compile on") and chosen(1e3, compile="off") == (False, "--compile off")
    assert chosen(1e3, skip_train=True)[0] is False
    zero_bubble = {"dry_run": True, "pipeline_model_parallel_size": 2, "pipeline_schedule": "zero-bubble", "num_layers": 4}
    assert chosen(1e3, **zero_bubble) == (False, "--pipeline-schedule zero-bubble cannot run compiled blocks")


def test_setup_measures_the_peak_it_says(tmp_path, trainer):
    where = device.setup(parse(trainer.argv(tmp_path)).with_vocabulary(257))
    assert where.device.type == "cpu" and where.dtype == torch.float32 and where.peak_flops > 1e9
    assert where.peak_source == "best of four 1024^3 products on 1 threads"
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("flags, deterministic", [({"deterministic_mode": True}, True), ({}, False)])
def test_deterministic_mode_reaches_torch(tmp_path, trainer, flags, deterministic):
    device.setup(parse(trainer.argv(tmp_path, **flags)).with_vocabulary(257))
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    torch.use_deterministic_algorithms(False)
