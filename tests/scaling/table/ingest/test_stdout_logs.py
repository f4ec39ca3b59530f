import pytest

from megatron.errors import BadData
from megatron.scaling.table.ingest.stdout_logs import read_log, read_logs

DEEPSPEED = """------------------------ arguments ------------------------
  pipeline_model_parallel_size .................... 1
  seq_length ...................................... 2048
  tensor_model_parallel_size ...................... 1
 > number of parameters on (tensor, pipeline) model parallel rank (0, 0): 124439808
 iteration       10/    1000 | consumed samples:         2560 | consumed tokens:      5242880 | elapsed time per iteration (ms): \
310.5 | learning rate: 2.000E-04 | global batch size:   256 | lm loss: 9.123456E+00 | loss scale: 1.0 | grad norm: 1.234 | \
actual seqlen:  2048 | number of skipped iterations:   0 | number of nan iterations:   0 | TFLOPs: 52.10 |
-----------------------------------------------------------------------------------------------
 validation loss at iteration 10 | lm loss value: 8.500000E+00 | lm loss PPL: 4.914769E+03 |
-----------------------------------------------------------------------------------------------
 iteration       20/    1000 | consumed samples:         5120 | consumed tokens:     10485760 | lm loss: 7.0E+00 |
 iteration       10/    1000 | consumed samples:         2560 | consumed tokens:      5242880 | lm loss: 9.0E+00 |
 validation loss at iteration 20 on validation set | lm loss value: 7.5E+00 | lm loss PPL: 1.8E+03 |
 validation loss at iteration 20 on test set | lm loss value: 7.6E+00 | lm loss PPL: 1.9E+03 |
 iteration       30/    1000 | consumed samples:         7680 | lm loss: 6.5"""
MEGATRON = """[default7]: [2026-11-21 02:10:23.123456] iteration      100/     200 | consumed samples:         800 | \
skipped samples: 0 | elapsed time per iteration (ms): 12.0 | throughput per GPU (TFLOP/s/GPU): 412.3 | \
learning rate: 1.000000E-04 | global batch size:     8 | lm loss: 3.5E+00 | loss scale: 1.0 | grad norm: 0.500 |
 iteration 150/ 200 | consumed samples: 1200 | lm loss: interleaved | grad norm: 0.4 |
 validation loss at the end of training for test data | lm loss value: 3.25E+00 | lm loss PPL: 25.0 |
"""


def write(path, text):
    path.write_text(text)
    return path


def points(curves, name):
    return [column.tolist() for column in curves.curve(name)]


def test_reads_megatron_deepspeed(tmp_path):
    found = read_log(write(tmp_path / "run.log", DEEPSPEED))
    assert found.run == "run" and found.facts == {"params": 124439808} and found.arguments["seq_length"] == "2048"
    assert points(found, "lm loss") == [[10, 20], [9.0, 7.0]]  # 10 was written again, 30 was cut short
    assert points(found, "consumed samples") == [[10, 20, 30], [2560, 5120, 7680]]
    assert points(found, "lm loss validation") == [[10, 20], [8.5, 7.5]]
    assert points(found, "lm loss test") == [[20], [7.6]]
    assert "lm loss validation ppl" in found.names


def test_reads_megatron_of_today_with_prefixes(tmp_path):
    found = read_log(write(tmp_path / "slurm-1.out", MEGATRON))
    assert points(found, "lm loss") == [[100], [3.5]] and points(found, "grad norm") == [[100, 150], [0.5, 0.4]]
    assert points(found, "throughput per GPU (TFLOP/s/GPU)") == [[100], [412.3]]
    assert points(found, "lm loss test") == [[150], [3.25]] and found.facts == {}


def test_parameters_of_one_rank_of_several_are_not_those_of_the_model(tmp_path):
    text = DEEPSPEED.replace("tensor_model_parallel_size ...................... 1", "tensor_model_parallel_size ....... 2")
    assert read_log(write(tmp_path / "run.log", text)).facts == {}


def test_a_file_without_training_lines_is_refused(tmp_path):
    with pytest.raises(BadData, match="no line of a training"):
        list(read_logs([write(tmp_path / "x.log", "hello\n")]))
