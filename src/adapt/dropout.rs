//! Dropout on the adapters' path, in the training pass only.
//!
//! A graph that draws its own random numbers could be neither resumed nor compared, and numbers for every element
//! of every layer's input would be more than the activations.  So the runner feeds few: k numbers of Z_p for each
//! token and k for each input of an adapted layer.  The inner product of a token's and an input's, modulo the prime
//! p, is the element's draw: uniform, and independent of the draw of any element that shares no row with it or no
//! column (the inner-product family of pairwise independent hash functions); within a row all draws are independent
//! given the token's numbers.

use crate::ir::{Builder, DType, Dim, Graph, Id, Lit, Op};
use crate::manifest::{DROPOUT, DROPOUT_FIELD, DROPOUT_NUMBERS};
use rustc_hash::FxHashMap;

/// What thins out the inputs of adapted layers.
#[derive(Default)]
pub struct Dropout {
    /// The rate [] and the tokens' numbers [B, L, k], where the rate is not 0.
    draws: Option<[Id; 2]>,
    /// By layer of the source: its inputs' numbers [B, k, n].
    columns: FxHashMap<Id, Id>,
}

/// Adds the inputs of the draws to a graph whose tokens are `[B, L]`, for layers with so many inputs each; nothing
/// at a rate of 0.
pub fn add(graph: &mut Graph, rate: f64, tokens: &[Dim], layers: &[(Id, i64)]) -> std::result::Result<Dropout, String> {
    let [batch, length] = tokens else { return Err("tokens must be [batch, length]".into()) };
    if rate == 0.0 {
        return Ok(Dropout::default());
    }
    let k = Dim::Known(DROPOUT_NUMBERS);
    let total: i64 = layers.iter().map(|(_, width)| width).sum();
    let [rate_name, rows_name, columns_name] = DROPOUT;
    let rate = graph.input(rate_name, DType::F32, &[]);
    let rows = graph.input(rows_name, DType::F32, &[batch.clone(), length.clone(), k.clone()]);
    let all = graph.input(columns_name, DType::F32, &[batch.clone(), k, total.into()]);
    let (mut columns, mut start) = (FxHashMap::default(), 0);
    for (layer, width) in layers {
        let range = [2, start, start + width, 1].map(|n| graph.lit(Lit::Int(n.into())));
        let mut children = vec![all];
        for part in range {
            children.push(part?);
        }
        columns.insert(*layer, graph.op(Op::Slice, &children)?);
        start += width;
    }
    Ok(Dropout { draws: Some([rate, rows]), columns })
}

impl Dropout {
    /// The adapter's input in a layer of the source with the input `x`.
    pub fn input(&self, graph: &mut Graph, layer: Id, x: Id) -> std::result::Result<Id, String> {
        let (Some([rate, rows]), Some(columns)) = (self.draws, self.columns.get(&layer)) else { return Ok(x) };
        let field = graph.lit(Lit::Int(DROPOUT_FIELD.into()))?;
        graph.op(Op::Dropout, &[x, rate, rows, *columns, field])
    }
}
