//! Finding and installing ONNX Runtime, each case in its own process: the library is loaded once per process.

use std::path::Path;
use std::process::Command;
use weftc::runtime::{doctor, locate};

/// Runs one of the ignored cases below in a process with exactly these variables changed.
fn case(name: &str, variables: &[(&str, &Path)]) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env_remove("ORT_DYLIB_PATH");
    command.envs(variables.iter().copied());
    let out = command.output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn print_libraries() {
    match locate::find_or_install(false, &mut |line| println!("say: {line}")) {
        Ok(libraries) => println!("found: {libraries:?}"),
        Err(why) => println!("error: {why}"),
    }
}

#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn print_doctor() {
    println!("{}", doctor());
}

#[test]
fn a_machine_without_anything_lists_every_way_at_once() {
    let empty = tempfile::tempdir().unwrap();
    let (ok, text) = case("print_libraries", &[("PATH", empty.path()), ("WEFTC_CACHE", empty.path())]);
    assert!(ok, "{text}");
    for part in [
        "ORT_DYLIB_PATH is not set",
        "no library in",
        "python3 does not start",
        "pip install onnxruntime==",
        "set ORT_DYLIB_PATH",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let (_, text) = case("print_doctor", &[("PATH", empty.path()), ("WEFTC_CACHE", empty.path())]);
    assert!(text.contains("!!  ONNX Runtime"), "{text}");
}

#[test]
fn a_named_library_that_is_missing_is_an_error_even_where_others_are() {
    let folder = tempfile::tempdir().unwrap();
    let cached = locate::library_folder(folder.path());
    std::fs::create_dir_all(&cached).unwrap();
    std::fs::write(cached.join("libonnxruntime.so.1.32.0"), "").unwrap();
    let named = folder.path().join("none.so");
    let (_, text) = case("print_libraries", &[("ORT_DYLIB_PATH", &named), ("WEFTC_CACHE", folder.path())]);
    assert!(text.contains("error: no usable ONNX Runtime") && text.contains("none.so, which is not a file"), "{text}");
}

#[test]
fn the_cache_is_used_without_network_and_without_python() {
    let folder = tempfile::tempdir().unwrap();
    let cached = locate::library_folder(folder.path());
    std::fs::create_dir_all(&cached).unwrap();
    std::fs::write(cached.join("libonnxruntime.so.1.32.0"), "").unwrap();
    let (_, text) = case("print_libraries", &[("PATH", folder.path()), ("WEFTC_CACHE", folder.path())]);
    assert!(text.contains("origin: Cache") && text.contains("1.32.0") && !text.contains("say:"), "{text}");
}

/// A `python3` that stands in for pip: it "downloads" `wheel.whl` under `name` and reports `sha256` for it.
#[cfg(unix)]
fn fake_python(folder: &Path, name: &str, sha256: &str) {
    use std::os::unix::fs::PermissionsExt;
    let script = format!(
        "#!/bin/sh\ncd {folder}\necho \"$*\" >> log\n\
         case \"$*\" in\n\
         *find_spec*) echo;;\n\
         *pip\\ download*) sleep 0.3; while [ \"$1\" != -d ]; do shift; done; cp wheel.whl \"$2/{name}\";;\n\
         *--report*) echo '{{\"install\": [{{\"download_info\": {{\"url\": \"https://host/{name}\", \
         \"archive_info\": {{\"hashes\": {{\"sha256\": \"{sha256}\"}}}}}}}}]}}';;\n\
         esac\n",
        folder = folder.display()
    );
    let path = folder.join("python3");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut zip = zip::ZipWriter::new(std::fs::File::create(folder.join("wheel.whl")).unwrap());
    zip.start_file("onnxruntime/capi/libonnxruntime.so.1.32.0", zip::write::SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap();
}

#[cfg(unix)]
#[test]
fn two_processes_at_once_download_once() {
    use sha2::Digest;
    let folder = tempfile::tempdir().unwrap();
    fake_python(folder.path(), "onnxruntime-1.32.0-py3-none-any.whl", "");
    let digest = sha2::Sha256::digest(std::fs::read(folder.path().join("wheel.whl")).unwrap());
    let sha256: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    fake_python(folder.path(), "onnxruntime-1.32.0-py3-none-any.whl", &sha256);
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let run = || case("print_libraries", &[("PATH", Path::new(&path)), ("WEFTC_CACHE", folder.path())]).1;
    let (first, second) = std::thread::scope(|s| {
        let other = s.spawn(run);
        (run(), other.join().unwrap())
    });
    assert!(first.contains("found:") && second.contains("found:"), "{first}\n{second}");
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert_eq!(log.lines().filter(|l| l.contains("pip download")).count(), 1, "{log}");
}

#[cfg(unix)]
#[test]
fn a_wheel_with_another_checksum_is_refused_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    fake_python(folder.path(), "onnxruntime-1.32.0-cp312-cp312-win_amd64.whl", "");
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let (_, text) = case("print_libraries", &[("PATH", Path::new(&path)), ("WEFTC_CACHE", folder.path())]);
    assert!(text.contains("the download is damaged or was tampered with"), "{text}");
    let left = std::fs::read_dir(folder.path().join("onnxruntime")).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["1.32.0.lock"]);
}
