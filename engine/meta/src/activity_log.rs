//! The activity log on disk: transactions, their place in the ring, and replay (reference section 6).
//!
//! The activity log tells which 4 MiB extents may have writes in flight. It is a table of slots, kept on disk as a
//! ring of transactions, each with up to 64 changes of slots and a window of 919 slots of the table as it was, so that
//! the whole table is repeated before the ring overwrites what it needs.

use thiserror::Error;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::MD_BLOCK_SIZE;

/// Magic of a transaction.
pub const AL_MAGIC: u32 = 0x69cb_65a2;
/// Magic of an activity log in persistent memory, which is a plain table and not supported here.
pub const AL_PMEM_MAGIC: u32 = 0x6aa6_67a6;
/// Most changes in one transaction.
pub const AL_UPDATES_MAX: usize = 64;
/// Slots of the table in one transaction's window.
pub const AL_CONTEXT_MAX: usize = 919;
/// Extent number of a free slot.
pub const AL_FREE: u32 = u32::MAX;
/// Most slots of the table, however large the ring.
pub const AL_EXTENTS_MAX: u32 = 65_534;
/// Slot number of an unused change.
const SLOT_UNUSED: u16 = u16::MAX;
const TYPE_UPDATE: u16 = 0;
const TYPE_INITIALIZED: u16 = 0xffff;
/// Where the checksum lies in a transaction.
const CRC_RANGE: std::ops::Range<usize> = 8..12;

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionKind {
    /// Changes, or only a window of the table.
    Update,
    /// Fills a ring that was just made or just applied; says nothing of any slot.
    Initialized,
}

/// A slot that holds another extent than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlUpdate {
    /// The slot.
    pub slot_nr: u16,
    /// The extent that it holds now, [`AL_FREE`] for none.
    pub extent_nr: u32,
}

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlTransaction {
    /// Its number; the next one's is one higher, wrapping.
    pub tr_number: u32,
    /// What it is for.
    pub kind: TransactionKind,
    /// Up to 64 changes.
    pub updates: Vec<AlUpdate>,
    /// Number of slots of the table.
    pub context_size: u16,
    /// First slot of the window. Once after the table was made smaller it may lie beyond it.
    pub context_start: u16,
    /// The extents in the slots of the window, [`AL_FREE`] for none: up to 919, and not beyond `context_size`.
    pub context: Vec<u32>,
}

/// Why a block is no transaction.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AlError {
    /// Not exactly 4096 bytes were given.
    #[error("an activity log transaction has 4096 bytes, not {0}")]
    Length(usize),
    /// The magic is another one.
    #[error("activity log magic is {0:#010x}")]
    Magic(u32),
    /// The activity log is one for persistent memory.
    #[error("the activity log is in the format for persistent memory, which is not supported")]
    PersistentMemory,
    /// The checksum is wrong: a torn write.
    #[error("activity log checksum is {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// What the block says.
        found: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The checksum is right, but the type is unknown.
    #[error("activity log transaction type {0:#06x} is unknown")]
    Kind(u16),
    /// The checksum is right, but there are more than 64 changes.
    #[error("activity log transaction has {0} updates")]
    UpdateCount(u16),
    /// The checksum is right, but a change is of a slot that the table does not have.
    #[error("activity log update of slot {slot_nr}, the table has {context_size}")]
    UpdateSlot {
        /// The slot.
        slot_nr: u16,
        /// Number of slots.
        context_size: u16,
    },
    /// The checksum is right, but an entry that should be unused is not.
    #[error("unused entry {0} of an activity log transaction is not empty")]
    UnusedEntry(usize),
}

impl AlError {
    /// Whether a write that was cut short explains this: such a block is left out by replay, once.
    #[must_use]
    pub fn may_be_torn(&self) -> bool {
        matches!(self, Self::Magic(_) | Self::Checksum { .. })
    }
}

/// A transaction on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OnDisk {
    magic: U32,
    tr_number: U32,
    crc32c: U32,
    transaction_type: U16,
    n_updates: U16,
    context_size: U16,
    context_start_slot_nr: U16,
    reserved: [U32; 4],
    update_slot_nr: [U16; AL_UPDATES_MAX],
    update_extent_nr: [U32; AL_UPDATES_MAX],
    context: [U32; AL_CONTEXT_MAX],
}

const _: () = assert!(size_of::<OnDisk>() == MD_BLOCK_SIZE);
const _: () = assert!(std::mem::offset_of!(OnDisk, crc32c) == CRC_RANGE.start);

/// CRC-32C as DRBD uses it here: initial value 0, no inversion at the end. The crate inverts both, which is undone.
fn crc32c_raw(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The checksum of a transaction: over all 4096 bytes, with the checksum field taken as zero.
pub(crate) fn block_crc(block: &[u8; MD_BLOCK_SIZE]) -> u32 {
    let crc = crc32c_raw(0, &block[..CRC_RANGE.start]);
    let crc = crc32c_raw(crc, &[0; 4]);
    crc32c_raw(crc, &block[CRC_RANGE.end..])
}

/// The block that fills a ring which was just made or just applied.
#[must_use]
pub fn initialized_block() -> [u8; MD_BLOCK_SIZE] {
    let mut block = [0; MD_BLOCK_SIZE];
    AlTransaction::initialized(0).encode(&mut block);
    block
}

impl AlTransaction {
    /// A transaction that says nothing of any slot.
    #[must_use]
    pub fn initialized(tr_number: u32) -> Self {
        Self {
            tr_number,
            kind: TransactionKind::Initialized,
            updates: Vec::new(),
            context_size: 0,
            context_start: 0,
            context: Vec::new(),
        }
    }

    /// Writes the transaction with its checksum. Allocates nothing.
    ///
    /// # Panics
    /// If it breaks a rule that [`AlTransaction::decode`] checks.
    pub fn encode(&self, out: &mut [u8; MD_BLOCK_SIZE]) {
        self.assert_well_formed();
        out.fill(0);
        let raw = OnDisk::mut_from_bytes(out).expect("a transaction has the size of a block");
        raw.magic = AL_MAGIC.into();
        raw.tr_number = self.tr_number.into();
        match self.kind {
            TransactionKind::Initialized => raw.transaction_type = TYPE_INITIALIZED.into(),
            TransactionKind::Update => self.encode_update(raw),
        }
        let crc = block_crc(out);
        out[CRC_RANGE].copy_from_slice(&crc.to_be_bytes());
    }

    fn encode_update(&self, raw: &mut OnDisk) {
        raw.transaction_type = TYPE_UPDATE.into();
        raw.n_updates = u16::try_from(self.updates.len()).expect("at most 64 updates").into();
        raw.context_size = self.context_size.into();
        raw.context_start_slot_nr = self.context_start.into();
        raw.update_slot_nr.fill(SLOT_UNUSED.into());
        raw.update_extent_nr.fill(AL_FREE.into());
        raw.context.fill(AL_FREE.into());
        let entries = raw.update_slot_nr.iter_mut().zip(&mut raw.update_extent_nr);
        for ((slot_nr, extent_nr), update) in entries.zip(&self.updates) {
            *slot_nr = update.slot_nr.into();
            *extent_nr = update.extent_nr.into();
        }
        for (entry, extent_nr) in raw.context.iter_mut().zip(&self.context) {
            *entry = (*extent_nr).into();
        }
    }

    fn assert_well_formed(&self) {
        if self.kind == TransactionKind::Initialized {
            let empty = self.updates.is_empty() && self.context.is_empty();
            assert!(empty && self.context_size == 0 && self.context_start == 0, "an initialised block has no content");
            return;
        }
        let window = window_len(self.context_start, self.context_size);
        assert!(self.updates.len() <= AL_UPDATES_MAX, "{} updates", self.updates.len());
        assert!(self.context.len() == window, "window of {} slots instead of {window}", self.context.len());
        assert!(self.updates.iter().all(|update| update.slot_nr < self.context_size), "update outside of the table");
    }

    /// Reads a transaction.
    ///
    /// # Errors
    /// [`AlError`]; see [`AlError::may_be_torn`].
    pub fn decode(block: &[u8]) -> Result<Self, AlError> {
        let bytes: &[u8; MD_BLOCK_SIZE] = block.try_into().map_err(|_| AlError::Length(block.len()))?;
        let raw = OnDisk::ref_from_bytes(bytes).map_err(|_| AlError::Length(block.len()))?;
        match raw.magic.get() {
            AL_MAGIC => {}
            AL_PMEM_MAGIC => return Err(AlError::PersistentMemory),
            other => return Err(AlError::Magic(other)),
        }
        let (found, computed) = (raw.crc32c.get(), block_crc(bytes));
        if found != computed {
            return Err(AlError::Checksum { found, computed });
        }
        match raw.transaction_type.get() {
            TYPE_UPDATE => Self::decode_update(raw),
            TYPE_INITIALIZED => Ok(Self::initialized(raw.tr_number.get())),
            other => Err(AlError::Kind(other)),
        }
    }

    fn decode_update(raw: &OnDisk) -> Result<Self, AlError> {
        let (context_size, context_start) = (raw.context_size.get(), raw.context_start_slot_nr.get());
        let n_updates = usize::from(raw.n_updates.get());
        if n_updates > AL_UPDATES_MAX {
            return Err(AlError::UpdateCount(raw.n_updates.get()));
        }
        let mut updates = Vec::with_capacity(n_updates);
        for (i, (slot_nr, extent_nr)) in raw.update_slot_nr.iter().zip(&raw.update_extent_nr).enumerate() {
            let update = AlUpdate { slot_nr: slot_nr.get(), extent_nr: extent_nr.get() };
            if i < n_updates {
                if update.slot_nr >= context_size {
                    return Err(AlError::UpdateSlot { slot_nr: update.slot_nr, context_size });
                }
                updates.push(update);
            } else if update.slot_nr != SLOT_UNUSED {
                return Err(AlError::UnusedEntry(i));
            }
        }
        let (context, unused) = raw.context.split_at(window_len(context_start, context_size));
        if let Some(i) = unused.iter().position(|entry| entry.get() != AL_FREE) {
            return Err(AlError::UnusedEntry(context.len() + i));
        }
        let context = context.iter().map(|entry| entry.get()).collect();
        let tr_number = raw.tr_number.get();
        Ok(Self { tr_number, kind: TransactionKind::Update, updates, context_size, context_start, context })
    }
}

/// Slots in the window that begins at `context_start`.
#[must_use]
pub fn window_len(context_start: u16, context_size: u16) -> usize {
    usize::from(context_size.saturating_sub(context_start)).min(AL_CONTEXT_MAX)
}

/// First slot of the window of the transaction after one whose window began at `context_start`.
#[must_use]
pub fn next_context_start(context_start: u16, context_size: u16) -> u16 {
    let next = usize::from(context_start) + AL_CONTEXT_MAX;
    u16::try_from(next).ok().filter(|&next| next < context_size).unwrap_or(0)
}

/// The block of the ring, from the start of the activity log, that a transaction goes to.
///
/// # Panics
/// If the ring is empty or has more blocks than 32 bits can count.
#[must_use]
pub fn slot_block(tr_number: u32, stripes: u32, stripe_size_4k: u32) -> u32 {
    let blocks = stripes.checked_mul(stripe_size_4k).expect("a ring is at most 16 MiB");
    assert!(blocks > 0, "a ring has blocks");
    let slot = tr_number % blocks;
    (slot % stripes) * stripe_size_4k + slot / stripes
}

/// Most slots of the table that a ring can keep: the whole table must be repeated in all but one of its blocks.
#[must_use]
pub fn max_extents(stripes: u32, stripe_size_4k: u32) -> u32 {
    let blocks = u64::from(stripes) * u64::from(stripe_size_4k);
    let slots = blocks.saturating_sub(1).saturating_mul(AL_CONTEXT_MAX as u64);
    u32::try_from(slots).map_or(AL_EXTENTS_MAX, |slots| slots.min(AL_EXTENTS_MAX))
}

mod replay;
pub use replay::{HotSet, ReplayError, replay};

#[cfg(test)]
mod tests;
