//! The cluster at rest: together, equal, with nothing left over.

use zea_wire::ids::VolumeNr;

use super::Check;
use crate::world::World;

impl World {
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
            let peers = node.status.connections.iter().flat_map(|c| c.peer_devices.iter().map(move |p| (c.peer, p)));
            let marked = peers
                .filter(|(_, p)| p.out_of_sync_sectors > 0)
                .map(|(n, p)| format!("n{n} {} sectors", p.out_of_sync_sectors));
            let marked: Vec<String> = marked.collect();
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
