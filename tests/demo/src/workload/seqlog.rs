//! Commits in a log on the raw export: a block per commit, written and flushed.
//!
//! A block is, in little endian: magic (8 bytes), sequence number (8), length of the payload (4), checksum (4), payload,
//! zeroes. The block of a commit follows from its number, scattered over the volume so that many activity log extents
//! and bitmap words have a part in it.

use anyhow::{Result, ensure};

use super::{Commits, MAX_PAYLOAD, checksum};
use crate::nbd_client::{Export, NbdClient};

const MAGIC: [u8; 8] = *b"zeaseql1";
const BLOCK_SIZE: usize = 4096;
const HEADER_SIZE: usize = 24;
/// A prime: its multiples visit every block once, unless it divides their number.
const STRIDE: u64 = 1_000_003;

const _: () = assert!(HEADER_SIZE + MAX_PAYLOAD <= BLOCK_SIZE);

/// A log that is open.
#[derive(Debug)]
pub(crate) struct SequenceLog {
    client: NbdClient,
    slots: Slots,
}

/// Where commits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slots {
    count: u64,
    stride: u64,
}

impl Slots {
    fn of(size_bytes: u64) -> Slots {
        let count = size_bytes / BLOCK_SIZE as u64;
        let stride = if count.is_multiple_of(STRIDE) { 1 } else { STRIDE };
        Slots { count, stride }
    }

    /// Byte offset of a commit. A log that is full is an error: nothing is overwritten.
    fn offset(self, sequence: u64) -> Result<u64> {
        ensure!(
            (1..=self.count).contains(&sequence),
            "commit {sequence} has no place in a log of {} blocks",
            self.count
        );
        let slot = u128::from(sequence) * u128::from(self.stride) % u128::from(self.count);
        Ok(u64::try_from(slot)? * BLOCK_SIZE as u64)
    }
}

impl SequenceLog {
    /// Opens the log of an export.
    pub(crate) fn open(export: &Export) -> Result<SequenceLog> {
        let client = NbdClient::open(export)?;
        let slots = Slots::of(client.size_bytes());
        Ok(SequenceLog { client, slots })
    }

    fn put(&mut self, sequence: u64, block: &[u8; BLOCK_SIZE]) -> Result<()> {
        self.client.write(self.slots.offset(sequence)?, block)?;
        self.client.flush()
    }
}

fn encode(sequence: u64, payload: &[u8]) -> Result<[u8; BLOCK_SIZE]> {
    let mut block = [0; BLOCK_SIZE];
    let length = u32::try_from(payload.len())?;
    let header = [
        &MAGIC[..],
        &sequence.to_le_bytes(),
        &length.to_le_bytes(),
        &checksum(sequence, payload).to_le_bytes(),
        payload,
    ]
    .concat();
    ensure!(header.len() <= BLOCK_SIZE, "a payload of {length} bytes");
    block[..header.len()].copy_from_slice(&header);
    Ok(block)
}

/// The checksum of the commit in a block, if it is whole and the one that is looked for.
fn decode(sequence: u64, block: &[u8; BLOCK_SIZE]) -> Option<u32> {
    let (magic, rest) = block.split_first_chunk::<8>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let payload = rest.get(..u32::from_le_bytes(*length) as usize)?;
    let sum = u32::from_le_bytes(*sum);
    let whole = *magic == MAGIC && u64::from_le_bytes(*number) == sequence && checksum(sequence, payload) == sum;
    whole.then_some(sum)
}

impl Commits for SequenceLog {
    fn commit(&mut self, sequence: u64, payload: &[u8]) -> Result<()> {
        self.put(sequence, &encode(sequence, payload)?)
    }

    fn find(&mut self, sequence: u64) -> Result<Option<u32>> {
        let mut block = [0; BLOCK_SIZE];
        self.client.read(self.slots.offset(sequence)?, &mut block)?;
        Ok(decode(sequence, &block))
    }

    fn remove(&mut self, sequence: u64) -> Result<()> {
        ensure!(self.find(sequence)?.is_some(), "commit {sequence} is not there to be taken away");
        self.put(sequence, &[0; BLOCK_SIZE])
    }

    fn check(&mut self) -> Result<()> {
        // Each block proves itself; there is nothing between them.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::payload;
    use super::*;

    #[test]
    fn demo_log_blocks_prove_themselves() {
        for sequence in [1, 2, 77, 1 << 40] {
            let bytes = payload(sequence);
            let block = encode(sequence, &bytes).unwrap();
            assert_eq!(decode(sequence, &block), Some(checksum(sequence, &bytes)));
            assert_eq!(decode(sequence + 1, &block), None);
            for at in [0, 8, 16, 20, HEADER_SIZE, HEADER_SIZE + bytes.len() - 1] {
                let mut broken = block;
                broken[at] ^= 1;
                assert_eq!(decode(sequence, &broken), None, "byte {at}");
            }
        }
        assert_eq!(decode(1, &[0; BLOCK_SIZE]), None);
        assert_eq!(decode(1, &[0xFF; BLOCK_SIZE]), None);
    }

    #[test]
    fn demo_log_gives_each_commit_a_block_of_its_own() {
        for count in [1_u64, 2, 4096, 65_536, 5000] {
            let slots = Slots::of(count * BLOCK_SIZE as u64);
            let offsets: std::collections::BTreeSet<u64> =
                (1..=count).map(|sequence| slots.offset(sequence).unwrap()).collect();
            assert_eq!(offsets.len() as u64, count);
            assert!(offsets.last().unwrap() / (BLOCK_SIZE as u64) < count);
            assert!(slots.offset(0).is_err());
            assert!(slots.offset(count + 1).is_err());
        }
        assert_eq!(Slots::of(STRIDE * BLOCK_SIZE as u64).stride, 1);
    }
}
