//! The files of the repository.

use std::path::{Path, PathBuf};

/// What was built or recorded, or belongs to other programs; `.git` may be a folder or a file.
const SKIPPED: [&str; 4] = ["target", ".git", "corpus", "artifacts"];

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the folder of the workspace")
}

/// Every file of the repository, as a path from its root, in order.
///
/// # Panics
/// A folder cannot be read.
#[must_use]
pub fn files() -> Vec<PathBuf> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the repository") {
            let entry = entry.expect("an entry of it");
            let kind = entry.file_type().expect("its type");
            let name = entry.file_name();
            if SKIPPED.iter().any(|skipped| name == *skipped) {
                continue;
            }
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                let path = path.strip_prefix(&root).expect("below the root");
                found.push(path.to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The files with this extension.
#[must_use]
pub fn files_with_extension(extension: &str) -> Vec<PathBuf> {
    let mut files = files();
    files.retain(|path| path.extension().is_some_and(|e| e == extension));
    files
}

/// The text of a file named from the root; `None` if it is not text, or gone by now.
#[must_use]
pub fn read(path: &Path) -> Option<String> {
    std::fs::read(root().join(path)).ok().and_then(|bytes| String::from_utf8(bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tidy_tree_finds_sources_and_hidden_files_but_nothing_that_was_built() {
        let files = files();
        for path in ["Cargo.toml", ".ci/run", "tests/run", "tests/tidy/src/tree.rs"] {
            assert!(files.iter().any(|f| f == Path::new(path)), "{path}");
        }
        assert!(files.iter().all(|f| !f.starts_with(".git") && !f.starts_with("target")));
        assert!(read(Path::new("LICENSE")).is_some());
        assert_eq!(read(Path::new("no such file")), None);
    }
}
