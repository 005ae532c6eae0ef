//! What a correct cluster may answer: for each sector the writes that a read may return, and who owes which of them.
//!
//! * Every write has its own value in every sector, so that a misplaced, stale or torn sector is told apart.
//! * A node *holds* a write when the protocol promises so: the Primary that completed it, and with protocols B and C
//!   every peer that it was connected to and that was UpToDate at the completion. A power loss takes away what no flush
//!   or FUA covered. A replica that was resynced holds what its source holds; two replicas that connect without a resync
//!   hold what either does.
//! * A read at a node may return any write that does not lie strictly before one that the node holds. "Before" is the
//!   order of real time: completed (or failed, or its Primary died) before the other was submitted.
//! * A resync that throws away what its target holds is a violation unless somebody asked for it
//!   (`--force`, discard-my-data, invalidate): [`Model::forgive`].

use std::collections::{BTreeMap, BTreeSet};

use crate::pool::Tag;

/// A sector of a volume.
pub type Key = (u16, u64);
type WriteIx = u32;
/// Volumes that a value has room for.
const VOLUMES: u16 = 16;

/// How a write ended, as the front end knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Not yet.
    InFlight,
    /// Completed well.
    Acked,
    /// Completed with an error, or its Primary died: it may have happened or not.
    Unknown,
}

#[derive(Debug, Clone)]
struct Write {
    node: usize,
    key: Key,
    sectors: u64,
    zero: bool,
    submitted: u64,
    ended: Option<u64>,
    fate: Fate,
    /// Acknowledged before a connected peer wrote it (protocols A and B): a fail-over may lose it, and a Primary that
    /// crashed and returns is the source for its peers.
    weak: bool,
}

impl Write {
    fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        let (volume, first) = self.key;
        (first..first + self.sectors).map(move |s| (volume, s))
    }
}

#[derive(Debug, Clone, Copy)]
struct Held {
    write: WriteIx,
    since: u64,
    stable: bool,
    /// Known from a read only, promised by nobody.
    observed: bool,
}

/// What the model promises for one node.
#[derive(Debug, Default, Clone)]
struct View {
    held: BTreeMap<Key, Vec<Held>>,
    volatile: BTreeSet<Key>,
    /// What a power loss took, and whether the node was promoted since without the other replicas: then it goes on
    /// from what it has left, and whoever meets it follows.
    lost: BTreeMap<Key, Vec<WriteIx>>,
    went_on_alone: bool,
}

/// A read between submission and completion: for each sector the writes that its node held when it began.
#[derive(Debug)]
pub struct ReadTicket {
    node: usize,
    first: Key,
    began: u64,
    held: Vec<Vec<WriteIx>>,
}

/// A flush between submission and completion.
#[derive(Debug, Clone, Copy)]
pub struct FlushTicket(u64);

/// The model of all volumes of the resource.
#[derive(Debug)]
pub struct Model {
    now: u64,
    writes: Vec<Write>,
    history: BTreeMap<Key, Vec<WriteIx>>,
    views: Vec<View>,
    forgiven: BTreeSet<(usize, u16)>,
}

/// The value of a write in one of its sectors.
fn value_of(index: WriteIx, write: &Write, (volume, sector): Key) -> Tag {
    if write.zero { 0 } else { (u64::from(index) + 1) << 36 | u64::from(volume) << 32 | (sector & 0xffff_ffff) }
}

/// Which write a value belongs to, for messages.
pub fn describe_tag(tag: Tag) -> String {
    match tag {
        0 => "zero".into(),
        crate::pool::POISON => "a buffer that nobody filled".into(),
        _ => format!("write #{} for volume {} sector {}", (tag >> 36) - 1, tag >> 32 & 0xf, tag & 0xffff_ffff),
    }
}

impl Model {
    /// A model of a cluster whose volumes hold zeroes.
    pub fn new(nodes: usize) -> Model {
        Model {
            now: 0,
            writes: Vec::new(),
            history: BTreeMap::new(),
            views: vec![View::default(); nodes],
            forgiven: BTreeSet::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A write begins. Returns its number and the values of its sectors.
    pub fn write_begins(&mut self, node: usize, key: Key, sectors: u64, zero: bool) -> (WriteIx, Vec<Tag>) {
        let submitted = self.tick();
        let index = self.writes.len() as WriteIx;
        let write = Write { node, key, sectors, zero, submitted, ended: None, fate: Fate::InFlight, weak: false };
        let tags = write.keys().map(|k| value_of(index, &write, k)).collect();
        for k in write.keys() {
            self.history.entry(k).or_default().push(index);
        }
        self.writes.push(write);
        (index, tags)
    }

    /// A write ended well: `holders` hold it, those of `stable` on stable storage (FUA).
    pub fn write_acked(&mut self, index: WriteIx, holders: &[usize], stable: &[usize]) {
        let now = self.tick();
        let write = &mut self.writes[index as usize];
        (write.ended, write.fate) = (Some(now), Fate::Acked);
        let keys: Vec<Key> = write.keys().collect();
        for &node in holders {
            for key in &keys {
                let stable = stable.contains(&node);
                self.hold(node, *key, Held { write: index, since: now, stable, observed: false });
            }
        }
    }

    /// A write was acknowledged before a connected peer wrote it.
    pub fn write_is_weak(&mut self, index: WriteIx) {
        self.writes[index as usize].weak = true;
    }

    /// A write failed, or its Primary died.
    pub fn write_unknown(&mut self, index: WriteIx) {
        let now = self.tick();
        let write = &mut self.writes[index as usize];
        (write.ended, write.fate) = (Some(now), Fate::Unknown);
    }

    /// Data that was there before the world began, on one node.
    pub fn preset(&mut self, node: usize, key: Key, sectors: u64) -> Vec<Tag> {
        let (index, tags) = self.write_begins(node, key, sectors, false);
        self.write_acked(index, &[node], &[node]);
        tags
    }

    fn before(&self, a: WriteIx, b: WriteIx) -> bool {
        a != b && self.writes[a as usize].ended.is_some_and(|end| end < self.writes[b as usize].submitted)
    }

    fn hold(&mut self, node: usize, key: Key, new: Held) {
        let view = &self.views[node];
        let old = view.held.get(&key).cloned().unwrap_or_default();
        let mut kept: Vec<Held> = Vec::with_capacity(old.len() + 1);
        for held in old {
            let superseded = held.write == new.write || (new.stable && self.before(held.write, new.write));
            if !superseded {
                kept.push(held);
            }
        }
        kept.push(new);
        let volatile = kept.iter().any(|h| !h.stable);
        let view = &mut self.views[node];
        view.held.insert(key, kept);
        if volatile {
            view.volatile.insert(key);
        }
    }

    /// A flush begins.
    pub fn flush_begins(&mut self) -> FlushTicket {
        FlushTicket(self.tick())
    }

    /// A flush of a volume ended well: what these nodes held when it began is stable.
    pub fn flush_acked(&mut self, ticket: FlushTicket, volume: u16, nodes: &[usize]) {
        self.tick();
        for &node in nodes {
            let (hit, rest) = std::mem::take(&mut self.views[node].volatile).into_iter().partition(|k| k.0 == volume);
            self.views[node].volatile = rest;
            let hit: BTreeSet<Key> = hit;
            for key in hit {
                let mut list = self.views[node].held.remove(&key).unwrap_or_default();
                for held in list.iter_mut().filter(|h| h.since < ticket.0) {
                    held.stable = true;
                }
                let pruned = self.prune(&list);
                if pruned.iter().any(|h| !h.stable) {
                    self.views[node].volatile.insert(key);
                }
                self.views[node].held.insert(key, pruned);
            }
        }
    }

    /// Without what lies before something that is stable.
    fn prune(&self, list: &[Held]) -> Vec<Held> {
        list.iter().filter(|h| !list.iter().any(|s| s.stable && self.before(h.write, s.write))).copied().collect()
    }

    /// A node lost its power, and with it what its disks had not made stable.
    pub fn node_crashed(&mut self, node: usize) {
        self.tick();
        let view = &mut self.views[node];
        view.volatile.clear();
        view.went_on_alone = false;
        for (key, list) in &mut view.held {
            let (kept, gone): (Vec<Held>, Vec<Held>) = list.iter().partition(|h| h.stable);
            *list = kept;
            if !gone.is_empty() {
                view.lost.entry(*key).or_default().extend(gone.iter().map(|h| h.write));
            }
        }
        view.held.retain(|_, list| !list.is_empty());
    }

    /// A node becomes Primary while it is not in sync with every other replica.
    pub fn promoted_alone(&mut self, node: usize) {
        self.views[node].went_on_alone = true;
    }

    /// A replica of a volume was resynced: it holds what its source holds. Returns an acknowledged write that was lost by it.
    pub fn resynced(&mut self, target: usize, source: usize, volume: u16) -> Option<String> {
        let now = self.tick();
        let lost = if self.forgiven.remove(&(target, volume)) { None } else { self.find_lost(target, source, volume) };
        self.views[target].lost = self.views[source].lost.clone();
        self.views[target].went_on_alone = self.views[source].went_on_alone;
        let range = (volume, 0)..=(volume, u64::MAX);
        let copied: Vec<(Key, Vec<Held>)> =
            self.views[source].held.range(range.clone()).map(|(k, v)| (*k, v.clone())).collect();
        let keys: Vec<Key> = self.views[target].held.range(range).map(|(k, _)| *k).collect();
        for key in keys {
            self.views[target].held.remove(&key);
            self.views[target].volatile.remove(&key);
        }
        for (key, mut list) in copied {
            for held in &mut list {
                (held.stable, held.since) = (false, now);
            }
            self.views[target].volatile.insert(key);
            self.views[target].held.insert(key, list);
        }
        lost
    }

    fn find_lost(&self, target: usize, source: usize, volume: u16) -> Option<String> {
        for (key, list) in self.views[target].held.range((volume, 0)..=(volume, u64::MAX)) {
            let source_holds = self.views[source].held.get(key).map_or(&[][..], Vec::as_slice);
            for held in list.iter().filter(|h| !h.observed) {
                let overridden = list.iter().any(|h| self.before(held.write, h.write));
                let source_view = &self.views[source];
                let weak = self.writes[held.write as usize].weak;
                let lost = source_view.lost.get(key).is_some_and(|l| l.contains(&held.write));
                let excused = (source_view.went_on_alone && (weak || lost)) || (weak && lost);
                let kept =
                    excused || source_holds.iter().any(|s| s.write == held.write || !self.before(s.write, held.write));
                if !overridden && !kept {
                    return Some(format!(
                        "a resync from node {source} to node {target} throws away {} (acknowledged by node {})",
                        describe_tag(value_of(held.write, &self.writes[held.write as usize], *key)),
                        self.writes[held.write as usize].node,
                    ));
                }
            }
        }
        None
    }

    /// Two UpToDate replicas of a volume are connected: each holds what either holds.
    pub fn joined(&mut self, a: usize, b: usize, volume: u16) {
        let now = self.tick();
        for (to, from) in [(a, b), (b, a)] {
            let all: Vec<(Key, Vec<Held>)> =
                self.views[from].held.range((volume, 0)..=(volume, u64::MAX)).map(|(k, v)| (*k, v.clone())).collect();
            for (key, list) in all {
                for held in list {
                    let known = self.views[to].held.get(&key).is_some_and(|l| l.iter().any(|h| h.write == held.write));
                    if !known && !held.observed {
                        self.hold(to, key, Held { stable: false, since: now, ..held });
                    }
                }
            }
        }
    }

    /// Somebody asked that the data of this node be thrown away: the next resync towards it may lose acknowledged writes.
    pub fn forgive(&mut self, node: usize) {
        self.forgiven.extend((0..VOLUMES).map(|volume| (node, volume)));
    }

    /// The writes that may be found in a sector on a node that is the reference for its data, given what it held.
    fn allowed(&self, key: Key, held: &[WriteIx]) -> Vec<Tag> {
        let all = self.history.get(&key).map_or(&[][..], Vec::as_slice);
        let mut tags: Vec<Tag> = all
            .iter()
            .filter(|w| !held.iter().any(|h| self.before(**w, *h)))
            .map(|w| value_of(*w, &self.writes[*w as usize], key))
            .collect();
        if held.is_empty() {
            tags.push(0);
        }
        tags
    }

    fn held_writes(&self, node: usize, key: Key) -> Vec<WriteIx> {
        self.views[node].held.get(&key).map(|l| l.iter().map(|h| h.write).collect()).unwrap_or_default()
    }

    /// A read begins.
    pub fn read_begins(&mut self, node: usize, first: Key, sectors: u64) -> ReadTicket {
        let began = self.tick();
        let held = (first.1..first.1 + sectors).map(|s| self.held_writes(node, (first.0, s))).collect();
        ReadTicket { node, first, began, held }
    }

    /// A read ended well with these values.
    ///
    /// # Errors
    /// The first sector that holds what it may not.
    pub fn read_ended(&mut self, ticket: &ReadTicket, tags: &[Tag]) -> Result<(), String> {
        self.tick();
        for ((offset, held), tag) in ticket.held.iter().enumerate().zip(tags) {
            let key = (ticket.first.0, ticket.first.1 + offset as u64);
            self.check_value(ticket.node, key, held, *tag, "a read")?;
            self.observe(ticket, key, *tag);
        }
        Ok(())
    }

    fn check_value(&self, node: usize, key: Key, held: &[WriteIx], tag: Tag, what: &str) -> Result<(), String> {
        let allowed = self.allowed(key, held);
        if allowed.contains(&tag) {
            return Ok(());
        }
        let allowed: Vec<String> = allowed.iter().map(|t| describe_tag(*t)).collect();
        Err(format!(
            "{what} at node {node}, volume {} sector {} found {}; allowed: {}",
            key.0,
            key.1,
            describe_tag(tag),
            allowed.join(", ")
        ))
    }

    /// What a read saw without a write going on must be seen again by its node.
    fn observe(&mut self, ticket: &ReadTicket, key: Key, tag: Tag) {
        let Some(history) = self.history.get(&key) else {
            return;
        };
        let quiet = |w: &WriteIx| self.writes[*w as usize].ended.is_some_and(|end| end < ticket.began);
        if !history.iter().all(quiet) {
            return;
        }
        let seen = history.iter().rev().find(|w| value_of(**w, &self.writes[**w as usize], key) == tag).copied();
        if let Some(write) = seen
            && !self.held_writes(ticket.node, key).contains(&write)
        {
            self.hold(ticket.node, key, Held { write, since: self.now, stable: false, observed: true });
        }
    }

    /// Checks a replica's disk against the model, sector by sector; `busy` names sectors that are being written.
    ///
    /// # Errors
    /// The first sector that holds what it may not.
    pub fn check_disk(
        &self,
        node: usize,
        volume: u16,
        read: impl Fn(u64) -> Tag,
        busy: impl Fn(u64) -> bool,
    ) -> Result<(), String> {
        for key in self.history.range((volume, 0)..=(volume, u64::MAX)).map(|(k, _)| *k) {
            if !busy(key.1) {
                self.check_value(node, key, &self.held_writes(node, key), read(key.1), "the disk")?;
            }
        }
        Ok(())
    }

    /// Sectors of a volume that somebody wrote.
    pub fn touched(&self, volume: u16) -> impl Iterator<Item = u64> + '_ {
        self.history.range((volume, 0)..=(volume, u64::MAX)).map(|(k, _)| k.1)
    }

    /// Whether a write to this sector is not completed.
    pub fn write_in_flight(&self, key: Key) -> bool {
        let in_flight = |w: &WriteIx| self.writes[*w as usize].fate == Fate::InFlight;
        self.history.get(&key).is_some_and(|h| h.iter().rev().take(64).any(in_flight))
    }

    /// Number of writes so far.
    pub fn writes(&self) -> usize {
        self.writes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: Key = (0, 8);

    fn read(model: &mut Model, node: usize, tag: Tag) -> Result<(), String> {
        let ticket = model.read_begins(node, K, 1);
        model.read_ended(&ticket, &[tag])
    }

    fn acked(model: &mut Model, holders: &[usize]) -> Tag {
        let (index, tags) = model.write_begins(0, K, 1, false);
        model.write_acked(index, holders, &[]);
        tags[0]
    }

    #[test]
    fn sim_model_wants_the_last_acknowledged_write() {
        let mut m = Model::new(2);
        assert!(read(&mut m, 0, 0).is_ok());
        let old = acked(&mut m, &[0, 1]);
        let new = acked(&mut m, &[0, 1]);
        assert!(read(&mut m, 0, new).is_ok());
        assert!(read(&mut m, 0, old).is_err());
        assert!(read(&mut m, 1, 0).is_err());
    }

    #[test]
    fn sim_model_allows_either_order_of_writes_in_flight_together() {
        let mut m = Model::new(1);
        let (a, tag_a) = m.write_begins(0, K, 1, false);
        let (b, tag_b) = m.write_begins(0, K, 1, false);
        assert!(read(&mut m, 0, 0).is_ok());
        m.write_acked(a, &[0], &[]);
        m.write_acked(b, &[0], &[]);
        assert!(read(&mut m, 0, 0).is_err());
        assert!(read(&mut m, 0, tag_a[0]).is_ok());
        assert!(read(&mut m, 0, tag_b[0]).is_ok(), "nothing orders the two");
    }

    #[test]
    fn sim_model_lets_a_crash_take_what_no_flush_covered() {
        let mut m = Model::new(2);
        let first = acked(&mut m, &[0, 1]);
        let flush = m.flush_begins();
        m.flush_acked(flush, 0, &[0, 1]);
        let second = acked(&mut m, &[0, 1]);
        m.node_crashed(0);
        assert!(read(&mut m, 0, second).is_ok());
        assert!(read(&mut m, 1, first).is_err());
        m.node_crashed(0);
        assert!(read(&mut m, 0, first).is_ok());
        assert!(read(&mut m, 0, 0).is_err());
    }

    #[test]
    fn sim_model_finds_a_resync_in_the_wrong_direction() {
        let mut m = Model::new(2);
        acked(&mut m, &[0, 1]);
        acked(&mut m, &[0]);
        assert!(m.resynced(0, 1, 0).is_some());
        let mut m = Model::new(2);
        acked(&mut m, &[0, 1]);
        acked(&mut m, &[0]);
        assert!(m.resynced(1, 0, 0).is_none());
        acked(&mut m, &[0]);
        m.forgive(0);
        assert!(m.resynced(0, 1, 0).is_none());
    }
}
