//! The weights that a run left, read without a session.

use super::checkpoint::{self, Weights};
use super::state::{self, Position};
use super::store;
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::manifest::Parameter;
use crate::onnx::train_file::TrainFile;
use crate::onnx::weights::{self, Bytes};
use crate::peft;
use crate::runtime::HostTensor;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// A train.onnx with the weights of a run.
pub struct Saved {
    file: TrainFile,
    path: PathBuf,
    bytes: Bytes,
    /// What stands before a parameter's name.
    prefix: &'static str,
    /// The tensors lie as the framework has them, not as train.onnx.
    of_framework: bool,
}

impl Saved {
    /// The weights of `from`: a checkpoint, a run's folder with its last one, or what a whole run left there.
    ///
    /// # Errors
    /// `Io`; `Usage`: there is nothing, or it is of another train.onnx.
    pub fn open(file: TrainFile, from: &Path) -> Result<Self> {
        let left = if file.manifest.adapter.is_some() { peft::WEIGHTS } else { checkpoint::WEIGHTS };
        let (path, prefix, of_framework) = match store::find(from) {
            Ok((folder, _)) => (folder.join(state::STATE), "p/", false),
            Err(_) if from.join(left).is_file() => {
                (from.join(left), if left == peft::WEIGHTS { peft::PREFIX } else { "" }, true)
            }
            Err(error) => return Err(error),
        };
        let bytes = weights::map(&path)?;
        let saved = Saved { file, path, bytes, prefix, of_framework };
        saved.check()?;
        Ok(saved)
    }

    /// Refuses what another train.onnx left.
    fn check(&self) -> Result<()> {
        let (_, header) = SafeTensors::read_metadata(self.bytes.as_ref()).map_err(|e| self.refuse(e.to_string()))?;
        if !self.of_framework {
            let position = header.metadata().as_ref().and_then(|m| m.get("weftc.position"));
            let position = position.ok_or_else(|| self.refuse("this is no state of a run".into()))?;
            let position: Position = serde_json::from_str(position).map_err(|e| self.refuse(e.to_string()))?;
            let sha256 = weights::sha256(self.file.path())?;
            if !position.settings.is_of(&sha256) {
                return Err(self.refuse(format!("it is not of {}", self.file.path().display())));
            }
        }
        let problems: Vec<Problem> =
            self.parameters().filter_map(|p| Some(Problem::new(&p.name, self.read(p).err()?.to_string()))).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Usage { problems }) }
    }

    /// What is trained.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.file.manifest.parameters.iter().filter(|p| p.role == crate::manifest::Role::Trainable)
    }

    fn refuse(&self, why: String) -> Error {
        let help = "name the train.onnx of the run, and the run's folder or one of its checkpoints";
        Error::usage(Problem::new(self.path.display().to_string(), why).help(help))
    }

    fn read(&self, p: &Parameter) -> Result<HostTensor> {
        let tensors = SafeTensors::deserialize(self.bytes.as_ref()).map_err(|e| self.refuse(e.to_string()))?;
        let view = tensors.tensor(&format!("{}{}", self.prefix, p.name)).map_err(|e| self.refuse(e.to_string()))?;
        let stored = match view.dtype() {
            safetensors::Dtype::F64 => DType::F64,
            safetensors::Dtype::F16 => DType::F16,
            safetensors::Dtype::BF16 => DType::BF16,
            _ => DType::F32,
        };
        let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        let value = HostTensor::from_bytes(stored, &shape, view.data().to_vec())?;
        let value = if self.of_framework && p.transposed { value.transposed()? } else { value };
        if value.shape() != p.shape {
            return Err(self.refuse(format!("{} is {:?}, not {:?}", p.name, value.shape(), p.shape)));
        }
        let dtype = DType::parse(&p.dtype).unwrap_or(DType::F32);
        if stored == dtype { Ok(value) } else { HostTensor::from_f64(dtype, value.shape(), &value.to_f64()) }
    }
}

impl Weights for Saved {
    fn file(&self) -> &TrainFile {
        &self.file
    }

    fn value(&self, name: &str) -> Result<HostTensor> {
        match self.parameters().find(|p| p.name == name) {
            Some(p) => self.read(p),
            None => Err(self.refuse(format!("`{name}` is not trained"))),
        }
    }
}
