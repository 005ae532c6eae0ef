//! The composed floor: primary and secondary that do the IO of a replicated 4 KiB write and nothing else, for the
//! client that Zea and qemu have, too.
//!
//! ```text
//! fio --28 B + 4096 B--> primary --40 B + 4096 B--> secondary
//!                        pwrite                     pwrite
//!     <-----20 B-------  when both  <-----40 B----
//! ```
//!
//! A flush takes the same ways (28 B, 24 B, 24 B, 20 B) and is an `fdatasync` at both replicas. What comes from the
//! client is read, and answered, by `zea-nbd`, as in Zea: 20 B are a structured reply, which libnbd asks for.
//! Measuring all together matters: the parts measured apart do not add up to what they cost
//! when they share processors and wake each other. Every process sleeps when it has nothing to
//! do; none spins.

mod device;
mod export;
mod primary;
mod ring;
mod secondary;
mod wire;

pub use primary::primary;
pub use secondary::secondary;
