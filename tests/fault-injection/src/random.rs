//! Random runs: a seed decides the cluster, the load and the faults. First a phase with faults, in which nothing may go
//! wrong that the model forbids; then everything is healed and the cluster has to converge, byte for byte.

use zea_core::config::Protocol;
use zea_core::io::Command;
use zea_meta::placement::Placement;
use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState, Role};

use crate::disk::DiskFaults;
use crate::faults::Crash;
use crate::net::NodeIx;
use crate::rng::Stream;
use crate::scenario::Cluster;
use crate::trace::Record;
use crate::workload::{Mix, Workload};
use crate::world::{Event, World, node_id};

const MS: u64 = 1_000_000;
/// Events between two checkpoints.
const CHECKPOINT_EVENTS: u64 = 500;
/// Virtual time that the healed cluster has to converge.
const CONVERGE_MS: u64 = 600_000;

/// Front-end requests of a run, about.
const REQUESTS: u64 = 2_000;

/// Kinds of driver events; 0 is the load's.
const FAULT: u32 = 1;
const MANAGER: u32 = 2;
const UNDO: u32 = 16;

/// What a run was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that happened.
    pub hash: u64,
    /// Events handled.
    pub events: u64,
    /// Front-end writes.
    pub writes: usize,
    /// Virtual milliseconds.
    pub ms: u64,
    /// Faults injected.
    pub faults: u32,
}

/// Which faults a run may inject; a seed switches some of them off, so that the others go deeper.
#[derive(Debug, Clone, Copy)]
struct Swarm {
    crashes: bool,
    cuts: bool,
    stalls: bool,
    pauses: bool,
    disks: bool,
    roles: bool,
}

#[derive(Debug)]
struct Driver {
    world: World,
    load: Workload,
    rng: Stream,
    swarm: Swarm,
    undo: Vec<Undo>,
    faults: u32,
    healing: bool,
}

/// How a fault ends.
#[derive(Debug, Clone, Copy)]
enum Undo {
    Heal(NodeIx, NodeIx),
    Resume(NodeIx),
    Disk(NodeIx),
    Connect(NodeIx, NodeIx),
}

/// Runs one seed. Panics with a message that names the violation.
pub fn run(seed: u64, nodes: usize, record: Record) -> Report {
    let mut rng = Stream::new(seed, "swarm");
    let cluster = swarm_cluster(seed, nodes, record, &mut rng);
    let phase_ms = rng.between(3_000, 40_000);
    let depth = *rng.pick(&[1, 4, 16, 32]);
    let mix = Mix {
        gap_ns: phase_ms * MS * (depth as u64).div_ceil(2) / REQUESTS,
        reads: rng.between(50, 600),
        flushes: *rng.pick(&[5, 30, 150]),
        zeroes: *rng.pick(&[0, 20, 60]),
        fua: *rng.pick(&[0, 30, 200]),
        hot: *rng.pick(&[300, 800, 980]),
        depth,
    };
    let swarm = Swarm {
        crashes: rng.chance(700),
        cuts: rng.chance(600),
        stalls: rng.chance(300),
        pauses: rng.chance(250),
        disks: rng.chance(250),
        roles: rng.chance(500),
    };
    let load = Workload::new(seed, mix.clone(), rng.between(2, 40), cluster.volume_sectors[0]);
    let mut world = cluster.synced();
    world.label = format!("{}, {mix:?}, {swarm:?}", world.label);
    let mut driver =
        Driver { world, load, rng: Stream::new(seed, "driver"), swarm, undo: Vec::new(), faults: 0, healing: false };
    driver.disturb(phase_ms);
    driver.heal();
    let world = &driver.world;
    Report {
        hash: world.trace.hash(),
        events: world.events,
        writes: world.model.writes(),
        ms: world.now / MS,
        faults: driver.faults,
    }
}

fn swarm_cluster(seed: u64, nodes: usize, record: Record, rng: &mut Stream) -> Cluster {
    let mut cluster = Cluster::new(nodes);
    cluster.seed = seed;
    cluster.record = record;
    let volumes = *rng.pick(&[1, 1, 1, 2]);
    cluster.volume_sectors = (0..volumes).map(|_| rng.between(1_000, 40_000)).collect();
    cluster.placement = *rng.pick(&[Placement::Internal, Placement::FlexExternal]);
    cluster.net.protocol = *rng.pick(&[Protocol::C, Protocol::C, Protocol::C, Protocol::B, Protocol::A]);
    cluster.disk_latency_ns = *rng.pick(&[20_000, 100_000, 2_000_000]);
    cluster.links.latency_ns = *rng.pick(&[20_000, 100_000, 1_000_000, 10_000_000]);
    cluster.volatile_cache = rng.chance(800);
    cluster.tear_meta_at_512 = rng.chance(500);
    cluster.discard = rng.chance(700);
    cluster.disk.al_extents = *rng.pick(&[7, 67, 1237]);
    cluster
}

impl Driver {
    fn disturb(&mut self, phase_ms: u64) {
        let end = self.world.now + phase_ms * MS;
        self.later(self.world.now, FAULT, 3_000);
        self.later(self.world.now, MANAGER, 500);
        let mut next_check = self.world.events + CHECKPOINT_EVENTS;
        while self.world.step(end) {
            self.drive();
            self.load.step(&mut self.world);
            if self.world.events >= next_check {
                next_check = self.world.events + CHECKPOINT_EVENTS;
                self.world.checkpoint();
            }
        }
    }

    fn later(&mut self, now: u64, what: u32, typical_ms: u64) {
        let delay = self.rng.between(typical_ms / 10, typical_ms * 2) * MS;
        self.world.at(now + delay, Event::Driver { what });
    }

    fn drive(&mut self) {
        while let Some(what) = self.world.driver.pop_front() {
            match what {
                FAULT if !self.healing => {
                    self.fault();
                    self.later(self.world.now, FAULT, 3_000);
                }
                MANAGER => {
                    self.manage();
                    self.later(self.world.now, MANAGER, 500);
                }
                undo if undo >= UNDO => self.undo((undo - UNDO) as usize),
                _ => {}
            }
        }
    }

    fn any_node(&mut self) -> NodeIx {
        self.rng.below(self.world.nodes.len() as u64) as usize
    }

    fn any_pair(&mut self) -> (NodeIx, NodeIx) {
        let a = self.any_node();
        let b = (a + 1 + self.rng.below(self.world.nodes.len() as u64 - 1) as usize) % self.world.nodes.len();
        (a, b)
    }

    fn ends_later(&mut self, undo: Undo, typical_ms: u64) {
        self.undo.push(undo);
        let what = UNDO + self.undo.len() as u32 - 1;
        self.later(self.world.now, what, typical_ms);
    }

    fn fault(&mut self) {
        self.faults += 1;
        let (a, b) = self.any_pair();
        match self.rng.below(6) {
            0 if self.swarm.crashes => self.crash_some(),
            1 if self.swarm.cuts => {
                self.world.cut(a, b);
                self.ends_later(Undo::Heal(a, b), 5_000);
            }
            2 if self.swarm.stalls => {
                self.world.stall(a, b);
                self.ends_later(Undo::Heal(a, b), 8_000);
            }
            3 if self.swarm.pauses => {
                self.world.pause(a);
                self.ends_later(Undo::Resume(a), 4_000);
            }
            4 if self.swarm.disks => self.disk_fault(a),
            5 if self.swarm.roles => self.role_or_connection(a, b),
            _ => self.faults -= 1,
        }
    }

    fn crash_some(&mut self) {
        let how = if self.rng.chance(600) { Crash::Power } else { Crash::Process };
        let all = self.rng.chance(100);
        let first = self.any_node();
        let count = self.world.nodes.len();
        for ix in (0..count).filter(|ix| all || *ix == first) {
            self.world.crash(ix, how);
            let delay = self.rng.between(50, 15_000);
            self.world.restart_in_ms(ix, delay);
        }
    }

    fn disk_fault(&mut self, ix: NodeIx) {
        let volume = VolumeNr(0);
        let faults = match self.rng.below(4) {
            0 => DiskFaults::DEAD,
            1 => DiskFaults { writes: true, ..DiskFaults::default() },
            2 => DiskFaults { reads: true, ..DiskFaults::default() },
            _ => DiskFaults { no_space: true, ..DiskFaults::default() },
        };
        self.world.set_disk_faults(ix, volume, faults);
        self.ends_later(Undo::Disk(ix), 3_000);
    }

    fn role_or_connection(&mut self, a: NodeIx, b: NodeIx) {
        if !self.usable(a) {
            return;
        }
        match self.rng.below(3) {
            0 if self.world.role(a) == Role::Primary && self.world.nodes[a].requests.is_empty() => {
                self.world.admin(a, Command::Demote);
            }
            1 if self.world.role(a) == Role::Secondary => {
                self.world.admin(a, Command::Promote { force: false });
            }
            _ => {
                self.world.admin(a, Command::Disconnect { peer: node_id(b), force: self.rng.chance(500) });
                self.ends_later(Undo::Connect(a, b), 3_000);
            }
        }
    }

    fn usable(&self, ix: NodeIx) -> bool {
        let node = &self.world.nodes[ix];
        node.is_up() && !node.paused && node.boot.is_empty() && node.boot_waits.is_none()
    }

    fn undo(&mut self, index: usize) {
        match self.undo[index] {
            Undo::Heal(a, b) => self.world.heal(a, b),
            Undo::Resume(ix) => self.world.resume(ix),
            Undo::Disk(ix) => self.world.set_disk_faults(ix, VolumeNr(0), DiskFaults::default()),
            Undo::Connect(a, b) if self.usable(a) && self.world.conn(a, b) == ConnState::StandAlone => {
                self.world.admin(a, Command::Connect { peer: node_id(b), discard_my_data: false });
            }
            Undo::Connect(..) => {}
        }
    }

    /// What a cluster manager does: attach what came loose, promote somebody if nobody is Primary.
    fn manage(&mut self) {
        for ix in 0..self.world.nodes.len() {
            if self.usable(ix) && self.world.nodes[ix].admin.is_empty() {
                self.reattach(ix);
            }
        }
        let is_primary = |w: &World, ix: NodeIx| w.nodes[ix].is_up() && w.role(ix) == Role::Primary;
        let count = self.world.nodes.len();
        if (0..count).any(|ix| is_primary(&self.world, ix)) {
            return;
        }
        let ix = self.any_node();
        if self.usable(ix) && self.world.nodes[ix].admin.is_empty() {
            self.world.admin(ix, Command::Promote { force: false });
        }
    }

    fn reattach(&mut self, ix: NodeIx) {
        let node = &self.world.nodes[ix];
        let loose = node.disks.iter().find(|(nr, disk)| {
            !node.attached.contains(nr)
                && disk.faults == DiskFaults::default()
                && node.disk_state(**nr) == DiskState::Diskless
        });
        if let Some((volume, disk)) = loose {
            let command = Command::Attach { volume: *volume, backing: disk.backing() };
            self.world.admin(ix, command);
        }
    }

    /// Ends all faults and waits for convergence, with the help that an administrator would give.
    fn heal(&mut self) {
        self.healing = true;
        self.world.heal_all();
        let end = self.world.now + CONVERGE_MS * MS;
        let mut next_help = self.world.now + 5_000 * MS;
        while !self.calm_for_a_while() {
            if !self.world.step(end) {
                let text = self.world.summary();
                self.world.fail(&format!("the healed cluster does not converge:\n{text}"));
            }
            self.drive();
            if self.world.now >= next_help {
                next_help = self.world.now + 5_000 * MS;
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
        self.world.run_ms(5_000);
        self.world.is_calm()
    }

    /// Split brains are resolved in favour of a Primary, else of the lower node.
    fn help(&mut self) {
        self.force_last_copy();
        let count = self.world.nodes.len();
        for a in 0..count {
            for b in a + 1..count {
                let alone = |x: NodeIx, y: NodeIx| self.world.conn(x, y) == ConnState::StandAlone;
                if !(self.usable(a) && self.usable(b) && (alone(a, b) || alone(b, a))) {
                    continue;
                }
                let (a_alone, b_alone) = (alone(a, b), alone(b, a));
                let victim =
                    if self.world.role(b) == Role::Primary && self.world.role(a) != Role::Primary { a } else { b };
                self.reconnect(a, b, a_alone, victim == a && a_alone && b_alone);
                self.reconnect(b, a, b_alone, victim == b && a_alone && b_alone);
            }
        }
    }

    /// No UpToDate data anywhere, and faults are over: somebody has to declare a copy good. The Primary's, else the first.
    fn force_last_copy(&mut self) {
        let count = self.world.nodes.len();
        let volumes: Vec<VolumeNr> = self.world.nodes[0].disks.keys().copied().collect();
        let state = |ix: NodeIx, v: VolumeNr| self.world.nodes[ix].disk_state(v);
        let orphaned = |v: &&VolumeNr| {
            (0..count).all(|ix| (DiskState::Inconsistent..DiskState::UpToDate).contains(&state(ix, **v)))
        };
        if volumes.iter().find(orphaned).is_none() {
            return;
        }
        let primary = (0..count).find(|ix| self.world.role(*ix) == Role::Primary);
        let ix = primary.unwrap_or(0);
        if self.usable(ix) && self.world.nodes[ix].admin.is_empty() {
            for other in 0..count {
                self.world.model.forgive(other);
            }
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
