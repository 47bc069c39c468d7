//! The user's own rules: a folder of files beside the built-in ones.
//!
//! The file's name says where its rules belong; nothing is used that is not proved.

use super::check::{Failure, check};
use super::library::{Library, library, library_and};
use super::{Kind, Rule};
use crate::error::{Error, Problem, Result};
use crate::ir::sexpr::SyntaxError;
use std::collections::BTreeMap;
use std::path::Path;

/// The instances that a proof draws are the same at every run.
pub const SEED: u64 = 1;

/// Where the rules of a file belong.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Family {
    Lift,
    Simplify,
    Layout,
    Sink,
    Fuse,
    Grad,
    Lower,
    Method(String),
    Adapter(String),
}

impl Family {
    fn of(stem: &str) -> Family {
        let families = [
            ("lift", Family::Lift),
            ("layout", Family::Layout),
            ("sink", Family::Sink),
            ("fuse", Family::Fuse),
            ("grad", Family::Grad),
            ("lower", Family::Lower),
        ];
        let found = families.into_iter().find(|(prefix, _)| stem.starts_with(prefix));
        found.map_or(Family::Simplify, |(_, family)| family)
    }

    fn kind(&self) -> Kind {
        match self {
            Family::Lift | Family::Simplify | Family::Layout | Family::Sink | Family::Fuse => Kind::Rewrite,
            Family::Grad => Kind::Vjp,
            Family::Lower => Kind::Lower,
            Family::Method(_) | Family::Adapter(_) => Kind::Define,
        }
    }
}

/// The built-in rules and those of a folder.
///
/// `lift*.egg`, `sink*.egg`, `fuse*.egg`, `grad*.egg` and `lower*.egg` join those families, `methods/NAME.egg` is the
/// method NAME, `adapters/NAME.egg` the adapter NAME, and any other `*.egg` joins `simplify`.  Gradient rows and lowerings of the user's come
/// before the built-in ones.
///
/// # Errors
/// `Io`; `Syntax` with every mistake, and with every rule that is not proved unless `trust` is set.
pub fn library_with(folder: Option<&Path>, trust: bool) -> Result<Library> {
    let Some(folder) = folder else { return library() };
    let (files, families): (Vec<_>, Vec<_>) = read(folder)?.into_iter().unzip();
    let (mut library, lists) = library_and(&files)?;
    let mut errors = Vec::new();
    for (((file, text), family), rules) in files.iter().zip(families).zip(lists) {
        let mut wrong = misplaced(&family, &rules);
        if wrong.is_empty() && !trust {
            wrong = unproved(&rules);
        }
        if !wrong.is_empty() {
            errors.push(Error::Syntax { file: file.clone(), text: text.clone(), errors: wrong });
        }
        errors.extend(join(&mut library, family, rules, file).err());
    }
    Error::all(errors).map(|()| library)
}

type File = (String, String);

/// The rule files of a folder in the order of their names.
fn read(folder: &Path) -> Result<Vec<(File, Family)>> {
    let mut files = Vec::new();
    type Named = fn(String) -> Family;
    let named: [(&str, Named); 2] = [("methods", Family::Method), ("adapters", Family::Adapter)];
    let below = named.map(|(below, family)| (folder.join(below), Some(family)));
    for (folder, named) in [(folder.to_path_buf(), None)].into_iter().chain(below) {
        if named.is_some() && !folder.is_dir() {
            continue;
        }
        let entries = std::fs::read_dir(&folder).map_err(|e| Error::io("read", &folder, e))?;
        let entries: std::io::Result<Vec<_>> = entries.map(|e| e.map(|e| e.path())).collect();
        let mut paths = entries.map_err(|e| Error::io("read", &folder, e))?;
        paths.retain(|p| p.extension().is_some_and(|e| e == "egg") && p.is_file());
        paths.sort();
        for path in paths {
            let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_string();
            let family = named.map_or_else(|| Family::of(&stem), |family| family(stem.clone()));
            files.push(((path.display().to_string(), text), family));
        }
    }
    if files.is_empty() {
        let problem = Problem::new(folder.display().to_string(), "holds no rule file, *.egg");
        return Err(Error::usage(problem.help("rules/README.md describes the language")));
    }
    Ok(files)
}

/// Rules of another kind than their file is for.
fn misplaced(family: &Family, rules: &[Rule]) -> Vec<SyntaxError> {
    let wrong = rules.iter().filter(|r| r.kind != family.kind());
    let error = |r: &Rule| {
        let (form, file) = match r.kind {
            Kind::Rewrite => ("rewrite", "lift*.egg, fuse*.egg or any other name"),
            Kind::Define => ("define", "methods/NAME.egg or adapters/NAME.egg"),
            Kind::Vjp => ("vjp", "grad*.egg"),
            Kind::Lower => ("lower", "lower*.egg"),
        };
        SyntaxError::new(&r.span, format!("a `{form}` does not belong in this file"))
            .help(format!("the file's name says what its rules are for; a `{form}` belongs in {file}"))
    };
    wrong.map(error).collect()
}

/// Every rule that the machine cannot prove, with the reason.
fn unproved(rules: &[Rule]) -> Vec<SyntaxError> {
    rules.iter().filter_map(|r| check(r, SEED).err().map(|failure| refutation(r, &failure))).collect()
}

/// A failed proof as an error at the rule's place.
pub fn refutation(rule: &Rule, failure: &Failure) -> SyntaxError {
    let what = match failure {
        Failure::NotExercised { .. } => "could not be proved",
        Failure::NoMeaning { .. } | Failure::Differs { .. } => "is wrong",
    };
    let reason = failure.to_string();
    SyntaxError::new(&rule.span, format!("the rule `{}` {what}", rule.name)).help(reason.trim_end())
}

fn join(library: &mut Library, family: Family, rules: Vec<Rule>, file: &str) -> Result<()> {
    match family {
        Family::Lift => library.lift.extend(rules),
        Family::Simplify => library.simplify.extend(rules),
        Family::Layout => library.layout.extend(rules),
        Family::Sink => library.sink.extend(rules),
        Family::Fuse => library.fuse.extend(rules),
        Family::Grad => drop(library.grad.splice(..0, rules)),
        Family::Lower => drop(library.lower.splice(..0, rules)),
        Family::Method(name) => define(&mut library.methods, "method", name, rules, file)?,
        Family::Adapter(name) => define(&mut library.adapters, "adapter", name, rules, file)?,
    }
    Ok(())
}

/// Adds a definition under a name of its own.
fn define(
    known: &mut BTreeMap<String, Vec<Rule>>,
    what: &str,
    name: String,
    rules: Vec<Rule>,
    file: &str,
) -> Result<()> {
    if let Some(first) = known.get(&name).and_then(|m| m.first()) {
        let problem = Problem::new(file, format!("a second {what} is named `{name}`"));
        return Err(Error::usage(problem.help(format!("the first is {}; rename the file", first.file))));
    }
    known.insert(name, rules);
    Ok(())
}
