#!/bin/bash
#SBATCH --job-name=ar_attention_dropout
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=ar_attention_dropout-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Attention dropout, autoregressive: what the paper tried against overfitting (0.25, 0.5, 0.75).
#   bash examples/arm/example_training_attention_dropout.sh          RATES=0,0.5
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/arm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_12K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 50000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 20)}

plan_name=ar_attention_dropout name="{objective}_attention_dropout_{size}_${DATA_CNT}x{epochs}"
RATES=${RATES:-0,0.25,0.5,0.75}
plan utils/datapaths/train_c4_100m.txt --objectives ar --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary attention-dropout="$RATES"
finish
tabulate
