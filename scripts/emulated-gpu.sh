#!/usr/bin/env bash
# Builds stand-ins for NVIDIA's driver, cuBLASLt and NCCL (tests/emulated_gpu) and prints their folder:
#
#   LD_LIBRARY_PATH=$(bash scripts/emulated-gpu.sh) train doctor
#
# The folder `cudnn` in it has a stand-in for cuDNN. Where that is on LD_LIBRARY_PATH too, it computes
# training attention; else our own kernel does.
#
# With the stand-ins the GPU path of this program runs on any machine with a C++ compiler: the kernels of
# kernels/*.cu run on the CPU. They are for tests and development only, because they are slow and their
# times say nothing about a GPU. tests/emulated_gpu/driver.cpp lists the variables that change the devices.
# The script builds only if sources changed. It exits with code 3 if there is no C++ compiler (CXX, c++, g++,
# clang++), or the processor is not x86-64.
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

# build LIBRARY SOURCES-AND-OPTIONS...
# Builds under another name first, so that nobody sees half a library.
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
