#!/usr/bin/env bash
# Trains on the GPUs of one or several machines: tools/dist_train.sh CONFIG GPUS [ARGUMENT ...]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT alike on each.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [ARGUMENT ...]" >&2; exit 2; }
config=$1 gpus=$2
shift 2
exec python -m torch.distributed.run --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$gpus" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
