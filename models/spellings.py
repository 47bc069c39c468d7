"""Exports small models that spell rotary positions and norms as published code does.

    pip install torch onnx onnxscript numpy safetensors
    python spellings.py [FOLDER]

Names are rope_SPELLING_DTYPE_EXPORTER.onnx; weights are drawn from a seed. The rotation is spelled with
halves (GPT-NeoX), stacked pairs (RoFormer, DeepSeek), complex numbers (Llama 4) or alternating signs (GPT-J, Cohere);
norms of 16-bit models take their statistics in f32, and cast back before the weight or behind it.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from export import seeded, strip

VOCAB, WIDTH, HEADS, LENGTH = 64, 32, 2, 12
HEAD = WIDTH // HEADS


class RmsNorm(nn.Module):
    """`behind`: whether the weight multiplies what is cast back."""

    def __init__(self, behind):
        super().__init__()
        self.weight, self.behind = nn.Parameter(torch.ones(WIDTH)), behind

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype) if self.behind else (wide * self.weight.float()).to(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        return F.layer_norm(x.float(), (WIDTH,), self.weight.float(), self.bias.float(), 1e-5).to(x.dtype)


def halves(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def pairs(x, cos, sin):
    a, b = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x.dtype)


def complex_numbers(x, cos, sin):
    z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * torch.complex(cos, sin)
    return torch.view_as_real(z).flatten(-2).to(x.dtype)


def alternating(x, cos, sin):
    cos, sin = (t.repeat_interleave(2, -1).to(x.dtype) for t in (cos, sin))
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos + turned * sin


class Model(nn.Module):
    """One bidirectional block without feed-forward."""

    def __init__(self, rotate, norm):
        super().__init__()
        self.rotate = rotate
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.norm = norm
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        angles = torch.arange(LENGTH).float()[:, None] / 10000 ** (torch.arange(HEAD // 2).float() * 2 / HEAD)
        self.register_buffer("c", angles.cos(), persistent=False)
        self.register_buffer("s", angles.sin(), persistent=False)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        batch, length = input_ids.shape
        y = self.norm(x)
        q, k, v = (f(y).view(batch, length, HEADS, HEAD).transpose(1, 2) for f in (self.q, self.k, self.v))
        cos, sin = self.c[:length], self.s[:length]
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, WIDTH)
        return self.head(self.norm(x + self.o(y)))


MODELS = [
    ("rope_pairs_f32_dynamo18", pairs, RmsNorm(True), torch.float32),
    ("rope_pairs_bf16_legacy17", pairs, RmsNorm(False), torch.bfloat16),
    ("rope_alternating_f16_dynamo18", alternating, RmsNorm(True), torch.float16),
    ("rope_halves_f16_legacy17", halves, LayerNorm(), torch.float16),
    ("rope_complex_f32_dynamo18", complex_numbers, RmsNorm(True), torch.float32),
]


def export(model, folder, name, length):
    """Writes folder/name.onnx by the exporter and opset that end the name, for up to `length` tokens."""
    ids, path = torch.zeros(2, length, dtype=torch.int64), folder / f"{name}.onnx"
    common = {"input_names": ["input_ids"], "output_names": ["logits"]}
    if name.endswith("dynamo18"):
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=length)}
        torch.onnx.export(model, (ids,), path, dynamo=True, opset_version=18, external_data=False,
                          dynamic_shapes={"input_ids": dims}, verbose=False, **common)
    else:
        axes = {0: "batch", 1: "seq"}
        torch.onnx.export(model, (ids,), path, dynamo=False, opset_version=17,
                          dynamic_axes={"input_ids": axes, "logits": axes}, **common)
    strip(path)


def main(folder):
    for name, rotate, norm, dtype in MODELS:
        model = seeded(Model(rotate, norm), seed=0).to(dtype)
        model.c, model.s = model.c.float(), model.s.float()
        export(model, folder, name, LENGTH)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
