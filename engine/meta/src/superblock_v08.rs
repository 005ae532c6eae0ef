//! The v08 super block of DRBD 8.0 to 8.4: one peer, one bitmap (reference section 2).

use zerocopy::byteorder::big_endian::{I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::flags::V08Flags;
use crate::superblock::{MAGIC_V08, MAGIC_V08_UNCLEAN, MetaError, check_al_size, detect, stripes_on_disk};
use crate::uuid::UuidSet;
use crate::{DEFAULT_BITMAP_BLOCK_SIZE, MD_BLOCK_SIZE};

/// The v08 super block in memory. Offsets are in sectors from the super block's first sector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuperBlockV08 {
    /// Size of the device that the nodes last agreed on, in sectors.
    pub effective_size_sectors: u64,
    /// Current UUID of the data.
    pub current_uuid: u64,
    /// Bitmap UUID towards the peer, 0 if none.
    pub bitmap_uuid: u64,
    /// Former current UUIDs, newest first.
    pub history_uuids: [u64; 2],
    /// Random identifier of the device.
    pub device_uuid: u64,
    /// Flags of the device and the peer.
    pub flags: V08Flags,
    /// Written by a driver of 8.4: the activity log may have to be applied. Goes with its own magic.
    pub unclean: bool,
    /// Size of all meta data in sectors.
    pub md_size_sect: u32,
    /// First sector of the activity log.
    pub al_offset: i32,
    /// Number of activity log slots in use.
    pub al_nr_extents: u32,
    /// First sector of the bitmap.
    pub bm_offset: i32,
    /// Bytes of the device for each bit: 4096.
    pub bm_bytes_per_bit: u32,
    /// Largest request in bytes that the peers last agreed on, 0 if unknown.
    pub la_peer_max_bio_size: u32,
    /// Stripes of the activity log ring.
    pub al_stripes: u32,
    /// Size of a stripe in units of 4 KiB.
    pub al_stripe_size_4k: u32,
}

/// The v08 super block on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OnDisk {
    effective_size: U64,
    current_uuid: U64,
    bitmap_uuid: U64,
    history_uuids: [U64; 2],
    device_uuid: U64,
    reserved: U64,
    flags: U32,
    magic: U32,
    md_size_sect: U32,
    al_offset: I32,
    al_nr_extents: U32,
    bm_offset: I32,
    bm_bytes_per_bit: U32,
    la_peer_max_bio_size: U32,
    al_stripes: U32,
    al_stripe_size_4k: U32,
    padding: [u8; 4000],
}

const _: () = assert!(size_of::<OnDisk>() == MD_BLOCK_SIZE);

impl SuperBlockV08 {
    /// Reads a v08 super block, with either magic.
    ///
    /// Stripe fields that are both zero mean 1 and 8. Reserved bytes are not looked at and read as zero.
    ///
    /// # Errors
    /// [`MetaError`], one name for each rule that the block breaks.
    pub fn decode(block: &[u8]) -> Result<Self, MetaError> {
        let raw = OnDisk::ref_from_bytes(block).map_err(|_| MetaError::Length(block.len()))?;
        let unclean = match raw.magic.get() {
            MAGIC_V08 => false,
            MAGIC_V08_UNCLEAN => true,
            _ => return Err(MetaError::Format(detect(block))),
        };
        let (al_stripes, al_stripe_size_4k) = stripes_on_disk(raw.al_stripes.get(), raw.al_stripe_size_4k.get());
        let super_block = Self {
            effective_size_sectors: raw.effective_size.get(),
            current_uuid: raw.current_uuid.get(),
            bitmap_uuid: raw.bitmap_uuid.get(),
            history_uuids: raw.history_uuids.map(U64::get),
            device_uuid: raw.device_uuid.get(),
            flags: V08Flags(raw.flags.get()),
            unclean,
            md_size_sect: raw.md_size_sect.get(),
            al_offset: raw.al_offset.get(),
            al_nr_extents: raw.al_nr_extents.get(),
            bm_offset: raw.bm_offset.get(),
            bm_bytes_per_bit: raw.bm_bytes_per_bit.get(),
            la_peer_max_bio_size: raw.la_peer_max_bio_size.get(),
            al_stripes,
            al_stripe_size_4k,
        };
        super_block.validate()?;
        Ok(super_block)
    }

    /// Writes the super block, with the magic that `unclean` asks for.
    pub fn encode(&self, out: &mut [u8; MD_BLOCK_SIZE]) {
        let raw = OnDisk {
            effective_size: self.effective_size_sectors.into(),
            current_uuid: self.current_uuid.into(),
            bitmap_uuid: self.bitmap_uuid.into(),
            history_uuids: self.history_uuids.map(U64::new),
            device_uuid: self.device_uuid.into(),
            reserved: U64::ZERO,
            flags: self.flags.bits().into(),
            magic: if self.unclean { MAGIC_V08_UNCLEAN } else { MAGIC_V08 }.into(),
            md_size_sect: self.md_size_sect.into(),
            al_offset: self.al_offset.into(),
            al_nr_extents: self.al_nr_extents.into(),
            bm_offset: self.bm_offset.into(),
            bm_bytes_per_bit: self.bm_bytes_per_bit.into(),
            la_peer_max_bio_size: self.la_peer_max_bio_size.into(),
            al_stripes: self.al_stripes.into(),
            al_stripe_size_4k: self.al_stripe_size_4k.into(),
            padding: [0; 4000],
        };
        out.copy_from_slice(raw.as_bytes());
    }

    /// Checks the rules that concern the super block alone.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), MetaError> {
        if self.bm_bytes_per_bit != DEFAULT_BITMAP_BLOCK_SIZE {
            return Err(MetaError::BytesPerBit(self.bm_bytes_per_bit));
        }
        check_al_size(self.al_stripes, self.al_stripe_size_4k)
    }

    /// The UUIDs as the tools show them.
    #[must_use]
    pub fn uuid_set(&self) -> UuidSet {
        UuidSet { current: self.current_uuid, bitmap: self.bitmap_uuid, history: self.history_uuids }
    }
}
