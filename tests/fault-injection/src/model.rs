//! What a correct cluster may answer: for each sector the writes that a read may return, and who owes which of them.
//!
//! * Every write has its own value in every sector, so that a misplaced, stale or torn sector is told apart.
//! * A node *holds* a write when the protocol promises so: the Primary that completed it, and with protocols B and C
//!   every peer that it was connected to and that was UpToDate at the completion. A power loss takes away what no flush
//!   or FUA covered, any death what was acknowledged and not yet written (protocols A and B). A replica that was resynced holds what its source holds; two replicas that connect without a resync
//!   hold what either does.
//! * A read at a node may return any write that does not lie strictly before one that the node holds. "Before" is the
//!   order of real time: completed (or failed, or its Primary died) before the other was submitted.
//! * A resync that throws away what its target holds is a violation unless somebody asked for it
//!   (`--force`, discard-my-data): [`Model::forgive`], a decision on these writes wherever they are. An invalidated replica
//!   holds nothing: [`Model::gave_up`].

mod lineage;
mod order;
mod read;

use std::collections::{BTreeMap, BTreeSet};

use crate::pool::Tag;
use lineage::Lineage;
use order::Order;
pub use read::ReadTicket;

/// A sector of a volume.
pub type Key = (u16, u64);
type WriteIx = u32;
/// Number of a sector that somebody wrote, in the order of first writes.
type Id = usize;
/// Nodes, a bit for each.
type Witnesses = u32;
/// Volumes that a value has room for.
const VOLUMES: u16 = 16;
const UNTOUCHED: u32 = u32::MAX;

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
    /// See [`Order`].
    epoch: order::Epoch,
    /// See [`Lineage`].
    change: lineage::Change,
}

impl Write {
    fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        let (volume, first) = self.key;
        (first..first + self.sectors).map(move |s| (volume, s))
    }
}

/// What is known of a sector, apart from who holds what.
#[derive(Debug, Default)]
struct Sector {
    key: Key,
    /// Every write to it, by submission.
    history: Vec<WriteIx>,
    /// Writes that have not ended, and when the last one ended.
    open: u32,
    last_end: u64,
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
    held: Vec<Vec<Held>>,
    volatile: BTreeSet<Id>,
    /// When it lost its power last.
    crashed: u64,
    /// When it died last, and with it what it had received and not written.
    died: u64,
    /// Who lived and was in sync then, and is alive since.
    witnesses: Witnesses,
    /// What a power loss took, with the nodes that lived and were in sync then: they have to bring it back.
    lost: BTreeMap<Id, Vec<(WriteIx, Witnesses)>>,
    /// A generation of its own began here without the other replicas, before or after a power loss: writes that were
    /// acknowledged early (protocols A and B) and had not come here are not in it.
    took_over: bool,
}

impl View {
    fn of(&self, id: Id) -> &[Held] {
        self.held.get(id).map_or(&[], Vec::as_slice)
    }

    fn of_mut(&mut self, id: Id) -> &mut Vec<Held> {
        if self.held.len() <= id {
            self.held.resize_with(id + 1, Vec::new);
        }
        &mut self.held[id]
    }

    /// A node that is promoted without the other replicas goes on, for good, from what it has left; whoever meets it follows.
    fn goes_on_alone(&mut self) {
        self.witnesses = 0;
        self.lost.values_mut().flatten().for_each(|lost| lost.1 = 0);
    }
}

/// A flush between submission and completion.
#[derive(Debug, Clone, Copy)]
pub struct FlushTicket(u64);

/// The model of all volumes of the resource.
#[derive(Debug)]
pub struct Model {
    now: u64,
    writes: Vec<Write>,
    /// Writes that have not ended.
    under_way: BTreeSet<WriteIx>,
    /// By volume and sector: the number of a sector that somebody wrote.
    ids: Vec<Vec<u32>>,
    sectors: Vec<Sector>,
    views: Vec<View>,
    forgiven: BTreeSet<(usize, u16)>,
    /// Writes that somebody decided to throw away on one of the nodes that held them: the others follow.
    discarded: BTreeSet<WriteIx>,
    lineage: Lineage,
    order: Order,
}

fn mask_of(nodes: &[usize]) -> Witnesses {
    nodes.iter().fold(0, |mask, node| mask | 1 << node)
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
            under_way: BTreeSet::new(),
            ids: Vec::new(),
            sectors: Vec::new(),
            views: vec![View::default(); nodes],
            forgiven: BTreeSet::new(),
            discarded: BTreeSet::new(),
            lineage: Lineage::new(nodes),
            order: Order::new(nodes),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn id(&self, (volume, sector): Key) -> Option<Id> {
        let id = *self.ids.get(usize::from(volume))?.get(sector as usize)?;
        (id != UNTOUCHED).then_some(id as Id)
    }

    fn id_or_new(&mut self, key: Key) -> Id {
        let (volume, sector) = (usize::from(key.0), key.1 as usize);
        if self.ids.len() <= volume {
            self.ids.resize_with(volume + 1, Vec::new);
        }
        let ids = &mut self.ids[volume];
        if ids.len() <= sector {
            ids.resize(sector + 1, UNTOUCHED);
        }
        if ids[sector] == UNTOUCHED {
            ids[sector] = self.sectors.len() as u32;
            self.sectors.push(Sector { key, ..Sector::default() });
        }
        ids[sector] as Id
    }

    /// A write begins, on its way to these replicas, that of the node itself among them if it has one that is good. Returns its
    /// number and the values of its sectors.
    pub fn write_begins(
        &mut self,
        node: usize,
        replicas: &[usize],
        key: Key,
        sectors: u64,
        zero: bool,
    ) -> (WriteIx, Vec<Tag>) {
        let submitted = self.tick();
        let change = self.lineage.attempt(node, replicas, key.0);
        let index = self.writes.len() as WriteIx;
        let epoch = self.order.epoch(node, key.0);
        let write = Write {
            node,
            key,
            sectors,
            zero,
            submitted,
            ended: None,
            fate: Fate::InFlight,
            weak: false,
            epoch,
            change,
        };
        let tags = write.keys().map(|k| value_of(index, &write, k)).collect();
        for k in write.keys() {
            let id = self.id_or_new(k);
            self.sectors[id].history.push(index);
            self.sectors[id].open += 1;
        }
        self.writes.push(write);
        self.under_way.insert(index);
        (index, tags)
    }

    fn write_ends(&mut self, index: WriteIx, fate: Fate) -> u64 {
        let now = self.tick();
        let write = &mut self.writes[index as usize];
        assert_eq!(write.fate, Fate::InFlight, "a write ends once");
        (write.ended, write.fate) = (Some(now), fate);
        self.under_way.remove(&index);
        let keys = write.keys();
        for key in keys {
            let id = self.id(key).expect("it was written");
            self.sectors[id].open -= 1;
            self.sectors[id].last_end = now;
        }
        now
    }

    /// A write ended well: `holders` hold it, those of `stable` on stable storage (FUA). One that lost its power after the
    /// write began may have acknowledged it before, and has lost it.
    pub fn write_acked(&mut self, index: WriteIx, holders: &[usize], stable: &[usize]) {
        let now = self.write_ends(index, Fate::Acked);
        let (write, first) = (&self.writes[index as usize], self.first_under_way(index));
        let (submitted, weak) = (write.submitted, write.weak);
        self.lineage.shared(write.node, write.change, first, holders, write.key.0);
        for key in write.keys() {
            let id = self.id(key).expect("it was written");
            for &node in holders {
                let stable = stable.contains(&node);
                let view = &mut self.views[node];
                if !stable && (view.crashed > submitted || (weak && view.died > submitted)) {
                    view.lost.entry(id).or_default().push((index, view.witnesses));
                    continue;
                }
                self.hold(node, id, Held { write: index, since: now, stable, observed: false });
            }
        }
    }

    /// A write of a node without good data of its own is to be acknowledged: it has waited for all of these replicas, whatever the
    /// protocol.
    pub fn write_is_at(&mut self, index: WriteIx, replicas: &[usize]) {
        let (write, first) = (&self.writes[index as usize], self.first_under_way(index));
        self.lineage.shared(write.node, write.change, first, replicas, write.key.0);
    }

    /// The first other change of its writer that has not ended.
    fn first_under_way(&self, index: WriteIx) -> Option<lineage::Change> {
        let write = &self.writes[index as usize];
        let others = self.under_way.iter().filter(|open| **open != index).map(|open| &self.writes[*open as usize]);
        let same = others.filter(|w| w.key.0 == write.key.0).map(|w| w.change);
        same.filter(|change| change.is_of_writer_of(write.change)).min_by_key(|change| change.number())
    }

    /// A write is to be acknowledged before a connected peer has written it.
    pub fn write_is_weak(&mut self, index: WriteIx) {
        self.writes[index as usize].weak = true;
    }

    /// A write failed, or its Primary died.
    pub fn write_unknown(&mut self, index: WriteIx) {
        self.write_ends(index, Fate::Unknown);
    }

    /// Data that was there before the world began, on one node.
    pub fn preset(&mut self, node: usize, key: Key, sectors: u64) -> Vec<Tag> {
        let (index, tags) = self.write_begins(node, &[node], key, sectors, false);
        self.write_acked(index, &[node], &[node]);
        tags
    }

    fn before(&self, a: WriteIx, b: WriteIx) -> bool {
        a != b && self.writes[a as usize].ended.is_some_and(|end| end < self.writes[b as usize].submitted)
    }

    fn hold(&mut self, node: usize, id: Id, new: Held) {
        let mut list = std::mem::take(self.views[node].of_mut(id));
        list.retain(|held| held.write != new.write && !(new.stable && self.before(held.write, new.write)));
        list.push(new);
        let volatile = list.iter().any(|h| !h.stable);
        let view = &mut self.views[node];
        view.held[id] = list;
        if volatile {
            view.volatile.insert(id);
        }
    }

    /// A flush begins.
    pub fn flush_begins(&mut self) -> FlushTicket {
        FlushTicket(self.tick())
    }

    /// A flush that `node` asked for ended well: what `holders` held of the volume when it began is stable.
    pub fn flush_acked(&mut self, ticket: FlushTicket, node: usize, volume: u16, holders: &[usize]) {
        self.tick();
        self.order.flushed(node, volume, ticket.0);
        for &node in holders {
            for id in std::mem::take(&mut self.views[node].volatile) {
                if self.sectors[id].key.0 != volume {
                    self.views[node].volatile.insert(id);
                    continue;
                }
                let mut list = std::mem::take(self.views[node].of_mut(id));
                for held in list.iter_mut().filter(|h| h.since < ticket.0) {
                    held.stable = true;
                }
                let pruned = self.prune(&list);
                if pruned.iter().any(|h| !h.stable) {
                    self.views[node].volatile.insert(id);
                }
                self.views[node].held[id] = pruned;
            }
        }
    }

    /// A flush that `node` asked for failed: what was completed before it may be lost, and no later flush covers it.
    pub fn flush_failed(&mut self, ticket: FlushTicket, node: usize, volume: u16) {
        self.tick();
        self.order.flush_failed(node, volume, ticket.0);
    }

    /// Without what lies before something that is stable.
    fn prune(&self, list: &[Held]) -> Vec<Held> {
        list.iter().filter(|h| !list.iter().any(|s| s.stable && self.before(h.write, s.write))).copied().collect()
    }

    /// A node died, and with it what it had acknowledged and not written: `on_disk` is what its disks have. `witnesses` lived and
    /// were in sync with it.
    pub fn node_died(&mut self, node: usize, witnesses: &[usize], on_disk: impl Fn(Key) -> Tag) {
        self.views[node].died = self.tick();
        let witnesses = mask_of(witnesses);
        for id in self.views[node].volatile.clone() {
            let tag = on_disk(self.sectors[id].key);
            let early = |h: &Held| !h.stable && self.writes[h.write as usize].weak;
            let missing = |h: &Held| early(h) && !self.is_allowed(id, std::iter::once(h.write), tag);
            let gone: Vec<WriteIx> = self.views[node].of(id).iter().filter(|h| missing(h)).map(|h| h.write).collect();
            let view = &mut self.views[node];
            view.held[id].retain(|h| !gone.contains(&h.write));
            view.lost.entry(id).or_default().extend(gone.into_iter().map(|write| (write, witnesses)));
        }
    }

    /// A node lost its power, and with it what its disks had not made stable. `witnesses` lived and were in sync with it.
    pub fn node_crashed(&mut self, node: usize, witnesses: &[usize]) {
        let now = self.tick();
        let witnesses = mask_of(witnesses);
        let view = &mut self.views[node];
        (view.crashed, view.witnesses) = (now, witnesses);
        for id in std::mem::take(&mut view.volatile) {
            let gone = view.held[id].extract_if(.., |h| !h.stable).map(|h| (h.write, witnesses));
            view.lost.entry(id).or_default().extend(gone);
        }
    }

    /// The process of a node died, or one of its disks failed: it cannot tell that from a loss of power, so it need not bring back what
    /// others lost.
    pub fn witness_died(&mut self, node: usize) {
        for view in &mut self.views {
            view.witnesses &= !(1 << node);
            for lost in view.lost.values_mut().flatten() {
                lost.1 &= !(1 << node);
            }
        }
    }

    /// A node becomes Primary, in sync with the replicas of `followers`; `alone`: not with every one. They go on with it.
    pub fn promoted(&mut self, node: usize, followers: &[usize], alone: bool) {
        self.order.promoted(node);
        if alone {
            for ix in followers.iter().copied().chain([node]) {
                self.views[ix].goes_on_alone();
                self.views[ix].took_over = true;
            }
        }
    }

    /// A node that became Primary may begin a generation without the others, on these replicas of a volume.
    pub fn goes_on_alone(&mut self, node: usize, volume: u16, replicas: &[usize]) {
        self.lineage.attempt(node, replicas, volume);
    }

    /// The disk under a volume of a node is gone, and writes that are under way may not be on it, but on these replicas; nor those
    /// that were acknowledged before it had written them.
    pub fn disk_lost(&mut self, node: usize, volume: u16, replicas: &[usize]) {
        let view = &self.views[node];
        let held = view.volatile.iter().flat_map(|id| view.of(*id)).filter(|h| !h.stable);
        for early in held.map(|h| &self.writes[h.write as usize]).filter(|w| w.weak && w.key.0 == volume) {
            self.lineage.may_lack(node, early.change, volume);
        }
        let under_way = |w: &&mut Write| w.fate == Fate::InFlight && w.node == node && w.key.0 == volume;
        for write in self.writes.iter_mut().filter(under_way) {
            write.change = self.lineage.attempt(node, replicas, volume);
        }
    }

    /// A resync goes on: its target may have any change of its source.
    pub fn is_being_resynced(&mut self, target: usize, source: usize, volume: u16) {
        self.lineage.is_being_resynced(target, source, volume);
    }

    /// A resync has ended, and its target is only Outdated: it has the changes that its source has, and lacks the last of them.
    pub fn resynced_outdated(&mut self, target: usize, source: usize, volume: u16) {
        let open = self.changes_under_way(volume);
        self.lineage.resynced(target, source, &open, volume);
    }

    fn changes_under_way(&self, volume: u16) -> Vec<lineage::Change> {
        let open = self.under_way.iter().map(|index| &self.writes[*index as usize]);
        open.filter(|write| write.key.0 == volume).map(|write| write.change).collect()
    }

    /// The replicas have changes that the other does not have, on both sides.
    pub fn diverged(&self, a: usize, b: usize, volume: u16) -> bool {
        self.lineage.diverged(a, b, volume)
    }

    fn ids_of(&self, volume: u16) -> impl Iterator<Item = Id> + '_ {
        (0..self.sectors.len()).filter(move |id| self.sectors[*id].key.0 == volume)
    }

    /// The present instant.
    pub fn instant(&self) -> u64 {
        self.now
    }

    /// A replica of a volume was resynced: it holds what its source held when that began, and what it held before and finds
    /// there. What a third node wrote meanwhile is its source's to pass on, if it is not there already. `at_source` and
    /// `at_target` are what the disks have. Returns an acknowledged write that was lost by it.
    pub fn resynced(
        &mut self,
        target: usize,
        source: usize,
        volume: u16,
        began: u64,
        at_source: impl Fn(u64) -> Tag,
        at_target: impl Fn(u64) -> Tag,
    ) -> Option<String> {
        let now = self.tick();
        let forgiven = self.forgiven.remove(&(target, volume));
        let mut lost = None;
        self.resynced_outdated(target, source, volume);
        let ids: Vec<Id> = self.ids_of(volume).collect();
        for id in ids {
            let (tag, result) = (at_source(self.sectors[id].key.1), at_target(self.sectors[id].key.1));
            let of_source = |h: &Held| self.views[source].of(id).iter().any(|s| s.write == h.write);
            let of_target = self.views[target].of(id).iter().filter(|h| !h.observed && !of_source(h));
            let (kept, gone): (Vec<Held>, Vec<Held>) =
                of_target.partition(|h| self.is_allowed(id, std::iter::once(h.write), tag));
            if forgiven {
                self.discarded.extend(gone.iter().map(|h| h.write));
            } else if lost.is_none() {
                lost = gone.iter().find_map(|h| self.find_lost(target, source, id, *h));
            }
            self.views[target].of_mut(id).clear();
            self.views[target].volatile.remove(&id);
            match self.views[source].lost.get(&id).cloned() {
                Some(lost) => _ = self.views[target].lost.insert(id, lost),
                None => _ = self.views[target].lost.remove(&id),
            }
            for held in self.views[source].of(id).to_vec() {
                if held.since > began && !self.is_allowed(id, std::iter::once(held.write), result) {
                    continue;
                }
                self.hold(target, id, Held { stable: false, since: now, ..held });
            }
            for held in kept {
                self.hold(target, id, Held { stable: false, since: now, ..held });
                self.hold(source, id, Held { stable: false, since: now, ..held });
            }
        }
        self.views[target].took_over = self.views[source].took_over;
        lost
    }

    /// Whether what the target held may not have gone.
    fn find_lost(&self, target: usize, source: usize, id: Id, held: Held) -> Option<String> {
        let source_view = &self.views[source];
        let overridden = self.views[target].of(id).iter().any(|h| self.before(held.write, h.write));
        let weak = self.writes[held.write as usize].weak;
        let lost = source_view.lost.get(&id).and_then(|l| l.iter().find(|(w, _)| *w == held.write));
        let witnessed = lost.is_some_and(|(_, witnesses)| witnesses >> target & 1 == 1);
        let excused = (source_view.took_over && weak) || (lost.is_some() && (weak || !witnessed));
        if overridden || excused || self.discarded.contains(&held.write) {
            return None;
        }
        let write = &self.writes[held.write as usize];
        Some(format!(
            "a resync from node {source} to node {target} throws away {} (acknowledged by node {})",
            describe_tag(value_of(held.write, write, self.sectors[id].key)),
            write.node,
        ))
    }

    /// Two UpToDate replicas of a volume are in sync, and connected since an instant: each holds what either held then. Whoever
    /// writes later knows who holds that.
    pub fn joined(&mut self, a: usize, b: usize, volume: u16, connected: u64) {
        let now = self.tick();
        self.lineage.joined(a, b, &self.changes_under_way(volume), volume);
        let ids: Vec<Id> = self.ids_of(volume).collect();
        for id in ids {
            for (to, from) in [(a, b), (b, a)] {
                let known = |h: &Held| self.views[to].of(id).iter().any(|k| k.write == h.write);
                let news = |h: &&Held| !h.observed && h.since <= connected && !known(h);
                let news: Vec<Held> = self.views[from].of(id).iter().filter(news).copied().collect();
                for held in news {
                    self.hold(to, id, Held { stable: false, since: now, ..held });
                }
            }
        }
    }

    /// Somebody asked that the data of this node be thrown away: the next resync towards it may lose acknowledged writes.
    pub fn forgive(&mut self, node: usize) {
        self.forgiven.extend((0..VOLUMES).map(|volume| (node, volume)));
    }

    /// As [`Model::forgive`], of one volume.
    pub fn forgive_volume(&mut self, node: usize, volume: u16) {
        self.forgiven.insert((node, volume));
    }

    /// The replica on this node promises nothing any more: it was invalidated, or declared good by force as it was.
    pub fn gave_up(&mut self, node: usize, volume: u16) {
        let ids: Vec<Id> = self.ids_of(volume).collect();
        for id in ids {
            self.views[node].of_mut(id).clear();
            self.views[node].volatile.remove(&id);
        }
    }

    /// The replica on this node goes on from data that lacks what others may have.
    pub fn forked(&mut self, node: usize, volume: u16) {
        self.lineage.forked(node, volume);
    }

    /// Whether a value may be found in a sector on a node that is the reference for its data, given what it held.
    fn is_allowed(&self, id: Id, held: impl Iterator<Item = WriteIx> + Clone, tag: Tag) -> bool {
        let history = &self.sectors[id].history;
        let overridden = |w: WriteIx| held.clone().any(|h| self.before(w, h));
        if tag == 0 {
            let mut zeroes = history.iter().rev().filter(|w| self.writes[**w as usize].zero);
            return held.clone().next().is_none() || zeroes.any(|w| !overridden(*w));
        }
        match self.write_of(id, tag) {
            Some(write) => !overridden(write),
            None => false,
        }
    }

    /// The write that a value other than zero is of, if it is one of this sector.
    fn write_of(&self, id: Id, tag: Tag) -> Option<WriteIx> {
        let write = (tag >> 36).checked_sub(1)? as WriteIx;
        let found = self.writes.get(write as usize)?;
        let key = self.sectors[id].key;
        (value_of(write, found, key) == tag && found.keys().any(|k| k == key)).then_some(write)
    }

    fn held_writes(&self, node: usize, id: Id) -> impl Iterator<Item = WriteIx> + Clone + '_ {
        self.views[node].of(id).iter().map(|h| h.write)
    }

    fn check_value(
        &self,
        node: usize,
        id: Id,
        held: impl Iterator<Item = WriteIx> + Clone,
        tag: Tag,
        what: &str,
    ) -> Result<(), String> {
        if self.is_allowed(id, held.clone(), tag) {
            return Ok(());
        }
        let history = self.sectors[id].history.iter().filter(|w| !held.clone().any(|h| self.before(**w, h)));
        let key = self.sectors[id].key;
        let allowed: Vec<Tag> = history.map(|w| value_of(*w, &self.writes[*w as usize], key)).collect();
        Err(self.not_allowed(node, key, &allowed, tag, what))
    }

    fn not_allowed(&self, node: usize, key: Key, allowed: &[Tag], tag: Tag, what: &str) -> String {
        let allowed: Vec<String> = allowed.iter().map(|t| describe_tag(*t)).collect();
        format!(
            "{what} at node {node}, volume {} sector {} found {}; allowed: {}",
            key.0,
            key.1,
            describe_tag(tag),
            allowed.join(", ")
        )
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
        for id in self.ids_of(volume) {
            let sector = self.sectors[id].key.1;
            let tag = read(sector);
            if !self.is_allowed(id, self.held_writes(node, id), tag) && !busy(sector) {
                return self.check_value(node, id, self.held_writes(node, id), tag, "the disk");
            }
        }
        Ok(())
    }

    /// Sectors of a volume that somebody wrote.
    pub fn touched(&self, volume: u16) -> impl Iterator<Item = u64> + '_ {
        self.ids_of(volume).map(|id| self.sectors[id].key.1)
    }

    /// Whether a write to this sector is not completed.
    pub fn write_in_flight(&self, key: Key) -> bool {
        self.id(key).is_some_and(|id| self.sectors[id].open > 0)
    }

    /// The last write to a sector, if it was completed well and nothing else may have happened since it was submitted:
    /// the node that wrote it.
    pub fn settled_writer(&self, key: Key) -> Option<usize> {
        let sector = &self.sectors[self.id(key)?];
        let last = *sector.history.last()?;
        let write = &self.writes[last as usize];
        let alone = sector.history.iter().rev().skip(1).all(|w| self.before(*w, last));
        (write.fate == Fate::Acked && alone).then_some(write.node)
    }

    /// Number of writes so far.
    pub fn writes(&self) -> usize {
        self.writes.len()
    }
}

#[cfg(test)]
mod tests;
