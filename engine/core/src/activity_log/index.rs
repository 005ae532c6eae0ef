//! Which slot holds an extent: a fixed-size open-addressing table, so that a look-up costs no allocation and the
//! order of nothing depends on a random hash seed.

use rkyv::{Archive, Deserialize, Serialize};

/// The extent number of an empty entry; no device is that large.
const EMPTY: u32 = u32::MAX;

#[derive(Debug, Archive, Serialize, Deserialize)]
pub(super) struct ExtentIndex {
    /// (extent, slot), linear probing, at most half full.
    table: Box<[(u32, u16)]>,
    shift: u32,
}

impl ExtentIndex {
    /// A table for at most `capacity` extents.
    pub(super) fn new(capacity: usize) -> Self {
        let size = (2 * capacity).next_power_of_two().max(2);
        ExtentIndex { table: vec![(EMPTY, 0); size].into_boxed_slice(), shift: 32 - size.trailing_zeros() }
    }

    /// Fibonacci hashing: neighbouring extents, the usual case, spread well.
    fn home(&self, extent: u32) -> usize {
        (extent.wrapping_mul(0x9e37_79b9) >> self.shift) as usize
    }

    /// The entry of `extent`, or the empty one where it would go.
    fn entry(&self, extent: u32) -> usize {
        let mut at = self.home(extent);
        while self.table[at].0 != extent && self.table[at].0 != EMPTY {
            at = (at + 1) & (self.table.len() - 1);
        }
        at
    }

    pub(super) fn get(&self, extent: u32) -> Option<u16> {
        let (found, slot) = self.table[self.entry(extent)];
        (found == extent && found != EMPTY).then_some(slot)
    }

    pub(super) fn insert(&mut self, extent: u32, slot: u16) {
        assert_ne!(extent, EMPTY, "no such extent");
        let at = self.entry(extent);
        assert_eq!(self.table[at].0, EMPTY, "extent {extent} is in two slots");
        self.table[at] = (extent, slot);
    }

    /// Removes `extent` and moves later entries of its probe sequence up.
    pub(super) fn remove(&mut self, extent: u32) {
        let mask = self.table.len() - 1;
        let mut hole = self.entry(extent);
        assert_eq!(self.table[hole].0, extent, "extent {extent} is in no slot");
        let mut at = (hole + 1) & mask;
        while self.table[at].0 != EMPTY {
            let home = self.home(self.table[at].0);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.table[hole] = self.table[at];
                hole = at;
            }
            at = (at + 1) & mask;
        }
        self.table[hole] = (EMPTY, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::ExtentIndex;

    proptest! {
        #[test]
        fn activity_log_index_is_a_map(ops in prop::collection::vec((0..40u32, any::<bool>()), 0..200)) {
            let mut index = ExtentIndex::new(8);
            let mut map = BTreeMap::new();
            for (nr, (extent, insert)) in ops.into_iter().enumerate() {
                if insert && map.len() < 8 && !map.contains_key(&extent) {
                    index.insert(extent, nr as u16);
                    map.insert(extent, nr as u16);
                } else if map.remove(&extent).is_some() {
                    index.remove(extent);
                }
                for extent in 0..40 {
                    prop_assert_eq!(index.get(extent), map.get(&extent).copied());
                }
            }
        }
    }
}
