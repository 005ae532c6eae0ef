//! Rules about documents and what starts the tests.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zea_tidy::markdown::{first_block, relative_links};
use zea_tidy::tree;

use crate::assert_none;

fn text(path: &str) -> String {
    tree::read(Path::new(path)).unwrap_or_else(|| panic!("{path} cannot be read"))
}

/// The commands that the README promises: the demo and the tests.
fn readme_commands() -> Vec<String> {
    let readme = text("README.md");
    let block = first_block(&readme, "sh").expect("README.md has an sh block");
    block.into_iter().map(str::to_owned).collect()
}

#[test]
fn tidy_readme_begins_with_the_demo_and_the_tests() {
    let commands = readme_commands();
    assert_eq!(commands.len(), 2, "{commands:?}");
    // Its options are added at its end.
    assert_eq!(commands[0], "cargo run --release -p zea-demo --");
    assert_eq!(commands[1], "./tests/run");
}

#[test]
fn tidy_ci_runs_the_tests_of_the_readme_and_nothing_else() {
    let script = text(".ci/run");
    let commands: Vec<&str> = script.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let run = format!("exec {}", readme_commands()[1]);
    let expected = ["set -euo pipefail", "cd \"$(dirname \"${BASH_SOURCE[0]}\")/..\"", "export CI=true", run.as_str()];
    assert_eq!(commands, expected);
}

#[test]
fn tidy_scripts_can_be_run() {
    for script in [".ci/run", "tests/run"] {
        let meta = std::fs::metadata(tree::root().join(script)).expect(script);
        assert_eq!(meta.permissions().mode() & 0o111, 0o111, "{script}");
        assert!(text(script).starts_with("#!/usr/bin/env bash\n"), "{script}");
    }
}

#[test]
fn tidy_links_between_documents_lead_somewhere() {
    let mut complaints = Vec::new();
    for path in tree::files_with_extension("md") {
        let text = tree::read(&path).unwrap_or_default();
        let folder = path.parent().unwrap_or(Path::new(""));
        for (line, target) in relative_links(&text) {
            if !tree::root().join(folder).join(target).exists() {
                complaints.push(format!("{}:{line}: {target}", path.display()));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn tidy_licence_is_there() {
    let licence = text("LICENSE");
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0, January 2004"));
}

#[test]
fn tidy_documents_of_a_project_are_there() {
    for path in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/ARCHITECTURE.md"] {
        assert!(text(path).starts_with("# "), "{path} has no title");
    }
}

/// Words in inline code, with line numbers from 1.
fn code_words(text: &str) -> Vec<(usize, &str)> {
    let lines = text.lines().enumerate();
    lines.flat_map(|(i, line)| line.split('`').skip(1).step_by(2).map(move |w| (i + 1, w))).collect()
}

#[test]
fn tidy_architecture_names_real_files_and_tests() {
    let map = text("docs/ARCHITECTURE.md");
    let files = tree::files();
    let sources: Vec<String> = tree::files_with_extension("rs").iter().filter_map(|path| tree::read(path)).collect();
    let areas = ["sim_", "recorder_", "uuid_", "nbd_", "control_", "node_", "badinput_", "tidy_", "ring_", "pool_"];
    let mut seen = 0;
    let mut complaints = Vec::new();
    for (line, word) in code_words(&map) {
        let is_test = word.matches('_').count() > 1 && areas.iter().any(|a| word.starts_with(a));
        let found = if word.ends_with(".rs") {
            files.iter().any(|path| path.ends_with(word))
        } else if is_test {
            let declaration = format!("fn {word}()");
            sources.iter().any(|source| source.contains(&declaration))
        } else {
            continue;
        };
        seen += 1;
        if !found {
            complaints.push(format!("docs/ARCHITECTURE.md:{line}: {word}"));
        }
    }
    assert!(seen > 20, "the map names files and tests");
    assert_none(&complaints);
}
