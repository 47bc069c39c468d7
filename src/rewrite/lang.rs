//! The IR as egg's language: nodes, their types as analysis, and building inside the e-graph.

use crate::ir::builder::RowNames;
use crate::ir::infer::infer;
use crate::ir::{Builder, Dim, Graph, Id, Node, Op, Type};
use egg::{Analysis, DidMerge, EGraph, Language};

/// The e-graph of the IR.
pub(super) type Classes = EGraph<Node, Types>;

/// What nodes that may match each other share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Head {
    Op(Op),
    Leaf,
    Lit,
}

impl Language for Node {
    type Discriminant = Head;

    // egg searches a large class by order and expects one discriminant's nodes side by side, so the
    // number of children is not part of it.
    fn discriminant(&self) -> Head {
        match self {
            Node::Op(op, _) => Head::Op(*op),
            Node::Leaf(_) => Head::Leaf,
            Node::Lit(_) => Head::Lit,
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Node::Op(a, x), Node::Op(b, y)) => a == b && x.len() == y.len(),
            (a, b) => a == b,
        }
    }

    fn children(&self) -> &[Id] {
        Node::children(self)
    }

    fn children_mut(&mut self) -> &mut [Id] {
        if let Node::Op(_, c) = self { c } else { &mut [] }
    }
}

/// The analysis: every class has one type.
pub(super) struct Types {
    /// By leaf id.
    leaves: Vec<Type>,
    /// The first pair of different types that congruence merged: a mistake in `infer`.
    pub conflict: Option<String>,
    row_names: RowNames,
}

impl Types {
    pub fn of(graph: &Graph) -> Self {
        Types {
            leaves: graph.leaves.iter().map(|l| Type::Tensor(l.ty.clone())).collect(),
            conflict: None,
            row_names: RowNames::default(),
        }
    }

    fn leaf(&self, node: &Node) -> Option<Type> {
        if let Node::Leaf(l) = node { self.leaves.get(l.0 as usize).cloned() } else { None }
    }
}

fn type_of_node(classes: &Classes, node: &Node) -> Result<Type, String> {
    match node {
        Node::Lit(l) => Ok(Type::Lit(l.clone())),
        Node::Leaf(l) => classes.analysis.leaf(node).ok_or_else(|| format!("leaf {} is not in the graph", l.0)),
        Node::Op(op, children) => {
            let types: Vec<&Type> = children.iter().map(|c| &classes[*c].data).collect();
            infer(*op, &types)
        }
    }
}

impl Analysis<Node> for Types {
    type Data = Type;

    fn make(classes: &mut Classes, node: &Node, _: Id) -> Type {
        // `insert` lets only typed nodes in.
        let ty = type_of_node(classes, node).unwrap_or_else(|why| {
            classes.analysis.conflict.get_or_insert(why);
            Type::Tuple
        });
        if let (Node::Op(Op::TrueRows, _), Some(n)) = (node, ty.shape().first()) {
            classes.analysis.row_names.take(n);
        }
        ty
    }

    fn merge(&mut self, a: &mut Type, b: Type) -> DidMerge {
        if *a != b {
            self.conflict.get_or_insert(format!("equal values have the types {a} and {b}"));
        }
        DidMerge(false, false)
    }
}

impl Builder for Classes {
    fn insert(&mut self, node: Node) -> Result<Id, String> {
        if let Some(id) = self.lookup(node.clone()) {
            return Ok(id);
        }
        type_of_node(self, &node)?;
        Ok(self.add(node))
    }

    fn type_of(&self, id: Id) -> &Type {
        &self[id].data
    }

    fn node_of(&self, id: Id) -> &Node {
        &self[id].nodes[0]
    }

    fn canonical(&self, id: Id) -> Id {
        self.find(id)
    }

    fn rows_of(&self, mask: Id) -> Option<Dim> {
        // Classes know their parents at any time, but of their own nodes only those of the last rebuild.
        let mut users = self[mask].parents().map(|id| &self.nodes()[usize::from(id)]);
        users.find_map(|node| match node {
            Node::Op(Op::TrueRows, c) => self[c[1]].data.lit()?.int().cloned(),
            _ => None,
        })
    }

    fn row_names(&mut self) -> &mut RowNames {
        &mut self.analysis.row_names
    }
}
