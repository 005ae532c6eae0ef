//! The cluster at rest: together, equal, with nothing left over.

use zea_wire::ids::VolumeNr;

use super::Check;
use crate::net::NodeIx;
use crate::node::Node;
use crate::world::World;

impl World {
    /// Everything is connected, UpToDate, Established, and nothing is on its way: with protocol A it may be writes. Who is to have no
    /// disk sees it so.
    pub fn is_converged(&self) -> bool {
        let volumes: Vec<VolumeNr> = self.nodes[0].disks.keys().copied().collect();
        let count = self.nodes.len();
        let settled = |n: &Node| n.is_quiet() && n.boot.is_empty() && n.boot_waits.is_none();
        let up = self.nodes.iter().all(|n| n.is_up() && !n.paused && settled(n));
        let pairs = || (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
        let quiet = up && pairs().all(|(a, b)| self.net.is_quiet(a, b));
        quiet && volumes.iter().all(|v| pairs().all(|(a, b)| self.is_as_wanted(a, b, *v)))
    }

    fn is_as_wanted(&self, a: NodeIx, b: NodeIx, volume: VolumeNr) -> bool {
        match (self.wants_disk(a, volume), self.wants_disk(b, volume)) {
            (true, true) => self.mutually_in_sync(a, b, volume),
            (true, false) => self.is_connected(a, b) && self.nodes[b].sees_in_sync(a, volume),
            (false, true) => self.is_connected(a, b) && self.nodes[a].sees_in_sync(b, volume),
            (false, false) => self.is_connected(a, b),
        }
    }

    /// The node is to have a disk for this volume.
    pub fn wants_disk(&self, ix: NodeIx, volume: VolumeNr) -> bool {
        !self.nodes[ix].saved.diskless.contains(&volume)
    }

    /// Converged, idle, and no bit is set.
    pub fn is_calm(&mut self) -> bool {
        for ix in 0..self.nodes.len() {
            self.refresh(ix);
        }
        self.is_converged() && self.is_idle() && (0..self.nodes.len()).all(|ix| self.marked_peers(ix).next().is_none())
    }

    /// Peers with a disk towards which a node has bits, and how many sectors.
    fn marked_peers(&self, ix: NodeIx) -> impl Iterator<Item = (NodeIx, u64)> {
        let status = &self.nodes[ix].status;
        let all = status.connections.iter().flat_map(|c| c.peer_devices.iter().map(move |p| (c.peer.index(), p)));
        let wanted = all.filter(|(peer, p)| p.out_of_sync_sectors > 0 && self.wants_disk(*peer, p.volume));
        wanted.map(|(peer, p)| (peer, p.out_of_sync_sectors))
    }

    /// Nothing is in flight in a front end or at a disk.
    pub fn is_idle(&self) -> bool {
        self.nodes.iter().all(|n| n.requests.is_empty() && n.disks.values().all(|d| !d.busy()))
    }

    /// At rest, after convergence: replicas are equal sector by sector, no bit is set, nothing leaks.
    pub fn check_at_rest(&mut self) {
        if !self.is_converged() || !self.is_idle() {
            let text = self.summary();
            self.fail(Check::Convergence, &format!("not at rest:\n{text}"));
        }
        self.checkpoint();
        for ix in 0..self.nodes.len() {
            let node = &self.nodes[ix];
            if node.pool.in_use() > 0 {
                let leaked = node.pool.describe();
                self.fail(Check::Leak, &format!("node {ix} leaks buffers: {leaked}"));
            }
            if !node.admin.is_empty() {
                self.fail(Check::Stuck, &format!("node {ix} does not answer an admin command"));
            }
            let stuck = node.status.devices.iter().find(|d| d.requests_in_flight > 0);
            if let Some(device) = stuck {
                let text = format!("node {ix} counts {} requests in flight at rest", device.requests_in_flight);
                self.fail(Check::Stuck, &text);
            }
            let marked: Vec<String> =
                self.marked_peers(ix).map(|(peer, sectors)| format!("n{peer} {sectors} sectors")).collect();
            if !marked.is_empty() {
                let text = format!("node {ix} is Established and UpToDate with bits set: {}", marked.join(", "));
                self.fail(Check::Convergence, &text);
            }
        }
        self.check_equal();
    }

    fn check_equal(&mut self) {
        let volumes: Vec<VolumeNr> = self.nodes[0].disks.keys().copied().collect();
        for volume in volumes {
            let with_disk: Vec<NodeIx> = (0..self.nodes.len()).filter(|ix| self.wants_disk(*ix, volume)).collect();
            let Some((&reference, rest)) = with_disk.split_first() else { continue };
            for &ix in rest {
                let (first, other) = (&self.nodes[reference].disks[&volume], &self.nodes[ix].disks[&volume]);
                let size = self.nodes[reference].device(volume).map_or(0, |d| d.size_sectors);
                let differs = (0..size).find(|s| first.sector(*s) != other.sector(*s));
                if let Some(s) = differs {
                    let text = format!(
                        "volume {volume} sector {s} is {} on node {reference} and {} on node {ix}, at rest",
                        crate::model::describe_tag(first.sector(s)),
                        crate::model::describe_tag(other.sector(s))
                    );
                    self.fail(Check::Equality, &text);
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
