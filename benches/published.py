"""Exports small random models of published diffusion language models' own code, and compares a step with PyTorch's.

    git clone https://github.com/OWNER/NAME SOURCES/NAME        for each repository of MODELS below
    python published.py SOURCES [NAME ..] [--weftc target/release/weftc]

As `architectures.py`, which says what the columns mean, with code that is in no library: each repository's module files are
loaded from its folder, without the rest of it.  What they import of flash-attn, xformers and lightning has plain stand-ins
here.  Needs torch, onnx, onnxscript, onnxruntime, numpy, einops, omegaconf and transformers 4 (tried: 4.57.1).
"""

import argparse
import contextlib
import importlib
import importlib.machinery
import pathlib
import sys
import tempfile
import types
import warnings

import onnxruntime
import torch
import torch.nn.functional as F

import architectures
from architectures import LENGTH, MASK, VOCABULARY, export, runs, short, silence

EXPORTERS = ("TorchScript 17", "dynamo 18")
SOURCES = pathlib.Path()


def module(name, **parts):
    """A module of these parts, for others to import."""
    if name not in sys.modules:
        made = sys.modules[name] = types.ModuleType(name)
        made.__spec__, made.__path__ = importlib.machinery.ModuleSpec(name, None), []
    made = sys.modules[name]
    vars(made).update(parts)
    if "." in name:
        parent, own = name.rsplit(".", 1)
        setattr(module(parent), own, made)
    return made


def attend(q, k, v, causal):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def attend_packed(qkv, _starts, length, _dropout, causal):
    q, k, v = qkv.view(-1, length, *qkv.shape[1:]).unbind(2)
    return attend(q, k, v, causal).reshape(-1, *qkv.shape[2:])


def rotated(x, cos, sin, *_):
    """Rotary positions in halves; x [batch, length, heads, width], tables [length, width / 2]."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def rotated_packed(qkv, cos, sin):
    q, k, v = qkv.unbind(2)
    return torch.stack((rotated(q, cos, sin), rotated(k, cos, sin), v), 2)


class SwiGLU(torch.nn.Module):
    def __init__(self, inner, hidden, bias, _pack_weights):
        super().__init__()
        self.w1, self.w2 = (torch.nn.Linear(inner, hidden, bias=bias) for _ in range(2))
        self.w3 = torch.nn.Linear(hidden, inner, bias=bias)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class RMSNorm(torch.nn.Module):
    def __init__(self, size, eps=1e-5):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def stand_ins():
    interface = module("flash_attn.flash_attn_interface", flash_attn_varlen_qkvpacked_func=attend_packed)
    module("flash_attn", flash_attn_interface=interface, flash_attn_func=attend)
    module("flash_attn.layers.rotary", apply_rotary_emb_torch=rotated, apply_rotary_emb_qkv_=rotated_packed)
    module("xformers.ops", SwiGLU=SwiGLU)
    module("lightning.fabric.loggers", CSVLogger=object)


def load(folder, *names):
    """Modules of a repository's folder, as one package whose own code is not run."""
    package = "published_" + "_".join(folder.split("/")).replace("-", "_").replace(".", "_")
    module(package).__path__ = [str(SOURCES / folder)]
    return [importlib.import_module(f"{package}.{name}") for name in names]


class Logits(torch.nn.Module):
    """The logits of a call."""

    masked = False

    def __init__(self, inner, call=lambda model, tokens: model(input_ids=tokens)):
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, input_ids):
        out = self.call(self.inner, input_ids)
        return out if torch.is_tensor(out) else out.logits

    def names(self):
        return ["input_ids"]


SHAPE = dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=LENGTH, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False)
GATED = dict(SHAPE, intermediate_size=96)
DIT = dict(model=dict(hidden_size=64, cond_dim=32, n_heads=4, n_blocks=2, dropout=0.0, scale_by_sigma=True, length=LENGTH),
           algo=dict(causal_attention=False), graph=dict(type="absorb"), tokens=VOCABULARY - 1)
LLADA = dict(d_model=64, n_heads=4, n_kv_heads=4, n_layers=2, mlp_ratio=4, mlp_hidden_size=96, vocab_size=VOCABULARY,
             embedding_size=VOCABULARY, max_sequence_length=LENGTH, block_type="llama", activation_type="silu",
             layer_norm_type="rms", attention_layer_norm=False, rope=True, rope_theta=5e5, rms_norm_eps=1e-5, alibi=False,
             weight_tying=False, include_bias=False, include_qkv_bias=False, input_emb_norm=False, scale_logits=False,
             flash_attention=False, attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0, init_device="cpu",
             use_cache=False, pad_token_id=0, eos_token_id=2, mask_token_id=MASK)
EXPERTS = dict(num_experts_per_tok=2, hidden_act="silu", use_qk_norm=True)


def no_time(model, tokens):
    return model(tokens, torch.zeros(tokens.shape[0]))


def dit(folder):
    return lambda: Logits(load(folder, "dit")[0].DIT(DIT, VOCABULARY), no_time)


def sedd():
    # Its logits are log ratios behind a scatter: here only whether it is read.
    transformer, = load("Score-Entropy-Discrete-Diffusion/model", "transformer")
    return Logits(transformer.SEDD(DIT), lambda model, tokens: model(tokens, torch.full((tokens.shape[0],), 0.7)))


def bd3lm():
    code, config = load("bd3lms/models/hf", "modeling_bd3lm", "configuration_bd3lm")
    shape = dict(block_size=4, vocab_size=VOCABULARY, model_length=LENGTH, cross_attn=False, attn_backend="sdpa",
                 hidden_dim=64, cond_dim=32, n_blocks=2, n_heads=4)
    return Logits(code.BD3LM(config.BD3LMConfig(**shape)),
                  lambda model, tokens: model(input_ids=tokens, timesteps=torch.zeros(tokens.shape[0]), return_dict=True))


def smdm():
    # One word less is predicted than is embedded: its mask token.
    module("lit_gpt").__path__ = [str(SOURCES / "SMDM/lit_gpt")]
    module("lit_gpt.fused_rotary_embedding", apply_rotary_emb_func=rotated)
    module("lit_gpt.rmsnorm", RMSNorm=RMSNorm, FusedRMSNorm=RMSNorm)
    blocks = module("lit_gpt.model")
    code = importlib.import_module("lit_gpt.diffmodel")
    vars(blocks).update(LLaMAMLP=code.LLaMAMLP, GptNeoxMLP=code.GptNeoxMLP)
    shape = dict(block_size=LENGTH, vocab_size=VOCABULARY - 1, padded_vocab_size=VOCABULARY - 1, n_layer=2, n_head=4,
                 n_embd=64, n_query_groups=2, rotary_percentage=1.0, parallel_residual=False, bias=False,
                 _norm_class="FusedRMSNorm", _mlp_class="LLaMAMLP", intermediate_size=96)
    model = code.TransEncoder(importlib.import_module("lit_gpt.config").Config(**shape))
    model.build_rope_cache = lambda tokens: code.build_rope_cache(LENGTH, 16, torch.float32, tokens.device)
    return Logits(model, lambda model, tokens: model(tokens))


def llada(folder, **more):
    def make():
        code, config = load(folder, "modeling_llada", "configuration_llada")
        config = config.LLaDAConfig(**{**LLADA, **more})
        # Given its model, it does not look for a GPU to make one on.
        inner = code.LLaDAModel(code.create_model_config_from_pretrained_config(config))
        return Logits(code.LLaDAModelLM(config, model=inner))
    return make


def dream(folder):
    def make():
        code, config = load(folder, "modeling_dream", "configuration_dream")
        return Logits(code.DreamModel(config.DreamConfig(**GATED, mask_token_id=MASK)))
    return make


def llada_moe():
    code, config = load("dllm/dllm/pipelines/llada/models", "modeling_lladamoe", "configuration_lladamoe")
    shape = dict(SHAPE, dense_intermediate_size=96, expert_intermediate_size=48, shared_expert_intermediate_size=48,
                 num_experts=4, num_experts_per_tok=2, rope_theta=1e4, partial_rotary_factor=1, norm_topk_prob=False,
                 qk_layernorm=True, moe_layer_freq=[1, 1], moe_router_score_function="softmax",
                 moe_router_enable_expert_bias=False, router_num_group=None, router_topk_group=None)
    return Logits(code.LLaDAMoEModelLM(config.LLaDAMoEConfig(**shape)))


def llada2(version):
    def make():
        name = f"llada{version}_moe"
        code, config = load(f"dllm/dllm/pipelines/llada{version}/models", f"modeling_{name}", f"configuration_{name}")
        shape = dict(GATED, num_experts=8, num_shared_experts=1, num_experts_per_tok=2, n_group=4, topk_group=2,
                     moe_intermediate_size=48, first_k_dense_replace=1, head_dim=16, use_bias=False, embedding_dropout=0.0,
                     attention_dropout=0.0, output_dropout=0.0)
        classes = [next(v for n, v in vars(m).items() if n.endswith(end))
                   for m, end in ((config, "MoeConfig"), (code, "MoeModelLM"))]
        config = classes[0](**shape)
        config._attn_implementation = "sdpa"

        def call(model, tokens):
            batch, length = tokens.shape
            return model(input_ids=tokens, attention_mask=torch.zeros(batch, 1, length, length))
        # Answering, it counts tokens on the host, which no exporter follows.
        made = Logits(classes[1](config), call)
        made.trains = True
        return made
    return make


def a2d(kind):
    def make():
        code, = load(f"dllm/dllm/pipelines/a2d/models/{kind}", f"modeling_{kind}")
        own = {n: v for n, v in vars(code).items() if n.startswith("A2D")}
        config, model = (next(v for n, v in own.items() if n.endswith(end)) for end in ("Config", "LMHeadModel"))
        return Logits(model(config(**GATED)))
    return make


def tiny():
    code, = load("tiny-diffusion", "model")
    config = code.DiffusionConfig(sequence_len=LENGTH, vocab_size=VOCABULARY, mask_token_id=MASK, n_layer=2, n_head=4,
                                  n_embd=64, diffusion_steps=16, context_len=2)
    return Logits(code.DiffusionTransformer(config),
                  lambda model, tokens: model(tokens, torch.full((tokens.shape[0],), 5)))


DLLM, RL = "dllm/dllm/pipelines", "dLLM-RL/sample"
MODELS = {
    "MDLM (kuleshov-group/mdlm)": dit("mdlm/models"),
    "Duo (s-sahoo/duo)": dit("duo/models"),
    "BD3LM (kuleshov-group/bd3lms)": bd3lm,
    "SEDD (louaaron/Score-Entropy-Discrete-Diffusion)": sedd,
    "SMDM (ML-GSAI/SMDM)": smdm,
    "LLaDA (ZHZisZZ/dllm)": llada(f"{DLLM}/llada/models"),
    "LLaDA, tied, grouped": llada(f"{DLLM}/llada/models", n_kv_heads=2, weight_tying=True, scale_logits=True),
    "LLaDA, LayerNorm, q and k too": llada(f"{DLLM}/llada/models", layer_norm_type="low_precision", attention_layer_norm=True),
    "LLaDA (NVlabs/Fast-dLLM)": llada("Fast-dLLM/llada/model"),
    "LLaDA (Gen-Verse/dLLM-RL)": llada(f"{RL}/llada"),
    "LLaDA (Gen-Verse/MMaDA)": llada("MMaDA/models"),
    "Dream (ZHZisZZ/dllm)": dream(f"{DLLM}/dream/models"),
    "Dream (NVlabs/Fast-dLLM)": dream("Fast-dLLM/dream/model"),
    "Dream (Gen-Verse/dLLM-RL)": dream(f"{RL}/dream"),
    "LLaDA-MoE (ZHZisZZ/dllm)": llada_moe,
    "LLaDA2 (ZHZisZZ/dllm)": llada2("2"),
    "LLaDA2.1 (ZHZisZZ/dllm)": llada2("21"),
    "A2D Llama (ZHZisZZ/dllm)": a2d("llama"),
    "A2D Qwen2 (ZHZisZZ/dllm)": a2d("qwen2"),
    "A2D Qwen3 (ZHZisZZ/dllm)": a2d("qwen3"),
    "tiny-diffusion (nathan-barry/tiny-diffusion)": tiny,
}


@contextlib.contextmanager
def training(model):
    """TorchScript exports what trains only where it is told so."""
    own = torch.onnx.export
    more = dict(training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False) if model.training else {}
    torch.onnx.export = lambda *args, **how: own(*args, **({} if how["dynamo"] else more), **how)
    try:
        yield
    finally:
        torch.onnx.export = own


def build(make):
    torch.manual_seed(0)
    model = make()
    model.train(getattr(model, "trains", False))
    # Norms' weights of 1, biases and modulations of 0 would hide mistakes.
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=noise))
    return model


def cell(make, path, exporter, weftc):
    try:
        # Some keep tables of the first length that they see: each export has a model of its own.
        model = build(make)
    except Exception as error:
        return short(f"not built: {type(error).__name__}: {error}")
    try:
        with silence(), training(model):
            export(model, path, exporter)
        model = build(make)
        results = [architectures.compare(model, path, target, weftc) for target in ("portable", "cpu")]
    except RuntimeError as error:
        refused = str(error).startswith("refused: ") and runs(model, path)
        return short(str(error)) if refused else "no export that runs"
    except Exception as error:
        return f"no export that runs: {type(error).__name__}"
    loss, gradient = (max(r[k] for r in results) for k in (0, 1))
    wrong = "**" if loss > 1e-5 or gradient > 1e-4 else ""
    return f"{wrong}{loss:.0e}, {gradient:.0e}{wrong} ({results[0][2]} of {results[0][3]})"


def main():
    global SOURCES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--weftc", default="target/release/weftc")
    args = parser.parse_args()
    SOURCES = args.sources.resolve()
    warnings.filterwarnings("ignore")
    onnxruntime.set_default_logger_severity(3)
    stand_ins()
    with tempfile.TemporaryDirectory() as scratch:
        print(f"| code | {' | '.join(EXPORTERS)} |\n|{'---|' * (1 + len(EXPORTERS))}")
        for name, make in MODELS.items():
            if not args.names or any(name.startswith(n) for n in args.names):
                path = pathlib.Path(scratch) / "model.onnx"
                print(f"| {name} | {' | '.join(cell(make, path, e, args.weftc) for e in EXPORTERS)} |", flush=True)


if __name__ == "__main__":
    main()
