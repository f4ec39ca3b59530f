#!/bin/bash
# Start this node's ranks of a training command, pass signals on to them, and end with the exit code of the rank that failed first.
#   NPROC_PER_NODE=4 bash examples/launch.sh python pretrain_gpt.py ...                              on one machine
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=host MASTER_PORT=29500 bash examples/launch.sh python ...        on each of two
#   srun --ntasks-per-node=1 bash examples/launch.sh python ...                                      in a Slurm job
# NPROC_PER_NODE: ranks a node [its GPUs]; LOG_DIR: also write node-N.log there; GRACE_SECONDS: from a rank's failure to the others' end.
set -uo pipefail
note() { echo "launch.sh on $(hostname): $*" >&2; }
(($#)) || { note "give the command to start"; exit 2; }

# -- who is who
num_nodes=${NNODES:-${SLURM_STEP_NUM_NODES:-1}} node=${NODE_RANK:-${SLURM_NODEID:-0}}
num_ranks=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-$(nvidia-smi -L 2>/dev/null | grep -c ^GPU)}}
whole() {                                              # NAME VALUE: bash would carry out what a word such as a[$(rm x)] says
  [[ $2 =~ ^(0|[1-9][0-9]{0,17})$ ]] || { note "$1=$2 must be a whole number: set it so, or leave it out"; exit 2; }
}
whole NNODES "$num_nodes"
whole NODE_RANK "$node"
whole NPROC_PER_NODE "$num_ranks"
whole GRACE_SECONDS "${GRACE_SECONDS:=60}"
((num_ranks > 0)) || num_ranks=1
free_port() { "${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }
if ((num_nodes == 1)); then
  MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-$(free_port)}
elif [[ ${SLURM_JOB_ID:-} ]]; then
  MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)}
  whole SLURM_JOB_ID "$SLURM_JOB_ID"
  MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
fi
[[ ${MASTER_ADDR:-} && ${MASTER_PORT:-} ]] || { note "NNODES=$num_nodes: set MASTER_ADDR (node 0) and MASTER_PORT (free there)"; exit 2; }
export MASTER_ADDR MASTER_PORT WORLD_SIZE=$((num_nodes * num_ranks)) LOCAL_WORLD_SIZE=$num_ranks
cores=$(($(nproc) / num_ranks))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}
if [[ ${LOG_DIR:-} ]]; then
  mkdir -p "$LOG_DIR" || exit 73
  exec > >(trap '' TERM INT USR1; exec tee -a "$LOG_DIR/node-$node.log") 2>&1
fi

# -- start
pids=() rank_of=() asked=''
forward() { asked=$1; if ((${#pids[@]})); then kill -s "$1" "${pids[@]}" 2>/dev/null; fi; }
trap 'forward TERM' TERM
trap 'forward INT' INT
trap 'forward USR1' USR1
for ((local_rank = 0; local_rank < num_ranks; local_rank++)); do
  RANK=$((node * num_ranks + local_rank)) LOCAL_RANK=$local_rank "$@" &
  pids+=($!) rank_of[$!]=$local_rank
done
if [[ $asked ]]; then forward "$asked"; fi              # it came while ranks were being started

# -- wait: a rank that lost another one ends with 75, as does one that was killed, so any other code comes closer to the cause
code=0 ended_at='' killed=''
while ((${#pids[@]})); do
  sleep 0.2 &
  wait $!
  running=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then running+=("$pid"); continue; fi
    wait "$pid" 2>/dev/null
    ended=$?
    if ((ended)); then ended_at=${ended_at:-$SECONDS}; fi
    case $ended in
    130 | 138 | 143) if [[ $asked ]]; then ended=85; fi ;;  # asked before it could hear: there was nothing to save
    esac
    if ((ended > 128)); then
      [[ $killed ]] || note "rank $((node * num_ranks + ${rank_of[pid]})) was killed by signal $((ended - 128)): start again (75)"
      ended=75
    fi
    if ((ended && (code == 0 || code == 75))) && [[ ! $killed ]]; then code=$ended; fi
  done
  pids=(${running[@]+"${running[@]}"})
  if [[ $ended_at ]] && ((${#pids[@]} && SECONDS > ended_at + GRACE_SECONDS)); then
    [[ $killed ]] || note "a rank ended with $code; ending the ${#pids[@]} that are left"
    killed=1
    forward KILL
  fi
done
exit "$code"
