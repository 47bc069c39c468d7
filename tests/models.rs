//! The models in `models/` compute in ONNX Runtime what PyTorch computed when they were exported.

use prost::Message;
use safetensors::SafeTensors;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use weftc::compile::{Options as Compile, compile};
use weftc::generate::{DeviceArgs, Model};
use weftc::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use weftc::onnx::proto::{ModelProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
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

/// The modulated model with its time as an input, `time` [batch].
fn timed(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/modulated_legacy17.onnx");
    let mut model = ModelProto::decode(std::fs::read(source)?.as_slice())?;
    let graph = model.graph.as_mut().ok_or("no graph")?;
    let zeros = graph.node.iter().position(|n| n.op_type == "ConstantOfShape").ok_or("no zeros")?;
    let zeros = graph.node.remove(zeros);
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|n| **n == zeros.output[0]) {
        *input = "time".into();
    }
    let batch = Dimension { value: Some(dimension::Value::DimParam("batch".into())), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: 1, shape: Some(TensorShapeProto { dim: vec![batch] }) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    graph.input.push(ValueInfoProto { name: "time".into(), r#type: Some(r#type), ..Default::default() });
    let path = folder.join("timed.onnx");
    std::fs::write(&path, model.encode_to_vec())?;
    Ok(path)
}

/// A time that is fixed is the number that the exporter would have written.
#[test]
fn an_input_is_fixed_for_training_and_for_answers() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let model = timed(folder.path())?;
    let at = |time: f64| Compile {
        mask_id: Some(64),
        inputs: BTreeMap::from([("time".to_string(), time)]),
        ..Compile::new(&model)
    };
    let unfed = compile(&Compile { mask_id: Some(64), ..Compile::new(&model) })?;
    assert!(unfed.notes.iter().any(|note| note.starts_with("weftc run cannot feed `time`")), "{:?}", unfed.notes);
    assert!(compile(&Compile { inputs: BTreeMap::from([("tim".to_string(), 0.0)]), ..at(0.0) }).is_err());

    let named = compile(&at(0.0))?.manifest;
    assert_eq!((named.extra_inputs.len(), named.fixed_inputs), (0, BTreeMap::from([("time".to_string(), 0.0)])));
    let tokens: Vec<i64> = (0..24).map(|k| k * 7 % 65).collect();
    let logits = |path: &Path, inputs: &[(&str, f64)]| {
        let inputs = inputs.iter().map(|(n, x)| (n.to_string(), *x)).collect();
        DeviceArgs { threads: 1, inputs, ..DeviceArgs::default() }.open(path, &mut |_| ())?.logits(&tokens, 2, 12)
    };
    let exported = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/modulated_legacy17.onnx");
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
    let (fixed, later) = (logits(&model, &[("time", 0.0)])?, logits(&model, &[("time", 0.7)])?);
    assert!(far(&logits(&exported, &[])?, &fixed) < TOLERANCE && far(&fixed, &later) > 100.0 * TOLERANCE);
    let refusal = logits(&model, &[]).unwrap_err().to_string();
    assert!(refusal.contains("--input NAME=NUMBER"), "{refusal}");
    Ok(())
}
