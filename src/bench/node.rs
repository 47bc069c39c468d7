//! One node as a session of its own, to be timed.

use crate::error::{Error, Result};
use crate::ir::op::Emit;
use crate::ir::{DType, Graph, text};
use crate::kernels;
use crate::kernels::cuda::Gpu;
use crate::onnx::write::plain;
use crate::rng::SplitMix64;
use crate::rules::Rule;
use crate::runtime::device::Device;
use crate::runtime::{Bound, Buffer, HostTensor, Options, Session};
use std::time::Instant;

/// A node over drawn values, bound to its buffers.
pub struct Timed {
    session: Bound,
    graph: Graph,
    /// Bound above: they live as long as the session.
    _buffers: Vec<Buffer>,
}

impl Timed {
    /// The node `body` over `inputs`, as in the text of a graph: `x f32 [4 8]; w f32 [8]`.  `native` runs our kernels,
    /// where there are some; `rules` are the `lower` rules.
    ///
    /// # Errors
    /// What keeps ONNX Runtime from running it.
    pub fn new(body: &str, inputs: &str, rules: &[Rule], native: bool, threads: usize) -> Result<Self> {
        let list = inputs.split("; ").map(|i| format!("(input {i})")).collect::<Vec<_>>().join(" ");
        Self::of(&format!("(graph g {list} (let y ({body})) (output result y))"), rules, native, threads)
    }

    /// A graph of one output, `result`, whose sizes are all known.
    ///
    /// # Errors
    /// As [`Timed::new`].
    pub fn of(source: &str, rules: &[Rule], native: bool, threads: usize) -> Result<Self> {
        Self::on(Device::Cpu, source, rules, native, threads)
    }

    /// The same on a device, in whose memory its operands and its result lie.
    ///
    /// # Errors
    /// As [`Timed::new`].
    pub fn on(device: Device, source: &str, rules: &[Rule], native: bool, threads: usize) -> Result<Self> {
        let wrong = |why: String| Error::internal("bench", why);
        let graph = text::parse(source).map_err(|e| wrong(e.message))?;
        let out = graph.outputs.first().and_then(|(_, id)| graph.tensor_type(*id));
        let out = out.ok_or_else(|| wrong("the node has no type".into()))?.clone();
        crate::runtime::environment(&mut |line| eprintln!("{line}"))?;
        let mut options = Options { threads, device, ..Options::default() };
        if native {
            let functions = graph.live().into_iter().filter_map(|id| match graph.node(id).op()?.row().emit {
                Emit::Weft(name) | Emit::Kernel(name) => Some(name),
                _ => None,
            });
            let none = || wrong(format!("there is no kernel for a node of {source}"));
            let found = match device {
                Device::Cpu => kernels::step(functions, threads)?,
                Device::Cuda(device) => kernels::cuda::step(functions, &Gpu { device, cache: None })?,
            };
            options.operators.push(found.ok_or_else(none)?);
        }
        let session = Session::from_bytes(&plain(&graph, rules)?, &options)?;
        let memory = session.memory()?;
        let mut session = session.bind()?;
        let mut rng = SplitMix64::new(1);
        let mut buffers = Vec::new();
        for leaf in &graph.leaves {
            let shape: Vec<i64> = leaf.ty.shape.iter().filter_map(|d| d.known()).collect();
            let buffer = Buffer::in_memory(&memory, &values(leaf.ty.dtype, &shape, &mut rng)?)?;
            session.input(&leaf.name, &buffer)?;
            buffers.push(buffer);
        }
        let shape: Vec<i64> = out.shape.iter().filter_map(|d| d.known()).collect();
        let mut result = Buffer::in_memory(&memory, &HostTensor::zeros(out.dtype, &shape)?)?;
        session.output("result", &mut result)?;
        buffers.push(result);
        Ok(Timed { session, graph, _buffers: buffers })
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The seconds of one run.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn run(&mut self) -> Result<f64> {
        let started = Instant::now();
        self.session.run()?;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// Numbers in [-2, 2), indices below 4096, true.
fn values(dtype: DType, shape: &[i64], rng: &mut SplitMix64) -> Result<HostTensor> {
    let n = shape.iter().product::<i64>() as usize;
    let mut one = || match dtype {
        DType::Bool => 1.0,
        DType::I64 => rng.below(4096) as f64,
        _ => rng.below(1 << 20) as f64 / f64::from(1 << 18) - 2.0,
    };
    HostTensor::from_f64(dtype, shape, &(0..n).map(|_| one()).collect::<Vec<f64>>())
}

/// The median.
pub fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}
