"""Exports small mixtures of experts that select their tokens as published code does.

    pip install torch onnx onnxscript numpy safetensors
    python experts.py [FOLDER]

Names are experts_SPELLING_EXPORTER.onnx; weights are drawn from a seed.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from attention import Groups
from export import seeded
from spellings import export

VOCAB, WIDTH, HIDDEN, EXPERTS, CHOSEN, GROUPS, LENGTH = 64, 32, 16, 8, 2, 4, 12


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))


class Loop(Experts):
    """Each expert finds its tokens in a table of choices and adds to them; shares by softmax."""

    def forward(self, x):
        tokens = x.reshape(-1, WIDTH)
        shares, chosen = self.router(tokens).softmax(-1).topk(CHOSEN, dim=-1)
        table = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        y = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            place, token = torch.where(table[k])
            y.index_add_(0, token, expert(tokens[token]) * shares[token, place, None])
        return y.reshape(x.shape)


class Put(Experts):
    """Each expert puts its results where a mask says; shares by sigmoid, chosen from the best groups of experts after
    offsets that balance them; one expert sees every token."""

    def __init__(self):
        super().__init__()
        self.shared = Expert()
        self.register_buffer("offset_bias", torch.linspace(-0.1, 0.1, EXPERTS))

    def forward(self, x):
        tokens = x.reshape(-1, WIDTH)
        shares = self.router(tokens).sigmoid()
        scores = shares + self.offset_bias
        groups = scores.view(-1, GROUPS, EXPERTS // GROUPS).topk(2, dim=-1)[0].sum(-1)
        best = torch.zeros_like(groups).scatter_(1, groups.topk(2, dim=-1)[1], 1)
        best = best[..., None].expand(-1, GROUPS, EXPERTS // GROUPS).reshape(-1, EXPERTS)
        chosen = scores.masked_fill(best == 0, float("-inf")).topk(CHOSEN, dim=-1)[1]
        shares = shares.gather(1, chosen)
        shares = shares / (shares.sum(-1, keepdim=True) + 1e-20)
        repeated, flat = tokens.repeat_interleave(CHOSEN, dim=0), chosen.view(-1)
        y = torch.empty_like(repeated)
        for k, expert in enumerate(self.experts):
            y[flat == k] = expert(repeated[flat == k])
        y = (y.view(-1, CHOSEN, WIDTH) * shares[..., None]).sum(1)
        return y.reshape(x.shape) + self.shared(x)


class Stacked(nn.Module):
    """Weights of all experts in two tensors; each token looks up its experts' and multiplies them. `columns`: whether
    tokens are multiplied as columns, by matrices of [out, in], or as rows by [in, out]."""

    def __init__(self, columns):
        super().__init__()
        self.columns, self.router = columns, nn.Linear(WIDTH, EXPERTS, bias=False)
        turn = (lambda *shape: shape) if columns else (lambda a, b: (b, a))
        self.gate_up = nn.Parameter(torch.zeros(EXPERTS, *turn(2 * HIDDEN, WIDTH)))
        self.down = nn.Parameter(torch.zeros(EXPERTS, *turn(WIDTH, HIDDEN)))

    def multiply(self, weight, x):
        return (weight @ x[..., None])[..., 0] if self.columns else (x[..., None, :] @ weight)[..., 0, :]

    def forward(self, x):
        tokens = x.reshape(-1, WIDTH)
        shares, chosen = self.router(tokens).softmax(-1).topk(CHOSEN, dim=-1)
        repeated, flat = tokens.repeat_interleave(CHOSEN, dim=0), chosen.reshape(-1)
        gate, up = self.multiply(self.gate_up[flat], repeated).chunk(2, dim=-1)
        y = self.multiply(self.down[flat], F.silu(gate) * up) * shares.reshape(-1, 1)
        return y.reshape(-1, CHOSEN, WIDTH).sum(1).reshape(x.shape)


class Model(nn.Module):
    """An embedding, its mean over the sequence mixed in, and experts."""

    def __init__(self, experts):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.norm, self.experts = nn.LayerNorm(WIDTH), experts
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        x = x + x.mean(1, keepdim=True)
        return self.head(x + self.experts(self.norm(x)))


class Block(nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.experts = Groups(), experts

    def forward(self, x):
        x = x + self.attention(self.before(x))
        return x + self.experts(self.behind(x))


class Blocks(nn.Module):
    """Attention and experts, one spelling a block."""

    def __init__(self, *spellings):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block(experts) for experts in spellings)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


MODELS = [
    ("experts_blocks_dynamo18", lambda: Blocks(Loop(), Put())),
    ("experts_loop_dynamo18", lambda: Model(Loop())),
    ("experts_put_dynamo18", lambda: Model(Put())),
    ("experts_put_legacy17", lambda: Model(Put())),
    ("experts_stacked_dynamo18", lambda: Blocks(Stacked(True), Stacked(False))),
]


def main(folder):
    for name, model in MODELS:
        export(seeded(model(), seed=0).eval(), folder, name, LENGTH)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
