//! The v09 super block: its model in memory, decoding with validation, encoding (reference sections 1 and 3).

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;
use zerocopy::byteorder::big_endian::{I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::flags::{DeviceFlags, PeerFlags};
use crate::uuid::UuidSet;
use crate::{
    DEFAULT_BITMAP_BLOCK_SIZE, HISTORY_UUIDS, MAX_BITMAP_BLOCK_SIZE, MAX_PEERS, MD_BLOCK_SIZE, PEER_ARRAY_LEN,
};

/// Super block magic of DRBD 0.7.
pub const MAGIC_V07: u32 = 0x8374_026a;
/// Super block magic of DRBD 8.
pub const MAGIC_V08: u32 = 0x8374_026b;
/// Super block magic that DRBD 8.4 writes: activity log not applied yet.
pub const MAGIC_V08_UNCLEAN: u32 = 0x8374_026c;
/// Super block magic of DRBD 9.
pub const MAGIC_V09: u32 = 0x8374_026d;

/// Where v07 keeps its magic, in bytes.
const V07_MAGIC_OFFSET: usize = 28;
/// Where v08 and v09 keep their magic, in bytes.
const MAGIC_OFFSET: usize = 60;
/// Fewest blocks in an activity log ring.
pub(crate) const MIN_AL_BLOCKS: u64 = 8;
/// Most blocks in an activity log ring: 16 MiB.
pub(crate) const MAX_AL_BLOCKS: u64 = 4096;

/// What a 4096 byte block at the place of a super block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Zeros only.
    None,
    /// DRBD 0.7. Known by its magic, not otherwise supported.
    V07,
    /// DRBD 8, activity log applied.
    V08,
    /// DRBD 8.4, activity log possibly not applied.
    V08Unclean,
    /// DRBD 9.
    V09,
    /// Something else.
    Unknown,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::None => "nothing, the block is all zeros",
            Format::V07 => "DRBD meta data of version 0.7",
            Format::V08 => "DRBD 8 meta data",
            Format::V08Unclean => "DRBD 8.4 meta data of a node that was not shut down cleanly",
            Format::V09 => "DRBD 9 meta data",
            Format::Unknown => "something else",
        })
    }
}

/// Tells the format of the block at the place of a super block, from its magic alone.
#[must_use]
pub fn detect(block: &[u8]) -> Format {
    let magic_at =
        |offset: usize| block.get(offset..).and_then(|b| U32::read_from_prefix(b).ok()).map(|(m, _)| m.get());
    match magic_at(MAGIC_OFFSET) {
        Some(MAGIC_V08) => return Format::V08,
        Some(MAGIC_V08_UNCLEAN) => return Format::V08Unclean,
        Some(MAGIC_V09) => return Format::V09,
        _ => {}
    }
    if magic_at(V07_MAGIC_OFFSET) == Some(MAGIC_V07) {
        Format::V07
    } else if block.iter().all(|&b| b == 0) {
        Format::None
    } else {
        Format::Unknown
    }
}

/// Why a block is not a usable super block.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetaError {
    /// Not exactly 4096 bytes were given.
    #[error("a super block has 4096 bytes, not {0}")]
    Length(usize),
    /// The block has not the magic that was looked for.
    #[error("no meta data of this version at its place: found {0}")]
    Format(Format),
    /// `bm_max_peers` is not 1 to 31.
    #[error("bm_max_peers {0} is not in 1..=31")]
    MaxPeers(u32),
    /// `bm_bytes_per_bit` is not a power of two of 4 KiB to 1 MiB (v08: not 4096).
    #[error("bm_bytes_per_bit {0} is not supported")]
    BytesPerBit(u32),
    /// The activity log's stripes are half zero, or give a ring below 32 KiB or above 16 MiB.
    #[error("activity log of {stripes} stripes of {stripe_size_4k} blocks of 4 KiB is not supported")]
    ActivityLogSize {
        /// `al_stripes` as read.
        stripes: u32,
        /// `al_stripe_size_4k` as read.
        stripe_size_4k: u32,
    },
    /// `node_id` is neither -1 nor 0 to 31.
    #[error("node_id {0} is not in -1..=31")]
    NodeId(i32),
    /// A peer's `bitmap_index` is neither -1 nor below `bm_max_peers`.
    #[error("peer {node_id} has bitmap_index {bitmap_index}, with {max_peers} slots")]
    BitmapIndex {
        /// The peer's node id.
        node_id: u8,
        /// Its index as read.
        bitmap_index: i32,
        /// Number of slots.
        max_peers: u32,
    },
    /// Two peers share one bitmap slot.
    #[error("peers {first} and {second} both have bitmap slot {slot}")]
    SharedBitmapSlot {
        /// The slot.
        slot: u8,
        /// Lower node id.
        first: u8,
        /// Higher node id.
        second: u8,
    },
    /// The node's own entry in the peer array has a bitmap slot.
    #[error("own node id {0} has a bitmap slot")]
    OwnBitmapSlot(u8),
}

/// Why a bitmap slot cannot be assigned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SlotError {
    /// The node id is above 31.
    #[error("node id {0} is not in 0..=31")]
    NodeId(u8),
    /// The node id is the node's own.
    #[error("node id {0} is this node's own and needs no bitmap slot")]
    OwnNode(u8),
    /// All slots are in use.
    #[error("all {0} bitmap slots are in use")]
    NoFreeSlot(u32),
}

/// What a v09 super block knows of one node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PeerMd {
    /// The bitmap UUID towards this peer, 0 if none.
    pub bitmap_uuid: u64,
    /// The dagtag that belongs to the bitmap UUID.
    pub bitmap_dagtag: u64,
    /// Flags of the peer.
    pub flags: PeerFlags,
    /// The peer's bitmap slot, -1 if none.
    pub bitmap_index: i32,
}

impl PeerMd {
    /// An entry for a node id that nothing is known of.
    pub const UNUSED: Self = Self { bitmap_uuid: 0, bitmap_dagtag: 0, flags: PeerFlags::empty(), bitmap_index: -1 };

    /// The peer's bitmap slot.
    #[must_use]
    pub fn slot(&self) -> Option<u8> {
        u8::try_from(self.bitmap_index).ok()
    }
}

/// The v09 super block in memory. Offsets are in sectors from the super block's first sector.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SuperBlock {
    /// Size of the device that the nodes last agreed on, in sectors.
    pub effective_size_sectors: u64,
    /// Current UUID of the data.
    pub current_uuid: u64,
    /// Node mask of the members at the last quorum; 0 from older writers.
    pub members: u64,
    /// Random identifier of the device.
    pub device_uuid: u64,
    /// Flags of the device.
    pub flags: DeviceFlags,
    /// Size of all meta data in sectors.
    pub md_size_sect: u32,
    /// First sector of the activity log.
    pub al_offset: i32,
    /// Number of activity log slots in use.
    pub al_nr_extents: u32,
    /// First sector of the bitmap.
    pub bm_offset: i32,
    /// Bytes of the device for each bit.
    pub bm_bytes_per_bit: u32,
    /// Largest request in bytes that the peers last agreed on, 0 if unknown.
    pub la_peer_max_bio_size: u32,
    /// Number of bitmap slots.
    pub bm_max_peers: u32,
    /// This node's id, `None` if not assigned yet.
    pub node_id: Option<u8>,
    /// Stripes of the activity log ring.
    pub al_stripes: u32,
    /// Size of a stripe in units of 4 KiB.
    pub al_stripe_size_4k: u32,
    /// What is known of each node id.
    pub peers: [PeerMd; PEER_ARRAY_LEN],
    /// Former current UUIDs, newest first.
    pub history_uuids: [u64; HISTORY_UUIDS],
}

/// One entry of the peer array on disk, 32 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct PeerOnDisk {
    bitmap_uuid: U64,
    bitmap_dagtag: U64,
    flags: U32,
    bitmap_index: I32,
    reserved: [U32; 2],
}

/// The v09 super block on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OnDisk {
    effective_size: U64,
    current_uuid: U64,
    members: U64,
    reserved_1: [U64; 3],
    device_uuid: U64,
    flags: U32,
    magic: U32,
    md_size_sect: U32,
    al_offset: I32,
    al_nr_extents: U32,
    bm_offset: I32,
    bm_bytes_per_bit: U32,
    la_peer_max_bio_size: U32,
    bm_max_peers: U32,
    node_id: I32,
    al_stripes: U32,
    al_stripe_size_4k: U32,
    reserved_2: [U32; 2],
    peers: [PeerOnDisk; PEER_ARRAY_LEN],
    history_uuids: [U64; HISTORY_UUIDS],
    padding: [u8; 2704],
}

const _: () = assert!(size_of::<OnDisk>() == MD_BLOCK_SIZE);
const _: () = assert!(std::mem::offset_of!(OnDisk, magic) == MAGIC_OFFSET);
const _: () = assert!(std::mem::offset_of!(OnDisk, peers) == 112);
const _: () = assert!(std::mem::offset_of!(OnDisk, history_uuids) == 1136);

impl SuperBlock {
    /// Reads a v09 super block.
    ///
    /// Stripe fields that are both zero mean 1 and 8. Reserved bytes are not looked at and read as zero.
    /// Whether the offsets fit the device is the business of [`crate::Layout::check`].
    ///
    /// # Errors
    /// [`MetaError`], one name for each rule that the block breaks.
    pub fn decode(block: &[u8]) -> Result<Self, MetaError> {
        let raw = OnDisk::ref_from_bytes(block).map_err(|_| MetaError::Length(block.len()))?;
        if raw.magic.get() != MAGIC_V09 {
            return Err(MetaError::Format(detect(block)));
        }
        let (al_stripes, al_stripe_size_4k) = stripes_on_disk(raw.al_stripes.get(), raw.al_stripe_size_4k.get());
        let super_block = Self {
            effective_size_sectors: raw.effective_size.get(),
            current_uuid: raw.current_uuid.get(),
            members: raw.members.get(),
            device_uuid: raw.device_uuid.get(),
            flags: DeviceFlags(raw.flags.get()),
            md_size_sect: raw.md_size_sect.get(),
            al_offset: raw.al_offset.get(),
            al_nr_extents: raw.al_nr_extents.get(),
            bm_offset: raw.bm_offset.get(),
            bm_bytes_per_bit: raw.bm_bytes_per_bit.get(),
            la_peer_max_bio_size: raw.la_peer_max_bio_size.get(),
            bm_max_peers: raw.bm_max_peers.get(),
            node_id: node_id_on_disk(raw.node_id.get())?,
            al_stripes,
            al_stripe_size_4k,
            peers: raw.peers.map(|peer| PeerMd {
                bitmap_uuid: peer.bitmap_uuid.get(),
                bitmap_dagtag: peer.bitmap_dagtag.get(),
                flags: PeerFlags(peer.flags.get() & !PeerFlags::HAVE_BITMAP.bits()),
                bitmap_index: peer.bitmap_index.get(),
            }),
            history_uuids: raw.history_uuids.map(U64::get),
        };
        super_block.validate()?;
        Ok(super_block)
    }

    /// Writes the super block as v09. [`PeerFlags::HAVE_BITMAP`] is left out, reserved bytes are zero.
    pub fn encode(&self, out: &mut [u8; MD_BLOCK_SIZE]) {
        let raw = OnDisk {
            effective_size: self.effective_size_sectors.into(),
            current_uuid: self.current_uuid.into(),
            members: self.members.into(),
            reserved_1: [U64::ZERO; 3],
            device_uuid: self.device_uuid.into(),
            flags: self.flags.bits().into(),
            magic: MAGIC_V09.into(),
            md_size_sect: self.md_size_sect.into(),
            al_offset: self.al_offset.into(),
            al_nr_extents: self.al_nr_extents.into(),
            bm_offset: self.bm_offset.into(),
            bm_bytes_per_bit: self.bm_bytes_per_bit.into(),
            la_peer_max_bio_size: self.la_peer_max_bio_size.into(),
            bm_max_peers: self.bm_max_peers.into(),
            node_id: self.node_id.map_or(-1, i32::from).into(),
            al_stripes: self.al_stripes.into(),
            al_stripe_size_4k: self.al_stripe_size_4k.into(),
            reserved_2: [U32::ZERO; 2],
            peers: self.peers.map(|peer| PeerOnDisk {
                bitmap_uuid: peer.bitmap_uuid.into(),
                bitmap_dagtag: peer.bitmap_dagtag.into(),
                flags: (peer.flags.bits() & !PeerFlags::HAVE_BITMAP.bits()).into(),
                bitmap_index: peer.bitmap_index.into(),
                reserved: [U32::ZERO; 2],
            }),
            history_uuids: self.history_uuids.map(U64::new),
            padding: [0; 2704],
        };
        out.copy_from_slice(raw.as_bytes());
    }

    /// Checks the rules that concern the super block alone.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), MetaError> {
        if !(1..=MAX_PEERS).contains(&self.bm_max_peers) {
            return Err(MetaError::MaxPeers(self.bm_max_peers));
        }
        check_bytes_per_bit(self.bm_bytes_per_bit)?;
        check_al_size(self.al_stripes, self.al_stripe_size_4k)?;
        if let Some(own) = self.node_id {
            let own_md = self.peers.get(usize::from(own)).ok_or(MetaError::NodeId(i32::from(own)))?;
            if own_md.bitmap_index != -1 {
                return Err(MetaError::OwnBitmapSlot(own));
            }
        }
        self.validate_slots()
    }

    fn validate_slots(&self) -> Result<(), MetaError> {
        let mut owners = [None; PEER_ARRAY_LEN];
        for (node_id, peer) in (0u8..).zip(&self.peers) {
            if peer.bitmap_index == -1 {
                continue;
            }
            let slot =
                peer.slot().filter(|&slot| u32::from(slot) < self.bm_max_peers).ok_or(MetaError::BitmapIndex {
                    node_id,
                    bitmap_index: peer.bitmap_index,
                    max_peers: self.bm_max_peers,
                })?;
            if let Some(first) = owners[usize::from(slot)].replace(node_id) {
                return Err(MetaError::SharedBitmapSlot { slot, first, second: node_id });
            }
        }
        Ok(())
    }

    /// The bitmap slot of a node, if it has one.
    #[must_use]
    pub fn slot_of(&self, node_id: u8) -> Option<u8> {
        self.peers.get(usize::from(node_id)).and_then(PeerMd::slot)
    }

    /// Gives a node the lowest unused bitmap slot (reference section 7); a node that has one keeps it.
    ///
    /// What the bits of a fresh slot must be is the caller's business: a copy of the slot or UUID of a day-0 peer, or
    /// all set; all clear only for meta data that was just created.
    ///
    /// # Errors
    /// [`SlotError`] if the node can have none.
    pub fn assign_slot(&mut self, node_id: u8) -> Result<u8, SlotError> {
        if self.node_id == Some(node_id) {
            return Err(SlotError::OwnNode(node_id));
        }
        let index = usize::from(node_id);
        let peer = self.peers.get(index).ok_or(SlotError::NodeId(node_id))?;
        if let Some(slot) = peer.slot() {
            return Ok(slot);
        }
        let slot = (0u8..)
            .take(self.bm_max_peers as usize)
            .find(|slot| self.peers.iter().all(|peer| peer.slot() != Some(*slot)))
            .ok_or(SlotError::NoFreeSlot(self.bm_max_peers))?;
        self.peers[index].bitmap_index = i32::from(slot);
        Ok(slot)
    }

    /// Frees a node's slot and forgets its flags; its bitmap UUID becomes that of a day-0 node (reference section 7).
    ///
    /// # Errors
    /// [`SlotError::NodeId`] if the node id is above 31.
    pub fn forget_peer(&mut self, node_id: u8) -> Result<(), SlotError> {
        let index = usize::from(node_id);
        if index >= PEER_ARRAY_LEN {
            return Err(SlotError::NodeId(node_id));
        }
        let day0_uuid = self.day0_peer(node_id).map_or(0, |day0| day0.bitmap_uuid);
        self.peers[index] = PeerMd { bitmap_uuid: day0_uuid, ..PeerMd::UNUSED };
        Ok(())
    }

    /// The lowest other node id without a slot that is not this node's own: its bitmap UUID is taken for the one that
    /// the data had on day 0. Like `drbdmeta`, this does not look at flags.
    fn day0_peer(&self, except: u8) -> Option<&PeerMd> {
        (0u8..).zip(&self.peers).find_map(|(node_id, peer)| {
            let other = self.node_id != Some(node_id) && node_id != except;
            (other && peer.bitmap_index == -1).then_some(peer)
        })
    }

    /// The UUIDs that the tools show for a node id; all zero but the common ones for an id above 31.
    #[must_use]
    pub fn uuid_set(&self, node_id: u8) -> UuidSet {
        UuidSet {
            current: self.current_uuid,
            bitmap: self.peers.get(usize::from(node_id)).map_or(0, |peer| peer.bitmap_uuid),
            history: [self.history_uuids[0], self.history_uuids[1]],
        }
    }
}

/// Both stripe fields zero stand for the layout from before there were stripes.
pub(crate) fn stripes_on_disk(stripes: u32, stripe_size_4k: u32) -> (u32, u32) {
    if stripes == 0 && stripe_size_4k == 0 { (1, 8) } else { (stripes, stripe_size_4k) }
}

fn node_id_on_disk(raw: i32) -> Result<Option<u8>, MetaError> {
    if raw == -1 {
        return Ok(None);
    }
    match u8::try_from(raw) {
        Ok(id) if usize::from(id) < PEER_ARRAY_LEN => Ok(Some(id)),
        _ => Err(MetaError::NodeId(raw)),
    }
}

pub(crate) fn check_bytes_per_bit(bytes: u32) -> Result<(), MetaError> {
    let known = bytes.is_power_of_two() && (DEFAULT_BITMAP_BLOCK_SIZE..=MAX_BITMAP_BLOCK_SIZE).contains(&bytes);
    if known { Ok(()) } else { Err(MetaError::BytesPerBit(bytes)) }
}

pub(crate) fn check_al_size(stripes: u32, stripe_size_4k: u32) -> Result<(), MetaError> {
    let blocks = u64::from(stripes) * u64::from(stripe_size_4k);
    if (MIN_AL_BLOCKS..=MAX_AL_BLOCKS).contains(&blocks) {
        Ok(())
    } else {
        Err(MetaError::ActivityLogSize { stripes, stripe_size_4k })
    }
}

#[cfg(test)]
#[path = "superblock_tests.rs"]
mod tests;
