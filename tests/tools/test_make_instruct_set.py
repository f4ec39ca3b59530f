import json
import re

from megatron.data.synthetic.instructions import SHAPE, TASKS, records
from tools.make_instruct_set import main


def test_each_instruction_has_one_right_answer_of_one_shape(tmp_path, capsys):
    file = tmp_path / "a" / "words.jsonl"
    assert not main(["--count", "200", "--output", str(file)])
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({(one["instruction"], one["input"]) for one in found}) == 200 and found[:50] == records(50, 0)
    assert {one["instruction"] for one in found} == set(TASKS) and all(re.fullmatch(SHAPE, one["output"]) for one in found)
    assert main(["--count", "200", "--output", str(file)]) == 73 and "exists" in capsys.readouterr().err
    assert main(["--count", "0", "--output", str(tmp_path / "b")]) == 65 and not (tmp_path / "b").exists()
