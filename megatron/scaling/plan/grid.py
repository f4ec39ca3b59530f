"""The points of a plan: budgets x sizes x objectives x unique tokens or epochs, each with its name, its length and its data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from megatron.budget import Shape, epoch_budget, epoch_tokens, find_size, flop_budget, spell
from megatron.flags import ConfigError, parse_count, spelling
from megatron.scaling.plan import flags
from megatron.scaling.plan import hyperparameters as rules
from megatron.scaling.plan.hyperparameters import BATCH_SIZES, LEARNING_RATES, Choice, Facts, read_choices
from megatron.scaling.plan.sizes import expected_optimum, sizes_between

KINDS = {"chinchilla": "chinchilla", "isoflop": "chinchilla", "data-value": "data_value", "critical-compute": "crossover"}
EPOCHS = (1, 2, 4, 10, 20, 50, 100, 200, 500)  # of a data-value plan that names none
SEED = 1234


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; a default that depends on the scale is None here."""

    kind: str = "chinchilla"
    scale: str = "gpu"
    objectives: tuple[str, ...] = ("ar", "mdm")
    flops: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    unique_tokens: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    sizes: tuple[str, ...] = ("auto",)
    optimum: str = "published"
    num_sizes: int | None = None
    span: float = 3.0
    params: str | None = None
    seeds: tuple[int, ...] = (SEED,)
    lr: str | None = None
    batch_size: str | None = None
    schedule: str = "cosine"
    decay_share: float = 0.2
    seq_length: int | None = None
    vocab_size: int | None = None
    tokenizer: tuple[str, ...] | None = None
    train_data: tuple[str, ...] | None = None
    valid_data: tuple[str, ...] | None = None
    name: str | None = None
    flags: tuple[str, ...] = ()

    def settled(self) -> Request:
        """With the scale's and the kind's defaults, and all that does not fit together refused. Raises ConfigError."""
        at = flags.SCALES[self.scale]
        epochs = EPOCHS if self.kind == "data-value" and not self.epochs else self.epochs
        found = replace(
            self,
            epochs=epochs,
            num_sizes=self.num_sizes or (1 if self.kind == "data-value" else 5),
            params=self.params or at.params,
            lr=self.lr or f"fixed:{at.lr:g}",
            batch_size=self.batch_size or f"fixed:{at.batch_size}",
            seq_length=self.seq_length or at.seq_length,
            vocab_size=self.vocab_size or at.vocab_size,
            tokenizer=at.tokenizer if self.tokenizer is None else self.tokenizer,
            train_data=self.train_data or (at.train_data,),
            valid_data=self.valid_data or (at.valid_data,),
            name=self.name or KINDS[self.kind],
        )
        if mistakes := list(wrong_together(found)):
            raise ConfigError(mistakes)
        return found


def wrong_together(r: Request) -> Iterator[str]:
    """A sentence for everything that does not fit together."""
    if r.flops and r.tokens:
        yield "--flops and --tokens both say how long a run is: give one"
    if r.kind == "critical-compute" and not (r.flops and r.unique_tokens):
        yield "--kind critical-compute needs --flops and --unique-tokens: both objectives train at every C over every U"
    elif not (r.flops or r.tokens or r.unique_tokens):
        yield "how long are the runs? give --flops, --tokens, or --unique-tokens with --epochs"
    elif r.unique_tokens and not (r.flops or r.tokens or r.epochs):
        yield "--unique-tokens alone says nothing of the length: give --epochs, --flops or --tokens too"
    if r.unique_tokens and r.epochs and (r.flops or r.tokens):
        yield "two of a budget (--flops or --tokens), --unique-tokens and --epochs settle the third: leave one out"
    if "auto" in r.sizes and len(r.sizes) > 1:
        yield "--sizes auto stands alone: leave the other sizes out"
    if "auto" in r.sizes and not r.flops:
        yield "--sizes auto needs --flops: the expected optimum is one of a budget"
    if r.schedule == "wsd" and not 0 < r.decay_share < 1:
        yield f"--decay-share {r.decay_share:g} must be between 0 and 1"
    if not re.fullmatch(r"[\w.-]+", r.name):
        yield f"--name {r.name} stands in folders' names: give letters, digits, - and _"
    if places := flags.fields_of(r.flags) & {"save", "load", "run_dir"}:
        yield f"-- {', '.join(map(spelling, sorted(places)))}: where runs live is for `run` to say: leave it out"
    if "unique_tokens" in flags.fields_of(r.flags):
        yield "-- --unique-tokens: plan has a flag of this name, which its numbers follow: give it before the --"
    for flag, text, table in (("--lr", r.lr, LEARNING_RATES), ("--batch-size", r.batch_size, BATCH_SIZES)):
        try:
            choices = read_choices(text, flag, table)
        except ValueError as error:
            yield str(error)
            continue
        if r.schedule == "wsd" and any(choice.needs_length for choice in choices):
            yield f"{flag} {text} differs with the length, and branches of a --schedule wsd trunk share one: give fixed or grid"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid, before its flags are written."""

    name: str
    objective: str
    size: str
    shape: Shape
    budget: dict[str, float]  # what was asked for: {"flops": C}, {"tokens": D} or nothing
    samples: int
    warmup: int
    data: tuple[str, ...]
    first: int | None  # --unique-tokens: how many tokens of the data are used, None for all
    unique: int | None  # how many differ; None: as many as are read, of a corpus of unknown size
    lr: float
    batch: int
    seed: int


def grid(r: Request, mistakes: list[tuple[str, str]]) -> Iterator[Cell]:
    """Every point: objectives, budgets, sizes, unique tokens or epochs, rates, batches and seeds, in this order."""
    budgets = [{"flops": float(c)} for c in r.flops] or [{"tokens": int(d)} for d in r.tokens] or [{}]
    lengths = list(product(r.unique_tokens or (None,), r.epochs or (None,)))
    rates, batches = read_choices(r.lr, "--lr", LEARNING_RATES), read_choices(r.batch_size, "--batch-size", BATCH_SIZES)
    choices = list(product(rates, batches, r.seeds))
    for objective, budget in product(r.objectives, budgets):
        for size in sizes_of(r, objective, budget, mistakes):
            for (unique, epochs), (lr, batch, seed) in product(lengths, choices):
                name = run_name(r, objective, budget, size, unique, epochs)
                try:
                    yield make_cell(r, name, objective, size, budget, unique, epochs, lr, batch, seed)
                except ValueError as error:
                    mistakes.append((name, str(error)))


def sizes_of(r: Request, objective: str, budget: dict[str, float], mistakes: list[tuple[str, str]]) -> list[str]:
    """The sizes for a budget that exist."""
    try:
        if r.sizes == ("auto",):
            # The branches of a trunk are of one size, so that a wsd plan has the same sizes at every budget.
            optima = [expected_optimum(r.optimum, objective, c) for c in (r.flops if r.schedule == "wsd" else [budget["flops"]])]
            low, high = min(optima) / r.span, max(optima) * r.span
            return sizes_between(low, high, r.num_sizes, scale=r.scale, vocab_size=r.vocab_size, count=r.params)
    except ValueError as error:
        mistakes.append((objective, str(error)))
        return []
    found = []
    for size in r.sizes:
        try:
            find_size(size, r.vocab_size)
            found.append(size)
        except ValueError as error:
            mistakes.append((objective, f"--sizes {size}: {error}"))
    return found


def make_cell(
    r: Request,
    name: str,
    objective: str,
    size: str,
    budget: dict[str, float],
    unique: int | None,
    epochs: int | None,
    lr: Choice,
    batch: Choice,
    seed: int,
) -> Cell:
    """Raises ValueError."""
    size_name, shape = find_size(size, r.vocab_size)
    if "flops" in budget:
        tokens, samples, warmup = flop_budget(budget["flops"], getattr(shape, r.params)(), r.seq_length)
    else:
        tokens, samples, warmup = epoch_budget(budget.get("tokens") or unique, 1 if budget else epochs, r.seq_length)
    data, first, have = r.train_data, None, corpus_size(r.train_data)
    if unique or epochs:
        data, first, have = part_of(r, min(unique, tokens) if unique else tokens // epochs, exactly=bool(unique))
        if budget and unique and unique >= tokens:
            name = run_name(r, objective, budget, size, None, 1)
    facts = Facts(
        params=shape.non_embedding(),
        tokens=tokens,
        seq_length=r.seq_length,
        flops=tokens * (shape.flops_per_token(r.seq_length) - 6.0 * shape.vocab_size * shape.hidden_size),
    )
    rate, rows = rules.learning_rate(lr, facts), rules.batch_size(batch, facts)
    return Cell(
        name=name + suffix(r, rate, rows, seed),
        objective=objective,
        size=size_name,
        shape=shape,
        budget=budget,
        samples=samples,
        warmup=warmup,
        data=data,
        first=first,
        unique=have,
        lr=rate,
        batch=rows,
        seed=seed,
    )


def part_of(r: Request, unique: int, exactly: bool) -> tuple[tuple[str, ...], int | None, int]:
    """`first_tokens` of the training data; fewer, where it is smaller, only for a number that nobody said."""
    if unique <= r.seq_length:
        raise ValueError(f"{unique} unique tokens are less than one sample of {r.seq_length} and its next token")
    data, first, have = flags.first_tokens(r.train_data, unique)
    if exactly and have < 0.99 * unique:
        raise ValueError(f"--train-data {' '.join(r.train_data)} has {have} tokens, less than the {unique} asked for")
    return data, first, have


def run_name(r: Request, objective: str, budget: dict[str, float], size: str, unique: int | None, epochs: int | None) -> str:
    """As the recipes name runs: ar_chinchilla_1e19_217M, mdm_data_value_1e19_117M_10ep."""
    parts = [
        objective,
        r.name,
        *(spell(float(value)) + "tok" * (kind == "tokens") for kind, value in budget.items()),
        find_size(size, r.vocab_size)[0],
    ]
    return "_".join(parts + [f"u{unique}"] * bool(unique) + [f"{epochs}ep"] * bool(epochs))


def suffix(r: Request, lr: float, batch: int, seed: int) -> str:
    """What differs from the recipes' defaults and changes the result."""
    at = flags.SCALES[r.scale]
    return (
        f"_lr{lr:g}" * (lr != at.lr)
        + f"_gbs{batch}" * (batch != at.batch_size)
        + f"_seed{seed}" * (seed != SEED)
        + "_wsd" * (r.schedule == "wsd")
    )


def corpus_size(words: tuple[str, ...]) -> int | None:
    return None if "{subset}" in words[0] else flags.corpus_tokens(words)


def unique_cells(cells: list[Cell], mistakes: list[tuple[str, str]], notes: list[str]) -> list[Cell]:
    """A run that reads each token once is the same for every larger U and stands there once; other names may not come twice."""
    found: dict[str, Cell] = {}
    once = set()
    for cell in cells:
        if cell.name not in found:
            found[cell.name] = cell
        elif cell == found[cell.name] and cell.budget and "_1ep" in cell.name:
            once.add(cell.name)
        else:
            mistakes.append((cell.name, "two runs would have this name: leave out what was said twice"))
    if once:
        notes.append(f"{len(once)} runs read each token once, and stand for every larger U too")
    return list(found.values())


def read_unique(text: str, scale: str) -> int:
    """A published subset (`100M` is 99952399 tokens) at scale gpu, else a count such as 5e5. Raises ValueError."""
    table = epoch_tokens() if scale == "gpu" else {}
    try:
        number = table[text] if text in table else parse_count(text)
    except ValueError:
        number = math.nan
    if not 1 <= number < math.inf or number != int(number):
        raise ValueError(f"--unique-tokens {text}: expected a whole number of tokens above 0, as 100M or 5e5")
    return int(number)
