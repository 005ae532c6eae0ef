//! The bytes of the composed floor: as many as NBD and DRBD move, and no more meaning than the
//! floor needs to check that it did the work.

use anyhow::{Result, ensure};

/// Bytes of one write.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Operations a client may have in flight; slots are numbered below this.
pub(super) const MAX_SLOTS: usize = 256;
/// Bytes of a request's header, as an NBD request.
pub(super) const REQUEST_BYTES: usize = 28;
/// Bytes of a reply, as an NBD simple reply.
pub(super) const REPLY_BYTES: usize = 16;
/// Bytes of a replicated write's header and of its ack: a DRBD header100 with `P_DATA` or
/// `P_BLOCK_ACK` behind it.
pub(super) const PEER_WRITE_BYTES: usize = 40;
/// Bytes of a replicated flush and of its ack: a DRBD header100 with `P_BARRIER`.
pub(super) const PEER_FLUSH_BYTES: usize = 24;

const NBD_REQUEST_MAGIC: u32 = 0x2560_9513;
const NBD_REPLY_MAGIC: u32 = 0x6744_6698;
const NBD_CMD_WRITE: u16 = 1;
const NBD_CMD_FLUSH: u16 = 3;
const PEER_MAGIC: u32 = 0x5a46_4c52;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One block to the disk of both replicas.
    Write,
    /// `fdatasync` on both replicas.
    Flush,
}

/// One operation: the same three values travel from client to primary and on to the secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// Write or flush.
    pub(super) kind: Kind,
    /// The client's slot, below [`MAX_SLOTS`]; an operation's identity while it is in flight.
    pub(super) slot: usize,
    /// Byte offset on the device, a multiple of [`BLOCK_BYTES`]; 0 for a flush.
    pub(super) offset: u64,
}

impl Operation {
    /// The client's request header; a write's block follows it.
    pub(super) fn to_request(self) -> [u8; REQUEST_BYTES] {
        let (command, length) = match self.kind {
            Kind::Write => (NBD_CMD_WRITE, BLOCK_BYTES as u32),
            Kind::Flush => (NBD_CMD_FLUSH, 0),
        };
        let mut out = [0; REQUEST_BYTES];
        out[0..4].copy_from_slice(&NBD_REQUEST_MAGIC.to_be_bytes());
        out[6..8].copy_from_slice(&command.to_be_bytes());
        out[8..16].copy_from_slice(&(self.slot as u64).to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..28].copy_from_slice(&length.to_be_bytes());
        out
    }

    /// Reads one request header from the front of `bytes`; `None` until it is whole, with a
    /// write's block.
    ///
    /// # Errors
    /// Anything that [`Operation::to_request`] does not produce.
    pub(super) fn from_request(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(header) = bytes.first_chunk::<REQUEST_BYTES>() else {
            return Ok(None);
        };
        ensure!(be_u32(header, 0) == NBD_REQUEST_MAGIC, "bad request magic from the client");
        let kind = match u16::from_be_bytes([header[6], header[7]]) {
            NBD_CMD_WRITE => Kind::Write,
            NBD_CMD_FLUSH => Kind::Flush,
            other => anyhow::bail!("unknown command {other} from the client"),
        };
        let payload = if kind == Kind::Write { BLOCK_BYTES } else { 0 };
        ensure!(be_u32(header, 24) as usize == payload, "bad length from the client");
        let operation = Self::checked(kind, be_u64(header, 8), be_u64(header, 16))?;
        Ok((bytes.len() >= REQUEST_BYTES + payload).then_some(operation))
    }

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

/// The primary's reply for one slot.
pub(super) fn to_reply(slot: usize) -> [u8; REPLY_BYTES] {
    let mut out = [0; REPLY_BYTES];
    out[0..4].copy_from_slice(&NBD_REPLY_MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&(slot as u64).to_be_bytes());
    out
}

/// Reads one reply from the front of `bytes`: its slot; `None` until it is whole.
///
/// # Errors
/// Anything that [`to_reply`] does not produce.
pub(super) fn from_reply(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(reply) = bytes.first_chunk::<REPLY_BYTES>() else {
        return Ok(None);
    };
    ensure!(be_u32(reply, 0) == NBD_REPLY_MAGIC, "bad reply magic from the primary");
    let slot = be_u64(reply, 8);
    ensure!(slot < MAX_SLOTS as u64, "reply for unknown slot {slot}");
    Ok(Some(slot as usize))
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
    fn bench_request_is_read_only_when_whole() {
        let mut bytes = WRITE.to_request().to_vec();
        assert_eq!(Operation::from_request(&bytes).unwrap(), None);
        bytes.resize(REQUEST_BYTES + BLOCK_BYTES - 1, 1);
        assert_eq!(Operation::from_request(&bytes).unwrap(), None);
        bytes.push(1);
        assert_eq!(Operation::from_request(&bytes).unwrap(), Some(WRITE));
        assert_eq!(Operation::from_request(&FLUSH.to_request()).unwrap(), Some(FLUSH));
    }

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
        assert!(Operation::from_request(&[0; REQUEST_BYTES]).is_err());
        assert!(Operation::from_peer(&[0; PEER_WRITE_BYTES], 0).is_err());
        assert!(from_reply(&[0; REPLY_BYTES]).is_err());
        let mut bad_slot = FLUSH.to_request();
        bad_slot[8] = 1;
        assert!(Operation::from_request(&bad_slot).is_err());
        assert_eq!(from_reply(&to_reply(9)).unwrap(), Some(9));
    }
}
