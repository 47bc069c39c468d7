//! The rules that are built into the program.

use super::parse::load_all;
use super::{Rule, Target};
use crate::error::Result;
use std::collections::BTreeMap;

/// The rules that are built into the program, by family; each in the order of its file.
pub struct Library {
    pub lift: Vec<Rule>,
    pub simplify: Vec<Rule>,
    pub layout: Vec<Rule>,
    pub sink: Vec<Rule>,
    pub fuse: Vec<Rule>,
    pub grad: Vec<Rule>,
    pub lower: Vec<Rule>,
    /// Method name to its definition.
    pub methods: BTreeMap<String, Vec<Rule>>,
    /// Adapter name to its definition.
    pub adapters: BTreeMap<String, Vec<Rule>>,
    /// Factor orders of low-rank products.
    pub factor: Vec<Rule>,
}

impl Library {
    /// The lowerings for `target`; of several that fit the first is used.
    pub fn lower_for(&self, target: Target) -> Vec<Rule> {
        self.lower.iter().filter(|r| target.takes(r.target)).cloned().collect()
    }
}

const FAMILIES: [(&str, &str); 12] = [
    ("rules/lift.egg", include_str!("../../rules/lift.egg")),
    ("rules/simplify.egg", include_str!("../../rules/simplify.egg")),
    ("rules/layout.egg", include_str!("../../rules/layout.egg")),
    ("rules/sink.egg", include_str!("../../rules/sink.egg")),
    ("rules/sink_head.egg", include_str!("../../rules/sink_head.egg")),
    ("rules/fuse.egg", include_str!("../../rules/fuse.egg")),
    ("rules/grad.egg", include_str!("../../rules/grad.egg")),
    ("rules/lower_cuda.egg", include_str!("../../rules/lower_cuda.egg")),
    ("rules/lower.egg", include_str!("../../rules/lower.egg")),
    ("rules/lower_attention.egg", include_str!("../../rules/lower_attention.egg")),
    ("rules/lower_head.egg", include_str!("../../rules/lower_head.egg")),
    ("rules/factor.egg", include_str!("../../rules/factor.egg")),
];

/// To add an adapter: its file in `rules/adapters/` and its line here.
const ADAPTERS: [(&str, &str, &str); 3] = [
    ("dora", "rules/adapters/dora.egg", include_str!("../../rules/adapters/dora.egg")),
    ("lora", "rules/adapters/lora.egg", include_str!("../../rules/adapters/lora.egg")),
    ("rslora", "rules/adapters/rslora.egg", include_str!("../../rules/adapters/rslora.egg")),
];

/// To add a method: its file in `rules/methods/` and its line here.
const METHODS: [(&str, &str, &str); 6] = [
    ("weft", "rules/methods/weft.egg", include_str!("../../rules/methods/weft.egg")),
    ("sft", "rules/methods/sft.egg", include_str!("../../rules/methods/sft.egg")),
    ("weft-nll", "rules/methods/weft-nll.egg", include_str!("../../rules/methods/weft-nll.egg")),
    ("sw", "rules/methods/sw.egg", include_str!("../../rules/methods/sw.egg")),
    ("cart", "rules/methods/cart.egg", include_str!("../../rules/methods/cart.egg")),
    ("papl", "rules/methods/papl.egg", include_str!("../../rules/methods/papl.egg")),
];

/// Reads the built-in rules.
pub fn library() -> Result<Library> {
    library_and(&[]).map(|(library, _)| library)
}

/// Reads the built-in rules, and files of the user's, `(name, text)`: one list a file.  Names are unique
/// across all of them.
pub fn library_and(own: &[(String, String)]) -> Result<(Library, Vec<Vec<Rule>>)> {
    let methods = METHODS.iter().chain(&ADAPTERS).map(|(_, file, text)| (*file, *text));
    let own = own.iter().map(|(file, text)| (file.as_str(), text.as_str()));
    let files: Vec<(&str, &str)> = FAMILIES.iter().copied().chain(methods).chain(own).collect();
    let mut lists = load_all(&files)?.into_iter();
    let mut next = || lists.next().unwrap_or_default();
    let library = Library {
        lift: next(),
        simplify: next(),
        layout: next(),
        sink: [next(), next()].concat(),
        fuse: next(),
        grad: next(),
        lower: [next(), next(), next(), next()].concat(),
        factor: next(),
        methods: METHODS.iter().map(|(name, ..)| (name.to_string(), next())).collect(),
        adapters: ADAPTERS.iter().map(|(name, ..)| (name.to_string(), next())).collect(),
    };
    Ok((library, lists.collect()))
}
