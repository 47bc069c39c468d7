"""Runs a train.onnx in stock Python onnxruntime on given feeds.

    parity.py train.onnx feeds.json      prints {output: [values]} as one JSON line

A feed is {"dtype": "int64", "shape": [..], "values": [..]}.  onnx.checker looks at the file first where
the onnx package is there.
"""

import json
import sys

import numpy as np
import onnxruntime

try:
    import onnx
except ImportError:
    print("no onnx package: the file is not checked", file=sys.stderr)
else:
    onnx.checker.check_model(sys.argv[1])

with open(sys.argv[2]) as file:
    feeds = {name: np.array(f["values"], f["dtype"]).reshape(f["shape"]) for name, f in json.load(file).items()}
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
values = (value.astype(np.float64).ravel().tolist() for value in session.run(names, feeds))
print(json.dumps(dict(zip(names, values))))
