//! Archives in the format that kernels unpack as their first file system: cpio "newc", not compressed.

use std::collections::BTreeMap;

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive to be. Folders above an entry come by themselves.
#[derive(Default)]
pub(crate) struct Cpio {
    /// By path, without the first slash; so a folder comes before what is in it.
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    mode: u32,
    data: Vec<u8>,
    /// Major and minor of a device.
    device: (u32, u32),
}

impl Cpio {
    /// True if something of this path is in the archive.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_start_matches('/'))
    }

    pub(crate) fn directory(&mut self, path: &str) {
        self.put(path, DIRECTORY, Vec::new(), (0, 0));
    }

    /// A file with these permissions.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, data: Vec<u8>) {
        self.put(path, FILE | permissions, data, (0, 0));
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.put(path, LINK, target.as_bytes().to_vec(), (0, 0));
    }

    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.put(path, CHARACTER_DEVICE, Vec::new(), (major, minor));
    }

    fn put(&mut self, path: &str, mode: u32, data: Vec<u8>, device: (u32, u32)) {
        let path = path.trim_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.has(parent)
        {
            self.directory(parent);
        }
        self.entries.insert(path.to_owned(), Entry { mode, data, device });
    }

    /// The archive's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            write_entry(&mut out, number, path, entry);
        }
        let end = Entry { mode: 0, data: Vec::new(), device: (0, 0) };
        write_entry(&mut out, 0, "TRAILER!!!", &end);
        out
    }
}

/// Magic, thirteen numbers of eight hexadecimal digits, the name with its zero, the data; both padded to four bytes.
fn write_entry(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) {
    let Entry { mode, ref data, device: (major, minor) } = *entry;
    let numbers = [inode, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, major, minor, path.len() as u32 + 1, 0];
    out.extend_from_slice(b"070701");
    numbers.iter().for_each(|number| out.extend_from_slice(format!("{number:08X}").as_bytes()));
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn lab_archive_is_read_by_busybox() {
        let mut archive = Cpio::default();
        archive.file("a/deep/file", 0o755, b"text\n".to_vec());
        archive.link("a/link", "deep/file");
        let dir = tempfile::tempdir().unwrap();
        let mut unpack = Command::new("busybox")
            .args(["cpio", "-i"])
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        unpack.stdin.take().unwrap().write_all(&archive.bytes()).unwrap();
        assert!(unpack.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("a/link")).unwrap(), b"text\n");
    }
}
