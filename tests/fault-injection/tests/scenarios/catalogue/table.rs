//! The page that lists every scenario says the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Sections of the catalogue with the number of their scenarios.
const SECTIONS: [(char, u32); 13] = [
    ('H', 25),
    ('R', 32),
    ('A', 10),
    ('S', 14),
    ('Q', 16),
    ('Z', 9),
    ('V', 6),
    ('F', 15),
    ('M', 11),
    ('D', 7),
    ('I', 8),
    ('T', 8),
    ('P', 7),
];

/// Names of the test functions below a folder. Those of the lab are public: they are run by hand, too.
fn tests_below(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in
        std::fs::read_dir(dir).expect("a folder of the repository").map(|entry| entry.expect("an entry").path())
    {
        let name = entry.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if entry.is_dir() && !name.starts_with('.') && name != "target" {
            tests_below(&entry, names);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&entry).expect("a source file");
            let lines = text.lines().map(|line| line.trim().trim_start_matches("pub "));
            let functions = lines.filter_map(|line| line.strip_prefix("fn ")?.split_once("("));
            names.extend(functions.map(|(name, _)| name.to_owned()));
        }
    }
}

/// The id in the name of a scenario: `sim_h12_…` is of H12.
fn id_of(test: &str) -> Option<String> {
    let id = test.strip_prefix("sim_")?.split('_').next()?;
    let (section, number) = id.split_at_checked(1)?;
    section.chars().all(|c| c.is_ascii_alphabetic()).then_some(())?;
    number.parse::<u32>().ok()?;
    Some(format!("{}{number}", section.to_uppercase()))
}

/// Every id has one row; every test that a row names exists; a row without one says what is open or what it waits for; every
/// scenario here stands in the row of its id.
#[test]
fn sim_catalogue_page_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/reference/scenario-catalogue.md")).expect("the page");
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Id")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, title, tested] = cells[..] else { panic!("three cells: {line}") };
        assert!(!title.is_empty(), "{line}");
        assert!(rows.insert(id.to_owned(), tested.to_owned()).is_none(), "{id} is there twice");
    }
    let wanted: BTreeSet<String> =
        SECTIONS.iter().flat_map(|(section, count)| (1..=*count).map(move |nr| format!("{section}{nr}"))).collect();
    assert_eq!(rows.keys().cloned().collect::<BTreeSet<_>>(), wanted);
    let mut tests = BTreeSet::new();
    for folder in ["engine", "transport", "frontend-ublk", "tests"] {
        tests_below(&root.join(folder), &mut tests);
    }
    for (id, cell) in &rows {
        for part in cell.split("; ") {
            match part.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
                Some(test) => assert!(tests.contains(test), "{id}: there is no test {test}"),
                None => {
                    let why = part.strip_prefix("later: ").or(part.strip_prefix("open: "));
                    assert!(why.is_some_and(|why| !why.is_empty()), "{id}: {part:?} says nothing");
                }
            }
        }
    }
    for test in &tests {
        if let Some(id) = id_of(test) {
            let cell = rows.get(&id).unwrap_or_else(|| panic!("{test} is of no scenario"));
            assert!(cell.contains(&format!("`{test}`")), "{test} is not in the row of {id}");
        }
    }
}
