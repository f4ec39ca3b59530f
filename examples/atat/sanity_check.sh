#!/bin/bash
# 100 steps of wikitext103_validation.yaml, checked: it ends in PASSED, or leaves with 1 and says what is wrong.
#   bash examples/atat/sanity_check.sh          at SCALE=cpu a small model on the bytes of a text, offline
source "$(dirname "$0")/../common.sh"

run=$RUNS_DIR/atat_sanity_check$changed
words=(--config examples/atat/wikitext103_validation.yaml --max-steps 100 --log-dir "$run" --save "$run" --lr-warmup-iters 10 --log-interval 5
  --eval-interval 50)
if [[ $SCALE == cpu ]]; then
  words+=(--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 128 --global-batch-size 8 --atat-width 32
    --lr 3e-3 --eval-iters 4 --no-bf16 --device cpu --tokenizer-type ByteTokenizer
    --train-data-path "$train_data" --valid-data-path "$valid_data")
fi
words+=(${more_flags[@]+"${more_flags[@]}"})
if [[ ${DRY_RUN:-} == 1 ]]; then
  echo "$PYTHON pretrain_diff_gpt.py ${words[*]@Q}"
else
  rm -rf "$run"
  "$PYTHON" pretrain_diff_gpt.py "${words[@]}" --preflight
  launch "$PYTHON" pretrain_diff_gpt.py "${words[@]}" || exit $?
  "$PYTHON" tools/sanity_check.py "$run"
fi
