//! (being written)
#![deny(missing_docs)]

pub mod disk;
pub mod limits;
pub mod pool;
pub mod ring;
mod stream;
mod token;
