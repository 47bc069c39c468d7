//! The models in `models/` compute in ONNX Runtime what PyTorch computed when they were exported.

use safetensors::SafeTensors;
use std::error::Error;
use std::path::Path;
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
