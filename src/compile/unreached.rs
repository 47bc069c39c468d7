//! Weights that no gradient reaches.

use crate::autodiff::carrying;
use crate::ir::{Graph, LeafKind, Op};
use crate::rules::Rule;

/// Makes constants of the weights that logits depend on through choices alone: the offsets that balance experts, say, which
/// are added before the best are chosen.  Their gradient is zero, and weight decay would move them.  One line for all.
pub fn freeze(model: &mut Graph, rows: &[Rule]) -> Option<String> {
    let live = model.live();
    let mut carries = vec![false; model.len()];
    for (_, output) in &model.outputs {
        carries.iter_mut().zip(carrying(model, *output, rows)).for_each(|(all, one)| *all |= one);
    }
    let mut names = Vec::new();
    let unreached = live.iter().filter(|id| !carries[usize::from(**id)]).filter_map(|id| model.as_leaf(*id));
    for leaf in unreached.collect::<Vec<_>>() {
        let leaf = &mut model.leaves[leaf.0 as usize];
        if leaf.kind == LeafKind::Param {
            leaf.kind = LeafKind::Const;
            names.push(leaf.name.clone());
        }
    }
    let more = names.len().saturating_sub(1);
    let first = names.first()?;
    let others = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!("`{first}`{others}: not trained, since no gradient reaches what only decides a choice"))
}

/// Says of weights in few bits that they stay as they are.
pub fn in_few_bits(model: &Graph) -> Option<String> {
    let count = model.live().iter().filter(|id| model.node(**id).op() == Some(Op::Dequantize)).count();
    let text = || format!("{count} weights in few bits stay as they are; --trainable lora trains adapters beside them");
    (count > 0).then(text)
}
