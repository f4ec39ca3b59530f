#!/bin/bash
#SBATCH --job-name=mdm_schedules
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=mdm_schedules-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Noise schedules, masked diffusion: the same bound by draws that lie elsewhere.
#   bash examples/mdm/example_training_schedules.sh          SCHEDULES=linear,cosine
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/mdm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_12K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 50000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 20)}

plan_name=mdm_schedules name="{objective}_schedules_{size}_${DATA_CNT}x{epochs}"
SCHEDULES=${SCHEDULES:-linear,log-linear,cosine,cosine-squared,polynomial,geometric,importance}
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary noise-schedule="$SCHEDULES"
finish
tabulate
