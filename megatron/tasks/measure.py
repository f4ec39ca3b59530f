"""What a file of questions says of a model: accuracy, and bits a byte of the right answers, each with its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.config import Config
from megatron.engine import Engine
from megatron.errors import BadData
from megatron.sampling.generate import Source
from megatron.tasks.answers import Answer, Method, fit, score_answers
from megatron.tasks.questions import Question, encode_pair, joined, read_questions


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    questions: list[Question]
    answers: list[Answer]  # every choice of every question


def read_tasks(files: Sequence[str], source: Source) -> list[Task]:
    """Raises MissingInput, BadData for files that cannot be read or answers that the window does not hold."""
    names = [Path(file).stem for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadData(f"two files of questions are called {twice[0]}: rename one, so that their records can be told apart")
    return [encoded(name, read_questions(Path(file)), source, file) for name, file in zip(names, files)]


def encoded(name: str, questions: list[Question], source: Source, where: str = "") -> Task:
    answers = []
    for number, one in enumerate(questions):
        for choice in one.choices:
            context, ids = encode_pair(source.tokenizer, *joined(one.query, choice))
            answers.append(Answer(context=context, ids=ids, question=number))
    try:
        for answer in answers:
            fit(answer, source)
    except BadData as error:
        raise BadData(f"{where or name}: {error}") from None
    return Task(name=name, questions=questions, answers=answers)


@dataclass(frozen=True, kw_only=True)
class Exam:
    """A run's tasks, and how a model takes them."""

    engine: Engine
    source: Source
    tasks: list[Task]
    method: Method

    @classmethod
    def of(cls, cfg: Config, engine: Engine, source: Source, tasks: list[Task]) -> Exam:
        kind = "exact" if source.mask is None else "bound"
        method = Method(kind=kind, num_mc=cfg.train.eval_tasks_num_mc, seed=cfg.train.eval_seed)
        return cls(engine=engine, source=source, tasks=tasks, method=method)

    def take(self) -> Iterator[tuple[str, dict]]:
        """Name and record of each task."""
        for task in self.tasks:
            yield task.name, measure(self.engine, self.source, task, self.method)


def measure(
    engine: Engine, source: Source, task: Task, method: Method, show: Callable[[str], None] = lambda said: None
) -> dict[str, float | int | str | None | dict]:
    """The fields of a record. Errors named `se` are of the choice of questions, which holds what noise adds; `se_noise` of draws.

    The answer is the choice of the highest log-likelihood, and for accuracy_norm a UTF-8 byte of it. Bits a byte: minus the log-
    likelihood of the right choice over ln 2 and its bytes, without the space before it, averaged over questions.
    """
    found = score_answers(engine, source, task.answers, method, show)
    counts = np.array([len(one.choices) for one in task.questions])
    size = np.array([len(choice.encode()) for one in task.questions for choice in one.choices])
    starts = np.cumsum(counts) - counts
    gold = starts + np.array([one.gold for one in task.questions])
    right, right_norm = (best(values, starts, counts) == gold for values in (found.log_p, found.log_p / size))
    bits = -found.log_p[gold] / (math.log(2) * size[gold])
    noise = found.se[gold] / (math.log(2) * size[gold])
    known = not np.isnan(noise).any()
    return {
        "accuracy": float(right.mean()),
        "accuracy_se": spread(right),
        "accuracy_norm": float(right_norm.mean()),
        "accuracy_norm_se": spread(right_norm),
        "answer_bpb": float(bits.mean()),
        "answer_bpb_se": spread(bits),
        "answer_bpb_se_noise": float(np.sqrt((noise**2).sum()) / len(bits)) if known else None,
        "questions": len(gold),
        "passes": found.passes,
        "bound": "bound" if method.kind == "bound" else "exact",
        "convention": convention(method),
    }


def convention(method: Method) -> dict:
    """What the numbers mean."""
    said = {"scored": "the tokens of each choice, given the query", "likelihood": method.kind}
    if method.kind == "bound":
        said |= {"num_mc": str(method.num_mc), "noise_seed": str(method.seed), "eps": f"{method.eps:g}"}
    return said | {"bytes": "of the choice in UTF-8, without the space before it"}


def best(values: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The place of each question's largest value, the first of equal ones.  [answers] -> [questions]"""
    return np.array([start + values[start : start + count].argmax() for start, count in zip(starts, counts)])


def spread(values: np.ndarray) -> float | None:
    """Standard error of a mean; None with one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
