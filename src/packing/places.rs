//! What depends on a token's place but on no token, looked up at the place in the token's own sequence.

use super::{Built, Packer, expand, int, reshape, transpose};
use crate::ir::infer::resolve_axis;
use crate::ir::{Builder, Dim, Id, Lit, Node, Op};

impl Packer<'_> {
    /// A value that depends on places alone, along an axis or two, at each token's place in its own sequence: as an operand of
    /// a node `op` with the result `[B, ..]`.
    pub(super) fn placed(&mut self, value: Id, result: &[Dim], op: Op) -> Built<Id> {
        let own = self.model.type_of(value).shape();
        let rank = result.len();
        let mut shape = vec![Dim::Known(1); rank.saturating_sub(own.len())];
        shape.extend(own.iter().cloned());
        // Nothing tells one sequence of it from another.
        shape[0] = 1.into();
        let axes: Vec<usize> = (1..rank).filter(|k| shape[*k] == self.length).collect();
        let Some(&first) = axes.first() else {
            let one = self.one_of(value)?;
            return reshape(&mut self.graph, one, &shape);
        };
        let heads = shape[1..first].to_vec();
        let rest = shape[first + 1..].to_vec();
        (shape[0], shape[first]) = (self.rows.clone(), self.width.clone());
        let mut x = if axes.len() == 1 && heads.iter().all(|d| d.is(1)) {
            let x = self.table(value)?;
            reshape(&mut self.graph, x, &shape)?
        } else {
            let learned = self.mixing.learned(value);
            let one = self.one_of(value)?;
            let whole = [heads.as_slice(), std::slice::from_ref(&self.length), &rest].concat();
            let x = reshape(&mut self.graph, one, &whole)?;
            let to_front = [first - 1].into_iter().chain((0..rank - 1).filter(|k| k + 1 != first));
            let x = transpose(&mut self.graph, x, to_front)?;
            let x = self.at_positions(x, learned)?;
            let back = [0].into_iter().chain(2..first + 1).chain([1]).chain(first + 1..rank);
            transpose(&mut self.graph, x, back)?
        };
        for &b in axes.iter().skip(1) {
            // Each query's row of keys, at the keys' places.
            shape[b] = self.width.clone();
            let mut keys = vec![Dim::Known(1); rank];
            (keys[0], keys[b]) = (self.rows.clone(), self.width.clone());
            let index = reshape(&mut self.graph, self.positions, &keys)?;
            let index = expand(&mut self.graph, index, &shape)?;
            let axis = int(&mut self.graph, b as i64)?;
            x = self.graph.op(Op::GatherElements, &[x, index, axis])?;
        }
        if op == Op::Concat {
            let Lit::Ints(whole) = self.resized(&Lit::Ints(own.into())) else { return Ok(x) };
            return expand(&mut self.graph, x, &whole);
        }
        Ok(x)
    }

    /// A fixed value without its axis of sequences, which are alike: [1, ..], or as it is where it has none.
    fn one_of(&mut self, value: Id) -> Built<Id> {
        let x = self.built[&value];
        if self.graph.type_of(x).shape().first() != Some(&self.batch) {
            return Ok(x);
        }
        let mut children = vec![x];
        for n in [0, 0, 1, 1] {
            children.push(int(&mut self.graph, n)?);
        }
        self.graph.op(Op::Slice, &children)
    }

    /// Sizes other than 1 and B.
    fn squeezed(&self, shape: &[Dim]) -> Vec<Dim> {
        shape.iter().filter(|d| !d.is(1) && **d != self.batch).cloned().collect()
    }

    /// A fixed value, whose squeezed shape is [L, q..], at the tokens' places: [R, W, q..].  Taken from the table that it was
    /// cut out of, if there is one, whose number of rows is known.
    fn table(&mut self, value: Id) -> Built<Id> {
        let shape = self.squeezed(self.model.type_of(value).shape());
        let rows = [&[self.rows.clone(), self.width.clone()], &shape[1..]].concat();
        if let Node::Op(op, c) = self.model.node(value) {
            let own = self.model.type_of(c[0]).shape();
            match op {
                Op::Reshape | Op::Expand if self.squeezed(own) == shape => return self.table(c[0]),
                // The cut runs along tokens, from the first on.
                Op::Slice if self.cuts(c) => {
                    let whole = self.built[&c[0]];
                    let cut = self.squeezed(own);
                    let x = reshape(&mut self.graph, whole, &cut)?;
                    return self.at_positions(x, self.mixing.learned(value));
                }
                Op::Gather if self.reads_rows(c) => {
                    let index = self.table(c[1])?;
                    let axis = int(&mut self.graph, 0)?;
                    let x = self.graph.op(Op::Gather, &[self.built[&c[0]], index, axis])?;
                    return reshape(&mut self.graph, x, &rows);
                }
                _ => {}
            }
        }
        let one = self.one_of(value)?;
        let x = reshape(&mut self.graph, one, &shape)?;
        self.at_positions(x, self.mixing.learned(value))
    }

    /// Whether the operands of a slice are x, an axis, 0, L and 1, where x has rows of known number on that axis and 1 on
    /// those before.
    fn cuts(&self, c: &[Id]) -> bool {
        let int = |k: usize| self.model.type_of(c[k]).lit().and_then(Lit::int);
        let shape = self.model.type_of(c[0]).shape();
        let axis = int(1).and_then(Dim::known).and_then(|k| resolve_axis(k, shape.len()).ok());
        let leads = axis.is_some_and(|k| shape[..k].iter().all(|d| d.is(1)) && shape[k].known().is_some_and(|n| n > 1));
        leads && int(2).is_some_and(|d| d.is(0)) && int(3) == Some(&self.length) && int(4).is_some_and(|d| d.is(1))
    }

    /// Whether the operands of a gather are a table without places, a list of its rows for the places, and axis 0.
    fn reads_rows(&self, c: &[Id]) -> bool {
        let first = self.model.type_of(c[2]).lit().and_then(Lit::int).is_some_and(|d| d.is(0));
        let list = self.squeezed(self.model.type_of(c[1]).shape());
        first && !self.mixing.places(c[0]) && list == std::slice::from_ref(&self.length)
    }

    /// Rows of `x` [n, q..] at the tokens' places in their sequences: [R, W, q..].
    fn at_positions(&mut self, x: Id, learned: bool) -> Built<Id> {
        let shape = self.graph.type_of(x).shape().to_vec();
        let g = &mut self.graph;
        let axis = int(g, 0)?;
        if !learned || shape[0].known().is_some() {
            return g.op(Op::Gather, &[x, self.positions, axis]);
        }
        // The gradient of a lookup wants to know how many rows there are; that of single elements does not.
        let mut one = vec![Dim::Known(1); shape.len()];
        one[0] = self.rows.clone() * self.width.clone();
        let whole = [&one[..1], &shape[1..]].concat();
        let index = reshape(g, self.positions, &one)?;
        let index = expand(g, index, &whole)?;
        let x = g.op(Op::GatherElements, &[x, index, axis])?;
        reshape(g, x, &[&[self.rows.clone(), self.width.clone()], &shape[1..]].concat())
    }
}
