//! What a session computes on.

use super::{cuda, environment::environment_for};
use crate::error::{Error, Problem, Result};
use serde::Serialize;

/// The device as a flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// A GPU where the machine has one and everything for it is there, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda,
}

/// What a session computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
}

impl Choice {
    /// The device, and what the user should know: why a GPU that is there is not used.
    ///
    /// # Errors
    /// `Usage` where a GPU is asked for, with everything that is missing; `Runtime` where there is no ONNX Runtime.
    pub fn resolve(self, id: u32, say: &mut dyn FnMut(&str)) -> Result<(Device, Option<String>)> {
        if self == Choice::Cpu || (self == Choice::Auto && cuda::devices().is_err()) {
            return Ok((Device::Cpu, None));
        }
        // Without a device nothing is downloaded for one.
        let gpu = cuda::devices().is_ok();
        let library = &environment_for(gpu, say)?.library;
        if gpu && let Err(why) = cuda::install_libraries(say) {
            say(&why);
        }
        let missing = cuda::missing(id, library);
        if missing.is_empty() {
            return Ok((Device::Cuda(id), None));
        }
        if self == Choice::Cuda {
            let problem = |(what, help): (String, String)| Problem::new("--device cuda", what).help(help);
            return Err(Error::Usage { problems: missing.into_iter().map(problem).collect() });
        }
        let (what, help) = &missing[0];
        let more = if missing.len() > 1 {
            format!(" (and {} more: --device cuda lists them)", missing.len() - 1)
        } else {
            String::new()
        };
        Ok((Device::Cpu, Some(format!("the CPU is used, not the GPU: {what}{more}; {help}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_always_there() {
        assert_eq!(Choice::Cpu.resolve(0, &mut |_| {}).unwrap(), (Device::Cpu, None));
    }
}
