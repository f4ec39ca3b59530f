#!/bin/bash
# All tests, in an environment that this makes when it is missing.
#   bash tests/run.sh            the quick ones
#   bash tests/run.sh --slow     the slow ones too; other arguments go to pytest (two files at a time: -n 0 for one)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/setup.sh
make_environment dev,tracking,tokenizers,data,deepspeed,hf
which_tests=(-m "not slow") rest=()
for word in "$@"; do
  if [[ $word == --slow ]]; then which_tests=(); else rest+=("$word"); fi
done
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 WANDB_MODE=offline PYTHON
# DeepSpeed's compiled op, once for these versions and never under a test's time limit; without a compiler its tests are skipped.
versions=$("$PYTHON" -c 'import sys; from importlib.metadata import version as v
print(sys.implementation.cache_tag, v("torch"), v("deepspeed"), sep="-")')
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/megatron-tests/$versions}
"$PYTHON" -m megatron.engine.deepspeed || echo "DeepSpeed's op is not built: the tests that need it are skipped"
"$PYTHON" -m pytest -n 2 --dist loadfile ${which_tests[@]+"${which_tests[@]}"} ${rest[@]+"${rest[@]}"}
