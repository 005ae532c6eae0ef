//! Rules about one source file. Each gives complaints as `line: what`.

use crate::source::{code_of, lines_with_word, without_tests};

/// Longest source file, in lines.
pub const MAX_LINES: usize = 700;

/// Lines before an `unsafe` block in which its SAFETY note must begin.
const NOTE_WITHIN: usize = 8;
/// Lines before an `unsafe fn` in which its contract must begin.
const CONTRACT_WITHIN: usize = 24;

/// What deterministic crates must not use outside of tests.
const IO_WORDS: [&str; 8] =
    ["Instant", "SystemTime", "std::thread", "std::net", "std::fs", "std::process", "HashMap", "HashSet"];

/// Marks of unfinished work. They are put together here so that this file does not have them.
const UNFINISHED: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];

/// What must not be in the repository: places of one machine, and words about how it came to be.
const FOREIGN: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/tmp/", "helpers"), concat!("helper ", "session"), concat!("/ro", "ot/")];

fn at_lines(lines: Vec<usize>, what: &str) -> impl Iterator<Item = String> {
    lines.into_iter().map(move |line| format!("{line}: {what}"))
}

/// Marks of unfinished work and words that do not belong here, in any text.
#[must_use]
pub fn words(text: &str) -> Vec<String> {
    let unfinished = UNFINISHED.iter().flat_map(|word| at_lines(lines_with_word(text, word), word));
    let foreign = FOREIGN.iter().flat_map(|word| {
        let lower = text.to_lowercase();
        let lines = lower.lines().enumerate();
        lines.filter(|(_, line)| line.contains(word)).map(|(i, _)| format!("{}: {word}", i + 1)).collect::<Vec<_>>()
    });
    unfinished.chain(foreign).collect()
}

/// Code that hides what is wrong with it.
#[must_use]
pub fn hidden(text: &str) -> Vec<String> {
    let code = code_of(text);
    let mut complaints = Vec::new();
    for (i, line) in code.lines().enumerate() {
        let dense: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        let macros = ["todo!", "unimplemented!"].into_iter().filter(|name| dense.contains(name));
        complaints.extend(macros.map(|name| format!("{}: {name}", i + 1)));
        if dense.contains("#[ignore") {
            complaints.push(format!("{}: a test that does not run", i + 1));
        }
        let silenced = ["dead_code", "unused", "clippy::all"]
            .into_iter()
            .filter(|lint| ["allow(", "expect("].iter().any(|how| dense.contains(&format!("{how}{lint}"))));
        complaints.extend(silenced.map(|lint| format!("{}: {lint} is silenced", i + 1)));
    }
    complaints
}

/// Too long a file.
#[must_use]
pub fn length(text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > MAX_LINES { vec![format!("{lines}: more than {MAX_LINES} lines")] } else { Vec::new() }
}

/// IO, clocks, threads and orders that depend on addresses, outside of tests.
#[must_use]
pub fn io(text: &str) -> Vec<String> {
    let code = without_tests(&code_of(text));
    IO_WORDS.iter().flat_map(|word| at_lines(lines_with_word(&code, word), word)).collect()
}

/// Any use of `unsafe`.
#[must_use]
pub fn any_unsafe(text: &str) -> Vec<String> {
    at_lines(lines_with_word(&code_of(text), "unsafe"), "unsafe").collect()
}

/// `unsafe` without a note why it is sound, or without a contract for its callers.
#[must_use]
pub fn unsafe_without_note(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let code = code_of(text);
    let code_lines: Vec<&str> = code.lines().collect();
    let noted = |line: usize, within: usize, marks: &[&str]| {
        let from = line.saturating_sub(within + 1);
        lines[from..line].iter().any(|l| marks.iter().any(|m| l.contains(m)))
    };
    lines_with_word(&code, "unsafe")
        .into_iter()
        .filter(|&line| {
            let code = code_lines[line - 1];
            let declares = ["unsafe fn", "unsafe trait", "unsafe extern"].iter().any(|d| code.contains(d));
            if declares {
                !noted(line, CONTRACT_WITHIN, &["# Safety", "SAFETY:"])
            } else {
                !noted(line, NOTE_WITHIN, &["SAFETY:"])
            }
        })
        .map(|line| format!("{line}: unsafe without a SAFETY note"))
        .collect()
}

/// A crate that does not say what it is for, whose thread it runs on, what holds in it, and what it implements.
#[must_use]
pub fn crate_header(text: &str) -> Vec<String> {
    let header: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
    let header = header.join("\n").to_lowercase();
    [
        ("purpose", &["purpose"][..]),
        ("owner thread", &["owner thread"]),
        ("invariants", &["invariant"]),
        ("reference", &["reference", "implements"]),
    ]
    .into_iter()
    .filter(|(_, words)| !words.iter().any(|word| header.contains(word)))
    .map(|(what, _)| format!("1: the header of the crate does not name its {what}"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tidy_rules_find_marks_and_foreign_words() {
        for word in UNFINISHED.iter().chain(&FOREIGN) {
            let text = format!("fine\n// so {word} x\n");
            assert_eq!(words(&text), [format!("2: {word}")], "{word}");
        }
        assert_eq!(words("a mastodon, /home/user/"), Vec::<String>::new());
    }

    #[test]
    fn tidy_rules_find_hidden_faults() {
        for text in [
            "fn f() { todo!() }",
            "fn f() { unimplemented! (\"x\") }",
            "#[ignore = \"slow\"]",
            "#![allow(dead_code)]",
            "#[allow( unused_variables )]",
            "#[expect(unused)]",
            "#[allow(clippy::all)]",
        ] {
            assert_eq!(hidden(text).len(), 1, "{text}");
        }
        for text in ["let todo = 1;", "// todo!()", "#[expect(clippy::too_many_arguments)]"] {
            assert_eq!(hidden(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn tidy_rules_find_long_files() {
        assert_eq!(length(&"x\n".repeat(MAX_LINES)), Vec::<String>::new());
        assert_eq!(length(&"x\n".repeat(MAX_LINES + 1)).len(), 1);
    }

    #[test]
    fn tidy_rules_find_io_outside_of_tests() {
        for text in ["use std::time::Instant;", "std::fs::read(p)", "let m: HashMap<u8, u8>;", "std::thread::sleep(d)"]
        {
            assert_eq!(io(text).len(), 1, "{text}");
        }
        let tests = "#[cfg(test)]\nmod tests { use std::fs; }\n// std::net\nstruct Instants;";
        assert_eq!(io(tests), Vec::<String>::new());
    }

    #[test]
    fn tidy_rules_find_unsafe_without_a_note() {
        assert_eq!(unsafe_without_note("let a = unsafe { f() };").len(), 1);
        assert_eq!(unsafe_without_note("/// Does.\npub unsafe fn f() {}").len(), 1);
        let distant = format!("// SAFETY: x\n{}unsafe {{}}", "\n".repeat(20));
        assert_eq!(unsafe_without_note(&distant).len(), 1);
        for text in [
            "// SAFETY: it is valid\nlet a = unsafe { f() };",
            "/// # Safety\n/// Valid.\npub unsafe fn f() {}",
            "// unsafe\nlet a = \"unsafe\";",
        ] {
            assert_eq!(unsafe_without_note(text), Vec::<String>::new(), "{text}");
        }
        assert_eq!(any_unsafe("unsafe impl Send for A {}\n#![deny(unsafe_code)]").len(), 1);
    }

    #[test]
    fn tidy_rules_want_a_header() {
        assert_eq!(crate_header("use a;").len(), 4);
        let whole = "//! Purpose: x. Owner thread: y.\n//! Invariants: z. Reference: r.\nuse a;";
        assert_eq!(crate_header(whole), Vec::<String>::new());
        assert_eq!(crate_header("//! Purpose and owner thread.\n\n//! invariants, reference").len(), 2);
    }
}
