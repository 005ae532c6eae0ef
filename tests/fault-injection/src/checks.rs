//! Checks that span nodes, run whenever a core reports a change of state and at quiet points.

use std::collections::{BTreeMap, BTreeSet};

use zea_core::config::Protocol;
use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use crate::net::NodeIx;
use crate::world::{World, node_id};

/// What the checks remember.
#[derive(Debug, Default)]
pub struct Checks {
    /// Pairs of replicas that see each other as connected and UpToDate.
    in_sync: BTreeSet<(NodeIx, NodeIx, VolumeNr)>,
    /// A scenario sets nodes up so that they cannot agree; else a protocol error is a bug of one of them.
    pub protocol_errors_expected: bool,
    /// Resyncs that ended, by target and volume.
    pub resyncs: BTreeMap<(NodeIx, VolumeNr), u32>,
}

impl World {
    /// Takes a fresh status of a node.
    pub fn refresh(&mut self, ix: NodeIx) {
        if let Some(core) = &self.nodes[ix].core {
            self.nodes[ix].status = core.status();
        }
    }

    /// The nodes that hold a write (or, with `stable`, what a flush covers) that node `ix` completes now.
    pub(crate) fn holders(&mut self, ix: NodeIx, volume: VolumeNr, stable: bool) -> Vec<NodeIx> {
        self.refresh(ix);
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

    /// A peer is connected and UpToDate, and writes do not wait until it wrote them (protocols A and B).
    pub(crate) fn in_sync_without_waiting(&self, ix: NodeIx, volume: VolumeNr) -> bool {
        let node = &self.nodes[ix];
        let mut lazy = node.saved.peers.iter().filter(|p| p.net.protocol != Protocol::C);
        lazy.any(|p| node.sees_in_sync(p.node_id.index(), volume))
    }

    /// A core reported a change: what follows from it, and what may not be.
    pub(crate) fn observe(&mut self, ix: NodeIx) {
        let before = self.nodes[ix].status.clone();
        self.refresh(ix);
        let volumes: Vec<VolumeNr> = self.nodes[ix].disks.keys().copied().collect();
        for volume in volumes {
            let old = before.devices.iter().find(|d| d.volume == volume).map_or(DiskState::Diskless, |d| d.disk);
            self.follow_resync(ix, volume, old);
            self.follow_pairs(ix, volume);
        }
        if self.nodes[ix].role() == Role::Primary {
            self.check_one_primary(ix);
            if before.role != Role::Primary {
                self.note_promotion(ix);
                self.check_up_to_date_disks(ix);
            }
        }
    }

    fn note_promotion(&mut self, ix: NodeIx) {
        let volumes: Vec<VolumeNr> = self.nodes[ix].disks.keys().copied().collect();
        let others = (0..self.nodes.len()).filter(|o| *o != ix);
        let mut pairs = others.flat_map(|o| volumes.iter().map(move |v| (o, *v)));
        if !pairs.all(|(other, volume)| self.nodes[ix].sees_in_sync(other, volume)) {
            self.model.promoted_alone(ix);
        }
    }

    /// Which source a volume is resynced from, and the end of the resync.
    fn follow_resync(&mut self, ix: NodeIx, volume: VolumeNr, old: DiskState) {
        let node = &self.nodes[ix];
        let target = |p: &NodeIx| {
            node.peer_device(*p, volume)
                .is_some_and(|pd| matches!(pd.repl, ReplState::WFBitMapT | ReplState::SyncTarget))
        };
        let source = (0..self.nodes.len()).find(target);
        let disk = node.disk_state(volume);
        if let Some(source) = source {
            self.nodes[ix].target_of.insert(volume, source);
        }
        if disk == DiskState::UpToDate
            && old != DiskState::UpToDate
            && let Some(source) = self.nodes[ix].target_of.remove(&volume)
        {
            *self.checks.resyncs.entry((ix, volume)).or_default() += 1;
            if let Some(lost) = self.model.resynced(ix, source, volume.0) {
                self.fail(&lost);
            }
        }
        if disk <= DiskState::Failed {
            self.nodes[ix].target_of.remove(&volume);
        }
    }

    fn follow_pairs(&mut self, ix: NodeIx, volume: VolumeNr) {
        for peer in (0..self.nodes.len()).filter(|p| *p != ix) {
            let (a, b) = (ix.min(peer), ix.max(peer));
            // Replicas that know of differences are not equal yet, whatever their state says.
            let marked =
                |x: NodeIx, y: NodeIx| self.nodes[x].peer_device(y, volume).is_none_or(|p| p.out_of_sync_sectors > 0);
            if !self.mutually_in_sync(a, b, volume) {
                self.checks.in_sync.remove(&(a, b, volume));
            } else if marked(a, b) || marked(b, a) {
                continue;
            } else if self.checks.in_sync.insert((a, b, volume)) {
                self.model.joined(a, b, volume.0);
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
    }

    /// Never two Primaries that are connected.
    fn check_one_primary(&mut self, ix: NodeIx) {
        for other in (0..self.nodes.len()).filter(|o| *o != ix) {
            let connected = |x: NodeIx, y: NodeIx| self.nodes[x].conn_state(y) == ConnState::Connected;
            if self.nodes[other].role() == Role::Primary && connected(ix, other) && connected(other, ix) {
                self.fail(&format!("nodes {ix} and {other} are both Primary and connected to each other"));
            }
        }
    }

    /// What an UpToDate disk holds is what the model allows.
    pub(crate) fn check_up_to_date_disks(&mut self, ix: NodeIx) {
        let volumes: Vec<VolumeNr> = self.nodes[ix].disks.keys().copied().collect();
        for volume in volumes {
            // With protocols A and B an acknowledged write may still be on its way to the peer's disk.
            let on_disk = |p: &zea_core::config::PeerConfig| p.net.protocol == Protocol::C;
            if self.nodes[ix].disk_state(volume) != DiskState::UpToDate
                || !self.nodes[ix].saved.peers.iter().all(on_disk)
            {
                continue;
            }
            let disk = &self.nodes[ix].disks[&volume];
            let busy: Vec<std::ops::Range<u64>> = disk.writes_in_flight().collect();
            let is_busy = |s: u64| busy.iter().any(|r| r.contains(&s)) || self.model.write_in_flight((volume.0, s));
            if let Err(error) = self.model.check_disk(ix, volume.0, |s| disk.sector(s), is_busy) {
                self.fail(&error);
            }
        }
    }

    /// Checks that may run at any time: disks against the model, bitmaps against disks.
    pub fn checkpoint(&mut self) {
        for ix in 0..self.nodes.len() {
            if self.nodes[ix].is_up() {
                self.observe(ix);
                self.check_up_to_date_disks(ix);
            }
        }
        self.check_bitmaps();
    }

    /// Each sector that differs between two UpToDate replicas is in flight, lies in an active extent, or has its bit set.
    fn check_bitmaps(&mut self) {
        let count = self.nodes.len();
        let volumes: Vec<VolumeNr> = self.nodes[0].disks.keys().copied().collect();
        for volume in volumes {
            let usable = |ix: NodeIx| {
                let n = &self.nodes[ix];
                n.is_up() && n.disks.contains_key(&volume) && n.disk_state(volume) == DiskState::UpToDate
            };
            let pairs: Vec<(NodeIx, NodeIx)> = (0..count)
                .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
                .filter(|(a, b)| usable(*a) && usable(*b))
                .collect();
            for (a, b) in pairs {
                if let Some(sector) = self.unmarked_difference(a, b, volume) {
                    self.fail(&format!(
                        "volume {volume} sector {sector} differs between nodes {a} and {b} ({} and {}), both UpToDate, and no bit says so",
                        crate::model::describe_tag(self.nodes[a].disks[&volume].sector(sector)),
                        crate::model::describe_tag(self.nodes[b].disks[&volume].sector(sector)),
                    ));
                }
            }
        }
    }

    fn unmarked_difference(&self, a: NodeIx, b: NodeIx, volume: VolumeNr) -> Option<u64> {
        let (disk_a, disk_b) = (&self.nodes[a].disks[&volume], &self.nodes[b].disks[&volume]);
        let busy: Vec<std::ops::Range<u64>> = disk_a.writes_in_flight().chain(disk_b.writes_in_flight()).collect();
        let explained = |sector: u64| {
            let marked = |x: NodeIx, y: NodeIx| {
                let core = self.nodes[x].core.as_ref().expect("checked: up");
                core.is_al_active(volume, sector) || core.is_out_of_sync(volume, node_id(y), sector) != Some(false)
            };
            busy.iter().any(|r| r.contains(&sector))
                || marked(a, b)
                || marked(b, a)
                || self.model.write_in_flight((volume.0, sector))
        };
        let sectors = disk_a.data_sectors().min(disk_b.data_sectors());
        self.model
            .touched(volume.0)
            .filter(|s| *s < sectors)
            .find(|s| disk_a.sector(*s) != disk_b.sector(*s) && !explained(*s))
    }

    /// Everything is connected, UpToDate, Established.
    pub fn is_converged(&self) -> bool {
        let volumes: Vec<VolumeNr> = self.nodes[0].disks.keys().copied().collect();
        let count = self.nodes.len();
        let up = self.nodes.iter().all(|n| n.is_up() && !n.paused && n.boot.is_empty() && n.boot_waits.is_none());
        up && volumes.iter().all(|v| (0..count).all(|a| (a + 1..count).all(|b| self.mutually_in_sync(a, b, *v))))
    }

    /// Converged, idle, and no bit is set.
    pub fn is_calm(&mut self) -> bool {
        for ix in 0..self.nodes.len() {
            self.refresh(ix);
        }
        let clean = |n: &crate::node::Node| {
            n.status.connections.iter().all(|c| c.peer_devices.iter().all(|p| p.out_of_sync_sectors == 0))
        };
        self.is_converged() && self.is_idle() && self.nodes.iter().all(clean)
    }

    /// Nothing is in flight in a front end or at a disk.
    pub fn is_idle(&self) -> bool {
        self.nodes.iter().all(|n| n.requests.is_empty() && n.disks.values().all(|d| !d.busy()))
    }

    /// At rest, after convergence: replicas are equal sector by sector, no bit is set, nothing leaks.
    pub fn check_at_rest(&mut self) {
        if !self.is_converged() || !self.is_idle() {
            let text = self.summary();
            self.fail(&format!("not at rest:\n{text}"));
        }
        self.checkpoint();
        for ix in 0..self.nodes.len() {
            let node = &self.nodes[ix];
            if node.pool.in_use() > 0 {
                let leaked = node.pool.describe();
                self.fail(&format!("node {ix} leaks buffers: {leaked}"));
            }
            if !node.admin.is_empty() {
                self.fail(&format!("node {ix} does not answer an admin command"));
            }
            let stuck = node.status.devices.iter().find(|d| d.requests_in_flight > 0);
            if let Some(device) = stuck {
                let text = format!("node {ix} counts {} requests in flight at rest", device.requests_in_flight);
                self.fail(&text);
            }
            let peers = node.status.connections.iter().flat_map(|c| c.peer_devices.iter().map(move |p| (c.peer, p)));
            let marked = peers
                .filter(|(_, p)| p.out_of_sync_sectors > 0)
                .map(|(n, p)| format!("n{n} {} sectors", p.out_of_sync_sectors));
            let marked: Vec<String> = marked.collect();
            if !marked.is_empty() {
                self.fail(&format!("node {ix} is Established and UpToDate with bits set: {}", marked.join(", ")));
            }
        }
        self.check_equal();
    }

    fn check_equal(&mut self) {
        let volumes: Vec<VolumeNr> = self.nodes[0].disks.keys().copied().collect();
        for volume in volumes {
            for ix in 1..self.nodes.len() {
                let (first, other) = (&self.nodes[0].disks[&volume], &self.nodes[ix].disks[&volume]);
                let size = self.nodes[0].device(volume).map_or(0, |d| d.size_sectors);
                let differs = (0..size).find(|s| first.sector(*s) != other.sector(*s));
                if let Some(s) = differs {
                    let text = format!(
                        "volume {volume} sector {s} is {} on node 0 and {} on node {ix}, at rest",
                        crate::model::describe_tag(first.sector(s)),
                        crate::model::describe_tag(other.sector(s))
                    );
                    self.fail(&text);
                }
            }
        }
    }

    /// One line for each node.
    pub fn summary(&self) -> String {
        let lines: Vec<String> = self.nodes.iter().map(|n| format!("  {}", n.summary())).collect();
        lines.join("\n")
    }
}
