//! ublk: block devices whose requests are served in userspace.
//!
//! **Purpose.** Makes, starts, stops and removes `/dev/ublkbN` over `/dev/ublk-control`, and gives what serves a device's
//! queue its words: commands, descriptors, where a request's data is. The queue's commands themselves go through the ring
//! of whoever serves it.
//!
//! **Owner thread.** [`Control`] belongs to a thread that may block: starting a device waits until its queue is served and
//! until the kernel has read the partition table through it, stopping waits for requests under way. A [`Queue`] belongs to
//! the thread that serves it.
//!
//! **Order of use.** [`Control::add`], [`Control::set_params`], [`Queue::open`], a [`fetch`] for each tag, [`Control::start`];
//! then each completion of a tag is a request, answered by [`commit`]. The end: [`Control::stop`], every tag completes with
//! [`ABORTED`], the queue is dropped, [`Control::delete`]. The queue of a daemon that died is taken over between
//! [`Control::start_recovery`] and [`Control::end_recovery`].
//!
//! **Invariants.**
//! * Memory that a command names lives until its completion: such commands are waited for without a limit, because the
//!   kernel answers them at once; commands that may take long name none.
//! * Data is copied by [`Queue`]'s descriptor at the offset of its tag ([`data_offset`]): the kernel holds no address of ours.
//!
//! **Reference.** `include/uapi/linux/ublk_cmd.h` of Linux 6.12 and 7.3, `Documentation/block/ublk.rst`.

#![deny(missing_docs)]

mod control;
mod error;
mod features;
mod params;
mod queue;
mod uapi;

pub use control::{Control, Disk, Info, NewDevice, State};
pub use error::UblkError;
pub use features::Features;
pub use params::{Limits, MIN_IO_BYTES};
pub use queue::{ABORTED, Command, Operation, Queue, Request, commit, data_offset, fetch};
pub use uapi::MAX_DEPTH;

/// The block device of a device number.
#[must_use]
pub fn block_path(id: u32) -> std::path::PathBuf {
    format!("/dev/ublkb{id}").into()
}
