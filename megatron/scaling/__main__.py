"""The instrument: from compute budgets to a law with intervals. `python -m megatron.scaling VERB --help` explains a verb."""

from __future__ import annotations

import sys

from megatron import stopping

if __name__ == "__main__":
    stopping.stand_by() if sys.argv[1:2] == ["run"] else stopping.heed_interrupt()

import argparse
import difflib
import importlib

from megatron.errors import Refusal, exits
from megatron.flags import refuse_empty

# In the order of use. Only the chosen verb's module is imported.
VERBS = {
    "plan": "budgets, sizes and objectives -> a list of runs with their exact numbers and a forecast",
    "run": "execute a plan here, by torchrun or as a Slurm array; goes on where it stopped",
    "status": "what of a plan is done, running and failed, and the forecast against the actual",
    "runs": "the registry of run directories: ls, show, diff",
    "ingest": "metrics, TensorBoard, W&B, CSV and logs -> one table",
    "fit": "L(N, D) and its relatives on a table or on runs, with intervals and warnings",
    "rank": "forms of law by how well they predict runs that were left out",
    "isoflop": "a parabola per budget, its minimum, and how the minima grow with compute",
    "envelope": "the least loss of any training curve at each compute, and its power law",
    "data-value": "what a repeated token is worth, by epoch",
    "critical-compute": "the compute at which masked diffusion passes the autoregressive model, over unique tokens",
    "hyper": "the best learning rate, batch and weight decay over N, D and U, as power laws that plans follow",
    "compare": "sets of runs or fits side by side, once they are comparable",
    "predict": "how large, how long and which loss, for a budget and unique tokens",
    "next": "the run that would shrink an interval most per GPU-hour; scores past predictions",
    "report": "one page, figures and tables from finished runs and fits",
    "archive": "pack tables, configs, fits and figures into one citable file",
}


class Unreadable(Refusal):
    """A file that is there cannot be read."""

    code = 74


class NoVerb(Refusal):
    """The first word is not a verb."""

    code = 2


@exits
def main(argv: list[str] | None = None) -> int | None:
    """Run one verb; argparse leaves with 2 on flags that it does not know."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else 2
    verb = words[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise NoVerb(f"{verb!r} is not a verb; {f'did you mean {near[0]}?' if near else ''} there are {', '.join(VERBS)}")
    refuse_empty(words)
    from megatron.scaling.verbs import answer  # late: the overview needs no numpy

    module = importlib.import_module(f"megatron.scaling.verbs.{verb.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"scaling_laws.py {verb}",
        description=module.__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    args = parser.parse_args(words[1:])
    try:
        return answer(module.command, args)
    except OSError as error:
        raise Unreadable(f"{error.filename}: {error.strerror}; check the path and its permissions.") from None


def overview() -> str:
    width = max(map(len, VERBS))
    return "\n".join([__doc__, "", *(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())])


if __name__ == "__main__":
    code = main()
    stopping.ignore()
    sys.exit(code)
