#!/usr/bin/env bash
# Creates the virtual environment .venv/STACK: torch, compiled MMCV, the MM libraries, this package,
# the test tools.
#
#   tools/setup_env.sh [openmmlab|onedl]
#
# PYTHON                  the Python 3.11 to use (default: python3.11, then python3)
# MAX_JOBS                compile jobs for MMCV (default: one per core, fewer where memory is short)
# MMEFFICIENTMOD_CACHE    where the compiled MMCV is kept (default: ~/.cache/mmefficientmod)
#
# A second run with the same requirements returns at once; an interrupted one goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 1; }
step() { echo "[$1/5] $2"; }

stack=${1:-openmmlab}
case $stack in
    openmmlab | onedl) ;;
    *) fail "unknown STACK '$stack'; choose openmmlab (the original MM libraries)" \
        "or onedl (their maintained continuation)" ;;
esac
venv=.venv/$stack
python=$venv/bin/python

# All that decides what is installed. The path too: scripts and the editable install hold it.
stamp="$(cat requirements/*.txt tools/setup_env.sh setup.py mmefficientmod/version.py | sha256sum)"
stamp="$stamp $PWD $(echo tools/*.py)"
if [ -x "$python" ] && [ "$(cat "$venv/complete" 2>/dev/null)" = "$stamp" ]; then
    echo "environment $venv is ready"
    exit
fi

base=
for candidate in ${PYTHON:-python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        base=$candidate
        break
    fi
done
[ "$base" ] || fail "${PYTHON:-python3.11} is no Python 3.11, for which the requirements are pinned;" \
    "install it or name one: PYTHON=/path/to/python3.11"
"$base" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$base lacks the venv module; on Debian: apt install python3.11-venv"

# A wheel of MMCV fits one torch, Python and machine, with GPU operators or without; its path says
# which. pip's own wheel cache knows nothing of torch, so it is not used for it.
mmcv=$(grep -E '^(onedl-)?mmcv==' "requirements/$stack.txt")
torch=$(sed -n 's/^torch===//p' requirements/torch.txt)
device=cpu
gpu=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    grep -E '^[0-9.]+$' | sort -u | paste -sd_) || true
if [ "$gpu" ]; then
    if command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
        device=cuda-sm$gpu
    else
        echo "warning: a GPU but no nvcc: MMCV's operators (RoIAlign, NMS) will run on the CPU only" >&2
    fi
fi
cache=${MMEFFICIENTMOD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmefficientmod}
wheels=$cache/wheels/torch-$torch-cp311-$(uname -m)-$device
find_wheel() {
    find "$wheels" -maxdepth 1 -name "$(sed 's/-/_/; s/==/-/' <<<"$mmcv")-*.whl" 2>/dev/null || true
}

if [ -z "$(find_wheel)" ]; then
    command -v "${CXX:-c++}" >/dev/null ||
        fail "no C++ compiler to build $mmcv with; on Debian: apt install g++"
    [ -f "$("$base" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        fail "$base lacks Python.h, which building $mmcv needs; on Debian: apt install python3.11-dev"
fi

pip() { "$python" -m pip --disable-pip-version-check "$@"; }
quiet=()
[ -t 1 ] || quiet=(--quiet)  # pip's progress is for a terminal

step 1 "virtual environment $venv"
# An environment that was moved or lost its Python is made anew.
if ! grep -qsF "$PWD/$venv" "$venv/bin/activate" || ! "$python" -c '' 2>/dev/null; then
    rm -rf "$venv"
    "$base" -m venv "$venv"
fi

step 2 "torch $torch and third-party packages (first time: 3 GB to download, some minutes)"
pip install "${quiet[@]}" -r requirements/torch.txt -r requirements/runtime.txt -r requirements/tests.txt

wheel=$(find_wheel)
if [ "$wheel" ]; then
    step 3 "$mmcv was compiled before: $wheel"
else
    # A compile job of MMCV takes up to 2.5 GB of memory, all of them 25 minutes of CPU time.
    jobs=$(nproc)
    room=$(awk '/^MemAvailable/ { print int($2 / 2.5e6) }' /proc/meminfo)
    ((room >= jobs)) || jobs=$((room > 0 ? room : 1))
    jobs=${MAX_JOBS:-$jobs}
    step 3 "compile $mmcv (once; about $((25 / jobs + 1)) minutes with $jobs jobs) into $wheels"
    flags=(FORCE_CUDA=1)
    [ "$device" != cpu ] || flags=(FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=)
    mkdir -p "$wheels"
    build=$(mktemp -d "$wheels/.build-XXXXXX")
    trap 'rm -rf "$build"' EXIT
    (
        export MMCV_WITH_OPS=1 MAX_JOBS="$jobs" "${flags[@]}"
        pip wheel "$mmcv" --no-binary :all: --no-build-isolation --no-deps --no-cache-dir -w "$build"
    )
    mv "$build"/*.whl "$wheels"  # a rename: a build that is killed leaves no half wheel behind
    wheel=$(find_wheel)
fi

step 4 "the MM libraries ($stack)"
# By hand, as the version alone does not say for which torch a wheel was compiled.
pip install --quiet --no-deps --force-reinstall "$wheel"
# Without their dependencies, which requirements/runtime.txt lists instead: mmengine asks for the
# OpenCV that needs libGL, onedl-mmdetection (by way of imaug) for an old one, and mim for opendatalab
# (of use to mim download alone), which holds setuptools back.
pip install --quiet --no-deps --no-build-isolation -r "requirements/$stack.txt"

step 5 "this package, editable"
pip install --quiet --no-deps --no-build-isolation -e .
"$python" -c 'import mmdet.datasets, mmdet.models, mmpretrain.models, mmseg.datasets, mmseg.models, mmefficientmod' >/dev/null

echo "$stamp" > "$venv/complete"
echo "environment $venv is ready"
