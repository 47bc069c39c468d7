//! Datasets from the hub of Hugging Face, into the cache that its own tools fill (`--features hub`).
//!
//! `HF_ENDPOINT` names another hub, `HF_HOME` another cache, and the token that `hf auth login` has left there is used.

use super::locate::{is_data, split_of};
use super::spec::Part;
use crate::error::{Error, Problem, Result};
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use std::path::Path;

/// Downloads the data files of `repository` of the split that `part` asks for, of all where it asks for none; `cache` is
/// where they go.
///
/// # Errors
/// `Usage`: no network, no such dataset, no data files in it.
pub fn fetch(part: &Part, repository: &str, cache: &Path) -> Result<()> {
    let refuse = |why: String, help: &str| {
        Error::usage(Problem::new("--data", format!("cannot download {repository}: {why}")).help(help))
    };
    let failed = |e: ApiError| {
        let help = "name a local file or folder instead; a private dataset needs `hf auth login`; behind a proxy or on a \
                    mirror HF_ENDPOINT names the hub";
        refuse(e.to_string(), help)
    };
    let mut builder = ApiBuilder::from_cache(Cache::new(cache.to_path_buf())).with_retries(3).with_progress(false);
    if let Some(endpoint) = std::env::var("HF_ENDPOINT").ok().filter(|e| !e.is_empty()) {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
    }
    if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty()) {
        builder = builder.with_token(Some(token));
    }
    let repo = builder.build().map_err(failed)?.repo(Repo::new(repository.to_string(), RepoType::Dataset));
    let names: Vec<String> = repo.info().map_err(failed)?.siblings.into_iter().map(|s| s.rfilename).collect();
    let wanted = chosen(&names, part.split.as_deref());
    if wanted.is_empty() {
        let why = format!("it holds no .jsonl, .json or .parquet file of that split among {} files", names.len());
        return Err(refuse(why, "look at its files on the hub, and name the split as in NAME[train]"));
    }
    for name in wanted {
        eprintln!("downloading {repository}/{name}");
        repo.get(name).map_err(failed)?;
    }
    Ok(())
}

/// The files of a dataset that are read: those at its top and in its folder `data`, of one split.
fn chosen<'n>(names: &'n [String], split: Option<&str>) -> Vec<&'n str> {
    let near = |name: &str| !name.strip_prefix("data/").unwrap_or(name).contains('/');
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    wanted
        .retain(|name| near(name) && is_data(Path::new(name)) && split.is_none_or(|s| split_of(Path::new(name)) == s));
    wanted.sort_unstable();
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_files_of_a_split_are_chosen() {
        let names =
            ["README.md", "data/train-00000-of-00001.parquet", "data/test-0.jsonl", "train.jsonl", "a/b/c.jsonl"];
        let names = names.map(String::from);
        assert_eq!(chosen(&names, Some("train")), ["data/train-00000-of-00001.parquet", "train.jsonl"]);
        assert_eq!(chosen(&names, None).len(), 3);
    }
}
