"""Runs exports through the tools that people run them through, and trains what comes out.

    python respelled.py FILE.onnx .. [--tools NAME ..] [--mask-id 63] [--weftc target/release/weftc]

Each tool rewrites each file.  weftc compiles the result (with adapters where it has weights in few bits), ONNX Runtime's own
Python package runs one step of SFT, and three things are compared: the loss with that of the rewritten model's own logits,
each weight's gradient with a central difference along it, and the held-out loss at the end of a short run with that of the
model which the run left, compiled again.  Prints a line a file and tool, and a table.  The models' vocabulary must hold ids 3
to MASK and their length 14 tokens.  Needs what architectures.py needs, and onnxsim, onnxslim, onnxconverter-common.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import subprocess
import tempfile
import warnings

import numpy as np
import onnx
import onnxruntime
from architectures import short, silence
from onnx import numpy_helper

LEVELS = onnxruntime.GraphOptimizationLevel
HEAD, LENGTH = 4, 14


def optimised(level):
    def tool(source, to):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.optimized_model_filepath = level, str(to)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return tool


def fused(kind, half=False):
    def tool(source, to):
        from onnxruntime.transformers import optimizer
        model = optimizer.optimize_model(str(source), model_type=kind, opt_level=0)
        if half:
            model.convert_float_to_float16(keep_io_types=True)
        model.save_model_to_file(str(to))
    return tool


def few_bits(bits, symmetric):
    def tool(source, to):
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=bits, block_size=32, is_symmetric=symmetric)
        quantizer.process()
        quantizer.model.save_model_to_file(str(to), False)
    return tool


def saved(change):
    """A tool that turns a model into another."""
    return lambda source, to: onnx.save(change(onnx.load(source)), to)


def converted(version):
    from onnx import version_converter
    return saved(lambda model: version_converter.convert_version(model, version))


def simplified(model):
    import onnxsim
    return onnxsim.simplify(model)[0]


def slimmed(model):
    import onnxslim
    return onnxslim.slim(model)


def folded(model):
    import onnxscript.optimizer
    return onnxscript.optimizer.optimize(model)


def rewritten(source, to):
    import onnx_ir
    from onnxscript.rewriter import ort_fusions
    model = onnx_ir.load(source)
    result = ort_fusions.optimize_for_ort(model)
    onnx_ir.save(result[0] if isinstance(result, tuple) else model, to)


def halved(model):
    from onnxconverter_common import float16
    return float16.convert_float_to_float16(model, keep_io_types=True)


TOOLS = {
    "ONNX Runtime, basic": optimised(LEVELS.ORT_ENABLE_BASIC),
    "ONNX Runtime, extended": optimised(LEVELS.ORT_ENABLE_EXTENDED),
    "ONNX Runtime, all": optimised(LEVELS.ORT_ENABLE_ALL),
    "transformers.optimizer bert": fused("bert"),
    "transformers.optimizer gpt2": fused("gpt2"),
    "transformers.optimizer bert, f16": fused("bert", half=True),
    "onnxscript optimizer": saved(folded),
    "onnxscript ort_fusions": rewritten,
    "onnxsim": saved(simplified),
    "onnxslim": saved(slimmed),
    "opset 21": converted(21),
    "opset 24": converted(24),
    "onnxconverter f16": saved(halved),
    "MatMulNBits 4, zero points": few_bits(4, False),
    "MatMulNBits 8, zero points": few_bits(8, False),
    "MatMulNBits 4": few_bits(4, True),
    "MatMulNBits 8": few_bits(8, True),
}


def weftc(args, *words):
    done = subprocess.run([args.weftc, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"refused: {short(done.stderr)}")


def fed(session, ids):
    kinds = {i.name: np.int32 if "int32" in i.type else np.int64 for i in session.get_inputs()}
    values = dict(input_ids=ids, attention_mask=np.ones_like(ids))
    return {name: values[name].astype(kind) for name, kind in kinds.items() if name in values}


def step(args, model, how, target):
    """How far the loss and the worst gradient are off."""
    train = model.with_suffix(".train.onnx")
    weftc(args, "compile", model, "--mask-id", args.mask_id, "--method", "sft", "--target", target, "-o", train, "-q", *how)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(train).graph.initializer
               if t.data_type == onnx.TensorProto.FLOAT}
    session = onnxruntime.InferenceSession(str(train), providers=["CPUExecutionProvider"])
    draw, answers = np.random.default_rng(0), np.ones((3, LENGTH), bool)
    answers[:, :HEAD] = False
    ids = draw.integers(3, args.mask_id, answers.shape)
    feed = fed(session, ids) | dict(answer_mask=answers, t=np.array([0.3, 0.6, 0.9], np.float32),
                                    u=draw.random(answers.shape).astype(np.float32))
    out = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS.ORT_DISABLE_ALL
    source = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    logits = source.run(["logits"], fed(source, np.where(out["mask"], args.mask_id, ids)))[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(logits, ids[..., None], -1)[..., 0]
    loss = (np.where(out["mask"], each / np.maximum(out["mask_rate"], 1e-9), 0).sum(1) / answers.sum(1)).sum()

    worst = 0.0
    for name in [n.removeprefix("grad/") for n in out if n.startswith("grad/")]:
        gradient, weight = out["grad/" + name].astype(np.float64), weights[name].astype(np.float64)
        norm = np.sqrt((gradient ** 2).sum())
        if norm < 1e-3:
            continue
        def difference(far):
            far *= max(1e-2, np.sqrt((weight ** 2).sum()))
            moved = [(weight + sign * far * gradient / norm).astype(np.float32) for sign in (1, -1)]
            ahead, behind = (float(session.run(["loss_sum"], {**feed, name: w})[0]) for w in moved)
            return abs((ahead - behind) / (2 * far) - norm) / norm
        # Steps too long for what curves, and too short for f32.
        worst = max(worst, min(difference(far) for far in (3e-2, 1e-2, 3e-3)))
    return abs(loss - out["loss_sum"]) / abs(loss), worst


def round_trip(args, model, how, folder):
    """How far the model that a run leaves is from what it trained."""
    data = folder / "data.jsonl"
    draw = np.random.default_rng(1)
    rows = ({"input_ids": draw.integers(3, args.mask_id, 12).tolist(), "prompt_len": 3} for _ in range(16))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for source, steps, rate, more in ((model, 6, 0.01, how), (folder / "run0/model.onnx", 1, 0, [])):
        out, train = folder / f"run{len(losses)}", folder / "train.onnx"
        weftc(args, "compile", source, "--mask-id", args.mask_id, "-o", train, "-q", *more)
        weftc(args, "run", train, "--data", data, "--eval-data", data, "--steps", steps, "--batch-size", 4, "--lr", rate,
              "--weight-decay", 0, "--out", out, "--quiet")
        told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["eval_loss"] for row in told if "eval_loss" in row][-1])
    return abs(losses[1] - losses[0]) / abs(losses[0])


def tried(args, tool, source, folder):
    model = folder / "model.onnx"
    try:
        with silence():
            TOOLS[tool](source, model)
    except Exception:
        return "the tool fails", None
    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        session.run(None, fed(session, np.full((3, LENGTH), 5)))
    except Exception:
        return "ONNX Runtime refuses it", None
    how = ["--trainable", "lora", "--lora-targets", "all-linear"] if "NBits" in tool else []
    try:
        loss, gradient = (max(two) for two in zip(*(step(args, model, how, target) for target in ("portable", "cpu"))))
        return "trains", (loss, gradient, round_trip(args, model, how, folder))
    except Exception as error:
        return short(str(error)), None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--mask-id", type=int, default=63)
    parser.add_argument("--weftc", default="target/release/weftc")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    onnxruntime.set_default_logger_severity(4)
    table = []
    for tool in args.tools:
        ends, worst = collections.Counter(), np.zeros(3)
        for source in args.files:
            with tempfile.TemporaryDirectory() as scratch:
                end, far = tried(args, tool, source, pathlib.Path(scratch))
            ends["refused" if end not in ("trains", "the tool fails", "ONNX Runtime refuses it") else end] += 1
            worst = np.maximum(worst, far) if far else worst
            print(source.stem, "|", tool, "|", end, "|", " ".join(f"{x:.0e}" for x in far or ()), flush=True)
        cells = [ends["trains"], ends["refused"], ends["the tool fails"], ends["ONNX Runtime refuses it"]]
        table.append(f"| {tool} | {' | '.join(map(str, cells))} | {' | '.join(f'{x:.0e}' for x in worst)} |")
    print("| tool | trains | refused | the tool fails | not run by ONNX Runtime | loss | gradient | round trip |\n|"
          + "---|" * 8, *table, sep="\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
