//! Finding tensors that hold the same numbers, straight or transposed, without reading them all.

use super::weights;
use crate::ir::graph::Leaf;
use std::collections::BTreeMap;

/// How many elements are compared before whole tensors are.
const SAMPLES: usize = 32;

/// Side of the tiles in which a transpose is compared, so that both sides stay in the cache.
const TILE: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Straight,
    Transposed,
}

/// Element type, rows, columns, and the bytes of a few elements.
type Key = (&'static str, usize, usize, Vec<u8>);

/// Tensors seen so far, by element type, shape and a few elements.
#[derive(Default)]
pub struct Ties {
    seen: BTreeMap<Key, Vec<(String, Leaf)>>,
}

/// A tensor as a matrix: its last axis are the columns.
struct Matrix<'a> {
    bytes: &'a [u8],
    size: usize,
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    fn at(&self, row: usize, column: usize) -> &'a [u8] {
        let start = (row * self.columns + column) * self.size;
        self.bytes.get(start..start + self.size).unwrap_or_default()
    }

    /// Elements at fixed places of the matrix, or of its transpose.
    fn samples(&self, form: Form) -> Vec<u8> {
        let (rows, columns) = match form {
            Form::Straight => (self.rows, self.columns),
            Form::Transposed => (self.columns, self.rows),
        };
        let place = |k: usize| (k * 7919 % rows, (k * 104_729 + 13) % columns);
        (0..SAMPLES)
            .map(place)
            .flat_map(|(r, c)| if form == Form::Straight { self.at(r, c) } else { self.at(c, r) })
            .copied()
            .collect()
    }

    fn is_transpose_of(&self, other: &Matrix) -> bool {
        let tiles = |n: usize| (0..n).step_by(TILE);
        tiles(self.rows).all(|top| {
            tiles(self.columns).all(|left| {
                (top..self.rows.min(top + TILE))
                    .all(|r| (left..self.columns.min(left + TILE)).all(|c| self.at(r, c) == other.at(c, r)))
            })
        })
    }
}

fn matrix<'a>(leaf: &Leaf, bytes: &'a [u8]) -> Option<Matrix<'a>> {
    let dims: Option<Vec<usize>> =
        leaf.ty.shape.iter().map(|d| d.known().and_then(|n| usize::try_from(n).ok())).collect();
    let (columns, rows) = dims?.split_last().map(|(c, rest)| (*c, rest.iter().product::<usize>()))?;
    let size = leaf.ty.dtype.size();
    (rows * columns > 1 && rows * columns * size == bytes.len()).then_some(Matrix { bytes, size, rows, columns })
}

/// Whether all elements are the same.
pub fn is_uniform(leaf: &Leaf) -> bool {
    let Ok(bytes) = weights::bytes(leaf) else { return false };
    uniform(&bytes, leaf.ty.dtype.size())
}

fn uniform(bytes: &[u8], size: usize) -> bool {
    // Every element equals its neighbour.
    bytes.get(size..).is_none_or(|rest| rest == &bytes[..bytes.len() - size])
}

impl Ties {
    /// The earlier tensor that this one repeats; otherwise the tensor is remembered.
    ///
    /// Tensors of one repeated value never tie: equal initial values are not a tie.
    pub fn find_or_insert(&mut self, source: &str, leaf: &Leaf) -> Option<(String, Form)> {
        let bytes = weights::bytes(leaf).ok()?;
        let m = matrix(leaf, &bytes)?;
        let dtype = leaf.ty.dtype.name();
        let straight = (dtype, m.rows, m.columns, m.samples(Form::Straight));
        if uniform(&straight.3, m.size) && uniform(&bytes, m.size) {
            return None;
        }
        let same = |name: &str, other: &Leaf, form: Form| {
            let theirs = weights::bytes(other).ok()?;
            let equal = match form {
                Form::Straight => leaf.ty.shape == other.ty.shape && *theirs == *bytes,
                Form::Transposed => m.is_transpose_of(&matrix(other, &theirs)?),
            };
            equal.then(|| (name.to_string(), form))
        };
        let find = |key: &Key, form| self.seen.get(key).into_iter().flatten().find_map(|(n, l)| same(n, l, form));
        let mut found = find(&straight, Form::Straight);
        if found.is_none() && leaf.ty.rank() == 2 {
            let turned = (dtype, m.columns, m.rows, m.samples(Form::Transposed));
            found = find(&turned, Form::Transposed);
        }
        if found.is_none() {
            self.seen.entry(straight).or_default().push((source.to_string(), leaf.clone()));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::graph::{Data, LeafKind};
    use crate::ir::{DType, Dim, TensorType};

    fn leaf(rows: i64, columns: i64, element: impl Fn(i64, i64) -> f32) -> Leaf {
        let bytes = (0..rows * columns).flat_map(|k| element(k / columns, k % columns).to_le_bytes());
        Leaf {
            name: String::new(),
            ty: TensorType::new(DType::F32, [Dim::Known(rows), Dim::Known(columns)]),
            kind: LeafKind::Param,
            data: Some(Data::Inline(bytes.collect())),
            transposed: false,
            source_name: None,
        }
    }

    #[test]
    fn repeats_are_found_in_both_forms() {
        let mut ties = Ties::default();
        let value = |r: i64, c: i64| (r * 1000 + c) as f32;
        assert_eq!(ties.find_or_insert("w", &leaf(70, 130, value)), None);
        assert_eq!(ties.find_or_insert("copy", &leaf(70, 130, value)), Some(("w".into(), Form::Straight)));
        let turned = leaf(130, 70, |r, c| value(c, r));
        assert_eq!(ties.find_or_insert("turned", &turned), Some(("w".into(), Form::Transposed)));
        // One element differs, where no sample looks.
        let near = leaf(130, 70, |r, c| value(c, r) + if (r, c) == (129, 69) { 1.0 } else { 0.0 });
        assert_eq!(ties.find_or_insert("near", &near), None);
        assert_eq!(ties.find_or_insert("zeros", &leaf(3, 3, |_, _| 0.0)), None);
        assert_eq!(ties.find_or_insert("zeros2", &leaf(3, 3, |_, _| 0.0)), None);
    }
}
