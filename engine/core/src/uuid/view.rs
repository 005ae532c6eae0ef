//! What one node says of its data.

use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::Uuids110;

use super::{NO_INFORMATION, NODES};

/// The UUIDs of one node as exchanged. The view of the own node is made of what was sent, like the peer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UuidView {
    /// Whose view this is.
    pub node: NodeId,
    /// The current UUID; of a SyncTarget (flag SYNC_TARGET) the current UUID of its source.
    pub current: u64,
    /// Bitmap UUIDs by node: 0 in sync with that node, [`NO_INFORMATION`] if nothing is said.
    pub bitmap: [u64; NODES],
    /// History UUIDs, newest first, 0 where there are none.
    pub history: [u64; NODES],
    /// Flags.
    pub flags: UuidFlags,
    /// Bits set towards the other one.
    pub dirty_bits: u64,
    /// The Primaries that the node is connected to.
    pub primaries: NodeMask,
}

impl UuidView {
    /// The view that `node` gives of itself by this packet. History beyond 32 entries is left out.
    pub fn from_packet(node: NodeId, packet: &Uuids110) -> Self {
        let mut view = UuidView {
            node,
            current: packet.current,
            bitmap: [NO_INFORMATION; NODES],
            history: [0; NODES],
            flags: packet.uuid_flags,
            dirty_bits: packet.dirty_bits,
            primaries: match packet.uuid_flags.contains(UuidFlags::STABLE) {
                // There the mask names the weak nodes.
                true => NodeMask::EMPTY,
                false => packet.node_mask,
            },
        };
        for (node, uuid) in packet.bitmap_uuids.iter() {
            view.bitmap[node.index()] = uuid;
        }
        for (entry, uuid) in view.history.iter_mut().zip(&packet.history) {
            *entry = *uuid;
        }
        view
    }

    /// The bitmap UUID towards `node`.
    pub fn bitmap_towards(&self, node: NodeId) -> u64 {
        self.bitmap[node.index()]
    }
}
