"""Several runs scored together: how far the mean of their predictions is below one of them, and the law in their number K.

    python tools/ensemble.py runs/seed-1 runs/seed-2 runs/seed-3 runs/seed-4 --out ensemble
    python tools/ensemble.py --runs-dir runs --where lr=0.003 num-layers=4 --out ensemble
    python tools/ensemble.py runs/mdm-1 runs/mdm-2 runs/mdm-3 --num-mc 8 --score korder:8,rule:confidence

All read the same rows with the same draws. Two distributions are made: of tokens (each place by the mean of the members'
probabilities: an exact NLL left to right, a bound of masked diffusion) and, of autoregressive runs, of sequences (the mean of
whole rows' probabilities). K' of the K members are averaged over their subsets, which gives L(K') with errors from rows, noise
and the choice of members, and L_inf + a / K. Runs of another objective, tokenizer or other rows are refused, and a network twice.
--out FOLDER has ensemble.json, ensemble.png and ensemble.csv: loss, members, N, D and C of the first one.
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

from megatron.config import declared
from megatron.errors import MissingInput, exits
from megatron.flags import ConfigError
from megatron.rundir.folders import read_file
from megatron.rundir.names import CONFIG, RESULT
from megatron.score_names import read_scores


def parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="ensemble.py", allow_abbrev=False, description=__doc__, formatter_class=plain)
    found.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="runs' folders, or checkpoints of theirs")
    found.add_argument("--runs-dir", type=Path, metavar="DIR", help="every finished run of this folder, in place of names")
    found.add_argument("--where", nargs="+", default=[], metavar="FLAG=VALUE", help="of --runs-dir: those with these flags")
    found.add_argument("--checkpoint", help="a step, best or newest of each run [the last of a run that is finished]")
    found.add_argument("--set", default="valid", help="valid, valid:NAME or test [valid]")
    found.add_argument("--rows", type=int, help="rows to score [the least that a member validates on]")
    found.add_argument("--last", type=int, help="score only the last N tokens of each row, given all before [all]")
    found.add_argument("--num-mc", type=int, help="draws of a bound [the most of any member]")
    found.add_argument("--score", help="also these scores of all members as one network, with commas between")
    found.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    found.add_argument("--dtype", choices=("fp64", "fp32", "bf16"), default="fp64", help="what the members compute in [fp64]")
    found.add_argument("--out", type=Path, metavar="FOLDER", help="write ensemble.json, .png and .csv there")
    found.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    return found


def members_of(given: argparse.Namespace) -> list[Path]:
    """The runs that are named, or those of a folder that have the flags. Raises ConfigError, MissingInput."""
    mistakes = [f"--{name.replace('_', '-')} {getattr(given, name)}: expected 1 or more" for name in ("rows", "last", "num_mc")
                if getattr(given, name) is not None and getattr(given, name) < 1]  # fmt: skip
    if bool(given.runs) == bool(given.runs_dir):
        mistakes.append("give either runs by name, or --runs-dir")
    if given.where and not given.runs_dir:
        mistakes.append("--where acts on --runs-dir: leave it out")
    mistakes += [f"--where {word}: expected FLAG=VALUE" for word in given.where if "=" not in word]
    if mistakes:
        raise ConfigError(mistakes)
    if given.runs:
        return given.runs
    if not given.runs_dir.is_dir():
        raise MissingInput(f"--runs-dir {given.runs_dir} is no folder: give one that holds runs")
    wanted = [word.lstrip("-").split("=", 1) for word in given.where]
    finished = sorted(path.parent for path in given.runs_dir.glob(f"*/{RESULT}"))
    kept = [run for run in finished if read_file(run, CONFIG).get("train", {}).get("save")]
    if len(kept) < len(finished):
        print(f"left out: {', '.join(str(run) for run in finished if run not in kept)}, trained without --save", file=sys.stderr)
    found = [run for run in kept if all(has(run, name.replace("-", "_"), value) for name, value in wanted)]
    if len(found) < 2:
        raise MissingInput(
            f"--runs-dir {given.runs_dir}: {len(found)} of {len(finished)} finished runs "
            f"have {' '.join(given.where) or 'a result'}; an ensemble has two members or more"
        )
    return found


def has(run: Path, name: str, value: str) -> bool:
    """Whether a run's flag has this value. Raises ConfigError for what is no flag."""
    flags = {
        flag: setting
        for section in read_file(run, CONFIG).values()
        if isinstance(section, dict)
        for flag, setting in section.items()
    }
    if name not in declared():
        raise ConfigError([f"--where {name}={value}: no such flag; see docs/flags.md"])
    setting = flags.get(name, declared()[name][1].default)  # of a run older than the flag
    if isinstance(setting, list):
        return ",".join(map(str, setting)) == value
    try:
        return float(setting) == float(value)
    except (TypeError, ValueError):
        return str(setting).lower() == value.lower()


@exits
def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    names = [] if given.score is None else [name.text for name in read_scores(given.score.split(","))]
    runs = members_of(given)
    from megatron.files import staged
    from megatron.likelihood.ensemble import measure
    from megatron.likelihood.ensemble_report import as_table, describe, draw
    from megatron.scaling.show.figures.style import encode
    from megatron.training import open_run

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    members = [open_run(run, given.checkpoint, device=given.device, dtype=given.dtype, say=say) for run in runs]
    found = measure(members, given.set, given.rows, given.last, given.num_mc, names)
    if not members[0].engine.mesh.chief:
        return
    if given.out:
        with staged(given.out) as stage:
            (stage / "ensemble.json").write_text(json.dumps(found, indent=1, allow_nan=False))
            (stage / "ensemble.png").write_bytes(encode(draw(found), "png"))
            (stage / "ensemble.csv").write_text(as_table(found))
    print(json.dumps(found, indent=1) if given.json else describe(found))


if __name__ == "__main__":
    sys.exit(main())
