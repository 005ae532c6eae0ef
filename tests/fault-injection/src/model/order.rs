//! Write order on crash images: what was completed before a flush began lies before everything submitted after that flush
//! ended. So an image that shows a write of a later epoch shows every acknowledged write of the epochs before it.

use super::{Fate, Model};
use crate::pool::Tag;

/// What a write lies behind: the reign (a node's time as Primary) it belongs to, and the instant at which the last flush
/// began that had ended in this reign when the write was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch {
    reign: u32,
    floor: u64,
}

#[derive(Debug)]
pub(super) struct Order {
    reigns: u32,
    reign_of: Vec<u32>,
    /// By node and volume.
    floors: Vec<Vec<u64>>,
    /// By reign and volume: no flush covers what was completed before this instant.
    failed: std::collections::BTreeMap<(u32, u16), u64>,
}

impl Order {
    pub(super) fn new(nodes: usize) -> Order {
        Order {
            reigns: nodes as u32,
            reign_of: (0..nodes as u32).collect(),
            floors: vec![vec![0; usize::from(super::VOLUMES)]; nodes],
            failed: std::collections::BTreeMap::new(),
        }
    }

    pub(super) fn promoted(&mut self, node: usize) {
        self.reign_of[node] = self.reigns;
        self.reigns += 1;
        self.floors[node].fill(0);
    }

    pub(super) fn flushed(&mut self, node: usize, volume: u16, began: u64) {
        let floor = &mut self.floors[node][usize::from(volume)];
        *floor = began.max(*floor);
    }

    pub(super) fn flush_failed(&mut self, node: usize, volume: u16, began: u64) {
        let failed = self.failed.entry((self.reign_of[node], volume)).or_default();
        *failed = began.max(*failed);
    }

    pub(super) fn epoch(&self, node: usize, volume: u16) -> Epoch {
        Epoch { reign: self.reign_of[node], floor: self.floors[node][usize::from(volume)] }
    }
}

impl Model {
    /// Checks that an image of a volume is a prefix of epochs: of each reign, what a flush put before something that the
    /// image shows.
    ///
    /// # Errors
    /// A sector that shows too old a value.
    pub fn check_order(&self, volume: u16, read: impl Fn(u64) -> Tag) -> Result<(), String> {
        let mut floors = vec![(0, 0); self.order.reigns as usize];
        let ids: Vec<_> = self.ids_of(volume).collect();
        let values: Vec<Tag> = ids.iter().map(|id| read(self.sectors[*id].key.1)).collect();
        for (id, tag) in ids.iter().zip(&values) {
            if let Some(write) = self.write_of(*id, *tag) {
                let Epoch { reign, floor } = self.writes[write as usize].epoch;
                let most = &mut floors[reign as usize];
                *most = (floor, write).max(*most);
            }
        }
        for (id, tag) in ids.iter().zip(&values) {
            for wanted in &self.sectors[*id].history {
                let write = &self.writes[*wanted as usize];
                let (floor, shown) = floors[write.epoch.reign as usize];
                let failed = self.order.failed.get(&(write.epoch.reign, volume)).copied().unwrap_or(0);
                let covered = write.fate == Fate::Acked && write.ended.is_some_and(|end| failed < end && end < floor);
                if covered && !self.is_allowed(*id, std::iter::once(*wanted), *tag) {
                    let at = self.writes[shown as usize].key.1;
                    return Err(format!(
                        "volume {volume} sector {} shows {} in place of write #{wanted}, which a flush put before write #{shown} at {at}, and that one is there",
                        self.sectors[*id].key.1,
                        super::describe_tag(*tag),
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(model: &mut Model, sector: u64) -> Tag {
        let (index, tags) = model.write_begins(0, &[], (0, sector), 1, false);
        model.write_acked(index, &[0], &[]);
        tags[0]
    }

    #[test]
    fn sim_order_finds_an_epoch_that_overtook() {
        let mut m = Model::new(1);
        let first = write(&mut m, 0);
        let flush = m.flush_begins();
        m.flush_acked(flush, 0, 0, &[0]);
        let second = write(&mut m, 1);
        let image = |a: Tag, b: Tag| move |s: u64| if s == 0 { a } else { b };
        assert!(m.check_order(0, image(0, 0)).is_ok());
        assert!(m.check_order(0, image(first, 0)).is_ok());
        assert!(m.check_order(0, image(first, second)).is_ok());
        assert!(m.check_order(0, image(0, second)).is_err());
    }

    #[test]
    fn sim_order_lets_writes_of_one_epoch_go_in_any_order() {
        let mut m = Model::new(1);
        write(&mut m, 0);
        let second = write(&mut m, 1);
        assert!(m.check_order(0, |s| if s == 0 { 0 } else { second }).is_ok());
    }
}
