//! (being written)
#![deny(missing_docs)]

pub mod limits;
pub mod pool;
pub mod ring;
