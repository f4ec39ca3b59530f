#!/bin/bash
#SBATCH --job-name=quickstart_mdm
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=quickstart_mdm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# The reference's quickstart, masked diffusion: 425M, 500 passes over 100M tokens of C4.
#   bash examples/quickstart/train_mdm.sh          then eval_mdm.sh
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/quickstart   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 425M CPU_25K)}        # a name, or ("${PARAM_425M[@]}")
DATA_CNT=$(at_scale "$DATA_100M" 250000)                     # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 500 8)}
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-8} EVAL_ITERS=${EVAL_ITERS:-10}

plan_name=quickstart_mdm name='quickstart_{objective}_{size}_{epochs}ep'
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT"
finish
