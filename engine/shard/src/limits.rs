//! Every bound of the runtime in one place.

/// Entries of the submission queue.
pub const SQ_ENTRIES: u32 = 1024;
/// Entries of the completion queue, and so the most operations in the kernel at once; what is beyond waits in the ring's backlog.
pub const CQ_ENTRIES: u32 = 8192;
/// Largest pool in bytes.
pub const MAX_POOL_BYTES: u64 = 4 << 30;
/// Messages in a shard's mailbox.
pub const MAILBOX_MESSAGES: usize = 1024;
/// Messages taken from the mailbox in one turn, so that a flood of them cannot starve I/O.
pub const MAILBOX_BATCH: usize = 64;
