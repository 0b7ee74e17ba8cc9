#!/usr/bin/env python3
"""Registers, shared memory and spills of every kernel, from the compiler's report.

    scripts/kernel-resources.py [--out benches/results/kernel-resources-DATE.txt]

Compiles kernels/*.cu for Hopper with the nvcc of CUDA_HOME, of the path, or of .toolkit
(scripts/cuda-toolkit.sh), as build.rs does: a file with numbers of 16 bits twice, with bfloat16 and with
half precision (NAME.fp16). No GPU is needed. Fails if a kernel spills registers or uses a stack.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# As build.rs.
OPTIONS = ["-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-std=c++17", "-O3", "-lineinfo",
           "-Werror", "all-warnings", "-Xptxas", "-v"]
HALF, FP16 = "Half", "-DHALF_IS_FP16"
# Of a multiprocessor of compute capability 9.0.
REGISTERS, SHARED_BYTES, THREADS, BLOCKS = 65536, 227 * 1024, 2048, 32


def find_nvcc():
    homes = [os.environ.get("CUDA_HOME"), str(ROOT / ".toolkit")]
    for home in filter(None, homes):
        nvcc = pathlib.Path(home) / "bin" / "nvcc"
        if nvcc.is_file():
            return str(nvcc)
    return shutil.which("nvcc") or sys.exit("no nvcc: run scripts/cuda-toolkit.sh or set CUDA_HOME")


def cubins_of(source):
    """Names of the cubins of a file and the options that make them."""
    yield source.stem, []
    if HALF in source.read_text():
        yield source.stem + ".fp16", [FP16]


def compile_report(nvcc, source, options):
    """What the assembler says about a file."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(pathlib.Path(folder) / "kernels.cubin")
        done = subprocess.run([nvcc, *OPTIONS, *options, "-o", out, str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{source}: {done.stderr}")
    return done.stderr


def block_sizes(source):
    """The number of threads of a block of each kernel, from its launch bounds."""
    text = source.read_text() + "".join(h.read_text() for h in (ROOT / "kernels").glob("*.cuh"))
    constants = {name: int(value) for name, value in re.findall(r"constexpr \w+ (\w+) = (\d+);", text)}
    bounds = {}
    for bound, name in re.findall(r"__launch_bounds__\((\w+)[^)]*\)[\s\\]+(\w+)(?:##)?", text):
        bounds[name] = int(bound) if bound.isdigit() else constants[bound]
    return bounds


def threads_of(kernel, bounds):
    """The bound of a kernel; one that a macro names has the bound of its prefix, or the file's only
    one; one without a bound may have the most threads there are."""
    prefixes = [name for name in bounds if kernel.startswith(name)]
    return bounds[max(prefixes, key=len)] if prefixes else next(iter(bounds.values()), 1024)


def kernels_of(report):
    """Name, registers, shared bytes, stack bytes, spilled bytes of each kernel."""
    pattern = (r"Function properties for (\w+)\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
               r"(\d+) bytes spill loads\n.*?Used (\d+) registers([^\n]*)")
    for name, stack, stores, loads, registers, rest in re.findall(pattern, report):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield name, int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads)


def resident_warps(threads, registers, shared):
    """Warps of a kernel that fit on a multiprocessor."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = SHARED_BYTES // (shared + 1024)
    return min(by_registers, by_shared, THREADS // threads, BLOCKS) * threads // 32


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="also write the table to this file")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.strip().splitlines()
    lines = ["# Kernels compiled for sm_90a; not yet run on a GPU.", f"# {version[-1]}",
             "# scripts/kernel-resources.py",
             f"{'file':24}{'kernel':36}{'threads':>8}{'registers':>10}{'shared':>8}{'warps/SM':>9}{'spilled':>8}"]
    spilled = []
    for source in sorted((ROOT / "kernels").glob("*.cu")):
        bounds = block_sizes(source)
        for cubin, options in cubins_of(source):
            found = kernels_of(compile_report(nvcc, source, options))
            for name, registers, shared, stack, spills in sorted(found):
                threads = threads_of(name, bounds)
                warps = resident_warps(threads, registers, shared)
                lines.append(f"{cubin:24}{name:36}{threads:8}{registers:10}{shared:8}{warps:9}{spills:8}")
                if spills or stack:
                    spilled.append(f"{name} ({cubin})")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)
    if spilled:
        sys.exit("these kernels spill: " + ", ".join(spilled))


if __name__ == "__main__":
    main()
