#!/bin/bash
# All tests, in an environment that this makes when it is missing.
#   bash tests/run.sh            the quick ones
#   bash tests/run.sh --slow     the slow ones too; other arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/setup.sh
make_environment dev,tracking,tokenizers
which_tests=(-m "not slow") rest=()
for word in "$@"; do
  if [[ $word == --slow ]]; then which_tests=(); else rest+=("$word"); fi
done
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 WANDB_MODE=offline PYTHON
"$PYTHON" -m pytest ${which_tests[@]+"${which_tests[@]}"} ${rest[@]+"${rest[@]}"}
