//! Rotary tables that an export keeps among its weights.

use crate::ir::{Graph, Id, LeafId, LeafKind, Node, Op};
use std::collections::BTreeSet;

/// What a table may go through on its way into a rotation.
const LAYOUT: [Op; 7] = [Op::Slice, Op::Reshape, Op::Transpose, Op::Concat, Op::Expand, Op::Cast, Op::Gather];

/// Makes constants of the weights that do nothing but turn queries and keys; one line each.
///
/// Their names tell nothing where a framework calls them as it likes.  Learned angles are not touched: they go
/// through a cosine first.
pub fn freeze(model: &mut Graph) -> Vec<String> {
    // Values with a use besides tables; users come after what they use.
    let mut used: BTreeSet<Id> = model.outputs.iter().map(|(_, id)| *id).collect();
    let live = model.live();
    for id in live.iter().rev() {
        let Node::Op(op, children) = model.node(*id) else { continue };
        let is_table = |k: usize| match op {
            Op::Rope => k > 0,
            Op::Gather if k > 0 => false,
            op => LAYOUT.contains(op) && !used.contains(id),
        };
        let others: Vec<Id> = (0..children.len()).filter(|k| !is_table(*k)).map(|k| children[k]).collect();
        used.extend(others);
    }
    let tables: Vec<LeafId> = live.iter().filter(|id| !used.contains(id)).filter_map(|id| model.as_leaf(*id)).collect();
    let mut lines = Vec::new();
    for table in tables {
        let leaf = &mut model.leaves[table.0 as usize];
        if leaf.kind == LeafKind::Param {
            leaf.kind = LeafKind::Const;
            lines.push(format!("`{}` is a table of rotations, not a weight", leaf.name));
        }
    }
    lines
}
