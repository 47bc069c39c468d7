//! The checkpoints of a run: folders that are whole or absent, the newest of them kept, and a pointer to the last.
//!
//! ```text
//! OUT/checkpoints/step-00000200/state.safetensors
//! OUT/checkpoints/step-00000300/state.safetensors
//! OUT/checkpoints/latest                          the name of the last one
//! ```
//!
//! A folder is filled under another name, synced and renamed; only then is the pointer replaced, and only then do
//! older folders go, after a rename of their own.  So whatever moment a run is killed at, `latest` names a folder
//! that is whole.

use crate::atomic;
use crate::error::{Error, Problem, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of checkpoints in a run's `--out`.
pub const FOLDER: &str = "checkpoints";

/// The file in it that names the last one.
const LATEST: &str = "latest";

/// What the names of unfinished folders begin with.
const SCRATCH: &str = ".weftc-";

/// Where a run writes its checkpoints.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// How many stay.
    keep: usize,
}

impl Store {
    /// The checkpoints of the run whose `--out` is `out`; removes what a killed run left unfinished.
    pub fn open(out: &Path, keep: usize) -> Result<Self> {
        let store = Store { folder: out.join(FOLDER), keep: keep.max(1) };
        for path in store.entries()? {
            if name(&path).starts_with(SCRATCH) {
                remove(&path)?;
            }
        }
        Ok(store)
    }

    /// The folder of the last checkpoint.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        let pointer = self.folder.join(LATEST);
        let named = match fs::read_to_string(&pointer) {
            Ok(text) => Some(self.folder.join(text.trim())).filter(|p| step(p).is_some() && p.is_dir()),
            Err(e) if absent(&e) => None,
            Err(e) => return Err(Error::io("read", &pointer, e)),
        };
        // Someone took the folder away: the newest that is left is whole too.
        Ok(match named {
            Some(path) => Some(path),
            None => self.steps()?.pop().map(|(_, path)| path),
        })
    }

    /// Writes the checkpoint of `step` through `fill`, which is given its folder; returns that folder.
    ///
    /// # Errors
    /// What `fill` returns, or `Io`; the last checkpoint is still there, and the error says so.
    pub fn save(&self, step: u64, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let last = self.latest()?;
        let path = self.folder.join(format!("step-{step:08}"));
        if last.as_ref() == Some(&path) {
            return Ok(path);
        }
        self.write(&path, fill).map_err(|e| match &last {
            Some(last) => stays(e, last),
            None => e,
        })?;
        self.rotate(step)?;
        Ok(path)
    }

    fn write(&self, path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let io = |e| Error::io("write", path, e);
        fs::create_dir_all(&self.folder).map_err(io)?;
        let scratch = tempfile::Builder::new().prefix(SCRATCH).suffix(".tmp").tempdir_in(&self.folder).map_err(io)?;
        fill(scratch.path())?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).map_err(io)?;
        }
        // Of a run that was killed before it could point here, or that went on from an earlier step.
        if path.exists() {
            self.discard(path)?;
        }
        fs::rename(scratch.path(), path).map_err(io)?;
        // It has its own name now: nothing is left to clean up.
        let _ = scratch.keep();
        atomic::sync_folder(&self.folder).map_err(io)?;
        let pointer = name(path);
        atomic::write(&self.folder.join(LATEST), |file| writeln!(file, "{pointer}"))
    }

    /// Goes back to the checkpoint `path`, if it is of this store, so that `latest` is never a step that is yet to come.
    ///
    /// # Errors
    /// `Io`: the pointer cannot be written.
    pub fn rewind(&self, path: &Path) -> Result<()> {
        let pointer = name(path);
        let own = self.folder.join(&pointer).canonicalize().ok();
        if own.is_none() || own != path.canonicalize().ok() {
            return Ok(());
        }
        atomic::write(&self.folder.join(LATEST), |file| writeln!(file, "{pointer}"))
    }

    /// Removes all but the newest up to `last`; what is beyond it belongs to a run that was gone back from.
    fn rotate(&self, last: u64) -> Result<()> {
        let steps = self.steps()?;
        let done = steps.iter().filter(|(step, _)| *step <= last).count();
        let (old, new) = (done.saturating_sub(self.keep), done);
        let goes = |k: usize| k < old || k >= new;
        steps.iter().enumerate().filter(|(k, _)| goes(*k)).try_for_each(|(_, (_, path))| self.discard(path))
    }

    /// Removes a folder; the rename first, so that what has its name is whole.
    fn discard(&self, path: &Path) -> Result<()> {
        let away = self.folder.join(format!("{SCRATCH}{}.old", name(path)));
        remove(&away)?;
        fs::rename(path, &away).map_err(|e| Error::io("remove", path, e))?;
        remove(&away)
    }

    /// Every checkpoint, the newest last.
    fn steps(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut steps: Vec<_> = self.entries()?.into_iter().filter_map(|path| Some((step(&path)?, path))).collect();
        steps.sort();
        Ok(steps)
    }

    fn entries(&self) -> Result<Vec<PathBuf>> {
        let list = || fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
        match list() {
            Err(e) if absent(&e) => Ok(Vec::new()),
            other => other.map_err(|e| Error::io("read", &self.folder, e)),
        }
    }
}

/// The checkpoint that `--resume` names, by a run's folder or by its own; and the run's folder.
///
/// # Errors
/// `Usage`: there is none.
pub fn find(named: &Path) -> Result<(PathBuf, PathBuf)> {
    let real = named.canonicalize().map_err(|e| Error::io("read", named, e))?;
    if let (Some(_), Some(out)) = (step(&real), real.ancestors().nth(2)) {
        return Ok((real.clone(), out.to_path_buf()));
    }
    let out = if name(&real) == FOLDER { real.parent().map_or(real.clone(), Path::to_path_buf) } else { real };
    match (Store { folder: out.join(FOLDER), keep: 1 }).latest()? {
        Some(path) => Ok((path, out)),
        None => {
            let problem = Problem::new(named.display().to_string(), "there is no checkpoint of a run");
            Err(Error::usage(problem.help("a run writes them to --out with --save-every N, or when it is interrupted")))
        }
    }
}

/// The error, with word of the checkpoint that is still there.
fn stays(error: Error, last: &Path) -> Error {
    let note = format!("the checkpoint {} is still whole", last.display());
    match error {
        Error::Io { action, path, source } => {
            Error::Io { action, path, source: std::io::Error::new(source.kind(), format!("{source}; {note}")) }
        }
        Error::Runtime { message, help } => {
            Error::Runtime { message, help: Some(help.map(|h| format!("{h}; ")).unwrap_or_default() + &note) }
        }
        other => other,
    }
}

/// The step of a checkpoint's folder, by its name.
fn step(path: &Path) -> Option<u64> {
    name(path).strip_prefix("step-")?.parse().ok()
}

fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn absent(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::NotFound
}

/// Removes a folder with all that is in it, or a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Err(e) if !absent(&e) => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> impl FnOnce(&Path) -> Result<()> {
        move |folder| fs::write(folder.join("state"), text).map_err(|e| Error::io("write", folder, e))
    }

    fn names(store: &Store) -> Vec<String> {
        let mut names: Vec<String> = store.entries().unwrap().iter().map(|p| name(p)).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_stay_and_latest_names_the_last() {
        let out = tempfile::tempdir().unwrap();
        let store = Store::open(out.path(), 2).unwrap();
        assert_eq!(store.latest().unwrap(), None);
        for k in 1..=4 {
            let path = store.save(10 * k, fill(&k.to_string())).unwrap();
            assert_eq!(store.latest().unwrap(), Some(path));
        }
        assert_eq!(names(&store), ["latest", "step-00000030", "step-00000040"]);
        // Without its folder, or without a pointer at all, the newest that is there counts.
        fs::remove_dir_all(out.path().join("checkpoints/step-00000040")).unwrap();
        assert_eq!(step(&store.latest().unwrap().unwrap()), Some(30));
    }

    #[test]
    fn a_failure_leaves_the_last_and_says_so() {
        let out = tempfile::tempdir().unwrap();
        let store = Store::open(out.path(), 1).unwrap();
        store.save(1, fill("good")).unwrap();
        let full =
            |folder: &Path| Err(Error::io("write", &folder.join("state"), std::io::ErrorKind::StorageFull.into()));
        let text = store.save(2, full).unwrap_err().to_string();
        assert!(text.contains("step-00000001 is still whole"), "{text}");
        assert_eq!(names(&store), ["latest", "step-00000001"]);
    }

    #[test]
    fn a_run_that_goes_back_drops_what_it_had_done_after() {
        let out = tempfile::tempdir().unwrap();
        let store = Store::open(out.path(), 5).unwrap();
        for k in 1..=3 {
            store.save(k, fill("first")).unwrap();
        }
        let (from, run) = find(&out.path().join("checkpoints/step-00000001")).unwrap();
        assert_eq!(run, out.path().canonicalize().unwrap());
        let store = Store::open(&run, 5).unwrap();
        store.rewind(&from).unwrap();
        assert_eq!(store.latest().unwrap(), Some(from));
        let path = store.save(2, fill("second")).unwrap();
        assert_eq!(fs::read_to_string(path.join("state")).unwrap(), "second");
        assert_eq!(names(&store), ["latest", "step-00000001", "step-00000002"]);
    }

    #[test]
    fn what_a_killed_run_left_goes() {
        let out = tempfile::tempdir().unwrap();
        let left = out.path().join("checkpoints/.weftc-abc.tmp");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("state"), "half").unwrap();
        assert_eq!(names(&Store::open(out.path(), 1).unwrap()), [""; 0]);
        assert!(find(out.path()).unwrap_err().to_string().contains("there is no checkpoint"));
    }
}
