//! ONNX Runtime in this process: loaded once, with what its sessions share.

use super::locate::{self, Library};
use crate::error::{Error, Result};
use ort::AsPointer;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::operator::OperatorDomain;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The library of this process and ort's environment in it; both live until the process ends.
pub struct Environment {
    pub(super) inner: ort::environment::Environment,
    pub library: Library,
}

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// Loads ONNX Runtime, once in a process; downloads it where there is none (`say` hears of it).
pub fn environment(say: &mut dyn FnMut(&str)) -> Result<&'static Environment> {
    environment_for(false, say)
}

/// The same; with `gpu` a library with a CUDA provider where there is one, or one can be had.
pub fn environment_for(gpu: bool, say: &mut dyn FnMut(&str)) -> Result<&'static Environment> {
    static LOADING: Mutex<()> = Mutex::new(());
    let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let mut refused = Vec::new();
    for library in locate::find_or_install(gpu, say)? {
        match ort::init_from(&library.path) {
            Ok(builder) => {
                let inner = builder.with_name("weftc").with_telemetry(false).build().map_err(failed("start"))?;
                inner.set_log_level(LogLevel::Error);
                register_arena(&inner).map_err(failed("set its memory up"))?;
                return Ok(ENVIRONMENT.get_or_init(|| Environment { inner, library }));
            }
            Err(why) => refused.push(format!("{}: {why}", library.origin.name())),
        }
    }
    Err(locate::missing(&refused))
}

/// Memory that sessions may take in turns.
fn register_arena(environment: &ort::environment::Environment) -> ort::Result<()> {
    let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    let defaults = std::ptr::null();
    // SAFETY: both live through the call, which copies what it keeps; without a configuration it takes its own.
    let status = unsafe { (ort::api().CreateAndRegisterAllocator)(environment.ptr().cast_mut(), info.ptr(), defaults) };
    // SAFETY: the status is that of the call just made.
    unsafe { ort::Error::result_from_status(status) }
}

/// ONNX Runtime lists the domains of operators for the process, and fails where two sessions put in one at a time: held
/// while the first session with operators of ours is opened.
pub(super) fn first_with_operators(operators: &[Arc<OperatorDomain>]) -> Option<MutexGuard<'static, bool>> {
    static IS_LISTED: Mutex<bool> = Mutex::new(false);
    if operators.is_empty() {
        return None;
    }
    let mut is_listed = IS_LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    (!std::mem::replace(&mut *is_listed, true)).then_some(is_listed)
}

/// The execution providers that the loaded library was built with.
pub(super) fn providers() -> Result<Vec<String>> {
    let (mut names, mut length) = (std::ptr::null_mut(), 0);
    // SAFETY: both out-pointers are valid; the library is loaded, since ort loads it on first use.
    unsafe { ort::Error::result_from_status((ort::api().GetAvailableProviders)(&mut names, &mut length)) }
        .map_err(failed("list its providers"))?;
    let read = |index: usize| {
        // SAFETY: the library filled `names` with `length` zero-terminated strings, which live until released.
        let name = unsafe { std::ffi::CStr::from_ptr(*names.add(index)) };
        name.to_string_lossy().trim_end_matches("ExecutionProvider").to_string()
    };
    let found = (0..usize::try_from(length).unwrap_or(0)).map(read).collect();
    // SAFETY: `names` and `length` come from the call above and are released once.
    let released = unsafe { ort::Error::result_from_status((ort::api().ReleaseAvailableProviders)(names, length)) };
    released.map_err(failed("list its providers"))?;
    Ok(found)
}

/// Names what ONNX Runtime was doing in front of its message.
pub(super) fn failed(doing: &'static str) -> impl Fn(ort::Error) -> Error {
    move |e| Error::runtime(format!("ONNX Runtime cannot {doing}: {}", e.message().trim_end()))
}
