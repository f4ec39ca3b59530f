"""From compute budgets to a list of runs: exact N, tokens, steps and FLOPs, flags that parse, and what it all takes.

  plan --flops 6e18,1e19,3e19,1e20 --sizes 57M,117M,217M,425M,724M --objectives mdm      the published isoFLOP grid
  plan --flops 1e19 --sizes auto --schedule wsd --mfu 0.4 --peak 989e12 --gpus 8         one trunk for each size
  plan --kind data-value --flops 1e19 --train-data PREFIX                                1 to 500 epochs at one budget
  plan --kind critical-compute --flops 1e18,1e19 --unique-tokens 25M,100M --train-data PREFIX
  plan --flops 1e19 --sizes 117M --vary weight-decay=0.1,0.3,1 --vary hidden-dropout=0,0.1     a run for each point of the axes
Flags of pretrain_*.py behind -- go to every run:   plan --flops 1e18 -- --eval-iters 50 --zero-stage 1
In them {run}, {objective} and {program} stand for the run's own:   -- --tensorboard-dir logs/{run}
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megatron.budget import GPT2_VOCAB, find_size, positive, spell
from megatron.catalogue import DEFAULTS, OBJECTIVES
from megatron.flags import ConfigError, parse_count
from megatron.scaling.plan import axes
from megatron.scaling.plan.axes import read_axis
from megatron.scaling.plan.cost import Rates, Speed, speed_of_peak, speed_of_points
from megatron.scaling.plan.entries import Plan, joined, load_plan, make_plan, save_csv, save_plan, short_of_asked
from megatron.scaling.plan.flags import SCALES, WEIGHT_DECAY
from megatron.scaling.plan.grid import CHOSEN, FIELDS, KINDS, SEED, Request, read_unique
from megatron.scaling.plan.hyperparameters import BATCH_SIZES, LEARNING_RATES
from megatron.scaling.plan.probe import probe_plan
from megatron.scaling.plan.sizes import KNOWN
from megatron.scaling.verbs import Answer, json_argument

VOCABULARIES = {"ByteTokenizer": 257, "GPT2BPETokenizer": GPT2_VOCAB}
GIB = 2**30
CHECKPOINT_BYTES = 12  # a parameter: weight and two moments in fp32


def listed(read: Callable) -> Callable:
    """A type for argparse: values with commas between them."""

    def read_all(text: str) -> tuple:
        return tuple(read(word) for word in text.split(",") if word)

    read_all.__name__ = f"list of {read.__name__.removeprefix('_').replace('_', ' ')}s"
    return read_all


def whole_number(text: str) -> int:
    number = parse_count(text)
    if number != int(number) or number < 1:
        raise ValueError
    return int(number)


def seed_number(text: str) -> int:
    if not text.isdigit():
        raise ValueError
    return int(text)


def objective(text: str) -> str:
    if text not in OBJECTIVES:
        raise argparse.ArgumentTypeError(f"{text!r} is no objective: there are {', '.join(OBJECTIVES)}")
    return text


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of plan."""
    grid_arguments(parser.add_argument_group("the grid"))
    run_arguments(parser.add_argument_group("every run"))
    cost_arguments(parser.add_argument_group("the forecast"))
    parser.add_argument("--out", default="plan.json", metavar="FILE", help="the plan [plan.json]")
    parser.add_argument("--append", action="store_true", help="the runs join those of the plan that --out already holds")
    parser.add_argument("--csv", metavar="FILE", help="also a table of it")
    json_argument(parser)
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="of pretrain_*.py, for every run")


def grid_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--kind", choices=KINDS, default="chinchilla", help="budgets x sizes; epochs; or C x U for both objectives [chinchilla]")
    add("--flops", type=listed(positive(float)), default=(), metavar="C,...", help="budgets: D = C / (6 N) tokens")
    add("--tokens", type=listed(whole_number), default=(), metavar="D,...", help="or: training tokens")
    add(
        "--unique-tokens",
        metavar="U,...",
        help="the first U tokens of the data: 5e5; 25M,100M (scale gpu: published subsets); full: as many as a budget trains on",
    )
    add(
        "--epochs",
        type=listed(whole_number),
        default=(),
        metavar="E,...",
        help="passes: with --flops over D / E tokens, with --unique-tokens over those [data-value: 1 to 500]",
    )
    add("--objectives", type=listed(objective), default=DEFAULTS, metavar=",".join(OBJECTIVES), help=f"[{','.join(DEFAULTS)}]")
    add(
        "--sizes",
        nargs="+",
        default=["auto"],
        metavar="SIZE",
        help="names of utils/model_params.sh (57M,117M), a shape as d_model,ffw,kv,heads,layers, or auto: around N* [auto]",
    )
    add("--optimum", default="published", metavar="RULE", help=f"what auto expects: {KNOWN} [published]")
    add("--num-sizes", type=positive(int), metavar="N", help="of auto [5; data-value 1]")
    add("--span", type=positive(float), default=3.0, metavar="X", help="of auto: from N* / X to N* x X [3]")
    add("--params", choices=["published", "total"], help="N of the budgets [published; scale cpu: total]")
    add("--seeds", type=listed(seed_number), metavar="S,...", help=f"[{SEED}]")
    add(
        "--vary",
        action="append",
        default=[],
        metavar="FLAG=X,Y",
        help="an axis over any flag of pretrain_*.py, as weight-decay=0,0.1,0.3; again for another axis: their full grid",
    )
    add("--sample", type=positive(int), metavar="N", help="N points of the axes' grid, a scrambled Latin hypercube [all]")
    add("--sample-seed", type=seed_number, default=0, metavar="S", help="which points those are [0]")
    halving_argument(add)


def halving_argument(add: Callable) -> None:
    add(
        "--halving",
        type=positive(int),
        metavar="X",
        help="successive halving: all settings at the shortest length, of these the best 1 / X at the next, and so on",
    )


def run_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--scale", choices=SCALES, default="gpu", help="the recipes' settings: gpu, as published; cpu, for a laptop [gpu]")
    form = "fixed:X|grid:X,Y|rule:NAME"
    add("--lr", metavar=form, help=f"peak rate [the scale's]; {described(LEARNING_RATES)}; FILE: a hyper.json of the verb hyper")
    add("--batch-size", metavar=form, help=f"samples a step [the scale's]; {described(BATCH_SIZES)}; FILE: a hyper.json")
    add("--weight-decay", metavar=form.replace("NAME", "FILE"), help=f"[fixed:{WEIGHT_DECAY:g}]; FILE: a hyper.json")
    add(
        "--schedule",
        choices=["cosine", "wsd"],
        default="cosine",
        help="wsd: runs that differ in length alone share a trunk at constant rate, and each has a cooldown [cosine]",
    )
    add("--decay-share", type=float, default=0.2, metavar="X", help="wsd: the cooldown's share of a run [0.2]")
    add("--seq-length", type=positive(int), metavar="N", help="tokens a sample [the scale's]")
    add(
        "--train-data",
        nargs="+",
        metavar="WORD",
        help="PREFIX, FILE.txt, or WEIGHT [START:END] PREFIX ...; {subset} in a "
        "prefix stands for the prepared subset of that many unique tokens",
    )
    add("--valid-data", nargs="+", metavar="WORD", help="likewise")
    add("--tokenizer-type", metavar="NAME", help="[GPT2BPETokenizer; scale cpu: ByteTokenizer]")
    for name in ("--tokenizer-model", "--vocab-file", "--merge-file"):
        add(name, metavar="FILE", help="as in pretrain_*.py")
    add("--vocab-size", type=positive(int), metavar="N", help="ids of a tokenizer that is neither GPT-2's nor bytes")
    add(
        "--finetune",
        metavar="NAME",
        help="begin with the weights of this finished run, of the plan or of --runs-dir, as {objective}_base_{size}",
    )
    add("--need-data", action="store_true", help="refuse to plan while a corpus is missing [say it below the table]")
    add(
        "--name",
        metavar="WORD",
        help="stands in the runs' names instead of the kind; or the whole of them, with " + ", ".join(f"{{{x}}}" for x in FIELDS),
    )


def cost_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--tokens-per-second", metavar="X|SIZE=X,...", help="of all GPUs: for every size, or of some: a power law through them")
    add("--mfu", type=positive(float), metavar="X", help="share of --peak, as 0.4")
    add("--peak", type=positive(float), metavar="X", help="FLOP/s of one GPU, as 989e12")
    add("--probe", action="store_true", help="measure the speed here: a few steps of the smallest and the largest run")
    add("--probe-steps", type=positive(int), default=20, metavar="N", help="[20]")
    add("--probe-timeout", type=positive(float), default=1800.0, metavar="S", help="seconds for each probed run [1800]")
    add("--gpus", type=positive(int), default=1, metavar="N", help="that one run has [1]")
    add("--price", type=positive(float), metavar="X", help="of a GPU-hour, in your currency")
    add("--watts", type=positive(float), metavar="X", help="of a GPU and its share of the machine")


def described(rules: dict[str, tuple[Callable, str]]) -> str:
    return "; ".join(f"{name}: {text}" for name, (_, text) in rules.items())


def command(args: argparse.Namespace) -> Answer:
    """Plan, measure where asked, write plan.json and print the table. Raises ConfigError with every mistake."""
    request, rates = request_of(args), Rates(gpus=args.gpus, price=args.price, watts=args.watts)
    plan = make_plan(request, stated_speeds(args, request), rates)
    measured: list[dict] = []
    if args.probe:
        speeds, measured = probe_plan(plan, args.probe_steps, args.gpus, args.probe_timeout)
        plan = make_plan(request, speeds, rates)
    if args.append and Path(args.out).exists():
        plan = joined(load_plan(args.out), plan)
    save_plan(plan, args.out)
    if args.csv:
        save_csv(plan, args.csv)
    written = [args.out] + [args.csv] * bool(args.csv)
    show(plan, measured, written)
    return Answer(asdict(plan) | {"totals": plan.totals(), "measured": measured, "written": written})


def request_of(args: argparse.Namespace) -> Request:
    """Raises ConfigError."""
    same = (
        "sample",
        "sample_seed",
        "halving",
        "need_data",
        "finetune",
        "kind",
        "scale",
        "objectives",
        "flops",
        "tokens",
        "epochs",
        "optimum",
        "num_sizes",
        "span",
        "params",
        "seeds",
        "lr",
        "batch_size",
        "weight_decay",
        "schedule",
        "decay_share",
        "seq_length",
        "name",
    )
    mistakes: list[str] = []
    unique = _read_all(lambda word: read_unique(word, args.scale), filter(None, (args.unique_tokens or "").split(",")), mistakes)
    vary = _read_all(read_axis, args.vary, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    tokenizer, vocab_size = tokenizer_of(args)
    return Request(
        **{name: getattr(args, name) for name in same},
        unique_tokens=unique,
        vary=vary,
        sizes=sizes_of(args.sizes),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        flags=tuple(args.flags),
        train_data=tuple(args.train_data or ()) or None,
        valid_data=tuple(args.valid_data or ()) or None,
    )


def _read_all(read: Callable, words: Iterable[str], mistakes: list[str]) -> tuple:
    """What `read` makes of each word; the sentences of its ValueErrors go to `mistakes`."""
    found = []
    for word in words:
        try:
            found.append(read(word))
        except ValueError as error:
            mistakes.append(str(error))
    return tuple(found)


def sizes_of(words: list[str]) -> tuple[str, ...]:
    """`57M,117M 640,2560,64,10,11` -> three sizes: five numbers are one."""
    return tuple(
        size
        for word in words
        for size in ([word] if all(part.isdigit() for part in word.split(",")) else word.split(","))
        if size
    )


def tokenizer_of(args: argparse.Namespace) -> tuple[tuple[str, ...] | None, int | None]:
    """(its flags, its size); None for the scale's. Raises ConfigError."""
    if not args.tokenizer_type:
        return None, args.vocab_size
    known = VOCABULARIES.get(args.tokenizer_type)
    if not (known or args.vocab_size):
        raise ConfigError([f"--tokenizer-type {args.tokenizer_type} needs --vocab-size: sizes are counted before it is opened"])
    named = {
        "--tokenizer-type": args.tokenizer_type,
        "--tokenizer-model": args.tokenizer_model,
        "--vocab-file": args.vocab_file,
        "--merge-file": args.merge_file,
        "--vocab-size": args.vocab_size,
    }
    return tuple(str(word) for flag, value in named.items() if value for word in (flag, value)), args.vocab_size or known


def stated_speeds(args: argparse.Namespace, request: Request) -> dict[str, Speed]:
    """Of each objective, by --mfu or --tokens-per-second. Raises ConfigError."""
    if sum(map(bool, (args.mfu, args.tokens_per_second, args.probe))) > 1:
        raise ConfigError(["--mfu, --tokens-per-second and --probe exclude each other: give one"])
    if bool(args.mfu) != bool(args.peak):
        raise ConfigError(["--mfu and --peak belong together: give both, or neither"])
    speed = speed_of_peak(args.mfu, args.peak, args.gpus) if args.mfu else None
    if args.tokens_per_second:
        speed = speed_of_rates(args.tokens_per_second, request)
    return dict.fromkeys(request.objectives, speed) if speed else {}


def speed_of_rates(text: str, request: Request) -> Speed:
    """`450000`, or `57M=900000,724M=110000`. Raises ConfigError."""
    settled, points = request.settled(), []
    try:
        if "=" not in text:
            return Speed(basis=f"{text} tokens/s, stated for every size", scale=1 / positive(float)(text))
        for size, rate in (part.split("=") for part in text.split(",")):
            shape = find_size(size, settled.vocab_size)[1]
            points.append((shape.flops_per_token(settled.seq_length), 1 / positive(float)(rate)))
    except ValueError as error:
        raise ConfigError([f"--tokens-per-second {text}: expected X or SIZE=X,... ({error})"]) from None
    return speed_of_points(points, f"stated: {text} tokens/s")


# -- the table

COLUMNS: dict[str, Callable[[dict], str]] = {
    "run": lambda run: run["name"],
    "N": lambda run: f"{run['params']:,}",
    "tokens": lambda run: f"{run['tokens']:.4g}",
    "epochs": lambda run: f"{run['epochs']:.4g}",
    "steps": lambda run: f"{run['steps']:,}",
    "6ND": lambda run: f"{run['flops_6nd']:.4g}",
    "exact C": lambda run: f"{run['flops_exact']:.4g}",
    "lr": lambda run: f"{run['lr']:g}",
    "batch": lambda run: str(run["global_batch_size"]),
    "weight_decay": lambda run: axes.spell(run.get("weight_decay")),
    "hours": lambda run: rounded(run["forecast"]["hours"]),
    "GPU-hours": lambda run: rounded(run["forecast"]["gpu_hours"]),
    "cost": lambda run: rounded(run["forecast"]["cost"]),
    "kWh": lambda run: rounded(run["forecast"]["energy_kwh"]),
    "GiB": lambda run: f"{run['forecast']['memory_bytes'] / GIB:.3g}",
}


def rounded(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def show(plan: Plan, measured: list[dict], written: list[str]) -> None:
    """The runs, their sums, and where the forecast comes from."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    table = Table(show_footer=True, box=SIMPLE_HEAD)
    totals = plan.totals()
    sums = {
        "run": f"{len(plan.runs)} runs",
        "tokens": spell(float(f"{totals['tokens']:.4g}")),
        "hours": rounded(totals["hours"]),
        "GPU-hours": rounded(totals["gpu_hours"]),
        "cost": rounded(totals["cost"]),
        "kWh": rounded(totals["energy_kwh"]),
    }
    columns = {name: [cell(run) for run in plan.runs] for name, cell in COLUMNS.items()}
    for name in (name for name in plan.varied if name not in CHOSEN):
        columns[name] = [axes.spell(run["varied"].get(name)) for run in plan.runs]
    columns = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
    for name in columns:
        table.add_column(name, justify="left" if name == "run" else "right", footer=sums.get(name, ""), no_wrap=True)
    for row in zip(*columns.values()):
        table.add_row(*row)
    console.print(table)
    for line in lines_below(plan, measured):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True, highlight=False, markup=False)


def lines_below(plan: Plan, measured: list[dict]) -> list[str]:
    """What the numbers rest on."""
    lines = plan.notes + short_of_asked(plan.runs)
    if plan.halving:
        steps = ", ".join(map(str, plan.halving[0]["keep"]))
        lines.append(
            f"successive halving: of the settings {steps} run at the lengths one after another; sums are of what will run"
        )
    if branches := [run for run in plan.runs if run["trunk"]]:
        lines.append(f"{len(branches)} cooldowns begin at checkpoints of trunks: hours and sums are of what each run does itself")
        kept = math.fsum(run.get("checkpoints", 0) * CHECKPOINT_BYTES * run["params"] for run in plan.runs)
        lines.append(
            f"trunks keep {sum(run.get('checkpoints', 0) for run in plan.runs)} checkpoints, {kept / GIB:.3g} GiB, "
            "until their cooldowns have begun"
        )
    for one in measured:
        lines.append(
            f"measured: {one['objective']} {one['size']}: {one['tokens_per_second']:,.0f} tokens/s, "
            f"{one['startup']:.1f} s to start, {one['memory_bytes'] / GIB:.2f} GiB"
        )
    bases = dict.fromkeys(run["forecast"]["basis"] for run in plan.runs)
    if None in bases:
        lines.append("hours, cost and energy need a speed: give --probe, --mfu with --peak, or --tokens-per-second")
    else:
        lines.append(f"hours: {'; '.join(bases)}; validation included; cost and energy by --price and --watts")
    return [*lines, f"GiB: {plan.runs[0]['forecast']['memory_basis']}"]
