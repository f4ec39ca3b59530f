#!/bin/bash
# From nothing to one page, without a GPU and without a download of data: isoFLOP curves of AR and masked diffusion.
# Makes its environment, gathers text that is already here, plans and trains every point of the grid and fits them.
# Run it again to go on after a stop.   CORPUS=file.jsonl bash examples/quickstart.sh reads another text.
set -euo pipefail
export SCALE=cpu
source "$(dirname "$0")/setup.sh"
[[ ${DRY_RUN:-} == 1 ]] || make_environment tracking
source "$(dirname "$0")/common.sh"
plan_name=quickstart name='quickstart_{objective}_{flops}_{size}'
# The grid: an objective, a budget of training FLOPs, and the sizes of utils/model_params.sh that share it. A short text is read
# once or twice by AR, whose budgets are smaller then, and a few times by masked diffusion.
grid=(
  "ar  3e10   CPU_5K  CPU_8K  CPU_12K CPU_16K CPU_25K CPU_46K"
  "ar  1e11   CPU_8K  CPU_12K CPU_16K CPU_25K CPU_46K CPU_74K"
)
if (($(text_tokens) < 3000000)); then grid+=("ar  1.5e10 CPU_5K  CPU_8K  CPU_12K CPU_16K CPU_25K")
else grid+=("ar  3e11   CPU_12K CPU_16K CPU_25K CPU_46K CPU_74K CPU_107K CPU_246K"); fi
grid+=(
  "mdm 2.5e11 CPU_5K  CPU_8K  CPU_12K CPU_16K CPU_25K CPU_46K CPU_74K"
  "mdm 5e11   CPU_8K  CPU_12K CPU_16K CPU_25K CPU_46K CPU_74K CPU_107K"
  "mdm 1.1e12 CPU_16K CPU_25K CPU_46K CPU_74K CPU_107K"
)
# What a width of 8 to 64 needs (docs/quick-start.md): weights and a rate that follow it, and heads of 16 channels whose rotary
# angles tell neighbours apart; masked diffusion begins with little hidden, so that its runs find neighbours soon.
# One subset for all: no run on the text that is gathered here reads a token twice.
extra=(--init-method small-init --rotary-base 10 --unique-tokens "$(least 11400000 "$(text_tokens)")")
if cpp_step; then extra+=(--cpp-step); fi       # without a compiler the grid takes twice as long
rate=(--lr rule:width)
if [[ ${LEARNING_RATE:-} ]]; then rate=(); fi

plan_row() {                              # OBJECTIVE FLOPS SIZES...
  if (($# > 2)); then plan text --objectives "$1" --flops "$2" --sizes "${@:3}" ${rate[@]+"${rate[@]}"}; fi
}
started='' TENSORBOARD='' WANDB_PROJECT=''
for row in "${grid[@]}"; do
  read -r objective flops row_sizes <<<"$row"
  if [[ $objective != "$started" ]]; then # TensorBoard and W&B (offline without a key) for the first run of each; they are slow to start
    started=$objective
    if [[ $objective == mdm ]]; then extra+=(--low-noise-start --low-noise-fraction 0.2 --low-noise-ratio 0.4); fi
    TENSORBOARD=1 WANDB_PROJECT=quickstart plan_row "$objective" "$flops" "${row_sizes%% *}"
    row_sizes=${row_sizes#* }
  fi
  plan_row "$objective" "$flops" $row_sizes
done
finish
if [[ ${DRY_RUN:-} == 1 ]]; then exit; fi
scaling_laws status "$plan_file" --runs-dir "$RUNS_DIR"
analyse isoflop "${names[@]/#/$RUNS_DIR/}" || note "the page says why there is no exponent"
analyse report "${names[@]/#/$RUNS_DIR/}"
echo "the page: $(cd "$out" && pwd)/report.html"
