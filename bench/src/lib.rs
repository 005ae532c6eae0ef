//! Measurements of Zea beside its peers and beside the composed floor.
//!
//! **Purpose.** A figure taken alone says more about the machine than about the program. This
//! crate runs everything to be compared in one run, interleaved, on the same kind of backing, and
//! reports medians and ratios: Zea (a pair of `zead`), `qemu-storage-daemon`'s quorum driver, and
//! the *composed floor*: two processes that do the I/O of a replicated write and nothing else. All have fio as client.
//!
//! **Owner thread.** Each floor process is one thread that owns one io_uring. The comparison is a
//! plain sequential program whose children are the systems under test.
//!
//! **Invariants.** Every figure printed was measured in this run. Every child is ended, by its
//! process id, and every temporary directory is removed, also after an error or an interrupt.
//!
//! **Reference.** `reference/performance.md`, "Peers that run on a bare Debian 12 machine".
#![deny(missing_docs)]

pub mod backing;
pub mod compare;
pub mod fio;
pub mod floor;
pub mod floor_pair;
pub mod memory;
pub mod process;
pub mod qemu_pair;
pub mod recorder_cost;
pub mod report;
pub mod resync;
pub mod sample;
pub mod zea_pair;
