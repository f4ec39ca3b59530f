#!/bin/bash
#SBATCH --job-name=ergodic
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=ergodic-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# What having learnt K kinds of text costs on one: T tokens shared by K nested categories, seeds x K, and a control of shuffled labels.
#   PAPERS=data/arxiv BASELINE=models/pythia-70m bash examples/ergodic/example_components.sh      COUNTS=1,3,5 SEEDS=0,1,2,3
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/ergodic   # sbatch runs a copy: submit it from the project
own_text=1
source "$here/../common.sh"

PAPERS=${PAPERS:+$(from_caller "$PAPERS")}                  # a folder of tools/prepare_corpus.py; without it chains of known entropy
papers=${PAPERS:-$DATA_DIR/chains}
if [[ ${DRY_RUN:-} != 1 && ! -f $papers/tokens.bin ]]; then
  "$PYTHON" tools/make_components.py --components 4 --tokens 300k --output "$papers" >&2
fi
TOKENS=${TOKENS:-$(at_scale 50e6 200000)}                   # T; each category has T / K of them
plan_name=ergodic train_data=$papers valid_data=$papers
extra=(--data-kind random-window --data-path "$papers" --component-uniform --valid-by-category)
ergodic() {                                                 # COUNTS FLAGS: an axis of K, for each seed
  plan papers --objectives "${OBJECTIVES:-ar,mdm}" --sizes $(sizes 57M CPU_25K) --unique-tokens "$TOKENS" \
    --epochs "${EPOCH_CNT:-$(at_scale 4 2)}" --seeds "${SEEDS:-$(at_scale 0,1,2,3 0,1)}" --vary num-categories="$1" "${@:2}"
}
name=ergodic
ergodic "${COUNTS:-$(at_scale 1,3,5,8,11 1,2,4)}"
ergodic "${CONTROL:-$(at_scale 1,11 1,4)}" --vary shuffle-categories=true
finish
if [[ ${DRY_RUN:-} != 1 ]]; then
  "$PYTHON" tools/evaluate.py components "${names[@]/#/$RUNS_DIR/}" --windows "${WINDOWS:-$(at_scale 1024 256)}" \
    ${BASELINE:+--baseline "$(from_caller "$BASELINE")"} --out "$RUNS_DIR/ergodic$changed"
fi
