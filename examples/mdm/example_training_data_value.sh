#!/bin/bash
#SBATCH --job-name=mdm_data_value
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=mdm_data_value-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# What repeated tokens are worth, masked diffusion: compute-optimal runs whose D tokens are E passes over the first 1/E of them.
#   FLOPS=1e19 EPOCHS="1 10 100" bash examples/mdm/example_training_data_value.sh
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/mdm   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"
plan_name=mdm_data_value name='{objective}_data_value_{flops}_{size}_{epochs}ep'

MODEL_PARAM=${MODEL_PARAM:-}        # another size than the budget's optimum: a name, or ("${PARAM_425M[@]}")
FLOPS_FACTOR=${FLOPS_FACTOR:-}      # one budget alone: 10, 30, 100 (x 1e18)

for flops in $(budgets "1e19 3e19 1e20" "3e10 1e11 3e11"); do
  case $(at_scale "$flops" cpu) in                 # the budget's optimal size
  1e19) size=117M ;;
  3e19) size=217M ;;
  1e20) size=425M ;;
  cpu) size=CPU_25K ;;
  *) stop 2 "FLOPS=$flops has no published optimum: use 1e19, 3e19 or 1e20" ;;
  esac
  plan utils/datapaths/train_c4_full.txt --kind data-value --objectives mdm --flops "$flops" --sizes $(sizes "$size" "$size") \
    --epochs "$(commas ${EPOCHS:-1 2 4 10 20 50 100})"
done
finish
shopt -s nullglob
fresh=("$RUNS_DIR"/mdm_chinchilla_*[MK]"$changed")   # other sizes, if example_training_chinchilla.sh ran
analyse data-value "${names[@]/#/$RUNS_DIR/}" ${fresh[@]+"${fresh[@]}"} || note "all runs are done; the figure needs others too"
