"""Sizes, tokens and compute: the arithmetic that recipes, trainer and fits share. Standard library only.

P parameters, D tokens, C training FLOPs; l layers, h hidden, f SwiGLU width, V vocabulary.
`python -m megatron.budget --model 217M --flops 1e19` prints one planned run, a `name=value` a line.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from megatron.errors import MissingInput, exits

TABLES = Path(__file__).resolve().parent.parent / "utils"
GPT2_VOCAB = 50257
CANDIDATE_FEATURES = 64  # width of the attention among the candidates of a position
LEVEL_FEATURES = 32  # of the noise level, where a network is told it: sines and cosines of 16 octaves
ESTIMATOR_HEAD = 16  # width of each head of ATAT's network
RESERVED_IDS = 3  # mask, padding, ignore: Vocabulary in data/tokenizer.py names them


def swiglu_width(hidden_size: int) -> int:
    """The reference's SwiGLU width: two thirds of 4h, down to a multiple of 64 (64 at least)."""
    return max(64, int((4 * hidden_size * 2 / 3) / 64) * 64)


def padded_vocab(vocab_size: int, multiple: int = 128, rule: str = "fixed", tensor_parallel: int = 1) -> int:
    """Rows of the embedding table.

    `fixed` keeps room for the reserved ids and does not depend on the layout; `reference` is Megatron's
    smallest multiple of `multiple` x tensor-parallel size.
    """
    if rule == "reference":
        multiple, needed = multiple * tensor_parallel, vocab_size
    else:
        needed = vocab_size + RESERVED_IDS
    return -(-needed // multiple) * multiple


class Parameter(NamedTuple):
    """The shape of one parameter of the whole model, and the dimension that tensor parallelism cuts."""

    shape: tuple[int, ...]
    cut: int | None = None


def count(parameters: dict[str, Parameter]) -> int:
    return sum(math.prod(p.shape) for p in parameters.values())


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a parameter count depends on. Every count is a sum over `tensors`, which the model is held against in a test."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    kv_channels: int
    ffn_hidden_size: int
    vocab_size: int = GPT2_VOCAB
    padded_vocab_size: int = 50304
    tied: bool = True
    num_query_groups: int | None = None  # heads of keys and values [each query head has its own]
    condition_features: int = 0  # of what a network is told: three matrices a norm; 0: nothing
    candidate_features: int = 0  # of attention among a position's candidates; 0: there is none
    latent_readout: int = 0  # numbers of a vector that is predicted; 0: none is
    latent_features: int = 0  # of what is read at the place of a row's vector; 0: rows have none

    def block_tensors(self) -> dict[str, Parameter]:
        """Of one block, by their names inside it."""
        h, a, f = self.hidden_size, self.attention_width, self.ffn_hidden_size
        found = {
            "attention.qkv.weight": Parameter((a + 2 * self.key_width, h), cut=0),
            "attention.out.weight": Parameter((h, a), cut=1),
            "mlp.up.weight": Parameter((2 * f, h), cut=0),
            "mlp.down.weight": Parameter((h, f), cut=1),
        }
        for norm in ("norm1", "norm2"):
            found[f"{norm}.weight"] = Parameter((h,))
            for name in ("scale", "shift", "gate") if self.condition_features else ():
                found[f"{norm}.{name}"] = Parameter((h, self.condition_features))
        return found

    def reader_tensors(self) -> dict[str, Parameter]:
        """Of attention among a position's candidates."""
        h, r = self.hidden_size, self.candidate_features
        if not r:
            return {}
        wide = {name: Parameter((r, h)) for name in ("query", "key", "value")} | {n: Parameter((h, r)) for n in ("out", "sure")}
        return wide | {
            "surer": Parameter((2, r)),
            "ask": Parameter((h,)),
            "trust": Parameter((1,)),
            "trust_read": Parameter((1,)),
        }

    def tensors(self, layers: range | None = None) -> dict[str, Parameter]:
        """Every parameter that the model allocates, by name; or the blocks of some layers, and what is outside of blocks."""
        table, blocks = Parameter((self.padded_vocab_size, self.hidden_size), cut=0), self.block_tensors()
        found = {"embed.weight": table} | {f"reader.{name}": p for name, p in self.reader_tensors().items()}
        if self.latent_features:
            found["reader.weight"] = Parameter((self.hidden_size, self.latent_features))
        numbers = range(self.num_layers) if layers is None else layers
        found |= {f"blocks.{i}.{name}": p for i in numbers for name, p in blocks.items()}
        found |= {"norm.weight": Parameter((self.hidden_size,))} | ({} if self.tied else {"head.weight": table})
        return found | ({"readout.weight": Parameter((self.latent_readout, self.hidden_size))} if self.latent_readout else {})

    @property
    def attention_width(self) -> int:
        return self.num_attention_heads * self.kv_channels

    @property
    def key_width(self) -> int:
        """Of all keys, and of all values."""
        return (self.num_query_groups or self.num_attention_heads) * self.kv_channels

    def non_embedding(self) -> int:
        """Blocks, final norm, and what reads candidates, and reads and predicts vectors, exactly as the model allocates them."""
        outside = self.hidden_size * (1 + self.latent_features + self.latent_readout)
        return self.num_layers * count(self.block_tensors()) + count(self.reader_tensors()) + outside

    def total(self) -> int:
        """Every parameter that the model allocates, padded vocabulary included."""
        tables = 1 if self.tied else 2
        return self.non_embedding() + tables * self.padded_vocab_size * self.hidden_size

    def with_head(self) -> int:
        """Blocks, norm and one V x h output head: what a token is multiplied with."""
        return self.non_embedding() + self.vocab_size * self.hidden_size

    def published(self) -> int:
        """P = 4lh^2 + 3lhf + 6lh + Vh, the count of arXiv:2507.15857 (table 5) and its scripts."""
        l, h = self.num_layers, self.hidden_size
        return 4 * l * h * h + 3 * l * h * self.ffn_hidden_size + 6 * l * h + self.vocab_size * h

    def flops_per_token(self, seq_length: int, reads: int = 1, candidates: float = 0.0) -> float:
        """Training FLOPs a token, 6 (N_blocks + V h) + 12 l w s (PaLM, arXiv:2204.02311, appendix B): no causal halving.

        `reads`: how often a token stands in what blocks and attention read; `candidates`: ids that a position mixes, 0 for one
        that is looked up.
        """
        multiplied = reads * self.products() + self.vocab_size * self.hidden_size + self.row_products() / seq_length
        return 6 * multiplied + 3 * (reads * self.attention_flops(reads * seq_length) + self.mixing_flops(candidates))

    def executed_flops_per_token(
        self, seq_length: int, asked: float, causal: bool, recompute: str | None = None, reads: int = 1, candidates: float = 0.0
    ) -> float:
        """Training FLOPs a token that are computed: the head on the share `asked` of the tokens, causal attention over the
        (s + 1) / 2 places that a token sees, and what --recompute-granularity computes again."""
        attention = reads * self.attention_flops((seq_length + 1) / 2 if causal else reads * seq_length)
        products = reads * self.products()
        again = {None: 0.0, "selective": attention, "full": attention + 2 * products}[recompute]
        read = 3 * (attention + self.mixing_flops(candidates))
        each = products + asked * self.vocab_size * self.hidden_size + self.row_products() / seq_length
        return 6 * each + read + again

    def estimating_flops_per_token(self, seq_length: int) -> float:
        """Of a network without a head over the vocabulary that is read once more than it learns: four forward passes' worth."""
        return 4 * (2 * self.products() + self.attention_flops(seq_length))

    def products(self) -> int:
        """Weights of the blocks that a token is multiplied with."""
        return self.num_layers * count(self.block_matrices())

    def block_matrices(self) -> dict[str, Parameter]:
        """Of one block, those that take the width to the width."""
        return {name: p for name, p in self.block_tensors().items() if name.endswith("weight") and len(p.shape) == 2}

    def orthogonalising_flops(self) -> float:
        """Of one update by Muon."""
        return self.num_layers * sum(self.block_orthogonalising_flops().values())

    def block_orthogonalising_flops(self) -> dict[str, float]:
        """Of one update of each of a block's matrices: for each that stands in it five rounds of two products s x s x l and
        one s x s x s, s the smaller side."""
        h, a, f, k = self.hidden_size, self.attention_width, self.ffn_hidden_size, self.key_width
        rows = {"attention.qkv.weight": (a, k, k), "attention.out.weight": (a,)}
        rows |= {"mlp.up.weight": (f, f), "mlp.down.weight": (f,)}
        return {name: sum(5.0 * (4 * min(n, h) ** 2 * max(n, h) + 2 * min(n, h) ** 3) for n in rows[name]) for name in rows}

    def row_products(self) -> int:
        """Weights that a row is multiplied with once: of the norms' conditions, and of its vector's reader."""
        told = 3 * 2 * self.num_layers * self.condition_features
        return self.hidden_size * (told + self.latent_features + self.latent_readout)

    def attention_flops(self, seen: float) -> float:
        """Of a token's forward pass over so many places: scores and their mean of the values."""
        return 4 * self.num_layers * self.attention_width * seen

    def mixing_flops(self, candidates: float) -> float:
        """Of a position's forward pass through what reads so many candidates: their mean, and attention among them before it."""
        c, h, r = candidates, self.hidden_size, self.candidate_features
        return 2 * c * h + (2 * c * (5 * h * r + h) + 4 * c * c * r if r else 0)


def read_table(file: str, prefix: str) -> dict[str, list[int]]:
    """`PREFIX_name=(1 2 3)` and `PREFIX_name=1` lines of a sourceable file under utils/.  -> {name: numbers}

    Raises MissingInput.
    """
    path = TABLES / file
    try:
        text = path.read_text()
    except OSError as error:
        raise MissingInput(f"{path}: the table cannot be read ({error.strerror}); use a checkout of the project") from None
    lines = re.findall(rf"^{prefix}_(\w+)=\(?([\d ]+)\)?", text, re.MULTILINE)
    return {name: [int(n) for n in numbers.split()] for name, numbers in lines}


def sizes() -> dict[str, list[int]]:
    """The model table: name -> d_model, ffw (unused: SwiGLU's width follows from d_model), kv, heads, layers."""
    return read_table("model_params.sh", "PARAM")


def epoch_tokens() -> dict[str, int]:
    """Tokens of each published subset: name -> count."""
    return {name: count for name, (count,) in read_table("epoch_tokens.sh", "DATA").items()}


def nearest(name: str, known: list[str]) -> str:
    """The names a user may have meant: by spelling, and for `426M` also by number."""
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    if re.fullmatch(r"\d+M", name):
        numbers = [k for k in known if re.fullmatch(r"\d+M", k)]
        close = sorted(numbers, key=lambda k: abs(int(k[:-1]) - int(name[:-1])))[:2]
    return " or ".join(close) or "one of " + ", ".join(known)


def find_size(model: str, vocab_size: int = GPT2_VOCAB) -> tuple[str, Shape]:
    """A table name, or the table's five numbers (`1280 5120 128 10 18`), as a name and a shape. Raises ValueError."""
    table = sizes()
    numbers = table.get(model)
    if re.fullmatch(r"\d+([ ,]+\d+){4}", model.strip()):
        numbers = [int(n) for n in re.findall(r"\d+", model)]
    if numbers is None:
        raise ValueError(f"no size {model!r} in utils/model_params.sh; did you mean {nearest(model, list(table))}?")
    hidden, _, kv, heads, layers = numbers
    if 0 in (hidden, kv, heads, layers):
        raise ValueError(f"the size {model} holds a zero: d_model ffw kv heads layers must be positive")
    name = next((n for n, known in table.items() if known == numbers), f"{layers}x{hidden}")
    return name, Shape(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        kv_channels=kv,
        ffn_hidden_size=swiglu_width(hidden),
        vocab_size=vocab_size,
        padded_vocab_size=padded_vocab(vocab_size),
    )


def find_tokens(data: str) -> int:
    """A subset's name (`100M` is the published 99952399) or a count as tokens. Raises ValueError."""
    table = epoch_tokens()
    if data not in table and not re.fullmatch(r"[1-9]\d*", data):
        raise ValueError(
            f"no subset {data!r} in utils/epoch_tokens.sh; did you mean {nearest(data, list(table))}? "
            "A count of tokens is read too"
        )
    return table[data] if data in table else int(data)


def flop_budget(flops: float, params: int, seq_length: int = 2048) -> tuple[int, int, int]:
    """The FLOP-budget rule of the published scripts, C = 6 P D.  -> tokens, samples, warm-up samples"""
    tokens = int((flops / 1e18 * 1e9 / 6) * (1e9 / params))
    samples = round(tokens / seq_length)
    return tokens, samples, max(round(samples / 100), 100)


def epoch_budget(unique_tokens: int, epochs: int, seq_length: int = 2048) -> tuple[int, int, int]:
    """The multi-epoch rule of the published scripts.  -> tokens, samples, warm-up samples"""
    tokens = unique_tokens * epochs
    samples = tokens // seq_length
    return tokens, samples, samples // 100


@dataclass(frozen=True, kw_only=True)
class RunBudget:
    """One run's size, length and compute; `flops` is 6 x params x tokens."""

    name: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    kv_channels: int
    params: int
    params_published: int
    params_total: int
    tokens: int = 0
    unique_tokens: int = 0
    train_samples: int = 0
    warmup_samples: int = 0
    flops: float = 0.0


def run_budget(given: argparse.Namespace) -> RunBudget:
    """What the command line asks for. Raises ValueError with a sentence."""
    name, shape = find_size(" ".join(given.model), given.vocab_size)
    params = shape.total() if given.params == "total" else shape.published()
    size = RunBudget(
        name=name,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        kv_channels=shape.kv_channels,
        params=params,
        params_published=shape.published(),
        params_total=shape.total(),
    )
    if given.flops is not None:
        tokens, samples, warmup = flop_budget(given.flops, params, given.seq_length)
        unique, flops = tokens // given.epochs, given.flops
    elif given.tokens is not None:
        unique = find_tokens(given.tokens)
        tokens, samples, warmup = epoch_budget(unique, given.epochs, given.seq_length)
        flops = 6.0 * params * tokens
    else:
        return size
    if samples < 1:
        raise ValueError(
            f"{flops:g} FLOPs train {name} on {tokens} tokens, less than one sample of {given.seq_length}: "
            "take more FLOPs or a smaller size"
        )
    return replace(size, tokens=tokens, unique_tokens=unique, train_samples=samples, warmup_samples=warmup, flops=flops)


def spell(value: str | int | float) -> str:
    """A value as recipes write it: `1e19`, not `1e+19`."""
    return f"{value:g}".replace("e+0", "e").replace("e+", "e") if isinstance(value, float) else str(value)


def positive(kind: type):
    """A type for argparse: a finite number above zero."""

    def read(text: str):
        number = kind(text)
        if not (number > 0 and math.isfinite(number)):
            raise ValueError
        return number

    read.__name__ = "positive number"
    return read


@exits
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m megatron.budget",
        allow_abbrev=False,
        description="The arithmetic of the recipes.",
        usage="%(prog)s --model SIZE [--flops C | --tokens D] [--epochs E] [--field NAME ...]",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        metavar="SIZE",
        help="a name of utils/model_params.sh, or d_model ffw kv heads layers",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--flops", type=positive(float), help="budget C: D = C / (6 P) tokens")
    length.add_argument("--tokens", help="or: unique tokens, a name of utils/epoch_tokens.sh or a count")
    parser.add_argument("--epochs", type=positive(int), default=1, help="passes over the unique tokens")
    parser.add_argument("--seq-length", type=positive(int), default=2048)
    parser.add_argument("--vocab-size", type=positive(int), default=GPT2_VOCAB)
    parser.add_argument(
        "--params", choices=["published", "total"], default="published", help="P: the published formula, or every parameter"
    )
    parser.add_argument(
        "--field",
        nargs="+",
        metavar="NAME",
        choices=list(RunBudget.__dataclass_fields__),
        help="print only these values, on one line",
    )
    given = parser.parse_args(argv)
    try:
        said = {name: spell(value) for name, value in asdict(run_budget(given)).items()}
    except ValueError as error:
        parser.error(str(error))
    print(" ".join(said[f] for f in given.field) if given.field else "\n".join(f"{k}={v}" for k, v in said.items()))


if __name__ == "__main__":
    sys.exit(main())
