"""A run as a model of lm-eval (EleutherAI's harness): likelihoods, whole documents and generation for its tasks.

Texts are encoded as lm-eval's own path for transformers encodes them. Each process of a layout runs the same requests, whose
passes its replicas share.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron.engine import Engine
from megatron.errors import BadData, MissingInput
from megatron.sampling.draws import How
from megatron.sampling.generate import Source, Template, continued, generate
from megatron.sampling.table import default_of
from megatron.tasks.answers import Answer, Likelihoods, Method, fit, score_answers
from megatron.tasks.questions import encode_pair

BOOTSTRAPS = 100  # of metrics that are no mean; the error of a mean needs none
MOST_NEW_TOKENS = 256  # lm-eval's own default, where a task does not say


@dataclass
class Subject:
    """A model that answers requests, and counts what that cost.

    greedy: whether an answer is also what the model would write, which tasks such as lambada ask. `score` takes it from the
    likelihood's own passes (exact and chain), `decode` fills in the answer's places the surest first, `none` says no.
    """

    engine: Engine
    source: Source
    method: Method
    greedy: str = "score"
    only_generate: bool = False  # no likelihoods at all: 0 for each
    passes: int = 0
    errors: list[float] = field(default_factory=list)  # standard error of each likelihood, nats

    def log_likelihoods(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is greedy) of (context, continuation); those of one document share their draws."""
        answers = []
        for request in requests:
            context, ids = encode_pair(self.source.tokenizer, *request.args)
            answers.append(Answer(context=context, ids=ids, question=int(request.doc_id or 0)))
        found = None if self.only_generate else self.score(answers)
        log_p = np.zeros(len(answers)) if found is None else found.log_p
        greedy = self.written(answers) if self.greedy == "decode" else found.greedy if found else np.zeros(len(answers), bool)
        return [(float(value), bool(same)) for value, same in zip(log_p, greedy)]

    def score(self, answers: Sequence[Answer]) -> Likelihoods:
        found = score_answers(self.engine, self.source, answers, self.method)
        self.passes += found.passes
        self.errors += [float(error) for error in found.se]
        return found

    def written(self, answers: Sequence[Answer]) -> np.ndarray:
        """Whether the surest-first decoding of an answer's places is the answer.  -> bool [answers]"""
        fitted = [fit(answer, self.source) for answer in answers]
        rows = [Template(ids=[*answer.context.tolist(), *[None] * len(answer.ids)], infill=True) for answer in fitted]
        found = generate(self.engine, self.source, rows, "confidence", How(temperature=0))
        self.passes += found.passes
        return np.array([s.ids[-len(a.ids) :] == a.ids.tolist() for s, a in zip(found.samples, fitted)])

    def rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-likelihood of whole documents, cut into windows: each token once, given what the window holds before it."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        eod, room = self.source.tokenizer.eod, self.source.window - (self.source.mask is not None)
        answers: list[Answer] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            ids = self.source.tokenizer.encode(request.args[0]).tolist()
            windows = get_rolling_token_windows(token_list=ids, prefix_token=eod, max_seq_len=room, context_len=1)
            for context, scored in map(make_disjoint_window, windows):
                answers.append(Answer(context=np.array(context), ids=np.array(scored), question=len(answers)))
                owner.append(number)
        return np.bincount(owner, self.score(answers).log_p, len(requests)).tolist()

    def texts(self, requests: Sequence[Any]) -> list[str]:
        """What the model writes behind each context at temperature 0, up to the first of the request's stops."""
        found = []
        for request in requests:
            context, given = request.args
            most = min(int(given.get("max_gen_toks", MOST_NEW_TOKENS)), self.source.window - 1)
            until = given.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            found.append(self.continued(context, most, [stop for stop in stops if stop]))
        return found

    def continued(self, context: str, most: int, stops: list[str]) -> str:
        room, ids = self.source.window - most, self.source.tokenizer.encode(context)
        text = context if len(ids) <= room else self.source.tokenizer.decode(ids[-room:].tolist())
        row, sampler = continued(self.source, text, most), default_of(self.source.objective)
        how = How(temperature=0)
        if self.source.mask is not None:
            sampler = "confidence"
        made = generate(self.engine, self.source, [row], sampler, how, stop=stops[0] if len(stops) == 1 else None)
        self.passes += made.passes
        ends = [at for stop in stops if (at := made.samples[0].text.find(stop)) >= 0]
        return made.samples[0].text[: min(ends, default=None)]


def library(offline: bool) -> Any:
    """lm_eval, which must not look at the network where all tasks are local. Raises MissingInput."""
    for name in ("DISABLE_MULTIPROC", *(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if offline else ())):
        os.environ.setdefault(name, "1")
    try:
        import lm_eval
    except ModuleNotFoundError as error:
        raise MissingInput(f"these tasks need the Python package lm-eval ({error.name}): pip install -e '.[eval]'") from None
    return lm_eval


def harness_model(subject: Subject) -> Any:
    """The subject as lm-eval's class, which only exists where the library does."""
    from lm_eval.api.model import LM

    class Run(LM):
        def loglikelihood(self, requests, **_):
            return subject.log_likelihoods(requests)

        def loglikelihood_rolling(self, requests, **_):
            return subject.rolling(requests)

        def generate_until(self, requests, **_):
            return subject.texts(requests)

    return Run()


def run_tasks(
    subject: Subject, names: Sequence[str], folders: Sequence[Path], num_fewshot: int | None, limit: int | None
) -> dict:
    """lm-eval's results of its tasks, or of task files in folders. Raises BadData for a task that cannot be read."""
    library(offline=bool(folders))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(f) for f in folders] or None, include_defaults=not folders)
    known = set(manager.all_tasks)
    if unknown := [name for name in names if name not in known]:
        where = f"in {', '.join(map(str, folders))}" if folders else "of lm-eval"
        near = f" (there are {', '.join(sorted(known)[:8])})" if folders else ""
        raise BadData(f"--task_list {unknown[0]}: no such task {where}{near}: name a task, a .yaml or a .jsonl file")
    try:
        found = simple_evaluate(
            model=harness_model(subject),
            tasks=list(names),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=BOOTSTRAPS,
        )
    except (KeyError, ValueError, TypeError, FileNotFoundError, AttributeError) as error:
        raise BadData(f"the tasks {', '.join(names)} cannot be run by lm-eval: {type(error).__name__}: {error}") from error
    return {name: found["results"][name] | {"samples": found["n-samples"][name]["effective"]} for name in found["results"]}


def name_in(path: Path) -> str:
    """The task of a .yaml file. Raises MissingInput, BadData."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInput(f"--task_list {path}: {error.strerror}") from None
    named = re.search(r"^task:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)
    if not named:
        raise BadData(f"{path} has no line `task: NAME`: it is no task of lm-eval")
    return named[1]
