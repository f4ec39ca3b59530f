"""The tables as a shell reads them."""

import re
import subprocess
from pathlib import Path

import pytest

from megatron import budget
from megatron.data.sources import read_path_file

ROOT = Path(__file__).resolve().parents[2]


def bash(script):
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_sourced_arrays_equal_the_parsed_tables():
    printed = bash('source utils/model_params.sh; for v in ${!PARAM_*}; do a="$v[*]"; echo "${v#PARAM_}: ${!a}"; done')
    assert {k: [int(n) for n in v.split()] for k, v in re.findall(r"(\w+): (.*)", printed)} == budget.sizes()
    printed = bash('source utils/epoch_tokens.sh; for v in ${!DATA_*}; do echo "${v#DATA_}: ${!v}"; done')
    assert {k: int(v) for k, v in re.findall(r"(\w+): (.*)", printed)} == budget.epoch_tokens()


def test_published_names_and_order():
    assert bash('source utils/model_params.sh; echo "${PARAM_425M[@]}"') == "1280 5120 128 10 18\n"
    assert bash('source utils/epoch_tokens.sh; echo "${DATA_100M[@]}"') == "99952399\n"


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "utils/datapaths").glob("*.txt")))
def test_datapath_files_are_read(file):
    sources = read_path_file(ROOT / "utils/datapaths" / file)
    assert sources and all(source.prefix.startswith("data/gpt2tok_c4_") for source in sources)


def test_example_blend():
    first, second = read_path_file(ROOT / "utils/datapaths/example_dataset.txt")
    assert (first.weight, second.weight, second.start, second.stop) == (0.75, 0.25, 0.0, 0.5)
