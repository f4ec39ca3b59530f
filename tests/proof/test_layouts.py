from megatron.proof.layouts import read_layout


def test_layout_is_read_from_its_name():
    layout = read_layout("pp2xdp2+interleaved+dropout+zero1", num_layers=8)
    assert layout.world_size == 4
    assert " ".join(layout.flags) == (
        "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 2 --pipeline-schedule "
        "interleaved --num-layers-per-virtual-pipeline-stage 2 --zero-stage 1"
    )
    assert " ".join(layout.experiment) == "--hidden-dropout 0.1 --attention-dropout 0.1 --parameter-dropout 0.1"
