//! `--config FILE`: the flags of a command as a TOML file.

use super::Cli;
use crate::error::{Error, Problem, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, Id};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use strsim::levenshtein;
use toml::de::{DeTable, DeValue};

/// Settings of the command line that are none of a file.
const NOT_IN_A_FILE: [&str; 2] = ["config", "help"];

/// The command line with the settings of its `--config` put in front, those left out that it gives itself or that
/// contradict it.  A command line that is wrong is returned as it is: it is refused by its own parser.
///
/// # Errors
/// `Io`, `Usage` with every line of the file that is wrong.
pub fn expand(words: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(command) = words.get(1).and_then(|name| command(&name.to_string_lossy())) else { return Ok(words) };
    let Ok(given) = command.clone().try_get_matches_from(&words[1..]) else { return Ok(words) };
    let Some(path) = given.get_one::<PathBuf>("config") else { return Ok(words) };
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let mut expanded = words[..2].to_vec();
    for (arg, word) in settings(&command, path, &text)? {
        if !is_given(&command, &given, &arg) {
            expanded.push(word.into());
        }
    }
    expanded.extend_from_slice(&words[2..]);
    Ok(expanded)
}

/// A command that takes a file, with nothing required, since the rest may stand in the file.
fn command(name: &str) -> Option<Command> {
    let all = Cli::command();
    let command = all.find_subcommand(name)?.clone();
    let takes = command.get_arguments().any(|arg| arg.get_id() == "config");
    takes.then(|| command.mut_args(|arg| arg.required(false)))
}

/// Whether the command line has this setting, or one that excludes it.
fn is_given(command: &Command, given: &ArgMatches, arg: &Arg) -> bool {
    let is = |other: &Arg| given.value_source(other.get_id().as_str()) == Some(ValueSource::CommandLine);
    let excludes = |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).iter().any(|c| c.get_id() == b.get_id());
    is(arg) || command.get_arguments().any(|other| is(other) && (excludes(arg, other) || excludes(other, arg)))
}

/// What a file sets, as words of a command line.
fn settings(command: &Command, path: &Path, text: &str) -> Result<Vec<(Arg, String)>> {
    let place = |at: usize| format!("{}:{}", path.display(), text[..at.min(text.len())].matches('\n').count() + 1);
    let table = DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start);
        Error::usage(Problem::new(place(at), e.message()).help("lines are NAME = VALUE; text stands in quotes"))
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let (mut words, mut seen, mut problems) = (Vec::<(Arg, String)>::new(), Vec::<Id>::new(), Vec::new());
    for (key, value) in entries {
        let name = key.get_ref().replace('_', "-");
        let at = place(key.span().start);
        match word(command, &name, value.get_ref()) {
            Ok((arg, _)) if seen.contains(arg.get_id()) => {
                problems.push(Problem::new(at, format!("{name} is set twice")));
            }
            Ok((arg, found)) => {
                seen.push(arg.get_id().clone());
                words.extend(found.into_iter().map(|word| (arg.clone(), word)));
            }
            Err(problem) => problems.push(Problem { place: at, ..problem }),
        }
    }
    if problems.is_empty() { Ok(words) } else { Err(Error::Usage { problems }) }
}

/// The name of a setting in a file: that of its flag, without the dashes.
fn name(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().as_str().replace('_', "-"), str::to_string)
}

/// A setting and the words that set it: none for a switch that is off, one for each element of a list.
fn word(command: &Command, key: &str, value: &DeValue) -> std::result::Result<(Arg, Vec<String>), Problem> {
    let known = || command.get_arguments().filter(|arg| !NOT_IN_A_FILE.contains(&arg.get_id().as_str()));
    let Some(arg) = known().find(|arg| name(arg) == key) else {
        let near = known().map(name).min_by_key(|name| levenshtein(name, key)).unwrap_or_default();
        return Err(Problem::new("", format!("there is no setting {key}")).help(format!("did you mean {near}?")));
    };
    let switch = !arg.get_action().takes_values() && matches!(arg.get_action(), ArgAction::SetTrue);
    let several = matches!(arg.get_action(), ArgAction::Append);
    let wanted = || {
        Problem::new("", format!("{key} is a text in quotes, or a number{}", if several { ", or a list" } else { "" }))
    };
    let texts: Option<Vec<String>> = match (value, switch) {
        (DeValue::Boolean(on), true) => return Ok((arg.clone(), on.then(|| format!("--{key}")).into_iter().collect())),
        (_, true) => return Err(Problem::new("", format!("{key} is true or false"))),
        (DeValue::Array(all), _) if several => all.iter().map(|value| scalar(value.get_ref())).collect(),
        (value, _) => scalar(value).map(|text| vec![text]),
    };
    let flag = |text: String| if arg.get_long().is_some() { format!("--{key}={text}") } else { text };
    let words: Vec<String> = texts.ok_or_else(wanted)?.into_iter().map(flag).collect();
    let line = [command.get_name()].into_iter().chain(words.iter().map(String::as_str));
    match command.clone().try_get_matches_from(line) {
        Ok(_) => Ok((arg.clone(), words)),
        Err(e) => {
            let why = e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
            Err(Problem::new("", why))
        }
    }
}

/// A value that is no list and no table, as a flag has it.
fn scalar(value: &DeValue) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(n) if n.radix() == 10 => Some(n.as_str().to_string()),
        DeValue::Float(x) => Some(x.as_str().to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compile_has_its_file_too() {
        let file = "model = \"m.onnx\"\nlora-targets = [\"q\", \"v\"]\nset = [\"a=1\", \"b=2\"]\nmask_id = 3\n";
        let words = expanded_of("compile", file, &["--set", "c=3"]).unwrap();
        assert_eq!(words, ["m.onnx", "--lora-targets=q", "--lora-targets=v", "--mask-id=3"]);
        let text = expanded_of("compile", "lr = 1\nmask-id = [1]\n", &[]).unwrap_err();
        assert!(text.contains("there is no setting lr") && text.contains("mask-id is a text"), "{text}");
        // A command without a file is left alone.
        assert_eq!(expand(["weftc", "doctor"].map(OsString::from).to_vec()).unwrap().len(), 2);
    }

    fn expanded(file: &str, flags: &[&str]) -> std::result::Result<Vec<String>, String> {
        expanded_of("run", file, flags)
    }

    fn expanded_of(command: &str, file: &str, flags: &[&str]) -> std::result::Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, file).unwrap();
        let base = ["weftc", command, "--config"].map(OsString::from);
        let words = base.into_iter().chain([path.clone().into()]).chain(flags.iter().map(OsString::from));
        let shown = |e: Error| e.to_string().replace(path.to_str().unwrap(), "run.toml");
        let words = expand(words.collect()).map_err(shown)?;
        Ok(words[2..].iter().take_while(|w| *w != "--config").map(|w| w.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn what_a_file_sets_stands_in_front_of_the_flags() {
        let file = "train-onnx = \"a.onnx\"\ndata = \"x+y\"\nlr = 2e-5\nbatch_size = 1_6\nquiet = true\n\
                    no-length-groups = false\n";
        let words = expanded(file, &[]).unwrap();
        assert_eq!(words, ["a.onnx", "--data=x+y", "--lr=2e-5", "--batch-size=16", "--quiet"]);
        let words = expanded(file, &["b.onnx", "--lr", "1", "-q"]).unwrap();
        assert_eq!(words, ["--data=x+y", "--batch-size=16"]);
    }

    #[test]
    fn a_flag_drops_what_contradicts_it() {
        assert_eq!(expanded("epochs = 3", &["--steps", "5"]).unwrap(), [""; 0]);
        assert_eq!(expanded("steps = 5", &["--epochs", "3"]).unwrap(), [""; 0]);
    }

    #[test]
    fn everything_that_is_wrong_is_told_with_its_line() {
        let file = "data = \"x\"\nlearning-rat = 1\nsteps = \"many\"\n\nbatchsize = 2\nquiet = 1\nclip = [1]\n\
                    config = \"b\"\nbatch-size = 1\nbatch_size = 2\n";
        let text = expanded(file, &[]).unwrap_err();
        let wanted = [
            "run.toml:2: there is no setting learning-rat",
            "run.toml:3: invalid value 'many' for '--steps <N>'",
            "run.toml:5: there is no setting batchsize\n    help: did you mean batch-size?",
            "run.toml:6: quiet is true or false",
            "run.toml:7: clip is a text in quotes, or a number",
            "run.toml:8: there is no setting config",
            "run.toml:10: batch-size is set twice",
        ];
        wanted.iter().for_each(|w| assert!(text.contains(w), "{w}:\n{text}"));
        assert!(expanded("lr = \n", &[]).unwrap_err().contains("run.toml:1: "));
    }
}
