#!/usr/bin/env python3
"""Compares the training step of two commits: `weftc bench` of both, in turns, so that a busy spell hits both.

    benches/commits.py BASE HEAD [--rounds 5] [FLAGS OF weftc bench ..]
    benches/commits.py main HEAD models/sudoku.onnx --mask-id 15 --threads 2 --trainable lora

Each commit is built in a worktree of its own under target/commits, where the programs stay for the next time.  The
ratio is HEAD's time over BASE's of the same round: below 1 HEAD is faster.  The spread is that of the rounds; where it
spans 1, nothing was found.  Both commits must have `weftc bench`.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target/commits"
FIGURES = {"step_s": "s/step", "cpu_s": "CPU s/step", "peak_rss_mb": "peak MB"}


def git(*args):
    return subprocess.run(["git", "-C", ROOT, *args], check=True, capture_output=True, text=True).stdout.strip()


def program(commit):
    """The program of a commit, built where it is not there yet."""
    folder = FOLDER / commit
    if not (folder / "weftc").exists():
        source = FOLDER / "source"
        if not source.exists():
            git("worktree", "add", "--detach", str(source), commit)
        subprocess.run(["git", "-C", source, "checkout", "--quiet", "--detach", commit], check=True)
        environment = dict(os.environ, CARGO_TARGET_DIR=str(FOLDER / "build"))
        subprocess.run(["cargo", "build", "--quiet", "--release", "--bin", "weftc"], cwd=source, env=environment, check=True)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(FOLDER / "build/release/weftc", folder / "weftc")
    return folder / "weftc"


def measure(weftc, flags):
    done = subprocess.run([weftc, "bench", *flags, "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{weftc} bench failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("base")
    parser.add_argument("head")
    parser.add_argument("--rounds", type=int, default=5)
    args, flags = parser.parse_known_args()
    commits = [git("rev-parse", "--verify", f"{name}^{{commit}}") for name in (args.base, args.head)]
    programs = [program(commit) for commit in commits]
    found = []
    for number in range(args.rounds):
        # Who begins takes turns too.
        pair = {}
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            pair[which] = measure(programs[which], flags)
        found.append((pair[0], pair[1]))
    print(f"base {commits[0][:12]}, head {commits[1][:12]}: {args.rounds} rounds of weftc bench {' '.join(flags)}")
    print(f"{'':<12} {'base':>10} {'head':>10} {'ratio':>8}   spread")
    for name, title in FIGURES.items():
        pairs = [(b[name], h[name]) for b, h in found if b[name] and h[name]]
        if pairs:
            base, head = (statistics.median(side) for side in zip(*pairs))
            ratios = sorted(h / b for b, h in pairs)
            print(f"{title:<12} {base:>10.4g} {head:>10.4g} {statistics.median(ratios):>8.3f}   {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
