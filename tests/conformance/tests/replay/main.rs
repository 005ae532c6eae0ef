//! Every recording, with Zea in the place of each of its nodes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use zea_conformance::compare::Difference;
use zea_conformance::recording::Recording;
use zea_conformance::replay::replay;
use zea_conformance::tables::{DEVIATIONS, EXPECTED_FAILURES, deviation, expected_failure};

/// Differences of one replay that are printed.
const SHOWN: usize = 12;

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings");
    let entries = std::fs::read_dir(root).expect("the recordings");
    let mut folders: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

/// What a replay shows, beside what is expected of it.
struct Outcome {
    label: String,
    complaint: Option<String>,
    deviations: BTreeSet<&'static str>,
}

fn play(recording: &Recording, node: &str) -> Outcome {
    let label = format!("{} {node}", recording.name);
    let differences = replay(recording, node, false).differences;
    let explained = |d: &Difference| deviation(&recording.name, d).map(|d| d.name);
    let deviations = differences.iter().filter_map(explained).collect();
    let unexplained: Vec<&Difference> = differences.iter().filter(|d| explained(d).is_none()).collect();
    let complaint = match (unexplained.is_empty(), expected_failure(&recording.name, node)) {
        (true, None) | (false, Some(_)) => None,
        (true, Some(expected)) => {
            Some(format!("passes, and is listed as an expected failure ({}): take it off the list", expected.why))
        }
        (false, None) => {
            let shown: Vec<String> = unexplained.iter().take(SHOWN).map(|d| format!("\n    {d}")).collect();
            Some(format!("{} differences:{}", unexplained.len(), shown.concat()))
        }
    };
    println!("{label}: {} differences, {} not explained", differences.len(), unexplained.len());
    Outcome { label, complaint, deviations }
}

#[test]
fn conformance_every_recording_from_every_side() {
    let mut complaints = Vec::new();
    let mut used = BTreeSet::new();
    let mut matched = BTreeSet::new();
    let mut passed = 0;
    for folder in folders() {
        let recording = Recording::read(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for node in recording.nodes.keys() {
            let outcome = play(&recording, node);
            used.extend(outcome.deviations);
            match expected_failure(&recording.name, node) {
                Some(expected) => {
                    matched.insert((expected.recording, expected.node));
                }
                None => passed += usize::from(outcome.complaint.is_none()),
            }
            complaints.extend(outcome.complaint.map(|c| format!("{}: {c}", outcome.label)));
        }
    }
    println!("{passed} replays pass");
    let idle = DEVIATIONS.iter().filter(|d| !used.contains(d.name));
    complaints.extend(idle.map(|d| format!("no recording shows the deviation \"{}\" any more", d.name)));
    let vain = EXPECTED_FAILURES.iter().filter(|e| !matched.contains(&(e.recording, e.node)));
    complaints.extend(vain.map(|e| format!("no recording is {} {}", e.recording, e.node)));
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The tables of the page for people are those of the code.
#[test]
fn conformance_the_page_lists_deviations_and_expected_failures() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/conformance.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let deviations = DEVIATIONS.iter().map(|d| format!("| {} | {} |", d.name, d.why));
    let failures = EXPECTED_FAILURES.iter().map(|e| {
        let node = if e.node.is_empty() { "all" } else { e.node };
        format!("| {} | {node} | {} |", e.recording, e.why)
    });
    let rows: Vec<String> = deviations.chain(failures).collect();
    let missing: Vec<&str> = rows.iter().map(String::as_str).filter(|row| !page.lines().any(|l| l == *row)).collect();
    assert!(missing.is_empty(), "lines that the page does not have:\n{}", missing.join("\n"));
}
