//! The flag words inside packets (`wire-protocol.md` sections 8.2, 8.4, 9).

use crate::ids::NodeId;

flag_word! {
    /// `dp_flags` of a data packet (section 9). Below version 100 the two ack bits do not exist, below
    /// 95 only `RW_SYNC` does.
    DpFlags: u32 {
        /// Unused.
        HARDBARRIER = 1,
        /// Latency hint.
        RW_SYNC = 2,
        /// While a resync is active this write may clear bits: ack with the in-sync variant.
        MAY_SET_IN_SYNC = 4,
        /// Ignored.
        UNPLUG = 8,
        /// Write through to stable storage.
        FUA = 16,
        /// Flush before the write.
        FLUSH = 32,
        /// With P_TRIM; with P_ZEROES: unmapping is allowed.
        DISCARD = 64,
        /// Protocol B: an ack is wanted when received.
        SEND_RECEIVE_ACK = 128,
        /// Protocol C: an ack is wanted when written.
        SEND_WRITE_ACK = 256,
        /// Write same; refused by receivers.
        WSAME = 512,
        /// P_ZEROES.
        ZEROES = 1024,
    }
}

flag_word! {
    /// `uuid_flags` of P_UUIDS and P_UUIDS110 (section 8.4).
    UuidFlags: u64 {
        /// The sender's data is to be overwritten.
        DISCARD_MY_DATA = 1,
        /// The sender was primary when it last stopped uncleanly.
        CRASHED_PRIMARY = 2,
        /// The real disk state is Inconsistent while P_STATE says Negotiating.
        INCONSISTENT = 4,
        /// The initial sync is skipped.
        SKIP_INITIAL_SYNC = 8,
        /// A new data generation; node_mask holds the weak nodes.
        NEW_DATAGEN = 0x10,
        /// The sender is no neighbour of a primary, or is primary itself.
        STABLE = 0x20,
        /// The sender became stable; the receiver answers with UUIDs.
        GOT_STABLE = 0x40,
        /// The receiver compares UUIDs and may start a resync.
        RESYNC = 0x80,
        /// The sender was connected to this peer before.
        RECONNECT = 0x100,
        /// With `RESYNC`: the reason is a diskless primary.
        DISKLESS_PRIMARY = 0x200,
        /// The sender lost quorum as primary.
        PRIMARY_LOST_QUORUM = 0x400,
        /// The sender is SyncTarget of another node.
        SYNC_TARGET = 0x800,
        /// Bits 56..=63 name the node whose bitmap UUID is sent without a bitmap slot.
        HAS_UNALLOC = 0x1000,
        /// Zea's own, sent to Zea only: the sender died while writes were in flight and may lack acknowledged ones.
        ZEA_LOST_WRITES = 1 << 48,
        /// Zea's own, sent to Zea only: the sender was Primary when it died, or was resynced from such a node.
        ZEA_WAS_PRIMARY = 1 << 49,
    }
}

impl UuidFlags {
    const UNALLOC_SHIFT: u32 = 56;

    /// The node whose bitmap UUID is sent although it has no bitmap slot.
    #[must_use]
    pub fn unalloc_node(self) -> Option<NodeId> {
        if self.contains(UuidFlags::HAS_UNALLOC) {
            NodeId::from_wire((self.0 >> Self::UNALLOC_SHIFT) as u32)
        } else {
            None
        }
    }

    /// These flags with `node` as the one without a bitmap slot.
    #[must_use]
    pub fn with_unalloc_node(self, node: NodeId) -> UuidFlags {
        let low = self.0 & ((1 << Self::UNALLOC_SHIFT) - 1);
        UuidFlags(low | UuidFlags::HAS_UNALLOC.0 | u64::from(node.0) << Self::UNALLOC_SHIFT)
    }
}

flag_word! {
    /// `conn_flags` of P_PROTOCOL (section 8).
    ConnFlags: u32 {
        /// The sender's data is to be overwritten; see also [`UuidFlags::DISCARD_MY_DATA`].
        DISCARD_MY_DATA = 1,
        /// The connection is only tried.
        DRY_RUN = 2,
    }
}

flag_word! {
    /// `dds_flags` of P_SIZES and P_TWOPC_PREP_RSZ (section 8.2).
    DdsFlags: u16 {
        /// Peers that are away are taken to have the space.
        ASSUME_PEER_HAS_SPACE = 1,
        /// The new area needs no resync.
        NO_RESYNC = 2,
        /// Obsolete.
        IGNORE_PEER_CONSTRAINTS = 4,
        /// Only the local size is concerned.
        LOCAL_ONLY = 8,
    }
}

flag_word! {
    /// `flags` of a version 2 two-phase commit request (section 8.1).
    TwopcFlags: u32 {
        /// This is a version 2 request. Set by the encoder.
        HAS_FLAGS = 0x8000_0000,
        /// A commit carries the reachable nodes.
        HAS_REACHABLE = 0x4000_0000,
        /// The primary has no access to data.
        PRI_INCAPABLE = 0x2000_0000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_flags_print_their_names_and_the_rest() {
        assert_eq!(DpFlags(0x114).to_string(), "MAY_SET_IN_SYNC|FUA|SEND_WRITE_ACK");
        assert_eq!(DpFlags(0x8001).to_string(), "HARDBARRIER|0x8000");
        assert_eq!(DpFlags::EMPTY.to_string(), "0x0");
    }

    #[test]
    fn wire_uuid_flags_name_the_unallocated_node() {
        let flags = UuidFlags::STABLE.with_unalloc_node(NodeId(2));
        assert_eq!(flags.0, 0x0200_0000_0000_1020);
        assert_eq!(flags.unalloc_node(), Some(NodeId(2)));
        assert_eq!(UuidFlags(0x0200_0000_0000_0020).unalloc_node(), None);
        assert_eq!(UuidFlags(0xff00_0000_0000_1000).unalloc_node(), None);
    }
}
