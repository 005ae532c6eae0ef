//! Backing devices: how they are opened, and how the core's commands become operations of the ring.

mod device;
mod engine;
mod fault;
mod open;
mod sqe;
#[cfg(test)]
mod tests;

pub use device::{BackingPaths, Disk};
pub(crate) use engine::{DiskDone, DiskId, Disks, Owner};
pub use fault::{Fault, FaultKind};
pub use open::{DiskFile, Hints, OpenError};
