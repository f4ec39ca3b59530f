"""How far a trained model is above the floor of its corpus: model minus oracle on the run's validation rows, paired.

    python tools/entropy_floor.py RUN_DIR [--checkpoint PATH] [--set valid] [--rows N] [--num-mc N]

The validation data must be corpora of tools/make_entropy_corpus.py, which hold what the oracle needs. The difference is an
estimate of a KL divergence: 3 standard errors below zero and more (by Student's t, where they have few degrees of freedom)
is a leak, and the exit code is then 1. For masked diffusion it also holds the gap of the bound. Runs in one process,
whatever layout the run had, and writes RUN_DIR/entropy_floor.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed

from megatron import engine as engines  # noqa: E402
from megatron import objectives  # noqa: E402
from megatron.config import Config, Parallel  # noqa: E402
from megatron.core.mesh import Mesh  # noqa: E402
from megatron.data.datasets import build_datasets  # noqa: E402
from megatron.data.tokenizer import Vocabulary, build_tokenizer  # noqa: E402
from megatron.errors import BadData, Mismatch, MissingInput, exits  # noqa: E402
from megatron.training import device, floor  # noqa: E402
from megatron.training.resume import open_checkpoint  # noqa: E402
from megatron.training.run import write_json  # noqa: E402
from megatron.training.trained import cut_slice, sample_spec  # noqa: E402


def read_config(run_dir: Path, checkpoint: str | None) -> Config:
    """The run's own Config, in one process and for scoring alone.  Raises MissingInput, Mismatch."""
    path = run_dir / "config.json"
    try:
        said = json.loads(path.read_text())
        cfg = Config.from_dict(said)
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}; give the folder of a run, which holds its config.json") from None
    except (KeyError, TypeError, ValueError) as error:
        raise Mismatch(f"{path} is damaged or of a version with other flags ({error}): use that version") from None
    load = checkpoint or cfg.train.save
    if not load:
        raise MissingInput(f"{run_dir}: the run saved no checkpoint; train with --save, or give --checkpoint")
    return replace(cfg, parallel=Parallel(world_size=1), train=replace(cfg.train, load=load, skip_train=True))


def score(cfg: Config, which: str, rows: int | None, num_mc: int | None) -> dict:
    """Raises BadData for a set that the run does not have."""
    data = cfg.data
    tokenizer = build_tokenizer(data.tokenizer_type, data.vocab_file, data.merge_file, data.tokenizer_model)
    found, where = build_datasets(data, sample_spec(cfg, tokenizer)), device.setup(cfg)
    if which == "train" or not found.get(which):
        scored = ", ".join(name for name in found if name != "train" and found[name])
        raise BadData(f"--set {which}: expected a set that the run scores: {scored}")
    mask = Vocabulary(cfg.model.vocab_size, cfg.model.padded_vocab_size).mask
    reference, loaded = objectives.build(cfg, mask).reference(), open_checkpoint(cfg, print)
    engine = engines.build(cfg, objectives.build(cfg, mask), where, Mesh())
    engine.load(loaded, weights_only=True)
    part = cut_slice(cfg, found[which], reference, tokenizer)
    part = replace(part, rows=min(rows or part.rows, found[which].rows_in_first_epoch), num_mc=num_mc or part.num_mc)
    return {
        "set": which,
        "objective": cfg.objective.objective,
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        **floor.compare(engine, reference, part),
    }


@exits
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="entropy_floor.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--checkpoint", help="one checkpoint, or a folder of them [the run's newest]")
    parser.add_argument("--set", default="valid", help="valid, valid:NAME or test [valid]")
    parser.add_argument("--rows", type=int, help="validation rows to score [the run's own]")
    parser.add_argument("--num-mc", type=int, help="draws of t and masks for masked diffusion [the run's own]")
    given = parser.parse_args(argv)
    for flag in ("rows", "num_mc"):
        if getattr(given, flag) is not None and getattr(given, flag) < 1:
            raise BadData(f"--{flag.replace('_', '-')} {getattr(given, flag)}: expected 1 or more")
    found = score(read_config(given.run_dir, given.checkpoint), given.set, given.rows, given.num_mc)
    write_json(given.run_dir / "entropy_floor.json", found)
    print(describe(found))
    return int(found["below_floor"])


def describe(found: dict) -> str:
    """What was found, in two lines."""
    left_out = f" ({found['rows_left_out']} spliced rows left out)" if found["rows_left_out"] else ""
    below = (
        "\nbelow the floor by more than three standard errors: the model sees what it should predict, "
        "or the corpus is not its source's"
    )
    return (
        f"{found['objective']} at step {found['step']}, {found['rows']} rows of {found['set']}{left_out}: "
        f"{found['bound']} {found['model']:.6f}, oracle {found['oracle']:.6f} nats per token\n"
        f"model minus oracle {found['difference']:+.6f} +- {found['se']:.6f}"
        f"{below if found['below_floor'] else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
