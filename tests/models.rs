//! The models in `models/` compute in ONNX Runtime what PyTorch computed when they were exported.

use safetensors::SafeTensors;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use weftc::compile::{Options as Compile, compile};
use weftc::generate::Model;
use weftc::runtime::Options;

/// f32 on both sides; the largest logit is about 10.
const TOLERANCE: f32 = 2e-5;

#[test]
fn logits_are_pytorchs() -> Result<(), Box<dyn Error>> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let bytes = std::fs::read(models.join("samples.safetensors"))?;
    let samples = SafeTensors::deserialize(&bytes)?;
    let mut checked = 0;
    for name in samples.names().into_iter().filter_map(|n| n.strip_suffix(".input_ids")) {
        let ids = samples.tensor(&format!("{name}.input_ids"))?;
        let tokens: Vec<i64> = ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        let expected = samples.tensor(&format!("{name}.logits"))?;
        let expected: Vec<f32> = expected.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let &[batch, len] = ids.shape() else { return Err(format!("{name}: {:?}", ids.shape()).into()) };
        let options = Options { threads: 1, ..Options::default() };
        let logits = Model::open(&models.join(format!("{name}.onnx")), &options)?.logits(&tokens, batch, len)?;
        assert_eq!(logits.len(), expected.len(), "{name}");
        let close = |(a, b): &(&f32, &f32)| (*a - *b).abs() < TOLERANCE;
        let far = logits.iter().zip(&expected).find(|pair| !close(pair));
        assert!(far.is_none(), "{name}: {far:?}");
        checked += 1;
    }
    assert_eq!(checked, 5);
    Ok(())
}

/// Weights behind axes of size 1, in containers and below a module whose `forward` is called by name; an embedding with a
/// row for the mask token, which the head has not.
#[test]
fn a_modulated_model_keeps_the_names_and_shapes_of_its_modules() -> Result<(), Box<dyn Error>> {
    const WIDTH: i64 = 16;
    let mut expected: BTreeSet<(String, Vec<i64>)> = BTreeSet::new();
    let mut linear = |name: String, inputs: i64, outputs: i64, bias: bool| {
        expected.insert((format!("{name}.weight"), vec![outputs, inputs]));
        if bias {
            expected.insert((format!("{name}.bias"), vec![outputs]));
        }
    };
    for layer in 0..2 {
        let block = |part: &str| format!("net.parts.blocks.{layer}.{part}");
        linear(block("qkv"), WIDTH, 3 * WIDTH, false);
        linear(block("out"), WIDTH, WIDTH, false);
        linear(block("mlp.0"), WIDTH, 2 * WIDTH, true);
        linear(block("mlp.2"), 2 * WIDTH, WIDTH, true);
        linear(block("modulation"), 8, 6 * WIDTH, true);
    }
    linear("net.parts.embed".into(), WIDTH, 65, false);
    linear("net.parts.head".into(), WIDTH, 64, true);
    linear("net.time.0".into(), 8, 8, true);
    linear("net.time.2".into(), 8, 8, true);
    let norms =
        ["parts.norm", "parts.blocks.0.norm1", "parts.blocks.0.norm2", "parts.blocks.1.norm1", "parts.blocks.1.norm2"];
    expected.extend(norms.map(|norm| (format!("net.{norm}.weight"), vec![WIDTH])));

    for exporter in ["dynamo18", "legacy17"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("models/modulated_{exporter}.onnx"));
        let manifest = compile(&Compile { mask_id: Some(64), ..Compile::new(path) })?.manifest;
        let named = manifest.parameters.iter().map(|p| {
            let mut shape = p.shape.clone();
            if p.transposed {
                shape.reverse();
            }
            (p.name.clone(), shape)
        });
        assert_eq!(named.collect::<BTreeSet<_>>(), expected, "{exporter}");
        assert_eq!(manifest.vocab_size, 64, "{exporter}");
    }
    Ok(())
}
