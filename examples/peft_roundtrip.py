"""Loads an adapter that weftc trained in PEFT, and compares it with the merged ONNX model; then lets weftc merge what
PEFT itself writes.

    weftc compile models/llada_micro_dynamo18.onnx --mask-id 31 --trainable lora -o train.onnx
    weftc run train.onnx --data data.jsonl --out trained
    python examples/peft_roundtrip.py trained models/llada_micro_dynamo18.onnx

Needs torch, peft, onnx, onnxscript, onnxruntime, numpy and safetensors.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import onnxruntime
import torch
from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "models"))
import export  # noqa: E402


def base():
    kind, shape, *_ = export.MODELS["llada_micro_dynamo18"]
    return export.seeded(kind(shape), seed=0)


def main(folder, source):
    config = json.loads((folder / "adapter_config.json").read_text())
    model = get_peft_model(base(), LoraConfig.from_pretrained(folder))
    own = {name for name in model.state_dict() if "lora_" in name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = set_peft_model_state_dict(model, load_peft_weights(folder, device="cpu"))
    missing = own & set(loaded.missing_keys)
    assert not missing and not loaded.unexpected_keys, (missing, loaded.unexpected_keys)
    model.eval()

    ids = torch.randint(0, 31, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        adapted, plain = model(ids), base()(ids)
        merged = base()
        merged.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        merged = merged(ids)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    onnx = torch.from_numpy(session.run(None, {"input_ids": ids.numpy()})[0])
    apart = lambda a, b: ((a - b).abs().max() / b.abs().max()).item()
    print(f"{config['peft_type']}, rank {config['r']}, {len(config['target_modules'])} modules, {len(own)} tensors")
    print(f"PEFT against model.onnx         {apart(onnx, adapted):.1e}")
    print(f"PEFT against model.safetensors  {apart(merged, adapted):.1e}")
    print(f"the adapter changed the logits by {apart(adapted, plain):.1e}")
    with tempfile.TemporaryDirectory() as own:
        model.save_pretrained(own)
        subprocess.run(["weftc", "merge", source, own, "-o", f"{own}/merged.onnx"], check=True)
        session = onnxruntime.InferenceSession(f"{own}/merged.onnx")
        back = torch.from_numpy(session.run(None, {"input_ids": ids.numpy()})[0])
    print(f"PEFT against its own files merged by weftc  {apart(back, adapted):.1e}")
    assert apart(back, adapted) < 1e-5
    assert max(apart(onnx, adapted), apart(merged, adapted)) < 1e-5 < apart(adapted, plain)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
