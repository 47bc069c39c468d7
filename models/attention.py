"""Exports small models that spell attention as published code does.

    pip install torch onnx onnxscript numpy safetensors
    python attention.py [FOLDER]

Names are attention_SPELLING_EXPORTER.onnx; weights are drawn from a seed.
"""

import math
import sys
from pathlib import Path

import torch
from torch import nn

from export import seeded
from spellings import export

VOCAB, WIDTH, HEADS, LENGTH = 64, 32, 4, 12
HEAD = WIDTH // HEADS


class LayerNorm(nn.Module):
    """By hand, the weight first."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) + self.bias


class Module(nn.Module):
    """PyTorch's own, which puts tokens before sequences; `weights`: whether it is asked for its probabilities."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.weights)[0]


class Projected(nn.Module):
    """`keys` heads of keys and values."""

    def __init__(self, keys):
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, keys * HEAD, bias=False) for _ in range(2))
        angles = torch.arange(LENGTH).float()[:, None] / 10000 ** (torch.arange(HEAD // 2).float() * 2 / HEAD)
        self.register_buffer("angles", angles, persistent=False)

    def heads(self, x):
        batch, length = x.shape[:2]
        q, k, v = (f(x).view(batch, length, -1, HEAD).transpose(1, 2) for f in (self.q, self.k, self.v))
        cos, sin = self.angles[:length].cos(), self.angles[:length].sin()
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin), v

    def forward(self, x):
        y = self.mix(*self.heads(x))
        return self.o(y.reshape(*y.shape[:1], HEADS, -1, HEAD).transpose(1, 2).reshape(x.shape))


class Groups(Projected):
    """Two heads of keys for four of queries, which are multiplied by groups; rotated the other way round."""

    def __init__(self):
        super().__init__(2)

    def rotate(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos + b * sin, b * cos - a * sin), -1)

    def mix(self, q, k, v):
        q = q.unflatten(1, (2, 2))
        scores = q @ k[:, :, None].transpose(-1, -2) / math.sqrt(HEAD)
        return scores.softmax(-1) @ v[:, :, None]


class Einsum(Groups):
    """The same by index, with a softmax by hand."""

    def mix(self, q, k, v):
        scores = torch.einsum("bkgld,bkmd->bkglm", q.unflatten(1, (2, 2)), k) / math.sqrt(HEAD)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        return torch.einsum("bkglm,bkmd->bkgld", weights / weights.sum(-1, keepdim=True), v)


class Shared(Projected):
    """One head of keys for all; pairs that are every second element."""

    def __init__(self):
        super().__init__(1)

    def rotate(self, x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def mix(self, q, k, v):
        return (q @ k.transpose(-1, -2) * HEAD**-0.5).softmax(-1) @ v


class Filled(Projected):
    """Neighbours alone, by scores that are put to minus infinity; queries are scaled before they are rotated."""

    def __init__(self):
        super().__init__(HEADS)

    def rotate(self, x, cos, sin):
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        return x * cos + torch.cat((x[..., HEAD // 2 :], -x[..., : HEAD // 2]), -1) * sin

    def heads(self, x):
        q, k, v = super().heads(x)
        return q * HEAD**-0.5, k, v

    def mix(self, q, k, v):
        places = torch.arange(q.shape[2])
        far = (places[:, None] - places[None]).abs() > 3
        return (q @ k.transpose(-1, -2)).masked_fill(far, float("-inf")).softmax(-1) @ v


class Model(nn.Module):
    """One bidirectional block without feed-forward."""

    def __init__(self, attention):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.norm, self.last, self.attention = LayerNorm(), LayerNorm(), attention
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.head(self.last(x + self.attention(self.norm(x))))


MODELS = [
    ("attention_module_dynamo18", lambda: Module(False)),
    ("attention_weights_dynamo18", lambda: Module(True)),
    ("attention_groups_dynamo18", Groups),
    ("attention_einsum_dynamo18", Einsum),
    ("attention_shared_legacy17", Shared),
    ("attention_filled_dynamo18", Filled),
]


def main(folder):
    for name, attention in MODELS:
        export(seeded(Model(attention()), seed=0).eval(), folder, name, LENGTH)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
