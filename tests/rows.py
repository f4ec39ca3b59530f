"""Rows of a page's table `Document, command, what it prints`: carried out in this process, in the folder that it stands in."""

import re
import shlex
from importlib import import_module
from pathlib import Path

from megatron.catalogue import default_of
from megatron.config import parse
from megatron.training.pretrain import main as pretrain

ROOT = Path(__file__).resolve().parents[1]


def rows(page):
    """(what is asked for, command, what it prints)"""
    table = (ROOT / "docs" / page).read_text().partition("## Document, command, what it prints")[2]
    return re.findall(r"^\| (.+?) \| `(.+?)` \| `(.+?)` \|$", table, re.MULTILINE)


def carry_out(command, flags, capsys):
    """What the command prints; FLAGS are those of a tiny model, of which the command's own replace some."""
    _, program, *words = shlex.split(command)
    if "FLAGS" in words:
        at = words.index("FLAGS")
        words = [*flags(words), *words[:at], *words[at + 1 :]]
    capsys.readouterr()
    if program.startswith("pretrain"):
        code = pretrain(parse(words, default_of(program)))
    else:
        code = import_module(program.removesuffix(".py").replace("/", ".")).main(words)
    said = capsys.readouterr()
    assert not code, f"{command}\n{said.err}"
    return said.out + said.err
