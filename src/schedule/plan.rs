//! How ONNX Runtime lays values into buffers, and what they take at the worst moment.
//!
//! Its planner goes through the nodes in the order of execution.  Some kernels write over an operand of the same size
//! which nobody reads afterwards.  Any other node takes over a buffer of the same shape that is free, and a buffer that
//! will be taken over is not given back in between.  Either needs shapes that ONNX Runtime can infer before it runs, up
//! to the names of sizes; it loses them where a reshape merges or splits unknown sizes, as around each `Gemm`.  Results
//! of the graph have buffers of their own.
//!
//! Source: `allocation_planner.cc` of microsoft/onnxruntime, core/framework.

use crate::ir::op::Cost;
use crate::ir::{Builder, Graph, Id, Node, Op, Sym, TensorType};
use rustc_hash::FxHashMap;

/// The allocator's unit.
const UNIT: u64 = 256;

/// When each buffer is made and given back.
pub struct Plan {
    buffers: Vec<Buffer>,
    end: usize,
}

struct Buffer {
    /// The value that it was made for.
    value: Id,
    made: usize,
    /// The last position at which it is held.
    last: usize,
}

impl Plan {
    /// Plans the values of `order`, an order of execution.  Outputs for which `bound` holds lie in buffers of others.
    pub fn new(graph: &Graph, order: &[Id], bound: &dyn Fn(&str) -> bool) -> Self {
        let mut uses = vec![0u32; graph.len()];
        order.iter().flat_map(|id| graph.node(*id).children()).for_each(|c| uses[usize::from(*c)] += 1);
        let mut output = vec![false; graph.len()];
        let mut elsewhere = vec![false; graph.len()];
        for (name, id) in &graph.outputs {
            output[usize::from(*id)] = true;
            elsewhere[usize::from(*id)] |= bound(name);
        }
        let buffer = vec![None; graph.len()];
        let inferred = inferred(graph, order);
        let mut planner = Planner { graph, inferred, buffers: vec![], buffer, held: vec![], free: vec![] };
        // Parts of a list are results of its node: they are made with it, and given back one by one.
        let mut parts: FxHashMap<Id, Vec<Id>> = FxHashMap::default();
        for &id in order {
            if let Some((list, _)) = graph.part(id) {
                parts.entry(list).or_default().push(id);
            }
        }
        parts.retain(|list, parts| uses[usize::from(*list)] == parts.len() as u32);
        let made_before = |id: Id| graph.part(id).is_some_and(|(list, _)| parts.contains_key(&list));
        for (at, &id) in order.iter().enumerate() {
            let Node::Op(op, children) = graph.node(id) else { continue };
            if let Some(parts) = parts.get(&id) {
                for part in parts {
                    planner.give(*part, None, at);
                    planner.hold(*part, uses[usize::from(*part)]);
                }
            } else if !elsewhere[usize::from(id)] && !made_before(id) {
                let own =
                    if output[usize::from(id)] { None } else { planner.taken_over(id, *op, children, &uses, &output) };
                planner.give(id, own, at);
                if output[usize::from(id)] {
                    // One use more than there are readers: it stays.
                    uses[usize::from(id)] += 1;
                }
                planner.hold(id, uses[usize::from(id)]);
            }
            for child in children.iter() {
                uses[usize::from(*child)] -= 1;
                planner.release(*child, at);
            }
            if uses[usize::from(id)] == 0 {
                planner.release_all(id, at);
            }
        }
        let end = order.len();
        // What is held to the end is what the outputs lie in.
        for (buffer, held) in planner.buffers.iter_mut().zip(&planner.held) {
            if *held > 0 {
                buffer.last = end;
            }
        }
        Plan { buffers: planner.buffers, end }
    }

    /// Bytes at the worst moment.
    pub fn peak(&self, graph: &Graph, value: &dyn Fn(&Sym) -> Option<i64>) -> u64 {
        let mut change = vec![(0u64, 0u64); self.end + 1];
        for buffer in &self.buffers {
            let size = graph.tensor_type(buffer.value).map_or(0, |t| bytes(t, value)).next_multiple_of(UNIT);
            change[buffer.made].0 += size;
            change[buffer.last].1 += size;
        }
        let (mut live, mut peak) = (0u64, 0u64);
        for (made, freed) in change {
            live += made;
            peak = peak.max(live);
            live -= freed;
        }
        peak
    }
}

struct Planner<'g> {
    graph: &'g Graph,
    /// By node, whether ONNX Runtime knows its shape.
    inferred: Vec<bool>,
    buffers: Vec<Buffer>,
    /// By node, the buffer that its value lies in.
    buffer: Vec<Option<usize>>,
    /// By buffer, how many reads of values in it are still to come.
    held: Vec<u64>,
    /// Buffers that nobody needs now, the latest last.
    free: Vec<usize>,
}

impl Planner<'_> {
    /// The buffer that the result of a node takes over.
    fn taken_over(&mut self, id: Id, op: Op, children: &[Id], uses: &[u32], output: &[bool]) -> Option<usize> {
        let operands = &children[..op.operands(children.len())];
        if op.row().cost == Cost::Free || self.graph.part(id).is_some() {
            return self.buffer[usize::from(*operands.first()?)];
        }
        let ty = self.graph.tensor_type(id).filter(|_| self.inferred[usize::from(id)])?;
        let fits = |x: &Id| {
            self.inferred[usize::from(*x)]
                && self.graph.tensor_type(*x).is_some_and(|t| t.shape == ty.shape && t.dtype.size() == ty.dtype.size())
        };
        let x = operands.first().filter(|_| in_place(op));
        if let Some(x) = x.filter(|x| fits(x) && uses[usize::from(**x)] == 1 && !output[usize::from(**x)]) {
            let own = self.buffer[usize::from(*x)].filter(|b| self.held[*b] == 1);
            if own.is_some() {
                return own;
            }
        }
        let k = self.free.iter().rposition(|b| fits(&self.buffers[*b].value))?;
        Some(self.free.remove(k))
    }

    fn give(&mut self, id: Id, own: Option<usize>, at: usize) {
        let own = own.unwrap_or_else(|| {
            self.buffers.push(Buffer { value: id, made: at, last: at });
            self.held.push(0);
            self.buffers.len() - 1
        });
        self.buffer[usize::from(id)] = Some(own);
    }

    fn hold(&mut self, id: Id, uses: u32) {
        if let Some(b) = self.buffer[usize::from(id)] {
            self.held[b] += u64::from(uses);
        }
    }

    fn release(&mut self, id: Id, at: usize) {
        let Some(b) = self.buffer[usize::from(id)] else { return };
        self.held[b] -= 1;
        self.buffers[b].last = at;
        if self.held[b] == 0 {
            self.free.push(b);
        }
    }

    /// Nobody reads the value.
    fn release_all(&mut self, id: Id, at: usize) {
        let Some(b) = self.buffer[usize::from(id)].filter(|b| self.held[*b] == 0) else { return };
        self.buffers[b].last = at;
        if !self.free.contains(&b) {
            self.free.push(b);
        }
    }
}

/// By node, whether its shape can be inferred from those of the inputs.
fn inferred(graph: &Graph, order: &[Id]) -> Vec<bool> {
    let mut inferred = vec![true; graph.len()];
    for &id in order {
        let Node::Op(op, children) = graph.node(id) else { continue };
        let own = match (op, children.first()) {
            (Op::Full | Op::Iota | Op::Expand, _) => is_known(graph, id),
            // Sizes that stay in place are copied.
            (Op::Reshape, Some(x)) => {
                let from = graph.type_of(*x).shape();
                let shape = graph.type_of(id).shape().iter().enumerate();
                shape.into_iter().all(|(k, d)| d.known().is_some() || from.get(k) == Some(d))
            }
            _ => true,
        };
        let operands = &children[..op.operands(children.len())];
        inferred[usize::from(id)] = own && (is_known(graph, id) || operands.iter().all(|x| inferred[usize::from(*x)]));
    }
    inferred
}

/// Whether every size is a number.
fn is_known(graph: &Graph, id: Id) -> bool {
    graph.type_of(id).shape().iter().all(|d| d.known().is_some())
}

/// Whether ONNX Runtime's kernel for a CPU may write its result over the first operand.  Most may not, elementwise ones
/// neither.
fn in_place(op: Op) -> bool {
    matches!(op, Op::Cast | Op::ScatterAdd | Op::Sigmoid | Op::Softplus | Op::Tanh)
}

/// The size of a tensor; unknown sizes count nothing.
pub fn bytes(ty: &TensorType, value: &dyn Fn(&Sym) -> Option<i64>) -> u64 {
    let sizes = ty.shape.iter().map(|d| d.eval(value).and_then(|n| u64::try_from(n).ok()).unwrap_or(0));
    ty.dtype.bytes(sizes.fold(1, u64::saturating_mul))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    fn peak(source: &str) -> u64 {
        let graph = text::parse(source).unwrap_or_else(|e| panic!("{}", e.message));
        let value = |s: &Sym| Some(if s.as_str() == "batch" { 8 } else { 32 });
        Plan::new(&graph, &graph.live(), &|name| name.starts_with("grad/")).peak(&graph, &value)
    }

    /// x lives until the sum reads its reshape, which has no memory of its own; the gradient lies elsewhere.
    #[test]
    fn the_peak_is_the_worst_moment() {
        let source = "(graph g (input a f32 [batch seq])
          (let x (exp a)) (let y (sin x)) (let r (reshape x [batch*seq])) (let s (reshape r [batch seq]))
          (let z (add y s)) (output loss (sum z [-2 -1])) (output grad/a (abs z)))";
        // exp, sin and add, each of 256 numbers of 4 bytes.
        assert_eq!(peak(source), 3 * 1024);
    }

    /// The tanh is written over what it reads, the exp is not.
    #[test]
    fn some_kernels_write_over_what_nobody_reads() {
        let chain = |op: &str| format!("(graph g (input a f32 [batch seq]) (output y (sum ({op} (exp a)) [-2 -1])))");
        assert_eq!((peak(&chain("exp")), peak(&chain("tanh"))), (2048, 1024 + 256));
    }

    /// The buffer of exp(a) is kept for cos where cos has its shape.
    #[test]
    fn a_buffer_that_will_be_used_again_is_kept() {
        let source = |last: &str| {
            format!(
                "(graph g (input a f32 [batch seq]) (input b f32 [seq seq]) (let x (sum (exp a) [-2 -1]))
                  (let y (sum (exp (abs (mul b x))) [-2 -1])) (output z (sum (cos (mul {last} y)) [-2 -1])))"
            )
        };
        let without = 2 * 4096 + 256;
        assert_eq!([peak(&source("a")), peak(&source("b"))], [without + 1024, without]);
    }
}
