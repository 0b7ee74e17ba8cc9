#!/usr/bin/env bash
# Learns what there is to learn from a GPU machine, in two parts. Each fits a short loan of the machine, so
# that a first failure leaves time for a second try.
#
#   bash scripts/gpu-check.sh correctness OUT [--tiny]    (3 minutes)
#   bash scripts/gpu-check.sh speed OUT [--tiny]          (5 minutes)
#
# `correctness` compares the GPU with the CPU: every operation, tiny models, and the demo's model in a few
# steps of fine-tuning and reinforcement; then compute-sanitizer watches the kernels. `speed` times
# operations, steps and decoding, beside PyTorch on the same card.
#
# OUT is a new folder. Its summary.txt says how each step ended and how long it took; every step has a file
# of its own (and a .json if it gives numbers). A step that fails or takes too long does not end the part,
# and one that no longer fits into the part's time is left out; the most important come first. The exit code
# is 0 if all steps that could run went well. The binary is $TRAIN, else target/release/train, else `train`
# on the path. The peers run in $PYTHON, else python3, and need torch and transformers. compute-sanitizer is
# that of the path, of $CUDA_HOME, or of .toolkit (scripts/cuda-toolkit.sh --sanitizer). Nothing is
# installed. With --tiny all models are tiny and every step has ten times its time, to try this script
# on the emulated driver (scripts/emulated-gpu.sh), where times mean nothing.
set -uo pipefail

part=${1:-}
out=${2:-}
tiny=${3:-}
if [[ ! $part =~ ^(correctness|speed)$ || -z $out || ( -n $tiny && $tiny != --tiny ) || $# -gt 3 ]]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
train=${TRAIN:-$root/target/release/train}
[[ -x $train ]] || train=$(command -v train) || { echo "gpu-check: no binary: set TRAIN" >&2; exit 2; }
python=${PYTHON:-python3}
mkdir -p "$(dirname "$out")" && mkdir "$out" && out=$(cd "$out" && pwd) || exit 2
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
tuning=(--set train.total_steps=10)
sampling=(--set train.total_steps=2)
patience=1
if [[ -n $tiny ]]; then
    models=(tiny)
    shapes=small
    sizes=(--repeats 1)
    seq=(--seq 64)
    decoded=(--batch 2 --context 33)
    rollouts=(--prompts 2 --samples 2 --prompt 33 --response 4)
    tuning=(--set train.total_steps=2 --set train.seq_len=128 --set data.max_length=128)
    sampling=(--set train.total_steps=1 --set rollout.num_prompts=2 --set rollout.n=2
        --set rollout.max_new_tokens=8 --set train.seq_len=512)
    patience=10
fi

failed=0
limits=0
if [[ $part == correctness ]]; then budget=$((175 * patience)); else budget=$((295 * patience)); fi

say() {
    printf '%-28s %4d s  %s\n' "$@" | tee -a "$out/summary.txt"
}

# step NAME SECONDS COMMAND...
# Runs a command with its output in a file, and says how it ended.
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

# beside NAME SECONDS COMMAND...
# Does the same as step, but a failure is not ours.
beside() {
    local before=$failed
    step "$@"
    failed=$before
}

# peer NAME SECONDS SCRIPT OPTIONS...
# Does the same work in PyTorch.
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
        say "$1" 0 "left out: it needs a GPU"
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
        2> /dev/null | sed 's/^/gpu      /' || echo "gpu      nvidia-smi is missing"
} | tee "$out/summary.txt"

# demo DEVICE COMMAND SECONDS OPTIONS...
# Trains the demo's model for a few steps. Reinforcement begins with what the GPU has fine-tuned.
demo() {
    local device=$1 command=$2 limit=$3
    shift 3
    step "demo-$command-$device" "$limit" "$train" "$command" --config "$root/configs/demo/$command.toml" \
        --set "train.device=$device" --out "$out/runs/$command-$device" "$@"
}

correctness() {
    step operations 90 "$train" gpu-check --shapes $shapes
    local skipped
    if skipped=$(grep -c '^SKIPPED' "$out/operations.txt"); then
        say "of operations" 0 "$skipped checks were skipped and say nothing"
    fi
    cd "$root" || exit 2
    demo cuda sft 20 "${tuning[@]}"
    demo cpu sft 20 "${tuning[@]}"
    local model=$out/runs/sft-cuda/checkpoints
    model=$(find "$model" -mindepth 1 -maxdepth 1 -type d 2> /dev/null | tail -n 1)
    demo cuda grpo 30 --set "model.path=$model" "${sampling[@]}"
    demo cpu grpo 30 --set "model.path=$model" "${sampling[@]}"
    beside demo-curves 10 "$train" report "$out"/runs/*
    sanitize memcheck 40
    sanitize racecheck 40
}

speed() {
    local first=${models[0]} model
    bench "$first" ops 20 "${sizes[@]}" "${seq[@]}"
    bench "$first" step 30 "${sizes[@]}" "${seq[@]}"
    bench "$first" decode 30 "${sizes[@]}" "${decoded[@]}"
    bench "$first" grpo-step 60 "${rollouts[@]}"
    peer "peer-step-$first" 60 gpu_step.py --model "$first" "${sizes[@]}" "${seq[@]}"
    peer "peer-decode-$first" 50 gpu_decode.py --model "$first" "${sizes[@]}" "${decoded[@]}"
    peer "peer-grpo-step-$first" 90 gpu_grpo_step.py --model "$first" "${rollouts[@]}"
    for model in "${models[@]:1}"; do
        bench "$model" step 30 "${sizes[@]}" "${seq[@]}"
        bench "$model" ops 20 "${sizes[@]}" "${seq[@]}"
    done
}

# The judge is no part of the GPU, and doctor fails where the judge cannot start.
beside doctor 10 "$train" doctor
if ! grep -q '^gpu 0' "$out/doctor.txt"; then
    say "everything else" 0 "left out: doctor sees no GPU ($out/doctor.txt)"
    exit 1
fi
$part

echo "results in $out, $SECONDS s in all of $budget s; limits of the steps $limits s" | tee -a "$out/summary.txt"
exit $failed
