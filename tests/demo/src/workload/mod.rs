//! What runs on the volume: a store that commits in a loop, and fio.
//!
//! Whatever touches the volume is a process of its own. A process whose device dies may hang inside of the kernel; the
//! demo itself must not. The demo's program is that process, too: `zea-demo worker …`, see [`worker`].

pub(crate) mod commits;
pub(crate) mod fio;
pub(crate) mod seqlog;
pub(crate) mod sqlite;
pub(crate) mod worker;

use std::path::PathBuf;

use anyhow::Result;

use crate::nbd_client::Export;

/// Where commits go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Store {
    /// An SQLite database, on a file system on the volume.
    Sqlite(PathBuf),
    /// A sequence log on the raw export.
    Seqlog(Export),
}

/// A store that is open.
pub(crate) trait Commits {
    /// Commits. When this returns, the commit must survive whatever happens to one node.
    fn commit(&mut self, sequence: u64, payload: &[u8]) -> Result<()>;
    /// The checksum of a commit over what is found now; nothing if there is no such commit.
    fn find(&mut self, sequence: u64) -> Result<Option<u32>>;
    /// Takes a commit away.
    fn remove(&mut self, sequence: u64) -> Result<()>;
    /// The store's own check of its structure.
    fn check(&mut self) -> Result<()>;
}

/// Longest payload of a commit, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 2048;

/// The payload of a commit: of a length and with contents that only its number decides.
pub(crate) fn payload(sequence: u64) -> Vec<u8> {
    // splitmix64, one step per eight bytes.
    let mut state = sequence;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let words = 1 + (next() % (MAX_PAYLOAD as u64 / 8)) as usize;
    (0..words).flat_map(|_| next().to_le_bytes()).collect()
}

/// The checksum of a commit: over its number, too, so that one commit cannot stand for another.
pub(crate) fn checksum(sequence: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_payloads_differ_and_fit() {
        let mut lengths = std::collections::BTreeSet::new();
        for sequence in 0..2000 {
            let bytes = payload(sequence);
            assert!((8..=MAX_PAYLOAD).contains(&bytes.len()));
            assert_eq!(bytes, payload(sequence));
            assert_ne!(bytes[..8], payload(sequence + 1)[..8]);
            lengths.insert(bytes.len());
        }
        assert!(lengths.len() > 100);
    }

    #[test]
    fn demo_checksums_cover_the_number() {
        assert_ne!(checksum(1, b"x"), checksum(2, b"x"));
        assert_ne!(checksum(1, b"x"), checksum(1, b"y"));
    }
}
