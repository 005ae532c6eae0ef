//! Rules about this repository that no compiler checks, as plain tests (`cargo test -p zea-tidy`).
//!
//! **Purpose.** Licences and number of dependencies, layers of crates, what sans-IO crates must not touch, where `unsafe`
//! may be, sizes of files, documents whose links and commands are real. The library has the checkers, each of which takes
//! text and says what is wrong with it, and is tested with text that is wrong; `tests/tidy` applies them to the repository.
//!
//! **Owner thread.** None: pure functions, except for [`tree`], which reads files.
//!
//! **Invariants.**
//! * A rule has one place: here, or in a lint of the workspace, not in both.
//! * A checker looks at code without comments and strings ([`source`]) where words in these do not count.
//!
//! **Reference.** `design.md` sections 1, 2 and 7.

#![deny(missing_docs)]

pub mod licence;
pub mod markdown;
pub mod rules;
pub mod source;
pub mod tree;
