#!/usr/bin/env bash
# From an exported model to a fine-tuned, merged one, with every step in between: about a minute on one core.
#
#   examples/walkthrough.sh [FOLDER]
#
# What is made stays in FOLDER (target/walkthrough by default).  WEFTC names the program (`cargo run --release` by default),
# PYTHON a Python with torch, onnx, onnxscript and safetensors to export the model with; without one the model that lies
# in models/ is taken, which the same script exported.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/walkthrough}
mkdir -p "$out"
rm -rf "$out/full" "$out/lora"
: "${THREADS:=1}"

weftc() { if [ -n "${WEFTC:-}" ]; then "$WEFTC" "$@"; else cargo run --release --quiet -- "$@"; fi; }
say() { printf '\n== %s\n' "$*"; }

say "1. Export: a LLaDA of 162,000 random weights, as torch.onnx.export writes it (models/export.py)"
if [ -n "${PYTHON:-}" ]; then
  "$PYTHON" models/export.py --only sudoku --out "$out"
else
  cp models/sudoku.onnx "$out/"
fi
cp models/tokenizer.json "$out/"
weftc inspect "$out/sudoku.onnx" | head -n 12

say "2. Data: 4x4 Sudoku as token ids; what the model sees of it"
train=models/sudoku_train.jsonl
test=models/sudoku_test.jsonl
weftc data "$train[:2]" --tokenizer "$out/tokenizer.json" --plain

say "3. Teach the whole model"
weftc compile "$out/sudoku.onnx" --mask-id 15 -o "$out/full.onnx" --quiet
cat > "$out/full.toml" <<TOML
train-onnx = "$out/full.onnx"
data = "$train"
eval-data = "$test[:50]"
eval-every = 50
steps = 300
batch-size = 16
lr = 3e-3
schedule = "cosine"
warmup = 20
sample-every = 100
tokenizer = "$out/tokenizer.json"
threads = $THREADS
TOML
weftc run --config "$out/full.toml" --dry-run
weftc run --config "$out/full.toml" --out "$out/full"

say "4. Fine-tune what came out with LoRA, and stop and resume on the way"
weftc compile "$out/full/model.onnx" --mask-id 15 --trainable lora --lora-targets all-linear -o "$out/lora.onnx" --quiet
flags=(--data "$train" --eval-data "$test[:50]" --batch-size 16 --lr 2e-3 --threads "$THREADS"
  --tokenizer "$out/tokenizer.json" --sample-every 60)
weftc run "$out/lora.onnx" "${flags[@]}" --steps 60 --save-every 60 --out "$out/lora" --quiet
weftc run "$out/lora.onnx" "${flags[@]}" --steps 120 --resume "$out/lora"

say "5. Export: an adapter for PEFT, and the merged model"
weftc export "$out/lora.onnx" --from "$out/lora" --adapter "$out/adapter" --merged "$out/merged.onnx"
weftc merge "$out/full/model.onnx" "$out/adapter" -o "$out/merged-by-hand.onnx"

say "6. Ask and measure: the exported model, the taught one, the fine-tuned one"
for model in sudoku.onnx full/model.onnx merged.onnx merged-by-hand.onnx; do
  printf '%-22s' "$model"
  weftc generate "$out/$model" --tokenizer "$out/tokenizer.json" --mask-id 15 --plain --prompt '43.1.1.4..4.3..2|' \
    --length 16 --threads "$THREADS" --quiet
  weftc eval "$out/$model" --task nll --data "$test" --mask-id 15 --threads "$THREADS" --quiet | grep 'nats a token'
done

say "7. Look: open $out/both.html"
weftc report "$out/full" "$out/lora" -o "$out/both.html" --figure "$out/report.svg"
