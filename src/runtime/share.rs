//! Work in host memory that threads share.

use crate::error::Result;
use std::panic::resume_unwind;
use std::thread::available_parallelism;

/// Fewer bytes are done before a thread has started.
const ALONE: usize = 1 << 20;

/// Fills `out`, rows of `width` bytes, with `each(first row, rows)`, on as many threads as there are.
///
/// # Errors
/// The first of `each`.
pub fn fill(out: &mut [u8], width: usize, each: impl Fn(usize, &mut [u8]) -> Result<()> + Sync) -> Result<()> {
    let rows = out.len() / width.max(1);
    let threads = if out.len() < ALONE { 1 } else { available_parallelism().map_or(1, |n| n.get()) };
    let share = rows.div_ceil(threads).max(1);
    let each = &each;
    std::thread::scope(|scope| {
        let parts = out.chunks_mut((share * width).max(1)).enumerate();
        let threads: Vec<_> = parts.map(|(k, part)| scope.spawn(move || each(k * share, part))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
