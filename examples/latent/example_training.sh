#!/bin/bash
#SBATCH --job-name=latent
#SBATCH --partition=your_partition
#SBATCH --time=your_time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --output=latent-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Texts and vectors: texts given vectors by both objectives, and one network for both ways; what each makes of what it is told.
#   PAIRS=data/pairs bash examples/latent/example_training.sh     data/pairs_train and data/pairs_valid of tools/import_pairs.py
here=$(dirname "$0")
[[ -f $here/../common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/examples/latent   # sbatch runs a copy: submit it from the project
own_text=1 batch=${GLOBAL_BATCH_SIZE:-}
source "$here/../common.sh"

changed+=${PAIRS:+_$(basename "$PAIRS")}${TOKENS:+_$TOKENS}${SEQ_LENGTH:+_s$SEQ_LENGTH}
PAIRS=${PAIRS:+$(from_caller "$PAIRS")}                     # without it texts of topics, whose information is known
pairs=${PAIRS:-$DATA_DIR/texts_of_topics}
if [[ ${DRY_RUN:-} != 1 && ! $PAIRS && ! -f ${pairs}_train.idx ]]; then
  "$PYTHON" tools/make_topic_pairs.py --documents 2000 --first 100 --output "${pairs}_valid" >&2
  "$PYTHON" tools/make_topic_pairs.py --documents 20000 --output "${pairs}_train" >&2
fi
width=8 vectors=${pairs}_train.vectors.npy
if [[ -f $vectors ]]; then
  width=$("$PYTHON" -c 'import sys, numpy; print(numpy.load(sys.argv[1], mmap_mode="r").shape[1])' "$vectors")
fi

plan_name=latent name="{objective}_latent_{size}" train_data=${pairs}_train valid_data=${pairs}_valid
GLOBAL_BATCH_SIZE=${batch:-$(at_scale 256 64)} MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-$(at_scale "" 64)}
which=(--sizes $(sizes 140M CPU_107K) --seq-length "${SEQ_LENGTH:-$(at_scale 2048 18)}" --tokens "${TOKENS:-$(at_scale 3e9 1.2e6)}")
extra=(--data-kind pairs --latent-size "$width" --latent-dropout 0.25 --score-first-token)
plan pairs --objectives "${OBJECTIVES:-ar,mdm}" "${which[@]}"
extra+=(--latent-mode random)
plan pairs --objectives joint "${which[@]}"
finish
if [[ ${DRY_RUN:-} != 1 ]]; then "$PYTHON" tools/evaluate.py vectors "${names[@]/#/$RUNS_DIR/}"; fi
