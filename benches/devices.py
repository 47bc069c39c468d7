"""Runs exports on a GPU beside the CPU.

    python devices.py FILE.onnx .. [--mask-id 63] [--lr 1e-3] [--jobs 8] [--weftc target/release/weftc] [-- COMPILE FLAGS ..]

Each model is compiled for the CPU in f32 and for a GPU in f32, bf16 and f16, and trained for four steps of WeFT from the same
seed.  Prints a line a file: how far the loss of the first step and the held-out loss behind the last are from the CPU's, or
what refused; and at the end the largest of them.  In f16 the first steps may be left out while the loss scale is found, and
the second number says nothing.  Needs Python alone.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import subprocess
import sys
import tempfile

RUNS = {"cpu": ("cpu", "f32"), "f32": ("cuda", "f32"), "bf16": ("cuda", "bf16"), "f16": ("cuda", "f16")}
ON_GPU = [name for name in RUNS if name != "cpu"]


def weftc(args, *words):
    done = subprocess.run([args.weftc, *map(str, words)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[:300] or f"exit code {done.returncode}")


def losses_of(args, source, data, folder, how):
    """The loss of the first step, and the held-out loss behind the last."""
    device, compute = how
    train, out = folder / f"{device}-{compute}.onnx", folder / f"{device}-{compute}"
    weftc(args, "compile", source, "--mask-id", args.mask_id, "--target", device, "--compute", compute, "-o", train, "-q",
          *args.flags)
    weftc(args, "run", train, "--data", data, "--eval-data", data, "--steps", 4, "--batch-size", 4, "--lr", args.lr,
          "--device", device, "--threads", 1, "--out", out, "--quiet")
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return steps[0]["loss"], steps[-1]["eval_loss"]


def compare(args, source):
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        data, draw = folder / "data.jsonl", random.Random(1)
        rows = ({"input_ids": [draw.randrange(3, args.mask_id) for _ in range(12)], "prompt_len": 3} for _ in range(16))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        losses, refused = {}, []
        for name, how in RUNS.items():
            try:
                losses[name] = losses_of(args, source, data, folder, how)
            except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
                refused.append(f"{name}: {error}")
        if refused:
            return "; ".join(refused), None
        far = [abs(ours - cpu) / abs(cpu) for name in ON_GPU for ours, cpu in zip(losses[name], losses["cpu"])]
        return " ".join(f"{x:.0e}" for x in far), far


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--mask-id", type=int, default=63)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--weftc", default="target/release/weftc")
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:at])
    args.flags = words[at + 1:]
    worst, failed = [0.0] * 2 * len(ON_GPU), 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for source, (told, far) in zip(args.files, pool.map(lambda source: compare(args, source), args.files)):
            print(source.stem, "|", told, flush=True)
            failed += far is None
            worst = [max(two) for two in zip(worst, far or worst)]
    print(f"{len(args.files) - failed} of {len(args.files)} ran; first loss, held-out loss in {', '.join(ON_GPU)}:",
          *(f"{x:.0e}" for x in worst))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
