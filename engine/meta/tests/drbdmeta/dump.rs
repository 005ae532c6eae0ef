//! The parts of `drbdmeta dump-md`'s output that the tests compare.

use std::collections::BTreeMap;

/// A parsed dump.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    /// `key value;` and the offsets from the comments, by name.
    pub(crate) fields: BTreeMap<String, String>,
    /// The same inside of `peer[n]`.
    pub(crate) peers: Vec<BTreeMap<String, String>>,
    /// UUIDs of v09's history, or v08's current, bitmap and history.
    pub(crate) uuids: Vec<u64>,
    /// Words of 64 bits of each slot.
    pub(crate) bitmaps: Vec<Vec<u64>>,
}

impl Dump {
    pub(crate) fn parse(text: &str) -> Self {
        let mut dump = Self::default();
        let mut section = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix('#') {
                dump.comment(comment);
                continue;
            }
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(name) = line.strip_suffix('{') {
                section = name.trim().to_owned();
                dump.open(&section);
            } else if line == "}" {
                section.clear();
            } else {
                for item in line.split(';').map(str::trim).filter(|item| !item.is_empty()) {
                    dump.item(&section, item);
                }
            }
        }
        dump
    }

    fn comment(&mut self, comment: &str) {
        if let [key @ ("md_size_sect" | "md_offset" | "al_offset" | "bm_offset" | "al-extents"), value] =
            comment.trim_end_matches(';').split_whitespace().collect::<Vec<_>>()[..]
        {
            self.fields.insert(key.to_owned(), value.to_owned());
        }
    }

    fn open(&mut self, section: &str) {
        if section.starts_with("peer[") {
            self.peers.push(BTreeMap::new());
        } else if section.starts_with("bitmap[") || section == "bm" {
            self.bitmaps.push(Vec::new());
        }
    }

    fn item(&mut self, section: &str, item: &str) {
        if section.starts_with("bitmap[") || section == "bm" {
            let (count, word) = item.split_once(" times ").unwrap_or(("1", item));
            let words = self.bitmaps.last_mut().expect("inside of a bitmap");
            words.extend(std::iter::repeat_n(number(word), usize::try_from(number(count)).expect("a count")));
        } else if let Some((key, value)) = item.split_once(' ') {
            let fields = if section.starts_with("peer[") {
                self.peers.last_mut().expect("inside of a peer")
            } else {
                &mut self.fields
            };
            fields.insert(key.to_owned(), value.to_owned());
        } else {
            self.uuids.push(number(item));
        }
    }

    /// A field, as a number.
    pub(crate) fn field(&self, key: &str) -> u64 {
        number(self.fields.get(key).unwrap_or_else(|| panic!("no field {key} in {self:?}")))
    }

    /// A field of a peer.
    pub(crate) fn peer(&self, node_id: usize, key: &str) -> &str {
        &self.peers[node_id][key]
    }
}

/// A number in decimal or, after 0x, hex.
pub(crate) fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("no number: {text:?}"))
}
