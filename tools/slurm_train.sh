#!/usr/bin/env bash
# Trains on a Slurm cluster: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [ARGUMENT ...]
# GPUS (all in all), GPUS_PER_NODE and CPUS_PER_TASK set the size, SRUN_ARGS adds to srun's arguments.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG [ARGUMENT ...]" >&2; exit 2; }
partition=$1 job_name=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun --partition "$partition" --job-name "$job_name" --ntasks "$gpus" --ntasks-per-node "$per_node" \
    --gres "gpu:$per_node" --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
