"""The table of machines, figures of one's own, and what is none of these."""

import pytest

from megatron.config import ConfigError, parse
from megatron.machines import MACHINES, read_machine

BASE = "--num-layers 2 --hidden-size 64 --num-attention-heads 2 --tokenizer-type ByteTokenizer --seq-length 32 --lr 1e-3"


def test_figures_of_ones_own(tmp_path):
    assert read_machine("h200") is not None and read_machine("h200").memory == 141
    mine = read_machine("a100,memory=40,network=12.5")
    assert (mine.memory, mine.network, mine.matmul, mine.name) == (40, 12.5, 268, "a100,memory=40,network=12.5")
    path = tmp_path / "mine.yaml"
    path.write_text("base: b200\nhost: 72\n")
    assert (read_machine(str(path)).host, read_machine(str(path)).nvlink) == (72, 900)
    figures = {one: getattr(MACHINES["h100"], one) for one in vars(MACHINES["h100"]) if one not in ("name", "host")}
    path.write_text("\n".join(f"{name}: {value}" for name, value in figures.items()))
    assert vars(read_machine(str(path))) == vars(MACHINES["h100"]) | {"name": str(path)}


@pytest.mark.parametrize(
    "text, said",
    [
        ("h20", "--machine h20: no machine 'h20'; known are a100, h100, h200, b200"),
        ("h100,speed=3", "speed=3: expected a number above 0"),
        ("h100,matmul", "matmul=: expected a number above 0"),
        ("h100,matmul=1,matmul=2", "matmul is given twice: say it once"),
        ("h100,network=1_0", "network=1_0: expected a number above 0"),
        ("h100,peak=500", "matmul=792 is above peak=500: give both as they are"),
        ("h100,attention=1e3", "attention=1000 is above peak=989"),
        ("base: [h100]", "no machine ['h100']; known are a100"),
        ("base: h100\nmatmul: true", "matmul=True: expected a number above 0"),
        (f"base: h100\nmatmul: 1{400 * '0'}", f"matmul=1{39 * '0'}: expected a number above 0"),
        ("base: h100\nhost: 4\nhost: 16", "host is given twice"),
        ("h100,units=1.5", "units=1.5: expected a number above 0 (units and host whole)"),
        ("h100,network=nan", "network=nan: expected"),
        ("absent.yaml", "--machine absent.yaml: cannot be read (No such file or directory)"),
        ("peak: 100\nmatmul: 90\nfp32: 10\nattention: 50\nunits: 100", "memory, bandwidth, nvlink, network left out: give them"),
    ],
)
def test_what_is_no_machine_is_told_in_one_sentence(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        parse(f"{BASE} --dry-run --machine {path if ': ' in text else text}".split(), environ={})
    (sentence,) = error.value.mistakes
    assert said in sentence


def test_without_a_dry_run_they_are_refused():
    for words in ("--machine h100", "--suggest", "--json"):
        with pytest.raises(ConfigError, match="give --dry-run"):
            parse(f"{BASE} --data-path none --train-iters 1 {words}".split(), environ={})
