#!/bin/bash
#SBATCH --job-name=ar_training
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=ar_training-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# One multi-epoch run, autoregressive: 425M parameters, 100 passes over 100M unique tokens.
#   bash examples/arm/example_training.sh          MODEL_PARAM=, DATA_CNT=, EPOCH_CNT= here or in the environment
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/arm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 425M CPU_25K)}        # a name, or ("${PARAM_425M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 500000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 100 4)}

plan_name=ar name="{objective}_{size}_${DATA_CNT}x{epochs}"
plan utils/datapaths/train_c4_100m.txt --objectives ar --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT"
finish
