#!/bin/bash
# An environment that runs this project: the active one, else .venv (made when missing). Quiet, and at once when nothing is to do.
#   bash examples/setup.sh [EXTRAS]      EXTRAS: dev,tracking,tokenizers,...  [tracking]
# Sourced, it only defines environment_python and make_environment.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The interpreter to use: of the active environment, of .venv, or the system's.
environment_python() {
  if [[ -n ${PYTHON:-} ]]; then echo "$PYTHON"
  elif [[ -n ${VIRTUAL_ENV:-} ]]; then echo "$VIRTUAL_ENV/bin/python"
  elif [[ -n ${CONDA_PREFIX:-} ]]; then echo "$CONDA_PREFIX/bin/python"
  elif [[ -x $project/.venv/bin/python ]]; then echo "$project/.venv/bin/python"
  else command -v python3 || { echo "python3 is not on the PATH: install Python 3.10 or later" >&2; return 66; }
  fi
}

# Where torch comes from: pip's own configuration when it names a place, the CPU builds on a Linux machine without an NVIDIA GPU.
torch_source() {
  local configured
  configured=$("$PYTHON" -m pip config list)            # whole, before grep: a pipe that grep closes early fails pip
  if ! grep -qE '(^|\.)(index-url|extra-index-url|find-links)=' <<<"$configured" \
      && [[ $(uname) == Linux ]] && ! nvidia-smi -L &>/dev/null; then
    echo --index-url https://download.pytorch.org/whl/cpu
  fi
}

torch_is_right() {
  "$PYTHON" -c 'import re, sys
from importlib.metadata import version
sys.exit(not (2, 11) <= tuple(map(int, re.findall(r"\d+", version("torch"))[:2])) < (2, 15))' 2>/dev/null
}

install() {
  local said
  said=$("$PYTHON" -m pip install --quiet --disable-pip-version-check --no-input "$@" 2>&1) ||
    { printf '%s\n' "$said" "pip could not install $*" >&2; return 1; }
}

# make_environment EXTRAS: sets PYTHON to an interpreter that has this checkout and the extras.
make_environment() {
  local extras=$1 stamp wanted
  PYTHON=$(environment_python)
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "$PYTHON is $("$PYTHON" --version): Python 3.10 or later is needed" >&2; return 66; }
  if "$PYTHON" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)' && [[ -z ${CONDA_PREFIX:-} ]]; then
    "$PYTHON" -m venv "$project/.venv" >&2 ||
      { echo "$PYTHON cannot make $project/.venv: install its venv module (Debian: apt install python3-venv)" >&2; return 73; }
    PYTHON=$project/.venv/bin/python
  fi
  stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.installed-${extras//,/-}
  wanted="$project $(command -v "${CXX:-g++}" || true) $(cat "$project/pyproject.toml" "$project"/setup.py "$project"/megatron/*/*.{cpp,h} | cksum)"
  if [[ $(cat "$stamp" 2>/dev/null) == "$wanted" ]] && torch_is_right; then return; fi
  echo "installing into $(dirname "$stamp") (a few minutes, once)" >&2
  if ! torch_is_right; then
    # The release that CI runs. pyproject.toml admits all that the tests pass on; TORCH=torch==2.14.1 takes another of them.
    # shellcheck disable=SC2046  # no word, or two
    install "${TORCH:-torch>=2.11,<2.14}" $(torch_source)
  fi
  install -e "$project[$extras]"
  echo "$wanted" >"$stamp"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  make_environment "${1:-tracking}"
  echo "$PYTHON"
fi
