"""Runs `weftc bench` and a PyTorch benchmark in turns, so that a busy spell of the machine hits both.

Called by compare.sh.  Every line of the .jsonl is one process as it reported itself; the table takes the
median over rounds.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE, LENGTH = "small", 256
MODES = {"full": "every weight", "lora": "LoRA of rank 8 on q, k, v"}
TORCH_MODE = {"full": "full", "lora": "lora8"}
TORCH = [("eager", "stock"), ("eager", "intel"), ("compile", "stock"), ("compile", "intel")]
NAMES = {"stock": "as installed", "intel": "MKL tuned"}


def json_lines(command, **options):
    """The JSON objects that a command prints, one a line; its other output is left out."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return found


def weftc(args, threads, mode):
    command = [ROOT / "target/release/weftc", "bench", args.model, "--mask-id", "4095", "--batch", str(args.batch),
               "--length", str(LENGTH), "--threads", str(threads), "--trainable", mode, "--json"]
    line = json_lines(command, cwd=ROOT)[-1]
    return dict(line, who="weftc")


def torch(args, folder, threads, mode, implementation, mkl):
    only = json.dumps(dict(what="step", model=SIZE, B=args.batch, mode=TORCH_MODE[mode], impl=implementation, threads=threads))[1:-1]
    command = [sys.executable, "bench_torch.py", "--threads", str(threads), "--mkl", mkl, "--only", only, "--out", os.devnull]
    line = json_lines(command + ["--quick"] * args.quick, cwd=folder)[-1]
    if "wall" not in line:
        sys.exit(f"bench_torch.py: {line.get('error')}")
    return dict(who=f"PyTorch {implementation}, {NAMES[mkl]}", threads=threads, trainable=mode, batch=args.batch,
                length=LENGTH, step_s=line["wall"], cpu_s=line["cpu"], steps=line["steps"], tokens_per_s=line["tok_s"], peak_rss_mb=line["peak_rss_mb"],
                load=line["load"])


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(lines, date):
    import torch
    groups = {}
    for line in lines:
        groups.setdefault((line["trainable"], line["threads"], line["who"]), []).append(line)
    middle = lambda group, key: statistics.median(line[key] for line in group)
    yield f"# {date}\n"
    yield (f"{processor()}, {os.cpu_count()} cores, PyTorch {torch.__version__}, f32. One step: entropy pass, forward, "
           f"backward, clipping, AdamW, on 31.5 M parameters, {lines[0]['batch']} sequences of {LENGTH} tokens. "
           f"Median of {max(map(len, groups.values()))} rounds in turns.\n")
    yield "| trained | | threads | s/step | CPU s/step | tokens/s | peak MB | load |\n|---|---|---|---|---|---|---|---|"
    for (mode, threads, who), group in sorted(groups.items(), key=lambda g: (*g[0][:2], middle(g[1], "step_s"))):
        yield (f"| {MODES[mode]} | {who} | {threads} | {middle(group, 'step_s'):.3f} | {middle(group, 'cpu_s'):.3f} "
               f"| {middle(group, 'tokens_per_s'):.0f} | {middle(group, 'peak_rss_mb'):.0f} | {middle(group, 'load'):.1f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--torch-bench", type=pathlib.Path, default=ROOT.parent / "shared/reference")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--modes", default="full,lora")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    # The benchmark builds a small library beside itself: let it do that in a copy.
    folder = ROOT / "target/bench/torch"
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("bench_torch.py", "models.py", "reference.py"):
        shutil.copy(args.torch_bench / file, folder)
    lines = []
    date = datetime.date.today().isoformat()
    results = ROOT / "benches/results"
    with open(results / f"{date}.jsonl", "w") as log:
        for round_number in range(args.rounds):
            for threads, mode in itertools.product(map(int, args.threads.split(",")), args.modes.split(",")):
                runs = [lambda: weftc(args, threads, mode)]
                runs += [lambda i=i, m=m: torch(args, folder, threads, mode, i, m) for i, m in TORCH]
                for run in runs:
                    lines.append(dict(run(), round=round_number))
                    print(json.dumps(lines[-1]), file=log, flush=True)
                    print(f"{mode}, {lines[-1]['who']}, {threads} threads: {lines[-1]['step_s']:.3f} s/step", flush=True)
    text = "\n".join(table(lines, date)) + "\n"
    (results / f"{date}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
