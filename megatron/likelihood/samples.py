"""What samplers write and what it costs, beside real text: continuations of the beginnings of validation rows.

All samplers continue the same beginnings, with the same seed; real text is the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from megatron.errors import Mismatch
from megatron.flags import ConfigError
from megatron.likelihood.measure import measure
from megatron.sampling import quality
from megatron.sampling.draws import How
from megatron.sampling.generate import Generated, Source, Template, check, generate
from megatron.sampling.table import SAMPLERS, sampler_for
from megatron.score_names import RULES
from megatron.training.evaluate import cleans
from megatron.training.trained import Trained

READ = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "steps": int,
    "block_length": int,
    "threshold": float,
    "factor": float,
    "entropy_bound": float,
    "eta": float,
    "guidance": float,
    "cache": str,
}
ROWS = 64  # continued, unless the caller says how many
LEFT_AS_IT_IS = ("block_length", "cache", "guidance", "top_k", "top_p", "min_p")  # not set where the rule's likelihood is known


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One sampler with its settings."""

    text: str
    sampler: str
    how: How


def read_samplers(text: str, steps: Sequence[int]) -> list[Asked]:
    """`NAME:SETTING=VALUE:...`, with commas between; one that reads steps and has none is taken with each. ConfigError."""
    found = []
    for one in text.split(","):
        name, *settings = one.split(":")
        if name not in SAMPLERS:
            raise ConfigError([f"--samplers {one}: no sampler {name}; expected one of {', '.join(SAMPLERS)}"])
        how = How(**dict(setting_of(one, word) for word in settings))
        if steps and "steps" in SAMPLERS[name].reads and how.steps is None:
            found += [Asked(text=f"{one}:steps={n}", sampler=name, how=replace(how, steps=n)) for n in steps]
        else:
            found.append(Asked(text=one, sampler=name, how=how))
    if steps and not any("steps" in SAMPLERS[one.sampler].reads for one in found):
        raise ConfigError([f"--steps {','.join(map(str, steps))}: none of {text} reads steps; leave it out"])
    if len({one.text for one in found}) < len(found):
        raise ConfigError([f"--samplers {text}: expected each sampler once"])
    return found


def setting_of(sampler: str, word: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    name = name.replace("-", "_")
    if name not in READ:
        raise ConfigError([f"--samplers {sampler}: no setting {word!r}; expected NAME=VALUE with NAME one of {', '.join(READ)}"])
    try:
        return name, READ[name](value)
    except ValueError:
        raise ConfigError([f"--samplers {sampler}: {name}={value!r} is no {READ[name].__name__}: give a number"]) from None


def compare_samplers(
    trained: Trained,
    asked: Sequence[Asked],
    judge: Trained | None = None,
    which: str = "valid",
    num_samples: int | None = None,
    prompt_tokens: int = 1,
    seed: int = 0,
    batch_size: int = 32,
) -> dict:
    """Quality and cost of samplers, and of real text. Raises Mismatch, ConfigError before anything is sampled."""
    refuse_judge(trained, judge)
    real = real_rows(trained, which, num_samples)
    num_samples, window = real.shape
    if not 1 <= prompt_tokens < window:
        raise ConfigError([f"--prompt-tokens {prompt_tokens}: expected 1 to {window - 1}, for rows of {window} tokens"])
    source, given = Source.of(trained.cfg, trained.tokenizer), real[:, :prompt_tokens].tolist()
    templates = [Template(ids=[*ids, *[None] * (window - prompt_tokens)]) for ids in given]
    for one in asked:
        try:
            check(sampler_for(one.sampler, source.objective), one.how, templates, False)
        except ConfigError as error:
            raise ConfigError([f"--samplers {one.text}: {error}"]) from None
    found = [{"sampler": "real text", **described(real, prompt_tokens, judge)}]
    for one in asked:
        done = generate(
            trained.engine,
            source,
            templates,
            one.sampler,
            one.how,
            seed=seed,
            batch_size=batch_size,
            ignore_end=not source.rows_end,
        )
        ids = filled(done, real, prompt_tokens, trained.tokenizer.eod)
        found.append({"sampler": one.text, **described(ids, prompt_tokens, judge), **cost(done)})
    for entry, likelihood in zip(found[1:], likelihoods(trained, asked, which, num_samples, window - prompt_tokens)):
        entry["likelihood"] = likelihood
    return {
        "objective": source.objective,
        "checkpoint": str(trained.checkpoint.path),
        "step": trained.checkpoint.step,
        "set": which,
        "num_samples": num_samples,
        "prompt_tokens": prompt_tokens,
        "new_tokens": window - prompt_tokens,
        "seed": seed,
        "judge": None if judge is None else str(judge.checkpoint.path),
        "samplers": found,
    }


def refuse_judge(trained: Trained, judge: Trained | None) -> None:
    if judge is None:
        return
    if not judge.reference.exact:
        raise Mismatch("--judge: the NLL of a judge must be exact; give an autoregressive run")
    if judge.tokenizer.fingerprint() != trained.tokenizer.fingerprint():
        raise Mismatch("--judge was trained with another tokenizer; give a run with the tokenizer of the one that is sampled")
    if judge.cfg.model.seq_length < trained.cfg.model.seq_length:
        raise Mismatch(f"--judge reads {judge.cfg.model.seq_length} tokens, samples have {trained.cfg.model.seq_length}")


def real_rows(trained: Trained, which: str, num_samples: int | None) -> torch.Tensor:
    """The first rows of a set, of the window's length [ROWS, or all there are].  -> int64 [num_samples, s]"""
    have = trained.slice(which).dataset.rows_in_first_epoch
    wanted = min(ROWS, have) if num_samples is None else num_samples
    if not 2 <= wanted <= have:
        raise ConfigError([f"--num-samples {wanted}: expected 2 or more, and at most the {have} rows of {which}"])
    data = trained.slice(which, wanted)
    return torch.cat([clean.tokens for clean in cleans(data, 0)])[:, : trained.cfg.model.seq_length]


def filled(done: Generated, real: torch.Tensor, prompt_tokens: int, eod: int) -> torch.Tensor:
    """Samples as rows of one length; behind the end of one is the end.  -> int64 [n, s]"""
    out = torch.full_like(real, eod)
    for row, sample in zip(out, done.samples):
        row[: len(sample.ids)] = torch.tensor(sample.ids)
    return out


def described(ids: torch.Tensor, prompt_tokens: int, judge: Trained | None) -> dict:
    """Of what follows the prompts; entropies and self-BLEU are means over rows, with their standard errors."""
    rows = ids[:, prompt_tokens:].tolist()
    entropy, bleu = quality.entropies(rows), quality.self_bleu(rows)
    found = {f"distinct_{n}": quality.distinct(rows, n) for n in (1, 2, 3)}
    found |= {"repeats": quality.repeats(rows)}
    found |= {"entropy": entropy.mean(), "entropy_se": error(entropy), "self_bleu": bleu.mean(), "self_bleu_se": error(bleu)}
    if judge is not None:
        nll = judged(judge, ids, prompt_tokens)
        found |= {"judge_nll": nll.mean(), "judge_nll_se": error(nll), "judge_perplexity": np.exp(nll.mean())}
    return {name: float(value) for name, value in found.items()}


def error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def judged(judge: Trained, ids: torch.Tensor, prompt_tokens: int) -> np.ndarray:
    """NLL of each row's tokens behind the prompt, given all before.  -> [n] nats a token"""
    found = []
    for some in ids.split(16):
        log_p = judge.logits(some[:, :-1]).double().cpu().log_softmax(-1)
        found.append(-log_p.gather(2, some[:, 1:, None])[:, prompt_tokens - 1 :, 0].mean(1))
    return torch.cat(found).numpy()


def cost(done: Generated) -> dict:
    """Per sample and per new token; the prompt's tokens are read and not counted as new."""
    tokens, samples = sum(sample.new_tokens for sample in done.samples), len(done.samples)
    return {
        "new_tokens": tokens,
        "passes_per_sample": done.passes / samples,
        "places_per_token": done.places / max(1, tokens),
        "tokens_per_second": tokens / done.seconds,
    }


def likelihoods(trained: Trained, asked: Sequence[Asked], which: str, rows: int, last: int) -> list[dict | None]:
    """The NLL of the same real tokens under each sampler's own distribution, where it is known."""
    names = [score_name(trained, one, last) for one in asked]
    known = list(dict.fromkeys(name for name in names if name))
    if not known:
        return [None for _ in names]
    scores = measure(trained, known, which, rows, last)["scores"]
    found = {name: {key: entry[key] for key in ("score", "value", "nats_per_token", "se")} for name, entry in zip(known, scores)}
    return [found.get(name) if name else None for name in names]


def score_name(trained: Trained, asked: Asked, places: int) -> str | None:
    """The score of megatron/score_names.py that is this sampler's own, if there is one."""
    how = asked.how
    if how.temperature != 1 or any(getattr(how, name) is not None for name in LEFT_AS_IT_IS):
        return None
    if not trained.reference.likelihood:
        return None
    if trained.reference.exact:
        return "exact"
    if asked.sampler == "ancestral" and how.steps is None:
        return "nelbo"
    tokens = -(-places // (how.steps or places))
    if asked.sampler not in RULES or -(-places // tokens) != (how.steps or places):
        return None
    return f"rule:{asked.sampler}:{tokens}" if tokens > 1 else f"rule:{asked.sampler}"
