"""Execute a plan: every run that is not finished, trunks before their branches. The same command goes on where it stopped.

A run lives in RUNS_DIR/NAME; with a result.json there it is finished. One that was interrupted goes on from its last checkpoint;
one that failed is reported, the rest goes on, and it is left alone from then on unless --retry-failed is given.
SIGTERM, SIGINT and SIGUSR1 save and stop (exit code 85), a run's kill switch (RUNS_DIR/NAME/kill) too (86); 0: all is done;
1: a run failed, could not start, or runs in another process; 75: nothing failed, and a run that lost a process can go on.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from megatron.flags import ConfigError
from megatron.scaling.plan.commands import plan_of_commands
from megatron.scaling.plan.entries import Plan, load_plan, save_plan
from megatron.scaling.run import slurm_array
from megatron.scaling.run.execute import (
    HOW,
    Start,
    choose,
    choose_start,
    command_line,
    evaluate,
    evaluation_line,
    on_cpu,
    pending,
    run_plan,
    tell,
    those_that_stay,
)
from megatron.scaling.run.halving import decide
from megatron.scaling.verbs import Answer, json_argument
from megatron.scaling.verbs.status import standing


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.json of the verb plan")
    parser.add_argument(
        "--commands", type=Path, metavar="LIST", help="first write PLAN from a file with a command a line, as the recipes do"
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs [runs]")
    parser.add_argument(
        "--how",
        choices=HOW,
        default="auto",
        help="in-process: small runs in few processes; one-by-one: a process each; torchrun: each over --nproc "
        "ranks; slurm: submit job arrays; auto: in-process on a CPU, torchrun on several GPUs",
    )
    parser.add_argument("--processes", type=_count, metavar="N", help="in-process: runs at a time [one a core]")
    parser.add_argument("--nproc", type=_count, metavar="N", help="torchrun, slurm: ranks a node [its GPUs]")
    parser.add_argument("--nodes", type=_count, default=1, metavar="N", help="torchrun in a Slurm job, slurm: nodes a run [1]")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", metavar="NAME", help="these runs alone")
    which.add_argument("--only-index", type=int, metavar="I", help="the run at this place of the plan, from 0")
    parser.add_argument("--retry-failed", action="store_true", help="start runs that failed before once more")
    parser.add_argument("--evaluate", action="store_true", help="score each run's last checkpoint instead, into NAME_eval")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="--evaluate: score this one")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, or the Slurm scripts, and stop")
    json_argument(parser)
    slurm = parser.add_argument_group("--how slurm")
    slurm.add_argument("--throttle", type=_count, metavar="K", help="at most so many tasks at a time")
    slurm.add_argument(
        "--sbatch",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="lines of the header, as partition=gpu time=24:00:00 cpus-per-task=8",
    )


def command(args: argparse.Namespace) -> Answer:
    """Execute: where the chosen runs stand then, as status has it. Dry or to Slurm: {commands}, {scripts} or {jobs}."""
    if args.commands:
        save_plan(plan_of_commands(args.commands), args.plan)
    plan = load_plan(args.plan, needed=("entry", "flags"))
    only = args.only if args.only_index is None else [name_at(plan, args.only_index)]
    start = choose_start(plan, args.how, args.processes, args.nproc, args.nodes)
    if args.evaluate:
        return evaluated(plan, args, only, start)
    if args.checkpoint:
        raise ConfigError(["--checkpoint is what --evaluate scores: give both, or neither"])
    if args.how == "slurm":
        return submit(plan, args, only, start)
    if args.dry_run:
        todo = startable(plan, args, only)
        return print_commands([command_line(run, args.runs_dir) for run in todo], args.json)
    code = run_plan(plan, args.runs_dir, start, only=only, retry_failed=args.retry_failed)
    return Answer(standing(plan, args.runs_dir, only)[2], code)


def startable(plan: Plan, args: argparse.Namespace, only: list[str] | None) -> list[dict]:
    """The runs that are to do, but for those that a successive halving has not settled yet, which it says."""
    todo, _ = pending(choose(plan, only), args.runs_dir, args.retry_failed)
    decided = decide(plan, args.runs_dir, {run["name"] for run in todo})
    staying = those_that_stay(todo, decided)
    found = [run for run in staying if run["name"] not in decided.waiting]
    if len(found) < len(staying):
        tell(f"{len(staying) - len(found)} runs wait for shorter ones: give the same command again when these are done")
    return found


def evaluated(plan: Plan, args: argparse.Namespace, only: list[str] | None, start: Start) -> Answer:
    """Score runs: {commands}, with the exit code of one that failed."""
    if args.how == "slurm":
        raise ConfigError(["--evaluate scores here: give another --how than slurm, within a job of your own"])
    commands = [evaluation_line(run, args.runs_dir, args.checkpoint) for run in choose(plan, only)]
    if args.dry_run:
        return print_commands(commands, args.json)
    return Answer({"commands": commands}, evaluate(plan, args.runs_dir, start, only=only, checkpoint=args.checkpoint))


def print_commands(commands: list[list[str]], as_json: bool) -> Answer:
    if not as_json:
        print("\n".join(map(shlex.join, commands)))
    return Answer({"commands": commands})


def name_at(plan: Plan, index: int) -> str:
    if not 0 <= index < len(plan.runs):
        raise ConfigError([f"--only-index {index}: the plan has runs 0 to {len(plan.runs) - 1}"])
    return plan.runs[index]["name"]


def submit(plan: Plan, args: argparse.Namespace, only: list[str] | None, start: Start) -> Answer:
    """Print the scripts, or the numbers of the jobs."""
    places = {run["name"]: index for index, run in enumerate(plan.runs)}
    todo = startable(plan, args, only)
    cpu = all(on_cpu(run["flags"]) for run in plan.runs)
    scripts = [
        slurm_array.array_script(
            args.plan,
            args.runs_dir,
            [places[run["name"]] for run in level],
            start,
            gpus=0 if cpu else start.nproc,
            at_a_time=args.throttle,
            sbatch=["--" + word.lstrip("-") for word in args.sbatch],
            retry_failed=args.retry_failed,
        )
        for level in slurm_array.levels(todo)
    ]
    if args.dry_run:
        print("\n".join(scripts), end="")
        return Answer({"scripts": scripts})
    jobs = slurm_array.submit(scripts, args.runs_dir, args.plan.stem)
    for job in jobs:
        print(job)
    return Answer({"jobs": jobs})


def _count(text: str) -> int:
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"found {text}, expected a whole number above 0")
    return int(text)
