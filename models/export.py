"""Exports the models of this folder.

    python export.py [--only NAME] [--out FOLDER] [--dims D,LAYERS,HEADS,LEN,VOCAB]

Needs torch, onnx, onnxscript, numpy, safetensors.  Weights are drawn from a seed in the order of the
parameters' names.  --dims exports one more model, `custom.onnx`, of the given sizes (for benchmarks).
"""

import argparse
import pathlib
from dataclasses import dataclass

import onnx
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    vocab: int
    width: int
    layers: int
    heads: int
    length: int
    kv_heads: int = 0
    qkv_bias: bool = False
    tied: bool = False
    theta: float = 500_000.0
    eps: float = 1e-5
    native: bool = False  # spell norms and rotations as the operators of opset 23

    @property
    def head(self):
        return self.width // self.heads

    @property
    def keys(self):
        return self.kv_heads or self.heads


class Norm(nn.Module):
    """Divides by the root mean square."""

    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape.width))
        self.eps, self.native = shape.eps, shape.native

    def forward(self, x):
        if self.native:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, cos, sin, native):
    """Rotary position embedding, halves paired."""
    if native:
        return torch.onnx.ops.rotary_embedding(x, cos, sin)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


def attend(shape, q, k, v, cos, sin):
    """Bidirectional attention; [B, L, .] in and out.  Fewer keys than queries: each key serves a group."""
    batch, length, _ = q.shape
    split = lambda x: x.view(batch, length, -1, shape.head).transpose(1, 2)
    q, k, v = split(q), split(k), split(v)
    q, k = rotate(q, cos, sin, shape.native), rotate(k, cos, sin, shape.native)
    group = shape.heads // shape.keys
    if group > 1:
        wide = (batch, shape.keys, group, length, shape.head)
        spread = lambda x: x[:, :, None].expand(wide).reshape(batch, shape.heads, length, shape.head)
        k, v = spread(k), spread(v)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)


class Rotary(nn.Module):
    """The cosine and sine tables for the first positions."""

    def __init__(self, shape):
        super().__init__()
        frequency = shape.theta ** -(torch.arange(0, shape.head, 2).double() / shape.head)
        angle = torch.outer(torch.arange(shape.length).double(), frequency).float()
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.native = shape.native

    def forward(self, ids):
        batch, length = ids.shape
        cos, sin = self.cos[:length], self.sin[:length]
        if self.native:
            return cos[None].expand(batch, -1, -1), sin[None].expand(batch, -1, -1)
        return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


class LladaBlock(nn.Module):
    def __init__(self, shape):
        super().__init__()
        linear = lambda i, o, bias=False: nn.Linear(i, o, bias=bias)
        width, wide = shape.width, 3 * shape.width
        self.shape = shape
        self.attn_norm, self.ff_norm = Norm(shape), Norm(shape)
        self.q_proj = linear(width, width, shape.qkv_bias)
        self.k_proj = linear(width, shape.keys * shape.head, shape.qkv_bias)
        self.v_proj = linear(width, shape.keys * shape.head, shape.qkv_bias)
        self.attn_out = linear(width, width)
        self.ff_proj, self.up_proj, self.ff_out = linear(width, wide), linear(width, wide), linear(wide, width)

    def forward(self, x, cos, sin):
        h = self.attn_norm(x)
        x = x + self.attn_out(attend(self.shape, self.q_proj(h), self.k_proj(h), self.v_proj(h), cos, sin))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class Llada(nn.Module):
    """LLaDA's architecture and parameter names."""

    def __init__(self, shape):
        super().__init__()
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(shape.vocab, shape.width),
            blocks=nn.ModuleList(LladaBlock(shape) for _ in range(shape.layers)),
            ln_f=Norm(shape),
            ff_out=nn.Linear(shape.width, shape.vocab, bias=False)))
        self.rotary = Rotary(shape)

    def forward(self, input_ids):
        cos, sin = self.rotary(input_ids)
        x = self.transformer.wte(input_ids)
        for block in self.transformer.blocks:
            x = block(x, cos, sin)
        return self.transformer.ff_out(self.transformer.ln_f(x))


class QwenAttention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        keys = shape.keys * shape.head
        self.shape = shape
        self.q_proj = nn.Linear(shape.width, shape.width, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.width, keys, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.width, keys, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x, cos, sin):
        return self.o_proj(attend(self.shape, self.q_proj(x), self.k_proj(x), self.v_proj(x), cos, sin))


class QwenMlp(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.up_proj = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.down_proj = nn.Linear(3 * shape.width, shape.width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class QwenLayer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(shape), Norm(shape)
        self.self_attn, self.mlp = QwenAttention(shape), QwenMlp(shape)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Dream(nn.Module):
    """Dream's architecture (Qwen2 without the causal mask) and parameter names.  Row i predicts token i + 1."""

    def __init__(self, shape):
        super().__init__()
        self.model = nn.ModuleDict(dict(
            embed_tokens=nn.Embedding(shape.vocab, shape.width),
            layers=nn.ModuleList(QwenLayer(shape) for _ in range(shape.layers)),
            norm=Norm(shape)))
        self.lm_head = nn.Linear(shape.width, shape.vocab, bias=False)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rotary = Rotary(shape)

    def forward(self, input_ids):
        cos, sin = self.rotary(input_ids)
        x = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.model.norm(x))


def seeded(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))
            else:
                embedding = "embed" in name or "wte" in name
                p.copy_(noise if embedding else noise * p.shape[1] ** -0.5)
    return model.eval()


MICRO = dict(vocab=32, width=16, layers=2, length=32)
# file: (class, shape, exporter, opset)
MODELS = {
    "sudoku": (Llada, Shape(vocab=16, width=64, layers=3, heads=4, length=40), "dynamo", 18),
    "llada_micro_dynamo18": (Llada, Shape(**MICRO, heads=2), "dynamo", 18),
    "llada_micro_native23": (Llada, Shape(**MICRO, heads=2, native=True), "dynamo", 23),
    "llada_micro_legacy17": (Llada, Shape(**MICRO, heads=2), "torchscript", 17),
    "dream_micro_dynamo18": (
        Dream, Shape(**MICRO, heads=4, kv_heads=2, qkv_bias=True, tied=True, theta=1e6, eps=1e-6), "dynamo", 18),
}


def export(name, entry, folder):
    """Writes one model; returns sample inputs and outputs."""
    kind, shape, exporter, opset = entry
    model = seeded(kind(shape), seed=0)
    ids = torch.randint(0, shape.vocab - 1, (2, shape.length // 2), generator=torch.Generator().manual_seed(1))
    path = folder / f"{name}.onnx"
    names = dict(input_names=["input_ids"], output_names=["logits"], opset_version=opset)
    large = sum(p.numel() for p in model.parameters()) > 4_000_000
    with torch.no_grad():
        if exporter == "dynamo":
            batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq", max=shape.length)
            torch.onnx.export(model, (ids,), path, dynamo=True, dynamic_shapes={"input_ids": {0: batch, 1: seq}},
                              external_data=large, verbose=False, **names)
        else:
            axes = {0: "batch", 1: "seq"}
            torch.onnx.export(model, (ids,), path, dynamo=False, dynamic_axes=dict(input_ids=axes, logits=axes), **names)
        logits = model(ids)
    strip(path)
    return {f"{name}.input_ids": ids, f"{name}.logits": logits}


def strip(path):
    """Drops stack traces: they name the exporting machine's folders.  Weights in other files stay there."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        node.doc_string = ""
        kept = [p for p in node.metadata_props if p.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--dims")
    args = parser.parse_args()
    if args.dims:
        width, layers, heads, length, vocab = map(int, args.dims.split(","))
        models = {"custom": (Llada, Shape(vocab, width, layers, heads, length), "dynamo", 18)}
    else:
        models = {name: entry for name, entry in MODELS.items() if args.only in (None, name)}
    args.out.mkdir(parents=True, exist_ok=True)
    samples = {}
    for name, entry in models.items():
        samples.update(export(name, entry, args.out))
    if not args.only and not args.dims:
        save_file({k: v.contiguous() for k, v in samples.items()}, args.out / "samples.safetensors")


if __name__ == "__main__":
    main()
