#!/bin/bash
# What every recipe shares; a recipe sources it. It goes to the project's folder, settles the scale and the data, and defines
#   sizes, budgets, at_scale      what a sweep runs over, at either scale
#   plan FLAGS...                 more runs for this recipe, as `tools/scaling_laws.py plan FLAGS` makes them; the recipe sets
#                                 `name`, what they are called, and may set `extra`, flags of pretrain_*.py for each, and before
#                                 it sources this, `own_text`, where it reads no text of the Python library
#   finish, evaluate              execute the plan on every GPU of the job, or in few processes; score finished runs
#   analyse, tabulate             its tables and figures; a line for each of its runs
# examples/README.md lists the variables that change a run.
set -euo pipefail
note() { echo "$*" >&2; }
stop() { note "${@:2}"; exit "$1"; }
from_caller() { if [[ $1 == /* ]]; then echo "$1"; else echo "$caller/$1"; fi; }
whole() {                                             # NAME VALUE: bash would carry out what a word such as a[$(rm x)] says
  [[ $2 =~ ^(0|[1-9][0-9]{0,17})$ ]] || stop 2 "$1=$2 must be a whole number: set it so, or leave it out"
}

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/setup.sh
source utils/model_params.sh
source utils/epoch_tokens.sh
PYTHON=$(environment_python)
more_flags=("$@")                                     # flags behind a recipe's name go to each of its runs
extra=() names=()

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
whole NNODES "$num_nodes"
whole NPROC_PER_NODE "$NPROC_PER_NODE"
world_size=$((num_nodes * NPROC_PER_NODE > 0 ? num_nodes * NPROC_PER_NODE : 1))
several() { ((world_size > 1)); }

# -- settings; one that changes the result is in the run's name, so that only the same run counts as finished
changed=${LEARNING_RATE:+_lr$LEARNING_RATE}${GRAD_CLIP_NORM:+_clip$GRAD_CLIP_NORM}
changed+=${GLOBAL_BATCH_SIZE:+_gbs$GLOBAL_BATCH_SIZE}${SEED:+_seed$SEED}
if [[ ${PAPER:-} == 1 ]]; then changed+=_paper; fi
whole GLOBAL_BATCH_SIZE "${GLOBAL_BATCH_SIZE:=$(at_scale 256 8)}"
TENSORBOARD=${TENSORBOARD-$(at_scale 1 "")}           # empty: off
WANDB_PROJECT=${WANDB_PROJECT-$(at_scale diffusion_data_constraint "")}
if [[ ${PAPER:-} == 1 ]]; then note "PAPER=1: dropout 0.1 on attention and residual, as the reference has without saying so"
else note "dropout 0 (the reference's is 0.1 without saying so; PAPER=1 sets it)"
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
commas() { local IFS=,; echo "$*"; }

# plan FLAGS...: add runs to the recipe's plan.
plan() {
  local words=(--scale "$SCALE" --append --out "$draft" --name "$name$changed" --gpus "$world_size") flags=()
  if [[ ${DRY_RUN:-} != 1 && ! ${evaluating:-} ]]; then words+=(--need-data); fi
  if [[ ${LEARNING_RATE:-} ]]; then words+=(--lr "fixed:$LEARNING_RATE"); fi
  if [[ ${SEED:-} ]]; then words+=(--seeds "$SEED"); fi
  words+=(--batch-size "fixed:$GLOBAL_BATCH_SIZE" --valid-data "$valid_data")
  if [[ ! ${evaluating:-} ]]; then words+=(--train-data "${train_data:-$1}"); fi
  flags_of_the_caller
  scaling_laws plan "${words[@]}" "${@:2}" -- ${flags[@]+"${flags[@]}"} >/dev/null || exit $?
}
scaling_laws() { "$PYTHON" tools/scaling_laws.py "$@"; }

flags_of_the_caller() {                               # into `flags`: the variables of examples/README.md, as flags of pretrain_*.py
  local variable_and_flag value run="{run}${evaluating:-}" group='{program}'
  for variable_and_flag in GRAD_CLIP_NORM=--clip-grad LOG_INTERVAL=--log-interval EVAL_INTERVAL=--eval-interval \
    EVAL_ITERS=--eval-iters SAVE_INTERVAL=--save-interval; do
    value=${variable_and_flag%%=*}
    if [[ ${!value:-} ]]; then flags+=("${variable_and_flag#*=}" "${!value}"); fi
  done
  if [[ ${MICRO_BATCH_SIZE:-} ]]; then
    whole MICRO_BATCH_SIZE "$MICRO_BATCH_SIZE"
    flags+=(--micro-batch-size "$(least "$MICRO_BATCH_SIZE" "$GLOBAL_BATCH_SIZE")")
  fi
  if [[ ${PAPER:-} == 1 ]]; then flags+=(--attention-dropout 0.1 --hidden-dropout 0.1); fi
  if [[ $TENSORBOARD ]]; then
    flags+=(--tensorboard-dir "$RUNS_DIR/$run/tensorboard" --tensorboard-queue-size 5 --log-timers-to-tensorboard
      --log-batch-size-to-tensorboard --log-validation-ppl-to-tensorboard)
  fi
  if [[ $WANDB_PROJECT ]]; then
    flags+=(--wandb-project "$WANDB_PROJECT" --wandb-exp-name "$run" --wandb-save-dir "$RUNS_DIR/$run"
      --wandb-group "${WANDB_GROUP:-$group}")
  fi
  flags+=(${extra[@]+"${extra[@]}"} ${more_flags[@]+"${more_flags[@]}"})
}

# finish: execute the plan. Small runs share a process a core, so that start-up does not eat the time.
finish() {
  local how=(--how one-by-one) run
  if several; then how=(--how torchrun --nproc "$NPROC_PER_NODE" --nodes "$num_nodes")
  elif [[ $SCALE == cpu ]]; then how=(--how in-process ${PROCESSES:+--processes "$PROCESSES"}); fi
  plan_file=$draft
  if [[ ${DRY_RUN:-} != 1 ]]; then keep_plan; fi
  carry_out "${how[@]}" --retry-failed
  while read -r run; do names+=("$run"); done < <(
    "$PYTHON" -c 'import json, sys; print(*(run["name"] for run in json.load(open(sys.argv[1]))["runs"]), sep="\n")' "$plan_file")
}

# evaluate: score the last checkpoint of each run, or that of CHECKPOINT; the result is in NAME_eval. `evaluating` was set before.
evaluate() {
  local how=(--how one-by-one)
  if several; then how=(--how torchrun --nproc "$NPROC_PER_NODE" --nodes "$num_nodes"); fi
  plan_file=$draft
  carry_out "${how[@]}" --evaluate ${CHECKPOINT:+--checkpoint "$(from_caller "$CHECKPOINT")"}
}

carry_out() {                                         # FLAGS of `run`
  local words=(run "$plan_file" --runs-dir "$RUNS_DIR" "$@")
  if [[ ${DRY_RUN:-} == 1 ]]; then
    scaling_laws "${words[@]}" --dry-run --json | "$PYTHON" -c 'import json, os, shlex, sys
for words in json.load(sys.stdin)["commands"]:
    print(shlex.join([sys.argv[1], os.path.basename(words[0]), *words[1:]]))' "$PYTHON"
  else
    launch "$PYTHON" tools/scaling_laws.py "${words[@]}" || exit $?
  fi
}

keep_plan() {                                         # beside the runs, whole or not at all, whatever other nodes do
  local copy
  plan_file=$RUNS_DIR/plans/$plan_name$changed.json
  mkdir -p "$RUNS_DIR/plans" && copy=$(mktemp "$plan_file.XXXXXX") && cp "$draft" "$copy" && chmod 644 "$copy" && mv "$copy" "$plan_file" ||
    stop 73 "$plan_file cannot be written: choose another RUNS_DIR"
}

# analyse VERB FLAGS...: what this recipe's runs say, into the folder `out` unless the flags name another.
analyse() {
  out=$RUNS_DIR/$plan_name$changed
  if [[ ${DRY_RUN:-} != 1 ]]; then scaling_laws "$1" --out "$out" "${@:2}"; fi
}

# tabulate: the runs of the recipe, a line each, with their losses.
tabulate() { if [[ ${DRY_RUN:-} != 1 ]]; then scaling_laws runs ls "${names[@]/#/$RUNS_DIR/}"; fi; }

check_scores() {                                      # SCORE...: before anything is trained for one that does not exist
  local score program='import sys; from megatron.errors import exits; from megatron.score_names import read_score
sys.exit(exits(lambda: read_score(sys.argv[1], "SCORES") and None)())'
  for score in "$@"; do "$PYTHON" -c "$program" "$score"; done
}

score_runs() {                                        # SCORE RUN...: those that do not have it yet
  local run
  if [[ ${DRY_RUN:-} == 1 ]]; then return; fi
  for run in "${@:2}"; do
    grep -qF "\"score\": \"$1\"" "$run/likelihood.jsonl" 2>/dev/null || "$PYTHON" tools/evaluate.py likelihood "$run" --score "$1"
  done
}

# launch COMMAND: signals reach it, and Ctrl-C means save and stop. It ends with 85 when it was stopped so, and with 75 when a
# process was lost: a Slurm job then goes back to the queue, after a loss at most ten times.
launch() {
  local child code signalled=1
  "$@" &
  child=$!
  trap 'signalled=1; kill -USR1 "$child" 2>/dev/null || true' USR1 INT TERM
  while [[ $signalled ]]; do signalled='' code=0; wait "$child" || code=$?; done
  trap - USR1 INT TERM
  case $code in
  75) note "a process was lost (exit code 75): the same command goes on from what was saved" ;;
  85) note "stopped: the same command goes on from what was saved" ;;
  86) note "stopped by a kill switch: the same command goes on from what was saved, once that file is gone" ;;
  esac
  if [[ ${SLURM_JOB_ID:-} ]] && [[ $code == 85 || ($code == 75 && ${SLURM_RESTART_COUNT:-0} == [0-9]) ]]; then
    scontrol requeue "$SLURM_JOB_ID" || note "job $SLURM_JOB_ID is in the queue already, or needs another sbatch"
  fi
  return "$code"
}

# cpp_step: whether the installation has the compiled step (--cpp-step); every run of a plan has it, or none.
cpp_step() { "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("megatron.engine._cpp_step"))' 2>/dev/null; }

# -- corpora
text_tokens() {                                       # of the training text; before it is gathered, what it is going to be
  if [[ -f $text/train_text_document.bin ]]; then echo $(($(wc -c <"$text/train_text_document.bin") / 2))
  else echo $((text_megabytes * 975000)); fi
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
  if [[ $SCALE == cpu && ! ${own_text:-} ]]; then prepare_text; fi
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
draft=$folder/plan.json                               # the recipe's plan, until it is whole
if [[ $SCALE == gpu ]]; then train_data=${TRAIN_DATA_PATH:-} valid_data=${VALID_DATA_PATH:-utils/datapaths/val_c4.txt}
else train_data=$text/train_text_document valid_data=$text/valid_text_document
fi
