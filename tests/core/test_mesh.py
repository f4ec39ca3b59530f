import torch
import torch.distributed as dist

from megatron.core.mesh import Group, Mesh, all_reduce, build_mesh, flat_sum, gather_json

AXES = ("tp", "dp", "pp", "ends", "world", "control")


def members(tp, pp):
    mesh = build_mesh(tp, pp)
    return {axis: (getattr(mesh, axis).ranks, getattr(mesh, axis).rank) for axis in AXES}


def test_a_process_alone_has_groups_of_one_and_no_communication():
    mesh = build_mesh()
    assert mesh == Mesh() and mesh.chief and all(getattr(mesh, axis).size == 1 for axis in AXES)
    x = torch.ones(3)
    assert all_reduce(x, Group()) is x and gather_json({"a": 1}, Group()) == [{"a": 1}]


def test_ranks_are_numbered_as_megatrons_are(pool):
    """Eight ranks at 2 x 2 x 2, as Megatron's documentation of its groups lists them."""
    found = pool.run(8, members, 2, 2)
    assert [found[r]["tp"][0] for r in (0, 2, 4, 6)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [found[r]["dp"][0] for r in (0, 1, 4, 5)] == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert [found[r]["pp"][0] for r in range(4)] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert all(r == found[r][axis][0][found[r][axis][1]] for r in range(8) for axis in AXES)


def test_the_ends_of_a_long_pipeline_have_a_group_and_its_middle_none(pool):
    found = pool.run(4, members, 1, 4)
    assert [found[r]["ends"][0] for r in range(4)] == [(0, 3), (1,), (2,), (0, 3)]


def talk():
    mesh, rank = build_mesh(), dist.get_rank()
    said = gather_json({"rank": rank, "text": "x" * rank, "none": None}, mesh.control)
    tensors = [torch.full((2, 3), float(rank + 1)), torch.full((5,), 10.0 * rank)]
    flat_sum(tensors, mesh.world)
    return said, [t.tolist() for t in tensors]


def test_what_ranks_say_and_sum(pool):
    for said, tensors in pool.run(3, talk):
        assert said == [{"rank": r, "text": "x" * r, "none": None} for r in range(3)]
        assert tensors == [[[6.0] * 3] * 2, [30.0] * 5]


def test_no_sequence_is_cut_where_nothing_shares_it(pool):
    assert pool.run(2, cuts_sequence, 2) == [True, True] and pool.run(2, cuts_sequence, 1) == [False, False]


def cuts_sequence(tp):
    return build_mesh(tp, 1, sequence=True).tp.sequence
