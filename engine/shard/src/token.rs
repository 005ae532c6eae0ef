//! What an operation of the ring belongs to.

use zea_wire::packet::Stream;

/// Routes a completion. The numbers are slots of the owner's slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// Somebody rang the mailbox.
    Wake,
    /// An operation of [`crate::disk::Disks`].
    Disk(u32),
    /// A receive of a link.
    LinkReceive { link: u32, stream: Stream },
    /// A send of a link.
    LinkSend { link: u32, stream: Stream },
    /// A listener got a connection.
    Accept(u32),
    /// An operation of a front end.
    Front { slot: u32, op: FrontOp },
}

/// An operation of a front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrontOp {
    Receive,
    Send,
    /// The command of a block device's tag.
    Tag(u16),
}
