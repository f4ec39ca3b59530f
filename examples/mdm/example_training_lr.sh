#!/bin/bash
#SBATCH --job-name=mdm_lr
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=mdm_lr-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# The learning rate's settings: beta2, peak, minimum and warm-up, SAMPLE points of their grid.
#   bash examples/mdm/example_training_lr.sh          SAMPLE=16
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/mdm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_12K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 50000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 20)}

plan_name=mdm_lr name="{objective}_lr_{size}_${DATA_CNT}x{epochs}"
SAMPLE=${SAMPLE:-$(at_scale 16 6)}
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary lr="$(at_scale 1e-4,2e-4,4e-4,8e-4 1e-3,3e-3,6e-3)" --vary adam-beta2=0.95,0.98,0.999 \
  --vary min-lr="$(at_scale 0,2e-5 0,3e-4)" --vary lr-warmup-samples="$(at_scale 2400,24000,120000 80,800)" --sample "$SAMPLE"
finish
tabulate
