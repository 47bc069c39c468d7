//! `weftc inspect`, `explain`, `grad` and `check-rules`.

use super::how::How;
use crate::error::{Error, Result};
use crate::onnx::train_file::is_training_graph;
use crate::onnx::write::table;
use crate::rules::Target;
use crate::stdout::print;
use crate::tools::{check, explain, grad, inspect, training};
use clap::Args;
use serde::Serialize;
use std::fmt::Display;
use std::path::PathBuf;

/// The user's own rules.
#[derive(Args)]
pub struct RulesArgs {
    /// A folder of rules to add: lift*.egg, fuse*.egg, grad*.egg and lower*.egg join those families,
    /// methods/NAME.egg is the method NAME, any other *.egg joins simplify
    #[arg(long, value_name = "DIR")]
    pub rules: Option<PathBuf>,
    /// Use the rules of --rules without proving them first
    #[arg(long, requires = "rules")]
    pub trust_rules: bool,
}

/// The flags of `weftc inspect`: those of `weftc compile` too, for the step whose memory is estimated.
#[derive(Args)]
pub struct InspectArgs {
    /// A model: an ONNX file; or a train.onnx that `weftc compile` made
    model: PathBuf,
    #[command(flatten)]
    how: How,
    /// Print JSON, with every parameter
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ExplainArgs {
    /// The rule's name, as in the report of a compile
    rule: String,
    /// The model: an ONNX file
    model: PathBuf,
    /// The target of the compile
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    #[command(flatten)]
    rules: RulesArgs,
    /// Name every place, not the first few
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
pub struct GradArgs {
    /// The model: an ONNX file of any exporter, opsets 7 to 28
    model: PathBuf,
    /// Weights and inputs to differentiate by, separated by commas; `*` stands for any characters
    /// [default: every weight that the scalar depends on]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    wrt: Vec<String>,
    /// Where to write the graph: the model's outputs and `grad/NAME` for each name
    #[arg(short, long, default_value = "grad.onnx")]
    output_file: PathBuf,
    /// The scalar output, where the model has several
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// portable: standard ONNX operators only; cpu: also ONNX Runtime's own fused operators
    #[arg(long, value_enum, default_value_t = Target::Portable)]
    target: Target,
    #[command(flatten)]
    rules: RulesArgs,
    /// Print nothing on success
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args)]
pub struct CheckRulesArgs {
    /// Rule files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Shows a model, or a training graph.
///
/// # Errors
/// `Io`, and what keeps the file from being read.
pub fn inspect(args: &InspectArgs) -> Result<()> {
    fn shown<T: Serialize + Display>(args: &InspectArgs, what: &T) -> Result<()> {
        if args.json {
            let json = serde_json::to_string_pretty(what).map_err(|e| Error::internal("inspect", e.to_string()))?;
            print(&format!("{json}\n"))
        } else {
            print(&format!("{}\n{what}", args.model.display()))
        }
    }
    if is_training_graph(&args.model)? {
        args.how.refuse("it is compiled already")?;
        return shown(args, &training::inspect(&args.model)?);
    }
    shown(args, &inspect::inspect(&args.how.options(&args.model)?.0)?)
}

pub fn explain(args: &ExplainArgs) -> Result<()> {
    let request = explain::Request {
        rule: args.rule.clone(),
        model: args.model.clone(),
        target: args.target,
        rules: args.rules.rules.clone(),
        trust_rules: args.rules.trust_rules,
    };
    print(&explain::explain(&request)?.text(args.all))
}

pub fn grad(args: &GradArgs) -> Result<()> {
    let gradients = grad::grad(&grad::Request {
        model: args.model.clone(),
        output: args.output.clone(),
        wrt: args.wrt.clone(),
        target: args.target,
        rules: args.rules.rules.clone(),
        trust_rules: args.rules.trust_rules,
    })?;
    let bytes = gradients.write(&args.output_file)?;
    if !args.quiet {
        let fired: Vec<String> = gradients.rules_fired.iter().map(|(r, n)| format!("{r} {n}")).collect();
        let (of, n, path) = (&gradients.of, gradients.wrt.len(), args.output_file.display());
        print(&format!(
            "rules fired: {}\n{}wrote {path} ({:.1} MB): {n} gradients of {of}\n",
            fired.join(", "),
            table(&gradients.graph),
            bytes as f64 / 1e6
        ))?;
    }
    Ok(())
}

pub fn check_rules(args: &CheckRulesArgs) -> Result<()> {
    let report = check::check(&args.files)?;
    print(&format!("{report}\n"))?;
    report.verdict()
}
