#!/usr/bin/env bash
# Puts the CUDA compiler into a folder, without root and without a GPU: what `cargo build --features
# cuda` needs to compile kernels/*.cu. The libraries (driver, cuBLASLt, NCCL, cuDNN) are opened at run
# time and are not needed to build.
#
# usage: scripts/cuda-toolkit.sh [--cudnn] [--disassembler] [--sanitizer] [DIR]    (DIR: .toolkit, 270 MB)
#   --cudnn          also cuDNN (180 MB), whose attention plans can be checked without a GPU
#   --disassembler   also cuobjdump and nvdisasm, to look at what the compiler made
#   --sanitizer      also compute-sanitizer (53 MB), to watch kernels on a GPU (scripts/gpu-check.sh)
#
# Needs python3 with pip. Packages come from PyPI at fixed versions; a second run does nothing.
# Standard output: the lines to export where DIR is not the default, which the build finds by itself.
set -euo pipefail

fail() {
    echo "cuda-toolkit: $*" >&2
    exit 1
}

# CUDA 13.0, for drivers from 580 on.
packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
)
dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.toolkit"
for arg in "$@"; do
    case $arg in
        --cudnn) packages+=(nvidia-cudnn-jit-cu13==9.27.0.42) ;;
        --disassembler) packages+=(nvidia-cuda-cuobjdump==13.2.78 nvidia-cuda-nvdisasm==13.2.78) ;;
        --sanitizer) packages+=(nvidia-cuda-sanitizer-api==13.5.25) ;;
        -*) fail "unknown option $arg; usage: cuda-toolkit.sh [--cudnn] [--disassembler] [--sanitizer] [DIR]" ;;
        *) dir=$arg ;;
    esac
done
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed (apt install python3-pip)"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# Each package unpacks to a folder in nvidia/; the list of what is there makes this idempotent.
installed="$dir/packages.txt"
touch "$installed"
missing=()
for package in "${packages[@]}"; do
    grep -qxF "$package" "$installed" || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "cuda-toolkit: ${missing[*]} into $dir" >&2
    work=$(mktemp -d "$dir/new.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps \
        --target "$work" "${missing[@]}" || fail "PyPI did not give ${missing[*]}"
    cp -a "$work"/nvidia/*/. "$dir/"
    printf '%s\n' "${missing[@]}" >>"$installed"
fi

version=$("$dir/bin/nvcc" --version | grep -o 'release.*') || fail "$dir/bin/nvcc does not start"
echo "cuda-toolkit: nvcc $version in $dir" >&2
echo "export CUDA_HOME='$dir'"
