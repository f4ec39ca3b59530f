"""How a flag is declared, spelled and read: from the words of a command line, or from YAML. Values only; what they mean
together is config.py's. Standard library, and yaml where a file is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from megatron.errors import Refusal
from megatron.nested_keys import as_flags


class ConfigError(Refusal):
    """Every mistake of one command line, a sentence each."""

    code = 2

    def __init__(self, mistakes: list[str]):
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class Needs(NamedTuple):
    """What a flag acts with: without it the flag would do nothing, and is refused."""

    said: str  # what to do, as in `would do nothing here: give --save, or leave it out`
    met: Callable[[Any], Any]  # of the Config


Identity = Literal["experiment", "noted", "free"]


def flag(
    default: Any = MISSING,
    help: str = "",
    *,
    identity: Identity,
    needs: Needs | None = None,
    count: bool = False,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    only: str | None = None,
    legal: tuple[str, ...] = (),
) -> Any:
    """One flag. A number is above 0, or at least `least`, and below `below`, or at most `most`; `count`: 100M and 1e9 are read.

    `identity` is what another value makes of a run. experiment: another one, which no checkpoint or folder of this one is for;
    noted: the same run, changed on the way, which is said and recorded; free: nothing that its results depend on, or something
    that another field or a fingerprint of the data says. A flag that older checkpoints do not know had its default there.
    `legal`: the words that it takes, where its type is no Literal that says them.
    `only` marks a flag of published recipes whose one legal value is the default, and says why.  Raises TypeError.
    """
    if identity not in get_args(Identity):
        raise TypeError(f"identity={identity!r} must be one of {', '.join(get_args(Identity))}")
    known: dict[str, Any] = {"identity": identity, "needs": needs, "count": count, "only": only, "legal": legal}
    known |= {"least": least, "below": below, "most": most}
    return field(default=default, metadata={"help": help, **known})


# Other spellings of a flag. A value behind the name: the flag takes none and means that value.
ALIASES: dict[str, tuple[str, Any]] = {
    "max-steps": ("train_iters", None),
    "token-budget": ("train_tokens", None),
    "target-flops": ("flops", None),
    "log-dir": ("run_dir", None),
    "output-dir": ("run_dir", None),
    "wandb-run-name": ("wandb_exp_name", None),
    "resume-from": ("load", None),
    "checkpoint-interval-steps": ("save_interval", None),
    "max-step-checkpoints": ("keep_last", None),
    "learning-rate": ("lr", None),
    "force-cpu": ("device", "cpu"),
    "gradient-checkpointing": ("recompute_granularity", "full"),
    "checkpoint-activations": ("recompute_granularity", "full"),
    "recompute-activations": ("recompute_granularity", "selective"),
    "layernorm-epsilon": ("norm_epsilon", None),
    "rotary-theta": ("rotary_base", None),
    "eval-every": ("eval_interval", None),
    "reduce-lr-factor": ("lr_plateau_factor", None),
    "max-seq-len": ("seq_length", None),
    "disable-bias-linear": ("bias_linear", False),
    "no-position-embedding": ("use_rotary_position_embeddings", True),
    "difflm-varilen-prob": ("random_length_prob", None),
    "use-mup": ("parametrization", "mup"),
    **dict.fromkeys(["mup-base-width", "scaling-base-hidden-size"], ("mup_base_hidden_size", None)),
    **dict.fromkeys(["mup-base-layers", "scaling-base-num-layers"], ("mup_base_num_layers", None)),
    **dict.fromkeys(["mup-base-head-dim", "scaling-base-head-dim"], ("mup_base_kv_channels", None)),
}

# Flags of work that is not built yet, and what each needs; a star stands for anything.
LATER = {
    "untie-with-additional-mask": "an extra input row for the mask",
    **dict.fromkeys(
        ["fp16", "loss-scale", "initial-loss-scale", "min-loss-scale", "loss-scale-window"], "fp16 with loss scaling"
    ),
    **dict.fromkeys(
        [
            "task-list",
            "results-path",
            "adaptive-seq-len",
            "num-fewshot",
            "eval-fp32",
            "eval-method",
            "sampling-eps",
            "only-generate",
            "only-mc-nll",
            "max-chunk-size",
            "inference",
            "no-load-optim",
            "no-load-rng",
            "checkpoint",
            "metrics",
            "num-samples",
            "output",
        ],
        "the evaluation harness",
    ),
    **dict.fromkeys(["start-weight-decay", "end-weight-decay", "weight-decay-incr-style"], "a weight decay that changes"),
    **dict.fromkeys(["rampup-batch-size", "decrease-batch-size-if-needed"], "a batch size that grows"),
    **dict.fromkeys(["decoupled-lr", "decoupled-min-lr"], "a rate of its own for embedding and head"),
    **dict.fromkeys(["sgd-momentum", "dist-muon*"], "another optimizer than AdamW and Muon"),
    **dict.fromkeys(
        ["num-experts", "expert-*parallel-size", "expert-interval", "moe-*", "create-moe-*", "topk", "use-tutel"],
        "mixtures of experts",
    ),
    **dict.fromkeys(
        ["encoder-*", "decoder-seq-length", "pipeline-model-parallel-split-rank", "bert-*", "mask-prob", "short-seq-prob"],
        "an encoder",
    ),
    **dict.fromkeys(["retriever-*", "titles-data-path", "ict-*", "biencoder-*", "use-one-sent-docs"], "models that retrieve"),
    **dict.fromkeys(
        ["context-parallel-size", "cp-comm-type", "hierarchical-context-*", "ds-sequence-parallel-size"], "context parallelism"
    ),
    **dict.fromkeys(["fp8-*", "fp4-*", "first-last-layers-bf16", "num-layers-at-*-in-bf16"], "computing in 8 bits or fewer"),
    **dict.fromkeys(
        ["multi-latent-attention", "q-lora-rank", "kv-lora-rank", "qk-head-dim", "qk-pos-emb-head-dim", "v-head-dim"],
        "multi-head latent attention",
    ),
    "mtp-*": "prediction of several tokens",
    **dict.fromkeys(["window-size", "window-attn-skip-freq"], "attention within a sliding window"),
    **dict.fromkeys(["qk-layernorm", "qk-l2-norm"], "norms of queries and keys"),
    "add-qkv-bias": "biases of queries, keys and values",
    **dict.fromkeys(
        ["rotary-percent", "rotary-interleaved", "rotary-seq-len-*", "use-rope-scaling", "rope-scaling-*", "no-rope-freq"],
        "rotary positions of another kind",
    ),
    **dict.fromkeys(["squared-relu", "openai-gelu", "quick-geglu"], "another MLP than SwiGLU"),
    **dict.fromkeys(["hybrid-*", "mamba-*", "is-hybrid-model"], "state-space layers"),
    **dict.fromkeys(["init-method-xavier-uniform", "embedding-init-method-std"], "another initialisation"),
    **dict.fromkeys(["perform-initial-eval", "eval-at-start"], "a validation before the first step"),
    "log-num-zeros-in-grad": "counting zeros in gradients",
    "epochs": "a length in epochs (--train-tokens is there)",
    "target-param-data-ratio": "a length by tokens a parameter (--flops is there)",
}

# Flags that stand for nothing here, refused for good.
DEAD = {
    "target-random-ratio": "the reference resets it to 0",
    "use-target-position-embeddings": "the reference forces it off",
    "order-list": "an internal slot of the reference",
    "use-order-list": "--num-order-list says how many orders, and with it that there are some",
    **dict.fromkeys(
        ["full-dataset", "max-examples-per-split", "download-from-s3", "upload-to-s3", "s3-bucket", "s3-prefix"],
        "tools/prepare_corpus.py prepares, fetches and stores corpora",
    ),
    "upload-results-to-s3": "give --upload-to s3://bucket/runs",
    **dict.fromkeys(["lr-decay-tokens", "lr-warmup-tokens"], "give --lr-decay-samples and --lr-warmup-samples"),
    "muon-tp-mode": "matrices are orthogonalised whole at every layout, by ranks that share them out",
    **dict.fromkeys(["muon-split-qkv", "muon-no-split-qkv"], "queries, keys and values are orthogonalised apart"),
    **dict.fromkeys(["muon-scale-mode", "muon-extra-scale-factor"], "give --muon-scale"),
    **dict.fromkeys(
        ["muon-num-ns-steps", "muon-coefficient-type", "muon-use-nesterov"], "Muon is as published: Nesterov, 5 rounds"
    ),
    "muon-fp32-matmul-prec": "Muon computes in fp32, or give --muon-bf16",
    "mock-data": "tools/make_entropy_corpus.py makes corpora, of known entropy",
    "num-workers": "batches are read from the memory map; no worker is needed",
    "dataloader-type": "every sample is addressed by its number; there is one loader",
    "mask-token": "the mask is the first id after the tokenizer's",
    "attention-mask-type": "--objective decides what sees what",
    "architecture": "pretrain_gpt.py trains ar, pretrain_diff_gpt.py mdm; --objective says another",
    "config-name": "name a file: --config FILE.yaml",
    "data-dir": "name a corpus: --data-path PREFIX",
    "load-tag": "name one checkpoint: --load FOLDER/step-00001000",
    "pretrained-checkpoint": "give --load FOLDER --finetune",
    "distributed-timeout-minutes": "it is in seconds: --distributed-timeout N",
    **dict.fromkeys(
        [
            "no-*-fusion",
            "cross-entropy-*fusion*",
            "no-persist-layer-norm",
            "attention-softmax-in-fp32",
            "*query-key-layer-scaling",
        ],
        "kernels are chosen here: the fastest that keeps the numbers",
    ),
    **dict.fromkeys(
        ["transformer-impl", "use-mcore-models", "use-legacy-models", "attention-backend", "*cuda-graph*", "tp-comm-overlap*"],
        "there is one implementation of the model",
    ),
    **dict.fromkeys(
        ["accumulate-allreduce-grads-in-fp32", "grad-reduce-in-bf16", "main-*-dtype", "exp-avg*-dtype"],
        "weights, gradients and moments are fp32",
    ),
    **dict.fromkeys(
        ["use-torch-fsdp2", "use-megatron-fsdp", "data-parallel-sharding-strategy", "overlap-param-gather*"], "use --zero-stage"
    ),
    **dict.fromkeys(["check-for-nan-*", "no-check-for-nan-*", "check-for-large-grads"], "every step is checked"),
    **dict.fromkeys(["ckpt-*", "use-dist-ckpt*", "dist-ckpt-*", "auto-detect-ckpt-format"], "there is one format of checkpoints"),
    "save-retain-interval": "give --keep-last and --keep-every",
    **dict.fromkeys(
        [
            "override-opt-param-scheduler",
            "use-checkpoint-opt-param-scheduler",
            "use-checkpoint-args",
            "exit-on-missing-checkpoint",
        ],
        "the flags of this start count, and every change since the checkpoint is said or refused",
    ),
    **dict.fromkeys(["no-save-optim", "no-save-rng"], "a checkpoint is whole; randomness has no state to save"),
    **dict.fromkeys(
        [
            "log-throughput",
            "log-params-norm",
            "log-progress",
            "timing-log-*",
            "log-memory-to-tensorboard",
            "tensorboard-log-interval",
        ],
        "it is always recorded in metrics.jsonl; --log-interval says how often",
    ),
    "log-world-size-to-tensorboard": "run.json has it",
    **dict.fromkeys(["vocab-extra-ids", "no-initialization", "lazy-mpu-init", "use-cpu-initialization"], "nothing here reads it"),
    **dict.fromkeys(
        ["num-layers-per-stage", "num-virtual-stages-per-pipeline-rank", "pipeline-model-parallel-layout"],
        "give --num-layers-per-virtual-pipeline-stage, or --decoder-first-pipeline-num-layers and -last-",
    ),
}

POWERS = {"k": "e3", "m": "e6", "b": "e9", "g": "e9", "t": "e12"}
LARGEST = 2**53  # whole numbers that every JSON reader keeps
Table = dict[str, tuple[str, dataclasses.Field, Any]]


def spelling(name: str) -> str:
    return "--" + name.replace("_", "-")


def without_none(hint) -> Any:
    """`int | None` -> int."""
    kept = [part for part in get_args(hint) if part is not type(None)]
    return kept[0] if kept and type(None) in get_args(hint) else hint


def choices(f: dataclasses.Field, hint) -> tuple:
    """The words that a flag takes; none where any will do."""
    return get_args(hint) if get_origin(hint) is Literal else f.metadata["legal"]


def parse_count(text: str) -> float:
    """`100M`, `1.5B`, `1e9`, `2048` -> number. Raises ValueError."""
    power = POWERS.get(text[-1:].lower())
    return float(text[:-1] + power if power else text)  # 4.1M x 1e6 would be 4099999.9999999995


def convert(f: dataclasses.Field, hint, value: Any) -> Any:
    """A flag's text, or a YAML value, as its field's type. Raises ValueError with the sentence's end."""
    if choices(f, hint):
        value = choose(choices(f, hint), value, f.metadata["only"])
    elif hint is bool and not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    elif get_origin(hint) is list:
        read = read_text if get_args(hint)[0] is str else functools.partial(read_number, f, int)
        value = [read(v) for v in (value if isinstance(value, list) else str(value).split())]
    elif hint is str:
        value = read_text(value)
    elif hint is not bool:
        value = read_number(f, hint, value)
    if f.metadata["only"] and value != f.default:
        raise ValueError(f"cannot be {value}: {f.metadata['only']}")
    return value


def choose(legal: tuple[str, ...], value: Any, why: str | None) -> str:
    """The legal value that is meant: letter case does not count, and YAML reads `on` as true."""
    word = ("off", "on")[value] if isinstance(value, bool) else str(value)
    match = next((c for c in legal if c.lower() == word.lower()), None)
    if match is None:
        reason = f": {why}" if why else ""
        raise ValueError(f"must be {'one of ' if len(legal) > 1 else ''}{', '.join(legal)}, not {word!r}{reason}")
    return match


def read_text(value: Any) -> str:
    text = str(value)
    if isinstance(value, (bool, list, dict)) or not text.strip() or not text.isprintable():
        raise ValueError(f"must be text that prints, not {value!r}")
    return text


def read_whole(text: str, count: bool) -> int:
    """Raises ValueError, or OverflowError for an infinite one."""
    if not count or text.isdigit():
        return int(text)
    number = parse_count(text)
    if number != int(number):
        raise ValueError
    return int(number)


def read_number(f: dataclasses.Field, hint, value: Any) -> int | float:
    """A finite number in its flag's range; a whole one below 2**53, which every JSON reader keeps."""
    count, least, below = (f.metadata[name] for name in ("count", "least", "below"))
    try:
        number = read_whole(str(value), count) if hint is int else (parse_count if count else float)(str(value))
    except ValueError:
        kind = "a whole number" if hint is int else "a number"
        raise ValueError(f"must be {kind}{' (100M and 1e9 are read too)' if count else ''}, not {value!r}") from None
    except OverflowError:
        number = math.inf
    if not abs(number) < (LARGEST if hint is int else math.inf):
        raise ValueError(f"must be {'below 2**53' if hint is int else 'finite'}, not {value}")
    if number < (0 if least is None else least) or (number == 0 and least is None):
        raise ValueError(f"must be {'above 0' if least is None else f'at least {least}'}, not {value}")
    if below is not None and number >= below:
        raise ValueError(f"must be below {below}, not {value}")
    if (most := f.metadata["most"]) is not None and number > most:
        raise ValueError(f"must be at most {most}, not {value}")
    return number


def flat(spelled: str) -> str:
    return spelled.lstrip("-").replace("_", "-")


def find(spelled: str, table: Table) -> tuple[str | None, Any]:
    """The field that a spelling means, and the value it stands for where it takes none (`--no-bf16`: False)."""
    name = flat(spelled).replace("-", "_")
    if name in table:
        return name, None
    switch = name.removeprefix("no_")
    if name != switch and switch in table and table[switch][2] is bool:
        return switch, False
    return ALIASES.get(flat(spelled), (None, None))


def reason(name: str, table: dict[str, str]) -> str | None:
    """What LATER or DEAD says of a flag, by its own name or by a pattern with a star."""
    return next((what for known, what in table.items() if fnmatch.fnmatchcase(name, known)), None)


def refuse(spelled: str, table: Table) -> str:
    """The sentence for a flag that does not exist here."""
    name = flat(spelled)
    if later := reason(name, LATER):
        return f"--{name} needs {later}, which is not built yet: leave the flag out"
    if dead := reason(name, DEAD):
        return f"--{name} is refused for good: {dead}"
    near = difflib.get_close_matches(name, [flat(n) for n in table] + list(ALIASES) + ["config"], n=1, cutoff=0.8)
    return f"--{name} is not a flag" + (f"; did you mean --{near[0]}?" if near else "; --help lists all")


def unite(words: tuple[str, ...], hint) -> Any:
    """The words behind a flag as one value. Raises ValueError with the sentence's end."""
    found = f"found {' '.join(words)!r}" if words else "found none"
    if hint is bool:
        if words:
            raise ValueError(f"takes no value, {found}")
        return True
    if get_origin(hint) is list and words:
        return list(words)
    if len(words) != 1:
        raise ValueError(f"takes {'values' if get_origin(hint) is list else 'one value'}, {found}")
    return words[0]


def read_value(f: dataclasses.Field, hint, fixed: Any, value: Any) -> Any:
    """What a flag is given, as its field's value; None: nothing. Raises ValueError with the sentence's end."""
    if isinstance(value, tuple):
        value = unite(value, hint if fixed is None else bool)
    if fixed is not None:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {value!r}")
        value = fixed if value else not fixed if hint is bool else None
    return None if value is None else convert(f, hint, value)


def settle(pairs: Iterable[tuple[str, Any]], table: Table, mistakes: list[str], where: str = "") -> dict[str, Any]:
    """(spelling, value) pairs of one source -> {field: value}, None where the value cannot be read.

    A tuple is the words behind a flag of the command line; all else is YAML.
    """
    got: dict[str, Any] = {}
    said: dict[str, str] = {}
    for spelled, value in pairs:
        name, fixed = find(spelled, table)
        if name is None:
            mistakes.append(where + refuse(spelled, table))
            continue
        _, f, hint = table[name]
        try:
            new = read_value(f, hint, fixed, value)
        except ValueError as error:
            mistakes.append(f"{where}{spelled} {error}")
            new = None
        if None not in (new, got.get(name)) and got[name] != new:
            mistakes.append(f"{where}{spelled} {new} contradicts {said[name]} {got[name]}: say it once")
        got[name], said[name] = new, spelled
    return got


def split_words(argv: list[str], mistakes: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """`--a 1 2 --b=3` -> (--a, (1, 2)), (--b, (3,)). A negative number is a value."""
    found: list[tuple[str, tuple[str, ...]]] = []
    open_ended = False
    for word in argv:
        if re.match(r"--[A-Za-z]", word):
            spelled, inline, value = word.partition("=")
            found.append((spelled, (value,) if inline else ()))
            open_ended = not inline
        elif open_ended:
            found[-1] = (found[-1][0], (*found[-1][1], word))
        else:
            mistakes.append(f"{word!r} stands alone: a value without a flag")
    return found


def read_file(path: str, sections: set[str], mistakes: list[str], said: list[str]) -> list[tuple[str, Any]]:
    """`--config FILE`: YAML or JSON, flat or by section, flags spelled with - or _, or MDLM's nested keys; null is not given.

    Appends to `said` what of these does not act.
    """
    try:
        tree = read_tree(path)
    except ValueError as error:
        mistakes.append(f"--config {error}")
        return []
    pairs: list[tuple[Any, Any]] = []
    for key, value in as_flags(tree, f"--config {path}: ", mistakes, said).items():
        pairs += value.items() if key in sections and isinstance(value, dict) else [(key, value)]
    return [(str(key), value) for key, value in pairs if value is not None]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of which nothing was lost. Raises ValueError."""
    names = [name for name, _ in pairs]
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise ValueError(f"{twice[0]} is given twice")
    return dict(pairs)


def read_tree(path: str) -> dict[Any, Any]:
    """A YAML file's mapping, or a .json file's. Raises ValueError with a sentence that begins with the path."""
    import yaml

    class Loader(yaml.SafeLoader):  # which takes the last of two
        def construct_mapping(self, node, deep=False):
            unique([(key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)])
            return super().construct_mapping(node, deep)

    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = json.loads(text, object_pairs_hook=unique) if path.endswith(".json") else Loader(text).get_single_data()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.endswith(".json") else "YAML"
        raise ValueError(f"{path}: is not {kind} ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict | None):
        raise ValueError(f"{path}: must hold `name: value` lines, found {type(tree).__name__}")
    return tree or {}


def metavar(f: dataclasses.Field, hint) -> str:
    if choices(f, hint):
        return "{" + ",".join(choices(f, hint)) + "}"
    return {bool: "", int: "N", float: "X", str: "TEXT", list[int]: "N ..."}.get(hint, "TEXT ...")


def help_row(left: str, right: str) -> str:
    """Two columns; a long left side has its own line."""
    lines = textwrap.wrap(right, 76, break_on_hyphens=False)
    first = f"  {left:<43} {lines[0]}" if len(left) <= 43 else f"  {left}\n{'':46}{lines[0]}"
    return "\n".join([first, *(" " * 46 + line for line in lines[1:])])


def refuse_empty(words: Sequence[str]) -> None:
    """Raises ConfigError for an empty word among a program's, as a shell's variable without a value leaves it."""
    for number, word in enumerate(words):
        if word == "":
            before = words[number - 1] if number else "the program"
            raise ConfigError([f"{before} is followed by an empty word, as of a variable without a value; leave it out."])
