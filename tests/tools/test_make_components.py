import json

import numpy as np

from megatron.data.token_file import PaperFolder
from tools.make_components import main

WORDS = ["--components", "3", "--symbols", "5", "--tokens", "3000", "--paper-length", "100"]


def test_papers_of_several_chains(tmp_path, capsys):
    assert not main([*WORDS, "--output", str(tmp_path / "a"), "--json"])
    floors = json.loads(capsys.readouterr().out)["nats_per_token"]
    folder = PaperFolder(tmp_path / "a")
    assert list(floors) == folder.categories and all(0 < floor < np.log(5) for floor in floors.values())
    assert {split: len(folder.split(split)) for split in ("train", "valid", "test")} == {"train": 72, "valid": 9, "test": 9}
    assert main([*WORDS, "--output", str(tmp_path / "a")]) == 73 and "exists" in capsys.readouterr().err
    assert main([*WORDS, "--tokens", "500", "--output", str(tmp_path / "b")]) == 2 and not (tmp_path / "b").exists()
