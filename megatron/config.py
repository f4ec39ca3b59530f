"""Every flag, once. A field is a flag: `hidden_size` is `--hidden-size`; its help is beside it.

`parse(argv)` reads flags and `--config FILE.yaml`, derives what was left open, checks everything that can be known
without opening the data, and returns one frozen `Config`. All mistakes are collected and raised together as
`ConfigError`. Nothing here imports torch or numpy.
"""
from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron.budget import GPT2_VOCAB, RESERVED_IDS, Shape, padded_vocab, swiglu_width
from megatron.errors import Refusal


class ConfigError(Refusal):
    """Every mistake of one command line, a sentence each."""
    code = 2

    def __init__(self, mistakes: list[str]):
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def flag(default=MISSING, help="", *, count: bool = False, least: float | None = None, below: float | None = None,
         only: str | None = None):
    """One flag. A number is above 0, or at least `least`, and below `below`; `count`: 100M and 1e9 are read.

    `only` marks a flag of published recipes whose one legal value is the default, and says why.
    """
    return field(default=default, metadata={"help": help, "count": count, "least": least, "below": below, "only": only})


@dataclass(frozen=True, kw_only=True)
class Model:
    model_config: Literal["small", "medium", "large", "xl"] | None = flag(None, "preset of the table below; single flags win")
    num_layers: int = flag(None, "transformer blocks")
    hidden_size: int = flag(None, "width of the residual stream")
    num_attention_heads: int = flag(None, "query heads")
    kv_channels: int = flag(None, "width of one head [hidden / heads]")
    ffn_hidden_size: int = flag(None, "SwiGLU width [two thirds of 4 x hidden, down to a multiple of 64]")
    seq_length: int = flag(2048, "tokens a sample")
    max_position_embeddings: int = flag(None, "longest sequence the model accepts [seq-length]")
    vocab_size: int = flag(None, "ids the tokenizer knows [from the tokenizer]", count=True)
    make_vocab_size_divisible_by: int = flag(128, "the embedding table has a multiple of this many rows")
    pad_vocab: Literal["fixed", "reference"] = flag(
        "fixed", "fixed: room for the mask, the same at every layout; reference: Megatron's, grows with tensor parallelism")
    padded_vocab_size: int = flag(None, "rows of the embedding table [derived; give it only to check]")
    untie_embeddings_and_output_weights: bool = flag(False, "a separate output head")
    predict_reserved: bool = flag(False, "parity: the softmax also runs over mask and padding columns")
    normalization: Literal["rmsnorm"] = flag("rmsnorm", "norm before each branch", only="the model has RMSNorm")
    norm_epsilon: float = flag(1e-5, "added to the mean square in RMSNorm")
    swiglu: bool = flag(True, "gated SiLU MLP", only="the model has SwiGLU")
    position_embedding_type: Literal["rope"] = flag("rope", "how positions enter", only="the model has rotary positions")
    use_rotary_position_embeddings: bool = flag(True, "rotary positions", only="the model has rotary positions")
    rotary_base: float = flag(10000.0, "base of the rotary frequencies")
    bias_linear: bool = flag(False, "biases in linear layers", only="the model has no biases")
    init_method_std: float = flag(0.02, "standard deviation of the initial weights; output projections / sqrt(2 layers)")
    attention_dropout: float = flag(0.1, "dropout after the softmax (Megatron's default; the recipes set 0)", least=0, below=1)
    hidden_dropout: float = flag(0.1, "dropout after each branch (Megatron's default; the recipes set 0)", least=0, below=1)
    use_flash_attn: bool = flag(False, "insist on the fused attention kernel, which is taken anyway without --attention-dropout")

    def shape(self) -> Shape:
        return Shape(num_layers=self.num_layers, hidden_size=self.hidden_size, num_attention_heads=self.num_attention_heads,
                     kv_channels=self.kv_channels, ffn_hidden_size=self.ffn_hidden_size, vocab_size=self.vocab_size,
                     padded_vocab_size=self.padded_vocab_size, tied=not self.untie_embeddings_and_output_weights)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    tensor_model_parallel_size: int = flag(1, "processes that share each layer")
    pipeline_model_parallel_size: int = flag(1, "stages of the model")
    zero_stage: int = flag(0, "what of the optimizer's state is sharded over data-parallel processes; 0: nothing", least=0)


@dataclass(frozen=True, kw_only=True)
class Data:
    data_path: list[str] = flag(None, "one corpus, cut by --split: PREFIX, or pairs WEIGHT PREFIX")
    split: str = flag("969,30,1", "shares of --data-path for train, valid, test")
    train_data_path: list[str] = flag(None, "training corpora: PREFIX, or WEIGHT [START:END] PREFIX ...")
    valid_data_path: list[str] = flag(None, "validation corpora, likewise")
    test_data_path: list[str] = flag(None, "test corpora, likewise (scored once, at the end)")
    train_data_path_file: str = flag(None, "file with the training corpora, `weight [start:end] prefix` a line")
    valid_data_path_file: str = flag(None, "file with the validation corpora, likewise")
    test_data_path_file: str = flag(None, "file with the test corpora, likewise")
    data_impl: Literal["mmap"] = flag("mmap", "how tokens are read", only="files are memory-mapped")
    tokenizer_type: Literal["GPT2BPETokenizer", "TikTokenizer", "SentencePieceTokenizer", "HFTokenizer", "ByteTokenizer"] = flag(
        "GPT2BPETokenizer", "how text became ids")
    tokenizer_model: str = flag(
        None, "file of TikTokenizer (.tiktoken), SentencePieceTokenizer (.model) or HFTokenizer (.json or folder)")
    vocab_file: str = flag(None, "vocabulary of GPT2BPETokenizer (vocab.json) [GPT-2's]")
    merge_file: str = flag(None, "its merges (merges.txt) [GPT-2's]")


@dataclass(frozen=True, kw_only=True)
class Objective:
    objective: Literal["ar", "mdm"] = flag("ar", "ar: predict the next token; mdm: masked diffusion")
    mdm_t_sampling: Literal["stratified", "iid"] = flag(
        "stratified", "noise levels: one in each stratum of the global batch, or independent")
    mdm_eps: float = flag(
        1e-3, "training masks with probability p = (1 - eps) t + eps; validation always has eps 0", least=0, below=1)
    num_mc: int = flag(None, "noise draws a validation row [ar 1, mdm 2; 2 or more give a standard error]")
    score_first_token: bool = flag(False, "parity: validation scores token 0 too (mdm), and the last one (ar)")


@dataclass(frozen=True, kw_only=True)
class Optim:
    optimizer: Literal["adam"] = flag("adam", "AdamW, fused", only="the optimizer is AdamW")
    lr: float = flag(None, "peak learning rate", least=0)
    min_lr: float = flag(0.0, "learning rate at the end of the decay", least=0)
    lr_decay_style: Literal["cosine", "linear", "constant", "WSD"] = flag("linear", "from peak to --min-lr")
    lr_decay_samples: int = flag(None, "samples until --min-lr [all]", count=True)
    lr_decay_iters: int = flag(None, "the same in iterations", count=True)
    lr_warmup_samples: int = flag(None, "samples of linear warm-up [0]", count=True, least=0)
    lr_warmup_iters: int = flag(None, "the same in iterations", count=True, least=0)
    lr_warmup_fraction: float = flag(None, "the same as a share of the decay samples", least=0, below=1)
    lr_wsd_decay_samples: int = flag(None, "WSD: samples of the final decay [a tenth]", count=True)
    lr_wsd_decay_iters: int = flag(None, "the same in iterations", count=True)
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = flag(
        "exponential", "WSD: shape of the final decay")
    adam_beta1: float = flag(0.9, "decay of the first moment", least=0, below=1)
    adam_beta2: float = flag(0.999, "decay of the second moment", least=0, below=1)
    adam_eps: float = flag(1e-8, "added to the root of the second moment")
    weight_decay: float = flag(0.01, "decoupled decay of matrices; norm weights have none", least=0)
    clip_grad: float = flag(1.0, "largest gradient norm; 0 does not clip", least=0)


@dataclass(frozen=True, kw_only=True)
class Train:
    micro_batch_size: int = flag(1, "samples a forward pass")
    global_batch_size: int = flag(None, "samples a step [micro-batch x --grad-accum-steps]")
    grad_accum_steps: int = flag(None, "micro-batches a step, instead of --global-batch-size")
    train_samples: int = flag(None, "samples to train on; any length goes down to whole global batches", count=True)
    train_iters: int = flag(None, "or: steps", count=True)
    train_tokens: int = flag(None, "or: tokens", count=True)
    flops: float = flag(None, "or: training FLOPs, C = 6 x all parameters x tokens", count=True)
    seed: int = flag(1234, "names weights, data order and noise", least=0)
    bf16: bool = flag(False, "compute in bfloat16; weights and moments stay fp32")
    device: Literal["auto", "cpu", "cuda"] = flag("auto", "where to run")
    num_threads: int = flag(None, "CPU threads [OMP_NUM_THREADS, or all cores]")
    compile: Literal["auto", "on", "off"] = flag(
        "auto", "torch.compile of the blocks; auto: where the run is long enough to repay it")
    deterministic_mode: bool = flag(False, "only deterministic kernels (eager on CPU is deterministic without it)")
    recompute_granularity: Literal["full"] = flag(
        None, "full: keep only each block's input, recompute the rest in the backward pass")
    max_skipped_steps: int = flag(3, "stop after this many non-finite steps in a row")
    skip_train: bool = flag(False, "only evaluate")
    eval_interval: int = flag(1000, "steps between validations")
    eval_iters: int = flag(100, "validation rows, in global batches; 0: none", least=0)
    eval_seed: int = flag(4321, "names the validation slice's noise", least=0)
    save: str = flag(None, "folder for checkpoints")
    save_interval: int = flag(None, "steps between checkpoints [only at the end]")
    keep_last: int = flag(None, "keep this many newest checkpoints [all]")
    keep_every: int = flag(None, "and each whose step is a multiple of this")
    load: str = flag(None, "folder of checkpoints, or one checkpoint, to go on from")
    finetune: bool = flag(False, "take only the weights from --load, and start at step 0")
    exit_interval: int = flag(None, "save and stop at a step that is a multiple of this")
    exit_duration_in_mins: float = flag(None, "save and stop after this many minutes")
    exit_signal_handler: bool = flag(True, "SIGTERM and SIGUSR1 save and stop", only="signals are always handled")
    kill_switch_file: str = flag(None, "save and stop (exit 86) when this file appears")
    preflight: bool = flag(False, "check everything that a run needs, print it, and stop")


@dataclass(frozen=True, kw_only=True)
class Log:
    run_dir: str = flag(None, "folder of the run's records [--save, or runs/NAME]")
    log_interval: int = flag(100, "steps between log lines")
    log_names: Literal["simple", "megatron", "both"] = flag(
        "both", "tags in TensorBoard and W&B: train/loss, the reference's, or both")
    tensorboard_dir: str = flag(None, "write TensorBoard events here")
    tensorboard_queue_size: int = flag(1000, "events kept before a flush")
    log_timers_to_tensorboard: bool = flag(False, "also step time and throughput")
    log_batch_size_to_tensorboard: bool = flag(False, "also the batch size")
    log_validation_ppl_to_tensorboard: bool = flag(False, "also the validation perplexity")
    wandb_project: str = flag(None, "log to this W&B project (offline without a key)")
    wandb_exp_name: str = flag(None, "name of the W&B run, and of runs/NAME [run-dir's name]")
    wandb_group: str = flag(None, "W&B group")
    wandb_save_dir: str = flag(None, "where W&B keeps its files [run-dir]")
    no_wandb: bool = flag(False, "no W&B, whatever else is said")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All sections. A component receives its own section; only training/pretrain.py sees the whole."""
    model: Model
    parallel: Parallel
    data: Data
    objective: Objective
    optim: Optim
    train: Train
    log: Log

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)

    def with_vocabulary(self, vocab_size: int) -> "Config":
        """The same config once the tokenizer is open. Raises ConfigError when flags say another vocabulary."""
        mistakes: list[str] = []
        model = fill_vocabulary(self.model, vocab_size, self.objective.objective, self.parallel, mistakes)
        if mistakes:
            raise ConfigError(mistakes)
        return replace(self, model=model)


# Presets of --model-config.
PRESETS = {
    "small": dict(num_layers=6, hidden_size=384, num_attention_heads=6, ffn_hidden_size=1536),
    "medium": dict(num_layers=8, hidden_size=512, num_attention_heads=8, ffn_hidden_size=2048),
    "large": dict(num_layers=12, hidden_size=768, num_attention_heads=12, ffn_hidden_size=3072),
    "xl": dict(num_layers=24, hidden_size=1024, num_attention_heads=16, ffn_hidden_size=4096),
}

# Other spellings of a flag. A value behind the name: the flag takes none and means that value.
ALIASES: dict[str, tuple[str, Any]] = {
    "max-steps": ("train_iters", None), "token-budget": ("train_tokens", None), "target-flops": ("flops", None),
    "log-dir": ("run_dir", None), "output-dir": ("run_dir", None), "wandb-run-name": ("wandb_exp_name", None),
    "resume-from": ("load", None), "checkpoint-interval-steps": ("save_interval", None),
    "max-step-checkpoints": ("keep_last", None), "learning-rate": ("lr", None), "force-cpu": ("device", "cpu"),
    "gradient-checkpointing": ("recompute_granularity", "full"), "checkpoint-activations": ("recompute_granularity", "full"),
    "layernorm-epsilon": ("norm_epsilon", None), "rotary-theta": ("rotary_base", None),
    "eval-every": ("eval_interval", None), "max-seq-len": ("seq_length", None),
    "disable-bias-linear": ("bias_linear", False), "no-position-embedding": ("use_rotary_position_embeddings", True),
}

# Flags that exclude each other: of one source only one is taken, and one on the command line replaces a file's others.
BUDGETS = ("train_samples", "train_iters", "train_tokens", "flops")
WARMUPS = ("lr_warmup_samples", "lr_warmup_iters", "lr_warmup_fraction")
CORPORA = tuple(("data_path", f"{split}_data_path", f"{split}_data_path_file") for split in ("train", "valid", "test"))
EXCLUSIVE = (BUDGETS, ("lr_decay_samples", "lr_decay_iters"), WARMUPS, ("lr_wsd_decay_samples", "lr_wsd_decay_iters"), *CORPORA)

# Flags of work that is not built yet, and what each needs.
LATER = {
    "ar-ratio": "left-to-right masking", "randmask-ratio": "token masking for autoregressive models",
    **dict.fromkeys(["use-order-list", "num-order-list", "use-predefined-order"], "training in random and predefined orders"),
    **dict.fromkeys(["low-noise-start", "low-noise-iter", "low-noise-ratio"], "the low-noise curriculum"),
    "untie-with-additional-mask": "an extra input row for the mask", "difflm-varilen-prob": "samples of varying length",
    **dict.fromkeys(["fp16", "loss-scale", "initial-loss-scale", "min-loss-scale", "loss-scale-window"],
                    "fp16 with loss scaling"),
    **dict.fromkeys(["task-list", "results-path", "adaptive-seq-len", "num-fewshot", "eval-fp32", "eval-method", "sampling-eps",
                     "only-generate", "only-mc-nll", "max-chunk-size", "inference", "no-load-optim", "no-load-rng", "checkpoint",
                     "metrics", "num-samples", "output"], "the evaluation harness"),
    **dict.fromkeys(["deepspeed", "deepspeed-config", "local-rank"], "the DeepSpeed engine"),
    **dict.fromkeys(["no-pipeline-parallel", "cpu-optimizer", "use-distributed-optimizer", "sequence-parallel",
                     "num-layers-per-virtual-pipeline-stage"], "3D parallelism"),
    **dict.fromkeys(["recompute-activations", "recompute-method", "recompute-num-layers"],
                    "selective recompute (--recompute-granularity full is there)"),
    **dict.fromkeys(["download-from-s3", "upload-to-s3", "upload-results-to-s3", "s3-bucket", "s3-prefix"], "remote storage"),
    **dict.fromkeys(["num-query-groups", "group-query-attention"], "grouped-query attention"),
    **dict.fromkeys(["full-dataset", "max-examples-per-split"], "the arXiv corpus"), "mock-data": "synthetic corpora",
    "epochs": "a length in epochs (--train-tokens is there)",
    "target-param-data-ratio": "a length by tokens a parameter (--flops is there)",
}

# Flags that stand for nothing here, refused for good.
DEAD = {
    "target-random-ratio": "the reference resets it to 0", "use-target-position-embeddings": "the reference forces it off",
    "block-size": "nothing in the reference reads it", "order-list": "an internal slot of the reference",
    "data-cache-path": "nothing is cached: the data order is computed, not stored",
    "num-workers": "batches are read from the memory map; no worker is needed",
    "dataloader-type": "every sample is addressed by its number; there is one loader",
    "mask-token": "the mask is the first id after the tokenizer's", "attention-mask-type": "--objective decides what sees what",
    "architecture": "pretrain_gpt.py trains ar, pretrain_diff_gpt.py mdm", "config-name": "name a file: --config FILE.yaml",
    "data-dir": "name a corpus: --data-path PREFIX", "load-tag": "name one checkpoint: --load FOLDER/step-00001000",
    "pretrained-checkpoint": "give --load FOLDER --finetune",
    "reduce-lr-factor": "the rate follows --lr-decay-style, not the loss",
}

LARGEST = 2**53                                      # whole numbers that every JSON reader keeps
Table = dict[str, tuple[str, dataclasses.Field, Any]]


def declared() -> Table:
    """Field name -> (section, field, type)."""
    return {f.name: (name, f, hints[f.name]) for name, section in get_type_hints(Config).items()
            for hints in [get_type_hints(section)] for f in fields(section)}


def spelling(name: str) -> str:
    return "--" + name.replace("_", "-")


def choices(hint) -> tuple:
    """Legal values of a Literal, also inside `Literal | None`."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((choices(part) for part in get_args(hint) if get_origin(part) is Literal), ())


def parse_count(text: str) -> float:
    """`100M`, `1.5B`, `1e9`, `2048` -> number. Raises ValueError."""
    scale = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}.get(text[-1:].lower())
    return float(text[:-1]) * scale if scale else float(text)


def convert(f: dataclasses.Field, hint, value: Any) -> Any:
    """A flag's text, or a YAML value, as its field's type. Raises ValueError with the sentence's end."""
    if choices(hint):
        value = choose(choices(hint), value, f.metadata["only"])
    elif hint is bool and not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    elif get_origin(hint) is list:
        value = [read_text(v) for v in (value if isinstance(value, list) else str(value).split())]
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


def refuse(spelled: str, table: Table) -> str:
    """The sentence for a flag that does not exist here."""
    name = flat(spelled)
    if name in LATER:
        return f"--{name} needs {LATER[name]}, which is not built yet: leave the flag out"
    if name in DEAD:
        return f"--{name} is refused for good: {DEAD[name]}"
    near = difflib.get_close_matches(name, [flat(n) for n in table] + list(ALIASES) + ["config"], n=1)
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


def read_file(path: str, mistakes: list[str]) -> list[tuple[str, Any]]:
    """`--config FILE`: YAML or JSON, flat or by section, flags spelled with - or _; null is not given."""
    import yaml
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        mistakes.append(f"--config {path}: cannot be read ({error.strerror})")
        return []
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.endswith(".json") else "YAML"
        mistakes.append(f"--config {path}: is not {kind} ({' '.join(str(error).split())})")
        return []
    if not isinstance(tree, dict | None):
        mistakes.append(f"--config {path}: must hold `flag: value` lines, found {type(tree).__name__}")
        return []
    sections, pairs = {f.name for f in fields(Config)}, []
    for key, value in (tree or {}).items():
        pairs += value.items() if key in sections and isinstance(value, dict) else [(key, value)]
    return [(str(key), value) for key, value in pairs if value is not None]


def overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins, also against flags that say the same in another way, and a preset against the file's sizes."""
    gone = {n for group in (*EXCLUSIVE, ("global_batch_size", "grad_accum_steps")) if over.keys() & set(group) for n in group}
    if "model_config" in over:
        gone |= PRESETS["small"].keys() | {"kv_channels"}
    return {n: v for n, v in under.items() if n not in gone} | over


def parse(argv: list[str], objective: str = "ar", environ: dict[str, str] | None = None) -> Config:
    """Flags -> Config. `objective` is the entry point's default. Raises ConfigError with every mistake."""
    table, mistakes = declared(), []
    given = split_words(list(argv), mistakes)
    got: dict[str, Any] = {"objective": objective}
    for words in (words for spelled, words in given if spelled == "--config"):
        if len(words) != 1 or not words[0]:
            mistakes.append(f"--config takes one file, found {' '.join(words) or 'none'}")
            continue
        got = overlay(got, settle(read_file(words[0], mistakes), table, mistakes, f"--config {words[0]}: "))
    got = overlay(got, settle([pair for pair in given if pair[0] != "--config"], table, mistakes))
    sections: dict[str, dict[str, Any]] = {f.name: {} for f in fields(Config)}
    for name, (section, f, _) in table.items():
        sections[section][name] = f.default if got.get(name) is None else got[name]
    cfg = Config(**{name: kind(**sections[name]) for name, kind in get_type_hints(Config).items()})
    cfg, wrong = resolve(cfg, dict(os.environ) if environ is None else environ, {n for n, v in got.items() if v is None})
    if mistakes + wrong:
        raise ConfigError(list(dict.fromkeys(mistakes + wrong)))
    return cfg


def resolve(cfg: Config, environ: dict[str, str], unread: set[str] = frozenset()) -> tuple[Config, list[str]]:
    """Derive what was left open and list what does not fit. A pure function.

    `unread`: fields that were given but could not be read, so that nobody is told to give them. With mistakes, the
    config may be incomplete.
    """
    mistakes: list[str] = []
    check_exclusive(cfg, mistakes)
    check_idle(cfg, mistakes)
    model = resolve_model(cfg, unread, mistakes)
    check_parallel(cfg.parallel, model, environ, mistakes)
    train = resolve_train(cfg.train, model, unread, mistakes)
    optim = resolve_optim(cfg.optim, train, unread, mistakes)
    check_data(cfg, unread, mistakes)
    return replace(cfg, model=model, train=train, optim=optim, objective=resolve_objective(cfg.objective, mistakes),
                   log=resolve_log(cfg, model)), mistakes


def given_of(section, names: Iterable[str]) -> list[str]:
    return [n for n in names if getattr(section, n) is not None]


def check_exclusive(cfg: Config, mistakes: list[str]) -> None:
    for group in EXCLUSIVE:
        section = next(s for s in (cfg.train, cfg.optim, cfg.data) if hasattr(s, group[0]))
        if len(given := given_of(section, group)) > 1:
            mistakes.append(f"{' and '.join(map(spelling, given))} exclude each other: give one")


def check_idle(cfg: Config, mistakes: list[str]) -> None:
    """Every flag acts: none may be given that would do nothing beside the others."""
    d, o, t, log = cfg.data, cfg.optim, cfg.train, cfg.log
    gpt2, plain = d.tokenizer_type == "GPT2BPETokenizer", d.tokenizer_type in ("GPT2BPETokenizer", "ByteTokenizer")
    for acts, needs, section, names in (
            (t.save, "give --save", t, ("save_interval", "keep_last", "keep_every")),
            (t.load, "give --load", t, ("finetune",)),
            (d.data_path, "give --data-path", d, ("split",)),
            (gpt2, "use --tokenizer-type GPT2BPETokenizer", d, ("vocab_file", "merge_file")),
            (not plain, "use a --tokenizer-type that reads one", d, ("tokenizer_model",)),
            (cfg.objective.objective == "mdm", "use --objective mdm", cfg.objective, ("mdm_t_sampling", "mdm_eps")),
            (o.lr_decay_style == "WSD", "use --lr-decay-style WSD", o,
             ("lr_wsd_decay_samples", "lr_wsd_decay_iters", "lr_wsd_decay_style")),
            (log.tensorboard_dir, "give --tensorboard-dir", log, ("tensorboard_queue_size",)),
            (log.wandb_project or log.no_wandb, "give --wandb-project", log, ("wandb_group", "wandb_save_dir")),
            (log.tensorboard_dir or log.wandb_project or log.no_wandb, "give --tensorboard-dir or --wandb-project", log,
             ("log_names", "log_timers_to_tensorboard", "log_batch_size_to_tensorboard", "log_validation_ppl_to_tensorboard"))):
        idle = [] if acts else [f.name for f in fields(section) if f.name in names and getattr(section, f.name) != f.default]
        mistakes += [f"{spelling(name)} would do nothing here: {needs}, or leave it out" for name in idle]


def resolve_model(cfg: Config, unread: set[str], mistakes: list[str]) -> Model:
    m = from_preset(cfg.model)
    missing = [n for n in ("num_layers", "hidden_size", "num_attention_heads") if getattr(m, n) is None]
    if ask := [spelling(n) for n in missing if n not in unread]:
        mistakes.append(f"{', '.join(ask)} must be given (or --model-config {'|'.join(PRESETS)})")
    if m.kv_channels is None and m.hidden_size and m.num_attention_heads:
        m = replace(m, kv_channels=head_width(m, mistakes))
    if m.kv_channels and m.kv_channels % 2:
        mistakes.append(f"--kv-channels {m.kv_channels} must be even: rotary positions turn pairs of channels")
    if m.ffn_hidden_size is None and m.hidden_size:
        m = replace(m, ffn_hidden_size=swiglu_width(m.hidden_size))
    m = replace(m, max_position_embeddings=m.max_position_embeddings or m.seq_length)
    if m.max_position_embeddings < m.seq_length:
        mistakes.append(f"--seq-length {m.seq_length} is above --max-position-embeddings {m.max_position_embeddings}")
    if m.use_flash_attn and m.attention_dropout:
        mistakes.append("--use-flash-attn: the fused kernel has no addressed dropout; give --attention-dropout 0")
    vocab_size = known_vocabulary(cfg, mistakes)
    return fill_vocabulary(m, vocab_size, cfg.objective.objective, cfg.parallel, mistakes) if vocab_size else m


def from_preset(m: Model) -> Model:
    """Sizes that were left open, from the preset; its SwiGLU width belongs to its own hidden size."""
    if m.model_config is None:
        return m
    sizes = {n: v for n, v in PRESETS[m.model_config].items() if getattr(m, n) is None}
    if m.hidden_size is not None:
        sizes.pop("ffn_hidden_size", None)
    return replace(m, **sizes)


def head_width(m: Model, mistakes: list[str]) -> int | None:
    if m.hidden_size % m.num_attention_heads:
        mistakes.append(f"--num-attention-heads {m.num_attention_heads} does not divide --hidden-size {m.hidden_size}; "
                        f"try {divisors(m.hidden_size)}, or give --kv-channels")
        return None
    return m.hidden_size // m.num_attention_heads


def known_vocabulary(cfg: Config, mistakes: list[str]) -> int | None:
    """The vocabulary's size, where it is known without opening the tokenizer's files."""
    d, given = cfg.data, cfg.model.vocab_size
    known = {"GPT2BPETokenizer": GPT2_VOCAB, "ByteTokenizer": 257}.get(d.tokenizer_type)
    if d.vocab_file and (given or cfg.train.flops is None):
        return given                                 # perhaps not GPT-2's own; only --flops needs to know at once
    if None not in (given, known) and given != known:
        mistakes.append(f"--vocab-size {given} is not {d.tokenizer_type}'s {known}: leave it out")
    return known or given


def fill_vocabulary(m: Model, vocab_size: int, objective: str, p: Parallel, mistakes: list[str]) -> Model:
    if m.vocab_size not in (None, vocab_size):
        mistakes.append(f"--vocab-size {m.vocab_size} is not the tokenizer's: give {vocab_size}")
    rows = padded_vocab(vocab_size, m.make_vocab_size_divisible_by, m.pad_vocab, p.tensor_model_parallel_size)
    if m.padded_vocab_size not in (None, rows):
        mistakes.append(f"--padded-vocab-size {m.padded_vocab_size} is not the derived {rows}: leave it out")
    if objective == "mdm" and rows < vocab_size + RESERVED_IDS:
        mistakes.append(f"--pad-vocab {m.pad_vocab} gives {rows} rows for {vocab_size} ids: no room for the mask; "
                        "use --pad-vocab fixed")
    return replace(m, vocab_size=vocab_size, padded_vocab_size=rows)


def divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, min(n, 8192) + 1) if n % d == 0)


def check_parallel(p: Parallel, m: Model, environ: dict[str, str], mistakes: list[str]) -> None:
    tp, pp, heads = p.tensor_model_parallel_size, p.pipeline_model_parallel_size, m.num_attention_heads
    if heads and heads % tp:
        mistakes.append(f"--tensor-model-parallel-size {tp} does not divide --num-attention-heads {heads}; try {divisors(heads)}")
    if m.num_layers and pp > m.num_layers:
        mistakes.append(f"--pipeline-model-parallel-size {pp} is above --num-layers {m.num_layers}")
    later = [f"{spelling(n)} {getattr(p, n)} needs" for n in ("tensor_model_parallel_size", "pipeline_model_parallel_size")
             if getattr(p, n) > 1]
    if p.zero_stage:
        later.append(f"--zero-stage {p.zero_stage}: sharding the optimizer needs")
    mistakes += [f"{what} 3D parallelism, which is not built yet: leave the flag out" for what in later]
    world = environ.get("WORLD_SIZE", "1")
    if world not in ("", "1"):
        mistakes.append(f"WORLD_SIZE={world}: data parallelism needs 3D parallelism, which is not built yet: start one process")


def resolve_train(t: Train, m: Model, unread: set[str], mistakes: list[str]) -> Train:
    batch = t.global_batch_size or t.micro_batch_size * (t.grad_accum_steps or 1)
    if batch % t.micro_batch_size:
        mistakes.append(f"--global-batch-size {batch} does not divide by --micro-batch-size {t.micro_batch_size}; "
                        f"try a micro-batch of {divisors(batch)}")
    elif t.grad_accum_steps and t.grad_accum_steps * t.micro_batch_size != batch:
        mistakes.append(f"--grad-accum-steps {t.grad_accum_steps} x --micro-batch-size {t.micro_batch_size} is not "
                        f"--global-batch-size {batch}: give one of them")
    samples = None
    if given := given_of(t, BUDGETS):
        samples = budget_samples(given[0], t, m, batch, mistakes)
    elif not t.skip_train and not unread & set(BUDGETS):
        mistakes.append(f"how long to train? give {', '.join(map(spelling, BUDGETS[:-1]))} or --flops")
    if t.skip_train and not t.eval_iters:
        mistakes.append("--skip-train with --eval-iters 0 does nothing: give --eval-iters")
    whole = (samples or 0) // batch * batch          # as in Megatron, the tail that fills no global batch is not trained on
    return replace(t, global_batch_size=batch, grad_accum_steps=None, train_samples=whole or None,
                   train_iters=None, train_tokens=None, flops=None)


def budget_samples(name: str, t: Train, m: Model, batch: int, mistakes: list[str]) -> int | None:
    """How many samples a budget is; None where that is not known."""
    value = getattr(t, name)
    if name == "flops":
        samples = flop_samples(value, m, mistakes)
    else:
        samples = {"train_samples": value, "train_iters": value * batch, "train_tokens": value // m.seq_length}[name]
    if samples is not None and samples < batch and not t.skip_train:
        mistakes.append(f"{spelling(name)} {value:g} is {samples} samples, less than one global batch of {batch}")
    if samples is not None and samples >= LARGEST:
        mistakes.append(f"{spelling(name)} {value:g} is more than 2**53 samples: give less")
    return samples


def flop_samples(flops: float, m: Model, mistakes: list[str]) -> int | None:
    if m.padded_vocab_size is None:
        mistakes.append("--flops needs the parameter count, and with it the vocabulary: give --vocab-size, or --train-samples")
        return None
    if None in (m.num_layers, m.hidden_size, m.num_attention_heads, m.kv_channels):
        return None                                  # already a mistake
    return int(flops / (6 * m.shape().total())) // m.seq_length


def resolve_optim(o: Optim, t: Train, unread: set[str], mistakes: list[str]) -> Optim:
    if o.lr is None and not t.skip_train and "lr" not in unread:
        mistakes.append("--lr must be given")
    if o.lr is not None and o.min_lr > o.lr:
        mistakes.append(f"--min-lr {o.min_lr:g} is above --lr {o.lr:g}")
    if o.adam_eps < 1.2e-38:
        mistakes.append(f"--adam-eps {o.adam_eps:g} underflows in fp32: use at least 1e-30")
    decay = in_samples(o.lr_decay_samples, o.lr_decay_iters, t) or t.train_samples
    warmup = in_samples(o.lr_warmup_samples, o.lr_warmup_iters, t)
    if warmup is None:
        warmup = int((o.lr_warmup_fraction or 0) * (decay or 0))
    if decay is not None and warmup >= decay and not t.skip_train:
        mistakes.append(f"the warm-up of {warmup} samples leaves nothing of the decay of {decay} samples")
    wsd = in_samples(o.lr_wsd_decay_samples, o.lr_wsd_decay_iters, t)
    if o.lr_decay_style == "WSD" and decay is not None:
        wsd = max(1, decay // 10) if wsd is None else wsd
        if wsd > decay - warmup > 0:
            mistakes.append(f"the WSD decay of {wsd} samples is longer than the {decay - warmup} after the warm-up")
    return replace(o, lr_decay_samples=decay, lr_decay_iters=None, lr_warmup_samples=warmup, lr_warmup_iters=None,
                   lr_warmup_fraction=None, lr_wsd_decay_samples=wsd, lr_wsd_decay_iters=None)


def in_samples(samples: int | None, iters: int | None, t: Train) -> int | None:
    return iters * t.global_batch_size if samples is None and iters is not None else samples


def resolve_objective(o: Objective, mistakes: list[str]) -> Objective:
    if o.objective == "ar" and (o.num_mc or 1) != 1:
        mistakes.append(f"--num-mc {o.num_mc} acts on masked diffusion only: the loss of an autoregressive model is exact")
    return replace(o, num_mc=o.num_mc or (1 if o.objective == "ar" else 2))


def check_data(cfg: Config, unread: set[str], mistakes: list[str]) -> None:
    d, skip = cfg.data, cfg.train.skip_train
    train, valid = CORPORA[0], CORPORA[1]
    if not skip and not given_of(d, train) and not unread & set(train):
        mistakes.append("no training data: give --train-data-path-file FILE or --data-path PREFIX "
                        "(tools/preprocess_data.py makes one)")
    if skip and not given_of(d, valid) and not unread & set(valid):
        mistakes.append("--skip-train needs validation data: give --valid-data-path-file FILE or --data-path PREFIX")
    try:
        shares = [float(s) for s in d.split.split(",")]
        if len(shares) > 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
            raise ValueError
    except ValueError:
        mistakes.append(f"--split {d.split} must be up to three shares such as 969,30,1")
    if d.tokenizer_type in ("TikTokenizer", "SentencePieceTokenizer", "HFTokenizer") and not d.tokenizer_model:
        mistakes.append(f"--tokenizer-type {d.tokenizer_type} needs --tokenizer-model FILE")
    if d.tokenizer_type == "GPT2BPETokenizer" and bool(d.vocab_file) != bool(d.merge_file):
        mistakes.append("--vocab-file and --merge-file belong together: give both, or neither")


def resolve_log(cfg: Config, m: Model) -> Log:
    """The run's folder: a name never leads out of runs/."""
    name = re.sub(r"[^\w.-]+", "-", cfg.log.wandb_exp_name or "").strip(".-")
    name = name or f"{cfg.objective.objective}-{m.num_layers}x{m.hidden_size}-seed{cfg.train.seed}"
    return replace(cfg.log, run_dir=cfg.log.run_dir or cfg.train.save or str(Path("runs") / name))


def help_text(program: str) -> str:
    """The whole command line, a section after the other."""
    also: dict[str, list[str]] = {}
    for alias, (name, value) in ALIASES.items():
        also.setdefault(name, []).append("--" + alias + ("" if value is None else f" (= {str(value).lower()})"))
    rows = {f.name: [] for f in fields(Config)}
    for name, (section, f, hint) in declared().items():
        only = f" (accepted as it stands: {f.metadata['only']})" if f.metadata["only"] else ""
        default = "" if f.default is None or hint is bool or only else f" [{f.default}]"
        alias = f"; also {', '.join(also[name])}" if name in also else ""
        rows[section].append(help_row(f"{spelling(name)} {metavar(hint)}", f"{f.metadata['help']}{default}{only}{alias}"))
    sizes = [f"  {name:10}" + "".join(f"{number:>10}" for number in sizes.values()) for name, sizes in PRESETS.items()]
    return "\n".join([
        f"usage: {program} [--config FILE] [--print-config] [--help] FLAGS", "",
        "Flags may be spelled with - or _; --no-FLAG turns off a switch that a file turned on. [default]", "",
        help_row("--config FILE", "flags from YAML, or from a run's config.json; later files win, and the command line over all"),
        help_row("--print-config", "show the resolved whole, in a form that --config reads, and stop"),
        *(f"\n{section}:\n" + "\n".join(lines) for section, lines in rows.items()),
        "\npresets of --model-config:", "  " + " " * 10 + f"{'layers':>10}{'hidden':>10}{'heads':>10}{'ffn':>10}", *sizes])


def metavar(hint) -> str:
    if choices(hint):
        return "{" + ",".join(choices(hint)) + "}"
    return {bool: "", int: "N", float: "X", str: "TEXT"}.get(hint, "TEXT ...")


def help_row(left: str, right: str) -> str:
    """Two columns; a long left side has its own line."""
    lines = textwrap.wrap(right, 76, break_on_hyphens=False)
    first = f"  {left:<43} {lines[0]}" if len(left) <= 43 else f"  {left}\n{'':46}{lines[0]}"
    return "\n".join([first, *(" " * 46 + line for line in lines[1:])])


def main(objective: str) -> Config:
    """The command line's Config; prints help or the resolved whole, and exits with 2 after listing every mistake."""
    argv = sys.argv[1:]
    if "--help" in argv or "-h" in argv:
        print(help_text(Path(sys.argv[0]).name))
        sys.exit(0)
    show = ("--print-config", "--print_config")
    try:
        cfg = parse([word for word in argv if word not in show], objective)
    except ConfigError as error:
        many = len(error.mistakes) > 1
        print(f"{len(error.mistakes)} mistakes in the flags:" if many else "a mistake in the flags:", file=sys.stderr)
        print("\n".join(f"  {m}" for m in error.mistakes), file=sys.stderr)
        sys.exit(2)
    if any(word in show for word in argv):
        print(json.dumps(cfg.as_dict(), indent=1))
        sys.exit(0)
    return cfg
