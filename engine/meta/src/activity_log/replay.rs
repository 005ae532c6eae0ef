//! Replay of the activity log: which extents may have had writes in flight (reference section 6).

use thiserror::Error;

use super::{AL_FREE, AlError, AlTransaction, TransactionKind};
use crate::MD_BLOCK_SIZE;

/// What replay found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotSet {
    /// The extents in any slot of the table, in ascending order, each once.
    pub extents: Vec<u32>,
    /// The newest transaction, `None` if the ring is only initialised.
    pub newest_tr_number: Option<u32>,
    /// Blocks that were read as transactions.
    pub valid_blocks: usize,
    /// Blocks that were not: 0, or 1 after a torn write.
    pub torn_blocks: usize,
}

/// Why the hot set cannot be told. With PRIMARY_IND set, the disk cannot be attached then without a full sync;
/// without it, the ring may be initialised again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// No block is a transaction.
    #[error("no valid transaction in the activity log")]
    NoValidBlock,
    /// More blocks are broken than one torn write explains.
    #[error("{0} blocks of the activity log are broken, one torn write explains only one")]
    TooManyTorn(usize),
    /// A block is not torn, yet breaks a rule.
    #[error("block {block} of the activity log: {error}")]
    Malformed {
        /// Index of the block, as given to replay.
        block: usize,
        /// The rule.
        error: AlError,
    },
    /// Two transactions have the same number.
    #[error("activity log transaction number {0} is there twice")]
    DuplicateNumber(u32),
    /// The numbers of the transactions are not those of one pass over the ring.
    #[error("activity log transactions {oldest} to {newest} are not consecutive: {found} were found")]
    NotConsecutive {
        /// Lowest number.
        oldest: u32,
        /// Highest number.
        newest: u32,
        /// Number of transactions.
        found: usize,
    },
    /// An extent lies beyond the end of the device.
    #[error("activity log extent {extent_nr} is beyond the device, which has {device_extents}")]
    ExtentBeyondDevice {
        /// The extent.
        extent_nr: u32,
        /// Number of extents of the device.
        device_extents: u32,
    },
}

/// Replays a ring: all its blocks, in any order. `device_extents` is the number of 4 MiB extents of the device.
///
/// The driver writes one transaction after the other, so a crash can tear only the newest: in its place lay the oldest.
/// What is left is a run of consecutive numbers; anything else is damage of another kind, and then the table cannot be
/// trusted.
///
/// # Errors
/// [`ReplayError`] if the hot set cannot be told.
pub fn replay<'a>(
    blocks: impl IntoIterator<Item = &'a [u8; MD_BLOCK_SIZE]>,
    device_extents: u32,
) -> Result<HotSet, ReplayError> {
    let mut updates = Vec::new();
    let (mut valid_blocks, mut torn_blocks) = (0, 0);
    for (block, bytes) in blocks.into_iter().enumerate() {
        match AlTransaction::decode(bytes) {
            Ok(transaction) => {
                valid_blocks += 1;
                if transaction.kind == TransactionKind::Update {
                    updates.push(transaction);
                }
            }
            Err(error) if error.may_be_torn() => torn_blocks += 1,
            Err(error) => return Err(ReplayError::Malformed { block, error }),
        }
    }
    if valid_blocks == 0 {
        return Err(ReplayError::NoValidBlock);
    }
    if torn_blocks > 1 {
        return Err(ReplayError::TooManyTorn(torn_blocks));
    }
    sort_by_number(&mut updates)?;
    let extents = hot_extents(&updates, device_extents)?;
    let newest_tr_number = updates.last().map(|transaction| transaction.tr_number);
    Ok(HotSet { extents, newest_tr_number, valid_blocks, torn_blocks })
}

/// Sorts by transaction number, which wraps, and checks that the numbers are consecutive.
fn sort_by_number(updates: &mut [AlTransaction]) -> Result<(), ReplayError> {
    let Some(base) = updates.first().map(|transaction| transaction.tr_number) else {
        return Ok(());
    };
    let distance = |transaction: &AlTransaction| transaction.tr_number.wrapping_sub(base).cast_signed();
    updates.sort_by_key(distance);
    if let Some(pair) = updates.windows(2).find(|pair| pair[0].tr_number == pair[1].tr_number) {
        return Err(ReplayError::DuplicateNumber(pair[0].tr_number));
    }
    let (oldest, newest) = (&updates[0], &updates[updates.len() - 1]);
    let span = i64::from(distance(newest)) - i64::from(distance(oldest)) + 1;
    if usize::try_from(span) != Ok(updates.len()) {
        return Err(ReplayError::NotConsecutive {
            oldest: oldest.tr_number,
            newest: newest.tr_number,
            found: updates.len(),
        });
    }
    Ok(())
}

/// Fills the table from the oldest to the newest transaction and collects what is in it.
fn hot_extents(updates: &[AlTransaction], device_extents: u32) -> Result<Vec<u32>, ReplayError> {
    // The table may have changed its size while attached. What a larger one held stays in: too much is safe.
    let slots = updates.iter().map(|transaction| usize::from(transaction.context_size)).max().unwrap_or(0);
    let mut table = vec![AL_FREE; slots];
    for transaction in updates {
        // Decoding has checked that changes and a window that is not empty lie inside of the table.
        let window = table.iter_mut().skip(usize::from(transaction.context_start));
        for (slot, &extent_nr) in window.zip(&transaction.context) {
            *slot = extent_nr;
        }
        for update in &transaction.updates {
            table[usize::from(update.slot_nr)] = update.extent_nr;
        }
    }
    let mut extents: Vec<u32> = table.into_iter().filter(|&extent_nr| extent_nr != AL_FREE).collect();
    extents.sort_unstable();
    extents.dedup();
    match extents.last() {
        Some(&extent_nr) if extent_nr >= device_extents => {
            Err(ReplayError::ExtentBeyondDevice { extent_nr, device_extents })
        }
        _ => Ok(extents),
    }
}
