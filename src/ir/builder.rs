//! Building terms: what a graph and an e-graph have in common.

use super::dim::{Dim, Sym};
use super::graph::{Id, Node};
use super::op::Op;
use super::ty::{Lit, Type};
use rustc_hash::{FxHashMap, FxHashSet};

/// What the names of sizes begin with that count rows.
pub const ROWS: &str = "rows.";

/// The sizes of rows that several sequences share: how many there are, and their length.
pub const PACKED: [&str; 2] = ["packed.rows", "packed.length"];

/// The names of numbers of rows: `rows.0`, `rows.1`, ...
#[derive(Clone, Default, Debug)]
pub struct RowNames {
    taken: FxHashSet<Dim>,
    /// All below are taken.
    next: usize,
}

impl RowNames {
    /// Notes that a node defines `n`.
    pub fn take(&mut self, n: &Dim) {
        self.taken.insert(n.clone());
    }

    /// The first name that no node defines.
    pub fn unused(&mut self) -> Dim {
        loop {
            let n = Dim::sym(&format!("{ROWS}{}", self.next));
            if !self.taken.contains(&n) {
                return n;
            }
            self.next += 1;
        }
    }
}

/// Whatever terms can be built in: the graph, and the e-graph.
pub trait Builder {
    /// Adds a node, or returns the one that is there.  `Err` says why it has no type.
    fn insert(&mut self, node: Node) -> Result<Id, String>;
    fn type_of(&self, id: Id) -> &Type;
    /// A node that computes this value; in an e-graph, one of them.
    fn node_of(&self, id: Id) -> &Node;
    /// The one name of equal values.
    fn canonical(&self, id: Id) -> Id;
    /// The number of the true rows of `mask`, where a node finds them.
    fn rows_of(&self, mask: Id) -> Option<Dim>;
    /// The names of such numbers.
    fn row_names(&mut self) -> &mut RowNames;

    /// The places of the true elements of `mask`, whose number is a size of its own: that of the node which finds the
    /// same rows already, or a new one.
    fn true_rows(&mut self, mask: Id) -> Result<Id, String> {
        let mask = self.canonical(mask);
        let n = self.rows_of(mask).unwrap_or_else(|| self.row_names().unused());
        let n = self.lit(Lit::Int(n))?;
        self.op(Op::TrueRows, &[mask, n])
    }

    /// `root` with `leaf` replaced by `new`.  Linear in what `root` needs; what does not depend on the
    /// leaf is shared, not copied.  Rows that are found anew have a new number, also in the shapes that name it.
    fn substitute(&mut self, root: Id, leaf: Id, new: Id) -> Result<Id, String> {
        let (root, leaf) = (self.canonical(root), self.canonical(leaf));
        let found = |node: &Node, id: Id, b: &Self| match node {
            Node::Op(Op::TrueRows, _) => b.type_of(id).shape().first().map(|n| (n.clone(), id)),
            _ => None,
        };
        let mut counts: FxHashMap<Dim, Id> = FxHashMap::default();
        let mut seen = FxHashSet::from_iter([leaf]);
        let mut stack = vec![root];
        while let Some(id) = stack.pop() {
            if seen.insert(id) {
                counts.extend(found(self.node_of(id), id, self));
                stack.extend(self.node_of(id).children().iter().map(|c| self.canonical(*c)));
            }
        }
        // Where the rows are found whose numbers a literal names.
        let named = |lit: &Lit| -> Vec<(Sym, Id)> {
            let sizes = lit.int().into_iter().chain(lit.ints().into_iter().flatten());
            let symbols = sizes.flat_map(Dim::symbols);
            symbols.filter_map(|s| Some((s.clone(), *counts.get(&Dim::sym(s.as_str()))?))).collect()
        };
        let mut copies: FxHashMap<Id, Id> = FxHashMap::default();
        copies.insert(leaf, new);
        stack.push(root);
        while let Some(&id) = stack.last() {
            if copies.contains_key(&id) {
                stack.pop();
                continue;
            }
            let node = self.node_of(id).clone();
            let children: Vec<Id> = match &node {
                Node::Op(Op::TrueRows, children) => vec![self.canonical(children[0])],
                Node::Lit(lit) if !counts.is_empty() => named(lit).into_iter().map(|(_, rows)| rows).collect(),
                node => node.children().iter().map(|c| self.canonical(*c)).collect(),
            };
            let missing = children.iter().filter(|c| !copies.contains_key(c));
            let before = stack.len();
            stack.extend(missing);
            if stack.len() > before {
                continue;
            }
            let copied: Box<[Id]> = children.iter().map(|c| copies[c]).collect();
            let same = copied.iter().zip(&children).all(|(a, b)| a == b);
            let copy = match node {
                _ if same => id,
                Node::Op(Op::TrueRows, _) => self.true_rows(copied[0])?,
                Node::Op(op, _) => self.insert(Node::Op(op, copied))?,
                Node::Lit(lit) => {
                    let named = named(&lit);
                    let size = |s: &Sym| {
                        let (_, rows) = named.iter().find(|(name, _)| name == s)?;
                        self.type_of(copies[rows]).shape().first().cloned()
                    };
                    let lit = lit.replaced(&size);
                    self.lit(lit)?
                }
                _ => id,
            };
            copies.insert(id, copy);
            stack.pop();
        }
        Ok(copies[&root])
    }

    fn lit(&mut self, lit: Lit) -> Result<Id, String> {
        self.insert(Node::Lit(lit))
    }

    fn op(&mut self, op: Op, children: &[Id]) -> Result<Id, String> {
        self.insert(Node::Op(op, children.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_rows_have_names_of_their_own() {
        let mut names = RowNames::default();
        for k in [0, 2] {
            names.take(&Dim::sym(&format!("rows.{k}")));
        }
        assert_eq!(names.unused(), Dim::sym("rows.1"));
        names.take(&Dim::sym("rows.1"));
        assert_eq!(names.unused(), Dim::sym("rows.3"));
    }
}
