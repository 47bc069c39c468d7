//! Finding tensors that hold the same numbers, straight or transposed, without reading them all.
//!
//! Shapes decide first: a shape that occurs once is never read.  Then one short piece of each tensor
//! does, and whole tensors are compared only where that piece is the same and not of one number.

use super::tensor::Tensor;
use super::weights;
use crate::ir::graph::{Data, Leaf, LeafKind};
use crate::ir::{Dim, TensorType};
use rustc_hash::FxHashMap;

/// Bytes in the middle of a tensor that are compared before whole tensors are.
const PIECE: u64 = 4096;

/// Elements all over a tensor that are compared before whole tensors are.
const SAMPLES: u64 = 32;

/// Side of the tiles in which a transpose is compared, so that both sides stay in the cache.
const TILE: u64 = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Straight,
    Transposed,
}

/// A tensor as a matrix (its last axis are the columns) that is read in places.
#[derive(Debug)]
struct Matrix {
    source: String,
    data: Data,
    shape: Vec<Dim>,
    rows: u64,
    columns: u64,
    size: u64,
    /// Nothing but an operand of matrix products.
    is_factor: bool,
}

/// Tensors seen so far.
#[derive(Default)]
pub struct Ties {
    /// By element type, rows and columns.
    shapes: FxHashMap<(&'static str, u64, u64), Group>,
}

/// Tensors of one shape.
#[derive(Default)]
struct Group {
    members: Vec<Matrix>,
    /// Members by their pieces, as far as they have been read: not before there are two.
    by_piece: FxHashMap<Vec<u8>, Vec<usize>>,
    read: usize,
}

impl Matrix {
    /// `None` for a single number and for what cannot be read.
    fn new(source: &str, leaf: &Leaf, is_factor: bool) -> Option<Matrix> {
        let dims: Option<Vec<u64>> =
            leaf.ty.shape.iter().map(|d| d.known().and_then(|n| u64::try_from(n).ok())).collect();
        let (columns, rows) = dims?.split_last().map(|(c, rest)| (*c, rest.iter().product::<u64>()))?;
        let (size, data) = (leaf.ty.dtype.size() as u64, leaf.data.clone()?);
        (rows * columns > 1 && rows * columns * size == data.len()).then_some(Matrix {
            source: source.to_string(),
            data,
            shape: leaf.ty.shape.clone(),
            rows,
            columns,
            size,
            is_factor,
        })
    }

    fn at(&self, row: u64, column: u64) -> Option<Vec<u8>> {
        weights::part(&self.data, (row * self.columns + column) * self.size, self.size).ok()
    }

    /// The middle of the tensor.
    fn piece(&self) -> Option<Vec<u8>> {
        let len = self.data.len().min(PIECE);
        let start = (self.data.len() - len) / 2;
        weights::part(&self.data, start - start % self.size, len).ok()
    }

    /// Fixed places all over the matrix.
    fn places(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (rows, columns) = (self.rows, self.columns);
        (0..SAMPLES).map(move |k| (k * 7919 % rows, (k * 104_729 + 13) % columns))
    }

    /// Whether the tensor repeats one number, as far as its piece and samples show.  A file of holes is
    /// never read beyond them.
    fn is_constant(&self) -> bool {
        let Some(piece) = self.piece() else { return true };
        let first = piece.get(..self.size as usize);
        uniform(&piece, self.size as usize)
            && (piece.len() as u64 == self.data.len() || self.places().all(|(r, c)| self.at(r, c).as_deref() == first))
    }

    fn equals(&self, other: &Matrix) -> bool {
        let bytes = |m: &Matrix| weights::load(&m.data).ok();
        let (Some(a), Some(b)) = (bytes(self), bytes(other)) else { return false };
        self.shape == other.shape && *a == *b
    }

    fn is_transpose_of(&self, other: &Matrix) -> bool {
        if self.places().any(|(r, c)| self.at(r, c) != other.at(c, r)) {
            return false;
        }
        let bytes = |m: &Matrix| weights::load(&m.data).ok();
        let (Some(a), Some(b)) = (bytes(self), bytes(other)) else { return false };
        let range = |k: u64| (k * self.size) as usize..((k + 1) * self.size) as usize;
        let same = |r: u64, c: u64| a.get(range(r * self.columns + c)) == b.get(range(c * self.rows + r));
        let tiles = |n: u64| (0..n).step_by(TILE as usize);
        tiles(self.rows).all(|top| {
            tiles(self.columns).all(|left| {
                (top..self.rows.min(top + TILE)).all(|r| (left..self.columns.min(left + TILE)).all(|c| same(r, c)))
            })
        })
    }
}

/// Whether all elements are the same, as far as a few thousand of them show.
pub fn is_uniform(tensor: &Tensor) -> bool {
    let dims: Vec<Dim> = tensor.dims.iter().map(|n| Dim::Known(*n as i64)).collect();
    let leaf = Leaf {
        name: String::new(),
        ty: TensorType::new(tensor.dtype, dims),
        kind: LeafKind::Const,
        data: Some(tensor.data.clone()),
        transposed: false,
        source_name: None,
    };
    Matrix::new("", &leaf, true).is_some_and(|m| m.is_constant())
}

fn uniform(bytes: &[u8], size: usize) -> bool {
    // Every element equals its neighbour.
    bytes.get(size..).is_none_or(|rest| rest == &bytes[..bytes.len() - size])
}

impl Group {
    /// The earlier member with the same numbers.
    fn find(&mut self, matrix: &Matrix) -> Option<String> {
        for (k, member) in self.members.iter().enumerate().skip(self.read) {
            self.by_piece.entry(member.piece()?).or_default().push(k);
        }
        self.read = self.members.len();
        let alike = self.by_piece.get(&matrix.piece()?)?;
        if matrix.is_constant() {
            return None;
        }
        alike.iter().filter_map(|k| self.members.get(*k)).find(|m| m.equals(matrix)).map(|m| m.source.clone())
    }

    /// The earlier member with the same numbers, transposed.  Exporters store the transposed weight of
    /// a linear layer; a pair is one that something else uses too, as an embedding does its table.
    fn find_transposed(&self, matrix: &Matrix) -> Option<String> {
        let mut pairs = self.members.iter().filter(|m| !(m.is_factor && matrix.is_factor)).peekable();
        pairs.peek()?;
        if matrix.is_constant() {
            return None;
        }
        pairs.find(|m| matrix.is_transpose_of(m)).map(|m| m.source.clone())
    }
}

impl Ties {
    /// The earlier tensor that this one repeats; otherwise the tensor is remembered.  `is_factor`: it is
    /// used in matrix products only.
    ///
    /// Tensors of one repeated value never tie: equal initial values are not a tie.
    pub fn find_or_insert(&mut self, source: &str, leaf: &Leaf, is_factor: bool) -> Option<(String, Form)> {
        let matrix = Matrix::new(source, leaf, is_factor)?;
        let dtype = leaf.ty.dtype.name();
        let group = self.shapes.entry((dtype, matrix.rows, matrix.columns)).or_default();
        if !group.members.is_empty()
            && let Some(found) = group.find(&matrix)
        {
            return Some((found, Form::Straight));
        }
        if leaf.ty.rank() == 2
            && let Some(group) = self.shapes.get(&(dtype, matrix.columns, matrix.rows))
            && let Some(found) = group.find_transposed(&matrix)
        {
            return Some((found, Form::Transposed));
        }
        self.shapes.entry((dtype, matrix.rows, matrix.columns)).or_default().members.push(matrix);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::graph::LeafKind;
    use crate::ir::{DType, TensorType};
    use std::io::Write;

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
        assert_eq!(ties.find_or_insert("w", &leaf(70, 130, value), false), None);
        assert_eq!(ties.find_or_insert("copy", &leaf(70, 130, value), true), Some(("w".into(), Form::Straight)));
        let turned = leaf(130, 70, |r, c| value(c, r));
        assert_eq!(ties.find_or_insert("turned", &turned, true), Some(("w".into(), Form::Transposed)));
        // One element differs, where no sample looks.
        let near = leaf(130, 70, |r, c| value(c, r) + if (r, c) == (129, 69) { 1.0 } else { 0.0 });
        assert_eq!(ties.find_or_insert("near", &near, true), None);
        assert_eq!(ties.find_or_insert("zeros", &leaf(3, 3, |_, _| 0.0), true), None);
        assert_eq!(ties.find_or_insert("zeros2", &leaf(3, 3, |_, _| 0.0), false), None);
    }
    #[test]
    fn files_of_holes_never_tie_and_filled_ones_do() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let part = |offset: u64| {
            let data = Data::File { path: file.path().to_path_buf(), offset, len: 1 << 20 };
            Leaf { data: Some(data), ..leaf(1 << 9, 1 << 9, |_, _| 0.0) }
        };
        let (first, second) = (part(0), part(1 << 20));
        file.as_file().set_len(2 << 20).unwrap();
        let find = || {
            let mut ties = Ties::default();
            [("table", &first, false), ("head", &second, true)].map(|(n, l, f)| ties.find_or_insert(n, l, f))
        };
        assert_eq!(find(), [None, None]);
        let numbers: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        file.write_all(&numbers).unwrap();
        assert_eq!(find(), [None, None]);
        file.write_all(&numbers).unwrap();
        assert_eq!(find(), [None, Some(("table".into(), Form::Straight))]);
    }
}
