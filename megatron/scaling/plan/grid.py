"""The points of a plan: budgets x sizes x objectives x unique tokens or epochs, each with its name, its length and its data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from megatron.budget import Shape, epoch_budget, epoch_tokens, find_size, flop_budget, spell
from megatron.catalogue import DEFAULTS
from megatron.flags import ConfigError, parse_count, spelling
from megatron.scaling.plan import axes, flags
from megatron.scaling.plan import hyperparameters as rules
from megatron.scaling.plan.axes import Axis
from megatron.scaling.plan.hyperparameters import BATCH_SIZES, LEARNING_RATES, WEIGHT_DECAYS, Choice, Facts, read_choices
from megatron.scaling.plan.sizes import expected_optimum, sizes_between

KINDS = {"chinchilla": "chinchilla", "isoflop": "chinchilla", "data-value": "data_value", "critical-compute": "crossover"}
EPOCHS = (1, 2, 4, 10, 20, 50, 100, 200, 500)  # of a data-value plan that names none
SEED = 1234
FIELDS = ("objective", "flops", "tokens", "size", "unique", "epochs", "part")  # that stand in braces in a template of names
CHOSEN = {
    "lr": "--lr",
    "global_batch_size": "--batch-size",
    "weight_decay": "--weight-decay",
    "seed": "--seeds",
}  # flags that an axis may vary instead


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; a default that depends on the scale is None here."""

    kind: str = "chinchilla"
    scale: str = "gpu"
    objectives: tuple[str, ...] = DEFAULTS
    flops: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    unique_tokens: tuple[int | None, ...] = ()  # None: as many as are trained on
    epochs: tuple[int, ...] = ()
    sizes: tuple[str, ...] = ("auto",)
    optimum: str = "published"
    num_sizes: int | None = None
    span: float = 3.0
    params: str | None = None
    seeds: tuple[int, ...] | None = None
    vary: tuple[Axis, ...] = ()
    sample: int | None = None
    sample_seed: int = 0
    halving: int | None = None  # 1 / this many settings go on to the next length
    lr: str | None = None
    batch_size: str | None = None
    weight_decay: str | None = None
    schedule: str = "cosine"
    decay_share: float = 0.2
    seq_length: int | None = None
    vocab_size: int | None = None
    tokenizer: tuple[str, ...] | None = None
    train_data: tuple[str, ...] | None = None
    valid_data: tuple[str, ...] | None = None
    name: str | None = None
    flags: tuple[str, ...] = ()
    finetune: str | None = None  # the run, finished, whose weights a run begins with: its name, {objective} and {size} filled in
    need_data: bool = False  # every corpus must be here already

    def settled(self) -> Settled:
        """With the scale's and the kind's defaults, and all that does not fit together refused. Raises ConfigError."""
        at, twice = flags.SCALES[self.scale], list(said_twice(self))
        found = Settled(
            **vars(self)
            | {
                "epochs": EPOCHS if self.kind == "data-value" and not self.epochs else self.epochs,
                "num_sizes": self.num_sizes or (1 if self.kind == "data-value" else 5),
                "params": self.params or at.params,
                "seeds": self.seeds or (SEED,),
                "lr": self.lr or f"fixed:{at.lr:g}",
                "batch_size": self.batch_size or f"fixed:{at.batch_size}",
                "weight_decay": self.weight_decay or f"fixed:{flags.WEIGHT_DECAY:g}",
                "seq_length": self.seq_length or at.seq_length,
                "vocab_size": self.vocab_size or at.vocab_size,
                "tokenizer": at.tokenizer if self.tokenizer is None else self.tokenizer,
                "train_data": self.train_data or (at.train_data,),
                "valid_data": self.valid_data or (at.valid_data,),
                "name": self.name or KINDS[self.kind],
            }
        )
        if mistakes := twice + list(wrong_together(found)):
            raise ConfigError(mistakes)
        return found


@dataclass(frozen=True, kw_only=True)
class Settled(Request):
    """A request whose defaults are filled in."""

    num_sizes: int
    params: str
    seeds: tuple[int, ...]
    lr: str
    batch_size: str
    weight_decay: str
    seq_length: int
    vocab_size: int
    tokenizer: tuple[str, ...]
    train_data: tuple[str, ...]
    valid_data: tuple[str, ...]
    name: str


def said_twice(r: Request) -> Iterator[str]:
    """A sentence for every flag that an axis varies and that is also given."""
    given = {"lr": r.lr, "global_batch_size": r.batch_size, "weight_decay": r.weight_decay, "seed": r.seeds}
    names = [axis.name for axis in r.vary]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"--vary {spelling(name)[2:]} stands there twice: give all its values at once"
        if given.get(name):
            yield f"{CHOSEN[name]} and --vary {spelling(name)[2:]} both set {spelling(name)}: give one"
        if name in flags.fields_of(r.flags):
            yield f"-- {spelling(name)} and --vary {spelling(name)[2:]} both set it: give one"


def wrong_together(r: Settled) -> Iterator[str]:
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
    if unknown := set(re.findall(r"{(\w*)}", r.name)) - set(FIELDS):
        yield f"--name {r.name}: {{{min(unknown)}}} is none of {', '.join(f'{{{name}}}' for name in FIELDS)}"
    if r.finetune and not re.fullmatch(r"([\w.+=-]|{objective}|{size})+", r.finetune):
        yield f"--finetune {r.finetune}: expected a run's name, in which {{objective}} and {{size}} may stand"
    if not re.fullmatch(r"[\w.+=-]+", re.sub(r"{\w*}", "x", r.name)):
        yield f"--name {r.name} stands in folders' names: give letters, digits, - and _"
    if None in r.unique_tokens and (r.epochs or not (r.flops or r.tokens)):
        yield "--unique-tokens full means as many as a budget trains on: give --flops or --tokens, and no --epochs"
    most = math.prod(len(axis.values) for axis in r.vary)
    if r.sample is not None and not r.vary:
        yield "--sample chooses points of the axes that --vary names: give one"
    elif r.sample is not None and not 0 < r.sample <= most:
        yield f"--sample {r.sample}: the axes have {most} points; give a number up to that"
    if r.halving is not None and r.halving < 2:
        yield f"--halving {r.halving}: expected a whole number of 2 or more: one in so many settings goes on"
    if r.halving and r.schedule == "wsd":
        yield "--halving and --schedule wsd exclude each other: a trunk trains to its full length whatever gives way"
    if places := flags.fields_of(r.flags) & {"save", "load", "run_dir"}:
        yield f"-- {', '.join(map(spelling, sorted(places)))}: where runs live is for `run` to say: leave it out"
    if "unique_tokens" in flags.fields_of(r.flags) and (r.unique_tokens or r.epochs):
        yield "-- --unique-tokens: plan has a flag of this name, which its numbers follow: give it before the --"
    scaled = "parametrization" in flags.fields_of(r.flags) and "standard" not in r.flags
    if (scaled or any(axis.name == "parametrization" for axis in r.vary)) and r.lr.removeprefix("rule:") in LEARNING_RATES:
        yield f"--lr {r.lr} and --parametrization both lower the rate with the size: give --lr fixed:X, that of the base model"
    for flag, text, table in chosen_by(r):
        try:
            choices = read_choices(text, flag, table)
        except ValueError as error:
            yield str(error)
            continue
        if r.schedule == "wsd" and any(choice.needs_length for choice in choices):
            yield f"{flag} {text} differs with the length, and branches of a --schedule wsd trunk share one: give fixed or grid"


def chosen_by(r: Settled) -> tuple[tuple[str, str, dict], ...]:
    """(flag, what it says, the published rules of it)."""
    return (
        ("--lr", r.lr, LEARNING_RATES),
        ("--batch-size", r.batch_size, BATCH_SIZES),
        ("--weight-decay", r.weight_decay, WEIGHT_DECAYS),
    )


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
    decay: float
    seed: int
    point: dict[str, Any] = field(default_factory=dict)  # the values of the axes that --vary names
    beyond: tuple[str, ...] = ()  # in what the run lies outside of a rule's data


def grid(r: Settled, mistakes: list[tuple[str, str]]) -> Iterator[Cell]:
    """Every point: objectives, budgets, sizes, unique tokens or epochs, rates, batches, seeds and axes, in this order."""
    budgets = [{"flops": float(c)} for c in r.flops] or [{"tokens": int(d)} for d in r.tokens] or [{}]
    uniques = [(unique, None if unique else 1) for unique in r.unique_tokens] or [(None, None)]
    lengths = [(unique, epochs or once) for (unique, once), epochs in product(uniques, r.epochs or (None,))]
    rates, batches, decays = (read_choices(text, flag, table) for flag, text, table in chosen_by(r))
    choices = list(product(rates, batches, decays, r.seeds, axes.points(r.vary, r.sample, r.sample_seed)))
    for objective, budget in product(r.objectives, budgets):
        for size in sizes_of(r, objective, budget, mistakes):
            for (unique, epochs), (*chosen, seed, point) in product(lengths, choices):
                names = ("lr", "global_batch_size", "weight_decay")
                own = [Choice(point[name]) if name in point else choice for name, choice in zip(names, chosen)]
                name = run_name(r, objective, budget, size, unique, epochs)
                try:
                    cell = make_cell(r, name, objective, size, budget, unique, epochs, own, point.get("seed", seed))
                    cell = replace(cell, point=point)
                    yield replace(cell, name=cell.name + suffix_of(r, cell))
                except ValueError as error:
                    mistakes.append((name, str(error)))


def sizes_of(r: Settled, objective: str, budget: dict[str, float], mistakes: list[tuple[str, str]]) -> list[str]:
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
    r: Settled,
    name: str,
    objective: str,
    size: str,
    budget: dict[str, float],
    unique: int | None,
    epochs: int | None,
    chosen: list[Choice],
    seed: int,
) -> Cell:
    """`chosen`: of the rate, the batch and the decay. Raises ValueError."""
    size_name, shape = find_size(size, r.vocab_size)
    if "flops" in budget:
        tokens, samples, warmup = flop_budget(budget["flops"], getattr(shape, r.params)(), r.seq_length)
    elif "tokens" in budget:
        tokens, samples, warmup = epoch_budget(int(budget["tokens"]), 1, r.seq_length)
    else:
        assert unique and epochs  # settled() refuses a plan that says nothing of the length
        tokens, samples, warmup = epoch_budget(unique, epochs, r.seq_length)
    data, first, have = r.train_data, None, corpus_size(r.train_data)
    part = min(unique, tokens) if unique else tokens // epochs if epochs else None
    if part is not None:
        data, first, have = part_of(r, part, exactly=bool(unique))
        if budget and unique and unique >= tokens:
            name = run_name(r, objective, budget, size, None, 1)
    facts = Facts(
        params=shape.non_embedding(),
        tokens=tokens,
        seq_length=r.seq_length,
        hidden_size=shape.hidden_size,
        flops=tokens * (shape.flops_per_token(r.seq_length) - 6.0 * shape.vocab_size * shape.hidden_size),
        objective=objective,
        unique_tokens=min(tokens, have or tokens),
        counts={
            "total": shape.total(),
            "non-embedding": shape.non_embedding(),
            "with-head": shape.with_head(),
            "published": shape.published(),
        },
    )
    lr, batch, decay = chosen
    rate, rows = rules.learning_rate(lr, facts), rules.batch_size(batch, facts)
    return Cell(
        name=name,
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
        decay=rules.weight_decay(decay, facts),
        seed=seed,
        beyond=tuple(line for (flag, _, _), one in zip(chosen_by(r), chosen) for line in rules.beyond(one, flag, facts)),
    )


def part_of(r: Settled, unique: int, exactly: bool) -> tuple[tuple[str, ...], int | None, int]:
    """`first_tokens` of the training data; fewer, where it is smaller, only for a number that nobody said."""
    if unique <= r.seq_length:
        raise ValueError(f"{unique} unique tokens are less than one sample of {r.seq_length} and its next token")
    data, first, have = flags.first_tokens(r.train_data, unique)
    if exactly and have < 0.99 * unique:
        raise ValueError(f"--train-data {' '.join(r.train_data)} has {have} tokens, less than the {unique} asked for")
    return data, first, have


def run_name(r: Settled, objective: str, budget: dict[str, float], size: str, unique: int | None, epochs: int | None) -> str:
    """As the recipes name runs, ar_chinchilla_1e19_217M or mdm_data_value_1e19_117M_10ep; or by the request's template."""
    name_of_size, budgets = find_size(size, r.vocab_size)[0], {kind: spell(float(value)) for kind, value in budget.items()}
    subset = name_of_subset(unique, r.scale) if unique else ""
    parts = [f"u{subset}"] * bool(unique) + [f"{epochs}ep"] * bool(epochs)
    if "{" in r.name:
        said = {"objective": objective, "size": name_of_size, "unique": subset, **budgets}
        return filled(r.name, {**said, "epochs": epochs, "part": "_".join(parts)})
    spelled = [text + "tok" * (kind == "tokens") for kind, text in budgets.items()]
    return "_".join([objective, r.name, *spelled, name_of_size, *parts])


def trunk_name(r: Settled, cell: Cell) -> str:
    """Of the run that cells of every length branch off."""
    apart, name = (cell.data, cell.first) != (r.train_data, None), f"{cell.objective}_{r.name}_{cell.size}"
    if "{" in r.name:
        unique = name_of_subset(cell.unique, r.scale) if apart and cell.unique else ""
        said = dict.fromkeys(("flops", "tokens", "epochs"), "trunk") | {"part": f"u{unique}_trunk" if apart else "trunk"}
        return filled(r.name, said | {"objective": cell.objective, "size": cell.size, "unique": unique}) + suffix_of(r, cell)
    return name + f"_u{cell.unique}" * apart + suffix_of(r, cell) + "_trunk"


def filled(template: str, said: Mapping[str, object]) -> str:
    """`{size}` by what is said of it; nothing where nothing is."""
    return re.sub(r"{(\w+)}", lambda match: str(said.get(match[1]) or ""), template)


def name_of_subset(unique: int, scale: str) -> str:
    """100M for the published subset of so many tokens, at its scale; else the count."""
    return next((name for name, count in epoch_tokens().items() if scale == "gpu" and count == unique), str(unique))


def suffix_of(r: Settled, cell: Cell) -> str:
    """What differs from the recipes' defaults and changes the result; a template of names says that itself, but for the axes."""
    at, axis_part = flags.SCALES[r.scale], axes.name_of(cell.point)
    if "{" in r.name:
        return axis_part
    return (
        f"_lr{cell.lr:g}" * (cell.lr != at.lr and "lr" not in cell.point)
        + f"_gbs{cell.batch}" * (cell.batch != at.batch_size and "global_batch_size" not in cell.point)
        + f"_wd{cell.decay:g}" * (cell.decay != flags.WEIGHT_DECAY and "weight_decay" not in cell.point)
        + f"_seed{cell.seed}" * (cell.seed != SEED and "seed" not in cell.point)
        + axis_part
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


def read_unique(text: str, scale: str) -> int | None:
    """A published subset (`100M`: 99952399 tokens) at scale gpu, else a count such as 5e5; None for `full`. Raises ValueError."""
    if text == "full":
        return None
    table = epoch_tokens() if scale == "gpu" else {}
    try:
        number = table[text] if text in table else parse_count(text)
    except ValueError:
        number = math.nan
    if not 1 <= number < math.inf or number != int(number):
        raise ValueError(f"--unique-tokens {text}: expected a whole number of tokens above 0, as 100M or 5e5")
    return int(number)
