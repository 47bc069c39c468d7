//! Adapters in PEFT's format: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! PEFT keeps factors as PyTorch does, A as [r in] and B as [out r], under
//! `base_model.model.MODULE.lora_A.weight`; a DoRA magnitude `[out]` is `MODULE.lora_magnitude_vector`.

pub mod beside;
pub mod merge;

use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::onnx::weights;
use crate::runtime::{HostTensor, share};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// PEFT's names of its two files.
pub const WEIGHTS: &str = "adapter_model.safetensors";
pub const CONFIG: &str = "adapter_config.json";

/// What PEFT puts before the names of a model's modules.
pub const PREFIX: &str = "base_model.model.";

/// An adapter that was read.
#[derive(Debug)]
pub struct Peft {
    /// weftc's name of its kind: `lora`, `rslora`, `dora`.
    pub kind: &'static str,
    pub rank: i64,
    pub alpha: f64,
    /// By the module's name, without `PREFIX`.
    pub modules: BTreeMap<String, Module>,
}

/// The adapter of one linear layer.
#[derive(Debug)]
pub struct Module {
    /// [r in]
    pub a: HostTensor,
    /// [out r]
    pub b: HostTensor,
    /// `[out]`, of DoRA.
    pub magnitude: Option<HostTensor>,
    /// What B A is multiplied by.
    pub scale: f64,
}

/// `adapter_config.json`, as far as it changes what an adapter computes.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    #[serde(default)]
    r: i64,
    #[serde(default)]
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    lora_bias: bool,
    bias: Option<String>,
    modules_to_save: Option<Vec<String>>,
    rank_pattern: Option<BTreeMap<String, i64>>,
    alpha_pattern: Option<BTreeMap<String, f64>>,
}

impl Config {
    /// What weftc cannot take over.
    fn refused(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut refuse = |what: String, help: &str| problems.push(Problem::new(CONFIG, what).help(help));
        if self.peft_type != "LORA" {
            refuse(format!("peft_type {} is not LORA", self.peft_type), "LoRA, rsLoRA and DoRA can be read");
        }
        if let Some(bias) = self.bias.as_deref().filter(|b| *b != "none") {
            refuse(format!("bias {bias}: it holds trained biases"), "merge it with peft, and export the merged model");
        }
        if self.lora_bias {
            refuse("lora_bias: B has a bias".into(), "merge it with peft, and export the merged model");
        }
        if let Some(modules) = self.modules_to_save.as_ref().filter(|m| !m.is_empty()) {
            let what = format!("modules_to_save {}: it holds whole modules beside adapters", modules.join(", "));
            refuse(what, "merge it with peft, and export the merged model");
        }
        let patterns = self.rank_pattern.iter().flat_map(BTreeMap::keys);
        for key in patterns.chain(self.alpha_pattern.iter().flat_map(BTreeMap::keys)) {
            if !key.chars().all(|c| c.is_alphanumeric() || "_.^$\\-".contains(c)) {
                refuse(format!("the pattern `{key}` is a regular expression"), "name the modules in full");
            }
        }
        problems
    }

    /// The alpha of a module: a pattern names its last parts, as in PEFT.
    fn alpha(&self, module: &str) -> f64 {
        let fits = |key: &str| {
            let plain = key.trim_start_matches('^').trim_end_matches('$').replace('\\', "");
            module == plain || module.ends_with(&format!(".{plain}"))
        };
        let own = self.alpha_pattern.iter().flatten().find(|(key, _)| fits(key));
        own.map_or(self.lora_alpha, |(_, alpha)| *alpha)
    }
}

/// The parts of a module, as they are found.
#[derive(Default)]
struct Found {
    a: Option<HostTensor>,
    b: Option<HostTensor>,
    magnitude: Option<HostTensor>,
}

/// Reads a folder that PEFT or `weftc` wrote.
///
/// # Errors
/// `Io`, or `Usage` with everything that cannot be taken over.
pub fn read(folder: &Path) -> Result<Peft> {
    let text = |path: &Path| std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e));
    let place = |file: &str| folder.join(file).display().to_string();
    let config: Config = serde_json::from_str(&text(&folder.join(CONFIG))?)
        .map_err(|e| Error::usage(Problem::new(place(CONFIG), format!("this is no configuration of PEFT: {e}"))))?;
    let mut problems = config.refused();
    let bytes = weights::map(&folder.join(WEIGHTS))?;
    let tensors = SafeTensors::deserialize(bytes.as_ref())
        .map_err(|e| Error::usage(Problem::new(place(WEIGHTS), format!("this is no safetensors file: {e}"))))?;
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        let Some((module, part)) = parts(&name) else {
            problems.push(
                Problem::new(&name, "it is no factor of a LoRA")
                    .help("keys end in lora_A.weight, lora_B.weight or lora_magnitude_vector"),
            );
            continue;
        };
        let Some(dtype) = dtype(view.dtype()) else {
            problems.push(
                Problem::new(&name, format!("its type is {:?}", view.dtype())).help("f32, f16 and bf16 are read"),
            );
            continue;
        };
        let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        let value = HostTensor::from_bytes(dtype, &shape, view.data().to_vec())?;
        let own = found.entry(module.to_string()).or_default();
        *match part {
            Part::A => &mut own.a,
            Part::B => &mut own.b,
            Part::Magnitude => &mut own.magnitude,
        } = Some(value);
    }
    if found.is_empty() && problems.is_empty() {
        problems.push(Problem::new(place(WEIGHTS), "it holds no factors"));
    }
    let mut modules = BTreeMap::new();
    for (name, own) in found {
        match module(&config, &name, own) {
            Ok(module) => drop(modules.insert(name, module)),
            Err(why) => problems.push(Problem::new(name, why)),
        }
    }
    if !problems.is_empty() {
        return Err(Error::Usage { problems });
    }
    let kind = if config.use_dora {
        "dora"
    } else if config.use_rslora {
        "rslora"
    } else {
        "lora"
    };
    Ok(Peft { kind, rank: config.r, alpha: config.lora_alpha, modules })
}

/// A module whose parts fit one another.
fn module(config: &Config, name: &str, found: Found) -> std::result::Result<Module, String> {
    let (Some(a), Some(b)) = (found.a, found.b) else { return Err("it has one factor of two".into()) };
    let ([rank, _], [outer, rank_too]) = (a.shape(), b.shape()) else {
        return Err(format!("its factors {a:?} and {b:?} are no matrices"));
    };
    if rank != rank_too || *rank == 0 {
        return Err(format!("its factors {a:?} and {b:?} do not fit each other"));
    }
    if config.use_dora != found.magnitude.is_some() {
        return Err(if config.use_dora { "it has no magnitude" } else { "it has a magnitude, and is no DoRA" }.into());
    }
    if found.magnitude.as_ref().is_some_and(|m| m.len() as i64 != *outer) {
        return Err("its magnitude has not one number for each output".into());
    }
    let rank = *rank as f64;
    let scale = config.alpha(name) / if config.use_rslora { rank.sqrt() } else { rank };
    Ok(Module { a, b, magnitude: found.magnitude, scale })
}

enum Part {
    A,
    B,
    Magnitude,
}

/// The module and the part that a key names.
fn parts(key: &str) -> Option<(&str, Part)> {
    let key = key.strip_prefix(PREFIX).unwrap_or(key);
    let ends = |ends: &[&str]| ends.iter().find_map(|end| key.strip_suffix(end));
    None.or_else(|| Some((ends(&[".lora_A.weight", ".lora_A.default.weight"])?, Part::A)))
        .or_else(|| Some((ends(&[".lora_B.weight", ".lora_B.default.weight"])?, Part::B)))
        .or_else(|| Some((ends(&[".lora_magnitude_vector", ".lora_magnitude_vector.weight"])?, Part::Magnitude)))
}

fn dtype(dtype: safetensors::Dtype) -> Option<DType> {
    match dtype {
        safetensors::Dtype::F64 => Some(DType::F64),
        safetensors::Dtype::F32 => Some(DType::F32),
        safetensors::Dtype::F16 => Some(DType::F16),
        safetensors::Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// The one of `names` that is meant by `wanted`: itself, or the only one of which either is the last parts, since
/// frameworks wrap models in modules of their own.
pub fn find<'n>(wanted: &str, names: impl Iterator<Item = &'n str> + Clone) -> Option<&'n str> {
    let within = |short: &str, long: &str| long.strip_suffix(short).is_some_and(|rest| rest.ends_with('.'));
    if let Some(same) = names.clone().find(|n| *n == wanted) {
        return Some(same);
    }
    let mut near = names.filter(|n| within(wanted, n) || within(n, wanted));
    near.next().filter(|_| near.next().is_none())
}

impl Module {
    /// `w + s B A`, each output's row brought to the length of its magnitude where there is one; summed in f64 and
    /// rounded once to the type of `w`, which is [out in], or [in out] where `turned`.
    ///
    /// # Errors
    /// `Runtime` where `w` has another size.
    pub fn merge(&self, w: &HostTensor, turned: bool) -> Result<HostTensor> {
        let size = |t: &HostTensor, axis: usize| t.shape().get(axis).map_or(0, |n| *n as usize);
        let (rank, inner, outer) = (size(&self.a, 0), size(&self.a, 1), size(&self.b, 0));
        if turned {
            return self.merge(&w.transposed()?, false)?.transposed();
        }
        if w.shape() != [outer as i64, inner as i64] {
            return Err(Error::runtime(format!("a weight {w:?} does not fit an adapter of {outer} x {inner}")));
        }
        let (a, b) = (self.a.to_f64(), self.b.to_f64());
        let magnitude = self.magnitude.as_ref().map(HostTensor::to_f64);
        let shape = [inner as i64];
        let width = inner * w.dtype().size();
        let mut bytes = w.bytes().to_vec();
        share::fill(&mut bytes, width, |first, rows| {
            for (o, bytes) in (first..).zip(rows.chunks_mut(width.max(1))) {
                let mut sum = vec![0.0; inner];
                for (k, b) in b[o * rank..(o + 1) * rank].iter().enumerate() {
                    sum.iter_mut().zip(&a[k * inner..(k + 1) * inner]).for_each(|(sum, a)| *sum += b * a);
                }
                let mut row = HostTensor::from_bytes(w.dtype(), &shape, bytes.to_vec())?.to_f64();
                row.iter_mut().zip(sum).for_each(|(x, sum)| *x += self.scale * sum);
                if let Some(magnitude) = &magnitude {
                    let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                    let factor = magnitude.get(o).copied().unwrap_or_default() / length;
                    row.iter_mut().for_each(|x| *x *= factor);
                }
                bytes.copy_from_slice(HostTensor::from_f64(w.dtype(), &shape, &row)?.bytes());
            }
            Ok(())
        })?;
        HostTensor::from_bytes(w.dtype(), w.shape(), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(magnitude: bool) -> Module {
        Module {
            a: HostTensor::new(&[1, 3], &[1f32, 2.0, 0.0]).unwrap(),
            b: HostTensor::new(&[2, 1], &[1f32, -1.0]).unwrap(),
            magnitude: magnitude.then(|| HostTensor::new(&[2], &[10f32, 1.0]).unwrap()),
            scale: 2.0,
        }
    }

    #[test]
    fn merging_is_the_same_either_way_round() {
        let w = HostTensor::new(&[2, 3], &[1f32, 0.0, 0.0, 0.0, 4.0, 3.0]).unwrap();
        for (magnitude, expected) in [
            (false, [3.0, 4.0, 0.0, -2.0, 0.0, 3.0]),
            (true, [6.0, 8.0, 0.0, -2.0 / 13f64.sqrt(), 0.0, 3.0 / 13f64.sqrt()]),
        ] {
            let module = module(magnitude);
            let plain = module.merge(&w, false).unwrap();
            let turned = module.merge(&w.transposed().unwrap(), true).unwrap();
            assert_eq!(plain, turned.transposed().unwrap());
            assert!(plain.to_f64().iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6), "{plain:?}");
        }
        assert!(module(false).merge(&w, true).is_err());
    }

    #[test]
    fn names_are_matched_by_their_ends() {
        let names = ["model.layers.0.q_proj", "model.layers.1.q_proj", "lm_head"];
        let find = |wanted| find(wanted, names.into_iter());
        assert_eq!(find("layers.0.q_proj"), Some(names[0]));
        assert_eq!(find("wrapped.lm_head"), Some(names[2]));
        assert_eq!(find("q_proj"), None);
        assert_eq!(find("x_lm_head"), None);
    }
}
