"""Times one WeFT step of a LLaDA-shaped model in PyTorch: sdpa, bf16, compiled; prints one JSON object.

    python benches/gpu_torch.py --batch 16 --length 256 --trainable lora --shape 8,512,8,2048,4096

The shape is layers, width, heads, feed-forward width, vocabulary.  A step is the entropy pass, the forward and
backward pass, clipping and AdamW; LoRA has rank 8 on q, k and v, its factors and all trained weights have f32 copies.
Called by benches/gpu.sh.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Lora(nn.Module):
    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        device = base.weight.device
        self.a = nn.Parameter(torch.randn(rank, base.in_features, device=device) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x):
        return self.base(x) + (x @ self.a.to(x.dtype).T) @ self.b.to(x.dtype).T * 2.0


class Block(nn.Module):
    def __init__(self, width, heads, ffn):
        super().__init__()
        linear = lambda n, m: nn.Linear(n, m, bias=False)
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (linear(width, width) for _ in range(4))
        self.ff_proj, self.up_proj, self.ff_out = linear(width, ffn), linear(width, ffn), linear(ffn, width)
        self.attn_norm, self.ff_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)

    def forward(self, x, cos, sin):
        b, n, d = x.shape
        h = self.attn_norm(x)
        split = lambda y: y.view(b, n, self.heads, -1).transpose(1, 2)
        turn = lambda y: y * cos + torch.cat([-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]], -1) * sin
        q, k, v = turn(split(self.q_proj(h))), turn(split(self.k_proj(h))), split(self.v_proj(h))
        x = x + self.attn_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class Llada(nn.Module):
    def __init__(self, layers, width, heads, ffn, vocabulary, length):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, ffn) for _ in range(layers))
        self.ln_f, self.head = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, vocabulary, bias=False)
        size = width // heads
        angles = torch.arange(length)[:, None] * 5e5 ** (-torch.arange(0, size, 2) / size)
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids):
        x = self.wte(ids)
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.ln_f(x)).float()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--trainable", choices=["full", "lora"], default="lora")
    parser.add_argument("--shape", default="8,512,8,2048,4096")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    layers, width, heads, ffn, vocabulary = map(int, args.shape.split(","))
    cuda = args.device == "cuda"
    torch.manual_seed(0)
    with torch.device(args.device):
        torch.set_default_dtype(torch.bfloat16 if args.trainable == "lora" else torch.float32)
        model = Llada(layers, width, heads, ffn, vocabulary, args.length)
        torch.set_default_dtype(torch.float32)
    if args.trainable == "lora":
        model.requires_grad_(False)
        for block in model.blocks:
            for name in ["q_proj", "k_proj", "v_proj"]:
                setattr(block, name, Lora(getattr(block, name), 8))
    model.to(args.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=cuda)
    forward = torch.compile(model) if cuda else model
    mask = vocabulary - 1
    ids = torch.randint(0, mask, (args.batch, args.length), device=args.device)
    answer = (torch.arange(args.length, device=args.device) >= args.length // 4).expand_as(ids)

    def step():
        with torch.autocast(args.device, torch.bfloat16):
            with torch.no_grad():
                logp = forward(torch.where(answer, mask, ids)).log_softmax(-1)
                beta = (-(logp.exp() * logp).sum(-1)).clamp(min=0).sqrt()
            mean = (beta * answer).sum(1, keepdim=True) / answer.sum(1, keepdim=True)
            t = torch.rand(args.batch, 1, device=args.device) * 0.999 + 0.001
            rate = 1 - (1 - t) ** (beta / mean)
            masked = answer & (torch.rand_like(rate) < rate)
            logits = forward(torch.where(masked, mask, ids))
        loss = F.cross_entropy(logits.view(-1, vocabulary), ids.view(-1), reduction="none").view_as(ids)
        (torch.where(masked, loss / rate.clamp(min=1e-3), 0).sum(1) / answer.sum(1)).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()

    times = []
    for k in range(args.steps + 3):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    middle = statistics.median(times[3:])
    print(
        json.dumps(
            dict(
                who=f"PyTorch {torch.__version__}, sdpa, bf16, compiled",
                gpu=torch.cuda.get_device_name() if cuda else args.device,
                trainable=args.trainable,
                batch=args.batch,
                length=args.length,
                step_s=middle,
                steps=args.steps,
                tokens_per_s=args.batch * args.length / middle,
                peak_device_mb=torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
            )
        )
    )


if __name__ == "__main__":
    main()
