#!/bin/bash
#SBATCH --job-name=quickstart_eval_mdm
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=quickstart_eval_mdm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Score the last checkpoint of train_mdm.sh (or CHECKPOINT=folder) on the validation set.
#   bash examples/quickstart/eval_mdm.sh
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/quickstart   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 425M CPU_25K)}        # as in train_mdm.sh
DATA_CNT=$(at_scale "$DATA_100M" 250000)
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 500 8)}
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-8} EVAL_ITERS=${EVAL_ITERS:-100} EVAL_INTERVAL=1

name='quickstart_{objective}_{size}_{epochs}ep' evaluating=_eval
extra=(--num-mc 8)
plan utils/datapaths/train_c4_100m.txt --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT"
evaluate
