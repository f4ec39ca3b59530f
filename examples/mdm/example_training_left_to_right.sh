#!/bin/bash
#SBATCH --job-name=mdm_left_to_right
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=mdm_left_to_right-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Left-to-right masking, masked diffusion: so many rows hide their last tokens (--ar-ratio).
#   bash examples/mdm/example_training_left_to_right.sh          RATIOS=0,0.5
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/mdm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_12K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 50000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 20)}

plan_name=mdm_left_to_right name="{objective}_left_to_right_{size}_${DATA_CNT}x{epochs}"
RATIOS=${RATIOS:-0,0.1,0.5,1}
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary ar-ratio="$RATIOS"
finish
tabulate
