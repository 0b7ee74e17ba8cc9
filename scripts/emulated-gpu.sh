#!/usr/bin/env bash
# Builds stand-ins for NVIDIA's driver, cuBLASLt and NCCL (tests/emulated_gpu) and prints their folder:
#
#   LD_LIBRARY_PATH=$(bash scripts/emulated-gpu.sh) train doctor
#
# One for cuDNN is in the folder cudnn below it: attention for training is cuDNN's where that is on
# LD_LIBRARY_PATH too, else our own kernel's.
#
# With them the GPU path of this program runs on any machine with a C++ compiler: the kernels are
# those of kernels/*.cu, on the CPU. For tests and development only: it is slow, and its times say
# nothing about a GPU. EMULATED_GPUS is the number of devices (1), EMULATED_GPU_MEMORY the MiB of
# each (4096). Builds when the sources changed. Exit code 3: no C++ compiler (CXX, c++, g++, clang++), or
# a processor that is not x86-64.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
sources=$root/tests/emulated_gpu
folder=${CARGO_TARGET_DIR:-$root/target}/emulated-gpu
common=(-std=c++20 -O3 -march=native -fPIC -shared -Wall -Wno-unknown-pragmas -fno-strict-aliasing)

find_compiler() {
    for name in ${CXX:-} c++ g++ clang++; do
        if command -v "$name" > /dev/null; then
            echo "$name"
            return
        fi
    done
    echo "emulated-gpu.sh: no C++ compiler (c++, g++, clang++)" >&2
    exit 3
}

# build LIBRARY SOURCES-AND-OPTIONS...: under another name first, so that nobody sees half a library.
build() {
    local library=$folder/$1
    "$compiler" "${common[@]}" -Wl,-soname,"${1##*/}" -o "$library.new" "${@:2}" >&2
    mv "$library.new" "$library"
}

if [[ $(uname -m) != x86_64 ]]; then
    echo "emulated-gpu.sh: for x86-64 alone" >&2
    exit 3
fi
compiler=$(find_compiler)
mkdir -p "$folder/cudnn"
exec 9> "$folder/lock"
flock 9
digest=$({ cat "$root"/kernels/*.cu* "$sources"/* "$0"; grep -m1 -E '^(flags|Features)' /proc/cpuinfo; } | sha256sum)
if [[ $(cat "$folder/digest" 2> /dev/null) != "$digest $compiler" ]]; then
    cd "$sources"
    build libcuda.so.1 driver.cpp fibers.cpp library.cpp library_fp16.cpp -ffp-contract=off
    build libcublasLt.so.13 products.cpp "$folder/libcuda.so.1" -Wl,-rpath,'$ORIGIN'
    build libnccl.so.2 collectives.cpp "$folder/libcuda.so.1" -Wl,-rpath,'$ORIGIN'
    build cudnn/libcudnn.so.9 descriptors.cpp graphs.cpp interpreter.cpp "$folder/libcuda.so.1" -Wl,-rpath,'$ORIGIN/..'
    ln -sf libcuda.so.1 "$folder/libcuda.so"
    ln -sf libcublasLt.so.13 "$folder/libcublasLt.so"
    echo "$digest $compiler" > "$folder/digest"
fi
echo "$folder"
