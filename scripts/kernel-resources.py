#!/usr/bin/env python3
"""Lists registers, shared memory and spills of every kernel, from the compiler's report.

    scripts/kernel-resources.py [--out benches/results/kernel-resources-DATE.txt]

Compiles kernels/*.cu for every compute capability of build.rs, with the nvcc of CUDA_HOME, of .toolkit
(scripts/cuda-toolkit.sh), or of the path. As there, a file with 16-bit numbers is compiled twice, with
bfloat16 and with half precision (NAME.fp16). No GPU is needed. Fails if a kernel does not fit on a
multiprocessor, or spills registers on one of the capabilities in CHECKED.
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
# These are the options of build.rs.
OPTIONS = ["-fatbin", "-std=c++17", "-O3", "-lineinfo", "-Werror", "all-warnings", "-Xptxas", "-v"]
HALF, FP16 = "Half", "-DHALF_IS_FP16"
# A multiprocessor of each capability has so much shared memory in bytes, threads and blocks (CUDA C++
# Programming Guide, "Technical Specifications per Compute Capability"). All have as many registers.
LIMITS = {
    80: (164 * 1024, 2048, 32),
    86: (100 * 1024, 1536, 16),
    89: (100 * 1024, 1536, 24),
    90: (228 * 1024, 2048, 32),
    100: (228 * 1024, 2048, 32),
    120: (100 * 1024, 1536, 24),
}
REGISTERS = 65536
# Kernels were tuned for these. Elsewhere a few spilled bytes are listed and accepted.
CHECKED = (80, 90)


def find_nvcc():
    homes = [os.environ.get("CUDA_HOME"), str(ROOT / ".toolkit")]
    for home in filter(None, homes):
        nvcc = pathlib.Path(home) / "bin" / "nvcc"
        if nvcc.is_file():
            return str(nvcc)
    return shutil.which("nvcc") or sys.exit("no nvcc: run scripts/cuda-toolkit.sh or set CUDA_HOME")


def variants_of(source):
    """Yields the names of a file's fatbins and the options that make them."""
    yield source.stem, []
    if HALF in source.read_text():
        yield source.stem + ".fp16", [FP16]


def compile_report(nvcc, source, options):
    """Returns what the assembler says about a file."""
    targets = [f"-gencode=arch=compute_{capability},code=sm_{capability}" for capability in LIMITS]
    with tempfile.TemporaryDirectory() as folder:
        out = str(pathlib.Path(folder) / "kernels.fatbin")
        done = subprocess.run([nvcc, *OPTIONS, *targets, *options, "-o", out, str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{source}: {done.stderr}")
    return done.stderr


def block_sizes(source):
    """Returns the number of threads of each kernel's blocks, from its launch bounds."""
    text = source.read_text() + "".join(h.read_text() for h in (ROOT / "kernels").glob("*.cuh"))
    constants = {name: int(value) for name, value in re.findall(r"constexpr \w+ (\w+) = (\d+);", text)}
    bounds = {}
    for bound, name in re.findall(r"__launch_bounds__\((\w+)[^)]*\)[\s\\]+(\w+)(?:##)?", text):
        bounds[name] = int(bound) if bound.isdigit() else constants[bound]
    return bounds


def threads_of(kernel, bounds):
    """Returns the bound of a kernel. One that a macro names has the bound of its prefix, or the file's only
    one; one without a bound may have the most threads that a block can have."""
    prefixes = [name for name in bounds if kernel.startswith(name)]
    return bounds[max(prefixes, key=len)] if prefixes else next(iter(bounds.values()), 1024)


def kernels_of(report):
    """Yields capability, name, registers, shared bytes, and stack and spilled bytes of each kernel."""
    pattern = (r"Compiling entry function '(\w+)' for 'sm_(\d+)\w?'\n.*?\n\s*(\d+) bytes stack frame, "
               r"(\d+) bytes spill stores, (\d+) bytes spill loads\n.*?Used (\d+) registers([^\n]*)")
    for name, capability, stack, stores, loads, registers, rest in re.findall(pattern, report):
        shared = re.search(r"(\d+) bytes smem", rest)
        spilled = int(stack) + int(stores) + int(loads)
        yield int(capability), name, int(registers), int(shared[1]) if shared else 0, spilled


def resident_warps(capability, threads, registers, shared):
    """Returns how many warps of a kernel fit on a multiprocessor. A block takes 1 KiB of shared memory more
    than it asks for."""
    shared_bytes, most_threads, blocks = LIMITS[capability]
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = shared_bytes // (shared + 1024)
    return min(by_registers, by_shared, most_threads // threads, blocks) * threads // 32


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="also write the table to this file")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.strip().splitlines()
    lines = [f"# Kernels compiled for {', '.join(f'sm_{c}' for c in LIMITS)}; not yet run on a GPU.",
             f"# {version[-1]}", "# scripts/kernel-resources.py",
             f"{'sm':>4} {'file':24}{'kernel':36}{'threads':>8}{'registers':>10}{'shared':>8}{'warps/SM':>9}"
             f"{'spilled':>8}"]
    rows, faults = [], []
    for source in sorted((ROOT / "kernels").glob("*.cu")):
        bounds = block_sizes(source)
        for variant, options in variants_of(source):
            for capability, name, registers, shared, spilled in kernels_of(compile_report(nvcc, source, options)):
                threads = threads_of(name, bounds)
                warps = resident_warps(capability, threads, registers, shared)
                rows.append((capability, variant, name, threads, registers, shared, warps, spilled))
                if warps == 0 or spilled and capability in CHECKED:
                    faults.append(f"{name} ({variant}, sm_{capability})")
    if len({row[0] for row in rows}) < len(LIMITS):
        sys.exit("the report of the compiler lacks a capability")
    for capability, variant, name, threads, registers, shared, warps, spilled in sorted(rows):
        lines.append(f"{capability:4} {variant:24}{name:36}{threads:8}{registers:10}{shared:8}{warps:9}{spilled:8}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)
    if faults:
        sys.exit("these kernels spill or do not fit: " + ", ".join(faults))


if __name__ == "__main__":
    main()
