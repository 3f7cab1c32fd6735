#!/bin/bash
# A run on nodes of SLURM: Ray on all of them, and the driver on the first. The arguments are those of `world-models
# run`. Submit it from a clone that all nodes see at the same path, after `make install` there.
#   sbatch --test-only cluster/slurm.sh paper --run-dir /shared/runs/paper     checks the options, and starts nothing
#   sbatch cluster/slurm.sh paper --run-dir /shared/runs/paper
#   world-models status /shared/runs/paper
#   scancel JOB                                                                ends it for good
# Submitted again, it resumes the run. Preempted or out of time, it submits itself again.
# FILL IN, here or as options of sbatch: the partition, the number of nodes, the time, and an option that selects one
# kind of CPU, because an exact run refuses to mix them. Of a partition with GPUs, also --gpus-per-node.
#SBATCH --nodes=4
#SBATCH --time=24:00:00
#SBATCH --job-name=world-models
#SBATCH --output=world-models-%j.log
#SBATCH --open-mode=append
# Whole nodes, and one Ray on each: two jobs on a node would want the same ports.
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --mem=0
# A lost node does not end the job: its work runs again on the others. A preempted job waits for nodes again.
#SBATCH --no-kill
#SBATCH --requeue
# Two minutes before the time is up, to this script only. Not SIGTERM, which scancel also sends.
#SBATCH --signal=B:USR1@120
set -eu

PORT=6379
export PATH="$PWD/.venv/bin:$PATH"

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\n'*} # this script runs there, too
if [ -z "${HEAD_IP:-}" ]; then
    # A node may know its own name as a loopback address, at which no other node reaches it.
    for ip in $(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname --ip-address); do
        case $ip in 127.* | *:*) ;; *) HEAD_IP=$ip && break ;; esac
    done
fi
if [ -z "${HEAD_IP:-}" ]; then
    echo "slurm.sh: $first has no IPv4 address by its own name: name one by sbatch --export=ALL,HEAD_IP=..." >&2
    exit 2
fi

RAY_AUTH_TOKEN=$(ray get-auth-token --generate) # other users of these machines reach the ports
STATE=$(mktemp -d)
trap 'rm -rf "$STATE"' EXIT
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token STATE
export RAY_ADDRESS="$HEAD_IP:$PORT"  # the driver joins this cluster
export RAY_worker_niceness=0         # at Ray's default, nice 15, workers starve next to any busy program
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # a slow file system delays a node's start
export PYTHONUNBUFFERED=1

step=
time_is_up=
# shellcheck disable=SC2329 # the traps call it
stop() { # SIGTERM goes to the driver alone: Ray has to outlive it
    if [ -s "$STATE/pid" ]; then
        kill -TERM "$(cat "$STATE/pid")" || true
    elif [ -n "$step" ]; then
        kill -TERM "$step" || true
    fi
}
trap 'time_is_up=yes; stop' USR1
trap stop TERM

# The same command on every node; the last part of it, on the first node only. All nodes are alike, so workers also use
# the head, and nodes with GPUs. A later -o overrides this.
# shellcheck disable=SC2016 # the driver's shell expands these
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$SLURM_CPUS_ON_NODE" \
    --cpu-bind=none --no-kill --kill-on-bad-exit=0 \
    ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="/tmp/ray-$SLURM_JOB_ID" -- \
    bash -c 'world-models run "$@" & echo $! > "$STATE/pid"
        code=0; wait $! || code=$?; echo $code > "$STATE/exit"; exit $code' \
    driver -o "execution.workers_on=[head,gpu-nodes]" "$@" &
step=$!

# Until the driver ends, not Ray: without its head, a node takes a minute. It ends with this script.
until [ -s "$STATE/exit" ] || ! kill -0 "$step" 2> /dev/null; do
    sleep 1 &
    wait $! || true # a signal ends the waiting early
done

if [ -s "$STATE/exit" ]; then
    code=$(cat "$STATE/exit")
else
    code=0
    wait "$step" || code=$?
    # `symmetric-run` hides that a Ray did not start. A driver that never ended has not succeeded.
    if [ "$code" -eq 0 ]; then code=1; fi
fi
# Only an interrupted job is resumed: a run that failed would fail again.
if [ -n "$time_is_up" ] && { [ "$code" -eq 143 ] || [ ! -s "$STATE/exit" ]; }; then
    echo "slurm.sh: the time is up; job $SLURM_JOB_ID waits for nodes again, and then resumes the run"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
