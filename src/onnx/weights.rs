//! The bytes of weights: mapped from their files, never copied whole.

use crate::error::{Error, Result};
use crate::ir::Leaf;
use crate::ir::graph::Data;
use memmap2::{Mmap, MmapOptions};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a tensor, little-endian and dense.
#[derive(Debug)]
pub enum Bytes {
    Inline(Arc<[u8]>),
    Mapped(Mmap),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Inline(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The data of a weight or table, `numel * dtype.size()` bytes.
///
/// # Errors
/// `Io` where the file is gone or has become shorter; `Internal` for a leaf that has no data (an input).
pub fn bytes(leaf: &Leaf) -> Result<Bytes> {
    match &leaf.data {
        Some(data) => load(data),
        None => Err(Error::internal("weights", format!("leaf `{}` has no data", leaf.name))),
    }
}

/// The bytes behind a reference.
///
/// # Errors
/// `Io` where the file is gone or has become shorter.
pub fn load(data: &Data) -> Result<Bytes> {
    match data {
        Data::Inline(bytes) => Ok(Bytes::Inline(bytes.clone())),
        // An empty range cannot be mapped.
        Data::File { len: 0, .. } => Ok(Bytes::Inline(Arc::from([]))),
        Data::File { path, offset, len } => {
            let file = open(path)?;
            let size = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
            if offset.checked_add(*len).is_none_or(|end| end > size) {
                return Err(Error::io("read", path, std::io::ErrorKind::UnexpectedEof.into()));
            }
            let len =
                usize::try_from(*len).map_err(|_| Error::internal("weights", "tensor beyond the address space"))?;
            // SAFETY: the mapping is read-only and inside the file; as for every mapped weight file, the
            // file must not be truncated while the program runs.
            let map = unsafe { MmapOptions::new().offset(*offset).len(len).map(&file) };
            map.map(Bytes::Mapped).map_err(|e| Error::io("map", path, e))
        }
        Data::Derived { from, recipe } => Ok(Bytes::Inline(recipe.apply(&load(from)?).into())),
    }
}

/// `len` bytes of a tensor, from byte `at` of it; nothing else is read.
///
/// # Errors
/// `Io` where the file is gone or the range ends behind the tensor.
pub fn part(data: &Data, at: u64, len: u64) -> Result<Vec<u8>> {
    let inside = at.checked_add(len).is_some_and(|end| end <= data.len());
    let short = |path: &Path| Error::io("read", path, std::io::ErrorKind::UnexpectedEof.into());
    match data {
        Data::Inline(bytes) => {
            let range = usize::try_from(at).ok().zip(usize::try_from(len).ok()).map(|(at, len)| at..at + len);
            let found = range.filter(|_| inside).and_then(|r| bytes.get(r)).map(<[u8]>::to_vec);
            found.ok_or_else(|| short(Path::new("a tensor in memory")))
        }
        Data::Derived { .. } => part(&Data::Inline(load(data)?.to_vec().into()), at, len),
        Data::File { path, .. } if !inside => Err(short(path)),
        Data::File { path, offset, .. } => {
            let mut file = open(path)?;
            let mut bytes = vec![0; usize::try_from(len).map_err(|_| short(path))?];
            file.seek(SeekFrom::Start(offset.saturating_add(at))).map_err(|e| Error::io("read", path, e))?;
            file.read_exact(&mut bytes).map_err(|e| Error::io("read", path, e))?;
            Ok(bytes)
        }
    }
}

/// A whole file; empty files give no bytes.
///
/// # Errors
/// `Io` where the file cannot be opened or mapped.
pub fn map(path: &Path) -> Result<Bytes> {
    let len = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    load(&Data::File { path: path.to_path_buf(), offset: 0, len })
}

/// SHA-256 of a file in lower-case hexadecimal, read in pieces.
///
/// # Errors
/// `Io` where the file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(|e| Error::io("read", path, e))? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// The pieces that [`fingerprint`] hashes by themselves.
const PIECE: u64 = 64 << 20;

/// SHA-256 over the SHA-256s of a file's pieces of 64 MiB, in lower-case hexadecimal: every byte counts as in
/// [`sha256`], but all cores share the work.
///
/// # Errors
/// `Io` where the file cannot be read.
pub fn fingerprint(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    let count = size.div_ceil(PIECE);
    let one = |k: u64| {
        let data = Data::File { path: path.to_path_buf(), offset: k * PIECE, len: PIECE.min(size - k * PIECE) };
        Ok::<_, Error>(Sha256::digest(load(&data)?.as_ref()))
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(count.max(1));
    let digests = std::thread::scope(|scope| {
        let part = |first: u64| (first..count).step_by(threads as usize).map(|k| Ok((k, one(k)?))).collect();
        let workers: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || -> Result<Vec<_>> { part(first) })).collect();
        let stopped = || Error::internal("weights", "a thread that hashes has stopped");
        workers.into_iter().map(|w| w.join().map_err(|_| stopped())?).collect::<Result<Vec<_>>>()
    })?;
    let mut all: Vec<_> = digests.into_iter().flatten().collect();
    all.sort_by_key(|(k, _)| *k);
    let hash = all.iter().fold(Sha256::new(), |hash, (_, digest)| hash.chain_update(digest));
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("open", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn ranges_are_read_and_checked() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abcdef").unwrap();
        let range = |offset, len| load(&Data::File { path: file.path().to_path_buf(), offset, len });
        assert_eq!(&*range(2, 3).unwrap(), b"cde");
        assert_eq!(&*range(6, 0).unwrap(), b"");
        assert!(matches!(range(4, 3), Err(Error::Io { .. })));
        assert!(matches!(range(u64::MAX, 2), Err(Error::Io { .. })));
        let piece = |at, len| part(&Data::File { path: file.path().to_path_buf(), offset: 1, len: 4 }, at, len);
        assert_eq!(piece(1, 3).unwrap(), b"cde");
        assert!(matches!(piece(2, 3), Err(Error::Io { .. })));
        assert_eq!(part(&Data::Inline(b"abc".as_slice().into()), 1, 2).unwrap(), b"bc");
        assert!(matches!(part(&Data::Inline(b"abc".as_slice().into()), 1, 3), Err(Error::Io { .. })));
        let hex = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";
        assert_eq!(sha256(file.path()).unwrap(), hex);
    }

    /// The definition, piece by piece, over a border and without one.
    #[test]
    fn a_fingerprint_is_the_hash_of_its_pieces() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for size in [0, 5, PIECE as usize + 3] {
            let bytes: Vec<u8> = (0..size).map(|k| (k % 251) as u8).collect();
            std::fs::write(file.path(), &bytes).unwrap();
            let pieces = bytes.chunks(PIECE as usize).map(Sha256::digest);
            let whole = pieces.fold(Sha256::new(), |hash, digest| hash.chain_update(digest)).finalize();
            let hex: String = whole.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(fingerprint(file.path()).unwrap(), hex, "{size}");
        }
    }
}
