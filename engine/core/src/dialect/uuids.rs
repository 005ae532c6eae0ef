//! P_UUIDS: four UUIDs in place of DRBD 9's table (wire-protocol.md 8, 8.4; handshake-and-states.md 4).

use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::{BitmapUuids, Uuids, Uuids110};

use crate::resource::Resource;

/// Flags that both ends of such a connection understand; the last one only Zea.
const FLAGS: [UuidFlags; 6] = [
    UuidFlags::DISCARD_MY_DATA,
    UuidFlags::CRASHED_PRIMARY,
    UuidFlags::INCONSISTENT,
    UuidFlags::SKIP_INITIAL_SYNC,
    UuidFlags::ZEA_LOST_WRITES,
    UuidFlags::ZEA_WAS_PRIMARY,
];

/// What P_UUIDS says, in the shape of P_UUIDS110: of the sender's bitmap UUID towards `receiver`. There is no third node whose
/// neighbour the sender could be, so it is stable.
pub(crate) fn from_packet(receiver: NodeId, packet: &Uuids) -> Box<Uuids110> {
    let mut uuid_flags = UuidFlags::STABLE;
    for flag in FLAGS {
        uuid_flags.set(flag, packet.uuid_flags.contains(flag));
    }
    Box::new(Uuids110 {
        current: packet.current,
        dirty_bits: packet.dirty_bits,
        uuid_flags,
        node_mask: NodeMask::EMPTY,
        bitmap_uuids: BitmapUuids::from_iter([(receiver, packet.bitmap)]),
        history: vec![packet.history0, packet.history1],
    })
}

/// The packet for `receiver`.
pub(crate) fn to_packet(receiver: NodeId, uuids: &Uuids110) -> Uuids {
    let mut uuid_flags = UuidFlags::EMPTY;
    for flag in FLAGS {
        uuid_flags.set(flag, uuids.uuid_flags.contains(flag));
    }
    let entry = |n: usize| uuids.history.get(n).copied().unwrap_or(0);
    Uuids {
        current: uuids.current,
        bitmap: uuids.bitmap_uuids.get(receiver).filter(|uuid| *uuid != u64::MAX).unwrap_or(0),
        history0: entry(0),
        history1: entry(1),
        dirty_bits: uuids.dirty_bits,
        uuid_flags,
    }
}

impl Resource {
    /// The UUIDs of a volume as an 8.4 peer understands them.
    pub(crate) fn uuids_for_84(&self, cidx: usize, vidx: usize, mut full: Uuids110) -> Box<Uuids110> {
        let uuids = &self.volumes[vidx].uuids;
        let node = self.conns[cidx].node();
        let bitmap = uuids.bitmap[node.index()] & !1;
        // The history in its own order; what only slots of other nodes still know comes after it.
        let known: Vec<u64> = uuids.history.into_iter().filter(|uuid| uuid & !1 != 0).collect();
        let news = |uuid: &&u64| **uuid != 0 && **uuid & !1 != bitmap && !known.contains(uuid);
        let other = full.history.iter().filter(news).copied();
        full.history = known.iter().copied().chain(other).take(2).collect();
        from_packet(node, &to_packet(node, &full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node 0 tells node 1.
    fn told(uuids: &Uuids110) -> Uuids110 {
        *from_packet(NodeId(1), &to_packet(NodeId(1), uuids))
    }

    #[test]
    fn uuid_84_carries_the_bitmap_uuid_of_the_receiver_and_two_of_the_history() {
        let mut flags = UuidFlags::CRASHED_PRIMARY;
        flags.set(UuidFlags::RECONNECT, true);
        let full = Uuids110 {
            current: 7,
            dirty_bits: 5,
            uuid_flags: flags,
            node_mask: NodeId(3).mask(),
            bitmap_uuids: BitmapUuids::from_iter([(NodeId(1), 0x10), (NodeId(2), 0x20)]),
            history: vec![0x30, 0x40, 0x50],
        };
        let got = told(&full);
        assert_eq!((got.current, got.dirty_bits, got.node_mask), (7, 5, NodeMask::EMPTY));
        assert_eq!(got.bitmap_uuids.iter().collect::<Vec<_>>(), [(NodeId(1), 0x10)]);
        assert_eq!(got.history, [0x30, 0x40]);
        assert!(got.uuid_flags.contains(UuidFlags::CRASHED_PRIMARY) && got.uuid_flags.contains(UuidFlags::STABLE));
        assert!(!got.uuid_flags.contains(UuidFlags::RECONNECT));
        assert_eq!(told(&got), got);
    }

    #[test]
    fn uuid_84_no_information_is_sent_as_none() {
        let bitmap_uuids = BitmapUuids::from_iter([(NodeId(1), u64::MAX)]);
        let got = told(&Uuids110 { bitmap_uuids, ..Uuids110::default() });
        assert_eq!(got.bitmap_uuids.get(NodeId(1)), Some(0));
        assert_eq!(got.history, [0, 0]);
    }
}
