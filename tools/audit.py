"""Is this loss a bound? For an objective, a trained run, or a scoring rule of your own.

    python tools/audit.py mdm                       an objective by its name, as validation poses it
    python tools/audit.py mdm --training            the same as training poses it
    python tools/audit.py runs/mdm                  a run: its objective, its weights, and its floor where the corpus has one
    python tools/audit.py exported                  a Hugging Face folder, causal or exported from masked diffusion
    python tools/audit.py mymodule:rule             a function, found from the current folder

A rule is a function of some of: tokens int64 [r, n], scored bool [r, n] (False: padding behind the end, which is token vocab-1),
vocab, predict (int64 [r, n], hidden places hold vocab -> log-probabilities [r, n, vocab]), t [r] and uniform [r, n] (its noise;
it may compare uniforms with each other and with t). It returns the total nats of each row, float64 [r]. Attributes of the
function state what else it means: rule.given = ("length",) where the length of a row is known beforehand, rule.levels = (low,
high) where t ~ U(low, high), rule.average = "likelihood" where its draws are averaged as exp(-nats).

All rows of a tiny vocabulary are gone through with the noise integrated exactly. Verdicts: tight (exp(-loss) sums to 1 under
exact posteriors), loose (a bound, with a gap even there), not a bound, biased (draws exponentiated before their mean; the mean in
nats is a bound). Leaves with 0 for a bound, with 1 for none. Writes audit.json, audit.png and audit.pdf
into --output.
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
from megatron.errors import CannotWrite, MissingInput, exits  # noqa: E402
from megatron.flags import ConfigError  # noqa: E402


def read_words(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and those of pretrain_*.py for an objective, behind a --."""
    words = sys.argv[1:] if argv is None else argv
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="audit.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", metavar="SUBJECT", help=f"{', '.join(OBJECTIVES)}, a run, or module:function")
    parser.add_argument("--checkpoint", help="of a run: a step, best, newest, or a path [the last of a run that is finished]")
    parser.add_argument("--training", action="store_true", help="of an objective: what training poses [what validation does]")
    parser.add_argument("--vocab", type=int, help="tokens of the tiny vocabulary [4, or 3 where there is noise]")
    parser.add_argument("--length", type=int, help="places of a row [6, or 4 where there is noise]")
    parser.add_argument("--seed", type=int, default=0, help="of the Markov source and the random model [0]")
    parser.add_argument("--output", type=Path, help="folder for audit.json, audit.png and audit.pdf [the run's, or audit]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    given = parser.parse_args(words[:at])
    for flag, least in (("vocab", 2), ("length", 1), ("seed", 0)):
        if getattr(given, flag) is not None and getattr(given, flag) < least:
            raise ConfigError([f"--{flag} {getattr(given, flag)}: expected {least} or more"])
    return given, words[at + 1 :]


def examine(given: argparse.Namespace, words: list[str]):
    """-> Audit. Raises MissingInput for what is neither an objective, a run nor a rule."""
    from megatron.exchange.hugging_face import is_hugging_face
    from megatron.proof import audit, subjects
    from megatron.proof.scoring import find_rule

    sizes, run = (given.vocab, given.length, given.seed), Path(given.subject)
    is_rule = ":" in given.subject and not run.exists()
    if words and given.subject not in OBJECTIVES:
        raise ConfigError([f"{' '.join(words)}: flags behind -- are an objective's, and {given.subject} is none; leave them out"])
    if given.checkpoint and not run.is_dir():
        raise ConfigError([f"--checkpoint {given.checkpoint}: only a run has them, and {given.subject} is none; leave it out"])
    if given.subject in OBJECTIVES:
        return subjects.audit_objective(given.subject, words, *sizes, training=given.training)
    if given.training:
        raise ConfigError([f"--training: only an objective is trained, and {given.subject} is none; leave it out"])
    if is_rule:
        return audit.audit(find_rule(given.subject), *sizes)
    if not run.is_dir():
        expected = f"{', '.join(OBJECTIVES)}, the folder of a run, a Hugging Face folder, or module:function"
        raise MissingInput(f"{given.subject}: expected {expected}")
    if is_hugging_face(run):
        return subjects.audit_folder(run, *sizes)
    return subjects.audit_run(run, given.checkpoint, *sizes, say=lambda line: print(line, file=sys.stderr))


def describe(found) -> str:
    lines = [f"{'rows':8} {'model':8} {'sum of exp(-loss)':>18} {'nats above exact':>17}"]
    for one in found.sums:
        excess = "" if one.excess is None else f"{one.excess:17.6f}"
        lines.append(f"{one.rows:8} {one.source:8} {one.total:18.6f} {excess}".rstrip() + ("" if one.passed else "  more than 1"))
    if found.closed_form:
        lines.append("closed form sum_k w_k n CE_k, w = " + " ".join(f"{w:.4f}" for w in found.closed_form.weights))
    if found.floor:
        lines.append(f"floor: model minus oracle {found.floor['difference']:+.6f} +- {found.floor['se']:.6f} nats per token")
    of = f" ({found.unscored})" if found.unscored else ""
    return "\n".join([*lines, *found.notes, *found.reasons, f"{found.subject}: {found.verdict}{of}"])


@exits
def main(argv: list[str] | None = None) -> int:
    given, words = read_words(argv)
    found = examine(given, words)

    from megatron.proof.audit_figure import draw_audit
    from megatron.scaling.show.figures.style import save
    from megatron.training.branch import write_json

    folder = given.output or (Path(given.subject) if Path(given.subject).is_dir() else Path("audit"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{folder} cannot be made: {error.strerror}; choose another --output") from error
    write_json(folder / "audit.json", found.record())
    save(draw_audit(found), folder / "audit")
    print(json.dumps(found.record(), indent=1) if given.json else describe(found))
    return int(not found.bound)


if __name__ == "__main__":
    sys.exit(main())
