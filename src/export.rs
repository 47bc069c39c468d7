//! `weftc export`: what a run learnt, in the formats that other tools read.

use crate::atomic;
use crate::compile::{self, Options};
use crate::error::{Error, Problem, Result};
use crate::manifest::Manifest;
use crate::onnx::adapter_file;
use crate::onnx::train_file::{TrainFile, Weight};
use crate::train::checkpoint::{self, Weights};
use crate::train::{adapter, saved::Saved};
use std::path::{Path, PathBuf};

/// Write what a run learnt in the formats that other tools read
#[derive(Clone, Debug, clap::Args)]
#[group(id = "what", required = true, multiple = true, args = ["adapter", "merged", "onnx_adapter"])]
pub struct ExportArgs {
    /// The training graph of the run
    pub train_onnx: PathBuf,
    /// The run's folder (its last checkpoint, else what the whole run left), or one of its checkpoints
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// Write an adapter for PEFT into this folder: adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Write the trained model, adapters merged: FILE.onnx for inference, or FILE.safetensors with the source's names
    #[arg(long, value_name = "FILE")]
    pub merged: Option<PathBuf>,
    /// Write an adapter for ONNX Runtime's own loading (`RunOptions.add_active_adapter`), and beside it, as FILE.onnx,
    /// the model whose inputs it fills; without an adapter that is the source model
    #[arg(long, value_name = "FILE.onnx_adapter")]
    pub onnx_adapter: Option<PathBuf>,
    /// The source model, where it is no longer where the manifest places it
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// The folder of rules that the run was compiled with, for an adapter of one's own
    #[arg(long, value_name = "DIR")]
    pub rules: Option<PathBuf>,
    /// Print nothing on success
    #[arg(short, long)]
    pub quiet: bool,
}

/// Writes what `args` ask for; returns the files.
///
/// # Errors
/// `Io`; `Usage` for files that do not belong together or a format that does not fit; `Model` where the source is gone.
pub fn export(args: &ExportArgs) -> Result<Vec<PathBuf>> {
    let folder = args.model.as_deref().and_then(Path::parent);
    let folder = folder.map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let file = TrainFile::read(&args.train_onnx, folder)?;
    let source = args.model.clone().unwrap_or_else(|| file.source());
    check(args, &file.manifest, &source)?;
    let saved = Saved::open(file, &args.from)?;
    let mut written = Vec::new();
    if let (Some(folder), Some(own)) = (&args.adapter, &saved.file().manifest.adapter) {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        written.extend(adapter::save(&saved, own, folder)?);
    }
    if let Some(path) = &args.merged {
        if extension(path) == "safetensors" {
            let few = saved.file().manifest.parameters.iter().any(|p| p.quantized.is_some());
            let source = Some(source.as_path()).filter(|path| few && path.is_file());
            source.map_or(Ok(()), |source| checkpoint::check_source(&saved, source))?;
            checkpoint::save_weights(&saved, source, path)?;
        } else {
            checkpoint::check_source(&saved, &source)?;
            checkpoint::save_model(&saved, &source, path)?;
        }
        written.push(path.clone());
    }
    if let Some(path) = &args.onnx_adapter {
        checkpoint::check_source(&saved, &source)?;
        let model = path.with_extension("onnx");
        compile::adapted_model(&Options::of(&saved.file().manifest, source, args.rules.clone()), &model)?;
        let values: Result<Vec<(String, Weight)>> = saved
            .parameters()
            .map(|p| {
                let value = saved.value(&p.name)?;
                let (dtype, shape) = (value.dtype(), value.shape().to_vec());
                Ok((p.name.clone(), Weight { dtype, shape, bytes: value.bytes().to_vec() }))
            })
            .collect();
        let bytes = adapter_file::encode(&values?);
        atomic::write(path, |out| out.write_all(&bytes))?;
        written.extend([model, path.clone()]);
    }
    Ok(written)
}

/// Refuses what cannot be written.
fn check(args: &ExportArgs, manifest: &Manifest, source: &Path) -> Result<()> {
    let mut problems = Vec::new();
    for (flag, given) in [("--adapter", &args.adapter), ("--onnx-adapter", &args.onnx_adapter)] {
        if given.is_some() && manifest.adapter.is_none() {
            problems.push(Problem::new(flag, "train.onnx trains no adapter").help("--merged writes the trained model"));
        }
    }
    if let Some(path) = args.merged.as_ref().filter(|p| !["onnx", "safetensors"].contains(&extension(p).as_str())) {
        let help = "end its name in .onnx or .safetensors";
        problems.push(Problem::new("--merged", format!("{} has no known ending", path.display())).help(help));
    }
    let model = args.onnx_adapter.as_ref().map(|p| p.with_extension("onnx"));
    if args.onnx_adapter.is_some() && args.onnx_adapter == model {
        problems.push(
            Problem::new("--onnx-adapter", "FILE.onnx is the name of the model beside it").help("FILE.onnx_adapter"),
        );
    }
    for (flag, path) in [("--merged", &args.merged), ("--onnx-adapter", &model)] {
        let Some(path) = path else { continue };
        let same = |other: &Path| matches!((path.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b);
        for (other, what) in [(source, "the source model"), (&args.train_onnx, "the training graph")] {
            if same(other) {
                let message = format!("{} is {what} and would be overwritten", path.display());
                problems.push(Problem::new(flag, message).help("choose another name"));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Usage { problems }) }
}

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}
