#!/bin/bash
#SBATCH --job-name=udm
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=udm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Noise of random ids, of the mask and of both, over seeds: a line for each run, and mean differences within pairs of a seed.
#   bash examples/mdm/example_training_uniform.sh          SHARES=0,1 SEEDS=1,2,3
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/mdm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 140M CPU_12K)}        # a name, or ("${PARAM_140M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 500000)}      # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 50 1)}

plan_name=udm name="{objective}_{size}_${DATA_CNT}x{epochs}"
SHARES=${SHARES:-0,0.1,0.5,1}                          # 0: masked diffusion
plan utils/datapaths/train_c4_100m.txt --objectives udm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
  --vary uniform-share="$SHARES" --vary seed="${SEEDS:-1,2,3}"
finish
tabulate
if [[ ${DRY_RUN:-} != 1 ]]; then scaling_laws runs pairs "${names[@]/#/$RUNS_DIR/}" --by uniform_share; fi
