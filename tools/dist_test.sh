#!/usr/bin/env bash
# Tests a checkpoint on the GPUs of one or several machines: tools/dist_test.sh CONFIG CHECKPOINT GPUS [ARGUMENT ...]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT alike on each.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [ARGUMENT ...]" >&2; exit 2; }
config=$1 checkpoint=$2 gpus=$3
shift 3
exec python -m torch.distributed.run --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$gpus" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
