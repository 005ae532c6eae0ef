//! A v08 super block as one of v09 with a single peer, and back: so a disk of DRBD 8.4 is attached as it is, and left as one
//! (reference ondisk-metadata.md 2, 3, 8 "drbd8-compat-mode").

use crate::flags::{DeviceFlags, PeerFlags, V08Flags};
use crate::superblock::{PeerMd, SuperBlock};
use crate::superblock_v08::SuperBlockV08;
use crate::{HISTORY_UUIDS, PEER_ARRAY_LEN, UUID_JUST_CREATED};

/// Flags that are about the peer in v09 and about the device in v08.
const OF_PEER: [(V08Flags, PeerFlags); 3] = [
    (V08Flags::CONNECTED_IND, PeerFlags::CONNECTED),
    (V08Flags::FULL_SYNC, PeerFlags::FULL_SYNC),
    (V08Flags::PEER_OUT_DATED, PeerFlags::OUTDATED),
];

/// All other flags have the same bits in both.
fn of_peer_bits() -> u32 {
    OF_PEER.iter().fold(0, |all, (flag, _)| all | flag.bits())
}

impl SuperBlock {
    /// What a v08 super block says, for node `own` whose only peer is `peer`: it has the only bitmap slot.
    #[must_use]
    pub fn from_v08(old: &SuperBlockV08, own: u8, peer: u8) -> SuperBlock {
        let mut peers = [PeerMd::UNUSED; PEER_ARRAY_LEN];
        let entry = &mut peers[usize::from(peer)];
        entry.bitmap_uuid = old.bitmap_uuid;
        entry.bitmap_index = 0;
        for (flag, of_peer) in OF_PEER {
            entry.flags.set(of_peer, old.flags.contains(flag));
        }
        let mut history_uuids = [0; HISTORY_UUIDS];
        history_uuids[..2].copy_from_slice(&old.history_uuids);
        SuperBlock {
            effective_size_sectors: old.effective_size_sectors,
            current_uuid: old.current_uuid,
            members: 0,
            device_uuid: old.device_uuid,
            flags: DeviceFlags(old.flags.bits() & !of_peer_bits()),
            md_size_sect: old.md_size_sect,
            al_offset: old.al_offset,
            al_nr_extents: old.al_nr_extents,
            bm_offset: old.bm_offset,
            bm_bytes_per_bit: old.bm_bytes_per_bit,
            la_peer_max_bio_size: old.la_peer_max_bio_size,
            bm_max_peers: 1,
            node_id: Some(own),
            al_stripes: old.al_stripes,
            al_stripe_size_4k: old.al_stripe_size_4k,
            peers,
            history_uuids,
        }
    }

    /// Whether this is what `drbdmeta create-md` made of a v08 super block, and nobody has attached it since: nodes have no
    /// numbers in v08, so that the only bitmap is nobody's. It is that of v08, as are the flags about the peer, which are with
    /// node 0. What is lost is the UUID of that bitmap.
    #[must_use]
    pub fn is_converted(&self) -> bool {
        let unclaimed = self.node_id.is_none() && self.peers.iter().all(|peer| peer.slot().is_none());
        unclaimed && self.bm_max_peers == 1 && self.current_uuid & !1 != UUID_JUST_CREATED
    }

    /// Gives what v08 knew of its peer, in a converted super block, to node `peer`.
    ///
    /// # Panics
    /// It is none.
    pub fn claim_converted(&mut self, peer: u8) {
        assert!(self.is_converted(), "only what nobody has claimed");
        let told = std::mem::replace(&mut self.peers[0], PeerMd::UNUSED);
        self.peers[usize::from(peer)] = PeerMd { bitmap_index: 0, ..told };
    }

    /// The v08 super block of a node whose only peer is `peer`, with the magic that a driver leaves.
    #[must_use]
    pub fn to_v08(&self, peer: u8) -> SuperBlockV08 {
        let entry = &self.peers[usize::from(peer)];
        let mut flags = V08Flags(self.flags.bits() & !of_peer_bits());
        for (flag, of_peer) in OF_PEER {
            flags.set(flag, entry.flags.contains(of_peer));
        }
        SuperBlockV08 {
            effective_size_sectors: self.effective_size_sectors,
            current_uuid: self.current_uuid,
            bitmap_uuid: entry.bitmap_uuid,
            history_uuids: [self.history_uuids[0], self.history_uuids[1]],
            device_uuid: self.device_uuid,
            flags,
            unclean: true,
            md_size_sect: self.md_size_sect,
            al_offset: self.al_offset,
            al_nr_extents: self.al_nr_extents,
            bm_offset: self.bm_offset,
            bm_bytes_per_bit: self.bm_bytes_per_bit,
            la_peer_max_bio_size: self.la_peer_max_bio_size,
            al_stripes: self.al_stripes,
            al_stripe_size_4k: self.al_stripe_size_4k,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_v08_super_blocks_survive_being_v09() {
        for bits in 0..0x200 {
            let old = SuperBlockV08 {
                effective_size_sectors: 1000,
                current_uuid: 0x11,
                bitmap_uuid: 0x22,
                history_uuids: [0x33, 0x44],
                device_uuid: 0x55,
                flags: V08Flags(bits),
                unclean: true,
                md_size_sect: 80,
                al_offset: -64,
                al_nr_extents: 257,
                bm_offset: -72,
                bm_bytes_per_bit: 4096,
                la_peer_max_bio_size: 130_560,
                al_stripes: 1,
                al_stripe_size_4k: 8,
            };
            let new = SuperBlock::from_v08(&old, 3, 7);
            assert_eq!(new.validate(), Ok(()));
            assert_eq!((new.slot_of(7), new.slot_of(3), new.node_id), (Some(0), None, Some(3)));
            assert_eq!(new.to_v08(7), old, "flags {bits:#x}");
        }
    }
}
