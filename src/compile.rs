//! The pipeline: a model file goes in, a train.onnx comes out.
//!
//! `read -> lift -> precision -> objective -> sink -> differentiate -> optimise -> lower -> schedule -> write`; each stage
//! takes the graph of the one before and never looks back.

mod budget;
mod compiled;
mod dropout;
mod method;
mod model;
mod options;
mod stages;
mod tables;
mod unreached;

use crate::adapt;
use crate::error::{Error, Problem, Result};
use crate::ir::{DType, Graph, LeafId, LeafKind, text};
use crate::lower;
use crate::manifest::{self, FED, Input, Manifest, Method, NOT_FED, Parameter, Role};
use crate::objective;
use crate::onnx::{Source, read};
use crate::packing;
use crate::ports::{self, Ports};
use crate::positions::longest;
use crate::precision;
use crate::quantize::{self, Quantized};
use crate::rewrite::{self, Saturated};
use crate::rules::Target;
use crate::rules::library::Library;
use crate::rules::parse::suggest;
use crate::rules::user::library_with;
use crate::schedule;
use compiled::INLINE_LIMIT;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

pub use budget::{Budget, bytes};
pub use compiled::{Compiled, StageReport};
pub use model::{adapted_model, answering, forward};
pub use options::{Options, Stage, Trainable};
pub use stages::{add_gradients, lay_out, lift, lower_for, optimise, rows, sink, usable};

/// Runs the whole pipeline.
pub fn compile(options: &Options) -> Result<Compiled> {
    compile_watched(options, &mut |_, _| {})
}

/// Stages know the graph; the user knows the file.
pub(crate) fn of_model(error: Error, model: &Path) -> Error {
    match error {
        Error::Model { problems, .. } => Error::Model { model: model.to_path_buf(), problems },
        other => other,
    }
}

/// Runs the whole pipeline and shows the graph after each stage.
pub fn compile_watched(options: &Options, on_stage: &mut dyn FnMut(Stage, &Graph)) -> Result<Compiled> {
    let mut pipeline = Pipeline::new(options)?;
    pipeline.run(on_stage).map_err(|e| of_model(e, &options.model))
}

/// The text of the graph after one stage.
pub fn emit_ir(options: &Options, wanted: Stage) -> Result<String> {
    let mut shown = String::new();
    let outcome = compile_watched(options, &mut |stage, graph| {
        if stage == wanted {
            shown = text::print(graph);
        }
    });
    // A stage that was reached is shown, also where a later one would refuse.
    if shown.is_empty() { outcome.map(|_| shown) } else { Ok(shown) }
}

/// Says of inputs that `weftc run` cannot feed: others than weftc may run the file, so that it is written all the same.
fn not_fed(model: &Graph, token_input: &str) -> Option<String> {
    let leaves = model.live().into_iter().filter_map(|id| model.as_leaf(id)).map(|l| model.leaf(l));
    let others = leaves.filter(|l| l.kind == LeafKind::Input && l.name != token_input);
    let others = others.filter(|l| !FED.contains(&l.name.as_str()) || l.ty.rank() != 2);
    let names: Vec<String> = others.map(|l| format!("`{}`", l.name)).collect();
    let text = || format!("weftc run cannot feed {}: {NOT_FED}", names.join(", "));
    (!names.is_empty()).then(text)
}

/// The state of one compilation.
struct Pipeline<'a> {
    options: &'a Options,
    library: Library,
    fired: BTreeMap<String, usize>,
    stages: Vec<StageReport>,
    notes: Vec<String>,
    started: Instant,
}

impl<'a> Pipeline<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let mut library = library_with(options.rules.as_deref(), options.trust_rules)?;
        library.lower = library.lower_for(options.target);
        Ok(Pipeline {
            options,
            library,
            fired: BTreeMap::new(),
            stages: vec![],
            notes: vec![],
            started: Instant::now(),
        })
    }

    fn run(&mut self, on_stage: &mut dyn FnMut(Stage, &Graph)) -> Result<Compiled> {
        let mut source = read(&self.options.model)?;
        if source.is_training_graph {
            let problem = Problem::new("", "is a training graph that weftc wrote, not a model")
                .help("compile its source model; train with weftc run");
            return Err(Error::Model { model: self.options.model.clone(), problems: vec![problem] });
        }
        self.done(Stage::Read, &source.graph, on_stage);
        let ports =
            ports::find(&source.graph, self.options.token_input.as_deref(), self.options.logits_output.as_deref())?;
        source.graph = ports::widened(source.graph, &ports.token_input)?;
        source.graph = ports::fixed(source.graph, &self.options.inputs, &ports.token_input)?;
        self.notes.extend(not_fed(&source.graph, &ports.token_input));
        let tokens = source.graph.find_leaf(&ports.token_input).map(|l| &source.graph.leaf(l).ty.shape);
        let most_tokens = tokens.and_then(|shape| longest(&source.graph, shape.get(1)?));
        let method = method::chosen(self.options, &self.library, &ports, &mut self.notes)?;

        let lifted = self.lift(&source.graph, &ports)?;
        self.done(Stage::Lift, &lifted, on_stage);

        let (adapted, trainable, added) = self.adapt(lifted, &ports)?;
        if added.is_some() {
            self.done(Stage::Adapt, &adapted, on_stage);
        }
        let model = if self.options.packing { packing::apply(&adapted, &ports.token_input)? } else { adapted };
        if self.options.packing {
            self.done(Stage::Pack, &model, on_stage);
        }
        let (typed, quantized, compute) = self.typed(&model, &trainable)?;
        self.done(Stage::Precision, &typed, on_stage);

        let step = self.objective(&typed, &ports, &method)?;
        self.done(Stage::Objective, &step, on_stage);

        let sunk = sink(&step, &self.library, self.options.target)?;
        rewrite::count(&mut self.fired, &sunk.fired);
        let saved = sunk.saved;
        let step = sunk.graph;
        self.done(Stage::Sink, &step, on_stage);

        let training = self.differentiate(step, &trainable, compute)?;
        self.done(Stage::Differentiate, &training, on_stage);

        let optimised = optimise(&training, &self.library, self.options.target)?;
        let optimised = self.counted(optimised);
        self.done(Stage::Optimise, &optimised, on_stage);

        let lowered = lower_for(&optimised, &self.library, self.options.target, &mut self.fired)?;
        self.done(Stage::Lower, &lowered, on_stage);

        let lowered = lower::finish(&lowered, &self.library.lower, self.options.target, &mut self.fired)?;
        let (lowered, recompute) = self.fit(lowered, most_tokens, &ports.token_input, &trainable, compute)?;
        let order = schedule::order(&lowered);
        self.done(Stage::Schedule, &lowered, on_stage);
        let mut manifest = self.manifest(&source, &ports, method, &lowered, &trainable, compute);
        (manifest.recompute, manifest.longest) = (recompute, most_tokens);
        for p in manifest.parameters.iter_mut().filter(|p| quantized.names.contains(&p.name)) {
            p.quantized = self.options.quantize;
        }
        if let Some((adapter, parts)) = added {
            manifest.adapter = Some(adapter);
            for p in &mut manifest.parameters {
                p.part = parts.get(&p.name).cloned();
            }
        }
        Ok(Compiled {
            graph: lowered,
            order,
            trainable,
            manifest,
            stages: std::mem::take(&mut self.stages),
            notes: std::mem::take(&mut self.notes),
            saved,
            most_tokens,
            inline_limit: INLINE_LIMIT,
            source: self.options.model.clone(),
            lower_rules: self.library.lower.clone(),
        })
    }

    /// Every value in its type, frozen matrices in few bits where asked for, and heads where our kernels read them; and the
    /// compute type.
    fn typed(&mut self, adapted: &Graph, trainable: &[LeafId]) -> Result<(Graph, Quantized, DType)> {
        let (compute, note) = self.options.compute.resolve(self.options.target);
        self.notes.extend(note);
        let mut typed = precision::apply(adapted, trainable, compute)?;
        let narrow = matches!(compute, DType::F16 | DType::BF16);
        let lays_out = match self.options.target {
            Target::Portable => false,
            Target::Cpu => !narrow,
            Target::Cuda => narrow,
        };
        if lays_out {
            let laid_out = lay_out(&typed, &self.library, self.options.target)?;
            typed = self.counted(laid_out);
        }
        let Some(how) = self.options.quantize else { return Ok((typed, Quantized::default(), compute)) };
        let (typed, quantized) = quantize::apply(&typed, trainable, how, compute)?;
        self.notes.push(quantized.line(how));
        Ok((typed, quantized, compute))
    }

    fn done(&mut self, stage: Stage, graph: &Graph, on_stage: &mut dyn FnMut(Stage, &Graph)) {
        let nodes = graph.live().iter().filter(|id| graph.node(**id).op().is_some()).count();
        self.stages.push(StageReport { stage, nodes, seconds: self.started.elapsed().as_secs_f64() });
        on_stage(stage, graph);
        self.started = Instant::now();
    }

    /// The graph of a saturation whose rules are counted.
    fn counted(&mut self, saturated: Saturated) -> Graph {
        rewrite::count(&mut self.fired, &saturated.fired);
        saturated.graph
    }

    /// Composites for what the logits need.
    fn lift(&mut self, graph: &Graph, ports: &Ports) -> Result<Graph> {
        let mut model = graph.clone();
        model.outputs.retain(|(name, _)| *name == ports.logits_output);
        let lifted = lift(&precision::widened(&model)?, &self.library, self.options.target)?;
        let mut lifted = self.counted(lifted);
        self.notes.extend(tables::freeze(&mut lifted));
        self.notes.extend(unreached::freeze(&mut lifted, &rows(&self.library, self.options.target)));
        Ok(lifted)
    }

    /// The model with what is trained: adapters are added, weights are chosen.
    fn adapt(&mut self, model: Graph, ports: &Ports) -> Result<(Graph, Vec<LeafId>, Option<Added>)> {
        let leaves = weights(&model);
        let Trainable::Named(name) = &self.options.trainable else {
            self.notes.extend(unreached::in_few_bits(&model));
            return Ok((model, leaves, None));
        };
        if let Some(definition) = self.library.adapters.get(name) {
            let tokens = model.find_leaf(&ports.token_input).map(|leaf| model.leaf(leaf).ty.shape.clone());
            let (factor, spec) = (&self.library.factor, &self.options.adapter);
            let adapted = adapt::apply(&model, name, definition, factor, &tokens.unwrap_or_default(), spec)?;
            self.notes.push(adapted.note);
            rewrite::count(&mut self.fired, &adapted.saturated.fired);
            return Ok((adapted.saturated.graph, adapted.trainable, Some((adapted.adapter, adapted.parts))));
        }
        let patterns: Vec<&str> = name.split(',').map(str::trim).collect();
        let fits = |pattern: &str, id: &LeafId| adapt::matches(pattern, &model.leaf(*id).name);
        let unused: Vec<&&str> = patterns.iter().filter(|p| !leaves.iter().any(|l| fits(p, l))).collect();
        if !unused.is_empty() {
            let adapters: Vec<&str> = self.library.adapters.keys().map(String::as_str).collect();
            let problem = |pattern: &&&str| {
                let names = leaves.iter().map(|l| model.leaf(*l).name.as_str());
                let near = suggest(pattern, names.chain(adapters.iter().copied()));
                let help = near.unwrap_or_else(|| {
                    format!("full, {}, or patterns such as *.0.*; weftc inspect lists the weights", adapters.join(", "))
                });
                Problem::new("--trainable", format!("`{pattern}` is no adapter and fits no weight")).help(help)
            };
            return Err(Error::Usage { problems: unused.iter().map(problem).collect() });
        }
        let chosen: Vec<LeafId> = leaves.into_iter().filter(|l| patterns.iter().any(|p| fits(p, l))).collect();
        self.notes.push(format!("{} weights are trained", chosen.len()));
        Ok((model, chosen, None))
    }

    fn objective(&mut self, model: &Graph, ports: &Ports, method: &Method) -> Result<Graph> {
        let definition = self.library.methods.get(&method.name).map(Vec::as_slice).unwrap_or_default();
        let step = objective::build(model, ports, method, definition, &mut self.fired)?;
        dropout::training_pass_only(step, &self.library.grad)
    }

    /// Adds the outputs `grad/<parameter>`, times the input `loss_scale` where cotangents are f16.
    fn differentiate(&mut self, mut graph: Graph, trainable: &[LeafId], compute: DType) -> Result<Graph> {
        let loss = graph.outputs.iter().find(|(n, _)| n == "loss_sum").map(|(_, id)| *id);
        let mut loss = loss.ok_or_else(|| Error::internal("differentiate", "there is no loss_sum"))?;
        if compute == DType::F16 {
            loss = precision::scaled(&mut graph, loss)?;
        }
        add_gradients(&mut graph, loss, trainable, &rows(&self.library, self.options.target))?;
        Ok(graph)
    }

    fn manifest(
        &self,
        source: &Source,
        ports: &Ports,
        method: Method,
        graph: &Graph,
        trainable: &[LeafId],
        compute: DType,
    ) -> Manifest {
        let shape = |leaf: &crate::ir::Leaf| leaf.ty.shape.iter().filter_map(|d| d.known()).collect();
        let role = |id: LeafId| if trainable.contains(&id) { Role::Trainable } else { Role::Frozen };
        let mut parameters: Vec<Parameter> = (0..graph.leaves.len() as u32)
            .map(LeafId)
            .map(|id| (id, graph.leaf(id)))
            .filter(|(_, l)| l.kind == LeafKind::Param)
            .map(|(id, l)| Parameter {
                name: l.name.clone(),
                shape: shape(l),
                dtype: l.ty.dtype.name().into(),
                role: role(id),
                transposed: l.transposed,
                source_name: l.source_name.clone(),
                part: None,
                quantized: None,
            })
            .collect();
        parameters.sort_by_key(|p| p.role == Role::Frozen);
        let extra_inputs = source
            .graph
            .leaves
            .iter()
            .filter(|l| l.kind == LeafKind::Input && l.name != ports.token_input)
            .map(|l| Input {
                name: l.name.clone(),
                dtype: l.ty.dtype.name().into(),
                shape: l.ty.shape.iter().map(|d| d.to_string()).collect(),
            })
            .collect();
        Manifest {
            version: manifest::VERSION,
            weftc: env!("CARGO_PKG_VERSION").into(),
            method,
            target: self.options.target,
            compute: compute.name().into(),
            opset: crate::onnx::emit::OPSET,
            source: manifest::Source { file: String::new(), sha256: source.sha256.clone() },
            token_input: ports.token_input.clone(),
            extra_inputs,
            fixed_inputs: self.options.inputs.clone(),
            logits_output: ports.logits_output.clone(),
            vocab_size: ports.vocab_size(),
            longest: None,
            adapter: None,
            packing: self.options.packing,
            recompute: None,
            parameters,
            mended: source.mended.clone(),
            rules_fired: self.fired.clone(),
        }
    }
}

/// Adapters that were added: what they are, and which parameters are theirs.
type Added = (manifest::Adapter, BTreeMap<String, manifest::Part>);

/// The floating-point weights that the logits need, in the order of the source.
fn weights(model: &Graph) -> Vec<LeafId> {
    let mut leaves: Vec<LeafId> = model.live().iter().filter_map(|id| model.as_leaf(*id)).collect();
    leaves.sort();
    leaves.dedup();
    leaves.retain(|id| model.leaf(*id).kind == LeafKind::Param && model.leaf(*id).ty.dtype.is_float());
    leaves
}
