use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::{ActivityLog, CONTEXT_SLOTS, Counters, FREE, Get, MAX_UPDATES, Transaction};
use super::{extent_of, extents_of};

fn commit(log: &mut ActivityLog) -> Transaction {
    let transaction = log.prepare_transaction().expect("something to write");
    log.committed();
    transaction
}

/// What is left of the ring after a crash: its last transactions, oldest first, replayed by the reference's rule.
fn replay<'a>(ring: impl Iterator<Item = &'a Transaction>) -> BTreeSet<u32> {
    let mut slots = Vec::new();
    for transaction in ring {
        slots.resize(usize::from(transaction.context_size), FREE);
        let start = usize::from(transaction.context_start);
        let context = transaction.context();
        slots[start..start + context.len()].copy_from_slice(context);
        for update in transaction.updates() {
            slots[usize::from(update.slot)] = update.extent;
        }
    }
    slots.retain(|extent| *extent != FREE);
    slots.into_iter().collect()
}

#[test]
fn activity_log_hit_miss_and_eviction() {
    let mut log = ActivityLog::new(2, 7);
    assert_eq!(log.try_get(10), Get::Miss);
    assert_eq!(log.try_get(10), Get::Pending);
    let transaction = log.prepare_transaction().expect("a miss");
    assert_eq!((transaction.tr_number, transaction.context_size), (7, 2));
    assert_eq!(transaction.context(), [10, FREE]);
    assert_eq!(log.try_get(10), Get::Pending);
    assert_eq!(log.try_get(11), Get::Miss);
    assert!(log.prepare_transaction().is_none(), "one at a time");
    log.committed();
    assert_eq!(log.try_get(10), Get::Active);
    commit(&mut log);
    assert_eq!(log.try_get(11), Get::Active);

    // All slots are referenced: a third extent has to wait for a put.
    assert_eq!(log.try_get(12), Get::Miss);
    assert!(log.prepare_transaction().is_none());
    log.put(10);
    let transaction = commit(&mut log);
    assert_eq!(transaction.evicted(), [10]);
    assert_eq!((transaction.updates()[0].slot, transaction.tr_number), (0, 9));
    assert!(!log.active(10) && log.active(12));
    assert_eq!((log.refs(11), log.refs_total()), (1, 1));
    assert_eq!(log.iter_active().collect::<Vec<_>>(), [12, 11]);
    let counters = Counters { hits: 2, misses: 3, starving: 0, transactions: 3, evictions: 1 };
    assert_eq!(log.counters(), counters);
}

#[test]
fn activity_log_evicts_the_longest_unused() {
    let mut log = ActivityLog::new(3, 0);
    for extent in [1, 2, 3] {
        assert_eq!(log.try_get(extent), Get::Miss);
    }
    commit(&mut log);
    for extent in [1, 2, 3, 1] {
        assert_eq!(log.try_get(extent), Get::Active);
        log.put(extent);
    }
    assert_eq!(log.try_get(4), Get::Miss);
    assert_eq!(commit(&mut log).evicted(), [2]);
}

#[test]
fn activity_log_batches_64_changes() {
    let mut log = ActivityLog::new(1237, 0);
    for extent in 0..70 {
        let expected = if extent < 64 { Get::Miss } else { Get::Starving };
        assert_eq!(log.try_get(extent), expected);
    }
    assert_eq!(commit(&mut log).updates().len(), MAX_UPDATES);
    assert_eq!(log.counters().starving, 6);
    assert!(!log.has_wanted());
}

#[test]
fn activity_log_context_window_advances_by_919() {
    let mut log = ActivityLog::new(2000, 0);
    let windows: Vec<_> = (0..5)
        .map(|extent| {
            log.try_get(extent);
            let transaction = commit(&mut log);
            (transaction.context_start, transaction.context().len())
        })
        .collect();
    let full = CONTEXT_SLOTS;
    assert_eq!(windows, [(0, full), (919, full), (1838, 162), (0, full), (919, full)]);
}

#[test]
fn activity_log_exact_window_restarts_at_zero() {
    let mut log = ActivityLog::new(919, u32::MAX);
    for (extent, tr_number) in [(0, u32::MAX), (1, 0)] {
        log.try_get(extent);
        let transaction = commit(&mut log);
        assert_eq!((transaction.tr_number, transaction.context_start), (tr_number, 0));
    }
}

#[test]
fn activity_log_a_range_takes_all_or_nothing() {
    let mut log = ActivityLog::new(67, 0);
    log.try_get(5);
    commit(&mut log);
    assert_eq!(log.try_get_range(4..=6), Get::Miss);
    assert_eq!(log.refs_total(), 0);
    assert_eq!(log.try_get_range(4..=6), Get::Pending);
    commit(&mut log);
    assert_eq!(log.try_get_range(4..=6), Get::Active);
    assert_eq!(log.refs_total(), 3);
    log.put_range(4..=6);
    assert_eq!(log.refs_total(), 0);
}

#[test]
fn activity_log_extents_of_sectors() {
    assert_eq!(extent_of(8191), 0);
    assert_eq!(extents_of(8191, 1), 0..=0);
    assert_eq!(extents_of(8191, 2), 0..=1);
    assert_eq!(extents_of(4096, 262_144).count(), 33);
}

/// Callers as the module describes them: they wait in order and retry right after a commit.
#[derive(Debug)]
struct Callers {
    log: ActivityLog,
    waiting: VecDeque<(u32, u32)>,
    running: Vec<(u32, u32)>,
    /// Ring of four blocks: with up to 2 * 919 slots three transactions repeat everything.
    ring: VecDeque<Transaction>,
    in_flight: Option<Transaction>,
}

impl Callers {
    fn retry(&mut self) {
        for _ in 0..self.waiting.len() {
            let (first, last) = self.waiting.pop_front().expect("counted");
            match self.log.try_get_range(first..=last) {
                Get::Active => self.running.push((first, last)),
                _ => self.waiting.push_back((first, last)),
            }
        }
    }

    fn prepare(&mut self) {
        if let Some(transaction) = self.log.prepare_transaction() {
            let evicted = transaction.evicted().iter();
            assert!(evicted.clone().all(|extent| !self.log.active(*extent)));
            for (first, last) in &self.running {
                assert!(evicted.clone().all(|extent| extent < first || extent > last));
            }
            self.in_flight = Some(transaction);
        }
    }

    fn finish(&mut self, nr: usize) {
        if !self.running.is_empty() {
            let (first, last) = self.running.swap_remove(nr % self.running.len());
            self.log.put_range(first..=last);
            self.retry();
        }
    }

    fn commit(&mut self) {
        if let Some(transaction) = self.in_flight.take() {
            self.ring.push_back(transaction);
            if self.ring.len() > 4 {
                self.ring.pop_front();
            }
            self.log.committed();
            self.retry();
        }
    }

    /// A crash now, with the transaction in flight written or not, finds every extent that is written to.
    fn check(&self) {
        let written = replay(self.ring.iter());
        let with_in_flight = replay(self.ring.iter().chain(&self.in_flight));
        for hot in [written, with_in_flight] {
            for (first, last) in &self.running {
                assert!((*first..=*last).all(|extent| hot.contains(&extent)));
            }
        }
        let refs: u32 = self.running.iter().map(|(first, last)| last - first + 1).sum();
        assert_eq!(self.log.refs_total(), u64::from(refs));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn activity_log_replay_covers_every_reference(
        nr_slots in prop_oneof![8..80u16, 900..1838u16],
        ops in prop::collection::vec((0..4u8, 0..120u32, prop_oneof![3 => Just(0u32), 1 => 0..8u32]), 1..150),
    ) {
        let mut callers = Callers {
            log: ActivityLog::new(nr_slots, u32::MAX - 3),
            waiting: VecDeque::new(),
            running: Vec::new(),
            ring: VecDeque::new(),
            in_flight: None,
        };
        for (op, extent, more) in ops {
            match op {
                0 | 1 => match callers.log.try_get_range(extent..=extent + more) {
                    Get::Active => callers.running.push((extent, extent + more)),
                    _ => callers.waiting.push_back((extent, extent + more)),
                },
                2 => callers.commit(),
                _ => callers.finish(extent as usize),
            }
            if op != 1 {
                callers.prepare();
            }
            callers.check();
        }
        // Everybody gets their extents in the end.
        let mut turns = 0;
        while !callers.waiting.is_empty() || !callers.running.is_empty() {
            callers.prepare();
            callers.commit();
            callers.check();
            if turns % 2 == 1 || callers.in_flight.is_none() {
                callers.finish(turns);
            }
            turns += 1;
            prop_assert!(turns < 1000, "no progress: {:?}", callers.waiting);
        }
    }
}
