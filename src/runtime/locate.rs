//! Where the ONNX Runtime library is.
//!
//! The order: `ORT_DYLIB_PATH`, our cache folder, an installed Python package, and last `pip download`
//! into the cache folder (`install.rs`).  Python packages are found, never imported.

use super::{cuda, install};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that `pip download` fetches.
pub const PINNED: &str = "1.32.0";

/// The least minor version of 1.x that has the C API we use (`api-24` of the `ort` crate).
pub const LEAST_MINOR: u32 = 24;

/// The least with every CUDA kernel that graphs for a GPU use: of those before it none was tried, and attention in bf16 is
/// newer than 1.24.
pub const LEAST_GPU_MINOR: u32 = 31;

/// How a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `ORT_DYLIB_PATH`.
    Environment,
    Cache,
    PythonPackage,
    /// Downloaded just now.
    Downloaded,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Origin::Environment => "ORT_DYLIB_PATH",
            Origin::Cache => "cache folder",
            Origin::PythonPackage => "Python package",
            Origin::Downloaded => "downloaded with pip",
        }
    }
}

/// A library file; whether it loads is known only after loading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    pub path: PathBuf,
    /// `1.32.0`, where it is known without loading.
    pub version: Option<String>,
    pub origin: Origin,
}

impl Library {
    /// Whether it has a CUDA provider that is new enough, as far as its version is known.
    pub fn serves_gpu(&self) -> bool {
        cuda::has_provider(&self.path)
            && self.version.as_deref().is_none_or(|version| new_enough(version, LEAST_GPU_MINOR))
    }
}

/// The places that were searched: the libraries found, and why the other places have none.
#[derive(Clone, Debug, Default)]
pub struct Search {
    pub found: Vec<Library>,
    pub missed: Vec<String>,
}

impl Search {
    fn take(&mut self, found: std::result::Result<Library, String>) {
        match found {
            Ok(library) => self.found.push(library),
            Err(why) => self.missed.push(why),
        }
    }
}

/// Searches everywhere, in order, without downloading.
pub fn search() -> Search {
    let mut search = Search::default();
    if let Some(path) = explicit() {
        // What the user names is used or refused; nothing else is tried behind their back.
        search.take(from_environment(&path));
        return search;
    }
    search.missed.push("ORT_DYLIB_PATH is not set".into());
    search.take(cache_folder().and_then(|folder| from_cache(&folder)));
    search.take(from_python());
    search
}

/// The library that `ORT_DYLIB_PATH` names.
pub fn explicit() -> Option<PathBuf> {
    std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The libraries to try, best first; downloads one into the cache folder where there is none.
/// `say` hears what is being done.  With `gpu` those with a CUDA provider come first, and one is downloaded where there
/// is none.
///
/// # Errors
/// One `Error::Runtime` that lists every place searched and every way to get a library.
pub fn find_or_install(gpu: bool, say: &mut dyn FnMut(&str)) -> Result<Vec<Library>> {
    let mut search = search();
    if gpu && explicit().is_none() && !search.found.iter().any(Library::serves_gpu) {
        let installed = cache_folder().and_then(|cache| {
            install::add(&install::ONNX_RUNTIME_GPU, &cache, say)?;
            gpu_from_cache(&cache)
        });
        search.take(installed);
    }
    // Of equal libraries the first is best.
    search.found.sort_by_key(|library| gpu && !library.serves_gpu());
    if search.found.is_empty() && explicit().is_none() {
        search.take(cache_folder().and_then(|folder| install::install(&folder, say)));
    }
    if search.found.is_empty() { Err(missing(&search.missed)) } else { Ok(search.found) }
}

/// The error where no library can be had: what was tried, and every way to get one.
pub fn missing(tried: &[String]) -> Error {
    let tried: Vec<String> = tried.iter().map(|t| format!("  - {t}")).collect();
    Error::Runtime {
        message: format!("no usable ONNX Runtime library (1.{LEAST_MINOR} or newer)\n{}", tried.join("\n")),
        help: Some(ways()),
    }
}

/// Every way to get a library.
pub fn ways() -> String {
    let folder =
        cache_folder().map_or_else(|_| "the cache folder".into(), |f| library_folder(&f).display().to_string());
    format!(
        "any one of these gives a library:\n\
         \x20     1. python3 -m pip install onnxruntime=={PINNED}\n\
         \x20     2. a python3 with pip on PATH: weftc then downloads the package itself\n\
         \x20     3. put {} of a release of ONNX Runtime into {folder}\n\
         \x20     4. set ORT_DYLIB_PATH to the library file",
        file_name_for_humans()
    )
}

/// The folder for what weftc downloads: `WEFTC_CACHE`, else the platform's cache folder.
pub fn cache_folder() -> std::result::Result<PathBuf, String> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = var("WEFTC_CACHE") {
        return Ok(std::path::absolute(&folder).unwrap_or(folder));
    }
    let platform = if cfg!(windows) {
        var("LOCALAPPDATA")
    } else {
        // The specification tells to ignore a relative XDG_CACHE_HOME.
        var("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| {
            let home = var("HOME")?;
            Some(home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }))
        })
    };
    platform.map(|p| p.join("weftc")).ok_or_else(|| "no cache folder: set WEFTC_CACHE to a writable folder".into())
}

/// Where in the cache the pinned library lies.
pub fn library_folder(cache: &Path) -> PathBuf {
    cache.join("onnxruntime").join(PINNED)
}

/// The Python programs that may exist, best first.
pub fn pythons() -> &'static [&'static str] {
    if cfg!(windows) { &["python", "python3", "py"] } else { &["python3", "python"] }
}

/// Runs `program` with `arguments` and returns its standard output, or why there is none.
pub(super) fn output(program: &str, arguments: &[&std::ffi::OsStr]) -> std::result::Result<String, String> {
    let out = Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| format!("{program} does not start: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&out.stderr);
    let last = stderr.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
    Err(format!("{program} failed ({}): {}", out.status, last.trim()))
}

fn from_environment(path: &Path) -> std::result::Result<Library, String> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    if !path.is_file() {
        return Err(format!("ORT_DYLIB_PATH is {}, which is not a file", path.display()));
    }
    Ok(Library { version: version_of(&path), path, origin: Origin::Environment })
}

/// The library in the cache folder, which only ever appears there complete (see `install.rs`).
pub(super) fn from_cache(cache: &Path) -> std::result::Result<Library, String> {
    let folder = library_folder(cache);
    let path = library_in(&folder).ok_or_else(|| format!("no library in {}", folder.display()))?;
    Ok(Library { version: version_of(&path).or_else(|| Some(PINNED.into())), path, origin: Origin::Cache })
}

/// The library with a CUDA provider in the cache folder.
fn gpu_from_cache(cache: &Path) -> std::result::Result<Library, String> {
    let folder = install::ONNX_RUNTIME_GPU.folder(cache);
    let path = library_in(&folder).ok_or_else(|| format!("no library in {}", folder.display()))?;
    Ok(Library { version: Some(install::ONNX_RUNTIME_GPU.version.into()), path, origin: Origin::Cache })
}

fn from_python() -> std::result::Result<Library, String> {
    const FIND: &str = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                        print(next(iter(s.submodule_search_locations or []), '') if s else '')";
    let mut reasons = Vec::new();
    for python in pythons() {
        let found = match output(python, &["-c".as_ref(), FIND.as_ref()]) {
            Ok(found) => found,
            Err(why) => {
                reasons.push(why);
                continue;
            }
        };
        let package = Path::new(found.trim());
        let Some(path) = (!found.trim().is_empty()).then(|| library_in(&package.join("capi"))).flatten() else {
            reasons.push(format!("{python} has no package onnxruntime"));
            continue;
        };
        let version = package_version(package).or_else(|| version_of(&path));
        match &version {
            Some(v) if !new_enough(v, LEAST_MINOR) => {
                reasons.push(format!("{python} has onnxruntime {v}, which is older than 1.{LEAST_MINOR}"));
            }
            _ => return Ok(Library { path, version, origin: Origin::PythonPackage }),
        }
    }
    Err(reasons.join("; "))
}

/// `__version__ = "1.32.0"` of the package, read as text.
fn package_version(package: &Path) -> Option<String> {
    let text = std::fs::read_to_string(package.join("__init__.py")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("__version__"))?;
    line.split(['"', '\'']).nth(1).map(str::to_string)
}

/// The library in a folder; of several (a symbolic link and its target) the longest name, which has the version.
pub(super) fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path());
    let mut found: Vec<PathBuf> =
        entries.filter(|p| p.file_name().is_some_and(|n| is_library(&n.to_string_lossy())) && p.is_file()).collect();
    found.sort_by_key(|p| (p.as_os_str().len(), p.clone()));
    found.pop()
}

/// Whether a file of that name is the library itself, not one of its providers.
pub(super) fn is_library(name: &str) -> bool {
    if name.contains("providers") {
        return false;
    }
    name == "onnxruntime.dll"
        || (name.starts_with("libonnxruntime.") && (name.contains(".so") || name.ends_with(".dylib")))
}

/// The version in a file name such as `libonnxruntime.so.1.32.0` or `libonnxruntime.1.32.0.dylib`.
fn version_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let digits = name.trim_end_matches(".dylib").split_once("onnxruntime.")?.1.trim_start_matches("so.");
    (digits.split('.').count() > 1 && digits.split('.').all(|d| d.parse::<u32>().is_ok())).then(|| digits.to_string())
}

/// Whether a version is at least 1.`minor`.
fn new_enough(version: &str, minor: u32) -> bool {
    let mut parts = version.split('.').map(|p| p.parse::<u32>().unwrap_or(0));
    match (parts.next(), parts.next()) {
        (Some(1), Some(own)) => own >= minor,
        (Some(major), _) => major > 1,
        _ => false,
    }
}

fn file_name_for_humans() -> &'static str {
    if cfg!(windows) {
        "onnxruntime.dll"
    } else if cfg!(target_os = "macos") {
        "libonnxruntime.dylib"
    } else {
        "libonnxruntime.so"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_names() {
        for name in ["libonnxruntime.so", "libonnxruntime.so.1.32.0", "libonnxruntime.1.32.0.dylib", "onnxruntime.dll"]
        {
            assert!(is_library(name), "{name}");
        }
        for name in
            ["libonnxruntime_providers_shared.so", "onnxruntime_providers_cuda.dll", "onnxruntime_pybind11_state.so"]
        {
            assert!(!is_library(name), "{name}");
        }
    }

    #[test]
    fn versions() {
        let of = |n: &str| version_of(Path::new(n));
        assert_eq!(of("/a/libonnxruntime.so.1.32.0").as_deref(), Some("1.32.0"));
        assert_eq!(of("libonnxruntime.1.31.1.dylib").as_deref(), Some("1.31.1"));
        assert_eq!(of("libonnxruntime.so"), None);
        let enough = |version| new_enough(version, 24);
        assert!(enough("1.24.0") && enough("2.0.0") && !enough("1.23.9") && !enough("old"));
    }
}
