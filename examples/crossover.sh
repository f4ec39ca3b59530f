#!/bin/bash
#SBATCH --job-name=crossover
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=crossover-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Where masked diffusion passes the autoregressive model: both at every budget C over the first U tokens, both laws, the figure.
#   UNIQUE="50M 100M" FLOPS="1e19 3e19" bash examples/crossover.sh
#   SCORES="korder:16 rule:confidence" bash examples/crossover.sh       the laws of these scores too, of the runs that are there
here=$(dirname "$0")
[[ -f $here/common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples   # sbatch runs a copy: submit it from the project
source "$here/common.sh"
check_scores ${SCORES:-}
plan_name=crossover name='{objective}_crossover_{flops}_{size}_{part}' ar=() mdm=()
plan utils/datapaths/train_c4_full.txt --kind critical-compute --sizes $(sizes "57M 117M 217M" "CPU_12K CPU_25K CPU_46K") \
  --flops "$(commas $(budgets "1e19 3e19 1e20" "2e10 6e10 2e11"))" \
  --unique-tokens "$(commas full ${UNIQUE:-$(at_scale "25M 50M 100M 500M" "8000 16000 32000")})"
finish
for name in "${names[@]}"; do if [[ $name == ar_* ]]; then ar+=("$RUNS_DIR/$name"); else mdm+=("$RUNS_DIR/$name"); fi; done
laws() {                              # [SCORE]: of the validation's loss, or of the score that each run is measured by
  local to=$RUNS_DIR/crossover$changed${1:+-${1//[:\/]/-}}   # AR overfits within these runs, which its law must be able to say
  analyse fit "${ar[@]}" ${1:+--score "$1"} --form data-constrained-overfit --out "$to/ar"
  analyse fit "${mdm[@]}" ${1:+--score "$1"} --form data-constrained --out "$to/mdm"
  analyse critical-compute --ar "$to/ar" --diffusion "$to/mdm" --unique-tokens "$(at_scale 25e6:500e6 8e3:32e3)" \
    --flops "$(at_scale 1e19:1e24 2e10:1e13)" ${1:+--score "$1"} --out "$to"
}
laws
for score in ${SCORES:-}; do          # nothing is trained again: runs that have this score keep it
  score_runs "$score" "${mdm[@]}"
  laws "$score"
done
