#!/usr/bin/env bash
# Creates the virtual environment .venv/STACK: torch, the MM libraries, this package, the test tools.
#
#   tools/setup_env.sh [openmmlab|compiled|onedl|core|oldest]
#
# openmmlab and oldest take mmcv-lite and the operators of this package, so that nothing is compiled; oldest is what is
# supported at least, Python 3.8 and torch 2.1. core is MMEngine without the other MM libraries. compiled and onedl
# compile MMCV once, and need a C++ compiler.
#
# PYTHON                  the Python to use (default: the first found of these): 3.11, 3.12, 3.13 or 3.10; not 3.13 for
#                         compiled; 3.8 for oldest
# MAX_JOBS                compile jobs for MMCV (default: one per core, fewer where memory is short)
# MMEFFICIENTMOD_CACHE    where the compiled MMCV is kept (default: ~/.cache/mmefficientmod)
#
# A second run with the same requirements returns at once; an interrupted one goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 1; }
step() { echo "[$1/5] $2"; }

stack=${1:-openmmlab}
pythons='3.11 3.12 3.13 3.10' third_party='torch runtime export data tests' libraries=$stack mmcv=
case $stack in
    openmmlab) ;;
    compiled)
        pythons='3.11 3.12 3.10'  # MMCV 2.1.0 cannot be built on 3.13
        hint=' (on 3.13: STACK=openmmlab)'
        libraries=openmmlab
        mmcv=$(sed -n 's/^mmcv-lite==/mmcv==/p' requirements/openmmlab.txt) ;;
    onedl)
        mmcv=$(grep '^onedl-mmcv==' requirements/onedl.txt) ;;
    core)
        third_party='torch runtime data tests' ;;
    oldest)
        pythons=3.8 third_party=python3.8 ;;
    *) fail "unknown STACK '$stack'; choose openmmlab (the original MM libraries), compiled (the same with MMCV's" \
        "operators compiled), onedl (their maintained continuation), core (MMEngine alone) or oldest (the oldest" \
        "versions that are supported)" ;;
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

name='import sys; print("python%d.%d" % sys.version_info[:2])'
# Whether the command "$1" is a Python of one of the supported versions.
is_supported() {
    local found
    found=$("$1" -c "$name" 2>/dev/null) && [[ " $pythons " == *" ${found#python} "* ]]
}
base=
for candidate in ${PYTHON:-$(printf 'python%s ' $pythons) python3 $(printf "$HOME/.pyenv/versions/%s.*/bin/python " $pythons)}; do
    if is_supported "$candidate"; then
        base=$candidate
        break
    fi
done
[ "$base" ] || fail "STACK=$stack needs Python ${pythons// / or }, for which its requirements are pinned, and" \
    "${PYTHON:-no python found here} is none; install one or name it: PYTHON=/path/to/python${pythons%% *}${hint:-}"
"$base" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$base lacks the venv module; on Debian: apt install $("$base" -c "$name")-venv"
tag=$("$base" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')

# A wheel of MMCV fits one torch, Python and machine, with GPU operators or without; its path says
# which. pip's own wheel cache knows nothing of torch, so it is not used for it.
torch=$(sed -n 's/^torch===//p' "requirements/${third_party%% *}.txt")
device=cpu
gpu=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    grep -E '^[0-9.]+$' | sort -u | paste -sd_) || true
if [ "$mmcv" ] && [ "$gpu" ]; then
    if command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
        device=cuda-sm$gpu
    else
        echo "warning: a GPU but no nvcc: MMCV's operators (RoIAlign, NMS) will run on the CPU only" >&2
    fi
fi
cache=${MMEFFICIENTMOD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmefficientmod}
wheels=$cache/wheels/torch-$torch-$tag-$(uname -m)-$device
find_wheel() {
    find "$wheels" -maxdepth 1 -name "$(sed 's/-/_/; s/==/-/' <<<"$mmcv")-*.whl" 2>/dev/null || true
}

wheel=
[ -z "$mmcv" ] || wheel=$(find_wheel)
if [ "$mmcv" ] && [ -z "$wheel" ]; then
    command -v "${CXX:-c++}" >/dev/null ||
        fail "no C++ compiler to build $mmcv with; on Debian: apt install g++"
    [ -f "$("$base" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        fail "$base lacks Python.h, which building $mmcv needs; on Debian: apt install $("$base" -c "$name")-dev"
fi

free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1e6) }')
((free >= 9)) || echo "warning: $free GB of disk are free here; the set-up takes up to 9, 3 of them for a while" >&2

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
# shellcheck disable=SC2046,SC2086  # one word each
pip install "${quiet[@]}" $(printf -- '-r requirements/%s.txt ' $third_party)

if [ -z "$mmcv" ]; then
    step 3 "nothing to compile"
elif [ "$wheel" ]; then
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
# mmcv and mmcv-lite hold the same files: the one of an earlier set-up goes first.
other=mmcv
[ -z "$wheel" ] || other=mmcv-lite
pip uninstall --quiet --yes "$other" 2>/dev/null
# By hand, as the version alone does not say for which torch a wheel was compiled.
[ -z "$wheel" ] || pip install --quiet --no-deps --force-reinstall "$wheel"
# Without their dependencies, which requirements/runtime.txt lists instead: mmengine asks for the
# OpenCV that needs libGL, onedl-mmdetection (by way of imaug) for an old one, and mim for opendatalab
# (of use to mim download alone), which holds setuptools back.
grep -v "^${other:?}==" "requirements/$libraries.txt" > "$venv/libraries.txt"
pip install --quiet --no-deps --no-build-isolation -r "$venv/libraries.txt"

step 5 "this package, editable"
pip install --quiet --no-deps --no-build-isolation -e .
# for programs that import an MM library without this package, such as "mim train mmdet"
[ "$mmcv" ] || [ "$stack" = core ] || "$python" -W ignore -m mmefficientmod.codebases.operators --install
parts=mmefficientmod.models
[ "$stack" = core ] || parts="$parts, mmpretrain.models, mmdet.datasets, mmdet.models, mmseg.datasets, mmseg.models"
"$python" -W ignore -c "import $parts" >/dev/null

echo "$stamp" > "$venv/complete"
echo "environment $venv is ready"
