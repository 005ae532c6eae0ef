//! What the meta data on a disk says while no core has it: read from the bytes, as a core would at its next attach.

use std::collections::BTreeSet;

use zea_meta::activity_log::replay;
use zea_meta::bitmap::BitmapGeometry;
use zea_meta::flags::{DeviceFlags, PeerFlags};
use zea_meta::placement::{Layout, LayoutParams};
use zea_meta::superblock::SuperBlock;

use crate::disk::Disk;
use crate::net::NodeIx;

const SECTORS_PER_EXTENT: u64 = 8192;

/// The meta data of a disk that nobody has attached.
#[derive(Debug)]
pub(super) struct Offline {
    super_block: SuperBlock,
    /// By slot: the bits.
    bits: Vec<BTreeSet<u64>>,
    hot: Vec<u32>,
}

impl Offline {
    /// Reads the meta data of a disk. `None`: it cannot be attached as it is, and says so.
    pub(super) fn read(disk: &Disk) -> Option<Offline> {
        let backing = disk.backing();
        let mut params = LayoutParams {
            placement: backing.placement,
            backing_size_sectors: backing.size_bytes / 512,
            md_size_sectors: backing.meta_size_bytes / 512,
            max_peers: 1,
            bytes_per_bit: 4096,
            al_stripes: 1,
            al_stripe_size_4k: 8,
        };
        let at = Layout::compute(&params).ok()?.super_block_offset_bytes;
        let super_block = SuperBlock::decode(&disk.meta_bytes(at, 4096)).ok()?;
        params.max_peers = super_block.bm_max_peers;
        params.al_stripes = super_block.al_stripes;
        params.al_stripe_size_4k = super_block.al_stripe_size_4k;
        let layout = Layout::compute(&params).ok()?;
        let geometry = BitmapGeometry::for_device(super_block.bm_max_peers, layout.usable_sectors, 4096).ok()?;
        let ring = disk.meta_bytes(layout.al_offset_bytes, layout.al_size_bytes);
        let blocks = ring.as_chunks::<4096>().0;
        let hot = replay(blocks, geometry.al_extents()).ok()?.extents;
        let mut bits = vec![BTreeSet::new(); super_block.bm_max_peers as usize];
        for index in 0..geometry.disk_blocks() {
            let bytes = disk.meta_bytes(layout.bitmap_offset_bytes + index * 4096, 4096);
            let block = bytes.as_slice().try_into().expect("4096 bytes");
            for (slot, bits) in (0..).zip(&mut bits) {
                geometry.decode_block(block, index, slot, &mut |first, word| {
                    bits.extend((0..32).filter(|n| word >> n & 1 == 1).map(|n| first + n));
                });
            }
        }
        Some(Offline { super_block, bits, hot })
    }

    /// Its data is of one generation, if perhaps an old one.
    pub(super) fn is_consistent(&self) -> bool {
        self.super_block.flags.contains(DeviceFlags::CONSISTENT)
    }

    /// The data generation.
    pub(super) fn current_uuid(&self) -> u64 {
        self.super_block.current_uuid
    }

    /// The generation since which the bits towards a node count.
    pub(super) fn bitmap_uuid(&self, peer: NodeIx) -> u64 {
        self.super_block.peers[peer].bitmap_uuid
    }

    /// The next attach will take the sector for different towards a peer.
    pub(super) fn is_marked(&self, peer: NodeIx, sector: u64) -> bool {
        let md = &self.super_block.peers[peer];
        let Some(slot) = md.slot() else {
            return true;
        };
        md.flags.contains(PeerFlags::FULL_SYNC)
            || self.hot.contains(&((sector / SECTORS_PER_EXTENT) as u32))
            || self.bits[usize::from(slot)].contains(&(sector / 8))
    }
}
