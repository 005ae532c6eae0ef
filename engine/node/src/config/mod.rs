//! Resource files: the text form of a resource's configuration.
//!
//! [`model`] is what a file says, [`check`] what it has to fulfil, [`load`] text to model with errors that name line,
//! column and fix. The format is described in `docs/reference/resource-file.md`.

pub mod check;
pub mod diagnostic;
pub mod load;
pub mod model;
pub mod quorum;
mod resync;
pub mod units;

pub use check::{Check, Problem};
pub use diagnostic::Diagnostic;
pub use load::parse;
pub use model::{AfterSb0, AfterSb1, Algorithm, DigestName, Disk, MetaDisk, Net, Peer, Protocol, ResourceFile, Volume};
pub use quorum::Options;
pub use units::{Address, Size};
