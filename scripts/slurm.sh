#!/usr/bin/env bash
# A SLURM job: one torchrun agent on each node, one process on each GPU, rendezvous on the first node.
#   sbatch --nodes 4 --gpus-per-node 8 --time 24:00:00 scripts/slurm.sh CONFIG [OVERRIDE]…
# Submit it from the repository. The arguments are those of `prismcap train`; --resume auto is set. The
# interpreter is .venv/bin/python, or $PYTHON. See docs/launching.md.
#
# SLURM sends SIGUSR1 two minutes before it takes the nodes away (at the time limit; at pre-emption where it
# is set up to). The ranks save and stop, and the job is queued again.
#SBATCH --job-name=prismcap
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# shellcheck disable=SC2317 # what runs on the nodes and in traps looks unreachable to it
set -euo pipefail

# The exit status of a child, however often a trapped signal cuts the waiting short.
status_of() {
    local status=0
    wait "$1" || status=$?
    while [ "$status" -gt 128 ] && kill -0 "$1" 2>/dev/null; do
        status=0
        wait "$1" || status=$?
    done
    if [ "$status" -gt 128 ]; then # ended while the wait was cut short: bash still knows how
        status=0
        wait "$1" || status=$?
    fi
    return "$status"
}

# One node's part: run_node FIRST_NODE PORT ARGUMENTS…
run_node() {
    local first=$1 port=$2 agent host=false
    shift 2
    [ "$SLURM_NODEID" != 0 ] || host=true
    # SLURM signals the process group of the task. The agent is kept out of it: SIGUSR1 would end it, and
    # SIGTERM it would hand on to loader workers as well, and kill all of them after 30 s.
    setsid "$PYTHON" -m torch.distributed.run \
        --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
        --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
        --rdzv-endpoint "$first:$port" --rdzv-conf "is_host=$host" --local-addr "$SLURMD_NODENAME" \
        -m prismcap.scripts.train --resume auto "$@" &
    agent=$!
    trap 'pkill -USR1 -P "$agent"' USR1 TERM # its children are the ranks: they save and stop
    status_of "$agent"
}

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "Usage: sbatch --nodes N --gpus-per-node M scripts/slurm.sh CONFIG [OVERRIDE]…" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$PWD/.venv/bin/python
    [ -x "$PYTHON" ] || {
        echo "Error: $PYTHON is not there: submit from the repository (scripts/test.sh makes .venv), or set PYTHON." >&2
        exit 2
    }
fi
export PYTHON
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # two jobs may share a node

# since 22.05 srun does not take it over from sbatch, and loader workers would all share one core
options=(--ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1)
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")

preempted=false
stop() {
    preempted=true
    kill -USR1 "$srun" || true # it hands the signal on to the task of every node; it may have just ended
}
srun "${options[@]}" bash -c "$(declare -f status_of run_node); run_node \"\$@\"" run_node \
    "${nodes%%$'\n'*}" "$port" "$@" &
srun=$!
trap stop USR1 # not before: a child started under a trap could still run it
status=0
status_of "$srun" || status=$?

if $preempted; then
    # whatever its status: a run that was stopped in its start has nothing to save, and one that had just
    # finished finds nothing to do
    echo "Pre-empted: queued again."
    scontrol requeue "$SLURM_JOB_ID"
elif [ "$status" -ne 0 ]; then
    echo "Failed (exit status $status): not queued again. After mending it, submit the same command." >&2
fi
exit "$status"
