"""Exports of other frameworks and of older PyTorch versions beside the numbers of what they were exported from.

    python exporters.py make torch|tensorflow|flax|keras FOLDER      (each in an environment of its own)
    python exporters.py check FOLDER [--weftc target/release/weftc]

`make` writes small random models as FOLDER/NAME.onnx and a step of SFT by the framework itself, loss and gradients, as
FOLDER/NAME.npz.  `check` compiles each file for both targets of a CPU, runs the step in ONNX Runtime's own Python package and
prints a row of a Markdown table: how far the loss is from the framework's, how far the worst gradient is (its largest error,
relative to its largest number), and how many gradients have their like.  Names differ between frameworks, so a gradient is
compared with the closest of its shape.

Tried: torch 2.0.1 (transformers 4.33.3), 2.5.1 (4.46.3, onnxscript 0.1.0.dev20241120, protobuf 5), 2.7.1 (4.51.3, onnxscript
0.2.7, protobuf 6.31); tensorflow-cpu 2.15.1 (transformers 4.40.2, tf2onnx 1.16.1); flax 0.12.8 (jax 0.10.2, jax2onnx 0.17.1);
keras 3.15.1 (tensorflow-cpu 2.21.0, tf2onnx 1.17.0).
"""

import argparse
import json
import pathlib
import subprocess

import numpy as np

VOCABULARY, LENGTH, MASK, SHAPE = 64, 32, 63, (3, 14)
COMMON = dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
              max_position_embeddings=LENGTH, pad_token_id=0, bos_token_id=1, eos_token_id=2)
DEBERTA = dict(relative_attention=True, position_buckets=8, pos_att_type=["c2p", "p2c"], type_vocab_size=0,
               norm_rel_ebd="layer_norm", share_att_key=True)
ENCODERS = {
    "Bert": {}, "Roberta": dict(max_position_embeddings=LENGTH + 2), "Electra": dict(embedding_size=32),
    "DistilBert": dict(dim=64, hidden_dim=96, n_heads=4, n_layers=2), "Albert": dict(embedding_size=32),
    "DebertaV2": DEBERTA, "Esm": dict(position_embedding_type="rotary", mask_token_id=3, token_dropout=False),
}
GROUPED = dict(num_key_value_heads=2)
DECODERS = {"Llama": GROUPED, "Qwen2": GROUPED, "Phi3": GROUPED, "Olmo2": GROUPED, "GPTNeoX": {},
            "Gemma2": dict(GROUPED, head_dim=16, sliding_window=64)}


class Step:
    """A batch of SFT: what is shown and what each token's cross-entropy weighs, by METHOD.md."""

    def __init__(self):
        draw = np.random.default_rng(2)
        self.ids = draw.integers(3, MASK, SHAPE)
        self.t, self.u = np.array([0.3, 0.6, 0.9], np.float32), draw.random(SHAPE).astype(np.float32)
        self.answer = np.ones(SHAPE, bool)
        self.answer[:, :4] = False
        rate = np.broadcast_to((0.999 * self.t + 1e-3)[:, None], SHAPE)
        masked = self.answer & (self.u < rate)
        self.shown = np.where(masked, MASK, self.ids)
        self.weight = (masked / rate / self.answer.sum(1, keepdims=True)).astype(np.float32)

    def save(self, path, loss, gradients):
        own = {f"g:{k}": np.asarray(g) for k, g in enumerate(gradients)}
        np.savez(path.with_suffix(".npz"), ids=self.ids, t=self.t, u=self.u, answer_mask=self.answer, loss=loss, **own)
        print(path.name, flush=True)


def make(folder, name, export):
    try:
        export(folder / f"{name}.onnx")
    except Exception as error:
        print(f"{name}: not exported: {type(error).__name__}", flush=True)


def torch_models(folder):
    import torch
    import transformers

    class Logits(torch.nn.Module):
        def __init__(self, model, decodes):
            super().__init__()
            self.model, self.decodes = model, decodes

        def forward(self, input_ids):
            if not self.decodes:
                return self.model(input_ids=input_ids).logits
            batch, length = input_ids.shape
            sees_all = torch.zeros(batch, 1, length, length)
            return self.model(input_ids=input_ids, attention_mask=sees_all, use_cache=False).logits

    def export(path, name, settings, how):
        torch.manual_seed(0)
        decodes = name in DECODERS
        config = getattr(transformers, name + "Config")(**{**COMMON, **settings})
        model = getattr(transformers, name + ("ForCausalLM" if decodes else "ForMaskedLM"))(config)
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            [p.add_(0.1 * torch.randn(p.shape, generator=noise)) for _, p in sorted(model.named_parameters())]
        model, step = Logits(model, decodes).eval(), Step()
        names = dict(input_names=["input_ids"], output_names=["logits"])
        torch.onnx.export(model, (torch.tensor(step.ids),), str(path), **names, **how)
        each = torch.nn.functional.cross_entropy(
            model(torch.tensor(step.shown)).flatten(0, 1), torch.tensor(step.ids).flatten(), reduction="none")
        loss = (each.reshape(SHAPE) * torch.tensor(step.weight)).sum()
        loss.backward()
        step.save(path, loss.item(), [p.grad.numpy() for p in model.parameters() if p.grad is not None])

    version = tuple(int(x) for x in torch.__version__.split(".")[:2])
    dynamic = dict(dynamic_axes={"input_ids": {0: "batch", 1: "seq"}})
    hows = {f"torchscript{opset}": dict(dynamic, opset_version=opset) for opset in (9, 10, 11, 12, 13, 17)}
    hows["torchscript14_unfolded"] = dict(dynamic, opset_version=14, do_constant_folding=False)
    if version >= (2, 5):
        # Before 2.6 with fixed sizes only.
        axes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("seq", max=LENGTH)}
        shapes = {} if version < (2, 6) else dict(dynamic_shapes={"input_ids": axes})
        hows["dynamo"] = dict(shapes, dynamo=True, external_data=False)
        if version >= (2, 7):
            hows["dynamo_unoptimised"] = dict(hows["dynamo"], optimize=False)
            hows["dynamo20"] = dict(hows["dynamo"], opset_version=20)
    for name, settings in {**ENCODERS, **DECODERS}.items():
        for kind, how in hows.items():
            make(folder, f"{name}_{kind}", lambda path: export(path, name, settings, how))
    if version < (2, 10):
        return

    from torch._higher_order_ops.scan import scan

    class Scanned(torch.nn.Module):
        """Layers whose weights are stacked."""

        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(VOCABULARY, 32), torch.nn.Linear(32, VOCABULARY)
            self.w = torch.nn.Parameter(0.2 * torch.randn(3, 32, 32))
            self.scale = torch.nn.Parameter(torch.rand(3, 32))

        def layer(self, x, weights):
            w, scale = weights
            x = x + torch.nn.functional.gelu(torch.nn.functional.rms_norm(x, (32,)) * scale @ w)
            return x, x.mean()

        def forward(self, input_ids):
            x, means = scan(self.layer, self.embed(input_ids), (self.w, self.scale))
            return self.head(x) + means.sum()

        def unrolled(self, input_ids):
            x, means = self.embed(input_ids), 0.0
            for weights in zip(self.w, self.scale):
                x, mean = self.layer(x, weights)
                means = means + mean
            return self.head(x) + means

    def export_scan(path):
        torch.manual_seed(0)
        model, step = Scanned().eval(), Step()
        names = dict(input_names=["input_ids"], output_names=["logits"])
        torch.onnx.export(model, (torch.tensor(step.ids),), str(path), dynamo=True, external_data=False, **names)
        logits = model.unrolled(torch.tensor(step.shown))
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(step.ids).flatten(), reduction="none")
        loss = (each.reshape(SHAPE) * torch.tensor(step.weight)).sum()
        loss.backward()
        step.save(path, loss.item(), [p.grad.numpy() for p in model.parameters()])

    make(folder, "scan_dynamo", export_scan)


def tensorflow_models(folder):
    import tensorflow as tf
    import tf2onnx
    import transformers

    def export(path, name, settings, opset):
        tf.random.set_seed(0)
        config = getattr(transformers, name + "Config")(**{**COMMON, **settings})
        model, step = getattr(transformers, f"TF{name}ForMaskedLM")(config), Step()
        model(tf.constant(step.ids))
        noise = np.random.default_rng(1)
        for weight in model.trainable_weights:
            weight.assign_add(0.1 * noise.standard_normal(weight.shape).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int64, name="input_ids")])
        def logits(input_ids):
            return {"logits": model(input_ids, training=False).logits}

        tf2onnx.convert.from_function(logits, logits.input_signature, opset=opset, output_path=str(path))
        with tf.GradientTape() as tape:
            z = model(tf.constant(step.shown), training=False).logits
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(step.ids, z) * step.weight)
        gradients = tape.gradient(loss, model.trainable_weights)
        step.save(path, float(loss), [tf.convert_to_tensor(g).numpy() for g in gradients if g is not None])

    for name, settings in dict(ENCODERS, MPNet={}, RoFormer=dict(embedding_size=64, rotary_value=False)).items():
        for opset in (11, 12, 13, 17):
            make(folder, f"{name}_tensorflow{opset}", lambda path: export(path, name, settings, opset))


def flax_models(folder):
    import jax
    import jax.numpy as jnp
    import jax2onnx
    from flax import nnx

    width, heads = 64, 4

    class Block(nnx.Module):
        def __init__(self, kind, rngs):
            self.kind = kind
            norm = nnx.LayerNorm if kind == "layer_norm" else nnx.RMSNorm
            self.norm1, self.norm2 = norm(width, rngs=rngs), norm(width, rngs=rngs)
            self.q, self.k, self.v, self.o = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
            self.up, self.gate = (nnx.Linear(width, 96, rngs=rngs) for _ in range(2))
            self.down = nnx.Linear(96, width, rngs=rngs)

        def __call__(self, x, cos, sin):
            h = self.norm1(x)
            q, k, v = (f(h).reshape(*x.shape[:2], heads, width // heads) for f in (self.q, self.k, self.v))

            def turned(y):
                a, b = jnp.split(y, 2, axis=-1)
                return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

            if self.kind != "layer_norm":
                q, k = turned(q), turned(k)
            if self.kind == "dot_product_attention":
                mixed = jax.nn.dot_product_attention(q, k, v)
            else:
                scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / np.sqrt(width // heads)
                mixed = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores, -1), v)
            x = x + self.o(mixed.reshape(x.shape))
            h = self.norm2(x)
            gelu = self.kind == "layer_norm"
            return x + self.down(jax.nn.gelu(self.up(h)) if gelu else jax.nn.silu(self.gate(h)) * self.up(h))

    class Model(nnx.Module):
        def __init__(self, kind, rngs):
            self.embed = nnx.Embed(VOCABULARY, width, rngs=rngs)
            self.blocks = nnx.List([Block(kind, rngs) for _ in range(2)])
            self.norm, self.head = nnx.RMSNorm(width, rngs=rngs), nnx.Linear(width, VOCABULARY, rngs=rngs)

        def __call__(self, input_ids):
            x = self.embed(input_ids)
            frequencies = jnp.asarray(1e4 ** -(np.arange(0, width // heads, 2) / (width // heads)), jnp.float32)
            angles = jnp.outer(jnp.arange(input_ids.shape[1], dtype=jnp.float32), frequencies)
            for block in self.blocks:
                x = block(x, jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None])
            return self.head(self.norm(x))

    def export(path, kind):
        model, step, noise = Model(kind, nnx.Rngs(0)), Step(), np.random.default_rng(1)
        definition, state = nnx.split(model)
        state = jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32), state)
        model = nnx.merge(definition, state)
        jax2onnx.to_onnx(model, inputs=[jax.ShapeDtypeStruct(SHAPE, jnp.int32)], return_mode="file", output_path=str(path))

        def loss(state):
            logs = jax.nn.log_softmax(nnx.merge(definition, state)(jnp.asarray(step.shown, jnp.int32)), -1)
            return -(jnp.take_along_axis(logs, jnp.asarray(step.ids)[..., None], -1)[..., 0] * step.weight).sum()

        value, gradients = jax.value_and_grad(loss)(state)
        step.save(path, float(value), jax.tree.leaves(gradients))

    def scanned(weights, ids):
        """Layers whose weights are stacked."""
        embed, w, scale, head = weights

        def layer(x, own):
            h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * own[1]
            return x + jax.nn.gelu(h @ own[0]), None

        return jax.lax.scan(layer, embed[ids], (w, scale))[0] @ head

    def export_scan(path):
        step, noise = Step(), np.random.default_rng(0)
        shapes = ((VOCABULARY, 32), (3, 32, 32), (3, 32), (32, VOCABULARY))
        weights = [jnp.asarray(0.3 * noise.standard_normal(shape), jnp.float32) for shape in shapes]
        ids = jax.ShapeDtypeStruct(SHAPE, jnp.int32)
        jax2onnx.to_onnx(lambda x: scanned(weights, x), inputs=[ids], return_mode="file", output_path=str(path))

        def loss(weights):
            logs = jax.nn.log_softmax(scanned(weights, jnp.asarray(step.shown, jnp.int32)), -1)
            return -(jnp.take_along_axis(logs, jnp.asarray(step.ids)[..., None], -1)[..., 0] * step.weight).sum()

        value, gradients = jax.value_and_grad(loss)(weights)
        step.save(path, float(value), gradients)

    for kind in ("rms_norm", "layer_norm", "dot_product_attention"):
        make(folder, f"{kind}_flax", lambda path: export(path, kind))
    make(folder, "scan_jax", export_scan)


def keras_models(folder):
    import keras
    import tensorflow as tf
    from keras import layers, ops

    width, heads = 64, 4

    class Positions(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(LENGTH, width), name="table")

        def call(self, x):
            return x + ops.take(self.table, ops.arange(ops.shape(x)[1]), axis=0)

    class Rotary(layers.Layer):
        def call(self, x):
            frequencies = (1e4 ** -(np.arange(0, x.shape[-1], 2) / x.shape[-1])).astype(np.float32)
            angles = ops.cast(ops.arange(ops.shape(x)[1]), "float32")[:, None] * frequencies[None]
            cos, sin = ops.cos(angles)[None, :, None], ops.sin(angles)[None, :, None]
            a, b = ops.split(x, 2, axis=-1)
            return ops.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def rotary(x, _):
        q, k, v = (layers.EinsumDense("bld,dhe->blhe", (None, heads, width // heads))(x) for _ in range(3))
        mixed = ops.nn.dot_product_attention(Rotary()(q), Rotary()(k), v)
        return layers.EinsumDense("blhe,hed->bld", (None, width))(mixed)

    def attention(kind):
        return {"multi_head": lambda: layers.MultiHeadAttention(heads, width // heads),
                "grouped": lambda: layers.GroupQueryAttention(width // heads, heads, 2),
                "rotary": lambda: rotary}[kind]()

    def export(path, kind):
        keras.utils.set_random_seed(0)
        ids = keras.Input((None,), dtype="int32", name="input_ids")
        x = layers.Embedding(VOCABULARY, width)(ids)
        x = x if kind == "rotary" else Positions()(x)
        norm = layers.LayerNormalization if kind == "multi_head" else layers.RMSNormalization
        for _ in range(2):
            h = norm()(x)
            x = x + attention(kind)(h, h)
            h = norm()(x)
            # Its exact GELU has no like in ONNX (Erfc).
            up = layers.Dense(96, activation=lambda y: keras.activations.gelu(y, approximate=True))
            gated = up(h) if kind == "multi_head" else layers.Dense(96, activation="silu")(h) * layers.Dense(96)(h)
            x = x + layers.Dense(width)(gated)
        model, step, noise = keras.Model(ids, layers.Dense(VOCABULARY)(norm()(x))), Step(), np.random.default_rng(1)
        for weight in model.trainable_weights:
            weight.assign_add(0.1 * noise.standard_normal(weight.shape).astype(np.float32))
        model(step.ids)
        model.export(str(path), format="onnx", verbose=False)
        with tf.GradientTape() as tape:
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(step.ids, model(step.shown))
            loss = tf.reduce_sum(each * step.weight)
        gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
        step.save(path, float(loss), [tf.convert_to_tensor(g).numpy() for g in gradients])

    for kind in ("multi_head", "grouped", "rotary"):
        make(folder, f"{kind}_keras", lambda path: export(path, kind))


def compare(path, target, weftc):
    """Relative errors of the loss and of the worst gradient; how many have their like, and of how many."""
    import onnx
    import onnxruntime

    train, reference = path.with_suffix(f".{target}.train"), np.load(path.with_suffix(".npz"))
    words = [weftc, "compile", path, "--mask-id", str(MASK), "--method", "sft", "--target", target, "-o", train, "-q"]
    compiled = subprocess.run(words, capture_output=True, text=True)
    if compiled.returncode:
        raise RuntimeError("refused: " + compiled.stderr.strip().splitlines()[1].strip())
    manifest = {p.key: p.value for p in onnx.load(train).metadata_props}["weft.manifest"]
    session = onnxruntime.InferenceSession(str(train), providers=["CPUExecutionProvider"])
    feed = {i.name: reference[i.name if i.name in ("t", "u", "answer_mask") else "ids"] for i in session.get_inputs()}
    out = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))
    own = [reference[name] for name in reference.files if name.startswith("g:")]
    scale, worst, found = max(np.abs(g).max() for g in own), 0.0, 0
    for p in json.loads(manifest)["parameters"]:
        if p["role"] == "trainable":
            got = out["grad/" + p["name"]]
            like = [(w, got) for g in own for w in (g, g.T) if w.shape == got.shape]
            # Exporters lay heads out in another order.
            like += [(np.sort(g, None), np.sort(got, None)) for g in own if g.ndim > 2 and g.size == got.size]
            errors = [float(np.abs(w - x).max() / max(np.abs(w).max(), 1e-3 * scale)) for w, x in like]
            if errors and min(errors) < 1e-2:
                worst, found = max(worst, min(errors)), found + 1
    return abs(out["loss_sum"] - reference["loss"]) / abs(reference["loss"]), worst, found, len(own)


def check(folder, weftc):
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    print("| export | loss | gradient | compared |\n|---|---|---|---|")
    for path in sorted(folder.glob("*.npz")):
        try:
            both = [compare(path.with_suffix(".onnx"), target, weftc) for target in ("portable", "cpu")]
            loss, worst = (max(r[k] for r in both) for k in (0, 1))
            wrong = "**" if loss > 1e-5 or worst > 1e-4 else ""
            print(f"| {path.stem} | {wrong}{loss:.0e}{wrong} | {worst:.0e} | {both[0][2]} of {both[0][3]} |", flush=True)
        except Exception as error:
            print(f"| {path.stem} | {' '.join(str(error).split())[:140]} | | |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "check"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--weftc", default="target/release/weftc")
    args = parser.parse_args()
    folder = pathlib.Path(args.words[-1])
    folder.mkdir(parents=True, exist_ok=True)
    if args.what == "check":
        check(folder, args.weftc)
    else:
        makers = {"torch": torch_models, "tensorflow": tensorflow_models, "flax": flax_models, "keras": keras_models}
        makers[args.words[0]](folder)


if __name__ == "__main__":
    main()
