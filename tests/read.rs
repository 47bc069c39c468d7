//! Every model of the shared collection is read, with its weights under their PyTorch names.

use std::path::PathBuf;
use weftc::ir::text;

/// The collection beside the checkout, or where `WEFTC_SHARED` says.
fn shared() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("WEFTC_SHARED").map_or(beside, PathBuf::from);
    folder.join("models").is_dir().then_some(folder)
}

#[test]
fn dump() {
    let Some(folder) = shared() else { return println!("skipped: no shared models") };
    let name = std::env::var("MODEL").unwrap();
    let source = weftc::onnx::read(&folder.join("models").join(format!("{name}.onnx")));
    match source {
        Ok(s) => println!("{}\n{}\n{:?}", text::print(&s.graph), s.mended.join("\n"), s.graph.histogram()),
        Err(e) => println!("{e}"),
    }
}
