#!/bin/bash
#SBATCH --job-name=mdm_low_noise
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=mdm_low_noise-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Low-noise start, masked diffusion: less noise in the first STEPS steps, and what follows.
#   bash examples/mdm/example_training_low_noise.sh          STEPS=1000
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/mdm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_12K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 50000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 20)}

plan_name=mdm_low_noise name="{objective}_low_noise_{size}_${DATA_CNT}x{epochs}"
STEPS=${STEPS:-$(at_scale 1000 200)}
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT"
extra=(--low-noise-start --low-noise-iter "$STEPS") name+=_$STEPS
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary low-noise-ratio=0.25,0.5
finish
tabulate
