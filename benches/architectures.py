"""Exports small random models of many architectures, compiles them, and compares a step with PyTorch's.

    python architectures.py [NAME ..] [--weftc target/release/weftc] [--folder FOLDER]

Each model of `transformers` is made without a causal mask and exported in three ways.  weftc compiles each export for both
targets of a CPU; ONNX Runtime's own Python package runs one step of SFT on it, and autograd the same loss on the model
itself.  Prints a row of a Markdown table for each architecture: how far the loss and the worst gradient are from PyTorch's
(a gradient's error is its largest, relative to its largest number), or what refused.  Needs torch, transformers, onnx,
onnxscript, onnxruntime and numpy; tried with PyTorch 2.15 and transformers 5.24.
"""

import argparse
import contextlib
import inspect
import json
import os
import pathlib
import subprocess
import tempfile
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
import transformers

VOCABULARY, LENGTH, MASK = 64, 32, 63
COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    max_position_embeddings=LENGTH, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
GROUPED = dict(num_key_value_heads=2)
HEADS = dict(GROUPED, head_dim=16)
NARROW = dict(n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4)
LONGER = dict(max_position_embeddings=LENGTH + 2)
EAGER = dict(attention="eager")
LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)

# Decoders: the class's name without ForCausalLM, the configuration's without Config where that differs, and settings.
DECODERS = {
    "Llama": GROUPED,
    "Llama, eager": dict(GROUPED, **EAGER),
    "Llama, llama3 positions": dict(GROUPED, rope_parameters=LLAMA3),
    "Qwen2, yarn positions": dict(GROUPED, rope_parameters=YARN),
    "Mistral": dict(GROUPED, sliding_window=None),
    "Qwen3": HEADS,
    "Gemma": HEADS,
    "Gemma2": dict(HEADS, sliding_window=64, **EAGER),
    "Gemma3": dict(HEADS, sliding_window=64, configuration="Gemma3Text"),
    "Phi": {},
    "Phi3": GROUPED,
    "GPTNeoX": {},
    "GPT2": dict(NARROW, model="GPT2LMHeadModel"),
    "GPTJ": dict(NARROW, rotary_dim=8),
    "CodeGen": dict(NARROW, rotary_dim=8, n_ctx=LENGTH, **EAGER),
    "Olmo2": GROUPED,
    "Granite": dict(GROUPED, embedding_multiplier=2.0, residual_multiplier=0.5, logits_scaling=4.0,
                    attention_multiplier=0.3),
    "Cohere": dict(GROUPED, use_qk_norm=True),
    "Cohere2": dict(GROUPED, sliding_window=64),
    "StableLm": dict(GROUPED, qk_layernorm=True),
    "Starcoder2": GROUPED,
    "Falcon": dict(new_decoder_architecture=False, multi_query=True, parallel_attn=True),
    "Persimmon": {},
    "Nemotron": GROUPED,
    "Glm4": HEADS,
    "SmolLM3": GROUPED,
    "Helium": HEADS,
    "SeedOss": HEADS,
    "Ernie4_5": HEADS,
    "HunYuanDenseV1": HEADS,
    "Arcee": GROUPED,
    "Apertus": GROUPED,
    "Lfm2": dict(GROUPED, layer_types=["full_attention"] * 2, block_multiple_of=32),
    "BioGpt": {},
    "Mpt": dict(d_model=64, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=LENGTH, **EAGER),
}

# Encoders: the class's name without ForMaskedLM.
ENCODERS = {
    "Bert": {},
    "Bert, with attention_mask": dict(masked=True),
    "Roberta": LONGER,
    "DistilBert": dict(dim=64, hidden_dim=96, n_heads=4, n_layers=2),
    "Albert": dict(embedding_size=32),
    "Electra": dict(embedding_size=32),
    "DebertaV2": dict(relative_attention=True, position_buckets=8, pos_att_type=["c2p", "p2c"], type_vocab_size=0,
                      norm_rel_ebd="layer_norm", share_att_key=True, **EAGER),
    "Esm": dict(position_embedding_type="rotary", mask_token_id=3, token_dropout=False),
    "ModernBert": dict(local_attention=8, global_attn_every_n_layers=2),
    "EuroBert": GROUPED,
    "MPNet": EAGER,
    "XLMRoberta": LONGER,
    "XLMRobertaXL": LONGER,
    "RoFormer": dict(embedding_size=64, rotary_value=False, **EAGER),
    "MegatronBert": EAGER,
    "ConvBert": dict(embedding_size=64, **EAGER),
    "SqueezeBert": dict(embedding_size=64, **EAGER),
    "MobileBert": dict(embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32, **EAGER),
    "IBert": dict(LONGER, **EAGER),
    "RemBert": dict(input_embedding_size=32, output_embedding_size=48, **EAGER),
    "Xmod": dict(LONGER, languages=["en_XX"], default_language="en_XX"),
    "Ernie": {},
}

# More of both, by the type of their configuration: they take those of SHAPE that they know.
MORE_DECODERS = """bitnet ctrl diffllama doge exaone exaone4 gemma4_text glm gpt_bigcode gpt_neo gpt_neox_japanese granite_swa
    hyperclovax internlm3 iquestcoder jais2 lfm3 minicpm3 ministral ministral3 nanochat olmo olmo3 vaultgemma xglm youtu""".split()
MORE_ENCODERS = """big_bird camembert data2vec-text deberta flaubert gte jina_embeddings_v3 luke mra nomic_bert
    roberta-prelayernorm ultrabert xlm""".split()
SHAPE = dict(
    GROUPED, head_dim=16, sliding_window=64, partial_rotary_factor=1.0, moe_intermediate_size=48, kv_lora_rank=16,
    q_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4,
    n_inner=96, d_model=64, ffn_dim=96, dff=96, num_layers=2, attention_heads=4, n_layers=2, n_heads=4, dim=64, emb_dim=64,
    embedding_size=64, attention_types=[[["global"], 2]],
)
# What they disagree about.
OWN = {
    "minicpm3": dict(num_key_value_heads=4, head_dim=8),
    "youtu": dict(num_key_value_heads=4, head_dim=8),
    "gpt_neo": dict(num_heads=4),
}

EXPORTERS = {"TorchScript 17": 17, "dynamo 18": 18, "dynamo 23": 23}


class Logits(torch.nn.Module):
    """The logits alone; a decoder sees every token, an encoder that is `masked` takes a mask of its own."""

    def __init__(self, model, decodes, masked):
        super().__init__()
        self.model, self.decodes, self.masked = model, decodes, masked

    def forward(self, input_ids, attention_mask=None):
        if self.decodes:
            batch, length = input_ids.shape
            sees_all = torch.zeros(batch, 1, length, length)
            return self.model(input_ids=input_ids, attention_mask=sees_all, use_cache=False).logits
        if self.masked:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return self.model(input_ids=input_ids).logits

    def names(self):
        return ["input_ids", "attention_mask"][: 1 + self.masked]


def more(kind, decodes):
    """Classes and settings of a type of configuration."""
    auto = transformers.models.auto
    names = auto.modeling_auto
    models = names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if decodes else names.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    configuration = auto.configuration_auto.CONFIG_MAPPING[kind]
    known = {*inspect.signature(configuration.__init__).parameters, *getattr(configuration, "attribute_map", {}),
             *getattr(configuration, "__dataclass_fields__", {}), *getattr(configuration, "__annotations__", {})}
    shape = {name: value for name, value in SHAPE.items() if name in known}
    return dict(shape, **OWN.get(kind, {}), model=models[kind],
                configuration=configuration.__name__.removesuffix("Config"))


def build(name, settings, decodes):
    settings = dict(settings)
    attention, masked = settings.pop("attention", "sdpa"), settings.pop("masked", False)
    family = name.split(",")[0]
    model = settings.pop("model", family + ("ForCausalLM" if decodes else "ForMaskedLM"))
    configuration = settings.pop("configuration", family) + "Config"
    torch.manual_seed(0)
    config = getattr(transformers, configuration)(**{**COMMON, **settings})
    config._attn_implementation = attention
    try:
        inner = getattr(transformers, model)(config)
    except ValueError:
        # It has no other form of attention.
        config._attn_implementation = "eager"
        inner = getattr(transformers, model)(config)
    for module in inner.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    # Norms' weights of 1 and biases of 0 would hide mistakes.
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in sorted(inner.named_parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=noise))
    return Logits(inner, decodes, masked).eval()


@contextlib.contextmanager
def silence():
    """Exporters write to both streams themselves."""
    kept, nothing = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        [os.dup2(nothing, k) for k in (1, 2)]
        yield
    finally:
        [os.dup2(old, k) for old, k in zip(kept, (1, 2))]
        [os.close(k) for k in [*kept, nothing]]


def export(model, path, exporter):
    ids = torch.randint(3, MASK, (2, 12))
    args = (ids, torch.ones_like(ids))[: 1 + model.masked]
    names, opset = model.names(), EXPORTERS[exporter]
    if exporter.startswith("dynamo"):
        axes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("seq", max=LENGTH)}
        how = dict(dynamo=True, dynamic_shapes={n: axes for n in names}, external_data=False, verbose=False)
    else:
        how = dict(dynamo=False, dynamic_axes={n: {0: "batch", 1: "seq"} for n in [*names, "logits"]})
    torch.onnx.export(model, args, path, opset_version=opset, input_names=names, output_names=["logits"], **how)


def short(text):
    """A message as a cell of a table."""
    return " ".join(text.split())[:90].replace("|", "/")


def compare(model, path, target, weftc):
    """How far a step's loss and gradients are from PyTorch's."""
    train = f"{path}.{target}.onnx"
    words = [weftc, "compile", path, "--mask-id", str(MASK), "--method", "sft", "--target", target, "-o", train, "-q"]
    compiled = subprocess.run(words, capture_output=True, text=True)
    if compiled.returncode:
        raise RuntimeError("refused: " + compiled.stderr.strip().splitlines()[1].strip())
    properties = {p.key: p.value for p in onnx.load(train).metadata_props}
    session = onnxruntime.InferenceSession(train, providers=["CPUExecutionProvider"])
    draw, batch, length = np.random.default_rng(0), 3, 14
    answers = np.ones((batch, length), bool)
    answers[:, :4] = False
    ids = draw.integers(3, MASK, (batch, length))
    feed = dict(input_ids=ids, answer_mask=answers, t=np.array([0.3, 0.6, 0.9], np.float32),
                u=draw.random((batch, length)).astype(np.float32), attention_mask=np.ones((batch, length), np.int64))
    fed = {i.name: feed[i.name] for i in session.get_inputs() if i.name in feed}
    out = dict(zip([o.name for o in session.get_outputs()], session.run(None, fed)))

    masked, rate = torch.tensor(out["mask"]), torch.tensor(out["mask_rate"])
    shown = torch.where(masked, MASK, torch.tensor(ids))
    model.zero_grad()
    logits = model(*(shown, torch.ones_like(shown))[: 1 + model.masked])
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids).flatten(), reduction="none")
    weighted = torch.where(masked, each.reshape(batch, length) / rate.clamp(min=1e-9), 0.0)
    loss = (weighted.sum(1) / torch.tensor(answers).sum(1)).sum()
    loss.backward()

    # Tied weights, and weights that an exporter computes beforehand, have no name of their own: they are left out.
    own = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    scale, worst, compared = max(np.abs(g).max() for g in own.values()), 0.0, 0
    for p in json.loads(properties["weft.manifest"])["parameters"]:
        names = [n for n in own if n == p["name"] or n.endswith("." + p["name"]) or p["name"].endswith("." + n)]
        if p["role"] != "trainable" or len(names) != 1:
            continue
        want = own[names[0]].T if p["transposed"] else own[names[0]]
        got = out["grad/" + p["name"]].reshape(want.shape)
        worst = max(worst, float(np.abs(want - got).max() / max(np.abs(want).max(), 1e-3 * scale)))
        compared += 1
    return abs(out["loss_sum"] - loss.item()) / abs(loss.item()), worst, compared, len(own)


def runs(model, path):
    """Whether ONNX Runtime runs the export itself."""
    try:
        ids = np.full((3, 14), 5)
        feed = dict(input_ids=ids, attention_mask=np.ones_like(ids))
        onnxruntime.InferenceSession(path).run(None, {name: feed[name] for name in model.names()})
        return True
    except Exception:
        return False


def cell(name, settings, decodes, exporter, args):
    path = args.folder / f"{name}_{exporter}.onnx".replace(" ", "_").replace(",", "")
    model = build(name, settings, decodes)
    try:
        with silence():
            export(model, path, exporter)
    except Exception as error:
        return f"not exported: {type(error).__name__}"
    results = []
    for target in ("portable", "cpu"):
        try:
            results.append(compare(model, path, target, args.weftc))
        except Exception as error:
            return short(str(error)) if runs(model, path) else "the export does not run in ONNX Runtime"
    loss, gradient = (max(r[k] for r in results) for k in (0, 1))
    compared, own = results[0][2:]
    wrong = "**" if loss > 1e-5 or gradient > 1e-4 else ""
    return f"{wrong}{loss:.0e}, {gradient:.0e}{wrong} ({compared} of {own})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--weftc", default="target/release/weftc")
    parser.add_argument("--folder", type=pathlib.Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    onnxruntime.set_default_logger_severity(3)
    with tempfile.TemporaryDirectory() as scratch:
        args.folder = args.folder or pathlib.Path(scratch)
        args.folder.mkdir(parents=True, exist_ok=True)
        print(f"| architecture | {' | '.join(EXPORTERS)} |\n|{'---|' * (1 + len(EXPORTERS))}")
        for decodes, table, others in ((True, DECODERS, MORE_DECODERS), (False, ENCODERS, MORE_ENCODERS)):
            for name, settings in {**table, **{kind: None for kind in others}}.items():
                if args.names and name not in args.names:
                    continue
                try:
                    settings = more(name, decodes) if settings is None else settings
                    cells = [cell(name, settings, decodes, exporter, args) for exporter in EXPORTERS]
                except Exception as error:
                    cells = [short(f"not built: {error}")] * len(EXPORTERS)
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
