//! On what shapes a rule was exercised.

use super::instance::Instance;
use crate::ir::Builder;
use crate::rules::Kind;
use std::collections::BTreeSet;
use std::fmt;

/// The shapes of the instances on which a rule holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The numbers of axes that operands had.
    pub ranks: BTreeSet<usize>,
    /// Instances with an axis of one element, and of none.
    pub ones: usize,
    pub empty: usize,
    /// Instances in which an operator joined operands of different shapes to a shape that one of them has not.
    pub broadcast: usize,
}

impl Coverage {
    pub(super) fn add(&mut self, other: Coverage) {
        self.ranks.extend(other.ranks);
        self.ones += other.ones;
        self.empty += other.empty;
        self.broadcast += other.broadcast;
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks: Vec<String> = self.ranks.iter().map(usize::to_string).collect();
        write!(f, "{:<10} {:>5} {:>5} {:>9}", ranks.join(" "), self.ones, self.empty, self.broadcast)
    }
}

impl Instance<'_> {
    /// The coverage of this one instance.
    pub(super) fn coverage(&self) -> Coverage {
        let graph = &self.graph;
        // The cotangent of a gradient row is no operand.
        let is_operand = |name: &str| self.rule.kind != Kind::Vjp || name != "dy";
        let shapes = || graph.leaves.iter().filter(|l| is_operand(&l.name)).map(|l| &l.ty.shape);
        let with = |size: i64| usize::from(shapes().any(|s| s.iter().any(|d| d.is(size))));
        let joins = |id| {
            let children = graph.node(id).children().iter();
            let tensors: Vec<_> = children.filter_map(|c| graph.tensor_type(*c)).map(|t| &t.shape).collect();
            let out = graph.type_of(id).shape();
            tensors.len() > 1 && tensors.iter().any(|s| s[..] == *out) && tensors.iter().any(|s| s[..] != *out)
        };
        Coverage {
            ranks: shapes().map(|s| s.len()).collect(),
            ones: with(1),
            empty: with(0),
            broadcast: usize::from(graph.reachable([self.root]).into_iter().any(joins)),
        }
    }
}
