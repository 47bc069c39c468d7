//! External data: paths that lead out of the model's folder, and ranges that are not there.

use crate::build::*;
use crate::refused;
use std::path::Path;
use weftc::onnx::proto::tensor_proto::DataLocation;
use weftc::onnx::proto::*;

/// The small model with its embedding (512 bytes) in `weights.bin`, as these entries say.
fn external(folder: &Path, entries: &[(&str, &str)]) -> Vec<u8> {
    std::fs::write(folder.join("weights.bin"), vec![0; 600]).unwrap();
    with(|_, g| {
        let t = &mut g.initializer[0];
        t.raw_data.clear();
        t.data_location = DataLocation::External.into();
        let entry = |(key, value): &(&str, &str)| StringStringEntryProto { key: (*key).into(), value: (*value).into() };
        t.external_data = entries.iter().map(entry).collect();
    })
}

fn at(folder: &Path, location: &str) -> Vec<u8> {
    external(folder, &[("location", location)])
}

/// All its weights in a file that was not copied along.
fn all_apart() -> Vec<u8> {
    with(|_, g| {
        for t in &mut g.initializer {
            t.raw_data.clear();
            t.data_location = DataLocation::External.into();
            t.external_data = vec![StringStringEntryProto { key: "location".into(), value: "model.onnx.data".into() }];
        }
    })
}

fn range(folder: &Path, offset: &str, length: &str) -> Vec<u8> {
    external(folder, &[("location", "weights.bin"), ("offset", offset), ("length", length)])
}

/// A file or folder outside, that a link `name` in the model's folder leads to.
#[cfg(unix)]
fn link(folder: &Path, name: &str, to: &Path) {
    std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
}

refused! {
    parent_folder => |f| at(f, "../weights.bin");
    parent_folder_inside => |f| at(f, "data/../../weights.bin");
    absolute_path => |f| at(f, "/etc/passwd");
    missing_file => |f| at(f, "gone.bin");
    missing_file_of_all_weights => |_| all_apart();
    the_folder_itself => |f| at(f, ".");
    empty_location => |f| at(f, "");
    no_location => |f| external(f, &[("offset", "0")]);
    nul_in_location => |f| at(f, "weights\0.bin");
    escapes_in_location => |f| at(f, "\x1b[2Jgone\n.bin");
    endless_location => |f| at(f, &"x".repeat(100_000));
    offset_beyond_the_end => |f| range(f, "100", "512");
    offset_huge => |f| range(f, "18446744073709551615", "512");
    offset_negative => |f| range(f, "-8", "512");
    offset_a_word => |f| range(f, "start", "512");
    offset_too_large_a_number => |f| range(f, "99999999999999999999", "512");
    length_negative => |f| range(f, "0", "-512");
    length_huge => |f| range(f, "0", "9223372036854775807");
    length_not_the_shapes => |f| range(f, "0", "508");
}

#[cfg(unix)]
refused! {
    link_out_of_the_folder => |f| { link(f, "link.bin", Path::new("/etc/passwd")); at(f, "link.bin") };
    link_of_a_folder => |f| { link(f, "etc", Path::new("/etc")); at(f, "etc/passwd") };
    link_to_itself => |f| { link(f, "loop.bin", &f.join("loop.bin")); at(f, "loop.bin") };
    link_to_nothing => |f| { link(f, "loose.bin", &f.join("gone.bin")); at(f, "loose.bin") };
    link_to_a_device => |f| { link(f, "zero", Path::new("/dev/zero")); at(f, "zero") };
}

/// What lies inside is read, also through a link.
#[cfg(unix)]
#[test]
fn inside_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for location in ["weights.bin", "./weights.bin", "link.bin"] {
        std::fs::write(&path, at(folder.path(), location)).unwrap();
        if location == "link.bin" {
            link(folder.path(), location, &folder.path().join("weights.bin"));
        }
        crate::outcome(&path, |_| {}).unwrap();
    }
}
