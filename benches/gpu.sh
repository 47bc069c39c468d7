#!/usr/bin/env bash
# Checks and times weftc on an NVIDIA GPU; appends JSON lines to benches/results/DATE-gpu.jsonl.
#
#   benches/gpu.sh [--quick]
#
# First the tests that use a GPU where there is one: goldens in f32, bf16 gradients against f32, kernels against bodies.
# Then steps, beside PyTorch's (sdpa, bf16, compiled) where PYTHON names a Python with torch: `small` full and LoRA, an
# 8B-shaped model with generated weights LoRA only, since 16 bytes for each of its weights are more than one GPU holds;
# --quick leaves that model out.  What is missing is downloaded; without a GPU the reason is printed and the exit code
# is 3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
quick=${1:-}

cargo build --release --bin weftc --example make_llada
doctor=$(target/release/weftc doctor --install-cuda)
if ! grep -q "^ok  CUDA" <<<"$doctor"; then
    grep "  CUDA  " <<<"$doctor" || true
    echo "no GPU figures: run this on a machine with an NVIDIA GPU and its driver"
    exit 3
fi

WEFTC_TEST_DEVICE=cuda cargo test --release --test goldens --test device --test kernels

mkdir -p target/bench
small=target/bench/small.onnx large=target/bench/large.onnx
[ -f "$small" ] || target/release/examples/make_llada "$small" --layers 8 --width 512 --heads 8 --ffn 2048 \
    --vocabulary 4096 --length 256 --fill 1
results=benches/results/$(date -u +%F)-gpu.jsonl
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)

# step MODEL MASK BATCH LENGTH TRAINABLE COMPUTE: one line of weftc, and one of PyTorch with the same shape.
step() {
    target/release/weftc bench "$1" --json --device cuda --target cuda --mask-id "$2" --batch "$3" \
        --length "$4" --trainable "$5" --compute "$6" | sed "s/^{/{\"who\":\"weftc\",\"gpu\":\"$gpu\",/" | tee -a "$results"
    if [ "$6" = bf16 ] && "$python" -c "import torch" 2>/dev/null; then
        "$python" benches/gpu_torch.py --batch "$3" --length "$4" --trainable "$5" --shape "$7" | tee -a "$results"
    fi
}

for trainable in full lora; do
    for compute in f32 bf16; do
        step "$small" 4095 16 256 "$trainable" "$compute" 8,512,8,2048,4096
    done
done
if [ "$quick" != --quick ]; then
    [ -f "$large" ] || target/release/examples/make_llada "$large" --bf16 --fill 1
    step "$large" 126336 1 4096 lora bf16 32,4096,32,12288,126464
fi
