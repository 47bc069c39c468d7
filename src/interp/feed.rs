//! From feeds to leaves: sizes are bound to symbols, contradictions are listed.

use crate::error::{Error, Problem};
use crate::ir::{DType, Data, Dim, Graph, Id, Leaf, LeafId, Lit, Sym, Type};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

/// The value of each symbol.
#[derive(Default, Debug)]
pub struct Symbols(BTreeMap<Sym, i64>);

impl Symbols {
    fn value(&self, dim: &Dim) -> Option<i64> {
        dim.eval(&|s| self.0.get(s).copied())
    }

    /// Binds the size of a list to how many elements of a mask are true.
    pub fn count(&mut self, list: &Type, mask: &[Tensor]) {
        let monomials = list.shape().first().map(Dim::monomials).unwrap_or_default();
        if let ([(syms, 1)], [mask]) = (monomials.as_slice(), mask)
            && let ([sym], Ok(n)) = (syms.as_slice(), mask.sum_all().and_then(|n| n.to_scalar::<f64>()))
        {
            self.0.insert(sym.clone(), n as i64);
        }
    }

    fn dim(&self, dim: &Dim) -> Result<Dim, String> {
        self.value(dim).map(Dim::Known).ok_or_else(|| format!("size {dim} follows from no feed"))
    }

    /// A shape with every symbol replaced by its value.
    pub fn shape(&self, shape: &[Dim]) -> Result<Vec<Dim>, String> {
        shape.iter().map(|d| self.dim(d)).collect()
    }

    /// A literal with every symbol replaced by its value.
    pub fn literal(&self, lit: &Lit) -> Result<Lit, String> {
        Ok(match lit {
            Lit::Int(d) => Lit::Int(self.dim(d)?),
            Lit::Ints(ds) => Lit::Ints(self.shape(ds)?.into()),
            other => other.clone(),
        })
    }
}

/// The tensors of the live leaves in f64, and the symbols that their shapes bind.
pub fn bind(
    graph: &Graph,
    live: &[Id],
    feeds: &BTreeMap<String, Tensor>,
) -> Result<(BTreeMap<LeafId, Tensor>, Symbols), Error> {
    let mut problems: Vec<Problem> = feeds
        .keys()
        .filter(|name| graph.find_leaf(name).is_none())
        .map(|name| Problem::new(name.as_str(), "the graph has no such input"))
        .collect();
    let mut tensors = BTreeMap::new();
    let mut symbols = Symbols::default();
    for id in live.iter().filter_map(|id| graph.as_leaf(*id)) {
        let leaf = graph.leaf(id);
        let found = match feeds.get(&leaf.name) {
            Some(t) => t.to_dtype(candle_core::DType::F64).map_err(|e| e.to_string()),
            None => stored(leaf),
        };
        match found {
            Ok(t) => {
                bind_symbols(leaf, &t, &mut symbols, &mut problems);
                tensors.insert(id, t);
            }
            Err(m) => problems.push(Problem::new(leaf.name.as_str(), m)),
        }
    }
    // Only now is every symbol bound that a size like `2*seq-1` may mention.
    for (id, tensor) in &tensors {
        let leaf = graph.leaf(*id);
        let agrees = |(d, n): (&Dim, &usize)| symbols.value(d) == i64::try_from(*n).ok();
        if tensor.rank() != leaf.ty.rank() || !leaf.ty.shape.iter().zip(tensor.dims()).all(agrees) {
            let bound: Vec<String> = symbols.0.iter().map(|(s, n)| format!("{}={n}", s.as_str())).collect();
            let message = format!("has type {} but shape {:?} was fed", leaf.ty, tensor.dims());
            let help = if bound.is_empty() { None } else { Some(format!("with {}", bound.join(", "))) };
            problems.push(Problem { place: leaf.name.clone(), message, help });
        }
    }
    if problems.is_empty() { Ok((tensors, symbols)) } else { Err(Error::Usage { problems }) }
}

fn bind_symbols(leaf: &Leaf, tensor: &Tensor, symbols: &mut Symbols, problems: &mut Vec<Problem>) {
    for (dim, &n) in leaf.ty.shape.iter().zip(tensor.dims()) {
        let monomials = dim.monomials();
        let [(syms, 1)] = monomials.as_slice() else { continue };
        let [sym] = syms.as_slice() else { continue };
        let old = symbols.0.entry(sym.clone()).or_insert(n as i64);
        if *old != n as i64 {
            let message = format!("size {} is {n} here but {old} in another input", sym.as_str());
            problems.push(Problem::new(leaf.name.as_str(), message));
        }
    }
}

/// The data that a leaf carries.
fn stored(leaf: &Leaf) -> Result<Tensor, String> {
    let shape: Option<Vec<usize>> =
        leaf.ty.shape.iter().map(|d| d.known().and_then(|n| usize::try_from(n).ok())).collect();
    let (Some(data), Some(shape)) = (&leaf.data, shape) else { return Err("is not fed".into()) };
    let values = decode(leaf.ty.dtype, &bytes(data)?);
    Tensor::from_vec(values, shape, &Device::Cpu).map_err(|e| e.to_string())
}

fn bytes(data: &Data) -> Result<Vec<u8>, String> {
    match data {
        Data::Inline(bytes) => Ok(bytes.to_vec()),
        Data::File { path, offset, len } => {
            let read = || -> std::io::Result<Vec<u8>> {
                let mut file = std::fs::File::open(path)?;
                file.seek(SeekFrom::Start(*offset))?;
                let mut bytes = Vec::new();
                file.take(*len).read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            read().map_err(|e| format!("cannot read {}: {e}", path.display()))
        }
        Data::Derived { from, recipe } => Ok(recipe.apply(&bytes(from)?)),
    }
}

/// Little-endian elements as f64.
fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect()
    }
    match dtype {
        DType::F64 => each(bytes, f64::from_le_bytes),
        DType::F32 => each(bytes, |b| f32::from_le_bytes(b).into()),
        DType::F16 => each(bytes, |b| half::f16::from_le_bytes(b).into()),
        DType::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).into()),
        DType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        DType::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        DType::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        DType::U8 => each(bytes, |[b]| b.into()),
        DType::U4 => bytes.iter().flat_map(|b| [b & 15, b >> 4].map(f64::from)).collect(),
        DType::I4 => bytes.iter().flat_map(|b| [b & 15, b >> 4].map(|c| f64::from(c ^ 8) - 8.0)).collect(),
        DType::Bool => each(bytes, |[b]| f64::from(b != 0)),
    }
}
