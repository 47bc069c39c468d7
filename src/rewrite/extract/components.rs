//! Which classes depend on each other in a circle.

use super::Table;

/// The strongly connected components of what `root` may need, operands before users (Tarjan 1972);
/// the members of each in order of insertion.
pub(super) fn components(table: &Table, root: u32) -> Vec<Vec<u32>> {
    const NEW: u32 = u32::MAX;
    let n = table.classes.len();
    let (mut index, mut low, mut on_stack) = (vec![NEW; n], vec![0u32; n], vec![false; n]);
    let (mut next, mut stack, mut out) = (0u32, Vec::new(), Vec::new());
    // The path from the root: a class, and the place of the next edge to follow.
    let mut path: Vec<(u32, usize, usize)> = Vec::new();
    let mut open = |c: u32, index: &mut [u32], low: &mut [u32], on_stack: &mut [bool], stack: &mut Vec<u32>| {
        (index[c as usize], low[c as usize], on_stack[c as usize]) = (next, next, true);
        next += 1;
        stack.push(c);
        (c, 0, 0)
    };
    path.push(open(root, &mut index, &mut low, &mut on_stack, &mut stack));
    while let Some((class, k, edge)) = path.pop() {
        let candidates = table.candidates(class);
        if let Some(candidate) = candidates.get(k) {
            match candidate.children.get(edge) {
                None => path.push((class, k + 1, 0)),
                Some(&child) => {
                    path.push((class, k, edge + 1));
                    if index[child as usize] == NEW {
                        path.push(open(child, &mut index, &mut low, &mut on_stack, &mut stack));
                    } else if on_stack[child as usize] {
                        low[class as usize] = low[class as usize].min(index[child as usize]);
                    }
                }
            }
            continue;
        }
        if let Some((parent, ..)) = path.last() {
            low[*parent as usize] = low[*parent as usize].min(low[class as usize]);
        }
        if low[class as usize] == index[class as usize] {
            let at = stack.iter().rposition(|c| *c == class).unwrap_or(0);
            let mut members = stack.split_off(at);
            members.iter().for_each(|c| on_stack[*c as usize] = false);
            members.sort_unstable();
            out.push(members);
        }
    }
    out
}
