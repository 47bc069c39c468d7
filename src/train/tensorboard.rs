//! TensorBoard's event files: `OUT/tensorboard/events.out.tfevents.SECONDS.weftc`.
//!
//! A file is a row of records `length u64 | crc of the length | bytes | crc of the bytes`, little-endian, the sums
//! CRC-32C, rotated and shifted as TensorFlow's record_writer.cc has it; the bytes are protobuf messages `Event`
//! (event.proto), of which so few fields are needed that they are written here.

use super::log::Metrics;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The folder of event files in a run's `--out`.
pub const FOLDER: &str = "tensorboard";

/// An event file that is being written.
pub struct Events {
    file: File,
    path: PathBuf,
}

impl Events {
    /// A new event file of a run that has made `done` steps; TensorBoard drops what older files have of later ones.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(out: &Path, done: u64) -> Result<Self> {
        let folder = out.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        // Two starts within a second are two files.
        let seconds = now() as u64;
        let path = |k: u64| folder.join(format!("events.out.tfevents.{}.weftc", seconds + k));
        let path = (0..).map(path).find(|p| !p.exists()).unwrap_or_default();
        let file = File::create(&path).map_err(|e| Error::io("write", &path, e))?;
        let mut events = Events { file, path };
        let mut version = time();
        bytes(&mut version, 3, b"brain.Event:2");
        events.record(&version)?;
        let mut start = time();
        integer(&mut start, 2, done + 1);
        // SessionLog { status: START }
        bytes(&mut start, 7, &[8, 1]);
        events.record(&start)?;
        Ok(events)
    }

    /// Writes the numbers of a step; those that are not finite are left out.
    ///
    /// # Errors
    /// `Io`.
    pub fn step(&mut self, m: &Metrics) -> Result<()> {
        let scalars = [
            ("train/loss", m.loss),
            ("train/grad_norm", m.grad_norm),
            ("train/lr", m.lr),
            ("train/tokens_per_second", m.tokens as f64 / m.seconds.max(1e-9)),
            ("train/masked", m.masked as f64),
            ("train/skipped", f64::from(u8::from(m.outcome == "skipped"))),
            ("eval/loss", m.eval_loss.unwrap_or(f64::NAN)),
        ];
        let mut summary = Vec::new();
        for (tag, value) in scalars.iter().filter(|(_, value)| value.is_finite()) {
            let mut one = Vec::new();
            bytes(&mut one, 1, tag.as_bytes());
            one.push(2 << 3 | 5);
            one.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, 1, &one);
        }
        let mut event = time();
        integer(&mut event, 2, m.step);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Writes a record at once, so that a killed run breaks off at most one.
    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length).to_le_bytes());
        record.extend(event);
        record.extend(masked(event).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// An event with its field 1, the present time.
fn time() -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(now().to_le_bytes());
    event
}

/// A field of protobuf: an integer.
fn integer(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

/// A field of protobuf: a string, or a message.
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The sum as it stands in the file: stored plain, a sum over data that holds its own sum is weak.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: events are short.
fn crc32c(data: &[u8]) -> u32 {
    let bit = |crc: u32, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !data.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C, and those of RFC 3720 B.4.
    #[test]
    fn sums_are_the_published_ones() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// The fields `(number, bytes)` of a message.
    fn fields(mut message: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut out = Vec::new();
        while let [tag, rest @ ..] = message {
            let varint = |bytes: &[u8]| bytes.iter().take_while(|b| **b >= 0x80).count() + 1;
            let (skip, take) = match tag & 7 {
                0 => (0, varint(rest)),
                1 => (0, 8),
                5 => (0, 4),
                // No message here has 128 bytes but the summary, whose length has two bytes.
                _ if rest[0] < 0x80 => (1, rest[0].into()),
                _ => (2, usize::from(rest[0] & 0x7f) | usize::from(rest[1]) << 7),
            };
            out.push((tag >> 3, rest[skip..skip + take].to_vec()));
            message = &rest[skip + take..];
        }
        out
    }

    #[test]
    fn what_was_written_is_read_back() {
        let out = tempfile::tempdir().unwrap();
        let mut events = Events::new(out.path(), 4).unwrap();
        let m = Metrics {
            step: 300,
            epoch: 0,
            loss: f64::NAN,
            loss_sum: 0.0,
            loss_count: 0.0,
            grad_norm: 0.5,
            lr: 1e-3,
            tokens: 10,
            masked: 3,
            eval_loss: None,
            seconds: 2.0,
            outcome: "skipped",
        };
        events.step(&m).unwrap();
        let again = Events::new(out.path(), 4).unwrap();
        assert_ne!(events.path, again.path);
        let file = std::fs::read(&events.path).unwrap();
        let (mut rest, mut records) = (file.as_slice(), Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]).to_le_bytes());
            let event = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked(event).to_le_bytes());
            records.push(fields(event));
            rest = &rest[16 + length..];
        }
        assert_eq!(records.len(), 3);
        assert_eq!(records[0][1], (3, b"brain.Event:2".to_vec()));
        assert_eq!(records[1][1..], [(2, vec![5]), (7, vec![8, 1])]);
        assert_eq!(records[2][1], (2, vec![0xac, 0x02]));
        let scalar = |value: &(u8, Vec<u8>)| {
            let parts = fields(&value.1);
            let number = f32::from_le_bytes(parts[1].1.as_slice().try_into().unwrap());
            (String::from_utf8(parts[0].1.clone()).unwrap(), number)
        };
        let scalars: Vec<(String, f32)> = fields(&records[2][2].1).iter().map(scalar).collect();
        let wanted = [
            ("train/grad_norm", 0.5),
            ("train/lr", 1e-3),
            ("train/tokens_per_second", 5.0),
            ("train/masked", 3.0),
            ("train/skipped", 1.0),
        ];
        assert_eq!(scalars, wanted.map(|(tag, value)| (tag.to_string(), value)));
    }
}
