//! Kernels are compiled for the GPU that runs them, when they are first needed, by NVIDIA's NVRTC.

use crate::atomic;
use cudarc::driver::{result as driver, sys};
use cudarc::nvrtc;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int};
use std::path::PathBuf;
use std::sync::Mutex;

/// What stands before every source.
const COMMON: &str = include_str!("common.cuh");

/// A source and the macros that it is compiled with: `BF16`, `D=128`.
pub type Key = (&'static str, Vec<String>);

/// A GPU, and where what is compiled for it is kept.
pub struct Gpu {
    /// Its number.
    pub device: u32,
    /// The folder in which compiled kernels lie from one run to the next, where there is one.
    pub cache: Option<PathBuf>,
}

/// The compiled modules of one GPU.
pub struct Modules {
    device: c_int,
    cache: Option<PathBuf>,
    context: sys::CUcontext,
    /// `sm_90`
    architecture: String,
    loaded: Mutex<BTreeMap<Key, Loaded>>,
}

/// A module, which stays as long as the process, as the device's own context does.
#[derive(Clone, Copy)]
struct Loaded(sys::CUmodule);

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Loaded {}
unsafe impl Send for Modules {}
unsafe impl Sync for Modules {}

/// A kernel that can be launched.
#[derive(Clone, Copy)]
pub struct Function(pub sys::CUfunction);

// SAFETY: as above.
unsafe impl Send for Function {}

fn told<T>(what: &str, outcome: Result<T, driver::DriverError>) -> Result<T, String> {
    outcome.map_err(|e| format!("the NVIDIA driver cannot {what}: {:?}", e.0))
}

impl Modules {
    /// Of a GPU.  The driver and NVRTC must have been loaded.
    ///
    /// # Errors
    /// What the driver or NVRTC say; where the GPU is older than the kernels are written for.
    pub fn new(gpu: &Gpu) -> Result<Self, String> {
        let device = c_int::try_from(gpu.device).map_err(|e| e.to_string())?;
        told("start", driver::init())?;
        let handle = told("use the device", driver::device::get(device))?;
        // SAFETY: the driver gave the handle; the context is the device's own, which ONNX Runtime uses too.
        let (major, minor, context) = unsafe {
            let number = |attribute| told("describe the device", driver::device::get_attribute(handle, attribute));
            (
                number(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                number(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                told("use the device", driver::primary_ctx::retain(handle))?,
            )
        };
        // bf16, and copies to shared memory in the background.
        if major < 8 {
            return Err(format!("it is of compute capability {major}.{minor}, and they need 8.0"));
        }
        let architecture = format!("sm_{major}{minor}");
        let modules = Modules { device, cache: gpu.cache.clone(), context, architecture, loaded: Mutex::default() };
        // Said now, and not when a step runs: NVRTC may be older than the GPU.
        modules.image(&("", vec!["F32".into()]))?;
        Ok(modules)
    }

    /// The kernel of that name; `shared` bytes of shared memory are its own to size.
    ///
    /// # Errors
    /// What NVRTC or the driver say.
    pub fn function(&self, key: &Key, name: &str, shared: u32) -> Result<Function, String> {
        // SAFETY: the context is retained.
        told("use the device", unsafe { driver::ctx::set_current(self.context) })?;
        let mut loaded = self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let module = match loaded.get(key) {
            Some(module) => *module,
            None => {
                let image = self.image(key)?;
                // SAFETY: the image is a whole cubin, for this device.
                let module = unsafe { driver::module::load_data(image.as_ptr().cast()) };
                let module = Loaded(told("load a kernel", module)?);
                loaded.insert(key.clone(), module);
                module
            }
        };
        let name = CString::new(name).map_err(|e| e.to_string())?;
        // SAFETY: the module is loaded; the attribute takes a number of bytes.
        let function = unsafe {
            let function = told("find a kernel", driver::module::get_function(module.0, name))?;
            if shared > 48 << 10 {
                let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                told(
                    "give shared memory",
                    driver::function::set_function_attribute(function, attribute, shared as c_int),
                )?;
            }
            function
        };
        Ok(Function(function))
    }

    /// The machine code of a source, compiled once for all runs.
    fn image(&self, key: &Key) -> Result<Vec<u8>, String> {
        let Some(cache) = &self.cache else { return compile(key.0, &key.1, &self.architecture) };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both out-pointers are valid.
        unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(failed)?;
        let version = format!("{major}.{minor} {} {}", self.architecture, key.1.join(" "));
        let digest = [COMMON, key.0, &version].iter().fold(Sha256::new(), |sha, text| sha.chain_update(text));
        let name: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let path = cache.join("kernels").join(name + ".cubin");
        match std::fs::read(&path) {
            Ok(image) if image.starts_with(b"\x7fELF") => Ok(image),
            _ => {
                let image = compile(key.0, &key.1, &self.architecture)?;
                // A cache that cannot be written costs time, nothing else.
                if std::fs::create_dir_all(cache.join("kernels")).is_ok() {
                    let _ = atomic::write(&path, |file| file.write_all(&image));
                }
                Ok(image)
            }
        }
    }

    /// The device's number.
    pub fn device(&self) -> i32 {
        self.device
    }
}

fn failed(e: nvrtc::result::NvrtcError) -> String {
    format!("NVRTC cannot compile a kernel: {e:?}")
}

/// The machine code of a source for an architecture, `sm_90`.
///
/// # Errors
/// NVRTC's own words.
pub fn compile(source: &str, macros: &[String], architecture: &str) -> Result<Vec<u8>, String> {
    let text = CString::new([COMMON, source].concat()).map_err(|e| e.to_string())?;
    let macros = macros.iter().map(|m| format!("-D{m}"));
    let options: Vec<String> = std::iter::once(format!("--gpu-architecture={architecture}")).chain(macros).collect();
    let program = nvrtc::result::create_program(&text, None).map_err(failed)?;
    // SAFETY: the program is alive until it is destroyed, once; the image has as many bytes as NVRTC said.
    unsafe {
        let outcome = nvrtc::result::compile_program(program, &options).map_err(|e| {
            let log = nvrtc::result::get_program_log(program).unwrap_or_default();
            let bytes: Vec<u8> = log.iter().map(|c| *c as u8).collect();
            let log = CStr::from_bytes_until_nul(&bytes).map(|l| l.to_string_lossy().into_owned());
            format!("{}\n{}", failed(e), log.unwrap_or_default())
        });
        let image = outcome.and_then(|()| {
            let mut size = 0;
            nvrtc::sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(failed)?;
            let mut image = vec![0u8; size];
            nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().map_err(failed)?;
            Ok(image)
        });
        nvrtc::result::destroy_program(program).map_err(failed)?;
        image
    }
}
