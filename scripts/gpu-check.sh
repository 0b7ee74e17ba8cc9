#!/usr/bin/env bash
# Everything there is to learn from a GPU machine, in one run of under eight minutes: what the machine
# is, whether the GPU computes what the CPU does, how fast, how fast PyTorch is on the same card, and
# whether compute-sanitizer finds anything.
#
#   bash scripts/gpu-check.sh OUT [--tiny]
#
# OUT is a new folder; summary.txt in it says how each step ended and how long it took, and every step
# has a file of its own (and a .json where it gives numbers). A step that fails or takes too long does
# not end the run, and one that no longer fits into the eight minutes is left out; the most important
# come first. The exit code is 0 if all steps that could run went well. The binary is $TRAIN, else
# target/release/train, else `train` on the path; the peers run in $PYTHON, else python3, which needs
# torch and transformers; compute-sanitizer is the path's, else that of $CUDA_HOME or .toolkit
# (scripts/cuda-toolkit.sh --sanitizer). Nothing is installed. --tiny does it all with a model of no size,
# to try this script itself on the emulated driver (scripts/emulated-gpu.sh); its times mean nothing.
set -uo pipefail

if [[ $# -lt 1 || ( $# -eq 2 && $2 != --tiny ) || $# -gt 2 ]]; then
    sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
out=$1
tiny=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
train=${TRAIN:-$root/target/release/train}
[[ -x $train ]] || train=$(command -v train) || { echo "gpu-check: no binary: set TRAIN" >&2; exit 2; }
python=${PYTHON:-python3}
mkdir -p "$(dirname "$out")" && mkdir "$out" || exit 2
# PyTorch's wheels carry the libraries that ours needs.
wheels='import glob, nvidia; print(":".join(p for root in nvidia.__path__ for p in glob.glob(root + "/*/lib")))'
if [[ -z ${LD_LIBRARY_PATH:-} ]] && found=$("$python" -c "$wheels" 2> /dev/null); then
    export LD_LIBRARY_PATH=$found
fi

models=(llama3-8b qwen2.5-7b)
shapes=full
sizes=(--repeats 10)
seq=(--seq 5120)
decoded=(--batch 64,256 --context 1024,2048)
rollouts=(--prompt 512 --response 1024)
patience=1
if [[ -n $tiny ]]; then
    models=(tiny)
    shapes=small
    sizes=(--repeats 1)
    seq=(--seq 64)
    decoded=(--batch 2 --context 33)
    rollouts=(--prompts 2 --samples 2 --prompt 33 --response 4)
    patience=10
fi

failed=0
limits=0
budget=$((470 * patience))

say() {
    printf '%-28s %4d s  %s\n' "$@" | tee -a "$out/summary.txt"
}

# step NAME SECONDS COMMAND...
step() {
    local name=$1 limit=$(($2 * patience)) started=$SECONDS status=0
    shift 2
    limits=$((limits + limit))
    local left=$((budget - SECONDS))
    if ((left < limit / 2)); then
        say "$name" 0 "left out: $left s are left of $budget"
        return
    fi
    ((limit <= left)) || limit=$left
    { echo "\$ $*"; timeout --kill-after=10 "$limit" "$@"; } > "$out/$name.txt" 2>&1 || status=$?
    local ended="went well"
    if [[ $status -eq 124 ]]; then ended="took longer than $limit s"
    elif [[ $status -ne 0 ]]; then ended="failed with $status: $(tail -n 1 "$out/$name.txt")"
    fi
    [[ $status -eq 0 ]] || failed=1
    say "$name" $((SECONDS - started)) "$ended"
}

# As step, but a failure is not ours.
beside() {
    local before=$failed
    step "$@"
    failed=$before
}

# peer NAME SECONDS SCRIPT OPTIONS...: the same work in PyTorch.
peer() {
    local name=$1 limit=$2 script=$3
    shift 3
    if "$python" -c 'import torch, transformers' 2> /dev/null; then
        beside "$name" "$limit" "$python" "$root/scripts/peers/$script" "$@"
    else
        say "$name" 0 "left out: $python has no torch and transformers (PYTHON names another)"
    fi
}

# bench MODEL WHAT SECONDS OPTIONS...
bench() {
    local model=$1 what=$2 limit=$3
    shift 3
    step "$what-$model" "$limit" "$train" bench "$what" --model-config "$model" --json "$out/$what-$model.json" "$@"
}

# sanitize TOOL SECONDS
sanitize() {
    local sanitizer
    sanitizer=$(PATH=$PATH:${CUDA_HOME:-$root/.toolkit}/bin:$root/.toolkit/bin command -v compute-sanitizer)
    if [[ -n $tiny ]]; then
        say "$1" 0 "left out: for a GPU alone"
        return
    fi
    if [[ -z $sanitizer ]]; then
        say "$1" 0 "left out: no compute-sanitizer (scripts/cuda-toolkit.sh --sanitizer fetches it)"
        return
    fi
    step "$1" "$2" "$sanitizer" --tool "$1" --error-exitcode 1 "$train" gpu-check --shapes small
}

{
    echo "date     $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "commit   $(git -C "$root" describe --always --dirty --abbrev=12 2> /dev/null || echo unknown)"
    echo "binary   $("$train" --version), sha256 $(sha256sum "$train" | cut -c1-16)"
    echo "command  $0 $*"
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader \
        2> /dev/null | sed 's/^/gpu      /' || echo "gpu      nvidia-smi is not here"
} | tee "$out/summary.txt"

# The judge is no part of this, and doctor fails where it cannot start.
beside doctor 10 "$train" doctor
if ! grep -q '^gpu 0' "$out/doctor.txt"; then
    say "everything else" 0 "left out: doctor sees no GPU ($out/doctor.txt)"
    exit 1
fi
step correctness 90 "$train" gpu-check --shapes $shapes
if skipped=$(grep -c '^SKIPPED' "$out/correctness.txt"); then
    say "of correctness" 0 "$skipped checks were skipped and say nothing"
fi
first=${models[0]}
bench "$first" ops 20 "${sizes[@]}" "${seq[@]}"
bench "$first" step 30 "${sizes[@]}" "${seq[@]}"
bench "$first" decode 30 "${sizes[@]}" "${decoded[@]}"
bench "$first" grpo-step 60 "${rollouts[@]}"
peer "peer-step-$first" 80 gpu_step.py --model "$first" "${sizes[@]}" "${seq[@]}"
peer "peer-decode-$first" 50 gpu_decode.py --model "$first" "${sizes[@]}" "${decoded[@]}"
peer "peer-grpo-step-$first" 90 gpu_grpo_step.py --model "$first" "${rollouts[@]}"
sanitize memcheck 40
sanitize racecheck 40
for model in "${models[@]:1}"; do
    bench "$model" step 30 "${sizes[@]}" "${seq[@]}"
    bench "$model" ops 20 "${sizes[@]}" "${seq[@]}"
done

echo "results in $out, $SECONDS s in all of $budget s; limits of the steps $limits s" | tee -a "$out/summary.txt"
exit $failed
