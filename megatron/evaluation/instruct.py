"""How runs follow instructions: loss on held-out responses, and the answers that they write, side by side.

    python tools/evaluate.py instruct RUN... --format 'Answer: .*\\.'
    python tools/evaluate.py instruct BASE TUNED --data data/alpaca_valid --pairs 64

The loss is an exact NLL or an upper bound on one, as said beside it. Answers take the likeliest token (masked diffusion: at
the surest place) unless a sampler or a temperature is given; they are compared with the references of the same prompt: ROUGE-L,
token F1 and exact match as SQuAD defines them, and format: the answer ends by itself, says something, begins no other
`### ...:` turn and, with --format, matches it whole. Errors are standard errors; runs are compared with the
first, prompt by prompt.
Writes instruct.json, with every answer, and instruct.png.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.flags import ConfigError
from megatron.rundir.names import CHECKPOINT
from megatron.standard_errors import half_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "instruct.json"
TITLES = {"rouge_l": "ROUGE-L", "token_f1": "token F1", "exact_match": "exact match", "format": "format"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="runs' folders, or checkpoints of them")
    add("--checkpoint", help="of each run: a step, best or newest [the last of a run that is finished]")
    add("--data", metavar="PREFIX", help="pairs of tools/prepare_instruct.py, for runs of any data [each run's validation]")
    add("--pairs", type=int, help="pairs to score and to answer [as many as validation scores]")
    add("--sampler", help="of the runs whose objective it serves [the likeliest token, at the surest place]")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token [0]")
    add("--steps", type=int, help="forward passes of an answer, where a sampler reads that [a token a step]")
    add("--block-length", type=int, help="fill blocks of so many tokens one after the other, likewise [one block]")
    add("--max-new-tokens", type=int, help="of an answer, at most [the rest of the row]")
    add("--format", metavar="REGEX", help="what a whole answer must match to comply [any text]")
    add("--seed", type=int, default=0, help="of the samplers [0]")
    add("--batch-size", type=int, default=32, help="answers at once [32]")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    add("--dtype", choices=("fp64", "fp32", "bf16"), help="what the models compute in [each run's]")
    add("--tensor-model-parallel-size", type=int, default=1, help="processes that share each layer [1]")
    add("--pipeline-model-parallel-size", type=int, default=1, help="processes that share the layers [1]")
    add("--out", type=Path, help=f"folder for {FILE} and instruct.png [the first run's]")
    add("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")


def command(given: argparse.Namespace) -> None:
    """Measure, print, write."""
    shape = checked(given)
    from megatron.errors import Mismatch
    from megatron.evaluation.following import Asking, differences, follow, on_pairs, refuse_idle
    from megatron.files import staged
    from megatron.scaling.show.figures.style import encode
    from megatron.training import open_run

    said = ("sampler", "temperature", "steps", "block_length", "max_new_tokens", "seed", "batch_size")
    asking = Asking(**{name: getattr(given, name) for name in said}, shape=shape)
    how = {
        name: getattr(given, name) for name in ("device", "dtype", "tensor_model_parallel_size", "pipeline_model_parallel_size")
    }
    opened = [open_run(run, given.checkpoint, say=lambda line: print(line, file=sys.stderr), **how) for run in given.runs]
    opened = [on_pairs(trained, given.data) for trained in opened]
    refuse_idle(asking, [trained.cfg.objective.objective for trained in opened])
    found, prompts = [], None
    for run, trained in zip(given.runs, opened):
        asked, one = follow(trained, asking, given.pairs)
        if prompts is not None and [(p.text, p.references) for p in asked] != [(p.text, p.references) for p in prompts]:
            raise Mismatch(
                f"{run} is asked other prompts than {given.runs[0]}: give --data PREFIX, runs of one --eval-seed and --seq-length"
            )
        prompts = asked
        found.append({"run": str(run), **one})
    differences(found)
    assert prompts is not None  # argparse wants a run
    table = {
        "prompts": [{"prompt": one.text, "references": one.references} for one in prompts],
        "format": given.format,
        "runs": found,
    }
    if opened[0].engine.mesh.chief:
        first = given.runs[0].parent if CHECKPOINT.fullmatch(given.runs[0].name) else given.runs[0]
        with staged(given.out or first) as stage:
            (stage / FILE).write_text(json.dumps(table, indent=1))
            (stage / "instruct.png").write_bytes(encode(draw(table), "png"))
        print(json.dumps(table, indent=1) if given.json else describe(table))


def checked(given: argparse.Namespace) -> re.Pattern | None:
    """The expression of --format. Raises ConfigError with every value that cannot be."""
    from megatron.sampling.table import SAMPLERS

    counts = ("pairs", "steps", "block_length", "max_new_tokens", "batch_size")
    mistakes = [
        f"--{name.replace('_', '-')} {getattr(given, name)}: expected 1 or more"
        for name in counts
        if getattr(given, name) is not None and getattr(given, name) < 1
    ]
    if given.sampler and given.sampler not in SAMPLERS:
        mistakes.append(f"--sampler {given.sampler}: expected one of {', '.join(SAMPLERS)}")
    if not 0 <= given.temperature < float("inf"):
        mistakes.append(f"--temperature {given.temperature}: expected 0 or more")
    if len(set(given.runs)) < len(given.runs):
        mistakes.append("a run stands there twice: give each once")
    try:
        shape = re.compile(given.format, re.DOTALL) if given.format else None
    except re.error as error:
        mistakes.append(f"--format {given.format}: is no regular expression ({error})")
    if mistakes:
        raise ConfigError(mistakes)
    return shape


def describe(table: dict) -> str:
    """A line a run, then the paired differences."""
    runs, wide = table["runs"], max(len(run["run"]) for run in table["runs"])
    lines = [
        f"{len(table['prompts'])} prompts, {runs[0]['pairs']} pairs; format: ends by itself, one turn"
        + (f", matches {table['format']}" if table["format"] else ""),
        f"{'run':{wide}} {'nats/token of responses':>24} {'bits/byte':>14}  "
        + "  ".join(f"{title:>13}" for title in TITLES.values())
        + f"  {'tokens':>7} {'passes':>7}  sampler",
    ]
    for run in runs:
        cells = "  ".join(with_error(run[name], 3) for name in TITLES)
        loss = f"{with_error(run['loss'], 4)} {run['bound']}"
        sampler = " ".join([run["sampler"]["name"], *(f"{k} {v:g}" for k, v in run["sampler"].items() if k != "name")])
        costs = f"{run['new_tokens']['mean']:7.1f} {run['passes']:7.1f}"
        lines.append(f"{run['run']:{wide}} {loss:>24} {with_error(run['bits_per_byte'], 3):>14}  {cells}  {costs}  {sampler}")
    for run in runs[1:]:
        cells = ", ".join(f"{TITLES[name]} {with_error(run['minus_first'][name], 3, '+')}" for name in TITLES)
        lines.append(f"{run['run']} minus {runs[0]['run']}: {cells}")
    return "\n".join(lines)


def with_error(value: dict, digits: int, sign: str = "") -> str:
    if value["mean"] is None:
        return "-"
    error = "-" if value["se"] is None else f"{value['se']:.{digits}f}"
    return f"{value['mean']:{sign}.{digits}f} +- {error}"


def draw(table: dict) -> Figure:
    """The loss on the responses and the measures of the answers, a colour a run; bars are 95 % intervals."""
    from megatron.scaling.show.figures.style import explain, frame, new_figure, styles_of

    figure, (left, right) = new_figure(2)
    frame(left, "Loss on the responses, given their prompts", "nats/token", "")
    frame(right, "Answers beside the references", "", "mean over prompts")
    looks, names = styles_of(table["runs"]), list(TITLES)
    handles = []
    for place, (run, look) in enumerate(zip(table["runs"], looks)):
        look = {**look, "linestyle": "none", "markersize": 9}
        label = f"{Path(run['run']).name} ({run['objective']}, {run['bound']})"
        left.errorbar([run["loss"]["mean"]], [place], xerr=[width_of(run["loss"])], capsize=4, **look)
        x = [number + 0.12 * (place - (len(looks) - 1) / 2) for number in range(len(names))]
        y = [run[name]["mean"] for name in names]
        handles.append(right.errorbar(x, y, yerr=[width_of(run[name]) for name in names], capsize=4, label=label, **look))
    left.set_yticks(range(len(looks)), [Path(run["run"]).name for run in table["runs"]])
    left.set_ylim(len(looks) - 0.5, -0.5)
    right.set_xticks(range(len(names)), list(TITLES.values()))
    right.set_ylim(-0.05, 1.05)
    figure.subplots_adjust(left=0.14, wspace=0.2)
    explain(figure, handles, f"{len(table['prompts'])} held-out prompts; bars: 95 %; a bound lies above its NLL", 3)
    return figure


def width_of(value: dict) -> float:
    return 0.0 if value["se"] is None else half_width(value["se"], value["se_df"])
