//! The bytes of sectors, of which simulated disks know the tags only: digests are of bytes.

use std::collections::BTreeMap;

use zea_sim::pool::Tag;

/// Bytes by tag.
#[derive(Debug, Default)]
pub struct Contents {
    sectors: BTreeMap<Tag, Box<[u8]>>,
}

impl Contents {
    /// A sector was seen. Its tag.
    pub fn learn(&mut self, sector: &[u8]) -> Tag {
        let tag = tag_of(sector);
        if tag != 0 {
            self.sectors.entry(tag).or_insert_with(|| sector.into());
        }
        tag
    }

    /// The bytes of sectors; zeroes where none were seen.
    pub fn bytes(&self, tags: &[Tag]) -> Vec<u8> {
        const ZEROES: [u8; 512] = [0; 512];
        tags.iter().flat_map(|tag| self.sectors.get(tag).map_or(&ZEROES[..], |sector| sector)).copied().collect()
    }
}

/// The content of a sector as the simulated disks have it: 0 for zeroes.
pub fn tag_of(sector: &[u8]) -> Tag {
    if sector.iter().all(|b| *b == 0) {
        return 0;
    }
    sector.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}
