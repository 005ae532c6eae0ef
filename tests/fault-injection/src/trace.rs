//! What happened, as a hash (always), as the last lines (on demand) or as a running text.

use std::collections::VecDeque;

use zea_core::io::{Action, Input};

use crate::disk;

/// Lines that are kept for a failure report.
const RING_LINES: usize = 400;

/// What is recorded besides the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// Nothing.
    HashOnly,
    /// The last lines, for a report.
    Ring,
    /// Every line, for a file.
    All,
    /// Every line goes to standard error.
    Print,
}

/// The trace of a world.
#[derive(Debug)]
pub struct Trace {
    record: Record,
    hash: u64,
    ring: VecDeque<String>,
}

impl Trace {
    /// An empty trace.
    pub fn new(record: Record) -> Trace {
        Trace { record, hash: 0xcbf2_9ce4_8422_2325, ring: VecDeque::new() }
    }

    /// Adds a number to the hash.
    pub fn add(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    /// Adds bytes to the hash.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.add(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    /// Adds a line, made only if lines are recorded.
    pub fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        if self.record == Record::HashOnly {
            return;
        }
        let line = format!("{:>12.3} ms  {}", now as f64 / 1e6, text());
        if self.record == Record::Print {
            eprintln!("{line}");
            return;
        }
        if self.record == Record::Ring && self.ring.len() == RING_LINES {
            self.ring.pop_front();
        }
        self.ring.push_back(line);
    }

    /// Whether lines are recorded.
    pub fn records(&self) -> bool {
        self.record != Record::HashOnly
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines that were kept.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.ring.iter().map(String::as_str)
    }
}

/// One line for an input, without its bytes.
pub fn describe_input(input: &Input<'_>) -> String {
    match input {
        Input::DiskDone { tag, result, buf, meta, .. } => {
            format!("DiskDone {} {result:?} buf {:?} meta {} bytes", tag.0, buf.map(|b| b.0), meta.len())
        }
        Input::Packet { peer, volume, packet, payload, .. } => {
            format!("n{peer} vol {:?} {packet:?} payload {:?}", volume.map(|v| v.0), payload.map(|p| p.len))
        }
        other => format!("{other:?}"),
    }
}

/// One line for an action, without its bytes.
pub fn describe_action(action: &Action) -> String {
    match action {
        Action::Disk { tag, volume, cmd } => {
            format!("Disk {} vol {volume} {}", tag.0, disk::summary(cmd))
        }
        Action::Send { peer, volume, packet, payload, .. } => {
            format!("n{peer} vol {:?} {packet:?} payload {:?}", volume.map(|v| v.0), payload.map(|p| p.len))
        }
        other => format!("{other:?}"),
    }
}
