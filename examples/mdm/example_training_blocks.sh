#!/bin/bash
#SBATCH --job-name=mdm_blocks
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=mdm_blocks-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Block diffusion: blocks of 1 token (autoregression) up to a whole row (masked diffusion).
#   bash examples/mdm/example_training_blocks.sh          BLOCKS=1,16
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/mdm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_12K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 50000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 20)}

plan_name=mdm_blocks name="{objective}_blocks_{size}_${DATA_CNT}x{epochs}"
BLOCKS=${BLOCKS:-$(at_scale 1,4,16,128,2048 1,4,16,128)}
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary block-size="$BLOCKS"
finish
tabulate
