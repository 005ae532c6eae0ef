//! What an operation of the ring belongs to.

/// Routes a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// Somebody wrote to the mailbox.
    Wake,
    /// An operation of [`crate::disk::Disks`].
    Disk(u32),
}
