//! An activity log transaction of the in-memory log as the block that goes to the disk.

use zea_meta::activity_log::{AlTransaction, AlUpdate, TransactionKind};

use crate::activity_log::Transaction;

/// Encode `tx` into `block`.
pub(crate) fn encode(tx: &Transaction, block: &mut [u8; 4096]) {
    AlTransaction {
        tr_number: tx.tr_number,
        kind: TransactionKind::Update,
        updates: tx.updates().iter().map(|u| AlUpdate { slot_nr: u.slot, extent_nr: u.extent }).collect(),
        context_size: tx.context_size,
        context_start: tx.context_start,
        context: tx.context().to_vec(),
    }
    .encode(block);
}
