//! What the client was promised: a file outside of the volume with a line per acknowledged commit.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Sequence numbers of commits with the checksum of what was committed.
pub(crate) type Promises = BTreeMap<u64, u32>;

/// The journal, to be written.
#[derive(Debug)]
pub(crate) struct Journal(File);

impl Journal {
    /// Opens a journal to go on with it.
    pub(crate) fn open(path: &Path) -> Result<Journal> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Journal(file.with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// Notes a commit that has returned. When this returns, the note is on stable storage.
    pub(crate) fn append(&mut self, sequence: u64, checksum: u32) -> Result<()> {
        self.0
            .write_all(format!("{sequence} {checksum:08x}\n").as_bytes())
            .and_then(|()| self.0.sync_data())
            .context("cannot write the journal")
    }
}

/// Reads a journal.
///
/// A last line without its end is a note that was being written when its writer was killed; everything else that is not
/// a note is an error.
pub(crate) fn read(path: &Path) -> Result<Promises> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the journal {}", path.display()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Promises> {
    let mut promises = Promises::new();
    for line in text.split_inclusive('\n').filter(|it| it.ends_with('\n')) {
        let note = line
            .trim_end()
            .split_once(' ')
            .and_then(|(seq, sum)| Some((seq.parse().ok()?, u32::from_str_radix(sum, 16).ok()?)));
        let Some((sequence, checksum)) = note else {
            bail!("the journal has a line that is no note: {line:?}");
        };
        if promises.insert(sequence, checksum).is_some() {
            bail!("the journal has commit {sequence} twice");
        }
    }
    Ok(promises)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_journal_gives_back_what_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        Journal::open(&path).unwrap().append(1, 0xABCD).unwrap();
        let mut again = Journal::open(&path).unwrap();
        again.append(2, u32::MAX).unwrap();
        again.append(4, 0).unwrap();
        assert_eq!(read(&path).unwrap(), Promises::from([(1, 0xABCD), (2, u32::MAX), (4, 0)]));
    }

    #[test]
    fn demo_journal_ignores_a_torn_last_line_only() {
        assert_eq!(parse("1 0000000a\n2 000").unwrap(), Promises::from([(1, 10)]));
        for wrong in ["1\n", "1 xyz\n", "\n", "1 0 0\n", "-1 0\n", "1 00000001\n1 00000001\n"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn demo_journal_must_be_there_to_be_counted() {
        assert!(read(Path::new("/nowhere/journal")).is_err());
    }
}
