"""Nested keys of MDLM's files become flags, or are told why not."""

import pytest
import yaml

from megatron.config import ConfigError, parse
from megatron.flags import read_file
from megatron.nested_keys import SCHEDULES, as_flags
from megatron.objectives.schedules import SCHEDULES as OURS


def read(text):
    mistakes, said = [], []
    return as_flags(yaml.safe_load(text), "f: ", mistakes, said), mistakes, said


def test_keys_that_act_are_flags_and_the_rest_is_as_it_was():
    flags, mistakes, said = read(
        "{noise: {type: geometric, sigma_min: 1e-3, sigma_max: 9}, loader: {batch_size: 4, global_batch_size: 32},"
        " training: {max_steps: 7, val_check_interval: 2}, data: {split: '9,1,0', train: null}, model: {num-layers: 1}, lr: 1e-4}"
    )
    assert (mistakes, said) == ([], [])
    assert flags == {
        "noise-schedule": "geometric",
        "noise-sigma-min": "1e-3",
        "noise-sigma-max": 9,
        "micro-batch-size": 4,
        "global-batch-size": 32,
        "train-iters": 7,
        "eval-interval": 2,
        "data": {"split": "9,1,0"},
        "model": {"num-layers": 1},
        "lr": "1e-4",
    }
    assert set(SCHEDULES.values()) <= set(OURS)


def test_what_does_not_act_is_said_and_what_cannot_be_is_refused():
    flags, mistakes, said = read(
        "{diffusion: absorbing_state, noise: {type: linear, sigma_min: 1e-4, sigma_max: 5}, sampling: {predictor: x, steps: 9},"
        " data: {train: openwebtext, valid: openwebtext}, importance_loss_weight: 0.1, loader: {num_workers: 4}}"
    )
    assert flags == {"noise-schedule": "linear-sigma", "noise-sigma-max": 5} and mistakes == []
    assert (
        len(said) == 8 and "f: sampling.steps 9 does not act: training draws no samples; `tools/generate.py --steps 9`" in said[3]
    )
    _, mistakes, _ = read("{diffusion: uniform, parameterization: d3pm, noise: {type: sqrt}}")
    assert [m.partition(" ")[2][:30] for m in mistakes] == [
        "diffusion uniform cannot be: a",
        "parameterization d3pm cannot b",
        "noise.type sqrt must be one of",
    ]


def test_a_file_with_an_unknown_key_is_refused_with_all_other_mistakes(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("{noise: {kind: x}, diffusion: uniform, loader: {batch_size: 4}}")
    with pytest.raises(ConfigError) as told:
        parse(["--config", str(path)], "mdm", environ={})
    assert "noise.kind: no such key is known" in str(told.value) and "diffusion uniform cannot be" in str(told.value)
    assert read_file(str(path), set(), [], []) == [("micro-batch-size", 4)]
