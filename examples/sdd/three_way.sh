#!/bin/bash
#SBATCH --job-name=three_way
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=three_way-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# AR, masked diffusion and sparse distribution diffusion on one text, then one table and one figure of what they write.
#   bash examples/sdd/three_way.sh          CORPUS=tinystories.jsonl WANDB_PROJECT=diffusion-lm
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/sdd   # sbatch runs a copy: submit it from the project
source "$here/../common.sh"

MODEL_PARAM=${MODEL_PARAM:-$(at_scale 44M CPU_46K)}         # a name, or ("${PARAM_44M[@]}")
changed+=${DATA_CNT:+_$DATA_CNT}${EPOCH_CNT:+x$EPOCH_CNT}
DATA_CNT=${DATA_CNT:-$(at_scale "$DATA_100M" 1500000)}     # unique tokens
EPOCH_CNT=${EPOCH_CNT:-1} VERSION=${VERSION:-1} FIXED_K=${FIXED_K:-4}
plan_name=three_way dataset=$(at_scale c4 "$corpus_name")

architecture() {                          # NAME OBJECTIVE SEED SUFFIX FLAGS...   -> a run {architecture}-{dataset}-{size}-v{version}
  name="$1-$dataset-{size}-v$VERSION$4" extra=("${@:5}")
  plan utils/datapaths/train_c4_100m.txt --objectives "$2" --sizes $(sizes) --unique-tokens "$DATA_CNT" --epochs "$EPOCH_CNT" \
    --seeds "$3"
}
architecture judge ar 7 ""                # scores what the others write; it is none of them
architecture ar ar 1234 ""
architecture diffusion mdm 1234 ""
architecture sdd sdd 1234 "" --sdd-k 1 2 4 8
architecture sdd sdd 1234 "-fixed-k$FIXED_K" --sdd-k "$FIXED_K"
architecture sdd sdd 1234 -bilateral --sdd-k 1 2 4 8 --sdd-denoiser bilateral
finish
if [[ ${DRY_RUN:-} == 1 ]]; then exit; fi
runs=("${names[@]/#/$RUNS_DIR/}")
"$PYTHON" tools/evaluate.py architectures "${runs[@]:1}" --judge "${runs[0]}" --out "$RUNS_DIR/$plan_name$changed"
echo "the figure: $(cd "$RUNS_DIR/$plan_name$changed" && pwd)/architectures.png"
