//! A deterministic simulator of whole clusters: two to eight sans-IO cores with simulated disks, links and front ends in
//! virtual time, and the checkers that watch them.
//!
//! * Purpose: find the orders of events in which the core loses, mixes up or forgets data, and pin each of them down as a
//!   seed or a scenario.
//! * Owner thread: the caller's; a world has no threads, no wall clock, no order that depends on addresses or hashes.
//! * Invariants: the same seed gives the same trace hash. Faults stay inside the declared model (`disk.rs`, `net.rs`,
//!   `faults.rs`); what is checked is declared in `model.rs` and `checks.rs`.
//! * Reference: `design.md` sections 2 and 6, `drbd/test-catalogue.md`.

mod actions;
pub mod checks;
pub mod codec;
pub mod coverage;
pub mod disk;
pub mod driver;
pub mod faults;
pub mod model;
pub mod net;
pub mod node;
pub mod plan;
pub mod pool;
pub mod random;
pub mod report;
pub mod rng;
pub mod runner;
pub mod scenario;
pub mod trace;
pub mod verbs;
pub mod workload;
pub mod world;
