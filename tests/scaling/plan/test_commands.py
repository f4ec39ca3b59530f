import pytest

from megatron.errors import BadData, MissingInput, Untrusted
from megatron.flags import ConfigError
from megatron.scaling.plan.commands import plan_of_commands
from megatron.scaling.plan.entries import load_plan, save_plan

LINE = (
    "pretrain_{}.py --num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --global-batch-size 8 "
    "--train-samples 1003 --lr 1e-3 --tokenizer-type ByteTokenizer --device cpu {} --save 'runs/a {}' --load 'runs/a {}'\n"
)


def test_commands_become_a_plan(tmp_path):
    (tmp_path / "list").write_text(
        LINE.format("gpt", "--train-data-path 1.0 0:1600 x", 1, 1) + "\n" + LINE.format("diff_gpt", "--data-path x", 2, 2)
    )
    plan = plan_of_commands(tmp_path / "list")
    ar, mdm = plan.runs
    assert (ar["name"], ar["objective"], ar["entry"]) == ("a 1", "ar", "pretrain_gpt.py")
    assert (mdm["objective"], plan.scale) == ("mdm", "cpu")
    assert (ar["samples"], ar["steps"], ar["tokens"], ar["unique_tokens"], ar["epochs"]) == (1000, 125, 32000, 1600, 20)
    assert ar["flops_6nd"] == 6.0 * ar["params"] * 32000 and mdm["unique_tokens"] == 32000
    assert ar["flags"][-4:] == ["--train-data-path", "1.0", "0:1600", "x"] and not {"--save", "--load"} & set(ar["flags"])
    (tmp_path / "list").write_text(LINE.format("gpt", "--train-data-path x --unique-tokens 3200", 1, 1))
    assert plan_of_commands(tmp_path / "list").runs[0]["epochs"] == 10
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").runs == plan.runs


def test_refusals(tmp_path):
    with pytest.raises(MissingInput, match="give a file with a command a line"):
        plan_of_commands(tmp_path / "none")
    (tmp_path / "list").write_text("rm -rf x\n")
    with pytest.raises(BadData, match="list:1: expected a line that starts with pretrain_gpt.py or pretrain_diff_gpt.py"):
        plan_of_commands(tmp_path / "list")
    (tmp_path / "list").write_text(LINE.format("gpt", "--data-path x", "/..", 1))
    with pytest.raises(Untrusted, match="is no folder of a run"):
        plan_of_commands(tmp_path / "list")
    (tmp_path / "list").write_text(LINE.format("gpt", "--data-path x --no-such 3", 1, 1) + LINE.format("gpt", "", 2, 2))
    with pytest.raises(ConfigError, match=r"(?s)a 1: --no-such is not a flag.*a 2: no training data"):
        plan_of_commands(tmp_path / "list")
