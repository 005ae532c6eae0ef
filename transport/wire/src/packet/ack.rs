//! Acknowledgements and the dagtag and flush packets around them (`wire-protocol.md` sections 8, 10, 11).

use super::body::{Checked, Context, check_range};
use super::{DecodeError, MAX_TRIM_BYTES};
use crate::ids::{BlockId, NodeId, NodeMask};

wire_struct! {
    /// `block_ack`: all acks of a block.
    BlockAck[24] {
        /// First sector, as in the request.
        sector: u64,
        /// The request's id; see [`OvVerdict`] for P_OV_RESULT.
        block_id: BlockId,
        /// Bytes, as in the request.
        blksize: u32,
        /// Sequence number of the peer device.
        seq_num: u32,
    }
}

wire_struct! {
    /// P_OV_RESULT_ID.
    OvResult[32] {
        /// First sector.
        sector: u64,
        /// The request's id.
        block_id: BlockId,
        /// Bytes.
        blksize: u32,
        /// Sequence number of the peer device.
        seq_num: u32,
        /// 0 skipped, 1 in sync, 2 out of sync: see [`OvVerdict`].
        result: u32,
        ; pad 4
    }
}

/// The result of comparing one block in online verify.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OvVerdict {
    /// Not compared (from 9 only).
    Skipped,
    /// Equal.
    InSync,
    /// Different.
    OutOfSync,
}

impl OvVerdict {
    /// The verdict in the block id of P_OV_RESULT. As in 8.4, anything unknown is in sync.
    #[must_use]
    pub const fn from_block_id(id: BlockId) -> OvVerdict {
        match id.0 {
            4710 => OvVerdict::Skipped,
            4712 => OvVerdict::OutOfSync,
            _ => OvVerdict::InSync,
        }
    }

    /// The block id of P_OV_RESULT.
    #[must_use]
    pub const fn block_id(self) -> BlockId {
        BlockId(match self {
            OvVerdict::Skipped => 4710,
            OvVerdict::InSync => 4711,
            OvVerdict::OutOfSync => 4712,
        })
    }

    /// The verdict in `result` of P_OV_RESULT_ID, `None` above 2.
    #[must_use]
    pub const fn from_result(result: u32) -> Option<OvVerdict> {
        match result {
            0 => Some(OvVerdict::Skipped),
            1 => Some(OvVerdict::InSync),
            2 => Some(OvVerdict::OutOfSync),
            _ => None,
        }
    }

    /// The `result` of P_OV_RESULT_ID.
    #[must_use]
    pub const fn result(self) -> u32 {
        self as u32
    }
}

wire_struct! {
    /// P_BARRIER.
    Barrier[8] {
        /// The epoch's number, opaque to the receiver (the wire bytes read big endian; an x86 kernel
        /// counts in little endian).
        barrier: u32,
        ; pad 4
    }
}

wire_struct! {
    /// P_BARRIER_ACK.
    BarrierAck[8] {
        /// The barrier's number, echoed bit exact.
        barrier: u32,
        /// Writes of the epoch.
        set_size: u32,
    }
}

wire_struct! {
    /// P_CONFIRM_STABLE.
    ConfirmStable[24] {
        /// The first request that is stable.
        oldest_block_id: BlockId,
        /// The last request that is stable.
        youngest_block_id: BlockId,
        /// Number of requests from the first to the last.
        set_size: u32,
        ; pad 4
    }
}

wire_struct! {
    /// P_DAGTAG.
    Dagtag[8] {
        /// The sender's dagtag in sectors.
        dagtag: u64,
    }
}

wire_struct! {
    /// P_PEER_ACK.
    PeerAck[16] {
        /// The nodes that have the data.
        mask: NodeMask,
        /// The end of the last write.
        dagtag: u64,
    }
}

wire_struct! {
    /// P_PEER_DAGTAG.
    PeerDagtag[12] {
        /// The last dagtag received of the lost primary.
        dagtag: u64,
        /// The lost primary.
        node_id: NodeId,
    }
}

wire_struct! {
    /// P_FLUSH_REQUESTS.
    FlushRequests[8] {
        /// The initiator's number.
        flush_sequence: u64,
    }
}

wire_struct! {
    /// P_FLUSH_FORWARD.
    FlushForward[12] {
        /// The initiator's number.
        flush_sequence: u64,
        /// Who asked.
        initiator_node_id: NodeId,
    }
}

wire_struct! {
    /// P_FLUSH_REQUESTS_ACK.
    FlushAck[12] {
        /// The initiator's number.
        flush_sequence: u64,
        /// The primary whose requests are flushed.
        primary_node_id: NodeId,
    }
}

wire_struct! {
    /// P_STATE_CHG_REPLY, P_CONN_ST_CHG_REPLY.
    RetCode[4] {
        /// `drbd_state_rv`; 1 and above is success.
        retcode: i32,
    }
}

impl Checked for BlockAck {
    fn check(&self, _: &Context<'_>) -> Result<(), DecodeError> {
        check_range(self.sector, self.blksize, 0, MAX_TRIM_BYTES)
    }
}

impl Checked for OvResult {
    fn check(&self, _: &Context<'_>) -> Result<(), DecodeError> {
        check_range(self.sector, self.blksize, 0, MAX_TRIM_BYTES)?;
        match OvVerdict::from_result(self.result) {
            Some(_) => Ok(()),
            None => Err(DecodeError::BadVerdict { result: self.result }),
        }
    }
}

impl Checked for Barrier {}
impl Checked for BarrierAck {}
impl Checked for ConfirmStable {}
impl Checked for Dagtag {}
impl Checked for PeerAck {}
impl Checked for PeerDagtag {}
impl Checked for FlushRequests {}
impl Checked for FlushForward {}
impl Checked for FlushAck {}
impl Checked for RetCode {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_verify_results_have_two_codes() {
        for verdict in [OvVerdict::Skipped, OvVerdict::InSync, OvVerdict::OutOfSync] {
            assert_eq!(OvVerdict::from_block_id(verdict.block_id()), verdict);
            assert_eq!(OvVerdict::from_result(verdict.result()), Some(verdict));
        }
        assert_eq!(OvVerdict::from_block_id(BlockId(7)), OvVerdict::InSync);
        assert_eq!(OvVerdict::from_result(3), None);
    }
}
