//! Downloads pinned libraries with pip, ONNX Runtime and those of CUDA, and unpacks them into the cache folder.
//!
//! The wheel of a Python package is a zip archive that holds the plain C library; Python is only the
//! courier, so any wheel for this system will do, whatever Python it was built for.

use super::locate::{self, Library, Origin, PINNED};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

type Outcome<T> = Result<T, String>;

/// A Python package whose wheel brings libraries.
pub struct Package {
    pub name: &'static str,
    pub version: &'static str,
    /// About so many bytes are downloaded, in MB.
    megabytes: u32,
    /// SHA-256 of its wheels by their tags, as the package index published them.
    wheels: &'static [(&'static str, &'static str)],
}

/// ONNX Runtime for the CPU.
pub const ONNX_RUNTIME: Package = Package { name: "onnxruntime", version: PINNED, megabytes: 25, wheels: &WHEELS };

/// ONNX Runtime with its CUDA provider, for CUDA 13.
pub const ONNX_RUNTIME_GPU: Package = Package {
    name: "onnxruntime-gpu",
    version: "1.31.1",
    megabytes: 256,
    wheels: &[
        ("cp311-cp311-manylinux_2_28_x86_64", "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6"),
        ("cp312-cp312-manylinux_2_28_x86_64", "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7"),
        ("cp313-cp313-manylinux_2_28_x86_64", "f659529e07c21ec6b6179fd1bfaf82ffb7c3dc9c0916e18f6f313f9a690891be"),
        ("cp314-cp314-manylinux_2_28_x86_64", "52a9ec263f331678e8fcb4f71a6fa44e5f901f0aac0b61fbe5a61517f2b4cc7d"),
    ],
};

/// What the provider is linked with: CUDA's runtime, its linear algebra, its random numbers; and the compiler of kernels.
pub const CUDA_RUNTIME: Package = Package {
    name: "nvidia-cuda-runtime",
    version: "13.5.37",
    megabytes: 3,
    wheels: &[(
        "py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64",
        "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d",
    )],
};
pub const CUBLAS: Package = Package {
    name: "nvidia-cublas",
    version: "13.10.0.20",
    megabytes: 400,
    wheels: &[(
        "py3-none-manylinux1_x86_64.manylinux_2_5_x86_64",
        "dcc6d63884c53d07e267ce7e6feac17b2538cebaafec5db865736c3e28e4dc84",
    )],
};
pub const CURAND: Package = Package {
    name: "nvidia-curand",
    version: "10.4.5.25",
    megabytes: 77,
    wheels: &[("py3-none-manylinux_2_27_x86_64", "22bb226a857e5888fe6b54ae465fc4371296bcff13a35f79e19691bcf454f529")],
};

pub const NVRTC: Package = Package {
    name: "nvidia-cuda-nvrtc",
    version: "13.5.37",
    megabytes: 58,
    wheels: &[(
        "py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64",
        "86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc",
    )],
};

const WHEELS: [(&str, &str); 16] = [
    ("cp311-cp311-macosx_14_0_arm64", "366b9e53d07812cc5c92822cecf7563b76a8a0f32ba3bb8dd232a206ac3bcb6c"),
    ("cp311-cp311-manylinux_2_28_aarch64", "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c"),
    ("cp311-cp311-manylinux_2_28_x86_64", "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d"),
    ("cp311-cp311-win_amd64", "d7e0c45cc5f456ad7805e6dd256a7662736cda9c2fd17becae194eb3c2f6df72"),
    ("cp312-cp312-macosx_14_0_arm64", "d52510bbbcc880c13b826f7d75cdf33ac5cf0bb864d960000fc29ce73f0cb83e"),
    ("cp312-cp312-manylinux_2_28_aarch64", "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054"),
    ("cp312-cp312-manylinux_2_28_x86_64", "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8"),
    ("cp312-cp312-win_amd64", "efe7456952c243a05a53d5b8732953625144642c2f3989094277f6217f0c0c40"),
    ("cp313-cp313-macosx_14_0_arm64", "27bf5dad46355a8a435c9c4e1556464d99ca834ea44e0f452909712068b8821b"),
    ("cp313-cp313-manylinux_2_28_aarch64", "54d02baff2df38777b4c3cc7af326406fe8b8a48f54720f4c446d2d327920a79"),
    ("cp313-cp313-manylinux_2_28_x86_64", "02ea12a28c069ea8510093d95a7f6ff8126bfd9fc5c0d3381c03b80fb2b424ba"),
    ("cp313-cp313-win_amd64", "c7f9aa98036ba2a47aa041a4a8c6d0a1f7bfe1bde44c131dcd15ce334f2f148d"),
    ("cp314-cp314-macosx_14_0_arm64", "ab327b736552324af8d2a38bef5a65ed773f67184a36ff642beec7f5b4e9b03f"),
    ("cp314-cp314-manylinux_2_28_aarch64", "4135431395c1f37de0811f452c20a8b774f51812fda6c49611ed9899bbdbeeb4"),
    ("cp314-cp314-manylinux_2_28_x86_64", "48b878f9551d465aa79ee94ecaf49a1f6b5d27f2975efa775ded374db14d0af1"),
    ("cp314-cp314-win_amd64", "2b08ee990d00ab2ee129c5e039f7339963335a4d76f5bd22bfb4f896ae1cec0a"),
];

impl Package {
    /// `name==version`
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    /// Where in the cache its libraries lie.
    pub fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(self.name).join(self.version)
    }

    /// The checksum of a wheel, where it is known.
    fn listed(&self, wheel: &str) -> Option<&'static str> {
        let tags = wheel.strip_prefix(&self.name.replace('-', "_"))?.strip_prefix('-')?;
        let tags = tags.strip_prefix(self.version)?.strip_prefix('-')?.strip_suffix(".whl")?;
        self.wheels.iter().find(|(t, _)| *t == tags).map(|(_, sha256)| *sha256)
    }

    /// The name under which a file of its wheel is unpacked, without separators, so that it cannot leave the folder;
    /// `None` for what is no library.
    fn keeps<'n>(&self, path: &'n str) -> Option<&'n str> {
        let is_shared = |name: &str| name.contains(".so") || name.ends_with(".dll") || name.ends_with(".dylib");
        if path.split('/').any(|part| part == "..") {
            return None;
        }
        let (folder, name) = path.rsplit_once('/')?;
        let kept = match folder {
            "onnxruntime/capi" => locate::is_library(name) || name.contains("onnxruntime_providers"),
            _ => self.name.starts_with("nvidia-") && folder.starts_with("nvidia/") && folder.ends_with("/lib"),
        };
        (kept && is_shared(name) && !name.contains('\\')).then_some(name)
    }
}

/// Downloads and unpacks the library for the CPU, unless another process has done so while we waited for its lock.
pub fn install(cache: &Path, say: &mut dyn FnMut(&str)) -> Outcome<Library> {
    place(&ONNX_RUNTIME, cache, &|| locate::from_cache(cache).is_ok(), say)?;
    let library = locate::from_cache(cache)?;
    say(&format!("unpacked {}", library.path.display()));
    Ok(Library { origin: Origin::Downloaded, ..library })
}

/// Downloads and unpacks what is not in the cache yet.
pub fn add(package: &Package, cache: &Path, say: &mut dyn FnMut(&str)) -> Outcome<()> {
    place(package, cache, &|| package.folder(cache).is_dir(), say)
}

/// Fills the package's folder unless it is `there` already; whole or not at all.
fn place(package: &Package, cache: &Path, there: &dyn Fn() -> bool, say: &mut dyn FnMut(&str)) -> Outcome<()> {
    let folder = package.folder(cache);
    let parent = folder.parent().ok_or("the cache folder has no parent")?;
    fs::create_dir_all(parent).map_err(|e| format!("cannot create {}: {e}", parent.display()))?;
    let lock_path = parent.join(format!("{}.lock", package.version));
    let lock = File::create(&lock_path).map_err(|e| format!("cannot create {}: {e}", lock_path.display()))?;
    lock.lock().map_err(|e| format!("cannot lock {}: {e}", lock_path.display()))?;
    if there() {
        return Ok(());
    }
    let scratch = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(parent)
        .map_err(|e| format!("cannot create a folder in {}: {e}", parent.display()))?;
    say(&format!("downloading {} {} with pip (about {} MB, once)", package.name, package.version, package.megabytes));
    let wheel = download(package, scratch.path())?;
    verify(package, &wheel, scratch.path(), say)?;
    let unpacked = scratch.path().join("unpacked");
    unpack(package, &wheel, &unpacked)?;
    // Only an interrupted copy by hand can have left a folder without a library here.
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|e| format!("cannot replace {}: {e}", folder.display()))?;
    }
    fs::rename(&unpacked, &folder).map_err(|e| format!("cannot move the library to {}: {e}", folder.display()))
}

/// The wheel, as pip chooses it for this Python, else for a Python that the package supports.
fn download(package: &Package, folder: &Path) -> Outcome<PathBuf> {
    let mut reasons = Vec::new();
    for python in locate::pythons() {
        for target in [&[][..], &fallback_target()[..]] {
            let requirement = package.requirement();
            let mut arguments: Vec<&OsStr> = ["-m", "pip", "download", "--quiet", "--no-deps"].map(OsStr::new).to_vec();
            arguments.extend(["--only-binary", ":all:", "--disable-pip-version-check", "-d"].map(OsStr::new));
            arguments.push(folder.as_os_str());
            arguments.extend(target.iter().map(OsStr::new));
            arguments.push(requirement.as_ref());
            match locate::output(python, &arguments) {
                Ok(_) => return wheel_in(folder).ok_or_else(|| format!("pip left no wheel in {}", folder.display())),
                Err(why) => reasons.push(why),
            }
            if target.is_empty()
                && locate::output(python, &["-m".as_ref(), "pip".as_ref(), "--version".as_ref()]).is_err()
            {
                break;
            }
        }
    }
    reasons.dedup();
    Err(format!("pip download {}: {}", package.requirement(), reasons.join("; ")))
}

/// pip's options for a wheel that fits this system but another Python.
fn fallback_target() -> Vec<&'static str> {
    let platform = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => "manylinux_2_28_x86_64",
        ("linux", "aarch64") => "manylinux_2_28_aarch64",
        ("macos", "aarch64") => "macosx_14_0_arm64",
        ("windows", "x86_64") => "win_amd64",
        _ => return Vec::new(),
    };
    vec!["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--platform", platform]
}

fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(folder).ok()?.flatten().map(|e| e.path());
    paths.filter(|p| p.extension().is_some_and(|x| x == "whl")).min()
}

/// Compares the wheel with the checksum recorded here; for a wheel that is not listed, with the one that
/// the package index reports to pip.
fn verify(package: &Package, wheel: &Path, scratch: &Path, say: &mut dyn FnMut(&str)) -> Outcome<()> {
    let name = wheel.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut hasher = Sha256::new();
    let mut file = File::open(wheel).map_err(|e| format!("cannot open {}: {e}", wheel.display()))?;
    io::copy(&mut file, &mut HashWriter(&mut hasher)).map_err(|e| format!("cannot read {}: {e}", wheel.display()))?;
    let actual = hex(&hasher.finalize());
    let expected = match package.listed(&name) {
        Some(sha256) => sha256.to_string(),
        None => {
            say(&format!("{name} is not among the wheels whose checksum weftc knows; comparing with the index's"));
            reported(package, scratch, &name)?
        }
    };
    if actual == expected {
        return Ok(());
    }
    Err(format!("{name} has SHA-256 {actual}, expected {expected}: the download is damaged or was tampered with"))
}

/// The checksum of `name` in pip's installation report.
fn reported(package: &Package, scratch: &Path, name: &str) -> Outcome<String> {
    let requirement = package.requirement();
    let mut reasons = Vec::new();
    for python in locate::pythons() {
        let mut arguments: Vec<&OsStr> =
            ["-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
                .map(OsStr::new)
                .to_vec();
        arguments.extend(["--only-binary", ":all:", "--disable-pip-version-check", "--target"].map(OsStr::new));
        arguments.extend([scratch.as_os_str(), "--report".as_ref(), "-".as_ref(), requirement.as_ref()]);
        match locate::output(python, &arguments).and_then(|json| checksum_in_report(&json, name)) {
            Ok(sha256) => return Ok(sha256),
            Err(why) => reasons.push(why),
        }
    }
    Err(format!("the checksum of {name} cannot be verified: {}", reasons.join("; ")))
}

fn checksum_in_report(json: &str, name: &str) -> Outcome<String> {
    let report: serde_json::Value = serde_json::from_str(json).map_err(|e| format!("pip's report: {e}"))?;
    let items = report["install"].as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|item| &item["download_info"])
        .find(|info| info["url"].as_str().is_some_and(|u| u.rsplit('/').next() == Some(name)))
        .and_then(|info| info["archive_info"]["hashes"]["sha256"].as_str())
        .map(str::to_string)
        .ok_or_else(|| "pip's report does not list it".into())
}

/// Unpacks the library and its providers, by base name, into `folder`.
fn unpack(package: &Package, wheel: &Path, folder: &Path) -> Outcome<()> {
    let bad = |e: &dyn std::fmt::Display| format!("cannot unpack {}: {e}", wheel.display());
    let file = File::open(wheel).map_err(|e| bad(&e))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| bad(&e))?;
    fs::create_dir_all(folder).map_err(|e| bad(&e))?;
    let mut found = false;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| bad(&e))?;
        let path = entry.name().map_err(|e| bad(&e))?.into_owned();
        let Some(name) = package.keeps(&path) else { continue };
        found = true;
        let mut out = File::create(folder.join(name)).map_err(|e| bad(&e))?;
        io::copy(&mut entry, &mut out).and_then(|_| out.sync_all()).map_err(|e| bad(&e))?;
    }
    if found { Ok(()) } else { Err(bad(&"it holds no library")) }
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.update(buffer);
        Ok(buffer.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wheel(folder: &Path, entries: &[(&str, &str)]) -> PathBuf {
        let path = folder.join(format!("onnxruntime-{PINNED}-cp312-cp312-manylinux_2_28_x86_64.whl"));
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, text) in entries {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            io::Write::write_all(&mut zip, text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn a_wheel_is_unpacked_by_base_name_only() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let entries = [
            ("onnxruntime/capi/libonnxruntime.so.1.32.0", "library"),
            ("onnxruntime/capi/libonnxruntime_providers_shared.so", "provider"),
            ("onnxruntime/capi/../../libonnxruntime.so.9.9.9", "escape"),
            ("onnxruntime/__init__.py", "python"),
        ];
        unpack(&ONNX_RUNTIME, &wheel(folder.path(), &entries), &out).unwrap();
        let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so"]);
        assert!(
            unpack(&ONNX_RUNTIME, &wheel(folder.path(), &entries[3..]), &out).unwrap_err().contains("holds no library")
        );
    }

    #[test]
    fn libraries_of_cuda_are_kept() {
        assert_eq!(CUBLAS.keeps("nvidia/cu13/lib/libcublas.so.13"), Some("libcublas.so.13"));
        for path in ["nvidia/cu13/include/cublas.h", "nvidia/../lib/libx.so", "other/lib/libx.so", "libx.so"] {
            assert_eq!(CUBLAS.keeps(path), None, "{path}");
        }
        let name = "onnxruntime_gpu-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl";
        assert!(ONNX_RUNTIME_GPU.listed(name).is_some_and(|sha256| sha256.starts_with("05d54895")));
    }

    #[test]
    fn a_tampered_wheel_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), &[("onnxruntime/capi/libonnxruntime.so", "evil")]);
        let why = verify(&ONNX_RUNTIME, &path, folder.path(), &mut |_| {}).unwrap_err();
        assert!(why.contains("99e1074c4b2197ac") && why.contains("tampered"), "{why}");
    }

    #[test]
    fn the_report_of_pip_gives_a_checksum() {
        let json = r#"{"install": [{"download_info": {"url": "https://x/y/a.whl",
            "archive_info": {"hashes": {"sha256": "00ff"}}}}]}"#;
        assert_eq!(checksum_in_report(json, "a.whl").as_deref(), Ok("00ff"));
        assert!(checksum_in_report(json, "b.whl").is_err());
    }
}
