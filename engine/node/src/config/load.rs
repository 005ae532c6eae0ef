//! Text to [`ResourceFile`], with errors that point into the text.

use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::check::{At, Check, Problem, Step};
use super::diagnostic::Diagnostic;
use super::model::ResourceFile;

/// Longest resource file in bytes. 32 nodes and 64 volumes with long paths take some 300 KiB at the very most.
pub const MAX_FILE_BYTES: usize = 512 << 10;
/// Words closer than this (Jaro-Winkler) to a known one are taken for a slip of the pen.
const SIMILAR: f64 = 0.75;

/// Reads a resource file. `file` only names it in errors; `own`: also check that this node is in it.
///
/// # Errors
/// The first mistake, with its place and what to write instead.
pub fn parse(file: &Path, text: &str, own: Option<u8>) -> Result<ResourceFile, Box<Diagnostic>> {
    if text.len() > MAX_FILE_BYTES {
        let message = format!("the file is longer than {MAX_FILE_BYTES} bytes");
        return Err(Box::new(Diagnostic::new(file, "", None, message, Some("is it a resource file?".into()))));
    }
    let parsed: ResourceFile = toml::from_str(text).map_err(|error| syntax(file, text, &error))?;
    let check = Check::new(&parsed);
    own.map_or_else(|| check.all(), |own| check.for_node(own)).map_err(|problem| meaning(file, text, &problem))?;
    Ok(parsed)
}

/// What the TOML reader or a field's type did not like.
fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> Box<Diagnostic> {
    let message = error.message().trim_end();
    let help = suggestion(message).or_else(|| missing(message)).or_else(|| expected(message));
    Box::new(Diagnostic::new(file, text, error.span(), first_line(message), help))
}

fn first_line(message: &str) -> String {
    // The candidates of an unknown word go into the help; the message stays short.
    let message = message.lines().next().unwrap_or_default();
    let message = message.split(", expected").next().unwrap_or(message);
    message
        .replace("unknown field", "unknown key")
        .replace("unknown variant", "unknown value")
        .replace("missing field", "missing key")
}

/// What to do about a key that is left out.
fn missing(message: &str) -> Option<String> {
    let key = quoted(message.strip_prefix("missing field ")?)?.0;
    Some(format!("add `{key} = …`; docs/reference/resource-file.md describes all keys"))
}

/// What kind of value belongs here, from serde's "…, expected u8".
fn expected(message: &str) -> Option<String> {
    let (_, what) = message.lines().next()?.split_once(", expected ")?;
    Some(match what {
        "u8" => "write an integer from 0 to 255".into(),
        "u16" => "write an integer from 0 to 65535".into(),
        "u32" | "u64" => "write an integer, 0 or more".into(),
        "a boolean" => "write true or false, without quotes".into(),
        "a string" | "literal string" => "write it in quotes".into(),
        "a sequence" => "double the brackets, as in `[[volume]]`: there can be several of it".into(),
        other => format!("expected {other}"),
    })
}

/// "Did you mean …" for serde's "unknown field `x`, expected one of `a`, `b`" (also variants).
fn suggestion(message: &str) -> Option<String> {
    let (kind, rest) = ["unknown field ", "unknown variant "]
        .iter()
        .find_map(|prefix| Some((prefix.split(' ').nth(1)?, message.strip_prefix(prefix)?)))?;
    let (wrong, mut rest) = quoted(rest)?;
    let mut known = Vec::new();
    while let Some((word, more)) = quoted(rest) {
        known.push(word);
        rest = more;
    }
    let near = |word: &&str| strsim::jaro_winkler(&wrong.to_lowercase(), &word.to_lowercase());
    let best = known.iter().map(|word| (near(word), *word)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    let what = if kind == "field" { "keys" } else { "values" };
    let all = format!("{what} that are known here: {}", known.join(", "));
    Some(if best.0 >= SIMILAR { format!("did you mean `{}`? {all}", best.1) } else { all })
}

/// The first word between back-ticks, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once('`')?;
    rest.split_once('`')
}

/// A file that reads well and makes no sense.
fn meaning(file: &Path, text: &str, problem: &Problem) -> Box<Diagnostic> {
    let span = find(text, &problem.at);
    Box::new(Diagnostic::new(file, text, span, problem.message.clone(), Some(problem.help.clone())))
}

/// A secret file that cannot be used, shown where the resource file names it.
pub fn bad_secret(file: &Path, text: &str, why: String) -> Box<Diagnostic> {
    let help = "name a file that holds the secret alone; a relative path begins at the resource file";
    meaning(file, text, &Problem::new(&[Step::Key("net"), Step::Key("secret-file")], why, help))
}

/// The bytes of the innermost thing on the path that is in the text: a key that is left out is shown by its table.
fn find(text: &str, at: &At) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    let (first, rest) = at.0.split_first()?;
    let Step::Key(key) = first else { return None };
    let mut found = document.get_ref().get(*key)?;
    for step in rest {
        let next = match (step, found.get_ref()) {
            (Step::Key(key), DeValue::Table(table)) => table.get(*key),
            (Step::Index(index), DeValue::Array(array)) => array.get(*index),
            _ => None,
        };
        match next {
            Some(next) => found = next,
            None => break,
        }
    }
    Some(found.span())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"name = "r0"

[net]
protocol = "A"
cram-hmac-alg = "sha256"
secret-file = "../secrets/r0"

[disk]
al-extents = 1237
disk-flushes = false

[[node]]
id = 0
name = "alpha"
address = "127.0.0.1:7789"

[[node]]
id = 1
name = "bravo"
address = "[::1]:7790"

[[volume]]
nr = 0
disk = "/dev/vg/r0"
size = "256M"

[[volume]]
nr = 1
disk = "/var/lib/zea/r0.1"
meta-disk = "/dev/vg/r0-meta"
"#;

    fn report(text: &str) -> String {
        match parse(Path::new("r0.toml"), text, Some(0)) {
            Ok(file) => panic!("accepted: {file:?}"),
            Err(diagnostic) => diagnostic.to_string(),
        }
    }

    #[test]
    fn config_round_trip_keeps_everything() {
        let file = parse(Path::new("r0.toml"), GOOD, Some(1)).unwrap();
        assert_eq!(parse(Path::new("again"), &file.to_toml(), Some(1)).unwrap(), file);
        insta::assert_snapshot!(file.to_toml());
    }

    #[test]
    fn config_left_out_options_are_left_out_when_saved() {
        let text = GOOD.replace("[disk]\nal-extents = 1237\ndisk-flushes = false\n", "");
        let file = parse(Path::new("r0.toml"), &text, None).unwrap();
        assert_eq!(file.disk, crate::config::Disk::default());
        assert!(!file.to_toml().contains("[disk]"));
    }

    #[test]
    fn config_mistakes_name_place_and_fix() {
        let cases = [
            ("key with a slip", GOOD.replace("protocol =", "protocoll =")),
            ("key of nothing", GOOD.replace("protocol =", "colour =")),
            ("unknown value", GOOD.replace("\"A\"", "\"D\"")),
            ("unknown digest", GOOD.replace("\"sha256\"", "\"sha265\"")),
            ("wrong type", GOOD.replace("id = 1", "id = \"one\"")),
            ("no text", GOOD.replace("\"256M\"", "256")),
            ("no quotes", GOOD.replace("\"A\"", "A")),
            ("no yes or no", GOOD.replace("flushes = false", "flushes = 0")),
            ("single brackets", GOOD[..GOOD.rfind("[[volume]]").unwrap()].replace("[[volume]]", "[volume]")),
            ("out of the type", GOOD.replace("id = 1", "id = 300")),
            ("left out", GOOD.replace("name = \"bravo\"\n", "")),
            ("no TOML", GOOD.replace("[disk]", "[disk")),
            ("address without port", GOOD.replace("127.0.0.1:7789", "127.0.0.1")),
            ("size without sense", GOOD.replace("256M", "256 megs")),
            ("size of odd bytes", GOOD.replace("256M", "2049K")),
            ("node id twice", GOOD.replace("id = 1", "id = 0")),
            ("address twice", GOOD.replace("[::1]:7790", "127.0.0.1:7789")),
            (
                "three nodes on two hosts",
                GOOD.replace(
                    "[[volume]]\nnr = 0",
                    "[[node]]\nid = 2\nname = \"charlie\"\naddress = \"127.0.0.1:7791\"\n\n[[volume]]\nnr = 0",
                ),
            ),
            ("volume twice", GOOD.replace("nr = 1", "nr = 0")),
            ("device twice", GOOD.replace("/dev/vg/r0-meta", "/dev/vg/r0")),
            ("relative path", GOOD.replace("/var/lib/zea/r0.1", "r0.img")),
            ("node id too high", GOOD.replace("id = 1", "id = 32")),
            ("bad name", GOOD.replace("\"r0\"", "\"r/0\"")),
            ("no secret", GOOD.replace("secret-file = \"../secrets/r0\"\n", "")),
            ("no digest", GOOD.replace("cram-hmac-alg = \"sha256\"\n", "")),
            ("short log", GOOD.replace("1237", "3")),
            ("this node left out", GOOD.replace("id = 0", "id = 7")),
        ];
        let shown: Vec<String> = cases.iter().map(|(title, text)| format!("## {title}\n{}\n", report(text))).collect();
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn config_versions_of_the_protocol_are_those_that_are_spoken() {
        let check = |version: u32, text: &str| {
            let text = text.replace("[net]", &format!("[net]\nprotocol-version-max = {version}"));
            parse(Path::new("r0.toml"), &text, Some(0)).map_err(|diagnostic| diagnostic.to_string())
        };
        let two_volumes = |version| check(version, GOOD);
        let one_volume = |version| check(version, &GOOD[..GOOD.rfind("[[volume]]").unwrap()]);
        for version in [86, 99, 100, 101, 118, 124] {
            assert_eq!(one_volume(version).unwrap().net.protocol_version_max, Some(version));
            assert_eq!(two_volumes(version).is_ok(), version >= 100, "{version}");
        }
        for version in [0, 85, 102, 117, 125] {
            assert!(one_volume(version).unwrap_err().contains("is not spoken"), "{version}");
        }
        let third = "[[node]]\nid = 2\nname = \"charlie\"\naddress = \"127.0.0.2:7791\"\n\n[[volume]]\nnr = 0";
        let three = GOOD.replace("[[volume]]\nnr = 0", third);
        assert!(check(101, &three).unwrap_err().contains("is for two nodes") && check(118, &three).is_ok());
    }

    #[test]
    fn config_odd_files_are_refused_without_a_panic() {
        let deep = "a = ".to_owned() + &"[".repeat(50_000);
        for text in ["", "\u{feff}", "name", "name = 1", "[[node]]", &deep, &"#".repeat(MAX_FILE_BYTES + 1)] {
            assert!(parse(Path::new("x"), text, Some(0)).is_err());
        }
        // Cut anywhere, the file is either refused or read.
        for end in (0..GOOD.len()).filter(|&end| GOOD.is_char_boundary(end)) {
            let _ = parse(Path::new("x"), &GOOD[..end], Some(0));
        }
    }
}
