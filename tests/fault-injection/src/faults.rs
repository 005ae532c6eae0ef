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
        let witnesses = self.witnesses(ix);
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
        self.model.witness_died(ix);
        let disks = &self.nodes[ix].disks;
        self.model
            .node_died(ix, &witnesses, |(volume, sector)| disks.get(&VolumeNr(volume)).map_or(0, |d| d.sector(sector)));
        let volatile = self.nodes[ix].disks.values().any(|d| d.params().volatile_cache);
        if lost_power && volatile {
            self.model.node_crashed(ix, &witnesses);
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

    /// Nodes that live on and are in sync with this one, in every volume.
    fn witnesses(&self, ix: NodeIx) -> Vec<NodeIx> {
        let others = (0..self.nodes.len()).filter(|o| *o != ix && self.nodes[*o].is_up());
        others.filter(|o| self.nodes[ix].disks.keys().all(|v| self.mutually_in_sync(ix, *o, *v))).collect()
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

    /// One sector of the next data from one node to another changes on its way.
    pub fn damage_next_data(&mut self, from: NodeIx, to: NodeIx) {
        let now = self.now;
        self.trace.line(now, || format!("the next data from n{from} to n{to} is damaged"));
        self.net.damage_next(from, to);
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
        self.net.set_cut(a, b, true);
        self.break_links(a, b, &[a, b]);
    }

    /// The link between two nodes is reset; they may connect again at once.
    pub fn reset_link(&mut self, a: NodeIx, b: NodeIx) {
        let now = self.now;
        self.trace.line(now, || format!("reset n{a} n{b}"));
        self.break_links(a, b, &[a, b]);
    }

    /// The link between two nodes is gone, and only `a` learns it; `b` has its keepalive.
    pub fn half_open(&mut self, a: NodeIx, b: NodeIx) {
        let now = self.now;
        self.trace.line(now, || format!("half-open: n{b} does not learn that its link to n{a} is gone"));
        self.break_links(a, b, &[a]);
    }

    fn break_links(&mut self, a: NodeIx, b: NodeIx, who_learns: &[NodeIx]) {
        for id in self.net.links_between(a, b) {
            self.net.break_link(id, &mut self.net_rng);
            let Some(link) = self.net.link(id) else {
                continue;
            };
            let open = link.ends.iter().filter(|e| e.state != EndState::Closed && who_learns.contains(&e.node));
            for node in open.map(|e| e.node).collect::<Vec<_>>() {
                self.link_down_later(id, node, LinkLost::Network("connection reset".into()));
            }
        }
    }

    /// One direction of one stream takes so many times as long from now on.
    pub fn slow_stream(&mut self, from: NodeIx, to: NodeIx, stream: usize, times: u64) {
        let now = self.now;
        self.trace.line(now, || format!("stream {stream} n{from} to n{to} takes {times} times as long"));
        self.net.set_slow(from, to, stream, times);
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

    /// A disk takes so many times as long from now on.
    pub fn slow_disk(&mut self, ix: NodeIx, volume: VolumeNr, times: u64) {
        self.nodes[ix].disks.get_mut(&volume).expect("a volume of this node").slowness = times;
    }

    /// Some sectors of a disk, from a part of the whole on, cannot be read until they are written.
    pub fn make_unreadable(&mut self, ix: NodeIx, volume: VolumeNr, per_mille: u64, sectors: u64) {
        let disk = self.nodes[ix].disks.get_mut(&volume).expect("a volume of this node");
        let end = disk.data_sectors();
        let first = end * per_mille / 1000;
        disk.latent.extend(first..(first + sectors).min(end));
    }

    /// The clock of a node jumps forward.
    pub fn jump_clock(&mut self, ix: NodeIx, ms: u64) {
        let now = self.now;
        self.trace.line(now, || format!("n{ix} clock jumps {ms} ms"));
        self.nodes[ix].clock.offset_ns += ms * 1_000_000;
        if self.nodes[ix].is_up() {
            self.arm_timer(ix);
        }
    }

    /// Ends every fault; nodes that are down start.
    pub fn heal_all(&mut self) {
        let count = self.nodes.len();
        self.net.all_fast();
        for a in 0..count {
            self.resume(a);
            for b in a + 1..count {
                self.heal(a, b);
            }
            for disk in self.nodes[a].disks.values_mut() {
                disk.faults = DiskFaults::default();
                disk.latent.clear();
                disk.slowness = 1;
            }
            self.restart_in_ms(a, 10);
        }
    }
}
