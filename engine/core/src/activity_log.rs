//! The activity log in memory: which 4 MiB extents may have writes in flight, in an LRU of `al-extents` slots.
//!
//! A write may go to the backing device only while every extent it touches is *active*: in a slot, and recorded so by
//! a transaction that is stable on disk. Misses are collected and changed up to 64 at a time; at most one transaction
//! is in flight. Nothing here waits: a caller that does not get its extents keeps its own list, and tries again
//! *right after* [`ActivityLog::committed`] (and after [`ActivityLog::put`] if it was starving), oldest first.
//!
//! Progress: a request takes references on all of its extents or on none, so references are only held by requests
//! that run. What a request found active while it missed others, and what a transaction made active, is kept until
//! it is used or the next commit. If that leaves nothing to evict and nobody runs who could drop a reference, the
//! request that asked first gets all of its extents at the cost of the others.
//!
//! Rules: reference ondisk-metadata.md section 6. No allocation after [`ActivityLog::new`].

mod index;

use std::ops::RangeInclusive;

use index::ExtentIndex;
use rkyv::{Archive, Deserialize, Serialize};

/// Slot changes in one transaction.
pub const MAX_UPDATES: usize = 64;
/// Slots of the context window in one transaction.
pub const CONTEXT_SLOTS: usize = 919;
/// Extent number of a slot that is free.
pub const FREE: u32 = u32::MAX;
/// Most slots (`al-extents`).
pub const MAX_SLOTS: u16 = 65534;

/// The extent that `sector` lies in.
///
/// # Panics
/// Beyond 2^32 extents; sectors are checked against the device size before.
pub fn extent_of(sector: u64) -> u32 {
    u32::try_from(sector >> 13).expect("sector within the device")
}

/// All extents that `sectors` (at least 1) sectors from `sector` touch.
pub fn extents_of(sector: u64, sectors: u64) -> RangeInclusive<u32> {
    extent_of(sector)..=extent_of(sector + sectors - 1)
}

/// Outcome of [`ActivityLog::try_get`]. Only [`Get::Active`] takes references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Get {
    /// References are taken; give them back with [`ActivityLog::put`] or [`ActivityLog::put_range`].
    Active,
    /// All that is missing was asked for before: try again after the next commit.
    Pending,
    /// Newly asked for: call [`ActivityLog::prepare_transaction`], try again after the commit.
    Miss,
    /// The batch is full: try again after the next commit, or after a reference was dropped.
    Starving,
}

/// One slot change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// Slot number.
    pub slot: u16,
    /// The extent it holds from now on.
    pub extent: u32,
}

/// What to write. Before it may be written, the on-disk bitmap blocks of all evicted extents must be stable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Number of this transaction; the ring position follows from it.
    pub tr_number: u32,
    /// Number of slots (`al-extents`).
    pub context_size: u16,
    /// First slot of the context window.
    pub context_start: u16,
    updates: [Update; MAX_UPDATES],
    updates_len: usize,
    evicted: [u32; MAX_UPDATES],
    evicted_len: usize,
    context: [u32; CONTEXT_SLOTS],
    context_len: usize,
}

impl Transaction {
    /// The slot changes.
    pub fn updates(&self) -> &[Update] {
        &self.updates[..self.updates_len]
    }

    /// The extents that leave the log with this transaction.
    pub fn evicted(&self) -> &[u32] {
        &self.evicted[..self.evicted_len]
    }

    /// The extents in slots `context_start..`, [`FREE`] for a free slot; shorter than [`CONTEXT_SLOTS`] at the end.
    pub fn context(&self) -> &[u32] {
        &self.context[..self.context_len]
    }
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub struct Counters {
    /// Requests that found all their extents active.
    pub hits: u64,
    /// Extents that had to be asked for.
    pub misses: u64,
    /// Requests turned away because the batch was full.
    pub starving: u64,
    /// Transactions prepared.
    pub transactions: u64,
    /// Extents evicted for another one.
    pub evictions: u64,
}

/// End of the LRU list.
const NONE: u16 = u16::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
enum State {
    Free,
    /// In the transaction that is in flight.
    Pending,
    Active,
}

#[derive(Debug, Clone, Copy, Archive, Serialize, Deserialize)]
struct Slot {
    extent: u32,
    refs: u32,
    state: State,
    /// Not evicted while this is the log's `round`: see "progress" above.
    kept_in_round: u64,
    /// Neighbours in the LRU list; valid for active slots without references.
    older: u16,
    newer: u16,
}

#[derive(Debug, Clone, Copy, Archive, Serialize, Deserialize)]
struct Wanted {
    extent: u32,
    /// All extents of the request that asked.
    request: (u32, u32),
}

/// The activity log of one volume.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub struct ActivityLog {
    slots: Box<[Slot]>,
    index: ExtentIndex,
    oldest: u16,
    newest: u16,
    /// Slots below are in use; free ones are taken in ascending order and never become free again.
    used: usize,
    /// Extents asked for that have no slot yet, in the order they were asked for.
    wanted: Vec<Wanted>,
    /// Slots changed by the transaction in flight.
    pending: Vec<u16>,
    /// 1 + number of commits.
    round: u64,
    tr_number: u32,
    context_start: usize,
    refs_total: u64,
    counters: Counters,
}

impl ActivityLog {
    /// An empty log of `nr_slots` slots; its first transaction gets `tr_number` (0 after attach).
    ///
    /// # Panics
    /// If `nr_slots` is 0 or above [`MAX_SLOTS`]: configured values are sanitised before.
    pub fn new(nr_slots: u16, tr_number: u32) -> Self {
        assert!((1..=MAX_SLOTS).contains(&nr_slots), "{nr_slots} slots");
        let free = Slot { extent: FREE, refs: 0, state: State::Free, kept_in_round: 0, older: NONE, newer: NONE };
        ActivityLog {
            slots: vec![free; usize::from(nr_slots)].into_boxed_slice(),
            index: ExtentIndex::new(usize::from(nr_slots)),
            oldest: NONE,
            newest: NONE,
            used: 0,
            wanted: Vec::with_capacity(MAX_UPDATES),
            pending: Vec::with_capacity(MAX_UPDATES),
            round: 1,
            tr_number,
            context_start: 0,
            refs_total: 0,
            counters: Counters::default(),
        }
    }

    /// Tries to take a reference on one extent.
    pub fn try_get(&mut self, extent: u32) -> Get {
        self.try_get_range(extent..=extent)
    }

    /// Tries to take a reference on every extent of the range: on all or on none.
    ///
    /// # Panics
    /// If the range has more extents than fit in one batch or in the log: split such a request before.
    pub fn try_get_range(&mut self, extents: RangeInclusive<u32>) -> Get {
        let most = self.slots.len().min(MAX_UPDATES);
        assert!(extents.clone().count() <= most, "extents {extents:?}");
        if extents.clone().all(|extent| self.active(extent)) {
            for extent in extents {
                self.take_reference(extent);
            }
            self.counters.hits += 1;
            return Get::Active;
        }
        for extent in extents.clone() {
            self.keep(extent);
        }
        let missing = |log: &Self, extent: &u32| {
            log.index.get(*extent).is_none() && log.wanted.iter().all(|w| w.extent != *extent)
        };
        let count = extents.clone().filter(|e| missing(self, e)).count();
        if count == 0 {
            return Get::Pending;
        }
        if self.wanted.len() + count > MAX_UPDATES {
            self.counters.starving += 1;
            return Get::Starving;
        }
        let request = (*extents.start(), *extents.end());
        for extent in extents {
            if missing(self, &extent) {
                self.wanted.push(Wanted { extent, request });
            }
        }
        self.counters.misses += count as u64;
        Get::Miss
    }

    fn take_reference(&mut self, extent: u32) {
        let nr = self.index.get(extent).expect("active extents have a slot");
        if self.slots[usize::from(nr)].refs == 0 {
            self.unlink(nr);
        }
        let slot = &mut self.slots[usize::from(nr)];
        slot.refs += 1;
        slot.kept_in_round = 0;
        self.refs_total += 1;
    }

    /// Drops one reference.
    ///
    /// # Panics
    /// If there is none.
    pub fn put(&mut self, extent: u32) {
        let nr = self.index.get(extent).expect("a referenced extent has a slot");
        let slot = &mut self.slots[usize::from(nr)];
        assert!(slot.refs > 0, "extent {extent} has no reference to drop");
        slot.refs -= 1;
        self.refs_total -= 1;
        if slot.refs == 0 {
            self.link_newest(nr);
        }
    }

    /// Drops one reference on every extent of the range.
    pub fn put_range(&mut self, extents: RangeInclusive<u32>) {
        for extent in extents {
            self.put(extent);
        }
    }

    /// Collects what was asked for into the next transaction: free slots first, then the longest unused ones. `None`
    /// while one is in flight, when nothing is asked for, or when every slot is referenced (try again after a put).
    pub fn prepare_transaction(&mut self) -> Option<Transaction> {
        if self.in_flight() || self.wanted.is_empty() {
            return None;
        }
        let mut transaction = Transaction {
            tr_number: self.tr_number,
            context_size: self.slots.len() as u16,
            context_start: self.context_start as u16,
            updates: [Update { slot: u16::MAX, extent: FREE }; MAX_UPDATES],
            updates_len: 0,
            evicted: [FREE; MAX_UPDATES],
            evicted_len: 0,
            context: [FREE; CONTEXT_SLOTS],
            context_len: 0,
        };
        self.fill_updates(&mut transaction);
        if transaction.updates_len == 0 {
            return None;
        }
        let index = &self.index;
        self.wanted.retain(|wanted| index.get(wanted.extent).is_none());
        self.fill_context(&mut transaction);
        self.tr_number = self.tr_number.wrapping_add(1);
        self.counters.transactions += 1;
        Some(transaction)
    }

    fn fill_updates(&mut self, transaction: &mut Transaction) {
        let mut candidate = self.oldest;
        for position in 0..self.wanted.len() {
            let slot = self.free_slot();
            let Some(nr) = slot.or_else(|| self.next_victim(&mut candidate, |_| true)) else {
                break;
            };
            self.assign(nr, self.wanted[position].extent, transaction);
        }
        if transaction.updates_len == 0 && self.refs_total == 0 {
            self.fill_for_first_request(transaction);
        }
    }

    /// All slots are kept for requests that wait: serve the first one completely.
    fn fill_for_first_request(&mut self, transaction: &mut Transaction) {
        self.round += 1;
        let (first, last) = self.wanted[0].request;
        let mut candidate = self.oldest;
        for extent in first..=last {
            if self.index.get(extent).is_none() {
                let others = |extent| extent < first || extent > last;
                let nr = self.next_victim(&mut candidate, others);
                let nr = nr.expect("a request has no more extents than there are slots");
                self.assign(nr, extent, transaction);
            }
        }
    }

    /// Puts `extent` into slot `nr`.
    fn assign(&mut self, nr: u16, extent: u32, transaction: &mut Transaction) {
        let old = self.slots[usize::from(nr)].extent;
        if old != FREE {
            self.unlink(nr);
            self.index.remove(old);
            transaction.evicted[transaction.evicted_len] = old;
            transaction.evicted_len += 1;
            self.counters.evictions += 1;
        }
        let slot = &mut self.slots[usize::from(nr)];
        slot.extent = extent;
        slot.state = State::Pending;
        self.index.insert(extent, nr);
        self.pending.push(nr);
        transaction.updates[transaction.updates_len] = Update { slot: nr, extent };
        transaction.updates_len += 1;
    }

    fn free_slot(&mut self) -> Option<u16> {
        let nr = self.used;
        (nr < self.slots.len()).then(|| {
            self.used += 1;
            nr as u16
        })
    }

    /// The next slot to evict, from `candidate` towards the newer end, among those with an extent that may go.
    fn next_victim(&self, candidate: &mut u16, may_go: impl Fn(u32) -> bool) -> Option<u16> {
        while *candidate != NONE {
            let nr = *candidate;
            let slot = &self.slots[usize::from(nr)];
            *candidate = slot.newer;
            if slot.kept_in_round != self.round && may_go(slot.extent) {
                return Some(nr);
            }
        }
        None
    }

    fn fill_context(&mut self, transaction: &mut Transaction) {
        let end = (self.context_start + CONTEXT_SLOTS).min(self.slots.len());
        let window = &self.slots[self.context_start..end];
        for (entry, slot) in transaction.context.iter_mut().zip(window) {
            *entry = slot.extent;
        }
        transaction.context_len = window.len();
        self.context_start = if end == self.slots.len() { 0 } else { end };
    }

    /// The transaction in flight is stable: its extents are active. Retry what waits for them now.
    ///
    /// # Panics
    /// If there is none in flight.
    pub fn committed(&mut self) {
        assert!(self.in_flight(), "no transaction is in flight");
        self.round += 1;
        for position in 0..self.pending.len() {
            let nr = self.pending[position];
            self.slots[usize::from(nr)].state = State::Active;
            self.slots[usize::from(nr)].kept_in_round = self.round;
            self.link_newest(nr);
        }
        self.pending.clear();
    }

    /// Spares this extent, if it is active, until the next commit.
    fn keep(&mut self, extent: u32) {
        if let Some(nr) = self.index.get(extent) {
            self.slots[usize::from(nr)].kept_in_round = self.round;
        }
    }

    fn link_newest(&mut self, nr: u16) {
        let newest = self.newest;
        let slot = &mut self.slots[usize::from(nr)];
        slot.older = newest;
        slot.newer = NONE;
        match newest {
            NONE => self.oldest = nr,
            other => self.slots[usize::from(other)].newer = nr,
        }
        self.newest = nr;
    }

    fn unlink(&mut self, nr: u16) {
        let Slot { older, newer, .. } = self.slots[usize::from(nr)];
        match older {
            NONE => self.oldest = newer,
            other => self.slots[usize::from(other)].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            other => self.slots[usize::from(other)].older = older,
        }
    }

    /// Is this extent in a slot, and that stable on disk?
    pub fn active(&self, extent: u32) -> bool {
        let slot = self.index.get(extent);
        slot.is_some_and(|nr| self.slots[usize::from(nr)].state == State::Active)
    }

    /// References on this extent.
    pub fn refs(&self, extent: u32) -> u32 {
        let slot = self.index.get(extent);
        slot.map_or(0, |nr| self.slots[usize::from(nr)].refs)
    }

    /// All references.
    pub fn refs_total(&self) -> u64 {
        self.refs_total
    }

    /// All active extents, in slot order.
    pub fn iter_active(&self) -> impl Iterator<Item = u32> + '_ {
        let active = self.slots.iter().filter(|slot| slot.state == State::Active);
        active.map(|slot| slot.extent)
    }

    /// Is a transaction in flight?
    pub fn in_flight(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Is anything asked for that no transaction has taken up yet?
    pub fn has_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Number of slots (`al-extents`).
    pub fn nr_slots(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

#[cfg(test)]
mod tests;
