#!/bin/bash
#SBATCH --job-name=ar_token_masking
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=ar_token_masking-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Token masking, autoregressive: positions that see less, are not seen, or are not read (--randmask-kind).
#   bash examples/arm/example_training_token_masking.sh          RATIO=0.5, KINDS=edges,tokens
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/arm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_12K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 50000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 20)}

plan_name=ar_token_masking name="{objective}_token_masking_{size}_${DATA_CNT}x{epochs}"
RATIO=${RATIO:-0.3} KINDS=${KINDS:-edges,tokens,inputs}
plan utils/datapaths/train_c4_100m.txt --objectives ar --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT"
extra=(--randmask-ratio "$RATIO") name+=_$RATIO
plan utils/datapaths/train_c4_100m.txt --objectives ar --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary randmask-kind="$KINDS"
finish
tabulate
