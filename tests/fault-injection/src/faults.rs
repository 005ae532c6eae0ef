//! What goes wrong on purpose: nodes that lose power, die or pause, links that are cut or stall, disks that fail.

use zea_core::io::LinkLost;
use zea_wire::ids::VolumeNr;

use crate::disk::DiskFaults;
use crate::net::{EndState, NodeIx};
use crate::world::{Event, Outcome, World};

/// How a node goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Power is lost: unstable writes survive in part, peers notice by their keepalive only.
    Power,
    /// The process dies: its disks keep what they were given, its links close.
    Process,
}

impl World {
    /// A node goes down.
    pub fn crash(&mut self, ix: NodeIx, how: Crash) {
        if !self.nodes[ix].is_up() {
            return;
        }
        let now = self.now;
        self.trace.line(now, || format!("n{ix} crashes: {how:?}"));
        self.refresh(ix);
        let pending = std::mem::take(&mut self.nodes[ix].requests);
        for (req, request) in pending {
            self.outcomes.insert(req, Outcome::Lost);
            if let crate::node::Purpose::Write(write) = request.purpose {
                self.model.write_unknown(write);
            }
        }
        let lost_power = how == Crash::Power;
        for disk in self.nodes[ix].disks.values_mut() {
            if lost_power {
                disk.crash(&mut self.disk_rng);
            } else {
                disk.abandon(&mut self.disk_rng);
            }
        }
        let volatile = self.nodes[ix].disks.values().any(|d| d.params().volatile_cache);
        if lost_power && volatile {
            self.model.node_crashed(ix);
        }
        self.net.forget_wants(ix);
        for id in self.net.links_of(ix) {
            let peer = self.net.link(id).and_then(|l| l.peer_of(ix));
            self.net.close_end(id, ix);
            if let Some(peer) = peer.filter(|_| how == Crash::Process) {
                self.link_down_later(id, peer, LinkLost::Closed);
            }
        }
        self.nodes[ix].lose_memory();
        self.forget_node(ix);
    }

    /// A node that is down starts after a while.
    pub fn restart_in_ms(&mut self, ix: NodeIx, delay_ms: u64) {
        self.at(self.now + delay_ms * 1_000_000, Event::Restart { node: ix });
    }

    /// The peers of a node that starts again learn that their old links are dead.
    pub(crate) fn reset_links_to_former_runs(&mut self, ix: NodeIx) {
        for id in self.net.links_of(ix) {
            if let Some(peer) = self.net.link(id).and_then(|l| l.peer_of(ix)) {
                self.link_down_later(id, peer, LinkLost::Network("connection reset by peer".into()));
            }
        }
    }

    fn link_down_later(&mut self, link: u64, node: NodeIx, lost: LinkLost) {
        let delay = self.net_rng.delay_ns(self.net.params.notice_ns);
        let up_at = self.net.link(link).and_then(|l| l.side_of(node).map(|s| l.ends[s].up_at)).unwrap_or(0);
        let run = self.nodes[node].run;
        self.at((self.now + delay).max(up_at + 1), Event::LinkDown { node, run, link, lost });
    }

    /// No event reaches a node until [`World::resume`].
    pub fn pause(&mut self, ix: NodeIx) {
        if self.nodes[ix].is_up() {
            self.nodes[ix].paused = true;
        }
    }

    /// A paused node gets what it missed.
    pub fn resume(&mut self, ix: NodeIx) {
        if !self.nodes[ix].paused {
            return;
        }
        self.nodes[ix].paused = false;
        while let Some(event) = self.nodes[ix].deferred.pop_front() {
            self.dispatch(event);
        }
    }

    /// Cuts the way between two nodes: what is under way is lost, both notice after a while.
    pub fn cut(&mut self, a: NodeIx, b: NodeIx) {
        let now = self.now;
        self.trace.line(now, || format!("cut n{a} n{b}"));
        for id in self.net.set_cut(a, b, true) {
            let Some(link) = self.net.link_mut(id) else {
                continue;
            };
            link.dead = true;
            let open: Vec<NodeIx> = link.ends.iter().filter(|e| e.state != EndState::Closed).map(|e| e.node).collect();
            for node in open {
                self.link_down_later(id, node, LinkLost::Network("connection reset".into()));
            }
        }
    }

    /// Ends a cut and every stall between two nodes.
    pub fn heal(&mut self, a: NodeIx, b: NodeIx) {
        let now = self.now;
        self.trace.line(now, || format!("heal n{a} n{b}"));
        self.net.set_cut(a, b, false);
        self.unstall(a, b);
        self.unstall(b, a);
        self.dial_soon(a, b);
    }

    /// Nothing that `from` sends to `to` arrives until [`World::unstall`].
    pub fn stall(&mut self, from: NodeIx, to: NodeIx) {
        let now = self.now;
        self.trace.line(now, || format!("stall n{from} to n{to}"));
        self.net.set_stall(from, to, true);
    }

    /// What was held back arrives.
    pub fn unstall(&mut self, from: NodeIx, to: NodeIx) {
        for (stream, held) in self.net.set_stall(from, to, false) {
            let run = self.nodes[to].run;
            for _ in 0..held {
                self.at(self.now, Event::Frame { node: to, run, stream });
            }
        }
        self.dial_soon(from, to);
    }

    /// Switches faults of a disk on or off.
    pub fn set_disk_faults(&mut self, ix: NodeIx, volume: VolumeNr, faults: DiskFaults) {
        let now = self.now;
        self.trace.line(now, || format!("n{ix} volume {volume} {faults:?}"));
        self.nodes[ix].disks.get_mut(&volume).expect("a volume of this node").faults = faults;
    }

    /// Ends every fault; nodes that are down start.
    pub fn heal_all(&mut self) {
        let count = self.nodes.len();
        for a in 0..count {
            self.resume(a);
            for b in a + 1..count {
                self.heal(a, b);
            }
            for disk in self.nodes[a].disks.values_mut() {
                disk.faults = DiskFaults::default();
            }
            self.restart_in_ms(a, 10);
        }
    }
}
