//! The bytes between the floor's replicas: as many as DRBD moves, and no more meaning than the
//! floor needs to check that it did the work.

use anyhow::{Result, ensure};

/// Bytes of one write.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Operations that may be in flight; slots are numbered below this.
pub(super) const MAX_SLOTS: usize = 256;
/// Bytes of a replicated write's header and of its ack: a DRBD header100 with `P_DATA` or
/// `P_BLOCK_ACK` behind it.
pub(super) const PEER_WRITE_BYTES: usize = 40;
/// Bytes of a replicated flush and of its ack: a DRBD header100 with `P_BARRIER`.
pub(super) const PEER_FLUSH_BYTES: usize = 24;

const PEER_MAGIC: u32 = 0x5a46_4c52;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One block to the disk of both replicas.
    Write,
    /// `fdatasync` on both replicas.
    Flush,
}

/// One operation, as the primary tells it to the secondary and the secondary acknowledges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// Write or flush.
    pub(super) kind: Kind,
    /// The primary's slot, below [`MAX_SLOTS`]; an operation's identity while it is in flight.
    pub(super) slot: usize,
    /// Byte offset on the device, a multiple of [`BLOCK_BYTES`]; 0 for a flush.
    pub(super) offset: u64,
}

impl Operation {
    /// The header of the message to the secondary, and unchanged the secondary's ack: the first
    /// [`Operation::peer_bytes`] of this. On the way out a write's block follows.
    pub(super) fn to_peer(self) -> [u8; PEER_WRITE_BYTES] {
        let mut out = [0; PEER_WRITE_BYTES];
        out[0..4].copy_from_slice(&PEER_MAGIC.to_be_bytes());
        out[7] = u8::from(self.kind == Kind::Flush);
        out[8..16].copy_from_slice(&(self.slot as u64).to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out
    }

    /// Reads one message between the replicas from the front of `bytes`; `None` until it is whole
    /// with the `block_bytes` that follow a write (0 in an ack).
    ///
    /// # Errors
    /// Anything that [`Operation::to_peer`] does not produce.
    pub(super) fn from_peer(bytes: &[u8], block_bytes: usize) -> Result<Option<Self>> {
        let Some(header) = bytes.first_chunk::<PEER_FLUSH_BYTES>() else {
            return Ok(None);
        };
        ensure!(be_u32(header, 0) == PEER_MAGIC, "bad magic between replicas");
        let (kind, block_bytes) = match header[7] {
            0 => (Kind::Write, block_bytes),
            1 => (Kind::Flush, 0),
            other => anyhow::bail!("unknown message {other} between replicas"),
        };
        let operation = Self::checked(kind, be_u64(header, 8), be_u64(header, 16))?;
        Ok((bytes.len() >= operation.peer_bytes() + block_bytes).then_some(operation))
    }

    /// Bytes of this operation's header between the replicas.
    pub(super) fn peer_bytes(self) -> usize {
        match self.kind {
            Kind::Write => PEER_WRITE_BYTES,
            Kind::Flush => PEER_FLUSH_BYTES,
        }
    }

    fn checked(kind: Kind, slot: u64, offset: u64) -> Result<Self> {
        ensure!(slot < MAX_SLOTS as u64, "slot {slot} is out of range");
        ensure!(offset.is_multiple_of(BLOCK_BYTES as u64), "offset {offset} is not aligned");
        Ok(Self { kind, slot: slot as usize, offset })
    }
}

fn be_u32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be_u64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Operation = Operation { kind: Kind::Write, slot: 7, offset: 3 * BLOCK_BYTES as u64 };
    const FLUSH: Operation = Operation { kind: Kind::Flush, slot: 255, offset: 0 };

    #[test]
    fn bench_peer_messages_have_drbds_sizes() {
        assert_eq!(WRITE.peer_bytes() + BLOCK_BYTES, 4136);
        assert_eq!(FLUSH.peer_bytes(), 24);
        assert_eq!(Operation::from_peer(&WRITE.to_peer(), BLOCK_BYTES).unwrap(), None);
        assert_eq!(Operation::from_peer(&WRITE.to_peer(), 0).unwrap(), Some(WRITE));
        assert_eq!(Operation::from_peer(&FLUSH.to_peer()[..24], BLOCK_BYTES).unwrap(), Some(FLUSH));
    }

    #[test]
    fn bench_floor_refuses_foreign_bytes() {
        assert!(Operation::from_peer(&[0; PEER_WRITE_BYTES], 0).is_err());
        let mut bad_slot = FLUSH.to_peer();
        bad_slot[8] = 1;
        assert!(Operation::from_peer(&bad_slot, 0).is_err());
    }
}
