//! Rust source as a rule wants to see it: without comments and strings, without tests.

use std::path::Path;

/// The text with comments, strings and characters blanked out. Lines stay lines.
#[must_use]
pub fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped_end(&chars, at).min(chars.len());
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where a comment, string or character that begins here ends; `at` if none begins.
fn skipped_end(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    match (chars[at], next) {
        ('/', Some('/')) => find(chars, at, |c| c == '\n'),
        ('/', Some('*')) => block_comment_end(chars, at),
        ('"', _) => string_end(chars, at + 1),
        ('r' | 'b' | 'c', _) if !after_word(chars, at) => prefixed_string_end(chars, at),
        ('\'', Some('\\')) => find(chars, at + 3, |c| c == '\'') + 1,
        ('\'', Some(_)) if chars.get(at + 2) == Some(&'\'') => at + 3,
        _ => at,
    }
}

fn find(chars: &[char], from: usize, wanted: impl Fn(char) -> bool) -> usize {
    (from..chars.len()).find(|&i| wanted(chars[i])).unwrap_or(chars.len())
}

fn after_word(chars: &[char], at: usize) -> bool {
    at > 0 && is_word(chars[at - 1])
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => {
                depth += 1;
                at += 2;
            }
            ('*', '/') => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

/// The end of a string whose opening quote is before `at`.
fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// b"", c"", r"", r#""#, br#""# and cr#""#; `start` if it is something else.
fn prefixed_string_end(chars: &[char], start: usize) -> usize {
    let mut at = start;
    if matches!(chars[at], 'b' | 'c') {
        at += 1;
    }
    let raw = chars.get(at) == Some(&'r');
    if raw {
        at += 1;
    }
    let quote = find(chars, at, |c| c != '#');
    let hashes = quote - at;
    if at == start || chars.get(quote) != Some(&'"') || (hashes > 0 && !raw) {
        return start;
    }
    if !raw {
        return string_end(chars, quote + 1);
    }
    let mut end = quote + 1;
    while end < chars.len() {
        let closed = chars[end] == '"' && chars[end + 1..].iter().take_while(|&&c| c == '#').count() >= hashes;
        if closed {
            return end + 1 + hashes;
        }
        end += 1;
    }
    chars.len()
}

/// True for a file that holds nothing but tests.
#[must_use]
pub fn is_test_file(path: &Path) -> bool {
    let inside: Vec<_> = path.components().skip_while(|c| c.as_os_str() != "src").collect();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    inside.is_empty()
        || inside.iter().any(|c| c.as_os_str() == "tests")
        || name == "tests.rs"
        || name.ends_with("_tests.rs")
}

/// Code (see [`code_of`]) with the items under `#[cfg(test)]` blanked out. Lines stay lines.
#[must_use]
pub fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut rest = code;
    let mut out = String::with_capacity(code.len());
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let end = at + item_len(&rest[at..]);
        out.extend(rest[at..end].chars().filter(|&c| c == '\n'));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// The length of the item that begins here: up to its `;`, or to the end of its braces.
fn item_len(code: &str) -> usize {
    let mut depth = 0_usize;
    for (i, c) in code.char_indices() {
        match c {
            ';' if depth == 0 => return i + 1,
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return i + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Line numbers, from 1, where a word is used; a word inside a longer one does not count.
#[must_use]
pub fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let whole = |line: &str, at: usize| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    };
    code.lines()
        .enumerate()
        .filter(|(_, line)| line.match_indices(word).any(|(at, _)| whole(line, at)))
        .map(|(i, _)| i + 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tidy_source_blanks_comments_strings_and_characters() {
        let text = r####"
let a = "unsafe \" unsafe"; // unsafe
/* unsafe /* unsafe */ unsafe */ let b = r#"unsafe " "#;
let c = b"unsafe"; let d = '"'; let e = '\''; let f: &'static str = c"unsafe";
let g = br##"unsafe "# "##; let r = for_r"unsafe";
fn h<'a>(x: &'a str) { unsafe {} }
"####;
        let code = code_of(text);
        assert_eq!(code.lines().count(), text.lines().count());
        assert_eq!(lines_with_word(&code, "unsafe"), [6]);
        assert!(code.contains("fn h<'a>(x: &'a str) { unsafe {} }"));
        assert!(code.contains("let f: &'static str ="));
    }

    #[test]
    fn tidy_source_survives_what_does_not_end() {
        for text in ["\"abc", "/* abc", "r#\"abc\"", "'\\", "b", "// x", "'"] {
            assert_eq!(code_of(text).chars().count(), text.chars().count(), "{text}");
        }
    }

    #[test]
    fn tidy_source_drops_test_items_and_keeps_lines() {
        let code = "use a;\n#[cfg(test)]\nmod tests;\nfn f() {}\n#[cfg(test)]\nmod t {\n    fn g() {}\n}\nfn h() {}\n";
        let rest = without_tests(code);
        assert_eq!(rest.lines().count(), code.lines().count());
        assert!(rest.contains("fn f()") && rest.contains("fn h()"));
        assert!(!rest.contains("mod") && !rest.contains("fn g()"));
    }

    #[test]
    fn tidy_source_knows_test_files() {
        for (path, test) in [
            ("engine/core/src/request.rs", false),
            ("engine/core/src/uuid/tests/table.rs", true),
            ("engine/core/src/uuid/tests.rs", true),
            ("engine/meta/src/bitmap_tests.rs", true),
            ("engine/meta/tests/foreign.rs", true),
            ("tests/demo/src/main.rs", false),
        ] {
            assert_eq!(is_test_file(Path::new(path)), test, "{path}");
        }
    }

    #[test]
    fn tidy_source_finds_whole_words_only() {
        let code = "Instant\nInstants\nstd::time::Instant;\nmy_Instant\n";
        assert_eq!(lines_with_word(code, "Instant"), [1, 3]);
    }
}
