#!/bin/bash
# What every recipe shares; a recipe sources it. It goes to the project's folder, settles the scale and the defaults, and defines
#   sizes, budgets, at_scale      what a sweep runs over, at either scale
#   plan SIZE LENGTH...           a run's size and length, by `python -m megatron.budget`
#   train_on, run, evaluate       its data; put the run into the recipe's plan; score a finished one
#   finish, analyse               execute the plan on every GPU of the job, or in few processes; make its tables and figures
# examples/README.md lists the variables that change a run.
set -euo pipefail
note() { echo "$*" >&2; }
stop() { note "${@:2}"; exit "$1"; }
from_caller() { if [[ $1 == /* ]]; then echo "$1"; else echo "$caller/$1"; fi; }

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/setup.sh
source utils/model_params.sh
source utils/epoch_tokens.sh
PYTHON=$(environment_python)
more_flags=("$@")                                     # flags behind a recipe's name go to each of its runs
failed='' list='' place='' names=() train_args=()

# -- scale
if [[ -z ${SCALE:-} ]]; then
  if nvidia-smi -L &>/dev/null; then SCALE=gpu; else SCALE=cpu; note "no NVIDIA GPU here, so SCALE=cpu"; fi
fi
case $SCALE in
gpu) note "SCALE=gpu: published sizes and budgets, GPT-2 tokens, sequence 2048, bf16" ;;
cpu) note "SCALE=cpu: sizes CPU_*, FLOPS_FACTOR in 1e10, byte tokens, sequence 128, fp32" ;;
*) stop 2 "SCALE=$SCALE must be cpu or gpu" ;;
esac
least() { if (($1 < $2)); then echo "$1"; else echo "$2"; fi; }
at_scale() { if [[ $SCALE == gpu ]]; then echo "$1"; else echo "$2"; fi; }

# -- processes: every GPU of every node of the job; at SCALE=cpu one, unless the recipe or the caller wants more
num_gpus=${SLURM_GPUS_ON_NODE:-$(nvidia-smi -L 2>/dev/null | grep -c ^GPU || true)}
export NPROC_PER_NODE=${NPROC_PER_NODE:-$(at_scale "$num_gpus" "${cpu_ranks:-1}")}
num_nodes=${NNODES:-${SLURM_NNODES:-1}}
several() { ((num_nodes * NPROC_PER_NODE > 1)); }

# -- settings; one that changes the result is in the run's name, so that only the same run counts as finished
changed=${LEARNING_RATE:+_lr$LEARNING_RATE}${GRAD_CLIP_NORM:+_clip$GRAD_CLIP_NORM}
changed+=${GLOBAL_BATCH_SIZE:+_gbs$GLOBAL_BATCH_SIZE}${SEED:+_seed$SEED}
LEARNING_RATE=${LEARNING_RATE:-$(at_scale 2e-4 3e-3)}
MIN_LEARNING_RATE=$(awk -v peak="$LEARNING_RATE" 'BEGIN { printf "%g", peak / 10 }')
GLOBAL_BATCH_SIZE=${GLOBAL_BATCH_SIZE:-$(at_scale 256 8)}
SEQ_LEN=$(at_scale 2048 128)
TENSORBOARD=${TENSORBOARD-$(at_scale 1 "")}           # empty: off
WANDB_PROJECT=${WANDB_PROJECT-$(at_scale diffusion_data_constraint "")}
if [[ ${PAPER:-} == 1 ]]; then
  dropout=0.1 changed+=_paper
  note "PAPER=1: dropout 0.1 on attention and residual, as the reference has without saying so"
else
  dropout=0
  note "dropout 0 (the reference's is 0.1 without saying so; PAPER=1 sets it)"
fi

# -- places; a corpus has its own data and its own runs
CORPUS=${CORPUS:+$(from_caller "$CORPUS")}
corpus_name=$(basename "${CORPUS:-python}")
corpus_name=${corpus_name%%.*}
DATA_DIR=$(from_caller "${DATA_DIR:-$PWD/data}")
RUNS_DIR=$(from_caller "${RUNS_DIR:-$PWD/runs${CORPUS:+/$corpus_name}}")
DATA_DIR=${DATA_DIR#"$PWD/"} RUNS_DIR=${RUNS_DIR#"$PWD/"}
text=$DATA_DIR/$corpus_name                           # SCALE=cpu: the bytes of a text, gathered once
text_megabytes=12

# at_scale for a sweep: the caller's choice first, as MODEL_PARAM (a name or an array of utils/model_params.sh), then SIZES.
sizes() { local one="${MODEL_PARAM[*]:-}"; if [[ $one ]]; then echo "${one// /,}"; else echo "${SIZES:-$(at_scale "$@")}"; fi; }
budgets() {
  local one=${FLOPS_FACTOR:+$FLOPS_FACTOR$(at_scale e18 e10)} found
  found=$(printf '%g ' ${one:-${FLOPS:-$(at_scale "$@")}})
  found=${found//e+0/e}
  echo "${found//e+/e}"                               # 10e18 and 1e+19 are one budget and one name, 1e19
}

# tokens_of U: of a subset of utils/epoch_tokens.sh, or a count.
tokens_of() { local name=DATA_$1; if [[ $1 == *[!0-9]* ]]; then echo "${!name}"; else echo "$1"; fi; }

# plan SIZE [--flops C | --tokens D] [--epochs E]: sets size_name, num_layers ..., train_samples, warmup_samples, unique_tokens.
plan() {
  local size=$1 said rule=(--seq-length "$SEQ_LEN")
  shift
  if [[ $SCALE == cpu ]]; then rule+=(--vocab-size 257 --params total); fi
  said=$("$PYTHON" -m megatron.budget --model "${size//,/ }" "$@" "${rule[@]}" \
    --field name num_layers hidden_size num_attention_heads kv_channels train_samples warmup_samples unique_tokens) || exit 2
  read -r size_name num_layers hidden_size num_heads kv_channels train_samples warmup_samples unique_tokens <<<"$said"
}

model_args() {
  args+=(--num-layers "$num_layers" --hidden-size "$hidden_size" --num-attention-heads "$num_heads" --kv-channels "$kv_channels"
    --seq-length "$SEQ_LEN" --max-position-embeddings "$SEQ_LEN" --use-rotary-position-embeddings --normalization rmsnorm --swiglu
    --disable-bias-linear --attention-dropout "$dropout" --hidden-dropout "$dropout" --seed "${SEED:-1234}"
    --micro-batch-size "$(least "${MICRO_BATCH_SIZE:-16}" "$GLOBAL_BATCH_SIZE")" --global-batch-size "$GLOBAL_BATCH_SIZE")
  if [[ $SCALE == gpu ]]; then args+=(--bf16); else args+=(--device cpu); fi
}

optim_args() {
  args+=(--train-samples "$train_samples" --lr-decay-samples "$train_samples" --lr-warmup-samples "$warmup_samples"
    --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --adam-eps 1e-8 --weight-decay 0.1 --clip-grad "${GRAD_CLIP_NORM:-1.0}"
    --lr "$LEARNING_RATE" --min-lr "$MIN_LEARNING_RATE" --lr-decay-style cosine)
}

data_args() {
  if [[ $SCALE == gpu ]]; then
    args+=(--tokenizer-type GPT2BPETokenizer --vocab-file utils/data/gpt2-vocab.json --merge-file utils/data/gpt2-merges.txt
      --data-impl mmap --valid-data-path-file "${VALID_DATA_PATH:-utils/datapaths/val_c4.txt}")
  else
    args+=(--tokenizer-type ByteTokenizer --data-impl mmap --valid-data-path "$text/valid_text_document")
  fi
}

# train_on SOURCE [unique]: a datapath file or a prefix, at SCALE=cpu the text instead; with `unique` its first unique_tokens.
train_on() {
  local source=${TRAIN_DATA_PATH:-$1}
  if [[ $SCALE == cpu ]]; then
    train_args=(--train-data-path "$text/train_text_document")
    if [[ ${2:-} ]]; then unique_tokens=$(least "$unique_tokens" "$(text_tokens)"); fi
  elif [[ $source == *.txt ]]; then train_args=(--train-data-path-file "$source")
  else train_args=(--train-data-path "$source"); fi
  if [[ ${2:-} ]]; then train_args+=(--unique-tokens "$unique_tokens"); fi
}
output_args() {                                       # NAME; sets place
  place=$RUNS_DIR/$1
  args+=(--log-interval "${LOG_INTERVAL:-$(at_scale 10 50)}" --eval-interval "${EVAL_INTERVAL:-1000}"
    --eval-iters "${EVAL_ITERS:-100}" --kill-switch-file "$place/kill")
  if [[ $TENSORBOARD ]]; then
    args+=(--tensorboard-dir "$place/tensorboard" --tensorboard-queue-size 5 --log-timers-to-tensorboard
      --log-batch-size-to-tensorboard --log-validation-ppl-to-tensorboard)
  fi
  if [[ $WANDB_PROJECT ]]; then
    args+=(--wandb-project "$WANDB_PROJECT" --wandb-exp-name "$1" --wandb-save-dir "$place"
      --wandb-group "${WANDB_GROUP:-${ENTRY%.py}}")
  fi
}

# run NAME FLAGS...: put what `plan` and `train_on` said into the recipe's plan; it goes on from its own last checkpoint.
run() {
  local name=$1$changed args=()
  shift
  if [[ " ${names[*]:-} " == *" $name "* ]]; then return; fi
  names+=("$name")
  if [[ ${DRY_RUN:-} == 1 && -f $RUNS_DIR/$name/result.json ]]; then note "$name is finished: skipped"; return; fi
  model_args; optim_args; data_args; output_args "$name"
  args=("$ENTRY" "${args[@]}" "${train_args[@]}" --save "$RUNS_DIR/$name" --load "$RUNS_DIR/$name"
    --save-interval "${SAVE_INTERVAL:-1000}" --keep-last 2 "$@" ${more_flags[@]+"${more_flags[@]}"})
  if [[ ${DRY_RUN:-} == 1 ]]; then show "${args[@]}"; return; fi
  if [[ $SCALE == gpu ]]; then need_corpus "${args[@]}"; fi
  { printf '%q ' "${args[@]}"; echo; } >>"$list"
}

# evaluate NAME FLAGS...: score a run's last checkpoint, or that of CHECKPOINT; the result is in NAME_eval.
evaluate() {
  local name=$1$changed args=() through=() code=0
  shift
  model_args; data_args; EVAL_INTERVAL=1 output_args "${name}_eval"
  args=("$ENTRY" "${args[@]}" --skip-train --load "${CHECKPOINT:-$RUNS_DIR/$name}" --run-dir "$RUNS_DIR/${name}_eval" "$@"
    ${more_flags[@]+"${more_flags[@]}"})
  if [[ ${DRY_RUN:-} == 1 ]]; then show "${args[@]}"; return; fi
  if [[ $SCALE == gpu ]]; then need_corpus "${args[@]}"; fi
  if several; then through=(bash examples/launch.sh); fi
  launch "$num_nodes" ${through[@]+"${through[@]}"} "$PYTHON" "${args[@]}" || { failed=$?; note "exit code $failed: ${args[*]}"; }
}

show() { printf '%q ' "$PYTHON" "$@"; echo; }

# finish: write the runs as a plan, and execute it. Small runs share a process a core, so that start-up does not eat the time.
finish() {
  local how=(--how one-by-one)
  if several; then how=(--how torchrun --nproc "$NPROC_PER_NODE" --nodes "$num_nodes")
  elif [[ $SCALE == cpu ]]; then how=(--how in-process ${PROCESSES:+--processes "$PROCESSES"}); fi
  if [[ -s $list ]]; then
    plan_file=$RUNS_DIR/plans/${plan_name:-${names[0]%%_[0-9]*}}$changed.json
    launch 0 "$PYTHON" tools/scaling_laws.py run "$plan_file" --commands "$list" --runs-dir "$RUNS_DIR" --retry-failed \
      "${how[@]}" || failed=$?
  fi
  if [[ $failed ]]; then exit "$failed"; fi
}

# analyse VERB FLAGS...: what this recipe's runs say, into the folder `out` unless the flags name another.
analyse() {
  out=$RUNS_DIR/${plan_name:-${names[0]%%_[0-9]*}}$changed
  if [[ ${DRY_RUN:-} != 1 ]]; then "$PYTHON" tools/scaling_laws.py "$1" --out "$out" "${@:2}"; fi
}

# launch NODES COMMAND: on so many nodes of a Slurm job, or with 0 here. Signals reach it, and Ctrl-C means save and stop.
# Preempted it exits 85: a Slurm job goes back to the queue.
launch() {
  local through=() child code signalled=1
  if [[ ${SLURM_JOB_ID:-} && $1 != 0 ]]; then through=(srun --nodes="$1" --ntasks-per-node=1); fi
  shift
  ${through[@]+"${through[@]}"} "$@" &
  child=$!
  trap 'signalled=1; kill -USR1 "$child" 2>/dev/null || true' USR1 INT TERM                         # at TERM srun kills its tasks
  while [[ $signalled ]]; do signalled='' code=0; wait "$child" || code=$?; done
  trap - USR1 INT TERM
  if ((code == 85)) && [[ ${SLURM_JOB_ID:-} ]]; then
    scontrol requeue "$SLURM_JOB_ID" || note "job $SLURM_JOB_ID is in the queue already, or needs another sbatch"
  fi
  if ((code == 85 || code == 86)); then stop "$code" "stopped and saved: the same command goes on from here"; fi
  return "$code"
}

# -- corpora
text_tokens() {                                       # of the training text; before it is gathered, what it is going to be
  if [[ -f $text/train_text_document.bin ]]; then echo $(($(wc -c <"$text/train_text_document.bin") / 2))
  else echo $((text_megabytes * 975000)); fi
}

need_corpus() {                                       # every prefix among the data flags must have its .idx
  local word prefixes
  prefixes=$(for word in "$@"; do if [[ $word == *.txt && -f $word ]]; then sed 's/#.*//; s/"//g' "$word" | tr -s ' \t' '\n\n'
    elif [[ $word == *_document ]]; then echo "$word"; fi; done | grep '_document$' || true)
  for word in $prefixes; do
    [[ -f $word.idx ]] || stop 66 "$word.idx is missing: prepare the corpus with python tools/preprocess_data.py" \
      "--input TEXT.jsonl --output-prefix ${word%_text_document} --append-eod --workers 16," \
      "name another with TRAIN_DATA_PATH=, or try SCALE=cpu"
  done
}

split_corpus() {                                      # ENDING: the last twentieth of the lines is for validation
  local lines
  lines=$(wc -l <"$CORPUS")
  ((lines >= 20)) || stop 65 "CORPUS=$CORPUS has $((lines)) lines: at least 20 are needed, one in twenty is for validation"
  head -n $((lines - lines / 20)) "$CORPUS" >"$text/train.$1"
  tail -n +$((lines - lines / 20 + 1)) "$CORPUS" >"$text/valid.$1"
}

gather_library() {
  "$PYTHON" tools/gather_text.py --megabytes "$text_megabytes" --output "$text/train.$1" \
    --valid-output "$text/valid.$1" --valid-every 20 --overwrite >&2
}

prepare_text() {                                      # SCALE=cpu: text to byte tokens, once; `source` is written last
  local part ending=jsonl source
  [[ -r ${CORPUS:-/dev/null} ]] || stop 66 "CORPUS=$CORPUS cannot be read: give a .jsonl or .txt file"
  source="${CORPUS:-the Python library} $(cksum <"${CORPUS:-/dev/null}")"
  if [[ -f $text/source ]]; then
    [[ $(<"$text/source") == "$source" ]] ||
      stop 73 "$text was made from another text ($(<"$text/source")): remove it, or choose another DATA_DIR and RUNS_DIR"
    return
  fi
  note "preparing $text from ${CORPUS:-the sources of the Python library}"
  mkdir -p "$text"
  if [[ $CORPUS == *.txt ]]; then ending=txt; fi
  if [[ $CORPUS ]]; then split_corpus $ending; else gather_library $ending; fi
  for part in valid train; do
    "$PYTHON" tools/preprocess_data.py --input "$text/$part.$ending" --output-prefix "$text/$part" \
      --tokenizer-type ByteTokenizer --append-eod --workers 2 --overwrite >&2
  done
  echo "$source" >"$text/source"
}

if [[ ${DRY_RUN:-} != 1 ]]; then
  "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' || make_environment tracking
  if [[ $SCALE == cpu ]]; then prepare_text; fi
  list=$(mktemp)
  trap 'rm -f "$list"' EXIT
fi
