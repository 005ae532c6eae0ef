//! Checks that span nodes, run whenever a core reports a change of state and at quiet points. None of them believes a core:
//! they compare disks, packets and the model with what cores claim.

mod handshake;
mod marks;
mod offline;
mod quorum;
mod rest;
mod two_phase;
mod verify;

use std::collections::{BTreeMap, BTreeSet};

use zea_core::config::Protocol;
use zea_core::event::Status;
use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use crate::coverage::Coverage;
use crate::net::NodeIx;
use crate::node::Node;
use crate::world::World;

pub(crate) use handshake::may_decide;

/// What can be violated. Every message begins with the name in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// A disk lacks what the protocol, a flush or a resync promised.
    Durability,
    /// A read returned what it may not.
    Read,
    /// Replicas differ and nothing says so.
    Bitmap,
    /// An image shows a later epoch without an earlier one.
    Order,
    /// A connection without a resync between replicas that differ.
    UuidTruth,
    /// An online verify is wrong.
    Verify,
    /// A split brain that is none.
    SplitBrain,
    /// Two Primaries.
    OnePrimary,
    /// Writes without quorum, or a split brain with it.
    Quorum,
    /// A transaction with two outcomes, or against a vote.
    TwoPhase,
    /// Connected nodes disagree on what they are.
    Views,
    /// A handshake cleared bits of UpToDate data.
    KeptBits,
    /// A step between states that is not legal.
    Transition,
    /// A change of state without an event.
    Events,
    /// Something was not given back.
    Leak,
    /// Something does not end.
    Stuck,
    /// The healed cluster does not come together.
    Convergence,
    /// Replicas differ at rest.
    Equality,
    /// A packet that its receiver refuses.
    Protocol,
    /// The rules of the surface between core and runtime.
    Core,
}

impl Check {
    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Check::Durability => "durability",
            Check::Read => "read",
            Check::Bitmap => "bitmap",
            Check::Order => "order",
            Check::UuidTruth => "uuid-truth",
            Check::Verify => "verify",
            Check::SplitBrain => "split-brain",
            Check::OnePrimary => "one-primary",
            Check::Quorum => "quorum",
            Check::TwoPhase => "two-phase",
            Check::Views => "views",
            Check::KeptBits => "kept-bits",
            Check::Transition => "transition",
            Check::Events => "events",
            Check::Leak => "leak",
            Check::Stuck => "stuck",
            Check::Convergence => "convergence",
            Check::Equality => "equality",
            Check::Protocol => "protocol",
            Check::Core => "core",
        }
    }
}

/// What the checks remember.
#[derive(Debug, Default)]
pub struct Checks {
    /// Pairs of replicas that see each other as connected and UpToDate.
    in_sync: BTreeSet<(NodeIx, NodeIx, VolumeNr)>,
    /// Pairs that see each other as connected, and since when.
    connected: BTreeMap<(NodeIx, NodeIx), u64>,
    /// A scenario sets nodes up so that they cannot agree; else a protocol error is a bug of one of them.
    pub protocol_errors_expected: bool,
    /// A scenario makes histories that it calls a split brain itself.
    pub split_brains_expected: bool,
    /// The first promotion and the initial sync are over.
    pub is_set_up: bool,
    /// The cores under test do not tell each other their roles.
    pub roles_untold: bool,
    /// Verdicts of online verify, by their number on the wire.
    pub verdicts: BTreeMap<u32, u64>,
    /// Resyncs that ended, by target and volume.
    pub resyncs: BTreeMap<(NodeIx, VolumeNr), u32>,
    /// Primaries with quorum, and since when.
    pub(crate) quorate: quorum::Quorate,
    /// Cluster-wide changes.
    pub(crate) two_phase: two_phase::TwoPhase,
    /// Volumes whose disk has not come up since its node died.
    pub(crate) images: BTreeSet<(NodeIx, VolumeNr)>,
    /// States and transitions that were reached.
    pub coverage: Coverage,
}

impl World {
    /// Takes a fresh status of a node.
    pub fn refresh(&mut self, ix: NodeIx) {
        if let Some(core) = &self.nodes[ix].core {
            self.nodes[ix].status = core.status();
        }
    }

    /// The nodes that hold a write (or, with `stable`, what a flush covers) that node `ix` completes now.
    pub(crate) fn holders(&self, ix: NodeIx, volume: VolumeNr, stable: bool) -> Vec<NodeIx> {
        let node = &self.nodes[ix];
        let own = (node.disk_state(volume) == DiskState::UpToDate).then_some(ix);
        let waits = node.saved.resource.flush_waits_for_peers;
        let peers = node.saved.peers.iter().filter(|p| match p.net.protocol {
            Protocol::A => false,
            Protocol::B => !stable,
            Protocol::C => !stable || waits,
        });
        let peers = peers.map(|p| p.node_id.index()).filter(|p| node.sees_in_sync(*p, volume));
        own.into_iter().chain(peers).collect()
    }

    /// The nodes that may serve a read of node `ix`: it itself, or without UpToDate data of its own the peers.
    pub(crate) fn servers(&self, ix: NodeIx, volume: VolumeNr) -> Vec<NodeIx> {
        if self.nodes[ix].disk_state(volume) == DiskState::UpToDate {
            return vec![ix];
        }
        (0..self.nodes.len()).filter(|o| *o != ix && self.nodes[ix].sees_up_to_date(*o, volume)).collect()
    }

    /// A peer is connected and UpToDate, and writes do not wait until it wrote them (protocols A and B); or it is being resynced, and
    /// may be UpToDate already.
    pub(crate) fn in_sync_without_waiting(&self, ix: NodeIx, volume: VolumeNr) -> bool {
        let node = &self.nodes[ix];
        let lazy = node.saved.peers.iter().filter(|p| p.net.protocol != Protocol::C);
        lazy.map(|p| p.node_id.index()).any(|p| node.sees_in_sync(p, volume) || node.sees_resynced(p, volume))
    }

    /// Somebody may speak the dialect of 8.4, in which states go other ways.
    pub(crate) fn speaks_84(&self) -> bool {
        self.nodes.iter().flat_map(|n| &n.saved.peers).any(|p| p.net.protocol_max < 110)
    }

    /// A core reported a change: what follows from it, and what may not be. The new status is in its place.
    pub(crate) fn observe(&mut self, ix: NodeIx, before: &Status) {
        if !self.speaks_84()
            && let Err(step) = self.checks.coverage.note(before, &self.nodes[ix].status)
        {
            self.fail(Check::Transition, &format!("node {ix} makes a step that no table has: {step}"));
        }
        let volumes: Vec<VolumeNr> = self.nodes[ix].disks.keys().copied().collect();
        if self.nodes[ix].forcing {
            self.accept_losses(ix, before);
        }
        for volume in volumes {
            let old = before.devices.iter().find(|d| d.volume == volume).map_or(DiskState::Diskless, |d| d.disk);
            self.check_image(ix, volume);
            self.follow_resync(ix, volume, old);
            self.follow_pairs(ix, volume);
        }
        self.follow_quorum(ix);
        if self.nodes[ix].role() == Role::Primary {
            self.check_one_primary(ix);
            if before.role != Role::Primary {
                self.note_promotion(ix);
                self.check_up_to_date_disks(ix);
            }
        }
    }

    /// Somebody declares the data of a node good. What is behind when that takes effect, which may be long after it was asked for,
    /// lacks acknowledged writes on purpose.
    fn accept_losses(&mut self, ix: NodeIx, before: &Status) {
        let others = || (0..self.nodes.len()).filter(|o| *o != ix);
        let was_good = |v| before.devices.iter().any(|d| d.volume == v && d.disk == DiskState::UpToDate);
        let is_forced = |v: &VolumeNr| {
            let by_itself = self.nodes[ix].disk_state(*v) == DiskState::UpToDate && !was_good(*v);
            by_itself && !others().any(|o| self.nodes[ix].sees_in_sync(o, *v))
        };
        let forced: Vec<VolumeNr> = self.nodes[ix].disks.keys().copied().filter(is_forced).collect();
        let others: Vec<NodeIx> = others().filter(|_| !forced.is_empty()).collect();
        for volume in forced {
            self.model.gave_up(ix, volume.0);
            self.model.forked(ix, volume.0);
            // It is good because somebody says so, not because a resync has ended.
            self.nodes[ix].target_of.remove(&volume);
        }
        others.into_iter().for_each(|other| self.model.forgive(other));
    }

    fn note_promotion(&mut self, ix: NodeIx) {
        let volumes: Vec<VolumeNr> = self.nodes[ix].disks.keys().copied().collect();
        let others = (0..self.nodes.len()).filter(|o| *o != ix);
        let in_sync = |other: &NodeIx, all: bool| {
            let mut seen = volumes
                .iter()
                .filter(|v| self.wants_disk(*other, **v))
                .map(|v| self.nodes[ix].sees_in_sync(*other, *v));
            if all { seen.all(|s| s) } else { seen.any(|s| s) }
        };
        let own = |v: &VolumeNr| !self.wants_disk(ix, *v) || self.nodes[ix].disk_state(*v) == DiskState::UpToDate;
        let alone = others.clone().any(|other| !in_sync(&other, true)) || !volumes.iter().all(own);
        let mut followers: Vec<NodeIx> = others.filter(|other| in_sync(other, false)).collect();
        followers.extend(volumes.iter().flat_map(|v| self.servers(ix, *v)));
        self.model.promoted(ix, &followers, alone);
        for volume in volumes.into_iter().filter(|_| alone) {
            self.model.goes_on_alone(ix, volume.0, &self.good_replicas(ix, volume));
        }
    }

    /// The replicas that what a node writes now goes to, and that count: also the one that the node is being resynced from.
    pub(crate) fn good_replicas(&self, ix: NodeIx, volume: VolumeNr) -> Vec<NodeIx> {
        let node = &self.nodes[ix];
        let good = |o: NodeIx| match o == ix {
            true => node.disk_state(volume) == DiskState::UpToDate,
            false => node.sees_up_to_date(o, volume),
        };
        (0..self.nodes.len()).filter(|o| good(*o)).collect()
    }

    /// The first usable state of a disk after its node died: what is on it is a prefix of what was flushed.
    fn check_image(&mut self, ix: NodeIx, volume: VolumeNr) {
        let state = self.nodes[ix].disk_state(volume);
        if state < DiskState::Inconsistent || state == DiskState::DUnknown || !self.checks.images.remove(&(ix, volume))
        {
            return;
        }
        let disk = &self.nodes[ix].disks[&volume];
        if state > DiskState::Inconsistent
            && let Err(error) = self.model.check_order(volume.0, |s| disk.sector(s))
        {
            self.fail(Check::Order, &format!("node {ix} comes back {state}: {error}"));
        }
    }

    /// Which source a volume is resynced from, and the end of the resync.
    fn follow_resync(&mut self, ix: NodeIx, volume: VolumeNr, old: DiskState) {
        let node = &self.nodes[ix];
        let in_state =
            |s: ReplState| (0..self.nodes.len()).find(|p| node.peer_device(*p, volume).is_some_and(|pd| pd.repl == s));
        let source = in_state(ReplState::SyncTarget).or_else(|| in_state(ReplState::WFBitMapT));
        let waits = |peer: NodeIx| node.peer_device(peer, volume).is_some_and(|pd| pd.repl == ReplState::PausedSyncT);
        let waiting = node.target_of.get(&volume).is_some_and(|(source, _)| waits(*source));
        let disk = node.disk_state(volume);
        if disk <= DiskState::Failed || waiting {
            self.nodes[ix].target_of.remove(&volume);
        }
        if old > DiskState::Failed && disk <= DiskState::Failed {
            self.model.disk_lost(ix, volume.0, &self.good_replicas(ix, volume));
            if disk != DiskState::Detaching {
                // It failed: after the next attach the node does not know what is on it.
                self.model.witness_died(ix);
            }
        }
        // A resync from a neighbour of a Primary that this node cannot see ends like this.
        if old == DiskState::Inconsistent
            && disk == DiskState::Outdated
            && let Some((source, _)) = self.nodes[ix].target_of.get(&volume)
        {
            self.model.resynced_outdated(ix, *source, volume.0);
        }
        // A resync that waited for another one does not begin when that has made the disk UpToDate, also if a Primary is lost then.
        if let Some(source) = source
            && disk < DiskState::Consistent
            && self.nodes[ix].target_of.get(&volume).is_none_or(|(s, _)| *s != source)
        {
            let began = self.model.instant();
            self.nodes[ix].target_of.insert(volume, (source, began));
        }
        if disk == DiskState::Inconsistent
            && let Some((source, _)) = self.nodes[ix].target_of.get(&volume)
            && self.nodes[ix].peer_device(*source, volume).is_some_and(|pd| pd.repl == ReplState::SyncTarget)
        {
            self.model.is_being_resynced(ix, *source, volume.0);
        }
        // One that still waits has not begun: this disk is UpToDate for another reason, with what was on it.
        let waits = self.nodes[ix].target_of.get(&volume).is_some_and(|(source, _)| {
            let repl = self.nodes[ix].peer_device(*source, volume).map(|pd| pd.repl);
            matches!(repl, Some(ReplState::WFBitMapT | ReplState::PausedSyncT))
        });
        if disk == DiskState::UpToDate
            && old != DiskState::UpToDate
            && let Some((source, began)) = self.nodes[ix].target_of.remove(&volume)
            && !waits
        {
            *self.checks.resyncs.entry((ix, volume)).or_default() += 1;
            let disks = [source, ix].map(|node| &self.nodes[node].disks[&volume]);
            let [at_source, at_target] = disks.map(|disk| |s| disk.sector(s));
            if let Some(lost) = self.model.resynced(ix, source, volume.0, began, at_source, at_target) {
                self.fail(Check::Durability, &lost);
            }
        }
    }

    fn follow_pairs(&mut self, ix: NodeIx, volume: VolumeNr) {
        for peer in (0..self.nodes.len()).filter(|p| *p != ix) {
            let (a, b) = (ix.min(peer), ix.max(peer));
            let sees = |x: NodeIx, y: NodeIx| self.nodes[x].conn_state(y) == ConnState::Connected;
            let now = self.model.instant();
            let connected = match sees(a, b) && sees(b, a) {
                true => *self.checks.connected.entry((a, b)).or_insert(now),
                false => {
                    self.checks.connected.remove(&(a, b));
                    now
                }
            };
            // Replicas that know of differences are not equal yet, whatever their state says.
            let marked =
                |x: NodeIx, y: NodeIx| self.nodes[x].peer_device(y, volume).is_none_or(|p| p.out_of_sync_sectors > 0);
            if !self.mutually_in_sync(a, b, volume) {
                self.checks.in_sync.remove(&(a, b, volume));
            } else if marked(a, b) || marked(b, a) {
                continue;
            } else if self.checks.in_sync.insert((a, b, volume)) {
                self.check_uuid_truth(a, b, volume);
                self.model.joined(a, b, volume.0, connected);
            }
        }
    }

    /// Both replicas are UpToDate and see each other as connected and UpToDate.
    pub fn mutually_in_sync(&self, a: NodeIx, b: NodeIx, volume: VolumeNr) -> bool {
        let sees = |x: NodeIx, y: NodeIx| {
            self.nodes[x].disk_state(volume) == DiskState::UpToDate && self.nodes[x].sees_in_sync(y, volume)
        };
        sees(a, b) && sees(b, a)
    }

    /// A node went down: it is in sync with nobody.
    pub(crate) fn forget_node(&mut self, ix: NodeIx) {
        self.checks.in_sync.retain(|(a, b, _)| *a != ix && *b != ix);
        self.checks.images.extend(self.nodes[ix].disks.keys().map(|volume| (ix, *volume)));
    }

    /// Never two Primaries that are connected.
    fn check_one_primary(&mut self, ix: NodeIx) {
        for other in (0..self.nodes.len()).filter(|o| *o != ix) {
            let connected = |x: NodeIx, y: NodeIx| self.nodes[x].conn_state(y) == ConnState::Connected;
            if self.nodes[other].role() == Role::Primary && connected(ix, other) && connected(other, ix) {
                self.fail(
                    Check::OnePrimary,
                    &format!("nodes {ix} and {other} are both Primary and connected to each other"),
                );
            }
        }
    }

    /// What an UpToDate disk holds is what the model allows.
    pub(crate) fn check_up_to_date_disks(&mut self, ix: NodeIx) {
        let volumes: Vec<VolumeNr> = self.nodes[ix].disks.keys().copied().collect();
        for volume in volumes {
            // With protocols A and B an acknowledged write may still be on its way to the peer's disk.
            if self.nodes[ix].disk_state(volume) != DiskState::UpToDate || !self.nodes[ix].is_protocol_c() {
                continue;
            }
            let disk = &self.nodes[ix].disks[&volume];
            let busy: Vec<std::ops::Range<u64>> = disk.writes_in_flight().collect();
            let is_busy = |s: u64| busy.iter().any(|r| r.contains(&s)) || self.model.write_in_flight((volume.0, s));
            if let Err(error) = self.model.check_disk(ix, volume.0, |s| disk.sector(s), is_busy) {
                self.fail(Check::Durability, &error);
            }
        }
    }

    /// Checks that may run at any time: disks against the model, bitmaps against disks, nodes against each other.
    pub fn checkpoint(&mut self) {
        for ix in 0..self.nodes.len() {
            if self.nodes[ix].is_up() {
                let before = self.nodes[ix].status.clone();
                self.refresh(ix);
                self.check_events(ix, &before);
                self.observe(ix, &before);
                self.check_up_to_date_disks(ix);
            }
        }
        self.check_bitmaps();
        self.check_views();
    }

    /// Whoever followed the events knows every state.
    fn check_events(&mut self, ix: NodeIx, before: &Status) {
        if let Some(difference) = state_difference(before, &self.nodes[ix].status) {
            self.fail(Check::Events, &format!("node {ix} changed without an event: {difference}"));
        }
    }
}

fn state_difference(a: &Status, b: &Status) -> Option<String> {
    if a.role != b.role {
        return Some(format!("role {} to {}", a.role, b.role));
    }
    let disks = a.devices.iter().zip(&b.devices).find(|(x, y)| x.disk != y.disk);
    if let Some((x, y)) = disks {
        return Some(format!("disk of volume {} from {} to {}", x.volume, x.disk, y.disk));
    }
    for (x, y) in a.connections.iter().zip(&b.connections) {
        if (x.conn, x.role) != (y.conn, y.role) {
            return Some(format!("connection to {} from {} {} to {} {}", x.peer, x.conn, x.role, y.conn, y.role));
        }
        let pds =
            x.peer_devices.iter().zip(&y.peer_devices).find(|(p, q)| (p.repl, p.peer_disk) != (q.repl, q.peer_disk));
        if let Some((p, q)) = pds {
            return Some(format!(
                "volume {} at {} from {}/{} to {}/{}",
                p.volume, x.peer, p.repl, p.peer_disk, q.repl, q.peer_disk
            ));
        }
    }
    None
}

impl Node {
    /// Every connection of this node uses protocol C.
    pub(crate) fn is_protocol_c(&self) -> bool {
        self.saved.peers.iter().all(|p| p.net.protocol == Protocol::C)
    }
}
