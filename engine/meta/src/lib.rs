//! DRBD's meta data on disk: super block, activity log, bitmap, and where they lie.
//!
//! * Purpose: encode and decode the formats v08 (DRBD 8.0 to 8.4) and v09 (DRBD 9), so that a disk can move between
//!   the kernel driver, `drbdmeta` and Zea without a resync.
//! * Owner thread: none. Every item is plain data or a pure function; whoever holds a buffer may call it.
//! * Invariants: no IO, no clock, no threads, no randomness. Bytes read from a disk never panic, they give a named
//!   error. All meta data IO is done by the caller in units of [`MD_BLOCK_SIZE`]. Integers on disk are big endian,
//!   except for the bitmap, which is little endian.
//! * Reference: `drbd/ondisk-metadata.md`, all sections; each module names its own.

#![deny(missing_docs)]

pub mod activity_log;
pub mod bitmap;
pub mod convert_v08;
pub mod create;
pub mod flags;
pub mod foreign;
pub mod fuzz;
pub mod placement;
pub mod superblock;
pub mod superblock_v08;
pub mod uuid;

pub use activity_log::{AlTransaction, AlUpdate, HotSet, ReplayError, TransactionKind, replay};
pub use bitmap::BitmapGeometry;
pub use create::{CreateParams, MdWrite, WriteContent};
pub use flags::{DeviceFlags, PeerFlags, V08Flags};
pub use placement::{Layout, LayoutError, LayoutMismatch, LayoutParams, Placement};
pub use superblock::{Format, MetaError, PeerMd, SlotError, SuperBlock, detect};
pub use superblock_v08::SuperBlockV08;
pub use uuid::UuidSet;

/// Bytes in a sector, the unit of the size and offset fields of a super block.
pub const SECTOR_SIZE: u64 = 512;
/// Bytes in one unit of meta data IO; also the size of a super block and of an activity log transaction.
pub const MD_BLOCK_SIZE: usize = 4096;
/// Sectors in one unit of meta data IO.
pub const MD_BLOCK_SECTORS: u64 = 8;
/// Bytes of the device that one activity log extent covers.
pub const AL_EXTENT_SIZE: u64 = 4 << 20;
/// Entries of the peer array of a v09 super block; node ids are below this.
pub const PEER_ARRAY_LEN: usize = 32;
/// Most bitmap slots of a v09 super block.
pub const MAX_PEERS: u32 = 31;
/// Entries of the history of a v09 super block.
pub const HISTORY_UUIDS: usize = 32;
/// Bytes of the device for each bitmap bit, unless chosen otherwise; v08 knows only this.
pub const DEFAULT_BITMAP_BLOCK_SIZE: u32 = 4096;
/// Largest number of bytes for each bitmap bit.
pub const MAX_BITMAP_BLOCK_SIZE: u32 = 1 << 20;
/// The current UUID of meta data that was just created.
pub const UUID_JUST_CREATED: u64 = 4;
/// Activity log extents that `drbdmeta create-md` notes in the super block.
pub const CREATE_MD_AL_EXTENTS: u32 = 257;
