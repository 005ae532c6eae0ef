//! The rules, applied to this repository.

mod dependencies;
mod documents;
mod graph;
mod sources;

/// Fails with every complaint in one message.
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}
