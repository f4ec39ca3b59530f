#!/bin/bash
#SBATCH --job-name=ar_chinchilla
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=ar_chinchilla-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Chinchilla isoFLOP sweep, autoregressive, one epoch: D = C / (6 P) tokens for every size P and budget C.
#   SIZES="57M 117M" FLOPS="6e18 1e19" bash examples/arm/example_training_chinchilla.sh
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/arm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"
plan_name=ar_chinchilla name='{objective}_chinchilla_{flops}_{size}'

MODEL_PARAM=${MODEL_PARAM:-}        # one size alone: a name, or ("${PARAM_425M[@]}")
FLOPS_FACTOR=${FLOPS_FACTOR:-}      # one budget alone: 6, 10, 30, 100 (x 1e18)

plan utils/datapaths/train_c4_full.txt --objectives ar \
  --flops "$(commas $(budgets "6e18 1e19 3e19 1e20" "6e10 1.5e11 4e11 1e12"))" \
  --sizes $(sizes "57M 117M 217M 425M 724M" "CPU_16K CPU_25K CPU_46K CPU_74K CPU_107K")
finish
