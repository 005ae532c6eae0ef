//! Carries out the plan of a random run, and acts as the people around the cluster: a manager who attaches what came loose
//! and promotes somebody when nobody is Primary, and an administrator who helps the healed cluster together.

use std::collections::BTreeSet;

use zea_core::io::Command;
use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState, Role};

use crate::checks::Check;
use crate::disk::DiskFaults;
use crate::net::NodeIx;
use crate::plan::{Fault, Planned};
use crate::rng::Stream;
use crate::workload::Workload;
use crate::world::{Event, World, node_id};

const MS: u64 = 1_000_000;
/// Events between two checkpoints.
const CHECKPOINT_EVENTS: u64 = 500;
/// Virtual time that the healed cluster has to converge.
const CONVERGE_MS: u64 = 600_000;
/// Between two looks of the administrator.
const HELP_MS: u64 = 5_000;

/// Kinds of driver events; 0 is the load's. Below `UNDO`: faults by number.
const MANAGER: u32 = 1;
const FAULT: u32 = 1 << 8;
const UNDO: u32 = 1 << 16;

/// How a fault ends.
#[derive(Debug, Clone, Copy)]
enum Undo {
    Heal(NodeIx, NodeIx),
    Unstall(NodeIx, NodeIx),
    Stall(NodeIx, NodeIx),
    Fast(NodeIx, NodeIx, usize),
    Resume(NodeIx),
    Disk(NodeIx, VolumeNr),
    Connect(NodeIx, NodeIx),
    LetAttach(NodeIx),
    Up(NodeIx),
}

/// See the module.
#[derive(Debug)]
pub struct Driver {
    /// The world.
    pub world: World,
    load: Workload,
    rng: Stream,
    plan: Vec<Planned>,
    undo: Vec<Undo>,
    healing: bool,
    /// Nodes whose load has stopped because they are to be demoted.
    demoting: BTreeSet<NodeIx>,
    /// Nodes that the manager leaves alone: an administrator is at work.
    hands_off: BTreeSet<NodeIx>,
    /// Pairs that were connected again without throwing anything away.
    tried: BTreeSet<(NodeIx, NodeIx)>,
}

impl Driver {
    /// A driver for a world that has just begun.
    pub fn new(world: World, load: Workload, plan: Vec<Planned>) -> Driver {
        let rng = Stream::new(world.seed, "driver");
        let (demoting, hands_off, tried) = Default::default();
        Driver { world, load, rng, plan, undo: Vec::new(), healing: false, demoting, hands_off, tried }
    }

    /// The phase with faults: nothing may go wrong that the model forbids.
    pub fn disturb(&mut self, phase_ms: u64) {
        let begin = self.world.now;
        for (nr, planned) in (0..).zip(&self.plan) {
            self.world.at(begin + planned.at_ms * MS, Event::Driver { what: FAULT + nr });
        }
        self.later(MANAGER, 500);
        let mut next_check = self.world.events + CHECKPOINT_EVENTS;
        while self.world.step(begin + phase_ms * MS) {
            self.drive();
            self.load.step(&mut self.world, &self.demoting);
            if self.world.events >= next_check {
                next_check = self.world.events + CHECKPOINT_EVENTS;
                self.world.checkpoint();
            }
        }
    }

    fn later(&mut self, what: u32, typical_ms: u64) {
        let delay = self.rng.between(typical_ms / 10, typical_ms * 2) * MS;
        self.world.at(self.world.now + delay, Event::Driver { what });
    }

    fn drive(&mut self) {
        while let Some(what) = self.world.driver.pop_front() {
            match what {
                MANAGER => {
                    self.manage();
                    self.later(MANAGER, 500);
                }
                undo if undo >= UNDO => self.undo((undo - UNDO) as usize),
                fault if fault >= FAULT && !self.healing => self.inject((fault - FAULT) as usize),
                _ => {}
            }
        }
        let idle = |ix: &NodeIx| self.world.nodes[*ix].requests.is_empty();
        if let Some(ix) = self.demoting.iter().copied().find(idle) {
            self.demoting.remove(&ix);
            if self.usable(ix) && self.world.role(ix) == Role::Primary {
                self.world.admin(ix, Command::Demote);
            }
        }
    }

    fn ends_in(&mut self, ms: u64, undo: Undo) {
        self.undo.push(undo);
        let what = UNDO + self.undo.len() as u32 - 1;
        self.world.at(self.world.now + ms * MS, Event::Driver { what });
    }

    fn inject(&mut self, nr: usize) {
        let fault = self.plan[nr].fault.clone();
        let now = self.world.now;
        self.world.trace.line(now, || format!("FAULT {nr}: {fault:?}"));
        self.world.checks.coverage.fault(fault.kind());
        match fault {
            Fault::Crash { nodes, how, ms } => {
                for ix in (0..self.world.nodes.len()).filter(|ix| nodes >> ix & 1 == 1) {
                    self.world.crash(ix, how);
                    self.world.restart_in_ms(ix, ms + ms * ix as u64 / 7);
                }
            }
            Fault::Pause { node, ms } => {
                self.world.pause(node);
                self.ends_in(ms, Undo::Resume(node));
            }
            Fault::ClockJump { node, ms } => self.world.jump_clock(node, ms),
            Fault::Cut { a, b, ms } => {
                self.world.cut(a, b);
                self.ends_in(ms, Undo::Heal(a, b));
            }
            Fault::Isolate { node, ms } => {
                for other in self.others(node) {
                    self.world.cut(node, other);
                    self.ends_in(ms, Undo::Heal(node, other));
                }
            }
            Fault::Reset { a, b } => self.world.reset_link(a, b),
            Fault::HalfOpen { a, b } => self.world.half_open(a, b),
            Fault::Stall { from, to, ms } => {
                self.world.stall(from, to);
                self.ends_in(ms, Undo::Unstall(from, to));
            }
            Fault::Swizzle { node, ms } => self.swizzle(node, ms),
            Fault::SlowStream { from, to, stream, times, ms } => {
                self.world.slow_stream(from, to, stream, times);
                self.ends_in(ms, Undo::Fast(from, to, stream));
            }
            Fault::Disk { node, volume, faults, ms } => {
                self.world.set_disk_faults(node, volume, faults);
                self.ends_in(ms, Undo::Disk(node, volume));
            }
            Fault::Latent { node, volume, per_mille, sectors } => {
                self.world.make_unreadable(node, volume, per_mille, sectors);
            }
            Fault::SlowDisk { node, volume, times, ms } => {
                self.world.slow_disk(node, volume, times);
                self.ends_in(ms, Undo::Disk(node, volume));
            }
            admin => self.command(admin),
        }
    }

    fn others(&self, node: NodeIx) -> Vec<NodeIx> {
        (0..self.world.nodes.len()).filter(|o| *o != node).collect()
    }

    fn swizzle(&mut self, node: NodeIx, ms: u64) {
        for other in self.others(node) {
            for (from, to) in [(node, other), (other, node)] {
                let clogs = self.rng.below(ms / 2 + 1);
                let frees = self.rng.between(ms / 2, ms);
                self.ends_in(clogs, Undo::Stall(from, to));
                self.ends_in(frees, Undo::Unstall(from, to));
            }
        }
    }

    /// An administrator's command, at nodes that take one.
    fn command(&mut self, fault: Fault) {
        match fault {
            Fault::Demote { node } if self.usable(node) && self.world.role(node) == Role::Primary => {
                self.demoting.insert(node);
            }
            Fault::Promote { node, force } if self.usable(node) && self.world.role(node) == Role::Secondary => {
                // Where votes count, nobody goes on without them.
                let force = force && !self.world.counts_votes();
                self.world.nodes[node].forcing = force;
                self.world.admin(node, Command::Promote { force });
            }
            Fault::Disconnect { node, peer, force, ms } if self.usable(node) => {
                self.world.admin(node, Command::Disconnect { peer: node_id(peer), force });
                self.ends_in(ms, Undo::Connect(node, peer));
            }
            Fault::Invalidate { node, volume } if self.usable(node) => {
                let others = self.others(node);
                if others.iter().any(|o| self.world.mutually_in_sync(node, *o, volume)) {
                    self.world.model.gave_up(node, volume.0);
                    self.world.admin(node, Command::Invalidate { volume });
                }
            }
            Fault::Detach { node, volume, force, ms } if self.usable(node) => {
                self.hands_off.insert(node);
                self.world.admin(node, Command::Detach { volume, force });
                self.ends_in(ms, Undo::LetAttach(node));
            }
            Fault::DownUp { node, ms } if self.usable(node) && self.world.role(node) == Role::Secondary => {
                self.hands_off.insert(node);
                self.world.admin(node, Command::Down);
                self.ends_in(ms, Undo::Up(node));
            }
            Fault::Verify { node, peer, volume, per_mille, sectors } if self.usable(node) => {
                let size = self.world.nodes[node].disks[&volume].data_sectors();
                let start = size * per_mille / 1000;
                let command = Command::Verify {
                    peer: node_id(peer),
                    volume,
                    start_sector: Some(start),
                    stop_sector: Some(start + sectors),
                };
                self.world.admin(node, command);
            }
            _ => {}
        }
    }

    fn usable(&self, ix: NodeIx) -> bool {
        let node = &self.world.nodes[ix];
        let free = !self.hands_off.contains(&ix) && node.admin.is_empty();
        free && node.is_up() && !node.paused && node.boot.is_empty() && node.boot_waits.is_none()
    }

    fn undo(&mut self, index: usize) {
        match self.undo[index] {
            Undo::Heal(a, b) => self.world.heal(a, b),
            Undo::Stall(from, to) if !self.healing => self.world.stall(from, to),
            Undo::Stall(..) => {}
            Undo::Unstall(from, to) => self.world.unstall(from, to),
            Undo::Fast(from, to, stream) => self.world.slow_stream(from, to, stream, 1),
            Undo::Resume(ix) => self.world.resume(ix),
            Undo::Disk(ix, volume) => {
                self.world.slow_disk(ix, volume, 1);
                self.world.set_disk_faults(ix, volume, DiskFaults::default());
            }
            Undo::Connect(a, b) if self.usable(a) && self.world.conn(a, b) == ConnState::StandAlone => {
                self.world.admin(a, Command::Connect { peer: node_id(b), discard_my_data: false });
            }
            Undo::Connect(..) => {}
            Undo::LetAttach(ix) => {
                self.hands_off.remove(&ix);
            }
            Undo::Up(ix) => {
                self.hands_off.remove(&ix);
                self.world.crash(ix, crate::faults::Crash::Process);
                self.world.restart_in_ms(ix, 1);
            }
        }
    }

    /// What a cluster manager does: attach what came loose, promote somebody if nobody is Primary.
    fn manage(&mut self) {
        for ix in 0..self.world.nodes.len() {
            if self.usable(ix) {
                self.reattach(ix);
            }
        }
        let is_primary = |w: &World, ix: NodeIx| w.nodes[ix].is_up() && w.role(ix) == Role::Primary && w.has_quorum(ix);
        let count = self.world.nodes.len();
        self.demote_without_quorum();
        if (0..count).any(|ix| is_primary(&self.world, ix)) {
            return;
        }
        let ix = self.rng.below(count as u64) as NodeIx;
        if self.usable(ix) {
            self.world.admin(ix, Command::Promote { force: false });
        }
    }

    /// A Primary without quorum serves nothing; it is in the way of another one that has it.
    fn demote_without_quorum(&mut self) {
        let primaries = |w: &World, quorate: bool| -> Vec<NodeIx> {
            let is = |ix: &NodeIx| w.nodes[*ix].is_up() && w.role(*ix) == Role::Primary && w.has_quorum(*ix) == quorate;
            (0..w.nodes.len()).filter(is).collect()
        };
        if !primaries(&self.world, true).is_empty() {
            let idle: Vec<NodeIx> = primaries(&self.world, false).into_iter().filter(|ix| self.usable(*ix)).collect();
            self.demoting.extend(idle);
        }
    }

    fn reattach(&mut self, ix: NodeIx) {
        let node = &self.world.nodes[ix];
        let loose = node.disks.iter().find(|(nr, disk)| {
            !node.attached.contains(nr)
                && !node.saved.diskless.contains(nr)
                && disk.faults == DiskFaults::default()
                && node.disk_state(**nr) == DiskState::Diskless
        });
        if let Some((volume, disk)) = loose {
            let command = Command::Attach { volume: *volume, backing: disk.backing() };
            self.world.admin(ix, command);
        }
    }

    /// The phase without faults: the cluster comes together, byte for byte, with the help that an administrator would give.
    pub fn heal(&mut self) {
        self.healing = true;
        self.world.heal_all();
        let end = self.world.now + CONVERGE_MS * MS;
        let mut next_help = self.world.now + HELP_MS * MS;
        while !self.calm_for_a_while() {
            if !self.world.step(end) {
                let text = self.world.summary();
                self.world.fail(Check::Convergence, &format!("the healed cluster does not converge:\n{text}"));
            }
            self.drive();
            if self.world.now >= next_help {
                next_help = self.world.now + HELP_MS * MS;
                self.help();
            }
        }
        self.world.driver.clear();
        self.world.check_at_rest();
    }

    /// Whether the cluster came to rest and stays there.
    fn calm_for_a_while(&mut self) -> bool {
        if !(self.world.is_converged() && self.world.is_idle()) {
            return false;
        }
        self.world.run_ms(HELP_MS);
        let calm = self.world.is_calm();
        if !calm {
            // The people around it have waited meanwhile. Without them nothing may happen any more.
            self.drive();
        }
        calm
    }

    /// Who stands alone connects again. Where that does not help it is a split brain: it is resolved in favour of a Primary,
    /// else of the lower node; but not of one with a disk that is Inconsistent, which is no source.
    fn help(&mut self) {
        self.force_last_copy();
        let count = self.world.nodes.len();
        for (a, b) in (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))) {
            let alone = |x: NodeIx, y: NodeIx| self.world.conn(x, y) == ConnState::StandAlone;
            if !(self.usable(a) && self.usable(b) && (alone(a, b) || alone(b, a))) {
                continue;
            }
            let (a_alone, b_alone) = (alone(a, b), alone(b, a));
            let split = a_alone && b_alone && !self.tried.insert((a, b));
            let rank = |x: NodeIx| (!self.is_inconsistent(x), self.world.role(x) == Role::Primary);
            let victim = if rank(b) > rank(a) { a } else { b };
            self.reconnect(a, b, a_alone, split && victim == a);
            self.reconnect(b, a, b_alone, split && victim == b);
        }
    }

    fn is_inconsistent(&self, ix: NodeIx) -> bool {
        let node = &self.world.nodes[ix];
        node.disks.keys().any(|volume| node.disk_state(*volume) == DiskState::Inconsistent)
    }

    /// No UpToDate data anywhere, and faults are over: somebody has to declare a copy good. The Primary's, else the first.
    fn force_last_copy(&mut self) {
        let count = self.world.nodes.len();
        let volumes: Vec<VolumeNr> = self.world.nodes[0].disks.keys().copied().collect();
        let state = |ix: NodeIx, v: VolumeNr| self.world.nodes[ix].disk_state(v);
        let orphaned = |v: &&VolumeNr| {
            (0..count)
                .filter(|ix| self.world.wants_disk(*ix, **v))
                .all(|ix| (DiskState::Inconsistent..DiskState::UpToDate).contains(&state(ix, **v)))
        };
        if volumes.iter().find(orphaned).is_none() {
            return;
        }
        let mut primaries = (0..count).filter(|ix| self.world.role(*ix) == Role::Primary);
        let ix = primaries.next().unwrap_or(0);
        let other = primaries.next();
        if let Some(other) = other.filter(|ix| self.usable(*ix)) {
            // "Both nodes are Primary: demote one of them."
            self.demoting.insert(other);
        } else if self.usable(ix) {
            self.world.nodes[ix].forcing = true;
            self.world.admin(ix, Command::Promote { force: true });
        }
    }

    fn reconnect(&mut self, ix: NodeIx, peer: NodeIx, alone: bool, discard_my_data: bool) {
        if !alone {
            return;
        }
        if discard_my_data {
            self.world.model.forgive(ix);
            if self.world.role(ix) == Role::Primary {
                self.world.admin(ix, Command::Demote);
            }
        }
        self.world.admin(ix, Command::Connect { peer: node_id(peer), discard_my_data });
    }
}
