//! Where super block, activity log and bitmap lie, and what is left for data (reference section 4).

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::bitmap::{bits_for_sectors, slot_bytes};
use crate::superblock::{MetaError, SuperBlock, check_al_size, check_bytes_per_bit};
use crate::superblock_v08::SuperBlockV08;
use crate::{DEFAULT_BITMAP_BLOCK_SIZE, MAX_PEERS, MD_BLOCK_SECTORS, MD_BLOCK_SIZE, SECTOR_SIZE};

/// Sectors of one fixed slot of indexed external meta data: 128 MiB.
pub const INDEXED_SLOT_SECTORS: u64 = 262_144;
/// Fewest sectors of a device that holds meta data.
pub const MIN_MD_DEVICE_SECTORS: u64 = 2048;
/// Most sectors of a backing device: 1 PiB.
pub const MAX_DEVICE_SECTORS: u64 = 1 << 41;
/// Most slots of indexed meta data, so that offsets stay far from overflow.
const MAX_INDEX: u32 = 65_535;

/// How meta data is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Placement {
    /// At the end of the backing device, index code -3.
    Internal,
    /// On a device of its own, from its start, index code -2.
    FlexExternal,
    /// In one of the 128 MiB slots of a shared device, index code 0 and up.
    Indexed(u32),
}

/// What a layout is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LayoutParams {
    /// How meta data is placed.
    pub placement: Placement,
    /// Size of the backing device.
    pub backing_size_sectors: u64,
    /// Size of the device that holds external meta data; not looked at for internal.
    pub md_size_sectors: u64,
    /// Number of bitmap slots, 1 for v08.
    pub max_peers: u32,
    /// Bytes of the device for each bitmap bit.
    pub bytes_per_bit: u32,
    /// Stripes of the activity log ring.
    pub al_stripes: u32,
    /// Size of a stripe in units of 4 KiB.
    pub al_stripe_size_4k: u32,
}

impl LayoutParams {
    /// Internal meta data with the default bitmap block size and activity log.
    #[must_use]
    pub fn internal(backing_size_sectors: u64, max_peers: u32) -> Self {
        Self {
            placement: Placement::Internal,
            backing_size_sectors,
            md_size_sectors: 0,
            max_peers,
            bytes_per_bit: DEFAULT_BITMAP_BLOCK_SIZE,
            al_stripes: 1,
            al_stripe_size_4k: 8,
        }
    }

    /// Flexible external meta data with the default bitmap block size and activity log.
    #[must_use]
    pub fn flex_external(backing_size_sectors: u64, md_size_sectors: u64, max_peers: u32) -> Self {
        Self { placement: Placement::FlexExternal, md_size_sectors, ..Self::internal(backing_size_sectors, max_peers) }
    }
}

/// Why no layout can be computed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The number of slots is not 1 to 31.
    #[error("max_peers {0} is not in 1..=31")]
    MaxPeers(u32),
    /// The bitmap block size or the activity log's shape is not supported.
    #[error(transparent)]
    Unsupported(#[from] MetaError),
    /// The device that holds the meta data is too small.
    #[error("meta data needs a device of at least {needed_sectors} sectors, there are {size_sectors}")]
    TooSmall {
        /// Size of the device.
        size_sectors: u64,
        /// Size that is needed.
        needed_sectors: u64,
    },
    /// The backing device is larger than 1 PiB.
    #[error("backing device of {0} sectors is larger than 1 PiB")]
    BackingTooLarge(u64),
    /// The meta data is too large for the fields of a super block.
    #[error("meta data of {0} sectors does not fit the super block's 32 bit fields")]
    MetaDataTooLarge(u64),
    /// The index of a fixed slot is out of range.
    #[error("meta data index {0} is above 65535")]
    Index(u32),
    /// Indexed meta data has a fixed activity log and bitmap block size.
    #[error("indexed meta data needs 4096 bytes per bit and an activity log of 1 stripe of 32 KiB")]
    IndexedShape,
}

/// A field of a read super block that is not what the layout asks for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutMismatch {
    /// A number differs.
    #[error("unexpected {field}: found {found}, expected {expected}")]
    Field {
        /// Name of the super block's field.
        field: &'static str,
        /// What the super block says.
        found: i64,
        /// What the layout says.
        expected: i64,
    },
    /// The bitmap is too small for the size that the nodes agreed on.
    #[error("bitmap covers {covered_sectors} sectors, the device has {effective_size_sectors}")]
    BitmapTooSmall {
        /// What the bitmap can cover.
        covered_sectors: u64,
        /// The super block's effective size.
        effective_size_sectors: u64,
    },
    /// The data would reach into the meta data or beyond the backing device.
    #[error("effective size of {effective_size_sectors} sectors is larger than the usable {usable_sectors}")]
    BackingTooSmall {
        /// What the backing device has room for.
        usable_sectors: u64,
        /// The super block's effective size.
        effective_size_sectors: u64,
    },
    /// The meta data belongs to another node.
    #[error("meta data belongs to node id {found}, this is node id {own}")]
    NodeId {
        /// The super block's node id.
        found: u8,
        /// This node's id.
        own: u8,
    },
    /// This node's own entry in the peer array has a bitmap slot.
    #[error("own node id {0} has a bitmap slot")]
    OwnBitmapSlot(u8),
}

/// Where everything lies. Byte offsets count from the start of the device that holds the meta data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Layout {
    /// Start of the super block.
    pub super_block_offset_bytes: u64,
    /// Start of the activity log.
    pub al_offset_bytes: u64,
    /// Size of the activity log.
    pub al_size_bytes: u64,
    /// Start of the bitmap.
    pub bitmap_offset_bytes: u64,
    /// Size of the area for the bitmap, a multiple of 4096; the bitmap in use may be smaller.
    pub bitmap_size_bytes: u64,
    /// Largest device that can be offered on this backing device with this meta data.
    pub usable_sectors: u64,
    /// Field of the super block: size of all meta data.
    pub md_size_sect: u32,
    /// Field of the super block: activity log, from the super block.
    pub al_offset: i32,
    /// Field of the super block: bitmap, from the super block.
    pub bm_offset: i32,
    /// What the layout was computed from.
    pub params: LayoutParams,
}

impl Layout {
    /// Computes the layout.
    ///
    /// # Errors
    /// [`LayoutError`] if a parameter is out of its range or a device is too small or too large.
    pub fn compute(params: &LayoutParams) -> Result<Self, LayoutError> {
        if !(1..=MAX_PEERS).contains(&params.max_peers) {
            return Err(LayoutError::MaxPeers(params.max_peers));
        }
        check_bytes_per_bit(params.bytes_per_bit)?;
        check_al_size(params.al_stripes, params.al_stripe_size_4k)?;
        if params.backing_size_sectors > MAX_DEVICE_SECTORS {
            return Err(LayoutError::BackingTooLarge(params.backing_size_sectors));
        }
        match params.placement {
            Placement::Internal => Self::internal(params),
            Placement::FlexExternal => Self::external(params, 0, params.md_size_sectors),
            Placement::Indexed(index) => Self::indexed(params, index),
        }
    }

    fn internal(params: &LayoutParams) -> Result<Self, LayoutError> {
        let size_sectors = params.backing_size_sectors;
        // Computed from the whole backing device, hence slightly larger than the data needs.
        let bm_sectors = bitmap_sectors(size_sectors, params.max_peers, params.bytes_per_bit);
        let al_sectors = al_sectors(params);
        let md_sectors = bm_sectors + MD_BLOCK_SECTORS + al_sectors;
        // Room for at least one block of data.
        require(size_sectors, (md_sectors + 2 * MD_BLOCK_SECTORS).max(MIN_MD_DEVICE_SECTORS))?;
        let super_sector = size_sectors / MD_BLOCK_SECTORS * MD_BLOCK_SECTORS - MD_BLOCK_SECTORS;
        let fields = Fields {
            super_sector,
            al_sector: super_sector - al_sectors,
            bm_sector: super_sector - al_sectors - bm_sectors,
            bm_sectors,
            md_sectors,
        };
        fields.into_layout(params, super_sector - al_sectors - bm_sectors)
    }

    fn external(params: &LayoutParams, super_sector: u64, md_sectors: u64) -> Result<Self, LayoutError> {
        let al_sectors = al_sectors(params);
        let before_bitmap = MD_BLOCK_SECTORS + al_sectors;
        if md_sectors > u64::from(u32::MAX) {
            return Err(LayoutError::MetaDataTooLarge(md_sectors));
        }
        require(md_sectors, (before_bitmap + MD_BLOCK_SECTORS).max(MIN_MD_DEVICE_SECTORS))?;
        let bm_sectors = (md_sectors - before_bitmap) / MD_BLOCK_SECTORS * MD_BLOCK_SECTORS;
        let covered = covered_sectors(bm_sectors * SECTOR_SIZE, params.max_peers, params.bytes_per_bit);
        let fields = Fields {
            super_sector,
            al_sector: super_sector + MD_BLOCK_SECTORS,
            bm_sector: super_sector + before_bitmap,
            bm_sectors,
            md_sectors,
        };
        fields.into_layout(params, params.backing_size_sectors.min(covered))
    }

    fn indexed(params: &LayoutParams, index: u32) -> Result<Self, LayoutError> {
        if index > MAX_INDEX {
            return Err(LayoutError::Index(index));
        }
        let shape = (params.bytes_per_bit, params.al_stripes, params.al_stripe_size_4k);
        if shape != (DEFAULT_BITMAP_BLOCK_SIZE, 1, 8) {
            return Err(LayoutError::IndexedShape);
        }
        let super_sector = u64::from(index) * INDEXED_SLOT_SECTORS;
        require(params.md_size_sectors, super_sector + INDEXED_SLOT_SECTORS)?;
        Self::external(params, super_sector, INDEXED_SLOT_SECTORS)
    }

    /// Sectors that the bitmap area can cover, rounded down to whole 64 bit words of each slot as `drbdmeta` does.
    #[must_use]
    pub fn covered_sectors(&self) -> u64 {
        covered_sectors(self.bitmap_size_bytes, self.params.max_peers, self.params.bytes_per_bit)
    }

    /// Checks a read super block against this layout, as the driver does at attach. `own_node_id` is the
    /// configured id of this node.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn check(&self, super_block: &SuperBlock, own_node_id: u8) -> Result<(), LayoutMismatch> {
        if let Some(found) = super_block.node_id.filter(|&found| found != own_node_id) {
            return Err(LayoutMismatch::NodeId { found, own: own_node_id });
        }
        if super_block.slot_of(own_node_id).is_some() {
            return Err(LayoutMismatch::OwnBitmapSlot(own_node_id));
        }
        expect("bm_max_peers", super_block.bm_max_peers.into(), self.params.max_peers.into())?;
        self.check_fields(&FieldsOnDisk {
            md_size_sect: super_block.md_size_sect,
            al_offset: super_block.al_offset,
            bm_offset: super_block.bm_offset,
            bm_bytes_per_bit: super_block.bm_bytes_per_bit,
            al_stripes: super_block.al_stripes,
            al_stripe_size_4k: super_block.al_stripe_size_4k,
            effective_size_sectors: super_block.effective_size_sectors,
        })
    }

    /// Checks a read v08 super block against this layout.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn check_v08(&self, super_block: &SuperBlockV08) -> Result<(), LayoutMismatch> {
        expect("bm_max_peers", 1, self.params.max_peers.into())?;
        self.check_fields(&FieldsOnDisk {
            md_size_sect: super_block.md_size_sect,
            al_offset: super_block.al_offset,
            bm_offset: super_block.bm_offset,
            bm_bytes_per_bit: super_block.bm_bytes_per_bit,
            al_stripes: super_block.al_stripes,
            al_stripe_size_4k: super_block.al_stripe_size_4k,
            effective_size_sectors: super_block.effective_size_sectors,
        })
    }

    fn check_fields(&self, found: &FieldsOnDisk) -> Result<(), LayoutMismatch> {
        expect("bm_bytes_per_bit", found.bm_bytes_per_bit.into(), self.params.bytes_per_bit.into())?;
        expect("al_stripes", found.al_stripes.into(), self.params.al_stripes.into())?;
        expect("al_stripe_size_4k", found.al_stripe_size_4k.into(), self.params.al_stripe_size_4k.into())?;
        expect("al_offset", found.al_offset.into(), self.al_offset.into())?;
        expect("bm_offset", found.bm_offset.into(), self.bm_offset.into())?;
        expect("md_size_sect", found.md_size_sect.into(), self.md_size_sect.into())?;
        let effective_size_sectors = found.effective_size_sectors;
        let covered_sectors = self.covered_sectors();
        if effective_size_sectors > covered_sectors {
            return Err(LayoutMismatch::BitmapTooSmall { covered_sectors, effective_size_sectors });
        }
        if effective_size_sectors > self.usable_sectors {
            let usable_sectors = self.usable_sectors;
            return Err(LayoutMismatch::BackingTooSmall { usable_sectors, effective_size_sectors });
        }
        Ok(())
    }
}

/// The fields that both super block formats have and a layout determines.
struct FieldsOnDisk {
    md_size_sect: u32,
    al_offset: i32,
    bm_offset: i32,
    bm_bytes_per_bit: u32,
    al_stripes: u32,
    al_stripe_size_4k: u32,
    effective_size_sectors: u64,
}

/// Absolute sectors, before they become bytes and relative fields.
struct Fields {
    super_sector: u64,
    al_sector: u64,
    bm_sector: u64,
    bm_sectors: u64,
    md_sectors: u64,
}

impl Fields {
    fn into_layout(self, params: &LayoutParams, usable_sectors: u64) -> Result<Layout, LayoutError> {
        let too_large = || LayoutError::MetaDataTooLarge(self.md_sectors);
        let relative = |sector: u64| {
            let distance = i128::from(sector) - i128::from(self.super_sector);
            i32::try_from(distance).map_err(|_| too_large())
        };
        Ok(Layout {
            super_block_offset_bytes: self.super_sector * SECTOR_SIZE,
            al_offset_bytes: self.al_sector * SECTOR_SIZE,
            al_size_bytes: al_sectors(params) * SECTOR_SIZE,
            bitmap_offset_bytes: self.bm_sector * SECTOR_SIZE,
            bitmap_size_bytes: self.bm_sectors * SECTOR_SIZE,
            usable_sectors,
            md_size_sect: u32::try_from(self.md_sectors).map_err(|_| too_large())?,
            al_offset: relative(self.al_sector)?,
            bm_offset: relative(self.bm_sector)?,
            params: *params,
        })
    }
}

fn require(size_sectors: u64, needed_sectors: u64) -> Result<(), LayoutError> {
    if size_sectors < needed_sectors {
        return Err(LayoutError::TooSmall { size_sectors, needed_sectors });
    }
    Ok(())
}

fn expect(field: &'static str, found: i64, expected: i64) -> Result<(), LayoutMismatch> {
    if found != expected {
        return Err(LayoutMismatch::Field { field, found, expected });
    }
    Ok(())
}

fn al_sectors(params: &LayoutParams) -> u64 {
    u64::from(params.al_stripes) * u64::from(params.al_stripe_size_4k) * MD_BLOCK_SECTORS
}

/// Sectors of a bitmap with `max_peers` slots for a device of `size_sectors`.
#[must_use]
pub fn bitmap_sectors(size_sectors: u64, max_peers: u32, bytes_per_bit: u32) -> u64 {
    let bytes = slot_bytes(bits_for_sectors(size_sectors, bytes_per_bit)) * u64::from(max_peers);
    bytes.next_multiple_of(MD_BLOCK_SIZE as u64) / SECTOR_SIZE
}

/// Sectors of a device that a bitmap of this many bytes can cover.
fn covered_sectors(bitmap_bytes: u64, max_peers: u32, bytes_per_bit: u32) -> u64 {
    let words_per_slot = bitmap_bytes / u64::from(max_peers) / 8;
    words_per_slot * 64 * (u64::from(bytes_per_bit) / SECTOR_SIZE)
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
