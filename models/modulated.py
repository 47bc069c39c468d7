"""Exports a small diffusion transformer (DiT) over tokens, as models of MDLM's family are built.

    pip install torch onnx onnxscript numpy safetensors
    python modulated.py [FOLDER]

Names are modulated_EXPORTER.onnx; weights are drawn from a seed.  Norms have their weight behind two axes of size 1 and
are shifted and scaled by what is computed of a time, here 0; heads of q, k and v come out of one product.  The mask token
has a row of its own in the embedding and none in the head.  Modules lie in containers, and one is called by its
`forward`, so that TorchScript leaves both out of names.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from export import seeded
from spellings import export, halves

VOCAB, WIDTH, CONDITION, HEADS, LENGTH, LAYERS = 64, 16, 8, 2, 12, 2
HEAD = WIDTH // HEADS


class RowNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return F.layer_norm(x, (WIDTH,)) * self.weight[None, None, :]


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = RowNorm(), RowNorm()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(2 * WIDTH, WIDTH))
        self.modulation = nn.Linear(CONDITION, 6 * WIDTH)

    def forward(self, x, cos, sin, condition):
        batch, length = x.shape[:2]
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        y = self.qkv(modulate(self.norm1(x), shift, scale)).view(batch, length, 3, HEADS, HEAD)
        q, k, v = (part.transpose(1, 2) for part in y.unbind(2))
        y = F.scaled_dot_product_attention(halves(q, cos, sin), halves(k, cos, sin), v)
        x = x + gate * self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.parts = nn.ModuleDict({"embed": nn.Embedding(VOCAB + 1, WIDTH), "blocks": blocks, "norm": RowNorm()})
        self.time = nn.Sequential(nn.Linear(CONDITION, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION))
        self.parts["head"] = nn.Linear(WIDTH, VOCAB)
        angles = torch.arange(LENGTH).float()[:, None] / 10000 ** (torch.arange(HEAD // 2).float() * 2 / HEAD)
        self.register_buffer("c", angles.cos(), persistent=False)
        self.register_buffer("s", angles.sin(), persistent=False)

    def forward(self, tokens, time):
        length = tokens.shape[1]
        waves = time[:, None] * torch.arange(1, CONDITION // 2 + 1).float()
        condition = F.silu(self.time(torch.cat((waves.cos(), waves.sin()), -1)))
        x = self.parts["embed"](tokens)
        for block in self.parts["blocks"]:
            x = block(x, self.c[:length], self.s[:length], condition)
        return self.parts["head"](self.parts["norm"](x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, input_ids):
        return self.net.forward(input_ids, torch.zeros(input_ids.shape[0]))


def main(folder):
    for name in ("modulated_dynamo18", "modulated_legacy17"):
        export(seeded(Model(), seed=0).eval(), folder, name, LENGTH)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
