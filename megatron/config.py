"""Every flag, once. A field is a flag: `hidden_size` is `--hidden-size`; its help is beside it.

`parse(argv)` reads flags and `--config FILE.yaml`, derives what was left open, checks everything that can be known
without opening the data, and returns one frozen `Config`. All mistakes are collected and raised together as
`ConfigError`. A field whose type has no None holds a value then, also where its flag's default is None: `resolve` derives it
(the vocabulary's two, where only the tokenizer knows them: `with_vocabulary`). Nothing here imports torch or numpy.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from megatron.budget import (
    CANDIDATE_FEATURES,
    ESTIMATOR_HEAD,
    GPT2_VOCAB,
    LEVEL_FEATURES,
    RESERVED_IDS,
    Shape,
    padded_vocab,
    swiglu_width,
)
from megatron.catalogue import OBJECTIVES
from megatron.flags import (
    ALIASES,
    DEAD,
    LARGEST,
    LATER,
    ConfigError,
    Needs,
    Table,
    flag,
    help_row,
    metavar,
    read_file,
    settle,
    spelling,
    split_words,
    without_none,
)
from megatron.layout import Ranks, Stages, find_place, make_stages, num_micro_batches
from megatron.machines import DEFAULT, MACHINES, read_machine
from megatron.score_names import MOST_PLACES, read_scores

SDD_K: tuple[int, ...] = (1, 2, 4, 8)
SDD_K_SHARE, SDD_MOST = 0.05, 50  # a clean position gives each candidate but the token itself 0.01

# What some flags act with.
GROUPS = Needs("give --group-query-attention", lambda c: c.model.group_query_attention)
SAVING = Needs("give --save", lambda c: c.train.save)
FINISHING = Needs("give --save, and train", lambda c: c.train.save and not c.train.skip_train)
FINAL_SCORES = Needs("give --final-scores", lambda c: c.train.final_scores)
LOADING = Needs("give --load", lambda c: c.train.load)
DRY_RUN = Needs("give --dry-run", lambda c: c.train.dry_run)
DEEPSPEED = Needs("give --deepspeed", lambda c: c.parallel.deepspeed)
PIPELINE = Needs("give --pipeline-model-parallel-size above 1", lambda c: c.parallel.pipeline_model_parallel_size > 1)
CUT = Needs("give --data-path", lambda c: c.data.data_path)
PACKED = Needs("use --data-kind packed", lambda c: c.data.data_kind == "packed")
PART_OF_TRAINING = Needs(
    "give packed training data, or use --data-kind random-window",
    lambda c: c.data.data_kind == "random-window" or (c.data.data_kind == "packed" and given_of(c.data, CORPORA[0])),
)
MEGATRON_ORDER = Needs("use --epoch-order reference", lambda c: c.data.epoch_order != "strict")
PAIRS = Needs("use --data-kind pairs", lambda c: c.data.data_kind == "pairs")
LATENT = Needs("give --latent-size", lambda c: c.model.latent_size)
JOINT = Needs("use --objective joint", lambda c: c.objective.objective == "joint")
TURNS = Needs("use --objective joint and another --latent-mode", lambda c: JOINT.met(c) and c.objective.latent_mode != "joint")
PAPERS = Needs("use --data-kind random-window", lambda c: c.data.data_kind == "random-window")
GPT2_BPE = Needs("use --tokenizer-type GPT2BPETokenizer", lambda c: c.data.tokenizer_type == "GPT2BPETokenizer")
TOKENIZER_FILE = Needs("use a --tokenizer-type that reads one", lambda c: c.data.tokenizer_type in TOKENIZERS_OF_FILES)
AR = Needs("use --objective ar", lambda c: c.objective.objective == "ar")
AR_ON_STREAM = Needs("use --objective ar and --data-kind packed", lambda c: AR.met(c) and PACKED.met(c))
RANDMASK = Needs("give --randmask-ratio", lambda c: c.objective.randmask_ratio)
ORDERS = Needs("give --num-order-list above 1", lambda c: c.objective.num_order_list > 1)
SCALED = Needs("use --parametrization mup or completep", lambda c: c.model.parametrization != "standard")
DEPTH_SCALED = Needs("use --parametrization completep", lambda c: c.model.parametrization == "completep")
ONE_STD = Needs("use --init-method normal", lambda c: c.model.init_method == "normal")
MDM = Needs("use --objective mdm", lambda c: c.objective.objective == "mdm")
UDM = Needs("use --objective udm", lambda c: c.objective.objective == "udm")
NOISED = Needs("use --objective mdm or udm", lambda c: c.objective.objective in ("mdm", "udm"))
NOISE_TOLD = Needs("use --objective mdm, udm or sdd", lambda c: c.objective.objective in ("mdm", "udm", "sdd"))
AR_OR_MDM = Needs("use --objective ar or mdm", lambda c: c.objective.objective in ("ar", "mdm"))
DISTILLED = Needs("give --distill", lambda c: c.objective.distill)
SDD = Needs("use --objective sdd", lambda c: c.objective.objective == "sdd")
SDD_GROWING = Needs("use --objective sdd, with several --sdd-k", lambda c: SDD.met(c) and len(c.objective.sdd_k or SDD_K) > 1)
SDD_ON_DOCUMENTS = Needs(
    "use --objective sdd and --data-kind instruct or pairs", lambda c: SDD.met(c) and c.data.data_kind in ("instruct", "pairs")
)
MDM_ON_STREAM = Needs("use --objective mdm and --data-kind packed", lambda c: MDM.met(c) and PACKED.met(c))
POLYNOMIAL = Needs("use --noise-schedule polynomial", lambda c: c.objective.noise_schedule == "polynomial")
GEOMETRIC = Needs("use --noise-schedule geometric", lambda c: c.objective.noise_schedule == "geometric")
SIGMA = Needs("use --noise-schedule geometric or linear-sigma", lambda c: c.objective.noise_schedule in OF_SIGMA)
ATAT = Needs("give --atat", lambda c: c.objective.atat)
TILTED = Needs("use --atat full, learned or frequency", lambda c: c.objective.atat not in (None, "none"))
STAGED = Needs("use --atat-curriculum steps", lambda c: TILTED.met(c) and c.objective.atat_curriculum == "steps")
ESTIMATED = Needs("use --atat full or learned", lambda c: c.objective.estimates)
LOW_NOISE = Needs("give --low-noise-start", lambda c: c.objective.low_noise_start)
TASKS = Needs("give --eval-tasks", lambda c: c.train.eval_tasks)
MDM_TASKS = Needs("give --eval-tasks and --objective mdm", lambda c: c.train.eval_tasks and c.objective.objective == "mdm")
WARMUP = Needs("give --lr-warmup-samples", lambda c: any(getattr(c.optim, name) for name in WARMUPS))
EVALUATING = Needs("validate: --eval-iters above 0", lambda c: c.train.eval_iters)
MUON = Needs("use --optimizer muon", lambda c: c.optim.optimizer == "muon")
PLATEAU = Needs("give a --lr-plateau-factor below 1", lambda c: c.optim.lr_plateau_factor < 1)
WSD = Needs("use --lr-decay-style WSD", lambda c: c.optim.lr_decay_style == "WSD")
TENSORBOARD = Needs("give --tensorboard-dir", lambda c: c.log.tensorboard_dir)
WANDB = Needs("give --wandb-project", lambda c: c.log.wandb_project or c.log.no_wandb)
VIEWS = Needs("give --tensorboard-dir or --wandb-project", lambda c: TENSORBOARD.met(c) or WANDB.met(c))


@dataclass(frozen=True, kw_only=True)
class Model:
    model_config: Literal["small", "medium", "large", "xl"] | None = flag(
        None, "preset of the table below; single flags win", identity="free"
    )
    num_layers: int = flag(None, "transformer blocks", identity="experiment")
    hidden_size: int = flag(None, "width of the residual stream", identity="experiment")
    num_attention_heads: int = flag(None, "query heads", identity="experiment")
    group_query_attention: bool = flag(
        False, "--num-query-groups groups of query heads share a head of keys and values each", identity="experiment"
    )
    num_query_groups: int | None = flag(None, "heads of keys and values", identity="experiment", needs=GROUPS)
    kv_channels: int = flag(None, "width of one head [hidden / heads]", identity="experiment")
    ffn_hidden_size: int = flag(None, "SwiGLU width [two thirds of 4 x hidden, down to a multiple of 64]", identity="experiment")
    seq_length: int = flag(2048, "tokens a sample", identity="experiment")
    max_position_embeddings: int = flag(None, "longest sequence the model accepts [seq-length]", identity="free")
    vocab_size: int = flag(None, "ids the tokenizer knows [from the tokenizer]", count=True, identity="experiment")
    make_vocab_size_divisible_by: int = flag(128, "the embedding table has a multiple of this many rows", identity="experiment")
    pad_vocab: Literal["fixed", "reference"] = flag(
        "fixed",
        "fixed: room for the mask, the same at every layout; reference: Megatron's, grows with tensor parallelism",
        identity="experiment",
    )
    padded_vocab_size: int = flag(None, "rows of the embedding table [derived; give it only to check]", identity="experiment")
    untie_embeddings_and_output_weights: bool = flag(False, "a separate output head", identity="experiment")
    predict_reserved: bool = flag(False, "parity: the softmax also runs over mask and padding columns", identity="experiment")
    normalization: Literal["rmsnorm"] = flag(
        "rmsnorm", "norm before each branch", only="the model has RMSNorm", identity="experiment"
    )
    norm_epsilon: float = flag(1e-5, "added to the mean square in RMSNorm", identity="experiment")
    swiglu: bool = flag(True, "gated SiLU MLP", only="the model has SwiGLU", identity="experiment")
    position_embedding_type: Literal["rope"] = flag(
        "rope", "how positions enter", only="the model has rotary positions", identity="experiment"
    )
    use_rotary_position_embeddings: bool = flag(
        True, "rotary positions", only="the model has rotary positions", identity="experiment"
    )
    rotary_base: float = flag(10000.0, "base of the rotary frequencies", identity="experiment")
    bias_linear: bool = flag(False, "biases in linear layers", only="the model has no biases", identity="experiment")
    init_method: Literal["normal", "small-init"] = flag(
        "normal",
        "standard deviation of the initial weights: normal, --init-method-std at any width; small-init, sqrt(2 / (5 hidden)) "
        "(arXiv:1910.05895); output projections / sqrt(2 layers)",
        identity="experiment",
    )
    init_method_std: float = flag(
        0.02, "standard deviation of the initial weights, at any width", identity="experiment", needs=ONE_STD
    )
    parametrization: Literal["standard", "mup", "completep"] = flag(
        "standard",
        "how the hyperparameters of a base model become those of a wider one (mup, arXiv:2203.03466) that may be deeper too "
        "(completep, arXiv:2505.01618): initial weights, rates, decay, epsilon, logits, attention and branches are scaled",
        identity="experiment",
    )
    mup_base_hidden_size: int | None = flag(
        None, "hidden size at which --lr and all else were found", identity="experiment", needs=SCALED
    )
    mup_base_num_layers: int | None = flag(None, "its blocks", identity="experiment", needs=DEPTH_SCALED)
    mup_base_kv_channels: int | None = flag(
        None, "its width of a head [kv-channels: wider models have more heads]", identity="experiment", needs=SCALED
    )
    attention_dropout: float = flag(
        0.1, "dropout after the softmax (Megatron's default; the recipes set 0)", least=0, below=1, identity="noted"
    )
    hidden_dropout: float = flag(
        0.1, "dropout after each branch (Megatron's default; the recipes set 0)", least=0, below=1, identity="noted"
    )
    embedding_dropout: float | None = flag(
        None, "dropout of what the first block reads [hidden-dropout]", least=0, below=1, identity="noted"
    )
    parameter_dropout: float = flag(
        0.0,
        "share of the numbers in the blocks' matrices that an update's passes read as 0 (DropConnect), the rest as x / (1 - X); "
        "takes a copy of them",
        least=0,
        below=1,
        identity="noted",
    )
    use_flash_attn: bool = flag(
        False, "insist on the fused attention kernel, which is taken anyway without --attention-dropout", identity="free"
    )

    time_conditioning: bool = flag(
        False,
        "the network is told how large a share of the tokens is hidden (mdm) or noise (udm), or the time (sdd), through norms "
        "that scale, shift and gate (adaLN-zero)",
        identity="experiment",
        needs=NOISE_TOLD,
    )
    sdd_denoiser: Literal["pooled", "bilateral"] = flag(
        "pooled",
        "a position's candidates are read as their mean by probability, or attend to each other first",
        identity="experiment",
        needs=SDD,
    )
    latent_size: int | None = flag(
        None,
        "the network is told the vector of each row, of so many numbers, standardised, at a place of its own before the text",
        identity="experiment",
        needs=PAIRS,
    )
    latent_adaln: bool = flag(
        False,
        "norms are told the vector too, which scales, shifts and gates each branch (adaLN-zero)",
        identity="experiment",
        needs=LATENT,
    )

    latent_head: bool = flag(
        False,
        "the network predicts vectors too, as --objective t2l and joint always do: for a run that shall go on as one of them",
        identity="experiment",
        needs=LATENT,
    )

    @property
    def predicted_ids(self) -> int:
        """Columns of the softmax."""
        return self.padded_vocab_size if self.predict_reserved else self.vocab_size

    @property
    def text_length(self) -> int:
        """Places of a row that hold text: all, but one where the row's vector has a place."""
        return self.seq_length - bool(self.latent_size)

    @property
    def initial_std(self) -> float:
        """Of the base model's initial weights: one for all widths, or SmallInit of Nguyen and Salazar, arXiv:1910.05895."""
        base = self.mup_base_hidden_size or self.hidden_size
        return math.sqrt(2 / (5 * base)) if self.init_method == "small-init" else self.init_method_std

    @property
    def width_factor(self) -> float:
        """How many times as wide as the base model this one is."""
        return self.hidden_size / (self.mup_base_hidden_size or self.hidden_size)

    @property
    def depth_factor(self) -> float:
        """How many times as deep it is, where depth is scaled."""
        return self.num_layers / (self.mup_base_num_layers or self.num_layers)

    @property
    def query_factor(self) -> float:
        """Of the queries: attention is scaled by 1 / d in the width d of a head, and as usual at the base model's d."""
        return math.sqrt((self.mup_base_kv_channels or self.kv_channels) / self.kv_channels)

    def shape(self) -> Shape:
        latent = self.latent_size + LEVEL_FEATURES if self.latent_size else 0
        return Shape(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            num_query_groups=self.num_query_groups,
            kv_channels=self.kv_channels,
            ffn_hidden_size=self.ffn_hidden_size,
            vocab_size=self.vocab_size,
            padded_vocab_size=self.padded_vocab_size,
            tied=not self.untie_embeddings_and_output_weights,
            condition_features=LEVEL_FEATURES * self.time_conditioning + latent * self.latent_adaln,
            candidate_features=CANDIDATE_FEATURES * (self.sdd_denoiser == "bilateral"),
            latent_features=latent,
            latent_readout=(self.latent_size or 0) * self.latent_head,
        )


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Data parallelism takes what tensor and pipeline parallelism leave of the world."""

    tensor_model_parallel_size: int = flag(1, "processes that share each layer", identity="free")
    sequence_parallel: bool = flag(
        False,
        "tensor parallelism also cuts the sequence between layers; as in Megatron, off at tensor-model-parallel-size 1",
        identity="free",
    )
    pipeline_model_parallel_size: int = flag(1, "processes that share the layers, each a run of them", identity="free")
    pipeline_schedule: Literal["1f1b", "interleaved", "zero-bubble"] = flag(
        None, "order of micro-batches [1f1b; interleaved with --num-layers-per-virtual-pipeline-stage]", identity="free"
    )
    num_layers_per_virtual_pipeline_stage: int | None = flag(
        None, "interleaved: layers of each of a process's several stages", identity="free", needs=PIPELINE
    )
    decoder_first_pipeline_num_layers: int | None = flag(
        None, "layers of the first stage [even; the earlier stages the longer]", identity="free", needs=PIPELINE
    )
    decoder_last_pipeline_num_layers: int | None = flag(None, "layers of the last stage", identity="free", needs=PIPELINE)
    no_pipeline_parallel: bool = flag(False, "insist on --pipeline-model-parallel-size 1", identity="free")
    zero_stage: int = flag(
        0,
        "what is sharded over data-parallel processes: 1 optimizer state, 2 gradients too, 3 weights too",
        least=0,
        below=4,
        identity="free",
    )
    use_distributed_optimizer: bool = flag(False, "--zero-stage 1, or what is given above it", identity="free")
    cpu_optimizer: bool = flag(False, "optimizer state and update on the CPU", identity="free")
    cpu_params: bool = flag(False, "--zero-stage 3: each process's shard of the weights on the CPU", identity="free")
    overlap_grad_reduce: bool = flag(
        True, "gradients travel during the backward pass", only="they do wherever the layout allows", identity="free"
    )
    deepspeed: bool = flag(False, "train on DeepSpeed's ZeRO; with a pipeline on torch's, at the same stage", identity="free")
    deepspeed_config: str | None = flag(None, "its JSON; it may only add to what flags say", identity="free", needs=DEEPSPEED)
    build_ops: bool = flag(False, "compile the ops that DeepSpeed needs when they are missing", identity="free", needs=DEEPSPEED)
    distributed_backend: Literal["nccl", "gloo"] | None = flag(
        None, "accepted: the device decides [nccl on GPUs, gloo on CPUs]", identity="free"
    )
    distributed_timeout: float = flag(
        600.0, "seconds without a sign of life after which a process counts as lost", identity="free"
    )
    local_rank: int | None = flag(None, "accepted: launchers say it in LOCAL_RANK too", least=-1, identity="free")
    world_size: int = flag(None, "processes in all, for --dry-run [what the launcher says]", identity="free")

    @property
    def data_parallel_size(self) -> int:
        return self.world_size // (self.tensor_model_parallel_size * self.pipeline_model_parallel_size)

    @property
    def groups(self) -> dict[str, Ranks]:
        """Tensor neighbours first, then data, then pipeline."""
        t, d, p = self.tensor_model_parallel_size, self.data_parallel_size, self.pipeline_model_parallel_size
        strides = {"tensor": (t, 1), "data": (d, t), "pipeline": (p, t * d)}
        return {name: Ranks(size, stride, self.world_size) for name, (size, stride) in strides.items()}

    def stages(self, num_layers: int) -> Stages:
        """How the layers are dealt to pipeline ranks. Raises ValueError where they cannot be."""
        ranks, per_rank, each = self.pipeline_model_parallel_size, 1, self.num_layers_per_virtual_pipeline_stage
        if self.pipeline_schedule == "interleaved" and each:
            per_rank = num_layers // (ranks * each)
        if self.pipeline_schedule == "zero-bubble":
            per_rank = 2
        return make_stages(
            num_layers,
            ranks,
            per_rank,
            first=self.decoder_first_pipeline_num_layers,
            last=self.decoder_last_pipeline_num_layers,
            v_shaped=self.pipeline_schedule == "zero-bubble",
        )


@dataclass(frozen=True, kw_only=True)
class Data:
    data_path: list[str] | None = flag(
        None, "corpora cut by --split: PREFIX, or pairs WEIGHT PREFIX; without weights all count the same", identity="free"
    )
    split: str = flag("969,30,1", "shares of --data-path for train, valid, test", identity="experiment", needs=CUT)
    train_data_path: list[str] | None = flag(
        None, "training corpora: PREFIX, or WEIGHT [START:END] PREFIX ...; without weights all count the same", identity="free"
    )
    valid_data_path: list[str] | None = flag(None, "validation corpora, likewise", identity="free")
    test_data_path: list[str] | None = flag(None, "test corpora, likewise (scored once, at the end)", identity="free")
    train_data_path_file: str | None = flag(
        None, "file with the training corpora, `weight [start:end] prefix` a line", identity="free"
    )
    valid_data_path_file: list[str] | None = flag(
        None,
        "file with the validation corpora, likewise; or several sets, NAME=FILE ...: the first chooses the best checkpoint",
        identity="free",
    )
    test_data_path_file: str | None = flag(None, "file with the test corpora, likewise", identity="free")
    unique_tokens: float | None = flag(
        None,
        "train on the first so many tokens of the training data only, again and again: 100M, or a share such as 0.25; "
        "random-window: a count, the same part of each category",
        count=True,
        identity="free",
        needs=PART_OF_TRAINING,
    )
    data_kind: Literal["packed", "random-window", "instruct", "pairs"] = flag(
        "packed",
        "packed: rows cut from a stream of tokens; random-window: windows of single papers; instruct: prompt and "
        "response, scored on the response and its end token; pairs: texts with vectors, scored with theirs",
        identity="free",
    )
    epoch_order: Literal["strict", "reference", "megatron-core"] = flag(
        "strict",
        "strict: every token once an epoch, for any length of the run; reference: Megatron-DeepSpeed's order, bit "
        "for bit; megatron-core: that one's, whose blends and splits round otherwise",
        identity="free",
        needs=PACKED,
    )
    reset_attention_mask: bool = flag(
        False,
        "nothing is seen across the end of a document; mdm is given the borders then, which its records say",
        identity="experiment",
        needs=PACKED,
    )
    reset_position_ids: bool = flag(
        False, "positions begin again behind the end of a document; mdm is given the borders", identity="experiment", needs=PACKED
    )
    eod_mask_loss: bool = flag(
        False,
        "where an end of a document is read nothing is scored: the first token of the next (ar), the end itself (mdm)",
        identity="experiment",
        needs=PACKED,
    )
    data_cache_path: str | None = flag(
        None, "of Megatron's orders: folder that keeps their indices [built in memory]", identity="free", needs=MEGATRON_ORDER
    )
    categories: list[str] | None = flag(
        None, "random-window: categories to take papers from [all]", identity="free", needs=PAPERS
    )
    num_categories: int | None = flag(
        None, "random-window: or so many of them, in an order drawn from --seed", identity="free", needs=PAPERS
    )
    tokens_per_category: int | None = flag(
        None, "random-window: train on so many tokens of each category [all]", count=True, identity="free", needs=PAPERS
    )
    component_uniform: bool = flag(
        False, "random-window: draw a category, then a paper of it [a paper of all]", identity="free", needs=PAPERS
    )
    shuffle_categories: bool = flag(
        False,
        "random-window, a control: papers' categories are dealt anew by --seed, so that all are alike",
        identity="free",
        needs=PAPERS,
    )
    valid_by_category: bool = flag(
        False, "random-window: also validate on each category by itself, as sets valid:NAME", identity="free", needs=PAPERS
    )
    data_impl: Literal["mmap"] = flag("mmap", "how tokens are read", only="files are memory-mapped", identity="free")
    tokenizer_type: Literal["GPT2BPETokenizer", "TikTokenizer", "SentencePieceTokenizer", "HFTokenizer", "ByteTokenizer"] = flag(
        "GPT2BPETokenizer", "how text became ids", identity="experiment"
    )
    tokenizer_model: str | None = flag(
        None,
        "file of TikTokenizer (.tiktoken), SentencePieceTokenizer (.model) or HFTokenizer (.json or folder)",
        identity="free",
        needs=TOKENIZER_FILE,
    )
    vocab_file: str | None = flag(None, "vocabulary of GPT2BPETokenizer (vocab.json) [GPT-2's]", identity="free", needs=GPT2_BPE)
    merge_file: str | None = flag(None, "its merges (merges.txt) [GPT-2's]", identity="free", needs=GPT2_BPE)

    def valid_sets(self) -> list[tuple[str | None, str]]:
        """(name, file) of each validation set of --valid-data-path-file; a file alone has no name."""
        found: list[tuple[str | None, str]] = []
        for word in self.valid_data_path_file or []:
            name, sign, path = word.partition("=")
            found.append((name, path) if sign and re.fullmatch(r"[A-Za-z][\w.-]*", name) else (None, word))
        return found


@dataclass(frozen=True, kw_only=True)
class Objective:
    objective: str = flag(
        "ar",
        "; ".join(f"{name}: {known.title}" for name, known in OBJECTIVES.items()),
        identity="experiment",
        legal=tuple(OBJECTIVES),
    )
    mdm_t_sampling: Literal["stratified", "iid", "antithetic"] = flag(
        "stratified",
        "noise levels: one in each stratum of the global batch, independent, or opposite in two neighbours",
        identity="experiment",
        needs=NOISED,
    )
    mdm_eps: float = flag(
        1e-3,
        "training masks with probability p = (1 - eps) t + eps; validation always has eps 0",
        least=0,
        below=1,
        identity="experiment",
        needs=NOISED,
    )
    noise_schedule: Literal[
        "linear", "log-linear", "cosine", "cosine-squared", "polynomial", "linear-sigma", "geometric", "importance"
    ] = flag(
        "linear",
        "probability m(t) of masking in training, weighted by m'(t) / m(t); importance: log m is uniform, all weights are alike",
        identity="experiment",
        needs=NOISED,
    )
    noise_power: float = flag(2.0, "polynomial: m = (1 - eps) t^X", below=16, identity="experiment", needs=POLYNOMIAL)
    noise_sigma_min: float = flag(1e-4, "geometric: sigma at t = 0", identity="experiment", needs=GEOMETRIC)
    noise_sigma_max: float = flag(20.0, "geometric, linear-sigma: sigma at t = 1", identity="experiment", needs=SIGMA)
    noise_steps: int | None = flag(None, "discrete time in so many steps [continuous]", identity="experiment", needs=MDM)
    mdm_loss: Literal["bound", "low-variance"] = flag(
        "bound",
        "low-variance: training counts every hidden token once, which is no bound; validation always has it",
        identity="experiment",
        needs=MDM,
    )
    block_size: int | None = flag(
        None,
        "block diffusion: blocks of so many tokens left to right, masked diffusion in each [one block]; rows are read twice",
        identity="experiment",
        needs=MDM_ON_STREAM,
    )
    atat: Literal["full", "learned", "frequency", "none"] | None = flag(
        None,
        "ATAT: training hides important tokens more or less often at an unchanged mean rate; their importance is learned by a "
        "small network, follows from how rare they are, both (full), or is the same for all (none) [plain masked diffusion]",
        identity="experiment",
        needs=MDM,
    )
    atat_tilt: float = flag(
        1.0, "how strongly: logit p = u + X x (importance - mean)", least=0, most=10, identity="experiment", needs=ATAT
    )
    atat_least: float = flag(
        0.1, "share of its row's rate below which no token's rate falls", least=0, below=1, identity="experiment", needs=TILTED
    )
    atat_curriculum: Literal["steps", "linear", "constant"] = flag(
        "steps",
        "steps: easy tokens more often, then all alike, then hard ones; linear: from easy to hard; constant: hard ones",
        identity="experiment",
        needs=TILTED,
    )
    atat_easy_until: float = flag(
        1 / 3, "share of the run in which easy tokens are hidden more often", least=0, most=1, identity="experiment", needs=STAGED
    )
    atat_hard_from: float = flag(
        2 / 3, "share of the run from which hard ones are", least=0, most=1, identity="experiment", needs=STAGED
    )
    atat_loss: Literal["elbo", "importance"] = flag(
        "elbo",
        "training weighs what is hidden by p'/p, or by 1/p and more for tokens of the stage; validation is the plain bound",
        identity="experiment",
        needs=TILTED,
    )
    atat_width: int | None = flag(
        None, "width of ATAT's network, a multiple of 16 [about a quarter of hidden-size]", identity="experiment", needs=ESTIMATED
    )
    atat_layers: int = flag(1, "its blocks", identity="experiment", needs=ESTIMATED)
    low_noise_start: bool = flag(False, "begin with less noise: t x --low-noise-ratio", identity="experiment", needs=NOISED)
    low_noise_iter: int = flag(1000, "steps of it", identity="experiment", needs=LOW_NOISE)
    low_noise_fraction: float | None = flag(
        None, "instead a share of all steps", least=0, most=1, identity="experiment", needs=LOW_NOISE
    )
    low_noise_ratio: float = flag(0.5, "factor of t in these", below=1, identity="experiment", needs=LOW_NOISE)
    ar_ratio: float = flag(
        0.0,
        "share of training rows that hide their last tokens, as many as were drawn: left to right",
        least=0,
        most=1,
        identity="experiment",
        needs=MDM_ON_STREAM,
    )
    random_length_prob: float = flag(
        0.0,
        "share of training rows that are cut to a random length (LLaDA: 0.01)",
        least=0,
        most=1,
        identity="experiment",
        needs=MDM_ON_STREAM,
    )
    randmask_ratio: float = flag(
        0.0, "share of positions that token masking acts on in training", least=0, most=1, identity="experiment", needs=AR
    )
    randmask_kind: Literal["edges", "tokens", "inputs"] = flag(
        "edges",
        "edges: they see less of what is before them; tokens: they are seen by nobody else; inputs: they read the mask",
        identity="experiment",
        needs=RANDMASK,
    )
    num_order_list: int = flag(
        0,
        "training reads each row in one of so many orders, of which the first is left to right",
        least=0,
        identity="experiment",
        needs=AR_ON_STREAM,
    )
    use_predefined_order: bool = flag(
        False,
        "these orders are disturbed the more the higher their number; else they are random",
        identity="experiment",
        needs=ORDERS,
    )
    uniform_share: float = flag(
        1.0,
        "share of the noise that puts a random id in place of a token; the rest hides it, and 0 is masked diffusion",
        least=0,
        most=1,
        identity="experiment",
        needs=UDM,
    )
    sdd_k: list[int] | None = flag(
        None,
        "candidates a position, one number or several in turn; validation has the last [1 2 4 8]",
        identity="experiment",
        needs=SDD,
    )
    sdd_k_steps: int | None = flag(
        None, "steps at each of these but the last [a twentieth of the run]", identity="experiment", needs=SDD_GROWING
    )
    sdd_schedule: Literal["cosine", "linear"] = flag(
        "cosine", "noise level at time t: 1 - cos(pi t / 2), or t", identity="experiment", needs=SDD
    )
    sdd_t_weights: list[int] | None = flag(
        None,
        "weights of the training loss in equal bins of t, from no noise to all; their mean counts as 1 [1]",
        least=0,
        identity="experiment",
        needs=SDD,
    )
    sdd_ignore: bool = flag(
        False,
        "also predict the empty places behind a row's end, weighed (1 - t)^2 / 10",
        identity="experiment",
        needs=SDD_ON_DOCUMENTS,
    )
    latent_dropout: float = flag(
        0.1,
        "share of training rows whose vector is not told, which guidance and the loss without it need",
        least=0,
        below=1,
        identity="experiment",
        needs=LATENT,
    )
    latent_mode: Literal["joint", "sequential", "random"] = flag(
        "joint",
        "joint: a step hides text and noises vectors, and predicts both; sequential, random: a step does one of --latent-turns",
        identity="experiment",
        needs=JOINT,
    )
    latent_turns: list[str] | None = flag(
        None,
        "l2t=N (text given vector), t2l=N, joint=N: steps of each in a cycle, or their weights [l2t=1 t2l=1]",
        identity="experiment",
        needs=TURNS,
    )
    latent_weight: float = flag(1.0, "factor of the vectors' part of the loss", identity="experiment", needs=JOINT)
    distill: list[str] | None = flag(
        None,
        "also learn from these finished runs (or checkpoints), the mean of their probabilities, besides the text",
        identity="experiment",
        needs=AR_OR_MDM,
    )
    distill_weight: float = flag(0.5, "share of the teacher in the loss", least=0, most=1, identity="experiment", needs=DISTILLED)
    distill_temperature: float = flag(
        1.0, "both sides' logits are divided by it in the teacher's part", identity="experiment", needs=DISTILLED
    )
    num_mc: int = flag(None, "noise draws a validation row [ar 1, others 2; 2 or more give a standard error]", identity="free")
    score_first_token: bool = flag(False, "parity: validation scores token 0 too (mdm), and the last one (ar)", identity="free")

    @property
    def uses_mask(self) -> bool:
        """Whether the mask's row of the embedding table is an input."""
        return OBJECTIVES[self.objective].uses_mask or bool(self.randmask_ratio and self.randmask_kind == "inputs")

    @property
    def estimates(self) -> bool:
        """Whether a network learns beside the model how important tokens are."""
        return self.atat in ("full", "learned")

    @property
    def reads(self) -> int:
        """How often a row stands in what the network reads."""
        return 2 if self.block_size else 1

    def growth(self, train: Train) -> float:
        """The share of a run after which the number of candidates changes, again and again until the last."""
        if self.sdd_k_steps is None or not train.num_samples:
            return SDD_K_SHARE
        return self.sdd_k_steps * train.global_batch_size / train.num_samples

    def candidates(self, train: Train) -> float:
        """That a position is read as, in the mean over a run, the mask that stands for all other ids among them; 0: its id."""
        if not self.sdd_k:
            return 0.0
        *first, last = self.sdd_k
        share = self.growth(train)
        return 1 + last + share * sum(k - last for k in first)


@dataclass(frozen=True, kw_only=True)
class Optim:
    optimizer: Literal["adam", "muon"] = flag(
        "adam", "adam: AdamW, fused; muon: Muon for the blocks' matrices, AdamW for all else", identity="experiment"
    )
    muon_lr: float | None = flag(
        None, "peak rate of the matrices, which follows the schedule of --lr in proportion [--lr]", identity="noted", needs=MUON
    )
    muon_momentum: float = flag(0.95, "decay of Muon's moment (Nesterov)", least=0, below=1, identity="noted", needs=MUON)
    muon_scale: Literal["match-rms-adamw", "original"] = flag(
        "match-rms-adamw",
        "of its update: .2 sqrt(max(rows, columns)), for which AdamW's rate and decay serve (Moonlight); "
        "or sqrt(max(1, rows / columns)), whose rate is about .02",
        identity="noted",
        needs=MUON,
    )
    muon_bf16: bool = flag(False, "orthogonalise in bfloat16, as published; else in fp32", identity="noted", needs=MUON)
    lr: float | None = flag(None, "peak learning rate", least=0, identity="noted")
    min_lr: float = flag(0.0, "learning rate at the end of the decay", least=0, identity="noted")
    lr_decay_style: Literal["cosine", "linear", "constant", "inverse-square-root", "WSD"] = flag(
        "linear", "from peak to --min-lr", identity="noted"
    )
    lr_decay_samples: int | None = flag(None, "samples until --min-lr [all]", count=True, identity="noted")
    lr_decay_iters: int | None = flag(None, "the same in iterations", count=True, identity="noted")
    lr_warmup_samples: int = flag(None, "samples of linear warm-up [0]", count=True, least=0, identity="noted")
    lr_warmup_iters: int | None = flag(None, "the same in iterations", count=True, least=0, identity="noted")
    lr_warmup_fraction: float | None = flag(None, "the same as a share of the decay samples", least=0, below=1, identity="noted")
    lr_warmup_init: float = flag(0.0, "rate that the warm-up starts from", least=0, identity="noted", needs=WARMUP)
    lr_wsd_decay_samples: int | None = flag(
        None, "WSD: samples of the final decay [a tenth]", count=True, identity="noted", needs=WSD
    )
    lr_wsd_decay_iters: int | None = flag(None, "the same in iterations", count=True, identity="noted", needs=WSD)
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = flag(
        "exponential", "WSD: shape of the final decay", identity="noted", needs=WSD
    )
    lr_plateau_factor: float = flag(
        1.0,
        "lower the rate by this factor where validation stops improving; 1: never",
        most=1,
        identity="noted",
        needs=EVALUATING,
    )
    lr_plateau_patience: int = flag(
        10, "after more than so many validations in a row without a new best", least=0, identity="noted", needs=PLATEAU
    )
    adam_beta1: float = flag(0.9, "decay of the first moment", least=0, below=1, identity="noted")
    adam_beta2: float = flag(0.999, "decay of the second moment", least=0, below=1, identity="noted")
    adam_eps: float = flag(1e-8, "added to the root of the second moment", identity="noted")
    weight_decay: float = flag(0.01, "decoupled decay of matrices; norm weights have none", least=0, identity="noted")
    weight_decay_by: str | None = flag(
        None,
        "decay by role, such as embedding=0,head=0.1,matrix=0.3: of the table of tokens and all else that leads to the width, of "
        "heads, of the blocks' matrices [weight-decay]",
        identity="noted",
    )
    clip_grad: float = flag(1.0, "largest gradient norm; 0 does not clip", least=0, identity="noted")
    ema: float = flag(
        0.0,
        "decay of an average of the weights that validation, samples and all who open the run read; 0: none (MDLM: 0.9999)",
        least=0,
        below=1,
        identity="noted",
    )

    def decay_of(self, role: str) -> float:
        return read_decays(self.weight_decay_by or "").get(role, self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Train:
    micro_batch_size: int = flag(1, "samples a forward pass; rows that do not fill one are padding of weight 0", identity="free")
    global_batch_size: int = flag(
        None, "samples a step [micro-batch x --grad-accum-steps x data-parallel size]", identity="experiment"
    )
    grad_accum_steps: int | None = flag(
        None, "micro-batches a step and data-parallel process, instead of --global-batch-size", identity="experiment"
    )
    train_samples: int | None = flag(
        None, "samples to train on; any length goes down to whole global batches", count=True, identity="noted"
    )
    train_iters: int | None = flag(None, "or: steps", count=True, identity="noted")
    train_tokens: int | None = flag(None, "or: tokens", count=True, identity="noted")
    flops: float | None = flag(None, "or: training FLOPs, C = 6 x all parameters x tokens", count=True, identity="noted")
    seed: int = flag(1234, "names weights, data order and noise", least=0, identity="experiment")
    bf16: bool = flag(False, "compute in bfloat16; weights and moments stay fp32", identity="noted")
    cpp_step: bool = flag(
        False,
        "forward and backward pass in C++, for small models: one process and thread on a CPU, fp32, no dropout",
        identity="noted",
    )
    device: Literal["auto", "cpu", "cuda"] = flag("auto", "where to run", identity="free")
    num_threads: int | None = flag(None, "CPU threads [OMP_NUM_THREADS, or all cores]", identity="free")
    compile: Literal["auto", "on", "off"] = flag(
        "auto", "torch.compile of the blocks; auto: where the run is long enough to repay it", identity="free"
    )
    deterministic_mode: bool = flag(
        False, "only deterministic kernels (eager on CPU is deterministic without it)", identity="free"
    )
    recompute_granularity: Literal["full", "selective"] | None = flag(
        None, "what the backward pass computes again. full: all but each block's input; selective: attention", identity="free"
    )
    recompute_method: Literal["uniform"] = flag("uniform", "which blocks", only="all blocks are treated alike", identity="free")
    recompute_num_layers: int = flag(1, "blocks recomputed together", only="each block is recomputed by itself", identity="free")
    max_skipped_steps: int = flag(3, "stop after this many non-finite steps in a row", identity="free")
    skip_train: bool = flag(False, "only evaluate", identity="free")
    eval_interval: int = flag(1000, "steps between validations", identity="free")
    eval_iters: int = flag(100, "validation rows, in global batches; 0: none", least=0, identity="free")
    eval_seed: int = flag(4321, "names the validation slice's noise", least=0, identity="free")
    final_scores: list[str] | None = flag(
        None,
        "likelihoods of the finished run, as tools/evaluate.py likelihood --score has them; of --objective ar exact",
        identity="free",
        needs=FINISHING,
    )
    final_score_rows: int | None = flag(None, "validation rows for these [all]", identity="free", needs=FINAL_SCORES)
    eval_tasks: list[str] | None = flag(None, "also score these files of multiple-choice questions (JSONL)", identity="free")
    eval_tasks_interval: int | None = flag(None, "steps between these scores [--eval-interval]", identity="free", needs=TASKS)
    eval_tasks_num_mc: int = flag(8, "noise draws an answer; short answers are enumerated", identity="free", needs=MDM_TASKS)
    save: str | None = flag(None, "folder for checkpoints", identity="free")
    save_interval: int | None = flag(None, "steps between checkpoints [only at the end]", identity="free", needs=SAVING)
    save_at: list[int] | None = flag(None, "also checkpoint at these steps, and keep those", identity="free", needs=SAVING)
    async_save: bool = flag(
        False, "copy what is saved and let a thread write it while training goes on", identity="free", needs=SAVING
    )
    keep_last: int | None = flag(None, "keep this many newest checkpoints [all]", identity="free", needs=SAVING)
    keep_every: int | None = flag(None, "and each whose step is a multiple of this", identity="free", needs=SAVING)
    load: str | None = flag(None, "folder of checkpoints, or one checkpoint, to go on from", identity="free")
    finetune: bool = flag(False, "take only the weights from --load, and start at step 0", identity="free", needs=LOADING)
    exit_interval: int | None = flag(None, "save and stop at a step that is a multiple of this", identity="free")
    exit_duration_in_mins: float | None = flag(None, "save and stop after this many minutes", identity="free")
    exit_signal_handler: bool = flag(
        True, "SIGTERM and SIGUSR1 save and stop", only="signals are always handled", identity="free"
    )
    kill_switch_file: str | None = flag(None, "save and stop (exit 86) when this file appears", identity="free")
    preflight: bool = flag(False, "check everything that a run needs, print it, and stop", identity="free")
    dry_run: bool = flag(
        False,
        "print what each process of a layout will hold and send, and how long a step will take, without starting one, and stop",
        identity="free",
    )
    device_memory: str | None = flag(
        None, "with --dry-run: memory of each GPU, such as 80G; what does not fit is refused", identity="free", needs=DRY_RUN
    )
    machine: str | None = flag(
        None,
        f"with --dry-run: GPUs whose time is forecast, {', '.join(MACHINES)}, also with figures of your own, such as "
        "h100,matmul=620,network=25, or a YAML file of figures [h100]",
        identity="free",
        needs=DRY_RUN,
    )
    suggest: bool = flag(
        False,
        "with --dry-run: print the fastest layouts of --world-size GPUs that fit, in place of the layout that is given",
        identity="free",
        needs=DRY_RUN,
    )
    json: bool = flag(False, "with --dry-run: print JSON", identity="free", needs=DRY_RUN)

    @property
    def num_samples(self) -> int:
        """Samples to train on; 0 where nothing is trained."""
        return self.train_samples or 0


@dataclass(frozen=True, kw_only=True)
class Log:
    run_dir: str = flag(None, "folder of the run's records [--save, or runs/NAME]", identity="free")
    upload_to: str | None = flag(
        None, "URL such as s3://bucket/runs, under which the finished run's folder is copied (fsspec)", identity="free"
    )
    log_interval: int = flag(100, "steps between log lines", identity="free")
    log_names: Literal["simple", "megatron", "both"] = flag(
        "both", "tags in TensorBoard and W&B: train/loss, the reference's, or both", identity="free", needs=VIEWS
    )
    tensorboard_dir: str | None = flag(None, "write TensorBoard events here", identity="free")
    tensorboard_queue_size: int = flag(1000, "events kept before a flush", identity="free", needs=TENSORBOARD)
    log_gradient_noise_scale: bool = flag(
        False, "also the batch, in samples, at which a gradient is as much noise as signal, from micro-batches", identity="free"
    )
    log_timers_to_tensorboard: bool = flag(False, "also step time and throughput", identity="free", needs=VIEWS)
    log_batch_size_to_tensorboard: bool = flag(False, "also the batch size", identity="free", needs=VIEWS)
    log_validation_ppl_to_tensorboard: bool = flag(False, "also the validation perplexity", identity="free", needs=VIEWS)
    wandb_project: str | None = flag(None, "log to this W&B project (offline without a key)", identity="free")
    wandb_exp_name: str | None = flag(None, "name of the W&B run, and of runs/NAME [run-dir's name]", identity="free")
    wandb_group: str | None = flag(None, "W&B group", identity="free", needs=WANDB)
    wandb_save_dir: str | None = flag(None, "where W&B keeps its files [run-dir]", identity="free", needs=WANDB)
    no_wandb: bool = flag(False, "no W&B, whatever else is said", identity="free")


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

    @classmethod
    def from_dict(cls, sections: dict[str, dict[str, Any]]) -> "Config":
        """What as_dict gave. Raises KeyError or TypeError for that of a version with other flags."""
        return cls(**{name: kind(**sections[name]) for name, kind in get_type_hints(cls).items()})

    def estimator(self) -> Shape | None:
        """Sizes of the network that learns beside the model, where there is one; it has no head over the vocabulary."""
        width, vocab = self.objective.atat_width, self.model.vocab_size
        if not self.objective.estimates or width is None:
            return None
        return Shape(
            num_layers=self.objective.atat_layers,
            hidden_size=width,
            num_attention_heads=width // ESTIMATOR_HEAD,
            kv_channels=ESTIMATOR_HEAD,
            ffn_hidden_size=swiglu_width(width),
            vocab_size=vocab,
            padded_vocab_size=vocab,
        )

    def flops_per_token(self) -> float:
        """Training FLOPs a token, in the mean over the run: of the model with attention and head, and of what learns beside."""
        read = self.objective.reads, self.objective.candidates(self.train)
        return self.model.shape().flops_per_token(self.model.seq_length, *read) + self.estimating_flops()

    def estimating_flops(self) -> float:
        """A token, of what learns beside the model."""
        beside = self.estimator()
        return beside.estimating_flops_per_token(self.model.seq_length) if beside else 0.0

    def orthogonalising_flops(self) -> float:
        """A token, of Muon's updates: executed, and no part of what fits call training FLOPs."""
        if self.optim.optimizer != "muon":
            return 0.0
        p = self.parallel
        times = 1 if p.zero_stage else p.data_parallel_size  # replicas that share nothing out each do all of it
        return times * self.model.shape().orthogonalising_flops() / (self.train.global_batch_size * self.model.seq_length)

    @property
    def may_compile(self) -> bool:
        """Whether --compile lets blocks be compiled, which torch's zero-bubble schedule cannot run."""
        return self.train.compile != "off" and self.parallel.pipeline_schedule != "zero-bubble"

    @property
    def num_micro_batches(self) -> int:
        """Of one step, on each data-parallel process."""
        return num_micro_batches(self.train.global_batch_size, self.parallel.data_parallel_size, self.train.micro_batch_size)

    def with_vocabulary(self, vocab_size: int) -> "Config":
        """The same config once the tokenizer is open. Raises ConfigError when flags say another vocabulary."""
        mistakes: list[str] = []
        model = fill_vocabulary(self.model, vocab_size, self.objective.uses_mask, self.parallel, mistakes)
        check_tensor(self.parallel, model, mistakes)
        if mistakes:
            raise ConfigError(mistakes)
        return replace(self, model=model)


# Presets of --model-config.
PRESETS: dict[str, dict[str, Any]] = {
    "small": dict(num_layers=6, hidden_size=384, num_attention_heads=6, ffn_hidden_size=1536),
    "medium": dict(num_layers=8, hidden_size=512, num_attention_heads=8, ffn_hidden_size=2048),
    "large": dict(num_layers=12, hidden_size=768, num_attention_heads=12, ffn_hidden_size=3072),
    "xl": dict(num_layers=24, hidden_size=1024, num_attention_heads=16, ffn_hidden_size=4096),
}

# Flags that exclude each other: of one source only one is taken, and one on the command line replaces a file's others.
BUDGETS = ("train_samples", "train_iters", "train_tokens", "flops")
WARMUPS: tuple[str, ...] = ("lr_warmup_samples", "lr_warmup_iters", "lr_warmup_fraction")
TOKENIZERS_OF_FILES: tuple[str, ...] = ("TikTokenizer", "SentencePieceTokenizer", "HFTokenizer")
CORPORA: tuple[tuple[str, ...], ...] = tuple(
    ("data_path", f"{split}_data_path", f"{split}_data_path_file") for split in ("train", "valid", "test")
)
EXCLUSIVE = (BUDGETS, ("lr_decay_samples", "lr_decay_iters"), WARMUPS, ("lr_wsd_decay_samples", "lr_wsd_decay_iters"), *CORPORA)
TOLD: tuple[str, ...] = ("ar", "mdm")  # objectives of texts that may be told a vector
OF_SIGMA: tuple[str, ...] = ("geometric", "linear-sigma")
DECAYING: tuple[str, ...] = ("embedding", "head", "matrix")  # roles of parameters that weight decay acts on
PIPELINE_ENDS = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")

# And those of which one settles the other.
SETTLED_TOGETHER = (("global_batch_size", "grad_accum_steps"), ("pipeline_schedule", "num_layers_per_virtual_pipeline_stage"))


@functools.cache
def declared() -> Table:
    """Field name -> (section, field, type of the flag's value)."""
    return {
        f.name: (name, f, without_none(hints[f.name]))
        for name, section in get_type_hints(Config).items()
        for hints in [get_type_hints(section)]
        for f in fields(section)
    }


def experiment(saved: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Field name -> value of every flag in what Config.as_dict gave that is not free to differ, in the order of declaration.

    A flag that the version which saved it did not have has its default; one that this version does not have is left out.
    """
    return {
        name: saved.get(section, {}).get(name, f.default)
        for name, (section, f, _) in declared().items()
        if f.metadata["identity"] != "free"
    }


def overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins, also against flags that say the same in another way, and a preset against the file's sizes."""
    gone = {n for group in (*EXCLUSIVE, *SETTLED_TOGETHER) if over.keys() & set(group) for n in group}
    if "model_config" in over:
        gone |= PRESETS["small"].keys() | {"kv_channels"}
    if "zero_stage" in over:
        gone.add("use_distributed_optimizer")
    return {n: v for n, v in under.items() if n not in gone} | over


def parse(argv: list[str], objective: str = "ar", environ: dict[str, str] | None = None, said: list[str] | None = None) -> Config:
    """Flags -> Config. `objective` is the entry point's default; what of a file's keys does not act is appended to `said`.

    Raises ConfigError with every mistake.
    """
    table = declared()
    mistakes: list[str] = []
    said = [] if said is None else said
    given = split_words(list(argv), mistakes)
    got: dict[str, Any] = {"objective": objective}
    for words in (words for spelled, words in given if spelled == "--config"):
        if len(words) != 1 or not words[0]:
            mistakes.append(f"--config takes one file, found {' '.join(words) or 'none'}")
            continue
        sections = {f.name for f in fields(Config)}
        got = overlay(got, settle(read_file(words[0], sections, mistakes, said), table, mistakes, f"--config {words[0]}: "))
        got.pop("world_size", None)  # a saved run's; this one's is the launcher's
    got = overlay(got, settle([pair for pair in given if pair[0] != "--config"], table, mistakes))
    filled: dict[str, dict[str, Any]] = {f.name: {} for f in fields(Config)}
    for name, (section, f, _) in table.items():
        filled[section][name] = f.default if got.get(name) is None else got[name]
    cfg = Config.from_dict(filled)
    cfg, wrong = resolve(cfg, dict(os.environ) if environ is None else environ, {n for n, v in got.items() if v is None})
    if mistakes + wrong:
        raise ConfigError(list(dict.fromkeys(mistakes + wrong)))
    return cfg


def resolve(cfg: Config, environ: dict[str, str], unread: Collection[str] = ()) -> tuple[Config, list[str]]:
    """Derive what was left open and list what does not fit. A pure function.

    `unread`: fields that were given but could not be read, so that nobody is told to give them. With mistakes, the
    config may be incomplete.
    """
    mistakes: list[str] = []
    check_exclusive(cfg, mistakes)
    check_idle(cfg, mistakes)
    model = resolve_model(cfg, unread, mistakes)
    parallel = resolve_parallel(cfg.parallel, model, cfg.train.dry_run, environ, mistakes)
    train = resolve_train(cfg.train, model, parallel, unread, mistakes)
    check_parallel(parallel, train, mistakes)
    optim = resolve_optim(cfg.optim, train, unread, mistakes)
    optim = resolve_decays(optim, model, mistakes)
    if optim.optimizer == "muon":
        check_muon(optim, parallel, model, mistakes)
    if cfg.log.log_gradient_noise_scale:
        check_noise_scale(parallel, train, mistakes)
    if train.cpp_step:
        check_cpp_step(replace(cfg, parallel=parallel, train=train, model=model), mistakes)
    check_data(cfg, unread, mistakes)
    check_final_scores(train, model, mistakes)
    return replace(
        cfg,
        model=model,
        parallel=parallel,
        train=train,
        optim=optim,
        log=resolve_log(cfg, model, mistakes),
        objective=resolve_objective(replace(cfg, train=train), mistakes),
    ), mistakes


def check_final_scores(train: Train, model: Model, mistakes: list[str]) -> None:
    try:
        names = read_scores(train.final_scores or [], "--final-scores")
    except ConfigError as error:
        mistakes.append(str(error))
        return
    for name in names:
        most = MOST_PLACES.get(name.kind)
        if most and model.seq_length and (name.block or model.seq_length - 1) > most:
            mistakes.append(f"--final-scores {name.text}: for {most} places at most; give {name.text.partition('/')[0]}/{most}")


def given_of(section, names: Iterable[str]) -> list[str]:
    return [n for n in names if getattr(section, n) is not None]


def check_exclusive(cfg: Config, mistakes: list[str]) -> None:
    for group in EXCLUSIVE:
        section = next(s for s in (cfg.train, cfg.optim, cfg.data) if hasattr(s, group[0]))
        if len(given := given_of(section, group)) > 1:
            mistakes.append(f"{' and '.join(map(spelling, given))} exclude each other: give one")


def check_idle(cfg: Config, mistakes: list[str]) -> None:
    """Every flag acts: none may be given that would do nothing beside the others."""
    mistakes += [
        f"{spelling(name)} would do nothing here: {needs.said}, or leave it out"
        for name, (section, f, _) in declared().items()
        if (needs := f.metadata["needs"]) and getattr(getattr(cfg, section), name) != f.default and not needs.met(cfg)
    ]


def resolve_model(cfg: Config, unread: Collection[str], mistakes: list[str]) -> Model:
    m = from_preset(cfg.model)
    missing = [n for n in ("num_layers", "hidden_size", "num_attention_heads") if getattr(m, n) is None]
    if ask := [spelling(n) for n in missing if n not in unread]:
        mistakes.append(f"{', '.join(ask)} must be given (or --model-config {'|'.join(PRESETS)})")
    if m.kv_channels is None and m.hidden_size and m.num_attention_heads:
        m = replace(m, kv_channels=head_width(m, mistakes))
    check_groups(m, mistakes)
    check_parametrization(m, unread, mistakes)
    if m.kv_channels and m.kv_channels % 2:
        mistakes.append(f"--kv-channels {m.kv_channels} must be even: rotary positions turn pairs of channels")
    if m.ffn_hidden_size is None and m.hidden_size:
        m = replace(m, ffn_hidden_size=swiglu_width(m.hidden_size))
    m = replace(m, max_position_embeddings=m.max_position_embeddings or m.seq_length)
    if m.max_position_embeddings < m.seq_length:
        mistakes.append(f"--seq-length {m.seq_length} is above --max-position-embeddings {m.max_position_embeddings}")
    if m.use_flash_attn and m.attention_dropout:
        mistakes.append("--use-flash-attn: the fused kernel has no addressed dropout; give --attention-dropout 0")
    m = replace(m, latent_head=m.latent_head or OBJECTIVES[cfg.objective.objective].vectors)
    vocab_size = known_vocabulary(cfg, mistakes)
    return fill_vocabulary(m, vocab_size, cfg.objective.uses_mask, cfg.parallel, mistakes) if vocab_size else m


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
        mistakes.append(
            f"--num-attention-heads {m.num_attention_heads} does not divide --hidden-size {m.hidden_size}; "
            f"try {divisors(m.hidden_size)}, or give --kv-channels"
        )
        return None
    return m.hidden_size // m.num_attention_heads


def check_parametrization(m: Model, unread: Collection[str], mistakes: list[str]) -> None:
    needed = {"mup": ["mup_base_hidden_size"], "completep": ["mup_base_hidden_size", "mup_base_num_layers"]}
    missing = [n for n in needed.get(m.parametrization, []) if getattr(m, n) is None and n not in unread]
    if missing:
        mistakes.append(
            f"--parametrization {m.parametrization} needs {' and '.join(map(spelling, missing))}: "
            "of the model at which --lr was found"
        )


def check_groups(m: Model, mistakes: list[str]) -> None:
    heads, groups = m.num_attention_heads, m.num_query_groups
    if m.group_query_attention and not groups:
        mistakes.append("--group-query-attention needs --num-query-groups: how many heads of keys and values there are")
    elif groups and heads and heads % groups:
        mistakes.append(f"--num-query-groups {groups} does not divide --num-attention-heads {heads}; try {divisors(heads)}")


def known_vocabulary(cfg: Config, mistakes: list[str]) -> int | None:
    """The vocabulary's size, where it is known without opening the tokenizer's files."""
    d, given = cfg.data, cfg.model.vocab_size
    known = {"GPT2BPETokenizer": GPT2_VOCAB, "ByteTokenizer": 257}.get(d.tokenizer_type)
    if d.vocab_file and (given or cfg.train.flops is None):
        return given  # perhaps not GPT-2's own; only --flops needs to know at once
    if None not in (given, known) and given != known:
        mistakes.append(f"--vocab-size {given} is not {d.tokenizer_type}'s {known}: leave it out")
    return known or given


def fill_vocabulary(m: Model, vocab_size: int, uses_mask: bool, p: Parallel, mistakes: list[str]) -> Model:
    if m.vocab_size not in (None, vocab_size):
        mistakes.append(f"--vocab-size {m.vocab_size} is not the tokenizer's: give {vocab_size}")
    rows = padded_vocab(vocab_size, m.make_vocab_size_divisible_by, m.pad_vocab, p.tensor_model_parallel_size)
    if m.padded_vocab_size not in (None, rows):
        mistakes.append(f"--padded-vocab-size {m.padded_vocab_size} is not the derived {rows}: leave it out")
    if uses_mask and rows < vocab_size + RESERVED_IDS:
        mistakes.append(
            f"--pad-vocab {m.pad_vocab} gives {rows} rows for {vocab_size} ids: no room for the mask; use --pad-vocab fixed"
        )
    return replace(m, vocab_size=vocab_size, padded_vocab_size=rows)


def divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, min(n, 8192) + 1) if n % d == 0)


def resolve_parallel(p: Parallel, m: Model, dry_run: bool, environ: dict[str, str], mistakes: list[str]) -> Parallel:
    p = replace(
        p,
        local_rank=None,
        zero_stage=max(p.zero_stage, int(p.use_distributed_optimizer)),
        sequence_parallel=p.sequence_parallel and p.tensor_model_parallel_size > 1,
    )
    p = replace(p, world_size=find_world(p, dry_run, environ, mistakes))
    check_tensor(p, m, mistakes)
    return resolve_schedule(p, m.num_layers, mistakes)


def find_world(p: Parallel, dry_run: bool, environ: dict[str, str], mistakes: list[str]) -> int:
    """The number of processes: the launcher's, or any that a dry run asks for; its smallest is one replica."""
    tp, pp = p.tensor_model_parallel_size, p.pipeline_model_parallel_size
    try:
        world = find_place(environ).world_size
    except ValueError as error:
        mistakes.append(str(error))
        return tp * pp
    if dry_run:
        world = p.world_size or (world if world > 1 else tp * pp)
    elif p.world_size not in (None, world):
        mistakes.append(
            f"--world-size {p.world_size}: the launcher started {world}, and only it can say how many: "
            "leave the flag out, or add --dry-run"
        )
    if world % (tp * pp):
        near = [n * tp * pp for n in (world // (tp * pp), world // (tp * pp) + 1) if n]
        mistakes.append(
            f"tensor {tp} x pipeline {pp} parallelism needs a multiple of {tp * pp} processes, found {world}: start "
            f"{' or '.join(map(str, near))} (torchrun --nproc-per-node), or take sizes "
            f"whose product is one of {divisors(world)}"
        )
        return tp * pp
    return world


def check_tensor(p: Parallel, m: Model, mistakes: list[str]) -> None:
    """Tensor parallelism cuts heads, SwiGLU width and vocabulary, and on request the sequence, into equal parts."""
    tp, cut = p.tensor_model_parallel_size, ["num_attention_heads", "num_query_groups", "ffn_hidden_size", "padded_vocab_size"]
    widths = {n: getattr(m, n) for n in cut + ["seq_length"] * p.sequence_parallel if getattr(m, n)}
    legal = divisors(math.gcd(*widths.values()))
    mistakes += [
        f"--tensor-model-parallel-size {tp} does not divide {spelling(n)} {width}; try {legal}"
        for n, width in widths.items()
        if width % tp
    ]


def resolve_schedule(p: Parallel, num_layers: int | None, mistakes: list[str]) -> Parallel:
    pp, each = p.pipeline_model_parallel_size, p.num_layers_per_virtual_pipeline_stage
    p = replace(p, pipeline_schedule=p.pipeline_schedule or ("interleaved" if each and pp > 1 else "1f1b"))
    if pp == 1 and p.pipeline_schedule != "1f1b":
        mistakes.append(
            f"--pipeline-schedule {p.pipeline_schedule} would do nothing here: "
            "give --pipeline-model-parallel-size above 1, or leave it out"
        )
    if pp > 1 and p.no_pipeline_parallel:
        mistakes.append(f"--no-pipeline-parallel and --pipeline-model-parallel-size {pp} contradict each other: give one")
    if pp > 1 and num_layers:
        check_stages(p, num_layers, mistakes)
    return p


def check_stages(p: Parallel, num_layers: int, mistakes: list[str]) -> None:
    """Every stage has a layer; interleaved stages are equal (Megatron's rule); fixed ends leave enough for the others."""
    pp, kind, each = p.pipeline_model_parallel_size, p.pipeline_schedule, p.num_layers_per_virtual_pipeline_stage
    per_rank = 2 if kind == "zero-bubble" else 1
    ends = given_of(p, PIPELINE_ENDS)
    if num_layers < pp * per_rank:
        twice = "--pipeline-schedule zero-bubble, which has two stages on each process, " if per_rank == 2 else ""
        mistakes.append(
            f"{twice}--pipeline-model-parallel-size {pp} is above --num-layers {num_layers}: "
            f"give at most {max(1, num_layers // per_rank)}"
        )
    elif kind == "interleaved":
        check_interleaved(p, num_layers, mistakes)
        mistakes += [f"{spelling(n)} needs --pipeline-schedule 1f1b: interleaved stages are all of equal length" for n in ends]
    elif each:
        mistakes.append(f"--num-layers-per-virtual-pipeline-stage {each} needs --pipeline-schedule interleaved, not {kind}")
    elif ends:
        others = pp * per_rank - len(ends)
        fixed = sum(getattr(p, n) for n in ends)
        if num_layers - fixed < others or (num_layers > fixed and not others):
            mistakes.append(
                f"{' and '.join(f'{spelling(n)} {getattr(p, n)}' for n in ends)} of --num-layers {num_layers} do not "
                f"leave each other stage a layer: give {'at most ' if others else ''}{num_layers - others} in all"
            )


def check_interleaved(p: Parallel, num_layers: int, mistakes: list[str]) -> None:
    pp, each = p.pipeline_model_parallel_size, p.num_layers_per_virtual_pipeline_stage
    legal = [n for n in range(1, num_layers // pp) if num_layers % (pp * n) == 0]
    if each in legal:
        return
    what = (
        f"--num-layers-per-virtual-pipeline-stage {each} does not cut"
        if each
        else "--pipeline-schedule interleaved needs --num-layers-per-virtual-pipeline-stage, to cut"
    )
    sizes = [n for n in range(2, num_layers // 2 + 1) if num_layers % n == 0]
    nearest = (
        f"try {', '.join(map(str, legal))}"
        if legal
        else f"try --pipeline-model-parallel-size {', '.join(map(str, sizes))}"
        if sizes
        else "use --pipeline-schedule 1f1b"
    )
    mistakes.append(f"{what} --num-layers {num_layers} over {pp} processes into several equal stages on each; {nearest}")


def check_parallel(p: Parallel, t: Train, mistakes: list[str]) -> None:
    """What does not work together, with the nearest that does."""
    stage, pipeline, kind = f"--zero-stage {p.zero_stage}", p.pipeline_model_parallel_size > 1, p.pipeline_schedule
    if p.cpu_params and p.zero_stage < 3:
        mistakes.append(
            f"--cpu-params with {stage}: only stage 3 shards the weights; give --zero-stage 3, or --cpu-optimizer instead"
        )
    if pipeline and kind == "zero-bubble" and p.zero_stage > 1:
        mistakes.append(
            f"--pipeline-schedule zero-bubble with {stage} gives wrong gradients in torch: "
            "give --zero-stage 0 or 1, or --pipeline-schedule 1f1b"
        )
    if pipeline and kind == "zero-bubble" and t.compile == "on":
        mistakes.append(
            "--pipeline-schedule zero-bubble cannot run compiled blocks: give --compile off, or --pipeline-schedule 1f1b"
        )
    if pipeline and p.deepspeed and p.zero_stage > 1:
        mistakes.append(
            f"--deepspeed with {stage} and a pipeline: DeepSpeed has no such thing; "
            "give --zero-stage 0 or 1, or --pipeline-model-parallel-size 1, or leave --deepspeed out"
        )
    if p.distributed_backend == "nccl" and t.device == "cpu":
        mistakes.append("--distributed-backend nccl with --device cpu: NCCL needs GPUs; leave it out")
    if t.device_memory and not memory_bytes(t.device_memory):
        mistakes.append(f"--device-memory {t.device_memory} must be a size such as 80G")
    try:
        read_machine(t.machine or DEFAULT)
    except ValueError as error:
        mistakes.append(f"--machine {error}")
    if t.suggest and p.deepspeed:
        mistakes.append("--suggest with --deepspeed: the native engine's layouts are tried; leave one of them out")
    if not (t.skip_train or t.suggest):  # which tries other layouts
        check_batch(p, t, mistakes)


def memory_bytes(text: str) -> int:
    """`80G`, `81920M`, `80GiB` -> bytes, in powers of 1024; 0 for what is no size."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([MGT])(?:i?B)?", text, re.IGNORECASE)
    return int(float(found[1]) * 1024 ** (2 + "MGT".index(found[2].upper()))) if found else 0


def check_batch(p: Parallel, t: Train, mistakes: list[str]) -> None:
    """A step must give every replica a sample, and every stage of a pipeline a micro-batch."""
    batch, micro, dp, pp = t.global_batch_size, t.micro_batch_size, p.data_parallel_size, p.pipeline_model_parallel_size
    if batch < dp:
        mistakes.append(
            f"--global-batch-size {batch} is less than a sample for each of {dp} data-parallel processes: "
            f"give at least {dp}, or start at most {batch * p.world_size // dp} processes"
        )
        return
    count = num_micro_batches(batch, dp, micro)
    rounds = max(1, count // pp)
    if pp > 1 and count < pp:
        mistakes.append(
            f"--global-batch-size {batch} is {count} micro-batches of {micro} on each of {dp} data-parallel "
            f"processes, less than the {pp} stages of the pipeline: give at least {pp * micro * dp}"
            + (f", or --micro-batch-size {batch // (pp * dp)}" if batch >= pp * dp else "")
        )
    elif p.pipeline_schedule == "interleaved" and count % rounds:
        near = [n * micro * dp for n in (count - count % rounds, count - count % rounds + rounds) if n % max(1, n // pp) == 0]
        mistakes.append(
            f"--global-batch-size {batch} is {count} micro-batches, which the interleaved schedule cannot deal in "
            f"{rounds} equal rounds of at least {pp}: give {' or '.join(map(str, near)) or pp * micro * dp}"
        )


def resolve_train(t: Train, m: Model, p: Parallel, unread: Collection[str], mistakes: list[str]) -> Train:
    replicas = p.data_parallel_size
    if t.suggest and (t.grad_accum_steps or not t.global_batch_size):
        mistakes.append(
            "--suggest needs --global-batch-size, and no --grad-accum-steps: layouts are ranked that train the same, and differ "
            "in micro-batches"
        )
    batch = t.global_batch_size or t.micro_batch_size * (t.grad_accum_steps or 1) * replicas
    if t.grad_accum_steps and t.grad_accum_steps * t.micro_batch_size * replicas != batch:
        over = f" x {replicas} data-parallel processes" if replicas > 1 else ""
        mistakes.append(
            f"--grad-accum-steps {t.grad_accum_steps} x --micro-batch-size {t.micro_batch_size}{over} is not "
            f"--global-batch-size {batch}: give one of them"
        )
    samples = None
    if given := given_of(t, BUDGETS):
        samples = budget_samples(given[0], t, m, batch, mistakes)
    elif not (t.skip_train or t.dry_run) and not set(BUDGETS) & set(unread):
        mistakes.append(f"how long to train? give {', '.join(map(spelling, BUDGETS[:-1]))} or --flops")
    if t.skip_train and not t.eval_iters:
        mistakes.append("--skip-train with --eval-iters 0 does nothing: give --eval-iters")
    whole = (samples or 0) // batch * batch  # as in Megatron, the tail that fills no global batch is not trained on
    return replace(
        t,
        global_batch_size=batch,
        grad_accum_steps=None,
        train_samples=whole or None,
        train_iters=None,
        train_tokens=None,
        flops=None,
    )


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
        return None  # already a mistake
    return int(flops / (6 * m.shape().total())) // m.seq_length


def resolve_optim(o: Optim, t: Train, unread: Collection[str], mistakes: list[str]) -> Optim:
    if o.lr is None and not (t.skip_train or t.dry_run) and "lr" not in unread:
        mistakes.append("--lr must be given")
    if o.lr is not None and o.min_lr > o.lr:
        mistakes.append(f"--min-lr {o.min_lr:g} is above --lr {o.lr:g}")
    if o.lr is not None and o.lr_warmup_init > o.lr:
        mistakes.append(f"--lr-warmup-init {o.lr_warmup_init:g} is above --lr {o.lr:g}")
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
    return replace(
        o,
        lr_decay_samples=decay,
        lr_decay_iters=None,
        lr_warmup_samples=warmup,
        lr_warmup_iters=None,
        lr_warmup_fraction=None,
        lr_wsd_decay_samples=wsd,
        lr_wsd_decay_iters=None,
    )


def resolve_decays(o: Optim, m: Model, mistakes: list[str]) -> Optim:
    if o.weight_decay_by is None:
        return o
    try:
        decays = read_decays(o.weight_decay_by)
    except ValueError as error:
        mistakes.append(f"--weight-decay-by {error}: expected {', '.join(f'{r}=X' for r in DECAYING)}, each once, X from 0 on")
        return replace(o, weight_decay_by=None)
    if "head" in decays and not (m.untie_embeddings_and_output_weights or m.latent_head):
        mistakes.append(
            "--weight-decay-by head=...: the table of tokens is the head too: name embedding, "
            "or give --untie-embeddings-and-output-weights"
        )
    said = {role: repr(decays[role]).removesuffix(".0") for role in DECAYING if role in decays}
    return replace(o, weight_decay_by=",".join(f"{role}={decay}" for role, decay in said.items()))


def read_decays(text: str) -> dict[str, float]:
    """`embedding=0,matrix=0.3`.  Raises ValueError with the part that is none."""
    found: dict[str, float] = {}
    for part in text.split(",") if text else []:
        role, _, number = part.strip().partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if role not in DECAYING or role in found or not 0 <= value < math.inf:
            raise ValueError(part.strip() or text)
        found[role] = value
    return found


def check_muon(o: Optim, p: Parallel, m: Model, mistakes: list[str]) -> None:
    if p.deepspeed and p.pipeline_model_parallel_size == 1:
        mistakes.append(
            "--optimizer muon with --deepspeed: DeepSpeed cuts moments across matrices, which Muon needs whole; "
            f"leave --deepspeed out: the native engine has --zero-stage {p.zero_stage} too"
        )
    if m.parametrization != "standard" and o.muon_scale != "original":
        mistakes.append(
            f"--parametrization {m.parametrization} with --muon-scale {o.muon_scale}, whose updates grow with the width: "
            "give --muon-scale original, whose rate carries over (and --muon-lr)"
        )
    if o.muon_lr and o.lr == 0:
        mistakes.append(f"--muon-lr {o.muon_lr:g} follows the schedule of --lr in proportion, and --lr is 0: give --lr above 0")


def check_noise_scale(p: Parallel, t: Train, mistakes: list[str]) -> None:
    replicas = p.data_parallel_size
    if p.deepspeed or p.pipeline_model_parallel_size > 1 or (p.zero_stage > 1 and replicas > 1):
        mistakes.append(
            "--log-gradient-noise-scale sees each micro-batch's gradient whole, which a pipeline, --zero-stage 2 and 3 and "
            "--deepspeed do not leave: use --zero-stage 0 or 1 without them, or leave it out"
        )
    elif num_micro_batches(t.global_batch_size, replicas, t.micro_batch_size) * replicas < 2:
        mistakes.append(
            f"--log-gradient-noise-scale compares micro-batches, and a step of {t.global_batch_size} samples is one: "
            "give a smaller --micro-batch-size, or a larger --global-batch-size"
        )


CPP_STEP_BYTES = 1 << 30  # of the probabilities of one row's attention in all layers, which are kept


def check_cpp_step(cfg: Config, mistakes: list[str]) -> None:
    """What is written in C++ is the plain network of one process (engine/cpp_step.h)."""
    m, p, t, o = cfg.model, cfg.parallel, cfg.train, cfg.objective
    asked = {
        f"{p.world_size} processes": p.world_size > 1,
        f"--seq-length {m.seq_length}": 4 * (m.num_layers or 0) * (m.num_attention_heads or 0) * m.seq_length**2 > CPP_STEP_BYTES,
        "--deepspeed": p.deepspeed,
        "--bf16": t.bf16,
        "--device cuda": t.device == "cuda",
        "--compile on": t.compile == "on",
        "--recompute-granularity": t.recompute_granularity,
        "--log-gradient-noise-scale": cfg.log.log_gradient_noise_scale,
        "--group-query-attention": m.group_query_attention,
        f"--objective {o.objective}": o.objective not in ("ar", "mdm"),
        "--time-conditioning": m.time_conditioning,
        "--block-size": o.block_size,
        "--random-length-prob": o.random_length_prob,
        f"--randmask-kind {o.randmask_kind}": o.randmask_ratio and o.randmask_kind != "inputs",
        "--distill": o.distill,
        "--reset-attention-mask": cfg.data.reset_attention_mask,
        "--latent-size": m.latent_size,
    } | {f"{spelling(name)} {getattr(m, name)}": getattr(m, name) for name in vars(m) if name.endswith("_dropout")}
    if found := [name for name, given in asked.items() if given]:
        mistakes.append(
            f"--cpp-step computes a plain network in fp32 on one CPU, without dropout: it does not go with {', '.join(found)}; "
            "leave it out, or these"
        )


def in_samples(samples: int | None, iters: int | None, t: Train) -> int | None:
    return iters * t.global_batch_size if samples is None and iters is not None else samples


def check_distilled(cfg: Config, mistakes: list[str]) -> None:
    """A teacher stands whole on every process, and answers at whole rows of text."""
    o, p = cfg.objective, cfg.parallel
    cut = (
        ("tensor_model_parallel_size", p.tensor_model_parallel_size),
        ("pipeline_model_parallel_size", p.pipeline_model_parallel_size),
    )
    mistakes += [
        f"--distill with {spelling(name)} {size}: the teacher stands whole on every process and its answers are not cut; "
        "use data parallelism and ZeRO alone"
        for name, size in cut
        if (size or 1) > 1
    ]
    others = (
        ("atat", o.atat),
        ("block_size", o.block_size),
        ("latent_size", cfg.model.latent_size),
        ("num_order_list", o.num_order_list > 1),  # orders are the student's own
    )
    mistakes += [
        f"--distill and {spelling(name)}: a teacher is not asked what that poses; leave one out"
        for name, given in others
        if given
    ]
    if len(set(o.distill or ())) < len(o.distill or ()):
        mistakes.append("--distill names a run twice: give each once")


def resolve_objective(cfg: Config, mistakes: list[str]) -> Objective:
    o, eps = cfg.objective, declared()["mdm_eps"][1].default
    known = OBJECTIVES[o.objective]
    if o.noise_schedule in OF_SIGMA and o.mdm_eps != eps:
        mistakes.append(f"--mdm-eps would do nothing here: --noise-schedule {o.noise_schedule} has sigmas; leave it out")
    if o.noise_schedule == "importance" and not o.mdm_eps:
        mistakes.append("--noise-schedule importance needs --mdm-eps above 0, where log m begins")
    if o.noise_schedule == "geometric" and o.noise_sigma_min >= o.noise_sigma_max:
        mistakes.append(f"--noise-sigma-min {o.noise_sigma_min:g} must be below --noise-sigma-max {o.noise_sigma_max:g}")
    if o.low_noise_fraction is not None and o.low_noise_iter != declared()["low_noise_iter"][1].default:
        mistakes.append("--low-noise-iter and --low-noise-fraction exclude each other: give one")
    if o.block_size:
        check_blocks(cfg, mistakes)
    if cfg.model.latent_size or known.vectors:
        check_latents(cfg, mistakes)
    if o.atat:
        check_atat(cfg, mistakes)
    if o.randmask_ratio and o.num_order_list > 1:
        mistakes.append("--randmask-ratio and --num-order-list exclude each other: give one")
    if o.num_order_list > 1 and (cfg.data.reset_attention_mask or cfg.data.reset_position_ids or cfg.data.eod_mask_loss):
        mistakes.append("--num-order-list mixes documents, whose borders --reset-... and --eod-mask-loss keep: give one")
    if o.random_length_prob and cfg.data.reset_attention_mask:
        mistakes.append("--random-length-prob and --reset-attention-mask both say who is seen: give one")
    if o.distill:
        check_distilled(cfg, mistakes)
    if known.exact and (o.num_mc or 1) != 1:
        mistakes.append(f"--num-mc {o.num_mc} acts on bounds only: the validation loss of {known.label} is exact")
    if not known.likelihood:
        given = [name for name in ("final_scores", "eval_tasks") if getattr(cfg.train, name)]
        mistakes += [
            f"{spelling(name)} needs a likelihood, and --objective {o.objective} has none: leave it out" for name in given
        ]
    if o.objective == "udm":
        check_uniform(cfg, mistakes)
    if o.objective == "sdd":
        o = replace(o, sdd_k=o.sdd_k or list(SDD_K))
        check_candidates(o, cfg.train, mistakes)
        if cfg.data.eod_mask_loss:
            mistakes.append("--eod-mask-loss shows the ends of documents, which --objective sdd would noise: leave it out")
    width = o.atat_width
    if o.estimates and cfg.model.hidden_size:
        width = width or max(1, cfg.model.hidden_size // (4 * ESTIMATOR_HEAD)) * ESTIMATOR_HEAD
    return replace(o, num_mc=o.num_mc or (1 if known.exact else 2), atat_width=width)


def check_uniform(cfg: Config, mistakes: list[str]) -> None:
    """Noise that is any id: its loss compares distributions over the ids that there are, and hides no end of a document."""
    if cfg.model.predict_reserved:
        mistakes.append("--predict-reserved predicts ids that the noise of --objective udm never draws: leave it out")
    if cfg.data.eod_mask_loss:
        mistakes.append("--eod-mask-loss shows the ends of documents, which --objective udm would noise: leave it out")
    if cfg.train.eval_tasks:
        mistakes.append("--eval-tasks hides tokens, and --objective udm reads random ids too: leave it out")
    if others := [name for name in cfg.train.final_scores or [] if name not in ("nelbo", "nelbo:independent")]:
        mistakes.append(f"--final-scores {others[0]}: of --objective udm the bound alone is computed; give nelbo")


def check_candidates(o: Objective, t: Train, mistakes: list[str]) -> None:
    """Numbers of candidates that a clean position has room for, and all of which the run comes to."""
    ks = o.sdd_k or []
    if wrong := [k for k in ks if k > SDD_MOST]:
        mistakes.append(f"--sdd-k {wrong[0]}: at most {SDD_MOST}, of which each but the token itself has 0.01 of the probability")
    if o.sdd_t_weights and not any(o.sdd_t_weights):
        mistakes.append("--sdd-t-weights are all 0: nothing would be learned")
    if (len(ks) - 1) * o.growth(t) >= 1:
        each = f"--sdd-k-steps {o.sdd_k_steps}" if o.sdd_k_steps else f"{len(ks)} numbers in --sdd-k"
        mistakes.append(f"{each}: the run would end before k = {ks[-1]}, with which it is validated: give fewer")


OF_WHOLE_ROWS = """mdm_eps noise_schedule noise_power noise_steps mdm_loss low_noise_start ar_ratio random_length_prob
    time_conditioning reset_attention_mask reset_position_ids eod_mask_loss final_scores eval_tasks""".split()


def check_blocks(cfg: Config, mistakes: list[str]) -> None:
    """Block diffusion hides counts of tokens, in blocks that fill a row, and has nothing that speaks of whole rows."""
    size, length = cfg.objective.block_size, cfg.model.seq_length
    if size and length % size:
        mistakes.append(f"--block-size {size} does not divide --seq-length {length}; try {divisors(length)}")
    table = declared()
    given = [n for n in OF_WHOLE_ROWS if getattr(getattr(cfg, table[n][0]), n) != table[n][1].default]
    mistakes += [f"{spelling(n)} acts on whole rows, not on those of --block-size: leave one of them out" for n in given]


def check_latents(cfg: Config, mistakes: list[str]) -> None:
    """Rows that begin with a vector: what reads texts alone, or moves places, does not read them."""
    o, t, size = cfg.objective, cfg.train, cfg.model.latent_size
    if not size:
        mistakes.append(f"--objective {o.objective} needs --data-kind pairs and --latent-size, the numbers of a row's vector")
        return
    if o.objective not in TOLD and not OBJECTIVES[o.objective].vectors:
        mistakes.append(f"--latent-size {size}: --objective {o.objective} is told no vector: use {' or '.join(TOLD)}")
    try:
        read_turns(o.latent_turns or [])
    except ValueError as error:
        mistakes.append(f"--latent-turns {error}: expected l2t=N, t2l=N or joint=N, each once, N a whole number from 1 on")
    alone = {
        "--final-scores": bool(t.final_scores),
        "--eval-tasks": bool(t.eval_tasks),
        "--num-order-list": o.num_order_list > 1,
        "--randmask-ratio": o.randmask_ratio > 0,
        "--atat": bool(o.atat),
    }
    mistakes += [f"{name} is of texts without vectors: leave it out, or --latent-size" for name, value in alone.items() if value]
    if not given_of(cfg.data, CORPORA[0]) and not t.dry_run:
        mistakes.append("--latent-size needs --train-data-path, whose vectors' means and deviations standardise all others")
    if (cfg.model.seq_length or 2) < 2:
        mistakes.append("--seq-length 1 leaves no place for text behind the vector: give at least 2")


def read_turns(words: list[str]) -> dict[str, int]:
    """`l2t=3 t2l=1`.  Raises ValueError with the word that is none."""
    found: dict[str, int] = {}
    for word in words:
        kind, _, count = word.partition("=")
        if kind not in ("l2t", "t2l", "joint") or kind in found or not re.fullmatch(r"[1-9][0-9]{0,8}", count):
            raise ValueError(word)
        found[kind] = int(count)
    return found


AGAINST_ATAT = """noise_steps mdm_loss block_size ar_ratio random_length_prob reset_attention_mask reset_position_ids
    eod_mask_loss""".split()


def check_atat(cfg: Config, mistakes: list[str]) -> None:
    """Rates of each token are of continuous time and of whole rows, and ATAT says itself what is hidden and how it counts."""
    o, table = cfg.objective, declared()
    given = [n for n in AGAINST_ATAT if getattr(getattr(cfg, table[n][0]), n) != table[n][1].default]
    mistakes += [f"{spelling(n)} and --atat both say what is hidden or how much it counts: give one" for n in given]
    if o.atat_width and o.atat_width % ESTIMATOR_HEAD:
        mistakes.append(f"--atat-width {o.atat_width} must be a multiple of {ESTIMATOR_HEAD}, the width of its heads")
    if o.atat_hard_from < o.atat_easy_until:
        mistakes.append(f"--atat-hard-from {o.atat_hard_from:g} must not be below --atat-easy-until {o.atat_easy_until:g}")


def check_data(cfg: Config, unread: Collection[str], mistakes: list[str]) -> None:
    d, skip, dry = cfg.data, cfg.train.skip_train, cfg.train.dry_run
    train, valid = CORPORA[0], CORPORA[1]
    if not (skip or dry) and not given_of(d, train) and not set(train) & set(unread):
        mistakes.append(
            "no training data: give --train-data-path-file FILE or --data-path PREFIX (tools/preprocess_data.py makes one)"
        )
    if skip and not dry and not given_of(d, valid) and not set(valid) & set(unread):
        mistakes.append("--skip-train needs validation data: give --valid-data-path-file FILE or --data-path PREFIX")
    check_kind(d, mistakes)
    try:
        shares = [float(s) for s in d.split.split(",")]
        if len(shares) > 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
            raise ValueError
    except ValueError:
        mistakes.append(f"--split {d.split} must be up to three shares such as 969,30,1")
    if d.tokenizer_type in TOKENIZERS_OF_FILES and not d.tokenizer_model:
        mistakes.append(f"--tokenizer-type {d.tokenizer_type} needs --tokenizer-model FILE")
    if d.tokenizer_type == "GPT2BPETokenizer" and bool(d.vocab_file) != bool(d.merge_file):
        mistakes.append("--vocab-file and --merge-file belong together: give both, or neither")


def check_kind(d: Data, mistakes: list[str]) -> None:
    """What a kind of dataset can be given, and the names of validation sets."""
    if d.unique_tokens and d.unique_tokens > 1 and d.unique_tokens % 1:
        mistakes.append(f"--unique-tokens {d.unique_tokens:g} must be a whole number of tokens, or a share up to 1")
    if d.data_kind == "random-window" and (len(d.data_path or []) != 1 or len(given_of(d, CORPORA[0] + CORPORA[1][1:])) > 1):
        mistakes.append(
            "--data-kind random-window needs --data-path FOLDER and no other data: the folder has tokens.bin, "
            "index.jsonl and splits.json, which say what trains and what validates"
        )
    if d.data_kind in ("instruct", "pairs") and d.data_path:
        mistakes.append(f"--data-kind {d.data_kind} is not cut by --split: give --train-data-path and --valid-data-path")
    if d.data_kind == "random-window" and d.split != "969,30,1":
        mistakes.append("--split would do nothing here: the folder of --data-kind random-window has its own splits")
    if d.data_kind == "random-window" and d.unique_tokens and (d.unique_tokens <= 1 or d.tokens_per_category):
        mistakes.append("--unique-tokens of --data-kind random-window is a count, and excludes --tokens-per-category")
    if d.categories and d.num_categories:
        mistakes.append("--categories and --num-categories exclude each other: give one")
    names = [name for name, _ in d.valid_sets()]
    if len(names) > 1 and (None in names or len(set(names)) < len(names)):
        mistakes.append(
            f"--valid-data-path-file {' '.join(d.valid_data_path_file or [])}: several sets need a name each, "
            "NAME=FILE, and no name twice"
        )
    if empty := [word for word, (_, path) in zip(d.valid_data_path_file or [], d.valid_sets()) if not path]:
        mistakes.append(f"--valid-data-path-file {empty[0]} names no file: give NAME=FILE")


def resolve_log(cfg: Config, m: Model, mistakes: list[str]) -> Log:
    """The run's folder: a name never leads out of runs/."""
    if cfg.log.upload_to is not None and not re.match(r"[a-z][a-z0-9+.-]*://", cfg.log.upload_to):
        mistakes.append(f"--upload-to {cfg.log.upload_to}: expected a URL such as s3://bucket/runs")
    name = re.sub(r"[^\w.-]+", "-", cfg.log.wandb_exp_name or "").strip(".-")
    name = name or f"{cfg.objective.objective}-{m.num_layers}x{m.hidden_size}-seed{cfg.train.seed}"
    return replace(cfg.log, run_dir=cfg.log.run_dir or cfg.train.save or str(Path("runs") / name))


def also_spelled() -> dict[str, list[str]]:
    """Field name -> the other spellings of its flag, with the value that one stands for."""
    also: dict[str, list[str]] = {}
    for alias, (name, value) in ALIASES.items():
        also.setdefault(name, []).append("--" + alias + ("" if value is None else f" (= {str(value).lower()})"))
    return also


def help_text(program: str) -> str:
    """The whole command line, a section after the other."""
    also = also_spelled()
    rows: dict[str, list[str]] = {f.name: [] for f in fields(Config)}
    for name, (section, f, hint) in declared().items():
        only = f" (accepted as it stands: {f.metadata['only']})" if f.metadata["only"] else ""
        default = "" if f.default is None or hint is bool or only else f" [{f.default}]"
        alias = f"; also {', '.join(also[name])}" if name in also else ""
        rows[section].append(help_row(f"{spelling(name)} {metavar(f, hint)}", f"{f.metadata['help']}{default}{only}{alias}"))
    sizes = [f"  {name:10}" + "".join(f"{number:>10}" for number in sizes.values()) for name, sizes in PRESETS.items()]
    return "\n".join(
        [
            f"usage: {program} [--config FILE] [--print-config] [--help] FLAGS",
            "",
            "Flags may be spelled with - or _; --no-FLAG turns off a switch that a file turned on. [default]",
            "",
            help_row(
                "--config FILE", "flags from YAML, or from a run's config.json; later files win, and the command line over all"
            ),
            help_row("--print-config", "show the resolved whole, in a form that --config reads, and stop"),
            *(f"\n{section}:\n" + "\n".join(lines) for section, lines in rows.items()),
            "\npresets of --model-config:",
            "  " + " " * 10 + f"{'layers':>10}{'hidden':>10}{'heads':>10}{'ffn':>10}",
            *sizes,
        ]
    )


def markdown() -> str:
    """The page of flags: `python -m megatron.config` prints it."""
    also = also_spelled()
    parts = [
        "# Flags\n",
        "Of `pretrain_gpt.py` (`--objective ar`) and `pretrain_diff_gpt.py` (`--objective mdm`), as `--help` shows them too. "
        "A default in brackets is derived. *Identity* says what another value makes of a run that goes on from a checkpoint: "
        "**experiment**: another run, which is refused; **noted**: the same run, and the change is said and recorded; **free**: "
        "nothing that its results depend on (or something that another flag or a fingerprint of the data says). "
        "The config hash of a run is made of all that is not free, and of the data.",
    ]
    head = "| flag | default | identity | what it does |\n|---|---|---|---|"
    rows: dict[str, list[str]] = {f.name: [head] for f in fields(Config)}
    for name, (section, f, hint) in declared().items():
        known, default = f.metadata, f.default
        derived = re.search(r"(.*) (\[.*\])$", known["help"])
        what, told = derived.groups() if derived else (known["help"], "")
        shown = told or ("" if default is None else str(default).lower() if hint is bool else f"`{default}`")
        more = [f"accepted as it stands: {known['only']}"] if known["only"] else []
        more += [f"acts only where you {known['needs'].said}"] if known["needs"] else []
        more += [f"also {', '.join(f'`{one}`' for one in also[name])}"] if name in also else []
        cells = f"`{spelling(name)} {metavar(f, hint)}".rstrip() + "`", shown, known["identity"], "; ".join([what, *more])
        rows[section].append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    parts += [f"\n## {section}\n\n" + "\n".join(lines) for section, lines in rows.items()]
    absent = {name: f"needs {what}, which is not built yet" for name, what in LATER.items()} | DEAD
    parts += ["\n## Flags of other trainers that are refused\n\n| flag | why |\n|---|---|"]
    parts += [f"| `--{name}` | {why} |" for name, why in absent.items()]
    return "\n".join(parts)


def main(objective: str) -> Config:
    """The command line's Config; prints help or the resolved whole, and exits with 2 after listing every mistake."""
    argv = sys.argv[1:]
    if "--help" in argv or "-h" in argv:
        print(help_text(Path(sys.argv[0]).name))
        sys.exit(0)
    show = ("--print-config", "--print_config")
    said: list[str] = []
    try:
        cfg = parse([word for word in argv if word not in show], objective, said=said)
    except ConfigError as error:
        many = len(error.mistakes) > 1
        print(f"{len(error.mistakes)} mistakes in the flags:" if many else "a mistake in the flags:", file=sys.stderr)
        print("\n".join(f"  {m}" for m in error.mistakes), file=sys.stderr)
        sys.exit(2)
    if said and os.environ.get("RANK", "0") == "0":
        print("\n".join(said), file=sys.stderr)
    if any(word in show for word in argv):
        print(json.dumps(cfg.as_dict(), indent=1))
        sys.exit(0)
    return cfg


if __name__ == "__main__":
    print(markdown())
