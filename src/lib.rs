//! weftc compiles the ONNX graph of a diffusion language model into a *training* graph and runs it on
//! stock ONNX Runtime.
//!
//! # The house
//!
//! ```text
//! model.onnx ─read─> Graph ─lift─> Graph ─precision─> Graph ─objective─> Graph ─sink─> Graph ─differentiate─> Graph
//!                                    ─optimise─> Graph ─lower─> Graph ─schedule─> order ─write─> train.onnx
//! train.onnx ─run─> weights, adapters, metrics
//! ```
//!
//! | stage | what happens | where its knowledge lives |
//! |---|---|---|
//! | read | exporters' differences end; weights stay on disk | [`mod@onnx::read`] |
//! | | tokens, logits and the longest length are found | [`ports`], [`positions`] |
//! | lift | idioms become composites (`rms_norm`, `rope`, `attention`) | `rules/lift.egg`, `rules/simplify.egg` |
//! | adapt | trained factors beside frozen weights, in their cheapest order | `rules/adapters/*.egg`, `rules/factor.egg`, [`adapt`] |
//! | pack | sequences share rows, where that is asked for | [`packing`] |
//! | precision | values take the compute type, with f32 islands | [`precision`] |
//! | | heads stay where projections leave them: on a CPU in f32, on a GPU in 16 bits | `rules/layout.egg` |
//! | | frozen matrices become codes of 8 or 4 bits | [`quantize`] |
//! | objective | the method's definition unfolds | `rules/methods/*.egg`, [`method`], [`objective`] |
//! | sink | work on single tokens is done for those that are read | `rules/sink.egg`, [`sink`] |
//! | | entropy and loss read the head's weight, not logits | `rules/sink_head.egg` |
//! | differentiate | one reverse sweep over a table of rows | `rules/grad.egg`, [`autodiff`] |
//! | optimise | directed algebra over forward and backward together | `rules/simplify.egg`, [`rewrite`] |
//! | lower | composites become ONNX operators and `ai.weft` functions | `rules/lower*.egg`, `rules/fuse.egg`, [`lower`] |
//! | schedule | layers are recomputed where memory is short | [`recompute`], [`memory`] |
//! | | the order of nodes in the file, and what ONNX Runtime makes of it | [`schedule`] |
//! | write | one fixed opset, deterministic names | [`onnx::write`] |
//!
//! [`compile`] strings the stages together; each takes the graph of the one before and never looks back.
//! [`train`] runs what was written: it knows [`runtime`] and the [`manifest`], not the compiler.
//! [`kernels`] holds native forms of `ai.weft` functions, which the training step takes on the CPU in f32, and on a GPU,
//! [`generate`] decodes with a trained model, [`eval`] scores it,
//! [`peft`] reads adapters and merges them, or puts them beside weights in few bits, [`profile`] knows the published families
//! of models, [`report`] draws runs.
//! [`export`] writes what a run learnt in the formats of others; [`sampling`] lends runs the compiler, for answers on the way,
//! plans and steps taken apart.
//! [`cost`] counts what nodes do, for extraction, reports and predictions; [`mod@bench`] measures a step, part by part, and the
//! machine.
//! [`tools`] uses the stages for other ends: to show a model or a training graph, to explain a rule, to write plain gradients.
//!
//! # Where to start
//!
//! - an operator: a row in [`ir::op`], an arm in [`interp`], a line in `rules/grad.egg`;
//! - an operator of ONNX that is to be read, in terms of those that exist: a row in `onnx/ops/mod.rs`;
//!   `tests/read/operators.rs` compares it with ONNX Runtime, `tests/read/opsets.rs` the forms that it had before;
//! - a rule: a form in `rules/` (the language: `rules/README.md`; what it may call: [`rules::builtin`]);
//! - a kernel: a type in a file of its family in [`kernels`] and a line in its table (on a GPU: a function in a `.cu` file, a
//!   plan and a line); `tests/kernels.rs` compares it with the function's body, `benches/kernels.rs` says whether it pays;
//! - what a node costs: an arm in [`cost`], from which extraction, the FLOPs of reports and predicted times follow;
//! - a method or an adapter: a file in `rules/methods/` or `rules/adapters/`, and its line in [`rules::library`].
//!
//! Their tests exist already: `tests/rules.rs` loops over the tables.
//!
//! # What does not know what
//!
//! - [`ir`] names nothing of the crate. Only [`onnx`] names a protobuf type. Rules contain no Rust, and
//!   [`autodiff`] and [`lower`] name no operator beyond what their own bookkeeping needs.
//! - Weights never enter the e-graph. Nodes are pure: randomness, optimizer state and step number are inputs.
//! - `tests/layers.rs` holds these arrows.
//!
//! # Where the plan was changed, and why
//!
//! - Rows sink before differentiation, by demand: a row is taken from an operator's operands where nothing else reads
//!   its result.  In an e-graph every layer could be computed a second time for some rows alone, and no local choice of
//!   the extraction sees that this pays nowhere but in the last one.  The reverse sweep then sinks the backward pass by
//!   itself, since the gradient of taking rows is putting them back.
//! - `TokenEntropy` and `WeightedCrossEntropy` over logits are in a file only where a head has no other form (in few bits,
//!   or with an adapter of its own): else the head is one operator with them, whose meaning goes through the vocabulary
//!   in blocks.  The sums of two blocks are joined as attention's are, so the loss needs two products, not three: the
//!   expected row of the weight, summed up beside log sum e^z, is the gradient of the hidden rows.
//! - How many rows are read is known only at run time: `true_rows` defines a size of its own, `rows.0`, that the shapes
//!   behind it mention.  So does a model that selects rows itself, as experts do; where it is applied a second time, for
//!   the entropy pass, it finds other rows, whose numbers get names of their own.
//! - Nothing writes zeros over zeros on the CPU (`runtime/buffer.rs`, the gradient of a lookup, AdamW): pages that were
//!   never written take no memory, and most rows of an embedding never are.
//! - A dimension is a polynomial over symbols, not a product: shifted logits need `seq-1`.
//! - No multi-output nodes: a gradient has one fused node per cotangent (`rms_norm_grad`, `rms_norm_grad_w`),
//!   so patterns never need projections and each can be sunk or dropped on its own. The optimizer's update,
//!   which has three results, is a function of its own graph.
//! - A number in operand position is a *weak scalar* literal instead of a constant node: `?eps` of a pattern
//!   binds the literal that becomes the attribute of the composite.
//! - Lowering runs twice: operators that ONNX lacks are expanded in the graph, then `rules/fuse.egg` merges
//!   transposes and scales into contractions; fused nodes are expanded only into their function bodies.
//! - Weights inside the source file are copied into train.onnx, so that small models travel as one file;
//!   only weights that already lie in external files are referenced in place.
//! - A method's hyper-parameters stand in its file with their defaults, `(option NAME DEFAULT)`, instead of being
//!   attributes of `objective`: a user's own method has options without touching Rust.
//! - An adapter is the definition of the operator `adapted`, as a method is that of `objective`, not a rule kind of
//!   its own. The order of its factors is chosen before differentiation, by counting multiplications of all three
//!   products: by the forward pass alone `x (W + A B)` is cheaper, and its gradient is that of a whole weight.
//! - A cached entropy pass stays in the one train.onnx, as the output `probe/beta`; the runner opens the step and the
//!   pass as two sessions over the parts of the file that each needs.
//! - A held-out loss is no run of the step: the part of the file that `loss_sum` needs, behind the part that no draw changes,
//!   each a session for as long as an evaluation lasts.
//! - Whether an initializer is a weight is read off what the exporter notes of it (`onnx::origin`), not off its name first.
//! - Packing changes the model alone, not the step around it: draws, rates and losses stay by sequence, [B, L], and rows
//!   exist only between the lookup of the tokens and that of the logits.  So no method knows of it, a batch is the same
//!   samples with the same draws as without, and a run counts, saves and resumes as ever.
//! - A model that chooses rows itself, as experts do, finds them in packed rows by the same arithmetic: the pass follows
//!   the numbers that a mask's elements have, digit by digit (`packing::numbers`), and refuses what it cannot follow.
//! - Measured speeds change the time that is predicted and nothing else. Extraction weighs the same operations and bytes by
//!   fixed numbers, so that a model compiles to the same file on every machine, whatever calibration lies in a cache.
//! - The FLOPs of the graph before its rows sank are those of the compiled graph if every token is read: sinking changes
//!   how many rows a node has, not which nodes there are.
//! - Control edges do not exist in ONNX: recomputed layers, and attention's scores where there is no kernel, hang on a
//!   cotangent by `after`, a reshape of their input to its own shape, read off the cotangent.
//! - What ONNX Runtime lacks on a GPU in bf16 (`kernels::cuda::NOT_IN_BF16`) is computed in f32 between casts, when all rules
//!   have run ([`lower::finish`]): no rule needs to know of it.
//! - A model answers on a GPU as weftc compiles it, on a CPU as its file says: there ONNX Runtime alone stands between a run
//!   and what others will see of its model.
//! - Without kernels attention goes through its heads, four at a time, not through its queries: how many there are is known
//!   when it is compiled, and their cotangents lie behind one another instead of being summed up.
//! - Kernels for a GPU ([`kernels::cuda`]) are compiled by NVRTC when a session opens, from sources in the binary: weftc is
//!   built without CUDA, and runs on every GPU that ONNX Runtime does.  [`lower`] asks which operands they take, since a
//!   function of theirs would be taken whatever it is called with.  Where ONNX Runtime's operators do better,
//!   `rules/lower_cuda.egg` puts them in, in the graph alone: functions keep the portable meaning.
//! - Products are kernels of ours, not the crate `gemm`'s: that one packs and computes a part for each thread, and all wait
//!   for the slowest core.  Threads that take blocks of one packed product in turn made a step 9 % shorter.
//! - Where a processor has AMX, products are made of six products of bf16 (`kernels/bf16x3.rs`): as exact as f32's and up to
//!   twice as fast.  Attention's small ones, measured twice, gained a tenth forward and nothing backward: their factors are
//!   packed for each head and each stretch of queries.
//! - An adapter's `(x A) B` costs as much to write and to add as to compute, so it is not a product of its own but further
//!   steps of the sum that it is added to (`product_pair`): a rule, since which product that is depends on the graph.  Longer
//!   sums stay apart: joined they gain nothing, and keep the factors of both alive.
//! - The sessions of a run share one arena ([`runtime::Options::shares_memory`]): the step, the entropy pass and an
//!   evaluation run in turns.
//! - `mask_rate` is evaluated in f64: ONNX has neither `log1p` nor `expm1`, and `1 - exp(r log(1 - t))`
//!   over [batch, length] numbers costs nothing there.

pub mod adapt;
pub mod atomic;
pub mod autodiff;
pub mod bench;
pub mod cli;
pub mod compile;
pub mod cost;
pub mod error;
pub mod eval;
pub mod export;
pub mod generate;
pub mod interp;
pub mod ir;
pub mod kernels;
pub mod lower;
pub mod manifest;
pub mod memory;
pub mod method;
pub mod objective;
pub mod onnx;
pub mod packing;
pub mod peft;
pub mod ports;
pub mod positions;
pub mod precision;
pub mod profile;
pub mod quantize;
pub mod recompute;
pub mod report;
pub mod rewrite;
pub mod rng;
pub mod rules;
pub mod runtime;
pub mod sampling;
pub mod schedule;
pub mod sink;
pub mod stdout;
pub mod tools;
pub mod train;
pub mod units;
