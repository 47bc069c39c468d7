"""Writes tests/python/decoding.json: what LLaDA's and Dream's generation do with fixed logits, step by step.

    python tests/python/decoding.py > tests/python/decoding.json

The two loops are written after the published ones (ML-GSAI/LLaDA generate.py; Dream's generation_utils.py), one
row at a time, with PyTorch's softmax, topk, sort and linspace. Random numbers come from SplitMix64 in a fixed
order, so that the other side can draw the same ones: tokens of the open positions first, then positions.
Needs torch.
"""

import json
import math

import torch

VOCAB, MASK = 12, 11
WORD = (1 << 64) - 1


class SplitMix64:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & WORD
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        return z ^ (z >> 31)

    def uniform(self):
        return ((self.next() >> 12) + 0.5) / (1 << 52)


def logits(tokens):
    """[len, VOCAB]: multiples of 1/64 in [0, 8) that depend on every token; the mask is out of reach."""
    total = sum((k + 1) * (t + 3) for k, t in enumerate(tokens))
    z = torch.tensor(
        [[((p * 7919 + v * 10473 + total * 31 + (p + 1) * (v + 1) * 613) % 512) / 64 for v in range(VOCAB)]
         for p in range(len(tokens))], dtype=torch.float64)
    z[:, MASK] = -1e9
    return z


def shifted(z, shift):
    return torch.cat([z[:1], z[:-1]]) if shift else z


def llada(row, rng, steps, block, temperature, remasking, shift=0):
    x, prompt, history = list(row), row.index(MASK), []
    for start in range(prompt, len(row), block):
        inside = [p for p in range(start, min(start + block, len(row))) if x[p] == MASK]
        base, remainder = divmod(len(inside), steps)
        for i in range(steps):
            number = base + (1 if i < remainder else 0)
            open_ = [p for p in inside if x[p] == MASK]
            if not open_:
                break
            z = shifted(logits(x), shift)
            x0, confidence = {}, {}
            for p in open_:
                noisy = z[p]
                if temperature > 0:
                    u = torch.tensor([rng.uniform() for _ in range(VOCAB - 1)] + [0.5], dtype=torch.float64)
                    noisy = z[p].exp() / (-torch.log(u)) ** temperature
                x0[p] = int(torch.argmax(noisy))
                confidence[p] = float(torch.softmax(z[p], -1)[x0[p]])
            if remasking == "random":
                confidence = {p: rng.uniform() for p in open_}
            scores = torch.tensor([confidence[p] for p in open_], dtype=torch.float64)
            for k in torch.topk(scores, number)[1]:
                x[open_[k]] = x0[open_[k]]
            history.append(list(x))
    return history


def filtered(z, top_p, top_k):
    if top_p is not None and top_p < 1:
        ordered, index = torch.sort(z, descending=True)
        remove = torch.cumsum(torch.softmax(ordered, -1), -1) > top_p
        remove[1:] = remove[:-1].clone()
        remove[0] = False
        z = z.clone()
        z[index[remove]] = -math.inf
    if top_k is not None:
        z = z.masked_fill(z < torch.topk(z, top_k)[0][-1], -math.inf)
    return z


def dream(row, rng, steps, alg, temperature=0.0, top_p=None, top_k=None, alg_temp=None, eps=1e-3, shift=1):
    x, history = list(row), []
    times = torch.linspace(1, eps, steps + 1)
    for i in range(steps):
        open_ = [p for p in range(len(x)) if x[p] == MASK]
        if not open_:
            break
        z = shifted(logits(x), shift)
        t, s = times[i], times[i + 1]
        x0, confidence = [], []
        for p in open_:
            probs = torch.softmax(filtered(z[p] / temperature if temperature > 0 else z[p], top_p, top_k), -1)
            if temperature > 0:
                # The inverse of the distribution function, for a draw that both sides can make.
                token = int(torch.searchsorted(torch.cumsum(probs, -1), torch.tensor(rng.uniform()).double(), right=True))
            else:
                token = int(torch.argmax(probs))
            x0.append(token)
            if alg == "topk_margin":
                first, second = torch.sort(probs, descending=True)[0][:2]
                confidence.append(float(first - second))
            elif alg == "entropy":
                confidence.append(float((probs * torch.log(probs + 1e-10)).sum()))
            else:
                confidence.append(float(probs[token]))
        if alg == "origin":
            share = 1 - s / t if i < steps - 1 else 1
            chosen = [k for k in range(len(open_)) if rng.uniform() < share]
        else:
            number = int(torch.tensor(len(open_)) * (1 - s / t)) if i < steps - 1 else len(open_)
            scores = torch.tensor(confidence, dtype=torch.float64)
            if alg_temp:
                # torch.multinomial without replacement: the largest of p over exponential noise.
                noise = torch.tensor([-math.log(rng.uniform()) for _ in open_], dtype=torch.float64)
                scores = torch.softmax(scores / alg_temp, -1) / noise
            chosen = torch.topk(scores, number)[1].tolist()
        for k in chosen:
            x[open_[k]] = x0[k]
        history.append(list(x))
    return history


def cases():
    prompt = [3, 1, 4, 1, 5]
    for length, steps, block in [(12, 12, 12), (12, 4, 12), (16, 2, 4), (10, 3, 5), (7, 20, 7)]:
        for temperature in [0.0, 0.5, 1.0]:
            for remasking in ["low-confidence", "random"]:
                yield {"family": "llada", "row": prompt + [MASK] * length, "steps": steps, "block": block,
                       "temperature": temperature, "remasking": remasking}
    for length, steps in [(12, 12), (20, 5), (33, 16), (64, 7), (5, 9)]:
        for alg in ["origin", "maskgit_plus", "topk_margin", "entropy"]:
            for extra in [{}, {"temperature": 0.7}, {"temperature": 1.0, "top_p": 0.9},
                          {"temperature": 0.4, "top_k": 3}, {"temperature": 0.2, "top_p": 0.95, "alg_temp": 0.3},
                          {"alg_temp": 0.1}]:
                yield {"family": "dream", "row": prompt + [MASK] * length, "steps": steps, "alg": alg, **extra}


def main():
    out = []
    for seed, case in enumerate(cases()):
        stream = SplitMix64(SplitMix64(seed).next())
        arguments = {k: v for k, v in case.items() if k not in ("family", "row")}
        run = llada if case["family"] == "llada" else dream
        out.append({**case, "seed": seed, "history": run(case["row"], stream, **arguments)})
    counts = [{"steps": n, "times": [float(t) for t in torch.linspace(1, 1e-3, n + 1)]} for n in [1, 2, 3, 7, 64, 511]]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in out)
    print('{"cases": [\n' + lines + '\n],\n"counts": ' + json.dumps(counts, separators=(",", ":")) + "}")


main()
