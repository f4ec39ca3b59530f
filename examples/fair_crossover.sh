#!/bin/bash
#SBATCH --job-name=fair_crossover
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=fair_crossover-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# At every U x C the best size, weight decay, dropout and (AR) share of masked inputs, beside the usual recipe (decay 0.1 and no more).
#   DECAYS="1 3" DROPOUTS=0.1 MASKS=0.3 bash examples/fair_crossover.sh        empty: without
#   SCORES="korder:16" bash examples/fair_crossover.sh       under these scores too, of the runs that are there
here=$(dirname "$0")
[[ -f $here/common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples   # sbatch runs a copy: submit it from the project
source "$here/common.sh"
check_scores ${SCORES:-}
plan_name=fair_crossover name='{objective}_fair_crossover_{flops}_{size}_{part}'
DECAYS=${DECAYS-3} DROPOUTS=${DROPOUTS-0.1} MASKS=${MASKS-0.3} decays="--vary weight-decay=$(commas 0.1 ${DECAYS-3})"
grid() {                               # OBJECTIVES FLAGS...
  plan utils/datapaths/train_c4_full.txt --kind critical-compute --objectives "$1" --sizes $(sizes "57M 117M 217M" "CPU_25K CPU_46K CPU_107K") \
    --flops "$(commas $(budgets "1e19 3e19 1e20" "3e10 1e11 2e11"))" --unique-tokens "$(commas ${UNIQUE:-$(at_scale "25M 50M 100M 500M" "8000 32000")})" "${@:2}"
}
grid ar,mdm
if [[ $DECAYS ]]; then grid ar,mdm --vary "weight-decay=$(commas $DECAYS)"; fi
if [[ $DROPOUTS ]]; then grid ar,mdm $decays --vary "hidden-dropout=$(commas $DROPOUTS)"; fi
if [[ $MASKS ]]; then extra=(--randmask-kind inputs); grid ar $decays --vary "randmask-ratio=$(commas $MASKS)"; fi
finish
ar=() mdm=() usual_ar=() usual_mdm=()
for name in "${names[@]}"; do
  if [[ $name == ar_* ]]; then ar+=("$RUNS_DIR/$name"); else mdm+=("$RUNS_DIR/$name"); fi
  case $name in *_weight-decay*) ;; ar_*) usual_ar+=("$RUNS_DIR/$name") ;; *) usual_mdm+=("$RUNS_DIR/$name") ;; esac
done
for score in '' ${SCORES:-}; do        # nothing is trained again: runs that have this score keep it
  if [[ $score ]]; then score_runs "$score" "${mdm[@]}"; fi
  to=$RUNS_DIR/fair_crossover$changed${score:+-${score//[:\/]/-}} by=(${score:+--score "$score"})
  analyse critical-compute --ar "${usual_ar[@]}" --diffusion "${usual_mdm[@]}" ${by[@]+"${by[@]}"} --out "$to/plain"
  analyse critical-compute --ar "${ar[@]}" --diffusion "${mdm[@]}" ${by[@]+"${by[@]}"} --out "$to" --label "both regularised" --beside "usual recipe=$to/plain"
done
