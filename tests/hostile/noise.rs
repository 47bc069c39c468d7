//! Noise in real files: a training graph or an error of the model's, never a panic.

use crate::build::*;
use crate::outcome;
use prost::Message;
use weftc::error::Error;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::*;

/// Numbers from a fixed seed (Knuth's MMIX generator, upper bits).
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// One to four damages: a byte changed, a bit flipped, bytes left out, or bytes repeated.
fn damage(clean: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut bytes = clean.to_vec();
    for _ in 0..1 + draw.below(4) {
        let at = draw.below(bytes.len());
        let end = (at + 1 + draw.below(8)).min(bytes.len());
        match draw.below(6) {
            0..=1 => bytes[at] = draw.below(256) as u8,
            2..=3 => bytes[at] ^= 1 << draw.below(8),
            4 => drop(bytes.drain(at..end)),
            _ => drop(bytes.splice(at..at, clean[at.min(clean.len() - 1)..end.min(clean.len())].to_vec())),
        }
    }
    bytes
}

/// `WEFTC_NOISE` sets the number of rounds.
#[test]
fn noise_never_panics() {
    let rounds: usize = std::env::var("WEFTC_NOISE").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    // Most of an exported file is weights, where noise goes unseen: most rounds take the small one.
    let (small, exported) = (small().encode_to_vec(), exported());
    let mut draw = Draw(7);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..rounds {
        let bytes = damage(if round % 5 == 0 { &exported } else { &small }, &mut draw);
        std::fs::write(&path, &bytes).unwrap();
        match outcome(&path, |_| {}) {
            Ok(_) => accepted += 1,
            Err(e @ Error::Internal { .. }) => panic!("round {round}: {e}"),
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > rounds / 20 && refused > rounds / 20, "{accepted} accepted, {refused} refused");
}

/// Operators with readers of their own, beside the plain elementwise ones.
const STANDARD: &str = "Add Attention Cast CastLike Clip Concat ConstantOfShape CumSum Div Dropout Einsum Elu Equal \
    Expand Flatten Gather GatherElements GatherND Gelu Gemm HardSigmoid If LayerNormalization LogSoftmax \
    LpNormalization MatMul Max Mean Min Neg OneHot PRelu Pad Pow RMSNormalization Range ReduceL2 ReduceLogSumExp \
    ReduceMean ReduceProd ReduceSum Reshape RotaryEmbedding ScatterElements ScatterND SequenceAt SequenceConstruct \
    Shape Size Slice Softmax Split SplitToSequence Squeeze Sum Swish Tile TopK Transpose Trilu Unsqueeze Where Xor";
const CONTRIB: &str = "Attention BiasGelu EmbedLayerNormalization FastGelu FusedGemm FusedMatMul GroupQueryAttention \
    MultiHeadAttention QuickGelu RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization";

const INTEGERS: [i64; 12] = [0, 1, 2, 3, 4, -1, -2, -5, 7, i64::MAX, i64::MIN, 1 << 32];

/// A node of any operator over any values, with any attributes of the right type.
fn random_node(k: usize, values: &[String], draw: &mut Draw) -> NodeProto {
    let is_contrib = draw.below(5) == 0;
    let operators: Vec<&str> = if is_contrib { CONTRIB } else { STANDARD }.split_whitespace().collect();
    let most = if is_contrib { 9 } else { 4 };
    let inputs: Vec<&str> = (0..1 + draw.below(most)).map(|_| values[draw.below(values.len())].as_str()).collect();
    let results = if draw.below(5) == 0 { 3 } else { 1 };
    let outputs: Vec<String> = (0..results).map(|r| format!("r{k}_{r}")).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let mut made = node(operators[draw.below(operators.len())], &inputs, &outputs);
    if is_contrib {
        made.domain = "com.microsoft".into();
    }
    let ints = "axis keepdims to num_heads q_num_heads kv_num_heads is_causal transA transB num_outputs start end upper \
                exclusive reverse interleaved rotary_embedding_dim noop_with_empty_axes allowzero largest batch_dims \
                stash_type left_window_size local_window_size unidirectional do_rotary";
    let lists = "perm axes split";
    let texts = ["ij,jk->ik", "bij,bjk->bik", "...i->i", "a", "->", "add", "tanh", "constant"];
    for name in ints.split_whitespace().filter(|_| draw.below(6) == 0).collect::<Vec<_>>() {
        made = made.int(name, INTEGERS[draw.below(INTEGERS.len())]);
    }
    for name in lists.split_whitespace().filter(|_| draw.below(4) == 0).collect::<Vec<_>>() {
        let list: Vec<i64> = (0..draw.below(5)).map(|_| INTEGERS[draw.below(INTEGERS.len())]).collect();
        made = made.ints(name, &list);
    }
    for name in ["equation", "reduction", "approximate", "mode"] {
        if draw.below(3) == 0 {
            made = made.text(name, texts[draw.below(texts.len())]);
        }
    }
    made
}

/// Any operator over operands of any rank and type gives a value or a refusal.
#[test]
fn no_operand_makes_a_reader_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut draw = Draw(11);
    let mut read = 0;
    for round in 0..6000 {
        let bytes = with(|m, g| {
            m.opset_import[0].version = 25;
            let shapes: [&[i64]; 8] = [&[], &[1], &[4], &[2, 2], &[1, 4], &[0], &[2, 3, 4], &[1, 2, 3, 4]];
            g.initializer.extend(shapes.iter().enumerate().map(|(k, s)| floats(&format!("f{k}"), s)));
            let list = |draw: &mut Draw| -> Vec<i64> {
                (0..draw.below(5)).map(|_| INTEGERS[draw.below(INTEGERS.len())]).collect()
            };
            g.initializer.extend((0..6).map(|k| ints(&format!("i{k}"), &list(&mut draw))));
            g.initializer.extend((0..6).map(|k| int(&format!("s{k}"), INTEGERS[draw.below(INTEGERS.len())])));
            g.input.push(value("x", DataType::Float, &["batch", "seq", "4"]));
            g.input.push(value("heads", DataType::Float, &["batch", "2", "seq", "4"]));
            g.input.push(value("flags", DataType::Bool, &["batch", "seq"]));
            g.input.push(value("scalar", DataType::Int64, &[]));
            let inputs = g.input.iter().map(|i| i.name.clone());
            let mut values: Vec<String> = inputs.chain(g.initializer.iter().map(|t| t.name.clone())).collect();
            values.push(String::new());
            for k in 0..1 + draw.below(6) {
                let made = random_node(k, &values, &mut draw);
                // Results are drawn more often than the rest.
                values.extend(made.output.iter().chain(&made.output).cloned());
                g.node.push(made);
            }
        });
        std::fs::write(&path, &bytes).unwrap();
        match weftc::onnx::read(&path) {
            Ok(_) => read += 1,
            Err(e) => assert_eq!(e.exit_code(), 3, "round {round}: {e}"),
        }
    }
    assert!((100..6000).contains(&read), "{read} of 6000 were read");
}
