"""Tasks: which answer a model finds likeliest, what it writes, how likely it finds whole documents.

    python tools/evaluate.py tasks RUN --task_list quiz.jsonl                              questions of your own, no library
    python tools/evaluate.py tasks RUN --task_list my_task.yaml --num_fewshot 2            a task file of lm-eval, offline
    python tools/evaluate.py tasks RUN --task_list arc_easy,piqa                           lm-eval's own, which it downloads

An autoregressive run has exact likelihoods. Masked diffusion has a bound (--eval_method mc: draws of hidden places, the same for
all answers of a question; short answers are enumerated) or the chain rule from left to right (ar). Whether an answer is also
what the model would write is asked by a surest-first decoding, unless --only_mc_nll. Writes tasks.json.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from megatron.catalogue import need_likelihood, need_mask
from megatron.flags import ConfigError
from megatron.rundir.names import CHECKPOINT

FILE = "tasks.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb; those of the reference's evaluators keep their spelling."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--checkpoint", help="a step, best, newest, or a path [the last of a run that is finished]")
    parser.add_argument("--task_list", required=True, help="names, .yaml or .jsonl files, with commas between")
    parser.add_argument("--include_path", type=Path, help="folder of task files; with it only local tasks are known")
    parser.add_argument("--num_fewshot", type=int, help="examples before each question [the task's own]")
    parser.add_argument("--limit", type=int, help="documents of each task [all]")
    parser.add_argument("--eval_method", choices=("mc", "ar"), help="mdm: a bound by draws, or the chain rule [mc]")
    parser.add_argument("--num-mc", type=int, help="mdm: draws of an answer [32]")
    parser.add_argument(
        "--sampling_eps", type=float, help="mdm: above 0, places hidden one by one with p = (1 - eps) t + eps [0]"
    )
    parser.add_argument("--nll-tolerance", type=float, help="mdm: draw on until no answer's standard error is larger, nats")
    parser.add_argument("--only_mc_nll", action="store_true", help="mdm: likelihoods alone, nothing is decoded")
    parser.add_argument("--only_generate", action="store_true", help="mdm: decoding alone, all likelihoods are 0")
    parser.add_argument("--seed", type=int, default=4321, help="names the draws [4321]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    parser.add_argument("--dtype", choices=("fp64", "fp32", "bf16"), help="what the model computes in [the run's]")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=1, help="processes that share each layer [1]")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1, help="processes that share the layers [1]")
    parser.add_argument("--out", type=Path, help=f"folder for {FILE} [the run's]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")


def check(given: argparse.Namespace, masked: bool) -> None:
    """Raises ConfigError for a value that cannot be, or a flag that would do nothing."""
    for name, least in (("num_fewshot", 0), ("limit", 1), ("num_mc", 1)):
        if getattr(given, name) is not None and getattr(given, name) < least:
            raise ConfigError([f"--{name.replace('num_mc', 'num-mc')} {getattr(given, name)}: expected {least} or more"])
    if given.sampling_eps is not None and not 0 <= given.sampling_eps < 1:
        raise ConfigError([f"--sampling_eps {given.sampling_eps}: expected 0 or more, and below 1"])
    if given.nll_tolerance is not None and not 0 < given.nll_tolerance < math.inf:
        raise ConfigError([f"--nll-tolerance {given.nll_tolerance}: expected a number above 0"])
    draws = ("num_mc", "sampling_eps", "nll_tolerance")
    asked = [
        name for name in ("eval_method", *draws, "only_mc_nll", "only_generate") if getattr(given, name) not in (None, False)
    ]
    if asked and not masked:
        raise ConfigError(
            [f"{spelled(asked[0])} acts on masked diffusion: the likelihoods of an autoregressive run are exact, leave it out"]
        )
    idle = [name for name in draws if name in asked and (given.eval_method == "ar" or given.only_generate)]
    if idle:
        by = "--only_generate" if given.only_generate else "--eval_method ar"
        raise ConfigError([f"{spelled(idle[0])} acts on draws, and {by} draws nothing: leave it out"])
    if given.only_mc_nll and (given.only_generate or given.eval_method == "ar"):
        raise ConfigError(["--only_mc_nll goes with neither --only_generate nor --eval_method ar: give one of them"])
    if given.only_generate and given.eval_method:
        raise ConfigError([f"--eval_method {given.eval_method} would do nothing with --only_generate: leave it out"])


def spelled(name: str) -> str:
    return "--" + (name.replace("_", "-") if name in ("num_mc", "nll_tolerance") else name)


def command(given: argparse.Namespace) -> None:
    """Run the tasks, print, write."""
    check_list(given)
    from megatron.evaluation.harness import name_in, run_tasks
    from megatron.files import staged
    from megatron.tasks.measure import encoded, measure
    from megatron.tasks.questions import read_questions
    from megatron.training import open_run

    words = given.task_list.split(",")
    files = {Path(word).stem: read_questions(Path(word))[: given.limit] for word in words if word.endswith(".jsonl")}
    yamls = [Path(word) for word in words if word.endswith((".yaml", ".yml"))]
    names = [name_in(Path(word)) if Path(word) in yamls else word for word in words if not word.endswith(".jsonl")]
    trained = open_run(
        given.run,
        given.checkpoint,
        device=given.device,
        dtype=given.dtype,
        say=lambda line: None,
        tensor_model_parallel_size=given.tensor_model_parallel_size,
        pipeline_model_parallel_size=given.pipeline_model_parallel_size,
    )
    need_likelihood(trained.cfg.objective.objective, "a task")
    need_mask(trained.cfg.objective.objective, "a task")
    subject = subject_of(trained, given)
    found = {
        name: measure(subject.engine, subject.source, encoded(name, some, subject.source), subject.method)
        for name, some in files.items()
    }
    folders = [*([given.include_path] if given.include_path else []), *dict.fromkeys(path.resolve().parent for path in yamls)]
    harness = run_tasks(subject, names, folders, given.num_fewshot, given.limit) if names else {}
    said = record(trained, given, subject, found, harness)
    if trained.engine.mesh.chief:
        with staged(given.out or (given.run.parent if CHECKPOINT.fullmatch(given.run.name) else given.run)) as stage:
            (stage / FILE).write_text(json.dumps(said, indent=1, default=str))
        print(json.dumps(said, indent=1, default=str) if given.json else describe(said))


def check_list(given: argparse.Namespace) -> None:
    words = given.task_list.split(",")
    if not all(words) or len(set(words)) < len(words):
        raise ConfigError([f"--task_list {given.task_list}: expected names or files, each once, with commas between"])
    if given.include_path and not given.include_path.is_dir():
        raise ConfigError([f"--include_path {given.include_path} is no folder"])
    ours = [word for word in words if word.endswith(".jsonl")]
    if given.num_fewshot and ours:
        raise ConfigError([f"--num_fewshot {given.num_fewshot} acts on lm-eval's tasks, and {ours[0]} is none: leave it out"])
    if given.only_generate and ours:
        raise ConfigError([f"--only_generate decides by what is written, and {ours[0]} asks for likelihoods: leave it out"])


def subject_of(trained: Any, given: argparse.Namespace) -> Any:
    from megatron.evaluation.harness import Subject
    from megatron.sampling.generate import Source
    from megatron.tasks.answers import Method

    source = Source.of(trained.cfg, trained.tokenizer)
    masked = source.mask is not None
    check(given, masked)
    kind = "exact" if not masked else "chain" if given.eval_method == "ar" else "bound"
    method = Method(
        kind=kind, num_mc=given.num_mc or 32, eps=given.sampling_eps or 0.0, tolerance=given.nll_tolerance, seed=given.seed
    )
    greedy = "score" if kind != "bound" else "none" if given.only_mc_nll else "decode"
    greedy = "decode" if given.only_generate else greedy
    return Subject(engine=trained.engine, source=source, method=method, greedy=greedy, only_generate=given.only_generate)


def record(trained: Any, given: argparse.Namespace, subject: Any, found: dict, harness: dict) -> dict:
    """What is written."""
    m = subject.method
    said = {
        "objective": trained.cfg.objective.objective,
        "checkpoint": str(trained.checkpoint.path),
        "step": trained.checkpoint.step,
        "likelihood": "none" if subject.only_generate else m.kind,
        "is_greedy": subject.greedy,
        "questions": found,
        "lm_eval": harness,
    }
    if m.kind == "bound" and not subject.only_generate:
        said |= {"num_mc": m.num_mc, "sampling_eps": m.eps, "nll_tolerance": m.tolerance, "seed": m.seed}
    if harness:
        said |= {"passes": subject.passes, "largest_se": max(subject.errors, default=None), "num_fewshot": given.num_fewshot}
    return said


def describe(said: dict) -> str:
    """A line a task and metric."""
    lines = [f"{said['objective']} at step {said['step']}, likelihoods: {said['likelihood']}"]
    for name, r in said["questions"].items():
        lines.append(
            f"{name}: accuracy {r['accuracy']:.4f} +- {number(r['accuracy_se'])}, a byte {r['accuracy_norm']:.4f}, {r['bound']} "
            f"bits/byte of the right answer {r['answer_bpb']:.4f} +- {number(r['answer_bpb_se'])} "
            f"(draws {number(r['answer_bpb_se_noise'])}), {r['questions']} questions, {r['passes']} passes of a row"
        )
    for name, scores in said["lm_eval"].items():
        for key, value in scores.items():
            metric, _, rest = key.partition(",")
            if rest and not metric.endswith("_stderr"):
                error = number(scores.get(f"{metric}_stderr,{rest}"))
                lines.append(f"{name}: {metric} {number(value)} +- {error}, {scores['samples']} documents")
    if said["lm_eval"]:
        spread = number(said["largest_se"])
        lines.append(f"{said['passes']} passes of a row; largest error of a likelihood from draws {spread} nats")
    return "\n".join(lines)


def number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else "-"
