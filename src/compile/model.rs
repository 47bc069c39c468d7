//! The model itself, without a training step: what answers.

use super::compiled::{INLINE_LIMIT, save};
use super::{Options, Pipeline, lower_for, of_model, optimise};
use crate::error::Result;
use crate::ir::{Graph, Id, LeafId, LeafKind};
use crate::lower;
use crate::onnx::read;
use crate::onnx::write::{Parts, encode, with_functions};
use crate::ports::{self, Ports};
use crate::schedule;
use std::path::Path;

/// Writes the model with its adapters, for inference: their factors are inputs whose defaults change nothing.
///
/// # Errors
/// As [`super::compile`].
pub fn adapted_model(options: &Options, path: &Path) -> Result<()> {
    Pipeline::new(options)?.adapted_model(path).map_err(|e| of_model(e, &options.model))
}

/// The model itself, for inference with other weights: a lowered graph and its ONNX file, in which what `options` trains
/// are inputs without a default.  Frozen weights are as in the source, not in few bits.
///
/// # Errors
/// As [`super::compile`].
pub fn forward(options: &Options) -> Result<(Graph, Vec<u8>)> {
    let plain = Options { quantize: None, ..options.clone() };
    Pipeline::new(&plain)?.forward().map_err(|e| of_model(e, &options.model))
}

/// The model itself with its own weights, to answer on what `options.target` says: an ONNX file whose external data lies where
/// the source's does, and the functions of ours that it calls.
///
/// # Errors
/// As [`super::compile`].
pub fn answering(options: &Options) -> Result<(Vec<u8>, Vec<String>)> {
    Pipeline::new(options)?.answering().map_err(|e| of_model(e, &options.model))
}

impl Pipeline<'_> {
    fn adapted_model(&mut self, path: &Path) -> Result<()> {
        let (lowered, trainable) = self.inference()?;
        save(&self.parts(&lowered, &schedule::order(&lowered), &trainable), path, INLINE_LIMIT).map(drop)
    }

    fn forward(&mut self) -> Result<(Graph, Vec<u8>)> {
        let (mut lowered, trainable) = self.inference()?;
        for leaf in trainable {
            let leaf = &mut lowered.leaves[leaf.0 as usize];
            (leaf.kind, leaf.data) = (LeafKind::Input, None);
        }
        let bytes = encode(&self.parts(&lowered, &schedule::order(&lowered), &[]))?;
        Ok((lowered, bytes))
    }

    fn answering(&mut self) -> Result<(Vec<u8>, Vec<String>)> {
        let (mut source, ports) = self.model()?;
        source = ports::widened(source, &ports.token_input)?;
        let lifted = self.lift(&source, &ports)?;
        let lowered = self.lowered(&lifted, &[])?;
        with_functions(encode(&self.parts(&lowered, &schedule::order(&lowered), &[]))?)
    }

    /// The model with its adapters, lowered, and what is trained.
    fn inference(&mut self) -> Result<(Graph, Vec<LeafId>)> {
        let (source, ports) = self.model()?;
        let lifted = self.lift(&source, &ports)?;
        let (adapted, trainable, _) = self.adapt(lifted, &ports)?;
        Ok((self.lowered(&adapted, &trainable)?, trainable))
    }

    /// The source, and where its tokens and logits are.
    fn model(&self) -> Result<(Graph, Ports)> {
        let source = read(&self.options.model)?.graph;
        let ports = ports::find(&source, self.options.token_input.as_deref(), self.options.logits_output.as_deref())?;
        Ok((ports::fixed(source, &self.options.inputs, &ports.token_input)?, ports))
    }

    /// A lifted model as it is written, without a training step.
    fn lowered(&mut self, model: &Graph, trainable: &[LeafId]) -> Result<Graph> {
        let typed = self.typed(model, trainable)?.0;
        let optimised = optimise(&typed, &self.library, self.options.target)?;
        let optimised = self.counted(optimised);
        let lowered = lower_for(&optimised, &self.library, self.options.target, &mut self.fired)?;
        lower::finish(&lowered, &self.library.lower, self.options.target, &mut self.fired)
    }

    /// An inference graph as it is written.
    fn parts<'p>(&'p self, graph: &'p Graph, order: &'p [Id], trainable: &'p [LeafId]) -> Parts<'p> {
        let (rules, source) = (&self.library.lower, &self.options.model);
        Parts { graph, order, trainable, rules, manifest: None, source }
    }
}
