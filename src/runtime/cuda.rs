//! NVIDIA's GPUs: what must be there before ONNX Runtime can use one, and whether it is.

use super::install::{self, CUBLAS, CUDA_RUNTIME, CURAND, NVRTC, ONNX_RUNTIME_GPU, Package};
use super::locate::{self, Library};
use cudarc::driver::{result as driver, sys};
use std::ffi::c_int;
use std::path::{Path, PathBuf};

/// The libraries that the provider is linked with, and the Python packages that bring them.
const NEEDED: [(&str, &Package); 4] = [
    ("libcudart.so.13", &CUDA_RUNTIME),
    ("libcublasLt.so.13", &CUBLAS),
    ("libcublas.so.13", &CUBLAS),
    ("libcurand.so.10", &CURAND),
];

/// The compiler of our own kernels, which run as ONNX Runtime's operators without it.
const COMPILER: (&str, &Package) = ("libnvrtc.so.13", &NVRTC);

/// The provider's library, beside ONNX Runtime's own.
const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// What the driver says of `what` it was to do.
fn told<T>(what: &str, outcome: Result<T, driver::DriverError>) -> Result<T, String> {
    outcome.map_err(|e| format!("the NVIDIA driver cannot {what}: CUDA error {}", e.0 as i32))
}

/// Starts the driver, where there is one.
fn start() -> Result<(), String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err("weftc knows CUDA on Linux on x86-64 only".into());
    }
    // SAFETY: the driver's library has no constructors that could harm.
    if !unsafe { sys::is_culib_present() } {
        return Err("there is no NVIDIA driver (libcuda.so.1)".into());
    }
    told("start", driver::init())
}

/// How many devices the driver shows, or why it shows none.
pub fn devices() -> Result<u32, String> {
    start()?;
    let n = told("list devices", driver::device::get_count())?;
    if n > 0 { Ok(n.unsigned_abs()) } else { Err("the NVIDIA driver shows no device".into()) }
}

/// Bytes of a device's memory that are in use, by this process and all others.
///
/// # Errors
/// What the driver says.
pub fn memory_in_use(device: u32) -> Result<u64, String> {
    start()?;
    let device = c_int::try_from(device).map_err(|e| e.to_string())?;
    let device = told("use the device", driver::device::get(device))?;
    let before = told("use the device", driver::ctx::get_current())?;
    // SAFETY: the device's own context, which ONNX Runtime uses too, is held while it is asked, and this thread's is put
    // back; none is null.
    unsafe {
        let context = told("use the device", driver::primary_ctx::retain(device))?;
        let asked = told("use the device", driver::ctx::set_current(context))
            .and_then(|()| told("tell its memory", driver::mem_get_info()));
        let back = told("use the device", driver::ctx::set_current(before.unwrap_or(std::ptr::null_mut())));
        told("let the device go", driver::primary_ctx::release(device))?;
        back?;
        asked.map(|(free, total)| (total - free) as u64)
    }
}

/// Whether a library of ONNX Runtime lies beside its CUDA provider.
pub fn has_provider(library: &Path) -> bool {
    library.parent().is_some_and(|folder| folder.join(PROVIDER).is_file())
}

/// Everything that keeps `device` from being used, with what to do about each; empty where nothing does.  What can be
/// loaded stays loaded, for the provider.
pub fn missing(device: u32, library: &Library) -> Vec<(String, String)> {
    let mut missing = Vec::new();
    match devices() {
        Ok(n) if device >= n => missing.push((
            format!("there is no device {device}: the driver shows {n}"),
            format!("--device-id 0 to {}", n - 1),
        )),
        Ok(_) => {}
        Err(why) => missing.push((why, "install NVIDIA's driver, or run with --device cpu".into())),
    }
    let shown = library.path.display();
    let replace = format!("python3 -m pip install {}, in place of onnxruntime", ONNX_RUNTIME_GPU.requirement());
    let replace = format!("{replace}; or name its library in ORT_DYLIB_PATH");
    if !has_provider(&library.path) {
        missing.push((format!("{shown} was built without CUDA"), replace));
    } else if !library.serves_gpu() {
        let version = library.version.as_deref().unwrap_or("of no known version");
        missing.push((format!("{shown} is {version}, older than 1.{}", locate::LEAST_GPU_MINOR), replace));
    }
    let folders = folders();
    for (name, package) in NEEDED {
        if !load(name, &folders) {
            let help = format!("python3 -m pip install {}, or weftc doctor --install-cuda", package.requirement());
            missing.push((format!("there is no {name}"), help));
        }
    }
    missing
}

/// Downloads the libraries of CUDA that this machine does not have into the cache folder, once.
///
/// # Errors
/// What keeps a package from being downloaded.
pub fn install_libraries(say: &mut dyn FnMut(&str)) -> Result<(), String> {
    let cache = locate::cache_folder()?;
    let known = folders();
    NEEDED
        .iter()
        .chain([&COMPILER])
        .filter(|(name, _)| !load(name, &known))
        .try_for_each(|(_, package)| install::add(package, &cache, say))
}

/// Whether kernels can be compiled here; the compiler stays loaded.
pub fn has_compiler() -> bool {
    load(COMPILER.0, &folders())
}

/// What is lost without the compiler, and how to get it.
pub fn without_compiler() -> String {
    let requirement = COMPILER.1.requirement();
    format!(
        "there is no {}: weftc's own kernels are not used; python3 -m pip install {requirement}, or weftc doctor --install-cuda",
        COMPILER.0
    )
}

/// Loads a library for good: by the system's own search, else from Python packages.
fn load(name: &str, folders: &[PathBuf]) -> bool {
    let places = std::iter::once(PathBuf::from(name)).chain(folders.iter().map(|f| f.join(name)));
    for place in places {
        // SAFETY: these are NVIDIA's libraries, which do nothing when they are loaded.
        #[cfg(unix)]
        let found = unsafe {
            use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
            Library::open(Some(&place), RTLD_NOW | RTLD_GLOBAL)
        };
        // SAFETY: as above.
        #[cfg(not(unix))]
        let found = unsafe { libloading::Library::new(&place) };
        if let Ok(library) = found {
            std::mem::forget(library);
            return true;
        }
    }
    false
}

/// Where such libraries lie beside the system's own: in Python's `nvidia` packages, and in the cache folder.
fn folders() -> Vec<PathBuf> {
    const FIND: &str = "import importlib.util as u; s = u.find_spec('nvidia'); \
                        print('\\n'.join(s.submodule_search_locations or []) if s else '')";
    let mut folders = Vec::new();
    for python in locate::pythons() {
        let Ok(found) = locate::output(python, &["-c".as_ref(), FIND.as_ref()]) else { continue };
        for root in found.lines().filter(|l| !l.trim().is_empty()) {
            let packages = std::fs::read_dir(root).into_iter().flatten().flatten();
            folders.extend(packages.map(|e| e.path().join("lib")).filter(|p| p.is_dir()));
        }
    }
    folders.sort();
    if let Ok(cache) = locate::cache_folder() {
        folders.extend(NEEDED.iter().chain([&COMPILER]).map(|(_, package)| package.folder(&cache)));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::locate::Origin;

    #[test]
    fn a_provider_lies_beside_its_library() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so.1.31.1");
        assert!(!has_provider(&library));
        std::fs::write(folder.path().join(PROVIDER), "").unwrap();
        assert!(has_provider(&library));
    }

    #[test]
    fn all_that_is_missing_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        let library =
            |version: &str| Library { path: path.clone(), version: Some(version.into()), origin: Origin::Cache };
        let missing_beside = |version: &str| missing(u32::MAX, &library(version));
        let tells = |version: &str, what: &str| {
            missing_beside(version).iter().any(|(why, help)| why.contains(what) && help.contains("onnxruntime-gpu=="))
        };
        // A device of that number is nowhere, and this library has no provider.
        assert!(missing_beside("1.31.1").len() >= 2 && tells("1.31.1", "without CUDA"));
        std::fs::write(folder.path().join(PROVIDER), "").unwrap();
        assert!(!tells("1.31.1", "libonnxruntime") && tells("1.30.2", "older than 1.31"));
    }
}
