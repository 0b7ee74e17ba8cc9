#!/usr/bin/env bash
# Everything there is to learn from a GPU machine, in one run of under eight minutes: what the machine
# is, whether the GPU computes what the CPU does, how fast, and how fast PyTorch is on the same card.
#
#   bash scripts/gpu-check.sh OUT [--tiny]
#
# OUT is a new folder; summary.txt in it says how each step ended and how long it took, and every step
# has a file of its own (and a .json where it gives numbers). A step that fails or takes too long does
# not end the run; the exit code is 0 if all steps that could run went well. The binary is $TRAIN, else
# target/release/train, else `train` on the path. Nothing is installed. --tiny does it all with a model
# of no size, to try this script itself on the emulated driver (scripts/emulated-gpu.sh); its times
# mean nothing.
set -uo pipefail

if [[ $# -lt 1 || ( $# -eq 2 && $2 != --tiny ) || $# -gt 2 ]]; then
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
out=$1
tiny=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
train=${TRAIN:-$root/target/release/train}
[[ -x $train ]] || train=$(command -v train) || { echo "gpu-check: no binary: set TRAIN" >&2; exit 2; }
python=${PYTHON:-python3}
mkdir "$out" || exit 2

models=(llama3-8b qwen2.5-7b)
sizes=(--repeats 10)
seq=(--seq 5120)
decoded=(--batch 64,256 --context 1024,2048)
patience=1
if [[ -n $tiny ]]; then
    models=(tiny)
    sizes=(--repeats 1)
    seq=(--seq 64)
    decoded=(--batch 2 --context 33)
    patience=10
fi

failed=0
# step NAME SECONDS COMMAND...
step() {
    local name=$1 limit=$(($2 * patience)) started=$SECONDS status=0
    shift 2
    { echo "\$ $*"; timeout "$limit" "$@"; } > "$out/$name.txt" 2>&1 || status=$?
    local ended="went well"
    if [[ $status -eq 124 ]]; then ended="took longer than $limit s"
    elif [[ $status -ne 0 ]]; then ended="failed with $status: $(tail -n 1 "$out/$name.txt")"
    fi
    [[ $status -eq 0 ]] || failed=1
    printf '%-28s %4d s  %s\n' "$name" $((SECONDS - started)) "$ended" | tee -a "$out/summary.txt"
}

# As step, but what a machine lacks for a comparison is no failure of ours.
peer() {
    local before=$failed
    step "$@"
    failed=$before
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
peer doctor 20 "$train" doctor
step correctness 60 "$train" gpu-check
for model in "${models[@]}"; do
    common=(--model-config "$model" "${sizes[@]}" --json)
    step "ops-$model" 30 "$train" bench ops "${common[@]}" "$out/ops-$model.json" "${seq[@]}"
    step "step-$model" 45 "$train" bench step "${common[@]}" "$out/step-$model.json" "${seq[@]}"
    step "decode-$model" 45 "$train" bench decode "${common[@]}" "$out/decode-$model.json" "${decoded[@]}"
done
peers=$root/scripts/peers
peer "peer-step-${models[0]}" 90 "$python" "$peers/gpu_step.py" --model "${models[0]}" "${sizes[@]}" "${seq[@]}"
peer "peer-decode-${models[0]}" 60 "$python" "$peers/gpu_decode.py" --model "${models[0]}" "${sizes[@]}" "${decoded[@]}"

echo "results in $out, $SECONDS s in all" | tee -a "$out/summary.txt"
exit $failed
