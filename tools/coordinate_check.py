"""Do hyperparameters carry over to wider or deeper models? A few steps at several sizes, and how far activations moved.

    python tools/coordinate_check.py                                        AR and MDM, muP beside the standard one
    python tools/coordinate_check.py --objective mdm --widths 64,128,256,512 --steps 4 --seeds 3
    python tools/coordinate_check.py --parametrization completep --depths 4,8,16,32
    python tools/coordinate_check.py --widths 256,512,1024 -- --num-layers 8 --hidden-size 256 ... --data-path PREFIX    your own

Flags of pretrain_*.py behind a -- describe the model: all of it, --lr and --global-batch-size too, once --num-layers is among
them. Without a corpus among them one is made, of tokens as unlike in frequency as words are. The base model of muP is the
smallest size, unless --mup-base-... say another. Heads keep their width, and the SwiGLU its share. All sizes train on the
same samples at a constant --lr, without decay, clip or dropout; then a batch is read with the weights of before and after. Under
muP the mean |change| of what the first block reads, of what follows the last one, and of the logits is as large at every size:
its log-log slope is within --limit of 0 (Yang et al., arXiv:2203.03466, appendix D.1). Standard parametrization grows.

Leaves with 0 when every slope of the asked parametrization is, else with 1. Writes coordinates.json, .png and .pdf into
--output.
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

from megatron.catalogue import OBJECTIVES  # noqa: E402
from megatron.errors import exits  # noqa: E402
from megatron.flags import ConfigError  # noqa: E402

LINE = "{:9} {:10} {:10} {:>7} {:>18}  {}"


def read_words(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and those of pretrain_*.py, behind a --. Raises ConfigError."""
    words = sys.argv[1:] if argv is None else argv
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="coordinate_check.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objective", choices=OBJECTIVES, action="append", help="check this one [ar and mdm]")
    parser.add_argument("--parametrization", choices=["standard", "mup", "completep"], default="mup", help="check this one [mup]")
    parser.add_argument("--alone", action="store_true", help="without the standard one beside it")
    parser.add_argument("--widths", help="hidden sizes [64,128,256,512]")
    parser.add_argument("--depths", help="numbers of layers, in place of widths")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps at each size [4]")
    parser.add_argument("--seeds", type=int, default=2, help="seeds at each size, for the interval [2]")
    parser.add_argument("--limit", type=float, default=0.3, help="the largest |slope| that counts as flat [0.3]")
    parser.add_argument("--output", type=Path, default=Path("coordinates"), help="folder to write into [coordinates]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    given = parser.parse_args(words[:at])
    mistakes = [f"--{name} {getattr(given, name)}: expected 1 or more" for name in ("steps", "seeds") if getattr(given, name) < 1]
    if not 0 < given.limit < 10:
        mistakes.append(f"--limit {given.limit:g}: expected a number above 0 and below 10")
    if given.widths is not None and given.depths is not None:
        mistakes.append("--widths and --depths exclude each other: give one")
    elif given.depths is not None and given.parametrization == "mup":
        mistakes.append("--depths: muP scales with the width alone; give --parametrization completep or standard")
    given.axis = "width" if given.depths is None else "depth"
    sizes = given.widths if given.depths is None else given.depths
    given.sizes = read_sizes("64,128,256,512" if sizes is None else sizes, f"--{given.axis}s", mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return given, words[at + 1 :]


def read_sizes(text: str, flag: str, mistakes: list[str]) -> list[int]:
    sizes = [int(word) if word.isdigit() else 0 for word in text.split(",")]
    if len(set(sizes)) < 2 or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        mistakes.append(f"{flag} {text}: expected two different whole numbers or more, such as 64,128,256")
    return sorted(sizes)


def check(given: argparse.Namespace, words: list[str]) -> list:
    """-> Checks. Raises ConfigError."""
    from megatron.proof import coordinates

    names = ["standard", given.parametrization]
    names = names[1:] if given.alone or given.parametrization == "standard" else names
    found = []
    for objective in given.objective or ["ar", "mdm"]:
        found += coordinates.check(
            words,
            objective,
            names,
            given.axis,
            given.sizes,
            given.seeds,
            given.steps,
            given.limit,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    return found


def describe(checks: list) -> str:
    lines = [LINE.format("objective", "scaled by", "site", "slope", "95 %", "")]
    for one in checks:
        for site, found in one.slopes().items():
            ends = "needs more seeds" if found.low is None else f"[{found.low:+.2f}, {found.high:+.2f}]"
            verdict = ("flat" if found.passed else "NOT FLAT") + ("" if found.decided else ", but for its interval")
            lines.append(LINE.format(one.objective, one.parametrization, site, f"{found.value:+.2f}", ends, verdict))
    return "\n".join(lines)


def write(checks: list, given: argparse.Namespace) -> None:
    """Raises CannotWrite."""
    from megatron.files import staged
    from megatron.proof.coordinates_figure import draw_coordinates
    from megatron.scaling.show.figures.style import encode

    figure = draw_coordinates(checks, given.steps)
    content = {"steps": given.steps, "checks": [one.record() for one in checks]}
    with staged(given.output) as stage:
        (stage / "coordinates.json").write_text(json.dumps(content, indent=1) + "\n")
        for suffix in ("png", "pdf"):
            (stage / f"coordinates.{suffix}").write_bytes(encode(figure, suffix))


@exits
def main(argv: list[str] | None = None) -> int:
    given, words = read_words(argv)
    checks = check(given, words)
    asked = [one for one in checks if one.parametrization == given.parametrization]
    wrong = [f"{one.objective} {site}" for one in asked for site, found in one.slopes().items() if not found.passed]
    write(checks, given)
    if given.json:
        print(json.dumps([one.record() for one in checks], indent=1))
    said = (
        f"{given.parametrization}: {', '.join(wrong)} not within {given.limit:g} of flat over {given.axis}s {given.sizes}: "
        "hyperparameters do not carry over"
        if wrong
        else f"{given.parametrization}: all slopes within {given.limit:g} of flat: hyperparameters carry over"
    )
    if any(not found.decided for one in asked for found in one.slopes().values()):
        said += " (intervals reach across the limit: more --seeds or sizes would tell)"
    print(f"{describe(checks)}\n{said}; {given.output}/coordinates.png", file=sys.stderr if given.json else sys.stdout)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
