//! The method of a compilation: its file's options with the values that were given.

use super::Options;
use crate::error::{Error, Problem, Result};
use crate::manifest::{Method, Probe};
use crate::method;
use crate::ports::Ports;
use crate::rules::library::Library;
use std::collections::BTreeMap;

/// The method with its hyper-parameters, or everything that is wrong with them; notes say which settings it
/// does not have.
pub(super) fn chosen(options: &Options, library: &Library, ports: &Ports, notes: &mut Vec<String>) -> Result<Method> {
    let mut problems = Vec::new();
    let fed = ports.fed();
    let definition = library.methods.get(&options.method);
    if definition.is_none() {
        let known: Vec<&str> = library.methods.keys().map(String::as_str).collect();
        problems.push(
            Problem::new("--method", format!("`{}` is not a method", options.method))
                .help(format!("known methods: {}", known.join(", "))),
        );
    }
    match options.mask_id {
        None => problems.push(Problem::new("--mask-id", "the model file does not say which token is the mask").help(
            "pass the mask token's id from the model's tokenizer, often vocabulary - 1; or --profile llada, dream, .. for a published family",
        )),
        Some(id) if !(0..fed).contains(&id) => problems.push(
            Problem::new("--mask-id", format!("token {id} is outside the vocabulary of {fed}"))
                .help(format!("ids run from 0 to {}", fed - 1)),
        ),
        Some(_) => {}
    }
    if !(0..=1).contains(&options.logits_shift) {
        problems.push(Problem::new("--logits-shift", format!("`{}` is not one of 0, 1", options.logits_shift)));
    }
    let definition = definition.map(Vec::as_slice).unwrap_or_default();
    let given: BTreeMap<String, String> =
        options.settings.iter().chain(&options.set).map(|(n, v)| (n.clone(), v.clone())).collect();
    let (values, unknown) = method::resolve(definition, &given, &mut problems);
    let name = &options.method;
    for option in unknown {
        if options.set.contains_key(&option) {
            let all = method::options(definition);
            let list: Vec<String> = all.iter().map(|(name, default)| format!("{name}={default}")).collect();
            problems.push(
                Problem::new("--set", format!("the method {name} has no option `{option}`"))
                    .help(format!("its options and their defaults: {}", list.join(", "))),
            );
        } else {
            notes.push(format!("--{} has no effect on the method {name}", option.replace('_', "-")));
        }
    }
    if options.probe != Probe::EveryStep && !definition.is_empty() && !method::has_probe(definition) {
        problems.push(
            Problem::new("--probe", format!("the method {name} has no entropy pass that could be cached"))
                .help("leave the flag out, or choose weft, weft-nll or sw"),
        );
    }
    if !problems.is_empty() {
        return Err(Error::Usage { problems });
    }
    if let (true, Some(id)) = (options.excludes_mask, options.mask_id.filter(|id| *id >= ports.predicted)) {
        notes.push(format!("--exclude-mask has no effect: the model has no logit for its mask token {id}"));
    }
    Ok(Method {
        name: name.clone(),
        mask_id: options.mask_id.unwrap_or_default(),
        logits_shift: options.logits_shift,
        excludes_mask: options.excludes_mask,
        probe: options.probe,
        options: values,
    })
}
