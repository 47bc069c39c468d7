//! Files that are either whole or absent: a temporary file beside the target, fsync, rename.

use crate::error::{Error, Result};
use std::io::{BufWriter, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// Writes `path` through `fill`; the old file stays until the new one is on disk.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let mut out = BufWriter::new(scratch(path)?);
    fill(&mut out).map_err(|e| Error::io("write", path, e))?;
    let file = out.into_inner().map_err(|e| Error::io("write", path, e.into_error()))?;
    persist(file, path)
}

/// An empty file in the folder of `path`, so that `persist` stays within one file system.
pub fn scratch(path: &Path) -> Result<NamedTempFile> {
    let file = tempfile::Builder::new().prefix(".weftc-").suffix(".tmp").tempfile_in(folder(path));
    file.map_err(|e| Error::io("write", path, e))
}

/// Puts a complete file in the place of `path`.
pub fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    let attempt = || -> std::io::Result<()> {
        file.as_file().sync_all()?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        }
        file.persist(path).map_err(|e| e.error)?;
        sync_folder(folder(path))
    };
    attempt().map_err(|e| Error::io("write", path, e))
}

/// Renames in a folder must survive a power cut, where the platform lets a folder be synced.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    std::fs::File::open(folder)?.sync_all()?;
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
