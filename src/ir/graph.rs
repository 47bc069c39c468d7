//! The graph: an arena of hash-consed, typed, pure nodes.

use super::builder::{Builder, RowNames};
use super::dim::Dim;
use super::infer::infer;
use super::op::Op;
use super::recipe::Recipe;
use super::ty::{DType, Lit, TensorType, Type};

use rustc_hash::FxHashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Index of a node.  egg's own type, so that one `Node` serves the graph and the e-graph.
pub type Id = egg::Id;

/// Index into `Graph::leaves`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LeafId(pub u32);

/// One node: an operator over children, a leaf, or a literal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Node {
    /// Operands first, then attributes (literal nodes).
    Op(Op, Box<[Id]>),
    Leaf(LeafId),
    Lit(Lit),
}

impl Node {
    pub fn children(&self) -> &[Id] {
        if let Node::Op(_, c) = self { c } else { &[] }
    }

    pub fn op(&self) -> Option<Op> {
        if let Node::Op(op, _) = self { Some(*op) } else { None }
    }
}

/// What a leaf stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeafKind {
    /// Fed at every run.
    Input,
    /// A weight; trainable or frozen is decided by the compile options.
    Param,
    /// A fixed table, e.g. rotary cosines.
    Const,
}

/// The bytes of a weight, little-endian and dense.  Large weights stay on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Inline(Arc<[u8]>),
    File {
        path: PathBuf,
        offset: u64,
        len: u64,
    },
    /// Computed from other data whenever it is read, so that it takes no memory until then.
    Derived {
        from: Arc<Data>,
        recipe: Recipe,
    },
}

impl Data {
    /// Bytes of the tensor.
    pub fn len(&self) -> u64 {
        match self {
            Data::Inline(bytes) => bytes.len() as u64,
            Data::File { len, .. } => *len,
            Data::Derived { from, recipe } => recipe.len(from.len()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A named value from outside the graph.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub name: String,
    pub ty: TensorType,
    pub kind: LeafKind,
    pub data: Option<Data>,
    /// The tensor is the transpose of the source's parameter of the same name.
    pub transposed: bool,
    /// The name in the source file, where it differs.
    pub source_name: Option<String>,
}

/// A hash-consed graph with named outputs.
#[derive(Clone, Default, Debug)]
pub struct Graph {
    pub name: String,
    nodes: Vec<Node>,
    types: Vec<Type>,
    memo: FxHashMap<Node, Id>,
    /// By mask, the size that the node which finds its rows defines.
    rows: FxHashMap<Id, Dim>,
    row_names: RowNames,
    pub leaves: Vec<Leaf>,
    pub outputs: Vec<(String, Id)>,
    /// The source node that a node was read from, for messages.
    pub origin: FxHashMap<Id, Arc<str>>,
}

impl Graph {
    pub fn new(name: &str) -> Self {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// An empty graph over the same leaves, to be filled by a stage.
    pub fn with_leaves_of(other: &Graph) -> Self {
        Graph { name: other.name.clone(), leaves: other.leaves.clone(), ..Graph::default() }
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[usize::from(id)]
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn leaf(&self, id: LeafId) -> &Leaf {
        &self.leaves[id.0 as usize]
    }

    /// The leaf behind a node, if it is one.
    pub fn as_leaf(&self, id: Id) -> Option<LeafId> {
        if let Node::Leaf(l) = self.node(id) { Some(*l) } else { None }
    }

    pub fn add_leaf(&mut self, leaf: Leaf) -> Id {
        let id = LeafId(self.leaves.len() as u32);
        let ty = Type::Tensor(leaf.ty.clone());
        self.leaves.push(leaf);
        self.push(Node::Leaf(id), ty)
    }

    /// A graph input.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[super::Dim]) -> Id {
        let ty = TensorType::new(dtype, shape);
        self.add_leaf(Leaf {
            name: name.into(),
            ty,
            kind: LeafKind::Input,
            data: None,
            transposed: false,
            source_name: None,
        })
    }

    /// The node of a leaf, by name.
    pub fn find_leaf(&self, name: &str) -> Option<LeafId> {
        self.leaves.iter().position(|l| l.name == name).map(|k| LeafId(k as u32))
    }

    fn push(&mut self, node: Node, ty: Type) -> Id {
        let id = Id::from(self.nodes.len());
        if let (Node::Op(Op::TrueRows, c), Some(n)) = (&node, ty.shape().first()) {
            self.row_names.take(n);
            self.rows.entry(c[0]).or_insert_with(|| n.clone());
        }
        self.memo.insert(node.clone(), id);
        self.nodes.push(node);
        self.types.push(ty);
        id
    }

    pub fn tensor_type(&self, id: Id) -> Option<&TensorType> {
        self.type_of(id).tensor()
    }

    /// Where `id` is exactly one part of a list: that list, and which.  See [`Op::parts`].
    pub fn part(&self, id: Id) -> Option<(Id, usize)> {
        let Node::Op(Op::Slice, slice) = self.node(id) else { return None };
        let Node::Op(list, operands) = self.node(slice[0]) else { return None };
        let int = |k: usize| self.type_of(slice[k]).lit()?.int();
        let mut end = super::Dim::Known(0);
        for k in 0..list.parts() {
            let start = end.clone();
            end = end + super::dim::numel(self.type_of(*operands.get(k + 1)?).shape());
            if int(1)?.is(0) && int(2)? == &start && int(3)? == &end && int(4)?.is(1) {
                return Some((slice[0], k)).filter(|_| list.parts() > 1);
            }
        }
        None
    }

    /// Every node that the outputs need, operands before users.
    pub fn live(&self) -> Vec<Id> {
        self.reachable(self.outputs.iter().map(|(_, id)| *id))
    }

    /// The same, with what defines a size before everything else that may mention it.
    pub fn live_sizes_first(&self) -> Vec<Id> {
        let live = self.live();
        let sizes = live.iter().copied().filter(|id| self.node(*id).op() == Some(Op::TrueRows));
        self.reachable(sizes.chain(self.outputs.iter().map(|(_, id)| *id)))
    }

    /// Every node that the roots need, operands before users.
    pub fn reachable(&self, roots: impl IntoIterator<Item = Id>) -> Vec<Id> {
        self.reachable_but(roots, &|_| false)
    }

    /// The same without those that are `done` and what only they need.
    pub fn reachable_but(&self, roots: impl IntoIterator<Item = Id>, done: &dyn Fn(Id) -> bool) -> Vec<Id> {
        let mut seen = vec![false; self.nodes.len()];
        let mut order = Vec::new();
        let mut stack: Vec<(Id, usize)> = Vec::new();
        for root in roots {
            if !std::mem::replace(&mut seen[usize::from(root)], true) {
                stack.push((root, 0));
            }
            while let Some((id, k)) = stack.pop() {
                match self.node(id).children().get(k) {
                    Some(&child) => {
                        stack.push((id, k + 1));
                        if !done(child) && !std::mem::replace(&mut seen[usize::from(child)], true) {
                            stack.push((child, 0));
                        }
                    }
                    None => order.push(id),
                }
            }
        }
        order
    }

    /// How many operator nodes the outputs need, by operator name.
    pub fn histogram(&self) -> std::collections::BTreeMap<&'static str, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for id in self.live() {
            if let Some(op) = self.node(id).op() {
                *counts.entry(op.name()).or_default() += 1;
            }
        }
        counts
    }

    /// Copies the outputs of `from`, and what they need, into this graph of the same leaf table, which has none yet.
    ///
    /// `change` may put another node in place of the plain copy; it sees the copied children.
    pub fn copy_outputs(
        &mut self,
        from: &Graph,
        mut change: impl FnMut(&mut Graph, Id, Node) -> Result<Id, String>,
    ) -> Result<(), String> {
        let mut map: FxHashMap<Id, Id> = FxHashMap::default();
        for id in from.live() {
            let node = match from.node(id) {
                Node::Op(op, c) => Node::Op(*op, c.iter().map(|x| map[x]).collect()),
                other => other.clone(),
            };
            let new = change(self, id, node)?;
            if let Some(origin) = from.origin.get(&id) {
                self.origin.entry(new).or_insert_with(|| origin.clone());
            }
            map.insert(id, new);
        }
        self.outputs = from.outputs.iter().map(|(name, id)| (name.clone(), map[id])).collect();
        Ok(())
    }
}

impl Builder for Graph {
    fn insert(&mut self, node: Node) -> Result<Id, String> {
        if let Some(id) = self.memo.get(&node) {
            return Ok(*id);
        }
        let ty = match &node {
            Node::Lit(l) => Type::Lit(l.clone()),
            Node::Leaf(l) => Type::Tensor(self.leaf(*l).ty.clone()),
            Node::Op(op, children) => {
                let types: Vec<&Type> = children.iter().map(|c| self.type_of(*c)).collect();
                infer(*op, &types)?
            }
        };
        Ok(self.push(node, ty))
    }

    fn type_of(&self, id: Id) -> &Type {
        &self.types[usize::from(id)]
    }

    fn node_of(&self, id: Id) -> &Node {
        self.node(id)
    }

    fn canonical(&self, id: Id) -> Id {
        id
    }

    fn rows_of(&self, mask: Id) -> Option<Dim> {
        self.rows.get(&mask).cloned()
    }

    fn row_names(&mut self) -> &mut RowNames {
        &mut self.row_names
    }
}
