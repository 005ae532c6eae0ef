//! A lab of virtual machines: kernel DRBD as a peer, on one machine.
//!
//! **Purpose.** Boots Debian kernels in user mode (UML) in a network namespace of its own, runs scripts in them, runs
//! `zead` beside them, records what they say to each other, and compares their disks. A scenario is a function that is
//! handed a [`Lab`]; each is a test, and `zea-lab run NAME --keep` leaves its guests running with a console. A [`Vm`] is
//! another kind of guest: a machine of QEMU with an ordinary kernel, for block devices by ublk, in which two nodes run.
//!
//! **Owner thread.** Each lab belongs to the thread that made it: its processes are killed when that thread ends.
//! A thread per guest reads its console.
//!
//! **Invariants.**
//! * Every wait has a limit.
//! * Nothing is left behind, however a scenario or its process ends: processes die with the thread that started them,
//!   the network with the last process in it, and files with the [`Lab`] or, if that had no time, with the next one.
//! * Guests are started from Debian packages only.
//!
//! **Reference.** `testbed.md` (kernels, options of UML).
#![deny(missing_docs)]

mod cpio;
mod debian;
mod disk;
mod guest;
mod initramfs;
mod kernel;
mod lab;
mod namespace;
mod qemu;
mod recording;
pub mod scenarios;
mod slot;
mod tool;
mod vm;
mod zead;

pub use guest::Guest;
pub use lab::Lab;
pub use qemu::Linux;
pub use recording::{Packets, Said};
pub use vm::Vm;
pub use zead::Zead;

/// Why no lab can be set up on this machine, if so.
///
/// Commands and kernels that are missing, and rights.
#[must_use]
pub fn missing() -> Option<String> {
    let missing: Vec<&str> = TOOLS.into_iter().filter(|name| tool::find(name).is_none()).collect();
    if !missing.is_empty() {
        return Some(format!("no {} (tests/run installs what is needed)", missing.join(", ")));
    }
    let kernel = kernel::Kernel::find().err();
    kernel.or_else(|| namespace::Namespace::new().err()).map(|error| format!("{error:#}"))
}

/// Why no machine of QEMU can be set up on this machine, if so.
#[must_use]
pub fn missing_for_vm(linux: Linux) -> Option<String> {
    let missing: Vec<&str> = VM_TOOLS.into_iter().filter(|name| tool::find(name).is_none()).collect();
    if !missing.is_empty() {
        return Some(format!("no {} (tests/run installs what is needed)", missing.join(", ")));
    }
    qemu::Emulator::find(linux).err().map(|error| format!("{error:#}"))
}

/// What a machine of QEMU needs of this machine.
const VM_TOOLS: [&str; 16] = [
    "setpriv",
    "taskset",
    "timeout",
    "busybox",
    "dpkg-deb",
    "xz",
    "strip",
    "fio",
    "mkfs.ext4",
    "e2fsck",
    "mkfs.xfs",
    "xfs_repair",
    "dd",
    "blkdiscard",
    "fstrim",
    "blockdev",
];

/// What a lab needs of this machine.
const TOOLS: [&str; 10] =
    ["unshare", "nsenter", "setpriv", "taskset", "timeout", "ip", "tcpdump", "busybox", "drbdadm", "qemu-io"];
