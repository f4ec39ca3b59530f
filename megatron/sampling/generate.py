"""From prompts to samples, whatever the sampler: what is open, what is refused, where a sample ends.

    from megatron.sampling.draws import How
    from megatron.sampling.generate import Source, continued, generate
    from megatron.training import open_run

    trained = open_run("runs/mdm")
    source = Source.of(trained.cfg, trained.tokenizer)
    generate(trained.engine, source, [continued(source, "def ", 32)], "confidence", How(temperature=0.5), seed=1)

Sample number i is a function of (seed, i) and its prompt, alone or in any batch.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from megatron.batch import Batch
from megatron.catalogue import OBJECTIVES
from megatron.config import Config
from megatron.core.cache import Cache
from megatron.data.pairs import Standard, read_layout
from megatron.data.tokenizer import Tokenizer, Vocabulary
from megatron.errors import BadData
from megatron.flags import ConfigError
from megatron.objectives.sdd import States
from megatron.sampling.draws import How, Rows
from megatron.sampling.reading import CachingModel, Kept, Model
from megatron.sampling.table import SETTINGS, Sampler, sampler_for

GAP = re.compile(r"\[MASK:(\d+)\]")
ROWS_THAT_END = ("instruct", "pairs")  # kinds of data whose rows hold one document each, closed by an end token


@dataclass(frozen=True, kw_only=True)
class Source:
    """What sampling must know of a run."""

    objective: str
    tokenizer: Tokenizer
    window: int  # places of a row
    mask: int | None  # id that an open place reads; None where the model reads only what stands left of it
    rows_end: bool  # behind a row's end token there is nothing
    states: States | None = None  # what places between clean and noise are, where they are no ids
    candidates: int = 0  # of such a place
    uniform_share: float = 0.0  # of the noise that is a random id; the rest is the mask
    block: int = 0  # places of a block of a model that sees only blocks up to a place's own (--block-size); 0: it sees all
    latent_size: int = 0  # numbers in a row's vector, whose place comes before the text; 0: rows have none

    @classmethod
    def of(cls, cfg: Config, tokenizer: Tokenizer) -> Source:
        mask = Vocabulary(cfg.model.vocab_size, cfg.model.padded_vocab_size).mask
        return cls(
            objective=cfg.objective.objective,
            tokenizer=tokenizer,
            window=cfg.model.seq_length,
            mask=mask if OBJECTIVES[cfg.objective.objective].uses_mask else None,
            rows_end=cfg.data.data_kind in ROWS_THAT_END,
            **noisy_states(cfg),
            uniform_share=cfg.objective.uniform_share if cfg.objective.objective == "udm" else 0.0,
            block=cfg.objective.block_size or 0,
            latent_size=cfg.model.latent_size or 0,
        )


def noisy_states(cfg: Config) -> dict:
    """Of an objective whose places are weighted candidates."""
    o = cfg.objective
    return {"states": States(vocab=cfg.model.vocab_size, schedule=o.sdd_schedule), "candidates": o.sdd_k[-1]} if o.sdd_k else {}


@dataclass(frozen=True, kw_only=True)
class Template:
    """A row to fill, its vector's place first, where it has one."""

    ids: list[int | None]  # None: open
    infill: bool = False  # text may follow what is open

    @property
    def num_open(self) -> int:
        return self.ids.count(None)


@dataclass(frozen=True, kw_only=True)
class Sample:
    number: int
    prompt: int  # place in the list of templates
    ids: list[int]  # the row, from the prompt to where the sample ends
    new_tokens: int  # ids that were drawn, up to there
    text: str  # of what follows the prompt; of the whole row where gaps were filled
    ended_by: str  # end, stop or length


@dataclass(frozen=True, kw_only=True)
class Generated:
    samples: list[Sample]
    passes: int  # forward passes over rows: one pass over a batch of b rows is b
    places: int  # that they read
    seconds: float


def continued(source: Source, prompt: str, max_new_tokens: int | None = None) -> Template:
    """A prompt and what may follow, by default as much as the window holds.

    The empty prompt is the end-of-document token, behind which a document begins in packed data. Where rows end it is no
    token at all, which a next-token model cannot read.  Raises BadData.
    """
    ids = [0] * bool(source.latent_size) + encoded(source, prompt)
    if not ids and not source.rows_end:
        ids = [source.tokenizer.eod]
    if not ids and source.mask is None:
        raise BadData("the prompt is empty, and rows of this run begin with no token that is always the same: give a --prompt")
    room = source.window - len(ids)
    if room < 1 or (max_new_tokens or 1) > room:
        raise BadData(
            f"a prompt of {len(ids)} tokens leaves {max(0, room)} of the {source.window} places of the run's rows and "
            f"--max-new-tokens asks for {max_new_tokens or 'the rest'}: shorten one of them"
        )
    return Template(ids=[*ids, *[None] * (max_new_tokens or room)])


def with_gaps(source: Source, text: str) -> Template:
    """Text in which [MASK:5] stands for five tokens.  Raises BadData."""
    ids: list[int | None] = [0] * bool(source.latent_size)
    for i, part in enumerate(GAP.split(text)):
        ids += [None] * int(part) if i % 2 else encoded(source, part)
    if source.mask is None:
        raise BadData(f"--infill: a model of the objective {source.objective} reads only what stands left of a gap: use --prompt")
    if source.block:
        raise BadData(
            f"--infill: a model of --block-size {source.block} reads nothing that stands behind a gap's block: use --prompt"
        )
    if None not in ids:
        raise BadData(f"--infill {text[:60]!r} has no gap: write [MASK:5] where five tokens are to be found")
    if len(ids) > source.window:
        raise BadData(f"--infill has {len(ids)} tokens, gaps included, and a row {source.window} places: shorten it")
    return Template(ids=ids, infill=True)


def read_vectors(path: Path, standard: Standard, size: int) -> torch.Tensor:
    """The vectors of a .npy file, standardised as the run reads them.  -> [m, size] fp32.  Raises MissingInput, BadData."""
    dtype, shape, _, _ = read_layout(path, "give a file that numpy.save wrote")
    rows = np.atleast_2d(np.load(path)) if dtype.kind == "f" else np.zeros(shape)
    if dtype.kind != "f" or rows.ndim != 2 or rows.shape[1] != size or not np.isfinite(rows).all():
        raise BadData(f"--vectors {path}: holds {dtype} {list(shape)}, expected finite floats [m, {size}] or [{size}]")
    return torch.from_numpy(standard.of(rows.astype(np.float32)))


def encoded(source: Source, text: str) -> list[int]:
    return [int(i) for i in source.tokenizer.encode(text)] if text else []


def generate(
    model: Model,
    source: Source,
    templates: Sequence[Template],
    sampler: str,
    how: How,
    seed: int = 0,
    num_samples: int = 1,
    batch_size: int = 32,
    numbers: Sequence[int] | None = None,
    ignore_end: bool = False,
    stop: str | None = None,
    vectors: torch.Tensor | None = None,
) -> Generated:
    """`num_samples` of each template: sample i is of template i // num_samples. With `numbers` only those.

    `ignore_end`: an end-of-document token ends no sample. `stop`: a text that does. `vectors` [templates, d] fp32, standardised.
    Every process of a layout calls it alike.
    Raises ConfigError for settings that cannot be, Mismatch for a sampler that does not serve the objective.
    """
    known = sampler_for(sampler, source.objective)
    check(known, how, templates, ignore_end and source.rows_end, source.block)
    causal, eod = source.mask is None, source.tokenizer.eod
    how = replace(how, end=eod if source.rows_end or (causal and not ignore_end) else None)
    if stop and causal:
        how = replace(how, stops=lambda ids: stop in source.tokenizer.decode(ids))
    todo = list(range(num_samples * len(templates)) if numbers is None else numbers)
    if not causal:  # rows of one length are read together: none needs padding
        todo.sort(key=lambda number: len(templates[number // num_samples].ids))
    counted, function, filled = Counted(model), known.load(), {}
    began = time.perf_counter()
    for batch in batches(todo, batch_size, [None if causal else len(templates[n // num_samples].ids) for n in todo]):
        of = [number // num_samples for number in batch]
        rows = rows_of(source, [templates[i] for i in of], batch, seed)
        rows = rows if vectors is None else replace(rows, latent=vectors[of])
        for number, ids in zip(batch, function(counted, rows, how).tolist()):
            filled[number] = ids
    seconds = time.perf_counter() - began
    ends = None if ignore_end else eod
    samples = [ended(source, templates, n, n // num_samples, filled[n], ends, stop) for n in sorted(filled)]
    return Generated(samples=samples, passes=counted.passes, places=counted.places, seconds=seconds)


class Counted:
    """A model that counts the rows and places that it has read, and keeps what it has read where the model can."""

    def __init__(self, model: Model):
        self.model, self.passes, self.places = model, 0, 0
        if isinstance(model, CachingModel):
            self.cache = model.cache

    def logits(self, batches: list[Batch], caches: Sequence[Cache | None] | None = None) -> list[torch.Tensor]:
        self.passes += sum(len(batch.index) for batch in batches)
        self.places += sum(batch.inputs.numel() for batch in batches)
        return self.model.logits(batches, caches) if isinstance(self.model, CachingModel) else self.model.logits(batches)


def check(sampler: Sampler, how: How, templates: Sequence[Template], ends_ignored: bool, own: int = 0) -> None:
    """Raises ConfigError with a sentence for each mistake. `own`: places of a model's own blocks, where it has them."""
    blocks = max((num_blocks(t, how.block_length, own) for t in templates), default=0)
    fewest = min((t.num_open for t in templates), default=0)
    limits = [
        ("--temperature", how.temperature, 0 <= how.temperature < float("inf"), "0 or more"),
        ("--top-k", how.top_k, how.top_k is None or how.top_k >= 1, "1 or more"),
        ("--top-p", how.top_p, how.top_p is None or 0 < how.top_p <= 1, "above 0 and at most 1"),
        ("--min-p", how.min_p, how.min_p is None or 0 < how.min_p <= 1, "above 0 and at most 1"),
        ("--threshold", how.threshold, how.threshold is None or 0 < how.threshold <= 1, "above 0 and at most 1"),
        ("--factor", how.factor, how.factor is None or 0 < how.factor < float("inf"), "above 0"),
        ("--entropy-bound", how.entropy_bound, how.entropy_bound is None or 0 <= how.entropy_bound < float("inf"), "0 or more"),
        ("--eta", how.eta, how.eta is None or 0 <= how.eta <= 1, "0 to 1"),
        ("--cache", how.cache, how.cache in (None, *get_args(Kept)), ", ".join(get_args(Kept))),
        ("--guidance", how.guidance, how.guidance is None or 0 < how.guidance < float("inf"), "above 0"),
        ("--block-length", how.block_length, how.block_length is None or how.block_length >= 1, "1 or more"),
        ("--steps", how.steps, how.steps is None or how.steps >= 1, "1 or more"),
    ]
    mistakes = [f"{flag} {value}: expected {what}" for flag, value, right, what in limits if not right]
    unread = {name: getattr(how, name) for name in SETTINGS}
    mistakes += [
        f"--{name.replace('_', '-')} {value} is not read by this sampler ({sampler.title}): leave it out"
        for name, value in unread.items()
        if value is not None and name not in sampler.reads
    ]
    if how.temperature == 0 and (how.top_k or how.top_p or how.min_p):
        mistakes.append("--temperature 0 takes the likeliest id: --top-k, --top-p and --min-p would do nothing, leave them out")
    if how.steps and not mistakes and how.steps < blocks:
        made = f"--block-length {how.block_length} makes" if how.block_length else f"--block-size {own} of the run makes"
        mistakes.append(f"--steps {how.steps}: {made} {blocks} blocks, which need a step each")
    if how.steps and not mistakes and how.steps > fewest and not sampler.any_steps:
        mistakes.append(f"--steps {how.steps}: each step fills at least one place, and there are {fewest}: give at most {fewest}")
    if how.guidance and any(t.num_open == len(t.ids) for t in templates):
        mistakes.append("--guidance moves away from a row with nothing given, and nothing is: give a prompt, or leave it out")
    if ends_ignored:
        mistakes.append("--ignore-end: behind the end of this run's rows there is nothing: leave it out")
    if own:
        mistakes += refuse_whole_rows(sampler, how, own)
    if mistakes:
        raise ConfigError(mistakes)


def num_blocks(template: Template, length: int | None, own: int) -> int:
    """That hold something open."""
    if own:
        return len({place // own for place, one in enumerate(template.ids) if one is None})
    return -(-template.num_open // (length or max(1, template.num_open)))


def refuse_whole_rows(sampler: Sampler, how: How, own: int) -> list[str]:
    """What a model of blocks cannot do, which reads no place behind a block."""
    found = [
        f"--{name.replace('_', '-')} is for models that read whole rows, and this one reads blocks of {own}: leave it out"
        for name in ("block_length", "cache", "guidance")
        if getattr(how, name)
    ]
    if "block_length" not in sampler.reads:
        found.append(
            f"this sampler ({sampler.title}) returns to whole rows, and this model reads blocks of {own}: use another one"
        )
    return found


def batches(numbers: Sequence[int], size: int, kinds: Sequence[int | None]) -> list[list[int]]:
    """Numbers in their order, at most `size` together and never two of different kinds."""
    found: list[list[int]] = []
    kind_before: int | None = None
    for number, kind in zip(numbers, kinds):
        if not found or len(found[-1]) == size or kind != kind_before:
            found.append([])
        found[-1].append(number)
        kind_before = kind
    return found


def rows_of(source: Source, templates: Sequence[Template], numbers: list[int], seed: int) -> Rows:
    """Rows of different lengths are filled up behind, with what a causal model does not see."""
    width, unread = max(len(t.ids) for t in templates), source.tokenizer.eod if source.mask is None else source.mask
    ids, open_places = torch.full((len(templates), width), unread), torch.zeros(len(templates), width, dtype=torch.bool)
    for row, template in enumerate(templates):
        for place, one in enumerate(template.ids):
            if one is None:
                open_places[row, place] = True
            else:
                ids[row, place] = one
    vocab_size = source.tokenizer.vocab_size
    return Rows(
        ids=ids,
        open=open_places,
        numbers=numbers,
        seed=seed,
        vocab_size=vocab_size,
        mask=source.mask,
        states=source.states,
        candidates=source.candidates,
        uniform_share=source.uniform_share,
        block=source.block,
    )


def ended(
    source: Source, templates: Sequence[Template], number: int, at: int, row: list[int], end: int | None, stop: str | None
) -> Sample:
    """A filled row, cut where its sample ends: before the end token, and text before `stop`."""
    template, decode, place = templates[at], source.tokenizer.decode, bool(source.latent_size)
    ids, ended_by = row[place : len(template.ids)], "length"
    if template.infill:
        return Sample(number=number, prompt=at, ids=ids, new_tokens=template.num_open, text=decode(ids), ended_by=ended_by)
    given = len(template.ids) - place - template.num_open
    new = ids[given:]
    if end in new:
        new, ended_by = new[: new.index(end)], "end"
    if stop and stop in decode(new):
        new = next(new[:n] for n in range(1, len(new) + 1) if stop in decode(new[:n]))
        ended_by = "stop"
    whole, head = decode([*ids[:given], *new]), decode(ids[:given])
    text = whole[len(head) :] if whole.startswith(head) else decode(new)
    if ended_by == "stop" and stop:
        text = text[: text.index(stop)] if stop in text else text
    return Sample(number=number, prompt=at, ids=[*ids[:given], *new], new_tokens=len(new), text=text, ended_by=ended_by)
