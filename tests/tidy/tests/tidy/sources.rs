//! Rules about source files.

use std::path::{Path, PathBuf};

use zea_tidy::source::is_test_file;
use zea_tidy::{rules, tree};

use crate::assert_none;

/// Crates that do nothing but compute: the same input gives the same output.
const DETERMINISTIC: [&str; 4] = ["transport/wire/src", "engine/meta/src", "engine/core/src", "frontend-ublk/nbd/src"];

/// Crates that hand memory to the kernel.
const UNSAFE: [&str; 3] = ["engine/shard", "frontend-ublk/ublk", "bench"];

fn below(path: &Path, folders: &[&str]) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

/// Applies a rule to each of these files.
fn check(files: impl IntoIterator<Item = PathBuf>, rule: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut looked_at = 0;
    let mut complaints = Vec::new();
    for path in files {
        let Some(text) = tree::read(&path) else {
            continue;
        };
        looked_at += 1;
        let found = rule(&text);
        complaints.extend(found.iter().map(|c| format!("{}:{c}", path.display())));
    }
    assert!(looked_at > 0, "no file was looked at");
    complaints
}

fn rust_files(wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut files = tree::files_with_extension("rs");
    files.retain(|path| wanted(path));
    files
}

#[test]
fn tidy_nothing_is_unfinished_or_foreign() {
    let generated = |path: &Path| path == Path::new("Cargo.lock") || path == Path::new("LICENSE");
    let files = tree::files().into_iter().filter(|path| !generated(path));
    assert_none(&check(files, rules::words));
}

#[test]
fn tidy_nothing_is_silenced() {
    assert_none(&check(rust_files(|_| true), rules::hidden));
}

#[test]
fn tidy_no_source_file_is_too_long() {
    let in_src = |path: &Path| path.components().any(|c| c.as_os_str() == "src");
    assert_none(&check(rust_files(in_src), rules::length));
}

#[test]
fn tidy_deterministic_crates_use_no_clock_thread_or_io() {
    let wanted = |path: &Path| below(path, &DETERMINISTIC) && !is_test_file(path);
    assert_none(&check(rust_files(wanted), rules::io));
}

#[test]
fn tidy_unsafe_is_only_where_memory_goes_to_the_kernel() {
    let wanted = |path: &Path| !below(path, &UNSAFE);
    assert_none(&check(rust_files(wanted), rules::any_unsafe));
}

#[test]
fn tidy_unsafe_says_why_it_is_sound() {
    let wanted = |path: &Path| below(path, &UNSAFE);
    assert_none(&check(rust_files(wanted), rules::unsafe_without_note));
}

#[test]
fn tidy_crates_say_what_they_are_for() {
    let wanted = |path: &Path| path.ends_with("src/lib.rs");
    assert_none(&check(rust_files(wanted), rules::crate_header));
}

#[test]
fn tidy_crates_keep_the_lints_of_the_workspace() {
    let manifest = |path: &PathBuf| path.file_name().is_some_and(|n| n == "Cargo.toml");
    let fuzz = |path: &PathBuf| path.parent().is_some_and(|p| p.ends_with("fuzz"));
    let crates = tree::files().into_iter().filter(|p| manifest(p) && !fuzz(p) && p != Path::new("Cargo.toml"));
    let complaints = check(crates, |text| {
        let inherits = text.contains("\n[lints]\nworkspace = true\n");
        let own =
            text.contains("\nunsafe_code = \"deny\"\n") && text.contains("\nundocumented_unsafe_blocks = \"deny\"\n");
        if inherits || own { Vec::new() } else { vec!["1: no lints".to_owned()] }
    });
    assert_none(&complaints);
}
