#!/bin/bash
#SBATCH --job-name=sft
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=sft-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Instruction tuning: both objectives go on from a base on prompts and responses, and answer held-out prompts side by side.
#   INSTRUCT=alpaca.json BASE='{objective}_chinchilla_1e20_140M' bash examples/sft/example_finetune.sh
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/sft   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

own=${INSTRUCT:+_$(basename "$INSTRUCT" | cut -d. -f1)}${EPOCH_CNT:+_e$EPOCH_CNT}${BASE:+_of_${BASE//[^A-Za-z0-9._-]/-}}
whole EPOCH_CNT "${EPOCH_CNT:=3}"                           # 1 to 3 passes over the pairs
INSTRUCT=${INSTRUCT:+$(from_caller "$INSTRUCT")}            # Alpaca's or Dolly's keys; without it words.jsonl is made
shape=(); if [[ ! $INSTRUCT ]]; then shape=(--format 'Answer: [a-z]+\.'); fi
pairs=$DATA_DIR/instruct/$(basename "${INSTRUCT:-words}" | cut -d. -f1)_$SCALE
if [[ ${DRY_RUN:-} != 1 && ! -f ${pairs}_train.idx ]]; then
  if [[ ! $INSTRUCT ]]; then "$PYTHON" tools/make_instruct_set.py --output "${INSTRUCT:=$pairs.jsonl}" --overwrite >&2; fi
  "$PYTHON" tools/prepare_instruct.py --input "$INSTRUCT" --output-prefix "$pairs" $(at_scale "" "--tokenizer-type ByteTokenizer") >&2
fi
rows=$("$PYTHON" -c 'import sys; from megatron.rundir.index import count_documents as n; print(n(sys.argv[1]) or 3800)' "${pairs}_train")

plan_name=sft name='{objective}_sft_base_{size}' base=${BASE:-} which=(--objectives "${OBJECTIVES:-ar,mdm}")
which+=(--sizes $(sizes 140M CPU_107K))
if [[ ! $base ]]; then base=$name$changed; plan utils/datapaths/train_c4_full.txt "${which[@]}" --tokens "$(at_scale 3e9 1e6)"; fi
changed+=$own name='{objective}_sft_{size}' train_data=${pairs}_train valid_data=${pairs}_valid LEARNING_RATE=${LEARNING_RATE:-$(at_scale 2e-5 3e-3)}
extra=(--data-kind instruct --lr-warmup-iters 100)
if [[ $changed != *_gbs* ]]; then GLOBAL_BATCH_SIZE=$(at_scale 64 8); fi
plan pairs "${which[@]}" --tokens $((rows * $(at_scale 2048 128) * EPOCH_CNT)) --finetune "$base"
finish
if [[ ${DRY_RUN:-} != 1 ]]; then
  "$PYTHON" tools/evaluate.py instruct "${names[@]/#/$RUNS_DIR/}" --data "${pairs}_valid" --pairs 128 ${shape[@]+"${shape[@]}"}
fi
