"""The layout is a matter of speed and memory, never of results: every layout does what one process does, and takes up what any
other saved."""

import itertools
import warnings

import pytest

from megatron.catalogue import OBJECTIVES
from megatron.proof.agreement import Verifier, same, within
from megatron.proof.layouts import LAYOUTS, read_experiment, read_layout, why_not

CI = ["tp2xpp2+sp", "dp2+zero3"]
CI_OF_TWO = ["tp2xpp2xdp2", "dp2+deepspeed-zero1"]  # what they sum is of no objective; all of them, slow
TWO = ["mdm", "sdd"]
MOVES = [
    "tp1",
    "tp2xpp2xdp2",
    "tp2+sp",
    "pp2+interleaved",
    "pp2+zero-bubble",
    "tp2xdp2+zero1",
    "tp2xdp2+zero3",
    "pp2xdp2+zero2",
    "dp2+deepspeed-zero1",
    "tp2xdp2+deepspeed-zero3",
]
CI_MOVES = [("tp1", "tp2xpp2xdp2"), ("tp2xpp2xdp2", "dp2+zero3"), ("dp2+zero3", "pp2+interleaved"), ("tp2xdp2+zero1", "tp1")]
STEPS_AFTER_MOVE = 20
LOSS_AFTER_MOVE = 1e-5  # relative


@pytest.fixture(scope="module")
def verifiers(pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    return {
        objective: Verifier(pool, read_experiment([], objective, folder), steps=6, checkpoints=True) for objective in OBJECTIVES
    }


def possible(verifier, name):
    """The layout; one that this machine cannot run is skipped with a warning, as nobody reads the reasons of skips."""
    layout = read_layout(name, verifier.experiment.cfg.model.num_layers)
    if reason := why_not(layout, verifier.experiment, verifier.pool.size):
        warnings.warn(f"layout {name} is NOT TESTED: {reason}", stacklevel=2)
        pytest.skip(reason)
    return layout


def agrees(verifier, name):
    row = verifier.verify(possible(verifier, name))
    assert row.passed, row.trouble or [check.text for check in row.checks]


@pytest.mark.parametrize("name, objective", [*itertools.product(CI, OBJECTIVES), *itertools.product(CI_OF_TWO, TWO)])
def test_layout_does_what_one_process_does(verifiers, name, objective):
    agrees(verifiers[objective], name)


def test_muon_orthogonalises_whole_matrices_at_any_layout(verifiers):
    agrees(verifiers["mdm"], "tp2xdp2+zero1+muon")


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in CI])  # those of two, too
def test_every_other_layout_does_what_one_process_does(verifiers, objective, name):
    agrees(verifiers[objective], name)


@pytest.fixture(scope="module")
def saved(verifiers, tmp_path_factory):
    """By layout, each made once: a checkpoint after three steps, what it holds, and how one process goes on from it."""
    made = {}

    def save(name):
        if name not in made:
            layout, alone, folder = possible(verifiers["mdm"], name), read_layout("tp1", 4), str(tmp_path_factory.mktemp("saved"))
            left = verifiers["mdm"].train(layout, 3, save=folder)
            made[name] = folder, left.ended, verifiers["mdm"].train(alone, STEPS_AFTER_MOVE, load=folder)
        return made[name]

    return save


def goes_on(verifier, checkpoint, target, steps):
    """The target holds what was saved, bit for bit, and goes on as one process does."""
    folder, held, alone = checkpoint
    there = verifier.train(possible(verifier, target), steps, load=folder)
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in held)
    assert same(held, there.begun).passed, same(held, there.begun).text
    check = within([a / b - 1 for a, b in zip(there.losses, alone.losses)], LOSS_AFTER_MOVE)
    assert len(there.losses) == steps and check.passed, check.text


@pytest.mark.parametrize("source, target", CI_MOVES)
def test_checkpoint_goes_on_at_another_layout(verifiers, saved, source, target):
    goes_on(verifiers["mdm"], saved(source), target, 4)


@pytest.mark.slow
@pytest.mark.parametrize("source, target", list(itertools.product(MOVES, MOVES)))
def test_checkpoint_goes_on_at_any_layout(verifiers, saved, source, target):
    goes_on(verifiers["mdm"], saved(source), target, STEPS_AFTER_MOVE)
