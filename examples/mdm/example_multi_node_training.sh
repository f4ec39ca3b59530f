#!/bin/bash
#SBATCH --job-name=mdm_multi_node
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --output=mdm_multi_node-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# One multi-epoch run on several nodes, masked diffusion: 2.3B parameters, 363 passes over 500M unique tokens.
#   sbatch examples/mdm/example_multi_node_training.sh
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=host0 MASTER_PORT=29500 bash examples/mdm/example_multi_node_training.sh    on each node
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/mdm   # sbatch runs a copy: submit it from the project
cpu_ranks=2
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 2298M CPU_25K)}       # a name, or ("${PARAM_2298M[@]}")
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_500M" 500000)}       # unique tokens
EPOCH_CNT=${EPOCH_CNT:-$(at_scale 363 4)}
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-2}

plan_name=mdm_multi_node name="{objective}_multi_node_{size}_${DATA_CNT}x{epochs}"
extra=(--no-pipeline-parallel --zero-stage 1 --cpu-optimizer)
plan data/gpt2tok_c4_500_text_document --objectives mdm --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT"
finish
