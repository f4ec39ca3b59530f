"""What a trained model is worth beyond its loss: a verb a question.

    python tools/evaluate.py likelihood RUN --score nelbo,korder:16,rule:confidence
    python tools/evaluate.py compare RUN_A RUN_B
    python tools/evaluate.py tasks RUN --task_list quiz.jsonl
    python tools/evaluate.py components RUN...
    python tools/evaluate.py instruct RUN... --format 'Answer: .*'
    python tools/evaluate.py vectors RUN
    python tools/evaluate.py samples RUN --samplers confidence,entropy-bounded --steps 8,32 --judge AR_RUN
    python tools/evaluate.py architectures AR_RUN MDM_RUN SDD_RUN --judge AR_RUN --out FOLDER
    python tools/evaluate.py --checkpoint RUN --metrics perplexity,accuracy,generation,speed

`VERB --help` explains each.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
from importlib import import_module

from megatron.errors import exits

OVERVIEW = "overview"
# Each a module with `arguments(parser)` and `command(given)`, which gives an exit code or None.
VERBS = {
    "likelihood": ("megatron.likelihood.verbs.likelihood", "how likely the model finds the run's validation rows"),
    "samples": ("megatron.likelihood.verbs.samples", "what samplers write and what it costs, beside real text"),
    "architectures": ("megatron.likelihood.verbs.architectures", "AR, diffusion and SDD in one table and figure"),
    "compare": ("megatron.likelihood.verbs.compare", "two runs on the same rows with the same draws"),
    OVERVIEW: ("megatron.evaluation.overview", "perplexity, accuracy, texts and speed; meant where no verb is given"),
    "components": ("megatron.likelihood.verbs.components", "loss by category and by seen tokens, and what K categories cost"),
    "instruct": ("megatron.evaluation.instruct", "loss on held-out responses, and answers beside their references"),
    "vectors": ("megatron.evaluation.vectors", "what a network makes of the vectors that it is told"),
    "tasks": ("megatron.evaluation.tasks", "multiple-choice files, and tasks of lm-eval"),
}


def parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="evaluate.py", allow_abbrev=False, description=__doc__, formatter_class=plain)
    verbs = top.add_subparsers(dest="verb", required=True)
    for name, (module, help) in VERBS.items():
        verb = import_module(module)
        one = verbs.add_parser(name, allow_abbrev=False, help=help, description=verb.__doc__, formatter_class=plain)
        verb.arguments(one)
        one.set_defaults(command=verb.command)
    return top


@exits
def main(argv: list[str] | None = None) -> int | None:
    words = sys.argv[1:] if argv is None else argv
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        words = [OVERVIEW, *words]
    given = parser().parse_args(words)
    return given.command(given)


if __name__ == "__main__":
    sys.exit(main())
