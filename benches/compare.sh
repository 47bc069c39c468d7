#!/usr/bin/env bash
# Times the training step of weftc beside PyTorch's, in turns, and writes benches/results/DATE.{jsonl,md}.
#
#   benches/compare.sh [--torch-bench FOLDER] [--rounds N] [--threads 1,2] [--batch 4] [--quick]
#
# PYTHON names a Python with torch, onnx, onnxscript, onnxruntime, safetensors and numpy.  FOLDER holds
# bench_torch.py, models.py and reference.py, the PyTorch side (default: ../shared/reference).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
model=target/bench/custom.onnx

# LLaDA architecture, 31.5 M parameters: width 512, 8 layers, 8 heads, 256 tokens, vocabulary 4096.
[ -f "$model" ] || "$python" models/export.py --dims 512,8,8,256,4096 --out target/bench
cargo build --release --bin weftc
exec "$python" benches/compare.py --model "$model" "$@"
