//! Hostile and broken models: each is refused in words that a snapshot holds, within bounds of time and
//! memory; nothing panics and nothing outside the model's folder is read.

mod bounded;
mod build;
mod external;
mod files;
mod graphs;
mod names;
mod noise;
mod operands;
mod ports;
mod tensors;

use std::path::Path;
use weftc::compile::{Options, compile};
use weftc::error::Error;

/// One test a model: its refusal, against a snapshot of the same name.
macro_rules! refused {
    ($($name:ident => $make:expr;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(crate::refusal($make));
        }
    )*};
}
pub(crate) use refused;

/// The outcome of the whole compiler: bytes of train.onnx or an error.
fn outcome(model: &Path, change: impl FnOnce(&mut Options)) -> Result<Vec<u8>, Error> {
    let mut options = Options { mask_id: Some(31), ..Options::new(model) };
    change(&mut options);
    compile(&options)?.encode(model.parent().unwrap())
}

/// The refusal of a model whose bytes `make` returns; it may put other files beside it.
fn refusal(make: impl FnOnce(&Path) -> Vec<u8>) -> String {
    refusal_under(make, |_| {})
}

fn refusal_under(make: impl FnOnce(&Path) -> Vec<u8>, change: impl FnOnce(&mut Options)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, make(folder.path())).unwrap();
    rendered(&path, outcome(&path, change))
}

/// Exit code and message, without the folder's name.
fn rendered(path: &Path, outcome: Result<Vec<u8>, Error>) -> String {
    let error = outcome.map(|bytes| bytes.len()).expect_err("the model was accepted");
    assert!(!matches!(error, Error::Internal { .. }), "a broken model is no mistake of weftc's: {error}");
    let folder = path.parent().unwrap().display().to_string();
    format!("exit code {}\n{}", error.exit_code(), error.to_string().replace(&folder, "FOLDER"))
}
