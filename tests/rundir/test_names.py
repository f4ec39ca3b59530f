import pytest

from megatron.rundir.names import checkpoint_name, is_run_name, step_and_attempt


def test_checkpoints_are_named_by_step_and_attempt():
    for at in ((200, 0), (200, 1), (123456789, 12)):
        assert step_and_attempt(checkpoint_name(*at)) == at
    assert {step_and_attempt(name) for name in ("step-x", "step-1.b", "aside-step-00000001", "latest", "")} == {(-1, -1)}


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "..", ".hidden", "a/b", "a\\b", "a b", "a\n", "-rf", 3, None, "x" * 201])
def test_a_name_from_a_file_stays_in_its_folder(name):
    assert not is_run_name(name)


def test_names_of_the_planner_are_names():
    assert all(map(is_run_name, ("ar-2e+11-18566", "mdm_1e18_7m_lr0.001", "a.b", "x@2", "n=3,d=4")))
