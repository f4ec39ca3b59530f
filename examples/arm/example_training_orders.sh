#!/bin/bash
#SBATCH --job-name=ar_orders
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=ar_orders-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Orders, autoregressive: each row in one of N orders, random and predefined (the paper: 278M, 100 epochs, N = 1 ... 16).
#   bash examples/arm/example_training_orders.sh          NUMBERS=4,16
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/arm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 278M CPU_12K)}        # a name, or ("${PARAM_278M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 50000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 100 20)}

plan_name=ar_orders name="{objective}_orders_{size}_${DATA_CNT}x{epochs}"
NUMBERS=${NUMBERS:-$(at_scale 2,4,8,16 2,16)}
plan utils/datapaths/train_c4_100m.txt --objectives ar --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT"
plan utils/datapaths/train_c4_100m.txt --objectives ar --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary num-order-list="$NUMBERS"
extra=(--use-predefined-order) name+=_predefined
plan utils/datapaths/train_c4_100m.txt --objectives ar --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary num-order-list="$NUMBERS"
finish
tabulate
