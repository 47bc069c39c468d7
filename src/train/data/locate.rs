//! Where the rows of a source lie: a file, a folder, a known name, the cache of Hugging Face.

use super::spec::Part;
use crate::error::{Error, Problem, Result};
use std::path::{Path, PathBuf};

/// Names that people use, and the repository that holds them.
pub const KNOWN: [(&str, &str); 2] = [("s1k", "simplescaling/s1K"), ("s1k-1.1", "simplescaling/s1K-1.1")];

/// The files of a source, in the order of their rows.
///
/// A name is looked up as a path, then as a folder `NAME` or `OWNER/NAME` below the working folder, then in the
/// cache that Hugging Face's own tools fill (`HF_HUB_CACHE`, `HF_HOME`, `~/.cache/huggingface`); what is nowhere is
/// downloaded into that cache by a weftc with the feature `hub`.
///
/// # Errors
/// `Usage` with every place that was looked at, or with the splits that there are.
pub fn files(part: &Part) -> Result<Vec<PathBuf>> {
    let path = Path::new(&part.name);
    if path.is_file() {
        return Ok(vec![path.into()]);
    }
    let repository = KNOWN.iter().find(|(name, _)| name.eq_ignore_ascii_case(&part.name)).map(|(_, r)| *r);
    let repository = repository.unwrap_or(&part.name);
    let mut folders = vec![path.to_path_buf()];
    if repository != part.name {
        folders.push(repository.into());
    }
    folders.extend(cached(repository));
    match folders.iter().find(|f| f.is_dir()) {
        Some(folder) => of_split(folder, part),
        #[cfg(feature = "hub")]
        None if let (true, Some(hub)) = (is_repository(repository), cache()) => {
            super::hub::fetch(part, repository, &hub)?;
            match cached(repository).iter().find(|f| f.is_dir()) {
                Some(folder) => of_split(folder, part),
                None => Err(Error::usage(Problem::new("--data", format!("{repository} is not where it was put")))),
            }
        }
        None => {
            let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
            let problem =
                Problem::new("--data", format!("there is no `{}`: looked for {}", part.name, looked.join(", ")));
            let fetch = format!(
                "fetch it with: pip install huggingface_hub && hf download --repo-type dataset {repository}; a weftc that \
                 was built with --features hub,parquet downloads by itself"
            );
            let help = if is_repository(repository) {
                fetch
            } else {
                "name a file of JSON lines, a folder, or OWNER/NAME of Hugging Face".into()
            };
            Err(Error::usage(problem.help(help)))
        }
    }
}

/// Whether a name is OWNER/NAME, as the hub has it, and no path.
fn is_repository(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)) && !part.starts_with('.')
    };
    name.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name)) && !is_data(Path::new(name))
}

/// The cache's folder.
fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || set("HOME").or_else(|| set("USERPROFILE")).map(|h| h.join(".cache/huggingface"));
    set("HF_HUB_CACHE").or_else(|| set("HF_HOME").or_else(home).map(|h| h.join("hub")))
}

/// The snapshots of a repository in the cache, the one that `main` names first.
fn cached(repository: &str) -> Vec<PathBuf> {
    let Some(hub) = cache() else { return vec![] };
    let root = hub.join(format!("datasets--{}", repository.replace('/', "--")));
    let snapshots = root.join("snapshots");
    let main = std::fs::read_to_string(root.join("refs/main")).ok();
    let main = main.map(|commit| snapshots.join(commit.trim())).filter(|p| p.is_dir());
    let mut others: Vec<PathBuf> = entries(&snapshots);
    others.sort();
    main.into_iter().chain(others).chain([snapshots]).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map(|e| e.flatten().map(|e| e.path()).collect()).unwrap_or_default()
}

/// The data files of a folder and of its folder `data`, for the split that is asked for.
fn of_split(folder: &Path, part: &Part) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = [folder.to_path_buf(), folder.join("data")].iter().flat_map(|f| entries(f)).collect();
    files.retain(|f| is_data(f));
    files.sort();
    let splits: Vec<String> = files.iter().map(|f| split_of(f)).collect();
    let refuse = |why: String, help: &str| Err(Error::usage(Problem::new("--data", why).help(help)));
    if files.is_empty() {
        let why = format!("the folder {} holds no .jsonl, .json or .parquet file", folder.display());
        return refuse(why, "name the file itself");
    }
    let mut known = splits.clone();
    known.dedup();
    let wanted = match &part.split {
        Some(split) => split.clone(),
        None if known.len() == 1 => known[0].clone(),
        None => "train".into(),
    };
    if !known.contains(&wanted) {
        let why = format!("`{}` has no split `{wanted}`", part.name);
        return refuse(why, &format!("there is {}; choose one as in {}[{}]", known.join(", "), part.name, known[0]));
    }
    let found: Vec<PathBuf> =
        files.into_iter().zip(splits).filter(|(_, split)| *split == wanted).map(|(file, _)| file).collect();
    match found.iter().filter_map(|f| of_how_many(f)).max() {
        Some(all) if all > found.len() => {
            let why = format!("the split `{wanted}` of `{}` has {} of its {all} files", part.name, found.len());
            refuse(why, &format!("the download was cut short: remove {} and fetch it again", folder.display()))
        }
        _ => Ok(found),
    }
}

/// 2 of `train-00000-of-00002.parquet`.
fn of_how_many(path: &Path) -> Option<usize> {
    path.file_stem()?.to_str()?.rsplit_once("-of-")?.1.parse().ok()
}

pub(super) fn is_data(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["jsonl", "json", "parquet"].contains(&extension.as_str())
        && path.file_name().is_none_or(|n| n != "dataset_infos.json")
}

/// `train-00000-of-00001.parquet` is of the split `train`, `my.jsonl` of the split `my`.
pub(super) fn split_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let plain = stem.split('-').next().unwrap_or(&stem);
    plain.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &Path, split: Option<&str>) -> Part {
        Part { name: name.display().to_string(), split: split.map(String::from), rows: 0..usize::MAX }
    }

    #[test]
    fn splits_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        for name in ["train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl", "test-00000-of-00001.jsonl"] {
            std::fs::write(folder.path().join("data").join(name), "").unwrap();
        }
        std::fs::write(folder.path().join("README.md"), "").unwrap();
        let names = |split| -> Vec<String> {
            let files = files(&part(folder.path(), split)).unwrap();
            files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(None), ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]);
        assert_eq!(names(Some("test")), ["test-00000-of-00001.jsonl"]);
        let why = files(&part(folder.path(), Some("dev"))).unwrap_err().to_string();
        assert!(why.contains("no split `dev`") && why.contains("test, train"), "{why}");
    }

    #[test]
    fn a_split_that_is_not_whole_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train-00001-of-00002.jsonl"), "").unwrap();
        let why = files(&part(folder.path(), None)).unwrap_err().to_string();
        assert!(why.contains("has 1 of its 2 files"), "{why}");
    }

    #[test]
    fn names_of_the_hub_are_no_paths() {
        let is = ["simplescaling/s1K-1.1", "a/b"].map(is_repository);
        assert_eq!((is, ["a", "../b", "a/b/c", "a/b.jsonl", "a/", "/b"].map(is_repository)), ([true; 2], [false; 6]));
    }

    #[test]
    #[cfg(not(feature = "hub"))]
    fn what_is_missing_says_how_to_get_it() {
        let why = files(&part(Path::new("s1k"), None)).unwrap_err().to_string();
        assert!(why.contains("simplescaling/s1K") && why.contains("hf download"), "{why}");
    }
}
