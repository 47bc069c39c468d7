"""Times a training step of onnxruntime-training-cpu 1.19.2, the last release that trains, on a model of ours.

    python ort_training.py MODEL.onnx [--batch 4] [--length 256] [--threads 2] [--seconds 30]

Cross-entropy of half of the tokens, every weight trained, its own AdamW with clipping: what `weftc bench MODEL --method sft`
does.  Prints one JSON object.  Needs Python 3.11 or older with onnxruntime-training-cpu==1.19.2, onnx<1.17, numpy<2,
h5py, cerberus and torch (which its package imports).
"""

import argparse
import json
import pathlib
import resource
import statistics
import tempfile
import time

import numpy as np
import onnx
import onnxruntime
from onnxruntime.training import artifacts, onnxblock
from onnxruntime.training.api import CheckpointState, Module, Optimizer

IGNORED = -100


class MaskedLoss(onnxblock.Block):
    """Mean cross-entropy of the logits [B, L, V] at tokens whose label is not IGNORED; adds the input labels [B L]."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def build(self, logits):
        graph = self.base.graph
        node = onnx.helper.make_node
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, self.vocabulary]), "rows.shape"))
        graph.input.append(onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.INT64, ["tokens"]))
        graph.node.append(node("Reshape", [logits, "rows.shape"], ["rows"], "rows"))
        loss = ["loss", "log_probabilities"]
        graph.node.append(node("SoftmaxCrossEntropyLoss", ["rows", "labels"], loss, "loss", ignore_index=IGNORED))
        return "loss"


def trained(model):
    """The names of all weights: f32 initializers with more than one element."""
    f32 = onnx.TensorProto.FLOAT
    return [x.name for x in model.graph.initializer if x.data_type == f32 and np.prod(x.dims) > 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()

    model = onnx.load(args.model)
    vocabulary = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        artifacts.generate_artifacts(
            model,
            requires_grad=trained(model),
            loss=MaskedLoss(vocabulary),
            optimizer=artifacts.OptimType.AdamW,
            artifact_directory=folder,
        )
        del model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        state = CheckpointState.load_checkpoint(folder / "checkpoint")
        module = Module(folder / "training_model.onnx", state, device="cpu", session_options=options)
        optimizer = Optimizer(folder / "optimizer_model.onnx", module)
        optimizer.set_learning_rate(1e-5)

    draws = np.random.default_rng(0)
    size = (args.batch, args.length)
    times, losses, began = [], [], time.monotonic()
    module.train()
    while len(times) < 5 or time.monotonic() - began < args.seconds:
        ids = draws.integers(0, vocabulary - 1, size)
        masked = draws.random(size) < 0.5
        inputs = np.where(masked, vocabulary - 1, ids)
        start = time.monotonic()
        losses.append(float(module(inputs, np.where(masked, ids, IGNORED).reshape(-1))))
        optimizer.step()
        module.lazy_reset_grad()
        times.append(time.monotonic() - start)
    print(json.dumps(dict(
        who=f"onnxruntime-training {onnxruntime.__version__}", threads=args.threads, batch=args.batch, length=args.length,
        step_s=round(statistics.median(times[1:]), 4), step_min_s=round(min(times[1:]), 4), steps=len(times) - 1,
        first_loss=round(losses[0], 4), last_loss=round(losses[-1], 4),
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )))


if __name__ == "__main__":
    main()
