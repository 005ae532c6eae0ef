//! The composed floor: client, primary and secondary that do the IO of a replicated 4 KiB write
//! and nothing else.
//!
//! ```text
//! client --28 B + 4096 B--> primary --40 B + 4096 B--> secondary
//!                           pwrite                     pwrite
//!        <-----16 B-------  when both  <-----40 B----
//! ```
//!
//! A flush takes the same ways (28 B, 24 B, 24 B, 16 B) and is an `fdatasync` at both replicas.
//! Measuring the three together matters: the parts measured apart do not add up to what they cost
//! when they share processors and wake each other. Every process sleeps when it has nothing to
//! do; none spins.

mod client;
mod replica;
mod ring;
mod wire;

pub use client::{Limit, Load, client};
pub use replica::{primary, secondary};
