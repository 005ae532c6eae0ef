//! Sector ranges that are in use, to find conflicts between application I/O, peer writes, resync and verify.
//!
//! Which kinds exclude each other is the caller's rule (reference wire-protocol.md section 11.1a); this is only the
//! set: a treap over a fixed arena, every node knowing the largest end below it. Insert, remove and the step to the
//! first conflict cost O(log n). Priorities come from the serial number, so equal inputs build equal trees. No
//! allocation after [`IntervalSet::new`].

use std::cmp::Ordering;

use rkyv::{Archive, Deserialize, Serialize};

/// Names one interval of one set; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct IntervalId {
    serial: u64,
    node: u32,
}

/// One range of sectors in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Interval<K> {
    /// Its name.
    pub id: IntervalId,
    /// First sector.
    pub start: u64,
    /// First sector behind it.
    pub end: u64,
    /// What the range is used for.
    pub kind: K,
    /// Whose it is: for the caller to know its own.
    pub owner: u64,
}

/// The set is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {capacity} sector ranges in use")]
pub struct Full {
    /// The bound given to [`IntervalSet::new`].
    pub capacity: usize,
}

/// No node.
const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
struct Node<K> {
    interval: Interval<K>,
    priority: u64,
    left: u32,
    right: u32,
    /// Largest end in this subtree.
    max_end: u64,
}

/// A bounded set of sector ranges, ordered by start, that may overlap.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct IntervalSet<K> {
    nodes: Vec<Node<K>>,
    free: Vec<u32>,
    root: u32,
    next_serial: u64,
    capacity: usize,
}

/// A full-period mix of the serial number (splitmix64).
fn priority(serial: u64) -> u64 {
    let mut z = serial.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl<K: Copy> IntervalSet<K> {
    /// An empty set for at most `capacity` ranges.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity < NIL as usize, "{capacity} sector ranges");
        IntervalSet {
            nodes: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            root: NIL,
            next_serial: 0,
            capacity,
        }
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// No ranges?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the range of `len` sectors (at least 1) from `start`. Overlap is allowed.
    ///
    /// # Errors
    /// [`Full`] when the set is.
    pub fn insert(&mut self, start: u64, len: u64, kind: K, owner: u64) -> Result<IntervalId, Full> {
        assert!(len > 0, "an empty range conflicts with nothing");
        if self.len() == self.capacity {
            return Err(Full { capacity: self.capacity });
        }
        let node = self.free.pop().unwrap_or(self.nodes.len() as u32);
        let id = IntervalId { serial: self.next_serial, node };
        self.next_serial += 1;
        let end = start.saturating_add(len);
        let new = Node {
            interval: Interval { id, start, end, kind, owner },
            priority: priority(id.serial),
            left: NIL,
            right: NIL,
            max_end: end,
        };
        match self.nodes.get_mut(node as usize) {
            Some(old) => *old = new,
            None => self.nodes.push(new),
        }
        let (left, right) = self.split(self.root, (start, id));
        let left = self.merge(left, node);
        self.root = self.merge(left, right);
        Ok(id)
    }

    /// Removes a range; gives what it was, `None` if it is gone already.
    pub fn remove(&mut self, id: IntervalId) -> Option<Interval<K>> {
        let interval = *self.get(id)?;
        self.root = self.remove_below(self.root, (interval.start, id));
        // A free node must not answer to its old name.
        self.nodes[id.node as usize].interval.id.serial = u64::MAX;
        self.free.push(id.node);
        Some(interval)
    }

    /// The range of that name.
    pub fn get(&self, id: IntervalId) -> Option<&Interval<K>> {
        let node = self.nodes.get(id.node as usize)?;
        (node.interval.id == id).then_some(&node.interval)
    }

    /// Changes what a range is used for (a resync request whose reply has arrived); false if it is gone.
    pub fn set_kind(&mut self, id: IntervalId, kind: K) -> bool {
        let node = self.nodes.get_mut(id.node as usize);
        let node = node.filter(|node| node.interval.id == id);
        node.map(|node| node.interval.kind = kind).is_some()
    }

    /// All ranges that share a sector with the `len` sectors from `start`, by ascending start, then by age.
    pub fn conflicts(&self, start: u64, len: u64) -> impl Iterator<Item = &Interval<K>> {
        let end = if len == 0 { 0 } else { start.saturating_add(len) };
        let first = self.first_overlap(start, end, None);
        std::iter::successors(first, move |last| self.first_overlap(start, end, Some((last.start, last.id))))
    }

    /// All ranges, by ascending start.
    pub fn iter(&self) -> impl Iterator<Item = &Interval<K>> {
        self.conflicts(0, u64::MAX)
    }

    fn key(&self, node: u32) -> (u64, IntervalId) {
        let interval = &self.nodes[node as usize].interval;
        (interval.start, interval.id)
    }

    /// The leftmost interval behind the key `after` that overlaps `start..end`.
    fn first_overlap(&self, start: u64, end: u64, after: Option<(u64, IntervalId)>) -> Option<&Interval<K>> {
        self.first_overlap_below(self.root, start, end, after)
    }

    /// Visits O(log n) nodes: a subtree is entered only if some interval in it ends behind `start`, and only the
    /// path of `after` can be entered in vain.
    fn first_overlap_below(
        &self,
        node: u32,
        start: u64,
        end: u64,
        after: Option<(u64, IntervalId)>,
    ) -> Option<&Interval<K>> {
        let tree = self.nodes.get(node as usize)?;
        if tree.max_end <= start {
            return None;
        }
        let is_behind = after.is_none_or(|after| self.key(node) > after);
        if is_behind {
            let found = self.first_overlap_below(tree.left, start, end, after);
            if found.is_some() {
                return found;
            }
            if tree.interval.start >= end {
                return None;
            }
            if tree.interval.end > start {
                return Some(&tree.interval);
            }
        }
        self.first_overlap_below(tree.right, start, end, after)
    }

    /// Brings `max_end` up to date after a change of the children.
    fn update(&mut self, node: u32) {
        let Node { left, right, .. } = self.nodes[node as usize];
        let end = |child: u32| self.nodes.get(child as usize).map_or(0, |node| node.max_end);
        let children = end(left).max(end(right));
        let node = &mut self.nodes[node as usize];
        node.max_end = node.interval.end.max(children);
    }

    /// Splits a tree into the keys below `key` and the others.
    fn split(&mut self, node: u32, key: (u64, IntervalId)) -> (u32, u32) {
        if node == NIL {
            return (NIL, NIL);
        }
        if self.key(node) < key {
            let (left, right) = self.split(self.nodes[node as usize].right, key);
            self.nodes[node as usize].right = left;
            self.update(node);
            (node, right)
        } else {
            let (left, right) = self.split(self.nodes[node as usize].left, key);
            self.nodes[node as usize].left = right;
            self.update(node);
            (left, node)
        }
    }

    /// Joins two trees; all keys of `left` are below those of `right`.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        if self.nodes[left as usize].priority > self.nodes[right as usize].priority {
            let joined = self.merge(self.nodes[left as usize].right, right);
            self.nodes[left as usize].right = joined;
            self.update(left);
            left
        } else {
            let joined = self.merge(left, self.nodes[right as usize].left);
            self.nodes[right as usize].left = joined;
            self.update(right);
            right
        }
    }

    /// Takes the node with that key out of a tree; gives the new root of the tree.
    fn remove_below(&mut self, node: u32, key: (u64, IntervalId)) -> u32 {
        assert_ne!(node, NIL, "an interval in the arena is in the tree");
        let Node { left, right, .. } = self.nodes[node as usize];
        match key.cmp(&self.key(node)) {
            Ordering::Equal => return self.merge(left, right),
            Ordering::Less => self.nodes[node as usize].left = self.remove_below(left, key),
            Ordering::Greater => self.nodes[node as usize].right = self.remove_below(right, key),
        }
        self.update(node);
        node
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Full, Interval, IntervalSet};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn interval_set_is_a_list(
            ops in prop::collection::vec((0..3u8, 0..200u64, 1..40u64), 1..300),
        ) {
            let mut set = IntervalSet::new(64);
            let mut list: Vec<Interval<u8>> = Vec::new();
            for (nr, (op, start, len)) in ops.into_iter().enumerate() {
                if op < 2 {
                    match set.insert(start, len, op, nr as u64) {
                        Ok(id) => list.push(*set.get(id).expect("just inserted")),
                        Err(full) => {
                            prop_assert_eq!(full, Full { capacity: 64 });
                            prop_assert_eq!(list.len(), 64);
                        }
                    }
                } else if !list.is_empty() {
                    let gone = list.swap_remove(start as usize % list.len());
                    prop_assert_eq!(set.remove(gone.id), Some(gone));
                    prop_assert_eq!(set.remove(gone.id), None);
                    prop_assert!(!set.set_kind(gone.id, 9));
                }
                prop_assert_eq!(set.len(), list.len());
                let overlaps = |i: &&Interval<u8>| i.start < start + len && i.end > start;
                let mut expected: Vec<_> = list.iter().filter(overlaps).collect();
                expected.sort_by_key(|interval| (interval.start, interval.id));
                prop_assert_eq!(set.conflicts(start, len).collect::<Vec<_>>(), expected);
                prop_assert_eq!(set.conflicts(start, 0).count(), 0);
                prop_assert_eq!(set.iter().count(), list.len());
            }
        }
    }

    #[test]
    fn interval_ends_are_half_open() {
        let mut set = IntervalSet::new(2);
        let id = set.insert(8, 8, 'w', 1).expect("room");
        assert_eq!(set.conflicts(0, 8).count(), 0);
        assert_eq!(set.conflicts(16, 8).count(), 0);
        assert_eq!(set.conflicts(15, 1).count(), 1);
        assert_eq!(set.conflicts(0, u64::MAX).count(), 1);
        assert!(set.set_kind(id, 'r'));
        assert_eq!(set.get(id).map(|interval| interval.kind), Some('r'));
    }

    #[test]
    fn interval_arena_is_reused() {
        let mut set = IntervalSet::new(1000);
        for round in 0..2500 {
            let id = set.insert(round % 977 * 8, 8, (), round).expect("room");
            if round >= 999 {
                let oldest = *set.iter().min_by_key(|i| i.owner).expect("not empty");
                set.remove(oldest.id);
            }
            assert!(set.get(id).is_some());
        }
        assert_eq!((set.len(), set.nodes.len(), set.nodes.capacity()), (999, 1000, 1000));
    }
}
