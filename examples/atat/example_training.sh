#!/bin/bash
#SBATCH --job-name=atat
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=atat-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# ATAT against masked diffusion, over seeds: a line for each run, and the mean difference within pairs of one seed.
#   bash examples/atat/example_training.sh          MODES=none,full SEEDS=1,2,3
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/atat   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_25K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 500000)}      # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 1)}

plan_name=atat name="{objective}_atat_{size}_${DATA_CNT}x{epochs}"
MODES=${MODES:-none,learned,frequency,full}           # none: masked diffusion
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary atat="$MODES" --vary seed="${SEEDS:-1,2,3,4,5}"
finish
tabulate
if [[ ${DRY_RUN:-} != 1 ]]; then scaling_laws runs pairs "${names[@]/#/$RUNS_DIR/}" --by atat; fi
