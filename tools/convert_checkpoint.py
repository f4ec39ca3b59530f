"""Weights from one form to another: ours, Hugging Face folders, plain safetensors, Megatron-DeepSpeed's files, a dictionary.

    python tools/convert_checkpoint.py RUN --to hf DIR                          a run for transformers, compared and described
    python tools/convert_checkpoint.py --from hf DIR NEW_DIR                    Llama-shaped weights to a checkpoint
    python tools/convert_checkpoint.py RUN_DIR PLAIN_DIR [--dtype bf16]         a checkpoint to plain weights
    python tools/convert_checkpoint.py PLAIN_DIR NEW_DIR                        and back
    python tools/convert_checkpoint.py global_step1000 NEW_DIR                  Megatron-DeepSpeed: mp_rank_* or layer_* files
    python tools/convert_checkpoint.py RUN --to dict FILE.pt                    a dictionary for torch.load(weights_only=True)

Plain weights are model.safetensors, or several such files with model.safetensors.index.json, under logical names, and a
config.json. Of Megatron-DeepSpeed's files only tensors are taken, whatever the layout they were trained at. Nothing that a
file holds is executed. What goes to or comes from transformers is refused where a logit or the NLL differs by more than 1e-4.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import json

from megatron.errors import CannotWrite, exits

FORMS = ("checkpoint", "plain", "megatron", "hf", "dict")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("source", type=Path, metavar="SOURCE", help="a run or one of its checkpoints, or what --from names")
    found.add_argument(
        "out", type=Path, metavar="OUT", help="a new folder; of --to dict a new .pt file, or a folder for checkpoint.pt"
    )
    found.add_argument("--from", dest="form", choices=FORMS, help="what SOURCE is; another form is refused [as it looks]")
    found.add_argument(
        "--to", choices=("plain", "checkpoint", "hf", "dict"), help="what to write [plain for a checkpoint, else checkpoint]"
    )
    found.add_argument("--checkpoint", help="--to hf, dict: a step, best or newest of the run [the last, of a finished run]")
    found.add_argument("--dtype", choices=("fp32", "bf16"), help="of plain and hf weights; others are fp32 [fp32]")
    found.add_argument("--num-attention-heads", type=int, metavar="N", help="of a Megatron model whose file does not say it")
    found.add_argument("--no-tokenizer", action="store_true", help="--to hf: leave the tokenizer's files out")
    found.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    return found


def refuse_taken(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CannotWrite(f"{out} is taken: give a path that is new, or an empty folder")


@exits
def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    refuse_taken(given.out)
    from megatron.exchange.convert import convert

    said = convert(
        given.source,
        given.out,
        form=given.form,
        to=given.to,
        which=given.checkpoint,
        dtype=given.dtype,
        num_heads=given.num_attention_heads,
        with_tokenizer=not given.no_tokenizer,
    )
    sentence = said.pop("sentence")
    print(json.dumps(said, indent=1) if given.json else sentence)


if __name__ == "__main__":
    sys.exit(main())
