"""Prints the logits of a model on tokens, without and with an adapter of ONNX Runtime's own format."""

import json
import sys

import numpy
import onnxruntime

model, adapter, tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
read = onnxruntime.AdapterFormat.read_adapter(adapter)
session = onnxruntime.InferenceSession(model)
feeds = {"input_ids": numpy.array(tokens, dtype=numpy.int64)}
lora = onnxruntime.LoraAdapter()
lora.Load(adapter)
options = onnxruntime.RunOptions()
options.add_active_adapter(lora)
print(
    json.dumps(
        {
            "parameters": {name: list(value.shape()) for name, value in read.get_parameters().items()},
            "plain": session.run(["logits"], feeds)[0].ravel().tolist(),
            "adapted": session.run(["logits"], feeds, options)[0].ravel().tolist(),
        }
    )
)
