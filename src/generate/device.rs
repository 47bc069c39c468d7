//! Where a model answers: on the CPU as its file says, on a GPU as weftc compiles it.

use super::Model;
use crate::compile::{Options, answering};
use crate::error::{Error, Result};
use crate::kernels;
use crate::precision::Compute;
use crate::rules::Target;
use crate::runtime::device::{Choice, Device};
use crate::runtime::{self, cuda, environment, locate};
use clap::Args;
use std::path::Path;

/// The flags of the device, of every command that asks a model.
#[derive(Args, Clone, Debug, Default)]
pub struct DeviceArgs {
    /// Where to run
    #[arg(long, value_enum, default_value_t)]
    pub device: Choice,
    /// Number of the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device_id: u32,
    /// Type that values are computed in on a GPU: auto is bf16
    #[arg(long, value_enum, default_value_t)]
    pub compute: Compute,
    /// Threads within an operator; 0 leaves the choice to the runtime
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// A further input of the model that is this number everywhere, as when it was trained: sigma=0
    #[arg(long = "input", value_name = "NAME=NUMBER", value_parser = input)]
    pub inputs: Vec<(String, f64)>,
}

/// Reads `NAME=NUMBER`.
pub fn input(text: &str) -> std::result::Result<(String, f64), String> {
    let (name, value) = text.split_once('=').ok_or("an input is fixed as NAME=NUMBER")?;
    let number: f64 = value.trim().parse().map_err(|_| format!("`{value}` is no number"))?;
    Ok((name.trim().into(), number))
}

impl DeviceArgs {
    /// Opens a model; `say` hears what the user should know.
    ///
    /// A file that ONNX Runtime does not run as it is, as a model in bf16 on a CPU, runs as weftc compiles it.
    ///
    /// # Errors
    /// A GPU that is asked for and cannot be used; a model that can be run neither way.
    pub fn open(&self, path: &Path, say: &mut dyn FnMut(&str)) -> Result<Model> {
        let (device, note) = self.device.resolve(self.device_id, say)?;
        note.iter().for_each(|note| say(note));
        let options = runtime::Options { threads: self.threads, device, ..runtime::Options::default() };
        let compiled = |say: &mut dyn FnMut(&str)| self.compiled(path, &options, say);
        match device {
            _ if !self.inputs.is_empty() => compiled(say),
            Device::Cpu => Model::open(path, &options).or_else(|direct| match direct {
                Error::Runtime { .. } => compiled(say).map_err(|_| direct),
                other => Err(other),
            }),
            Device::Cuda(_) => compiled(say).or_else(|why| {
                let model = Model::open(path, &options).map_err(|_| why)?;
                say("weftc cannot compile this model for a GPU: ONNX Runtime runs it as the file says");
                Ok(model)
            }),
        }
    }

    /// The model as weftc compiles it, with its kernels.
    fn compiled(&self, path: &Path, options: &runtime::Options, say: &mut dyn FnMut(&str)) -> Result<Model> {
        let (target, compute) = match options.device {
            Device::Cpu => (Target::Cpu, Compute::F32),
            Device::Cuda(_) => (Target::Cuda, self.compute),
        };
        let inputs = self.inputs.iter().cloned().collect();
        let (bytes, functions) = answering(&Options { target, compute, inputs, ..Options::new(path) })?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut options = runtime::Options { folder: Some(folder.to_path_buf()), ..options.clone() };
        environment(say)?;
        let functions = functions.iter().map(String::as_str);
        match options.device {
            Device::Cpu => options.operators.extend(kernels::step(functions, self.threads)?),
            Device::Cuda(_) if !cuda::has_compiler() => say(&cuda::without_compiler()),
            Device::Cuda(device) => {
                let gpu = kernels::cuda::Gpu { device, cache: locate::cache_folder().ok() };
                match kernels::cuda::step(functions, &gpu) {
                    Ok(kernels) => options.operators.extend(kernels),
                    Err(why) => say(&format!("weftc's own kernels are not used on this GPU: {why}")),
                }
            }
        }
        Model::from_bytes(&bytes, path, &options)
    }
}
