import json
import re
import resource
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron import config
from megatron.config import PRESETS, Config, ConfigError, declared, help_text, parse
from megatron.flags import ALIASES, DEAD, LATER, flag, reason, spelling
from megatron.layout import Place, find_place

ROOT = Path(__file__).resolve().parents[1]
BASE = "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --lr 1e-3 --train-samples 1000 --train-data-path corpus".split()

# The reference's example_training.sh, word for word, its variables filled in.
RECIPE = """
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1
    --num-layers 18 --hidden-size 1280 --num-attention-heads 10 --kv-channels 128 --seq-length 2048
    --use-rotary-position-embeddings --max-position-embeddings 2048 --micro-batch-size 16 --global-batch-size 256
    --train-samples 4880488 --vocab-file utils/data/gpt2-vocab.json --merge-file utils/data/gpt2-merges.txt
    --disable-bias-linear --kill-switch-file kill-switch/run --normalization rmsnorm --swiglu --bf16
    --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --adam-eps 1e-8 --lr 2e-4 --min-lr 2e-5 --lr-decay-style cosine
    --lr-decay-samples 4880488 --lr-warmup-samples 48804 --clip-grad 1.0 --weight-decay 1e-1
    --log-interval 10 --save-interval 1000 --eval-interval 1000 --eval-iters 100 --tensorboard-dir tensorboard/run
    --tensorboard-queue-size 5 --log-timers-to-tensorboard --log-batch-size-to-tensorboard
    --log-validation-ppl-to-tensorboard --wandb-project project --wandb-exp-name run --wandb-save-dir wandb --wandb-group group
    --save checkpoints/run --load checkpoints/run --train-data-path-file utils/datapaths/train_c4_100m.txt
    --valid-data-path-file utils/datapaths/val_c4.txt --data-impl mmap
    --deepspeed --deepspeed_config ds_configs/run.json --zero-stage 0
""".split()


def read(*words: str, objective: str = "ar", **environ: str) -> Config:
    return parse([*BASE, *words], objective, environ)


def mistakes(*words: str, base=BASE, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse([*base, *words], environ=environ)
    return caught.value.mistakes


def written(tmp_path: Path, content, name: str = "flags.yaml") -> str:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


# -- the published flags

ACTS = """
    wandb-group num-mc train-data-path-file valid-data-path-file test-data-path-file
    optimizer adam-beta1 adam-beta2 adam-eps lr min-lr lr-decay-style lr-decay-samples lr-warmup-samples clip-grad weight-decay
    num-layers hidden-size num-attention-heads kv-channels seq-length max-position-embeddings micro-batch-size global-batch-size
    train-samples vocab-file merge-file kill-switch-file bf16
    log-interval save-interval eval-interval eval-iters tensorboard-dir tensorboard-queue-size log-timers-to-tensorboard
    log-batch-size-to-tensorboard log-validation-ppl-to-tensorboard wandb-project wandb-exp-name wandb-save-dir
    save load zero-stage tensor-model-parallel-size pipeline-model-parallel-size skip-train
    attention-dropout hidden-dropout seed init-method-std untie-embeddings-and-output-weights split use-flash-attn
    model-config no-wandb grad-accum-steps vocab-size finetune tokenizer-type tokenizer-model data-path
    train-iters train-tokens flops exit-interval exit-duration-in-mins deterministic-mode ffn-hidden-size
    make-vocab-size-divisible-by preflight max-skipped-steps mdm-t-sampling log-names keep-last keep-every pad-vocab
    deepspeed deepspeed-config no-pipeline-parallel cpu-optimizer sequence-parallel use-distributed-optimizer local-rank
    num-layers-per-virtual-pipeline-stage recompute-granularity dry-run unique-tokens epoch-order data-cache-path data-kind
    categories num-categories tokens-per-category save-at low-noise-start low-noise-iter low-noise-ratio ar-ratio
    randmask-ratio num-order-list use-predefined-order block-size""".split()
ONE_VALUE = """normalization swiglu use-rotary-position-embeddings data-impl bias-linear position-embedding-type
    exit-signal-handler overlap-grad-reduce recompute-method recompute-num-layers""".split()
ANOTHER_NAME = """max-steps log-dir output-dir wandb-run-name resume-from gradient-checkpointing token-budget
    checkpoint-interval-steps max-step-checkpoints learning-rate eval-every max-seq-len force-cpu disable-bias-linear target-flops
    no-position-embedding recompute-activations difflm-varilen-prob reduce-lr-factor""".split()
NOT_BUILT = """untie-with-additional-mask task_list results_path adaptive_seq_len num_fewshot eval_fp32 eval_method sampling_eps
    only_generate only_mc_nll max_chunk_size inference no-load-optim no-load-rng fp16 target-param-data-ratio
    epochs checkpoint metrics num_samples output""".split()
NEVER = """target-random-ratio use-target-position-embeddings order-list num-workers dataloader-type download_from_s3
    upload_results_to_s3 upload_to_s3 s3_bucket s3_prefix full_dataset max_examples_per_split mock-data
    load-tag data_dir architecture config-name pretrained_checkpoint mask-token attention-mask-type
    distributed-timeout-minutes use-order-list""".split()


def test_every_published_flag_has_its_class():
    table = declared()
    for name in ACTS + ONE_VALUE:
        assert name.replace("-", "_") in table, name
    assert {spelling(n)[2:] for n, (_, f, _) in table.items() if f.metadata["only"]} == set(ONE_VALUE)
    assert set(ANOTHER_NAME) <= set(ALIASES) and all(name in table for name, _ in ALIASES.values())
    assert {n.replace("_", "-") for n in NOT_BUILT} <= set(LATER)
    assert {n.replace("_", "-") for n in NEVER} <= set(DEAD)
    spelled = [spelling(n)[2:] for n in table], list(ALIASES), list(LATER), list(DEAD)
    assert len(set().union(*spelled)) == sum(map(len, spelled))
    assert [n for group in spelled[:2] for n in group if reason(n, LATER) or reason(n, DEAD)] == []


@pytest.mark.parametrize(
    "name, said",
    [
        ("start-weight-decay", "a weight decay that changes"),
        ("weight_decay_incr_style", "a weight decay that changes"),
        ("moe-router-topk", "mixtures of experts"),
        ("no-bias-swiglu-fusion", "kernels are chosen here"),
        ("save-retain-interval", "--keep-every"),
        ("log-params-norm", "always recorded"),
        ("rotary-percent", "rotary positions of another kind"),
        ("encoder-tensor-model-parallel-size", "an encoder"),
        ("expert-interval", "mixtures of experts"),
        ("lr-decay-tokens", "--lr-decay-samples"),
        ("retro-workdir", "--help lists all"),
    ],
)
def test_a_flag_of_megatron_names_its_feature_and_no_neighbour(name, said):
    [found] = mistakes(f"--{name}", "1")
    assert said in found and "did you mean" not in found


def test_a_flag_says_what_it_is_for_identity():
    with pytest.raises(TypeError, match="keyword-only argument: 'identity'"):
        flag(None, "a new one")
    with pytest.raises(TypeError, match="identity='new' must be one of experiment, noted, free"):
        flag(None, "a new one", identity="new")


@pytest.mark.parametrize("name", NOT_BUILT)
def test_flag_of_later_work_names_what_is_missing(name):
    said = f"--{name.replace('_', '-')} needs {LATER[name.replace('_', '-')]}, which is not built yet: leave the flag out"
    assert mistakes(f"--{name}", "1") == mistakes(f"--{name.replace('-', '_')}") == [said]


@pytest.mark.parametrize("name", NEVER)
def test_dead_flag_is_refused_for_good(name):
    [said] = mistakes(f"--{name}", "1")
    assert said == f"--{name.replace('_', '-')} is refused for good: {DEAD[name.replace('_', '-')]}"


def test_the_reference_recipe_parses_unedited():
    cfg = parse(RECIPE, environ={})
    assert (cfg.model.ffn_hidden_size, cfg.optim.lr_decay_samples, cfg.optim.lr_warmup_samples) == (3392, 4880488, 48804)
    assert cfg.train.train_samples == 4880488 // 256 * 256
    assert cfg.log.run_dir == cfg.train.save == "checkpoints/run" and cfg.train.bf16
    assert cfg.with_vocabulary(50257).model.padded_vocab_size == 50304
    assert parse([w.replace("_", "-") if w.startswith("--") else w for w in RECIPE], environ={}) == cfg
    assert parse(["--" + w[2:].replace("-", "_") if w.startswith("--") else w for w in RECIPE], environ={}) == cfg


def test_only_legal_values():
    assert read("--normalization", "RMSNorm", "--position-embedding-type", "rope", "--no-position-embedding") == read()
    assert mistakes("--normalization", "layernorm") == ["--normalization must be rmsnorm, not 'layernorm': the model has RMSNorm"]
    assert mistakes("--bias-linear") == ["--bias-linear cannot be True: the model has no biases"]
    assert mistakes("--no-swiglu") == ["--no-swiglu cannot be False: the model has SwiGLU"]
    assert "--attention-dropout 0" in mistakes("--use-flash-attn")[0]
    assert read("--use-flash-attn", "--attention-dropout", "0").model.use_flash_attn


def test_seeds_spellings_mean_their_flags():
    cfg = parse(
        "--model_config small --max-steps 10 --grad_accum_steps 4 --gradient_checkpointing --log-dir logs/a --learning_rate 1e-3 "
        "--wandb_project p --wandb-run-name r --no_wandb --save out --resume_from out --checkpoint_interval_steps 5 "
        "--max_step_checkpoints 2 --eval_every 5 --max_seq_len 128 --force_cpu --data-path corpus".split(),
        environ={},
    )
    assert (cfg.train.train_samples, cfg.train.global_batch_size, cfg.train.recompute_granularity) == (40, 4, "full")
    assert (cfg.log.run_dir, cfg.log.wandb_exp_name, cfg.train.load, cfg.train.save_interval) == ("logs/a", "r", "out", 5)
    assert (cfg.train.keep_last, cfg.model.seq_length, cfg.train.device, cfg.train.eval_interval) == (2, 128, "cpu", 5)
    assert parse([*BASE[:8], *BASE[10:], "--token_budget", "200K"], environ={}).train.train_samples == 97


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_seeds_dimensions(name):
    m = parse(f"--model-config {name} --lr 1 --train-iters 1 --data-path x".split(), environ={}).model
    dims = {"small": (6, 384, 6, 1536), "medium": (8, 512, 8, 2048), "large": (12, 768, 12, 3072), "xl": (24, 1024, 16, 4096)}[
        name
    ]
    assert (m.num_layers, m.hidden_size, m.num_attention_heads, m.ffn_hidden_size) == dims
    wider = parse(f"--model-config {name} --hidden-size 1536 --lr 1 --train-iters 1 --data-path x".split(), environ={}).model
    assert (wider.num_layers, wider.hidden_size, wider.ffn_hidden_size) == (dims[0], 1536, 4096)


# -- mistakes


def test_all_mistakes_are_told_together():
    found = mistakes(
        "--tensor-model-parallel-size",
        "5",
        "--num-attention-heads",
        "12",
        "--lr",
        "-1",
        "--fp16",
        "--num-layer",
        "3",
        "--micro-batch-size",
        "3",
        "--global-batch-size",
        "8",
        "--eval-iters",
        "1.5",
        base=[],
    )
    assert found == [
        "--lr must be at least 0, not -1",
        "--fp16 needs fp16 with loss scaling, which is not built yet: leave the flag out",
        "--num-layer is not a flag; did you mean --num-layers?",
        "--eval-iters must be a whole number, not '1.5'",
        "--num-layers, --hidden-size must be given (or --model-config small|medium|large|xl)",
        "tensor 5 x pipeline 1 parallelism needs a multiple of 5 processes, found 1: start 5 (torchrun --nproc-per-node), "
        "or take sizes whose product is one of 1",
        "--tensor-model-parallel-size 5 does not divide --num-attention-heads 12; try 1, 2, 3, 4, 6, 12",
        "--tensor-model-parallel-size 5 does not divide --padded-vocab-size 50304; try 1, 2, 3, 4, 6, 12",
        "how long to train? give --train-samples, --train-iters, --train-tokens or --flops",
        "no training data: give --train-data-path-file FILE or --data-path PREFIX (tools/preprocess_data.py makes one)",
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        ("--num-layers x", "--num-layers must be a whole number, not 'x'"),
        ("--hidden-size 1e400", "--hidden-size must be a whole number, not '1e400'"),
        ("--train-samples 1e400", "--train-samples must be below 2**53, not 1e400"),
        ("--train-samples 0.5", "--train-samples must be a whole number (100M and 1e9 are read too), not '0.5'"),
        ("--train-samples 0", "--train-samples must be above 0, not 0"),
        ("--seed 99999999999999999999", "--seed must be below 2**53, not 99999999999999999999"),
        ("--lr nan", "--lr must be finite, not nan"),
        ("--lr=inf", "--lr must be finite, not inf"),
        ("--lr -1e-3", "--lr must be at least 0, not -1e-3"),
        ("--hidden-dropout 1", "--hidden-dropout must be below 1, not 1"),
        ("--save=", "--save must be text that prints, not ''"),
        ("--save", "--save takes one value, found none"),
        ("--save a b", "--save takes one value, found 'a b'"),
        ("--bf16=yes", "--bf16 takes no value, found 'yes'"),
        ("--train-data-path=", "--train-data-path must be text that prints, not ''"),
        ("--gradient-checkpointing 3", "--gradient-checkpointing takes no value, found '3'"),
        ("--lr 1 --lr 2", "--lr 2.0 contradicts --lr 1.0: say it once"),
        ("--max-steps 5 --train_iters 6", "--train_iters 6 contradicts --max-steps 5: say it once"),
        ("--config", "--config takes one file, found none"),
        ("--config=", "--config takes one file, found none"),
        ("--config --lr 1", "--config takes one file, found none"),
        ("--compile maybe", "--compile must be one of auto, on, off, not 'maybe'"),
    ],
)
def test_a_value_that_cannot_be(words, said):
    assert said in mistakes(*words.split(), base=[])
    assert not any("must be given" in m and said.split()[0] in m for m in mistakes(*words.split(), base=[]))


@pytest.mark.parametrize(
    "words, said",
    [
        ("--train-iters 5", "--train-samples and --train-iters exclude each other: give one"),
        (
            "--lr-warmup-iters 1 --lr-warmup-fraction 0.1",
            "--lr-warmup-iters and --lr-warmup-fraction exclude each other: give one",
        ),
        ("--lr-decay-samples 10 --lr-decay-iters 1", "--lr-decay-samples and --lr-decay-iters exclude each other: give one"),
        ("--data-path x", "--data-path and --train-data-path exclude each other: give one"),
        ("--train-data-path-file x", "--train-data-path and --train-data-path-file exclude each other: give one"),
        (
            "--micro-batch-size 2 --grad-accum-steps 2 --global-batch-size 8",
            "--grad-accum-steps 2 x --micro-batch-size 2 is not --global-batch-size 8: give one of them",
        ),
        ("--global-batch-size 1001", "--train-samples 1000 is 1000 samples, less than one global batch of 1001"),
        ("--lr-warmup-samples 1000", "the warm-up of 1000 samples leaves nothing of the decay of 1000 samples"),
        ("--min-lr 1", "--min-lr 1 is above --lr 0.001"),
        ("--lr-warmup-init 1 --lr-warmup-iters 2", "--lr-warmup-init 1 is above --lr 0.001"),
        ("--lr-warmup-init 1e-4", "--lr-warmup-init would do nothing here: give --lr-warmup-samples, or leave it out"),
        ("--adam-eps 1e-39", "--adam-eps 1e-39 underflows in fp32: use at least 1e-30"),
        ("--seq-length 9 --max-position-embeddings 8", "--seq-length 9 is above --max-position-embeddings 8"),
        ("--kv-channels 3", "--kv-channels 3 must be even: rotary positions turn pairs of channels"),
        ("--vocab-size 300", "--vocab-size 300 is not GPT2BPETokenizer's 50257: leave it out"),
        ("--padded-vocab-size 50432", "--padded-vocab-size 50432 is not the derived 50304: leave it out"),
        ("--save-interval 5", "--save-interval would do nothing here: give --save, or leave it out"),
        (
            "--init-method small-init --init-method-std 0.1",
            "--init-method-std would do nothing here: use --init-method normal, or leave it out",
        ),
        (
            "--cpp-step --bf16 --hidden-dropout 0.1 --attention-dropout 0 --compile on --seq-length 16384 --randmask-ratio 0.1",
            "--cpp-step computes a plain network in fp32 on one CPU, without dropout: it does not go with --seq-length 16384, "
            "--bf16, --compile on, --randmask-kind edges, --hidden-dropout 0.1; leave it out, or these",
        ),
        ("--finetune", "--finetune would do nothing here: give --load, or leave it out"),
        ("--num-query-groups 2", "--num-query-groups would do nothing here: give --group-query-attention, or leave it out"),
        (
            "--group-query-attention",
            "--group-query-attention needs --num-query-groups: how many heads of keys and values there are",
        ),
        (
            "--group-query-attention --num-query-groups 3",
            "--num-query-groups 3 does not divide --num-attention-heads 4; try 1, 2, 4",
        ),
        ("--split 1,1,1", "--split would do nothing here: give --data-path, or leave it out"),
        (
            "--tokenizer-model x",
            "--tokenizer-model would do nothing here: use a --tokenizer-type that reads one, or leave it out",
        ),
        (
            "--objective mdm --low-noise-start --low-noise-iter 9 --low-noise-fraction 0.2",
            "--low-noise-iter and --low-noise-fraction exclude each other: give one",
        ),
        ("--mdm-eps 0", "--mdm-eps would do nothing here: use --objective mdm or udm, or leave it out"),
        ("--ar-ratio 1.5 --objective mdm", "--ar-ratio must be at most 1, not 1.5"),
        (
            "--use-predefined-order",
            "--use-predefined-order would do nothing here: give --num-order-list above 1, or leave it out",
        ),
        ("--low-noise-iter 5", "--low-noise-iter would do nothing here: give --low-noise-start, or leave it out"),
        ("--time-conditioning", "--time-conditioning would do nothing here: use --objective mdm, udm or sdd, or leave it out"),
        ("--block-size 8", "--block-size would do nothing here: use --objective mdm and --data-kind packed, or leave it out"),
        ("--objective mdm --block-size 3 --seq-length 8", "--block-size 3 does not divide --seq-length 8; try 1, 2, 4, 8"),
        (
            "--objective mdm --block-size 8 --noise-schedule cosine",
            "--noise-schedule acts on whole rows, not on those of --block-size: leave one of them out",
        ),
        ("--randmask-ratio 0.5 --num-order-list 4", "--randmask-ratio and --num-order-list exclude each other: give one"),
        (
            "--num-order-list 4 --reset-position-ids",
            "--num-order-list mixes documents, whose borders --reset-... and --eod-mask-loss keep: give one",
        ),
        (
            "--objective mdm --noise-schedule geometric --mdm-eps 0.1 --noise-sigma-min 30",
            "--mdm-eps would do nothing here: --noise-schedule geometric has sigmas; leave it out",
        ),
        (
            "--objective mdm --noise-schedule geometric --mdm-eps 0.1 --noise-sigma-min 30",
            "--noise-sigma-min 30 must be below --noise-sigma-max 20",
        ),
        (
            "--objective mdm --noise-schedule importance --mdm-eps 0",
            "--noise-schedule importance needs --mdm-eps above 0, where log m begins",
        ),
        (
            "--objective mdm --random-length-prob 0.01 --reset-attention-mask",
            "--random-length-prob and --reset-attention-mask both say who is seen: give one",
        ),
        ("--lr-wsd-decay-iters 2", "--lr-wsd-decay-iters would do nothing here: use --lr-decay-style WSD, or leave it out"),
        ("--wandb-group g", "--wandb-group would do nothing here: give --wandb-project, or leave it out"),
        (
            "--log-timers-to-tensorboard",
            "--log-timers-to-tensorboard would do nothing here: give --tensorboard-dir or --wandb-project, or leave it out",
        ),
        (
            "--mup-base-hidden-size 8",
            "--mup-base-hidden-size would do nothing here: use --parametrization mup or completep, or leave it out",
        ),
        (
            "--parametrization completep --mup-base-width 8",
            "--parametrization completep needs --mup-base-num-layers: of the model at which --lr was found",
        ),
        (
            "--weight-decay-by embedding=0,norm=1",
            "--weight-decay-by norm=1: expected embedding=X, head=X, matrix=X, each once, X from 0 on",
        ),
        (
            "--weight-decay-by head=1",
            "--weight-decay-by head=...: the table of tokens is the head too: name embedding, "
            "or give --untie-embeddings-and-output-weights",
        ),
        ("--num-mc 2", "--num-mc 2 acts on bounds only: the validation loss of AR is exact"),
        ("--skip-train --eval-iters 0 --valid-data-path v", "--skip-train with --eval-iters 0 does nothing: give --eval-iters"),
        ("--skip-train", "--skip-train needs validation data: give --valid-data-path-file FILE or --data-path PREFIX"),
        ("--tokenizer-type HFTokenizer", "--tokenizer-type HFTokenizer needs --tokenizer-model FILE"),
        ("--vocab-file v", "--vocab-file and --merge-file belong together: give both, or neither"),
        ("--pipeline-model-parallel-size 3", "--pipeline-model-parallel-size 3 is above --num-layers 2: give at most 2"),
        (
            "--lr-decay-style WSD --lr-wsd-decay-samples 999 --lr-warmup-samples 2",
            "the WSD decay of 999 samples is longer than the 998 after the warm-up",
        ),
        ("corpus2 -x --seed 1 --seed", "--seed takes one value, found none"),
    ],
)
def test_flags_that_do_not_fit(words, said):
    assert said in mistakes(*words.split())


def test_more_that_does_not_fit():
    assert "--split 1,nan must be up to three shares such as 969,30,1" in mistakes(
        "--data-path", "x", "--split", "1,nan", base=BASE[:-2]
    )
    assert any(
        "no room for the mask" in m
        for m in mistakes(*"--objective mdm --pad-vocab reference --make-vocab-size-divisible-by 1".split())
    )
    assert mistakes("--flops", "1e9", "--tokenizer-type", "HFTokenizer", "--tokenizer-model", "t", base=BASE[:8] + BASE[10:]) == [
        "--flops needs the parameter count, and with it the vocabulary: give --vocab-size, or --train-samples"
    ]
    assert mistakes("--flops", "1e300", base=BASE[:8] + BASE[10:]) == ["--flops 1e+300 is more than 2**53 samples: give less"]
    assert mistakes("junk", base=["junk"] + BASE)[0] == "'junk' stands alone: a value without a flag"


# -- layouts

EIGHT = {"WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}
TWELVE = {"--num-layers": "12", "--num-attention-heads": "8", "--global-batch-size": "64"}


def twelve(words: str) -> list[str]:
    """A line with these words and what they leave open of a model of 12 layers."""
    given = words.split()
    return [*BASE[2:4], *BASE[6:], *(w for pair in TWELVE.items() if pair[0] not in given for w in pair), *given]


def laid_out(words: str) -> Config:
    return parse(twelve(words), environ=EIGHT)


def test_what_is_left_of_the_world_is_data_parallel():
    cfg = laid_out("--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel")
    assert (cfg.parallel.world_size, cfg.parallel.data_parallel_size, cfg.num_micro_batches) == (8, 2, 32)
    assert cfg.parallel.sequence_parallel and cfg.parallel.pipeline_schedule == "1f1b"
    assert not laid_out("--sequence-parallel").parallel.sequence_parallel  # as Megatron: nothing to cut at size 1
    assert laid_out("--global-batch-size 9 --micro-batch-size 1").num_micro_batches == 2  # the rest is padding
    alone = parse(BASE + ["--micro-batch-size", "2", "--grad-accum-steps", "3"], environ=EIGHT)
    assert alone.train.global_batch_size == 48


def test_every_spelling_of_zero():
    assert [laid_out(f"--zero-stage {n}").parallel.zero_stage for n in range(4)] == [0, 1, 2, 3]
    assert laid_out("--use-distributed-optimizer").parallel.zero_stage == 1
    assert laid_out("--use-distributed-optimizer --zero-stage 3 --cpu-params").parallel.zero_stage == 3
    assert mistakes(base=twelve("--zero-stage 4"), **EIGHT) == ["--zero-stage must be below 4, not 4"]
    published = "--deepspeed --deepspeed_config f.json --zero-stage 1 --no-pipeline-parallel --cpu-optimizer --local_rank=3"
    p = laid_out(published).parallel
    assert (p.deepspeed, p.deepspeed_config, p.zero_stage, p.cpu_optimizer, p.local_rank) == (True, "f.json", 1, True, None)
    assert laid_out("--deepspeed --pipeline-model-parallel-size 2 --zero-stage 1").parallel.deepspeed


def test_recompute_has_its_published_spellings():
    assert read("--recompute-activations").train.recompute_granularity == "selective"
    full = read("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")
    assert full.train.recompute_granularity == "full"
    assert mistakes("--recompute-method", "block") == [
        "--recompute-method must be uniform, not 'block': all blocks are treated alike"
    ]
    assert mistakes("--recompute-num-layers", "2") == ["--recompute-num-layers cannot be 2: each block is recomputed by itself"]


@pytest.mark.parametrize(
    "words, layers, homes",
    [
        ("", [12], [0]),
        ("--pipeline-model-parallel-size 8", [2, 2, 2, 2, 1, 1, 1, 1], list(range(8))),
        ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2", [2] * 6, [0, 1] * 3),
        ("--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble", [3] * 4, [0, 1, 1, 0]),
        ("--pipeline-model-parallel-size 4 --decoder-last-pipeline-num-layers 1", [4, 4, 3, 1], [0, 1, 2, 3]),
        ("--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 5", [5, 7], [0, 1]),
    ],
)
def test_layers_are_dealt_to_stages(words, layers, homes):
    p = laid_out(words).parallel
    stages = p.stages(12)
    assert [len(r) for r in stages.layers] == layers and [stages.home(n) for n in range(len(layers))] == homes
    assert [n for r in stages.layers for n in r] == list(range(12))


@pytest.mark.parametrize(
    "words, said",
    [
        (
            "--tensor-model-parallel-size 3 --pipeline-model-parallel-size 4 --num-attention-heads 3 --kv-channels 8 "
            "--ffn-hidden-size 192",
            "tensor 3 x pipeline 4 parallelism needs a multiple of 12 processes, found 8: start 12 (torchrun --nproc-per-node), "
            "or take sizes whose product is one of 1, 2, 4, 8",
        ),
        (
            "--tensor-model-parallel-size 8 --num-attention-heads 12 --kv-channels 8",
            "--tensor-model-parallel-size 8 does not divide --num-attention-heads 12; try 1, 2, 4",
        ),
        (
            "--tensor-model-parallel-size 4 --num-attention-heads 8 --kv-channels 8 --group-query-attention --num-query-groups 2",
            "--tensor-model-parallel-size 4 does not divide --num-query-groups 2; try 1, 2",
        ),
        (
            "--tensor-model-parallel-size 8 --ffn-hidden-size 100",
            "--tensor-model-parallel-size 8 does not divide --ffn-hidden-size 100; try 1, 2, 4",
        ),
        (
            "--tensor-model-parallel-size 8 --sequence-parallel --seq-length 36",
            "--tensor-model-parallel-size 8 does not divide --seq-length 36; try 1, 2, 4",
        ),
        (
            "--pipeline-model-parallel-size 8 --pipeline-schedule zero-bubble",
            "--pipeline-schedule zero-bubble, which has two stages on each process, --pipeline-model-parallel-size 8 is above "
            "--num-layers 12: give at most 6",
        ),
        (
            "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 4",
            "--num-layers-per-virtual-pipeline-stage 4 does not cut --num-layers 12 over 2 processes into several equal stages "
            "on each; try 1, 2, 3",
        ),
        (
            "--pipeline-model-parallel-size 8 --pipeline-schedule interleaved",
            "--pipeline-schedule interleaved needs --num-layers-per-virtual-pipeline-stage, to cut --num-layers 12 over 8 "
            "processes into several equal stages on each; try --pipeline-model-parallel-size 2, 3, 4, 6",
        ),
        (
            "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2 --pipeline-schedule 1f1b",
            "--num-layers-per-virtual-pipeline-stage 2 needs --pipeline-schedule interleaved, not 1f1b",
        ),
        (
            "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2 --decoder-first-pipeline-num-layers 5",
            "--decoder-first-pipeline-num-layers needs --pipeline-schedule 1f1b: interleaved stages are all of equal length",
        ),
        (
            "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 9 --decoder-last-pipeline-num-layers 2",
            "--decoder-first-pipeline-num-layers 9 and --decoder-last-pipeline-num-layers 2 of --num-layers 12 do not leave each "
            "other stage a layer: give at most 10 in all",
        ),
        (
            "--pipeline-schedule zero-bubble",
            "--pipeline-schedule zero-bubble would do nothing here: give --pipeline-model-parallel-size above 1, or leave it out",
        ),
        (
            "--decoder-last-pipeline-num-layers 2",
            "--decoder-last-pipeline-num-layers would do nothing here: give --pipeline-model-parallel-size above 1, "
            "or leave it out",
        ),
        (
            "--no-pipeline-parallel --pipeline-model-parallel-size 2",
            "--no-pipeline-parallel and --pipeline-model-parallel-size 2 contradict each other: give one",
        ),
        (
            "--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble --zero-stage 3",
            "--pipeline-schedule zero-bubble with --zero-stage 3 gives wrong gradients in torch: give --zero-stage 0 or 1, "
            "or --pipeline-schedule 1f1b",
        ),
        (
            "--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble --compile on",
            "--pipeline-schedule zero-bubble cannot run compiled blocks: give --compile off, or --pipeline-schedule 1f1b",
        ),
        (
            "--pipeline-model-parallel-size 2 --deepspeed --zero-stage 2",
            "--deepspeed with --zero-stage 2 and a pipeline: DeepSpeed has no such thing; give --zero-stage 0 or 1, "
            "or --pipeline-model-parallel-size 1, or leave --deepspeed out",
        ),
        (
            "--cpu-params",
            "--cpu-params with --zero-stage 0: only stage 3 shards the weights; give --zero-stage 3, or --cpu-optimizer instead",
        ),
        ("--build-ops", "--build-ops would do nothing here: give --deepspeed, or leave it out"),
        ("--deepspeed_config f", "--deepspeed-config would do nothing here: give --deepspeed, or leave it out"),
        ("--device-memory 80G", "--device-memory would do nothing here: give --dry-run, or leave it out"),
        ("--dry-run --device-memory 80", "--device-memory 80 must be a size such as 80G"),
        (
            "--world-size 16",
            "--world-size 16: the launcher started 8, and only it can say how many: leave the flag out, or add --dry-run",
        ),
        (
            "--global-batch-size 4",
            "--global-batch-size 4 is less than a sample for each of 8 data-parallel processes: give at least 8, "
            "or start at most 4 processes",
        ),
        (
            "--pipeline-model-parallel-size 4 --micro-batch-size 16",
            "--global-batch-size 64 is 2 micro-batches of 16 on each of 2 data-parallel processes, less than the 4 stages of the "
            "pipeline: give at least 128, or --micro-batch-size 8",
        ),
        (
            "--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 18",
            "--global-batch-size 18 is 9 micro-batches, which the interleaved schedule cannot deal in 2 equal rounds of at least "
            "4: give 16 or 20",
        ),
        (
            "--distributed-timeout-minutes 5",
            "--distributed-timeout-minutes is refused for good: it is in seconds: --distributed-timeout N",
        ),
        ("--no-overlap-grad-reduce", "--no-overlap-grad-reduce cannot be False: they do wherever the layout allows"),
        (
            "--distributed-backend nccl --device cpu",
            "--distributed-backend nccl with --device cpu: NCCL needs GPUs; leave it out",
        ),
    ],
)
def test_layouts_that_do_not_work_name_the_nearest_that_do(words, said):
    assert mistakes(base=twelve(words), **EIGHT) == [said]


def test_a_vocabulary_known_late_must_divide_too():
    cfg = laid_out("--tensor-model-parallel-size 8 --vocab-file v --merge-file m --make-vocab-size-divisible-by 1")
    assert cfg.with_vocabulary(1021).model.padded_vocab_size == 1024
    with pytest.raises(ConfigError, match="8 does not divide --padded-vocab-size 1003; try 1$"):
        cfg.with_vocabulary(1000)
    grown = laid_out("--tensor-model-parallel-size 8 --vocab-file v --merge-file m --pad-vocab reference")
    assert grown.with_vocabulary(1000).model.padded_vocab_size == 1024


def test_a_dry_run_has_any_world():
    assert laid_out("--dry-run --world-size 512 --global-batch-size 512 --device-memory 80G").parallel.data_parallel_size == 512
    short = "--model-config small --dry-run --tensor-model-parallel-size 2 --pipeline-model-parallel-size 3".split()
    p = parse([*short, "--global-batch-size", "8"], environ={}).parallel
    assert (p.world_size, p.data_parallel_size) == (6, 1)
    assert [config.memory_bytes(t) for t in ("80G", "512MiB", "1.5t", "80", "G", "1e9G")] == [
        80 << 30,
        512 << 20,
        3 << 39,
        0,
        0,
        0,
    ]


def test_zero_bubble_leaves_blocks_uncompiled():
    zero_bubble = laid_out("--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble")
    assert not zero_bubble.may_compile and zero_bubble.train.compile == "auto"  # as asked, for when it gets another layout
    assert laid_out("--pipeline-model-parallel-size 2").may_compile


def test_a_saved_layout_can_be_changed(tmp_path):
    cfg = laid_out("--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble --use-distributed-optimizer")
    saved = ["--config", written(tmp_path, cfg.as_dict(), "config.json")]
    assert parse(saved, environ=EIGHT) == cfg
    other = parse([*saved, "--num-layers-per-virtual-pipeline-stage", "3"], environ=EIGHT)
    assert other.parallel.pipeline_schedule == "interleaved"
    alone = parse([*saved, "--pipeline-model-parallel-size", "1", "--pipeline-schedule", "1f1b", "--zero-stage", "0"], environ={})
    assert (alone.parallel.world_size, alone.parallel.zero_stage) == (1, 0)


@pytest.mark.parametrize(
    "environ, place",
    [
        ({}, Place()),
        ({"WORLD_SIZE": "1"}, Place()),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, Place()),
        (
            {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2"},
            Place(rank=9, local_rank=1, world_size=16, local_world_size=8, num_nodes=2, launcher="torchrun"),
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"},
            Place(rank=1, local_rank=1, world_size=2, local_world_size=2, launcher="torchrun"),
        ),
        (
            {
                "SLURM_PROCID": "9",
                "SLURM_STEP_NUM_TASKS": "11",
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "2",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
            },
            Place(rank=9, local_rank=1, world_size=11, local_world_size=3, num_nodes=3, launcher="slurm"),
        ),
    ],
)
def test_the_launcher_says_which_process_this_is(environ, place):
    assert find_place(environ) == place


@pytest.mark.parametrize(
    "environ",
    [
        {"WORLD_SIZE": "8"},
        {"RANK": "8", "WORLD_SIZE": "8"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "0"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
    ],
)
def test_a_launcher_that_contradicts_itself_is_a_mistake(environ):
    [said] = mistakes(**environ)
    assert "start" in said and ("RANK" in said or "rank" in said or "WORLD_SIZE" in said)


# -- what is derived


@pytest.mark.parametrize(
    "budget, samples",
    [("--train-samples 1003", 1000), ("--train-iters 7", 56), ("--train-tokens 100M", 48824), ("--flops 1e15", 24648)],
)
def test_every_budget_is_whole_global_batches(budget, samples):
    cfg = parse([*BASE[:8], *BASE[10:], *budget.split(), "--global-batch-size", "8"], environ={})
    assert cfg.train.train_samples == cfg.optim.lr_decay_samples == samples
    if "flops" in budget:
        assert cfg.model.shape().total() == 3301696 and samples == 1e15 // (6 * 3301696 * 2048 * 8) * 8


def test_iterations_become_samples():
    o = read(*"--global-batch-size 8 --lr-decay-iters 100 --lr-warmup-iters 3 --lr-decay-style wsd".split()).optim
    assert (o.lr_decay_samples, o.lr_warmup_samples, o.lr_wsd_decay_samples, o.lr_decay_style) == (800, 24, 80, "WSD")
    assert read("--lr-warmup-fraction", "0.05").optim.lr_warmup_samples == 50


def test_tokenizer_settles_the_vocabulary():
    assert (read().model.vocab_size, read().model.padded_vocab_size) == (50257, 50304)
    own = read("--vocab-file", "v", "--merge-file", "m").with_vocabulary(1000).model
    assert (own.vocab_size, own.padded_vocab_size) == (1000, 1024)
    with pytest.raises(ConfigError, match="--vocab-size 50257 is not the tokenizer's: give 9"):
        read().with_vocabulary(9)


@pytest.mark.parametrize("name", ["../../x", "..", "/etc/passwd", "a/../../b", ".hidden", "...", "\\x", "a b*c"])
def test_run_name_stays_in_runs(name):
    assert re.fullmatch(r"runs/[^./][^/]*", read("--wandb-exp-name", name).log.run_dir)


# -- --config


@pytest.mark.parametrize(
    "words",
    [
        BASE,
        RECIPE,
        "--model-config xl --lr 1 --train-tokens 10M --data-path 0.5 a 0.5 b --split 9,1 --objective mdm --num-mc 4".split(),
        [*BASE, "--lr-decay-style", "WSD", "--compile", "off", "--no-wandb", "--wandb-exp-name", "2026-11-20"],
        [*BASE[:6], "--skip-train", "--valid-data-path", "v", "--load", "l", "--normalization", "RMSNorm"],
    ],
)
def test_a_saved_config_gives_the_same_run(words, tmp_path):
    cfg = parse(words, "mdm", environ={})
    for name in ("config.json", "config.yaml"):
        assert parse(["--config", written(tmp_path, cfg.as_dict(), name)], "ar", environ={}) == cfg
    full = parse(["--config", written(tmp_path, cfg.with_vocabulary(50257).as_dict())], environ={})
    assert full == cfg.with_vocabulary(50257)


def test_files_read_every_spelling(tmp_path):
    flat = written(
        tmp_path,
        "num-layers: 2\nhidden_size: 64\nnum_attention_heads: 4\nlearning_rate: 1e-3\nmax_steps: 1000\n"
        "train_data_path: corpus\ncompile: off\ndisable_bias_linear: true\ngradient_checkpointing: false\n"
        "load: null\nwandb_exp_name: 2026-11-20\nobjective: mdm\ndata:\n",
        "a.yaml",
    )
    cfg = parse(["--config=" + flat], environ={})
    assert (cfg.train.train_samples, cfg.train.compile, cfg.log.wandb_exp_name) == (1000, "off", "2026-11-20")
    assert cfg.objective.objective == "mdm" and cfg.train.load is None and cfg.train.recompute_granularity is None


def test_the_command_line_wins_over_files_and_later_files_over_earlier(tmp_path):
    saved = written(tmp_path, read("--bf16", "--global-batch-size", "8", "--model-config", "small").as_dict(), "config.json")
    more = written(tmp_path, "lr: 2e-3\nseed: 5")
    cfg = parse(
        [
            "--seed",
            "6",
            "--config",
            saved,
            "--train-iters",
            "10",
            "--no-bf16",
            "--grad-accum-steps",
            "4",
            "--config",
            more,
            "--model-config",
            "large",
            "--data-path",
            "x",
        ],
        environ={},
    )
    assert (cfg.optim.lr, cfg.train.seed, cfg.train.train_samples, cfg.train.bf16) == (2e-3, 6, 40, False)
    assert (cfg.model.num_layers, cfg.model.ffn_hidden_size, cfg.data.train_data_path, cfg.data.data_path) == (
        12,
        3072,
        None,
        ["x"],
    )


@pytest.mark.parametrize(
    "content, said",
    [
        ("lr: [1", "is not YAML (while parsing"),
        ("- lr", "must hold `name: value` lines, found list"),
        ("lr: fast", "lr must be a number, not 'fast'"),
        ("lr: true", "lr must be a number, not True"),
        ("num_layers: 2.5", "num_layers must be a whole number, not 2.5"),
        ("bf16: 'yes'", "bf16 must be true or false, not 'yes'"),
        ("save: {a: 1}", "save must be text that prints, not {'a': 1}"),
        ('save: "a\\0b"', "save must be text that prints"),
        ("lr: 1\nlearning_rate: 2", "learning_rate 2.0 contradicts lr 1.0: say it once"),
        ("model: {lr: 1}\ntrain: {lr: 2}", "lr 2.0 contradicts lr 1.0"),
        ("modl: {lr: 1}", "--modl is not a flag"),
        ("fp16: true", "--fp16 needs fp16"),
        ("swiglu: false", "swiglu cannot be False: the model has SwiGLU"),
        ("disable_bias_linear: false", "cannot be True: the model has no biases"),
        ("gradient_checkpointing: 1", "gradient_checkpointing must be true or false, not 1"),
        ("lr: .nan", "lr must be finite, not nan"),
        ("[" * 3000, "is not YAML"),
        ("\x00", "is not YAML"),
        ("a: !!python/object:os.x {}", "is not YAML"),
        ("d: 2026-99-99", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be(content, said, tmp_path):
    path = written(tmp_path, content)
    assert any(
        m.startswith(f"--config {path}: {said}") or (m.startswith(f"--config {path}: ") and said in m)
        for m in mistakes("--config", path)
    )


def test_a_file_that_is_not_there(tmp_path):
    assert mistakes("--config", str(tmp_path / "no.yaml"))[0].endswith("cannot be read (No such file or directory)")
    assert mistakes("--config", str(tmp_path))[0].endswith("cannot be read (Is a directory)")
    (tmp_path / "b.json").write_bytes(b"\xff{")
    assert "is not JSON" in mistakes("--config", str(tmp_path / "b.json"))[0]
    assert mistakes("--config", "a\0b")


# -- no argument line is a traceback

FLAGS = (
    [spelling(n) for n in declared()]
    + ["--" + a for a in (*ALIASES, *LATER, *DEAD)]
    + ["--config", "--", "-", "--x", "-1", "--lr=", "--no-bf16"]
)
VALUES = [
    "0",
    "1",
    "-1",
    "2",
    "7",
    "64",
    "0.5",
    "1e9",
    "100M",
    "1e400",
    "nan",
    "-inf",
    "",
    " ",
    "a",
    "../..",
    "9" * 5000,
    "2,1",
    "mdm",
    "SentencePieceTokenizer",
    "WSD",
    "full",
    "\u00e9\u200b",
    "\ud800",
    "\x00",
    "9007199254740991",
    "9007199254740992",
    "xl",
    "true",
]


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(FLAGS), st.lists(st.one_of(st.sampled_from(VALUES), st.text(max_size=5)), max_size=2))),
    st.booleans(),
)
def test_any_argument_line_is_a_config_or_mistakes(line, based):
    words = [w for flag, values in line for w in (flag, *values)]
    try:
        cfg = parse(BASE * based + words, environ={})
    except ConfigError as error:
        assert error.mistakes and all(error.mistakes)
    else:
        assert isinstance(json.loads(json.dumps(cfg.as_dict(), allow_nan=False)), dict)


def test_every_flag_survives_odd_values():
    for at, name in enumerate(FLAGS):
        for value in VALUES[at % 7 :: 7]:
            try:
                parse([*BASE, name, value], environ={})
            except ConfigError as error:
                assert error.mistakes


# -- the program


def program(*words: str, script: str = "pretrain_gpt.py") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / script, *words], capture_output=True, text=True, timeout=60)


def test_help_is_readable_and_whole():
    text = help_text("pretrain_gpt.py")
    assert max(map(len, text.splitlines())) <= 130
    assert all(f"  {spelling(n)} " in text or f"  {spelling(n)}\n" in text for n in declared())
    assert all(re.search(rf"--{a}\b", text) for a in ALIASES)
    assert not any(re.search(rf"--{n}(?![\w-])", text) for n in (*LATER, *DEAD))
    assert [f"{f.name}:" in text for f in fields(Config)] == [True] * 7
    assert re.search(r"xl +24 +1024 +16 +4096", text)
    assert program("--lr", "--help").stdout == text + "\n"


@pytest.mark.parametrize(
    "words", [[], RECIPE, ["--objective", "mdm"], ["--valid-data-path", "v", "--skip-train"], ["--dry-run"]], ids=str
)
def test_a_type_without_none_has_a_value(words):
    """Every field that may stay None says so in its type."""
    cfg = (parse(words, environ={}) if words is RECIPE else read(*words)).with_vocabulary(50257)
    hints = {name: hint for section in fields(Config) for name, hint in get_type_hints(type(getattr(cfg, section.name))).items()}
    empty = {name for name, (section, _, _) in declared().items() if getattr(getattr(cfg, section), name) is None}
    assert [name for name in empty if type(None) not in get_args(hints[name])] == []


def test_the_page_of_flags_is_made_from_the_fields():
    page = subprocess.run([sys.executable, "-m", "megatron.config"], capture_output=True, text=True, cwd=ROOT).stdout
    rows = {line.split("`")[1].split()[0]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(rows)[: len(declared())] == [spelling(n) for n in declared()]
    assert all(line.count(" | ") == (3 if name[2:].replace("-", "_") in declared() else 1) for name, line in rows.items())
    assert rows["--ffn-hidden-size"].startswith(
        "| `--ffn-hidden-size N` | [two thirds of 4 x hidden, down to a multiple of 64] | exp"
    )
    assert rows["--save-at"] == (
        "| `--save-at N ...` |  | free | also checkpoint at these steps, and keep those; acts only where you give --save |"
    )
    assert "| [all] | noted |" in rows["--lr-decay-samples"] and {f"--{n}" for n in (*LATER, *DEAD)} <= rows.keys()


def test_print_config_can_be_given_back(tmp_path):
    done = program(*BASE, "--print_config", script="pretrain_diff_gpt.py")
    cfg = read(objective="mdm")
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout) == cfg.as_dict()
    assert parse(["--config", written(tmp_path, done.stdout)], environ={}) == cfg


def test_argument_errors_are_quick_and_exit_with_2():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    runs = [program("--fp16"), program("--num-layers"), program("--help")]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert [r.returncode for r in runs] == [2, 2, 0] and not any("Traceback" in r.stderr for r in runs)
    assert (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 3 < 0.3
    assert runs[0].stderr.startswith("5 mistakes in the flags:\n  --fp16 needs")


def test_config_module_holds_no_torch():
    code = "import sys, megatron.config; sys.exit(bool({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert config.__doc__


@pytest.mark.parametrize(
    "words, said",
    [
        ("--unique-tokens 1.5", "--unique-tokens 1.5 must be a whole number of tokens, or a share up to 1"),
        ("--data-kind instruct --unique-tokens 5", "--unique-tokens would do nothing here: give packed training data"),
        ("--data-kind pairs --epoch-order reference", "--epoch-order would do nothing here: use --data-kind packed"),
        ("--data-cache-path c", "--data-cache-path would do nothing here: use --epoch-order reference"),
        ("--categories cs.DS", "--categories would do nothing here: use --data-kind random-window"),
        ("--data-kind random-window", "--data-kind random-window needs --data-path FOLDER and no other data"),
        ("--valid-data-path-file a b", "--valid-data-path-file a b: several sets need a name each, NAME=FILE"),
        ("--valid-data-path-file x=a x=b", "several sets need a name each, NAME=FILE, and no name twice"),
        ("--valid-data-path-file x=", "--valid-data-path-file x= names no file"),
        ("--save-at 3", "--save-at would do nothing here: give --save"),
        ("--save s --save-at 3 x", "--save-at must be a whole number, not 'x'"),
    ],
)
def test_data_flags_that_do_not_fit(words, said):
    found = mistakes(*words.split())
    assert len(found) == 1 and said in found[0]


def test_a_folder_of_papers_needs_one_path():
    folder = [*BASE[:-2], *"--data-kind random-window --data-path papers".split()]
    assert parse([*folder, "--num-categories", "3"], environ={}).data.num_categories == 3
    assert "own splits" in mistakes("--split", "1,1,1", base=folder)[0]
    assert "--categories and --num-categories exclude" in mistakes("--categories", "a", "--num-categories", "1", base=folder)[0]


@pytest.mark.parametrize("text, number", [("4.1M", 4_100_000), ("32.7k", 32_700), ("1.5B", 1_500_000_000), ("2048", 2048)])
def test_counts_are_exact(text, number):
    assert read("--train-data-path", "corpus", "--unique-tokens", text).data.unique_tokens == number
