//! Random runs: a seed decides the cluster, the load and the faults. First a phase with faults, in which nothing may go
//! wrong that the model forbids; then everything is healed and the cluster has to converge, byte for byte.

use zea_core::config::{OnNoQuorum, OnSuspendedPrimaryOutdated, Protocol, Quorum, QuorumOptions};
use zea_core::limits::PROTOCOL_MAX;
use zea_meta::placement::Placement;

use crate::coverage::Coverage;
use crate::driver::Driver;
use crate::node::{Clock, MakeCore, real_core};
use crate::plan::{Planned, Planner};
use crate::rng::Stream;
use crate::scenario::Cluster;
use crate::trace::Record;
use crate::workload::{Mix, Workload};

const MS: u64 = 1_000_000;

/// Front-end requests of a run, about.
const REQUESTS: u64 = 2_000;

/// A run to be done.
#[derive(Debug, Clone)]
pub struct Run {
    /// Seed.
    pub seed: u64,
    /// Nodes, else by the seed.
    pub nodes: Option<usize>,
    /// The highest protocol version that the nodes offer; 8.4's are for two nodes.
    pub protocol: u32,
    /// Seeds draw quorum; else it is off, and they mean what they meant before there was any.
    pub quorum: bool,
    /// Only faults of these kinds are planned; empty: those that the seed picks.
    pub kinds: Vec<usize>,
    /// Only these faults of the plan, by number; else all.
    pub only: Option<Vec<usize>>,
    /// What is recorded.
    pub record: Record,
    /// Makes the cores.
    pub make_core: MakeCore,
}

/// What a run was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that happened.
    pub hash: u64,
    /// Events handled, inputs of cores among them.
    pub events: u64,
    /// See `events`.
    pub inputs: u64,
    /// Front-end writes.
    pub writes: usize,
    /// Virtual milliseconds.
    pub ms: u64,
    /// Faults injected.
    pub faults: u64,
    /// What was reached.
    pub coverage: Coverage,
    /// What was recorded.
    pub lines: Vec<String>,
}

impl Run {
    /// A run of everything that a seed has.
    pub fn of(seed: u64) -> Run {
        Run {
            seed,
            nodes: None,
            protocol: PROTOCOL_MAX,
            quorum: false,
            kinds: Vec::new(),
            only: None,
            record: Record::HashOnly,
            make_core: real_core,
        }
    }

    fn setting(&self) -> Setting {
        let mut rng = Stream::new(self.seed, "swarm");
        let by_seed = *rng.pick(&[2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 5, 6, 8]);
        let nodes = self.nodes.unwrap_or(by_seed);
        let nodes = if self.quorum { nodes.max(3) } else { nodes };
        let mut cluster = swarm_cluster(self, nodes, &mut rng);
        if self.quorum {
            draw_quorum(&mut cluster, &mut Stream::new(self.seed, "quorum"));
        }
        let phase_ms = rng.between(5_000, 60_000);
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
        let hot_blocks = rng.between(2, 40);
        let mut planner = Planner::new(cluster.nodes, cluster.volume_sectors.len(), phase_ms, &mut rng);
        if Stream::new(self.seed, "verify").chance(250) {
            planner.add_verify();
        }
        planner.restrict(&self.kinds);
        let plan = planner.plan(&mut Stream::new(self.seed, "plan"));
        let skewed = rng.chance(500);
        let drift = |rng: &mut Stream| if skewed { rng.below(1_000) as u32 } else { 0 };
        let clocks = (0..cluster.nodes)
            .map(|_| Clock { offset_ns: rng.below(3_600_000) * MS, drift_ppm: drift(&mut rng) })
            .collect();
        Setting { cluster, phase_ms, mix, hot_blocks, planner, plan, clocks }
    }

    /// The faults of the run, with their numbers.
    pub fn plan(&self) -> Vec<(usize, Planned)> {
        let all = self.setting().plan.into_iter().enumerate();
        all.filter(|(nr, _)| self.only.as_ref().is_none_or(|only| only.contains(nr))).collect()
    }

    /// Runs. Panics with a message that names the violation.
    pub fn run(&self) -> Report {
        let Setting { cluster, phase_ms, mix, hot_blocks, planner, clocks, .. } = self.setting();
        let load = Workload::new(self.seed, mix.clone(), hot_blocks, cluster.volume_sectors[0]);
        let mut world = cluster.build();
        for (node, clock) in world.nodes.iter_mut().zip(clocks) {
            node.clock = clock;
        }
        world.label = format!("{}, {phase_ms} ms, {mix:?}, faults {:?}", world.label, planner.kinds());
        cluster.bring_up(&mut world);
        let plan = self.plan().into_iter().map(|(_, planned)| planned).collect();
        let mut driver = Driver::new(world, load, plan);
        driver.disturb(phase_ms);
        driver.heal();
        let world = &driver.world;
        Report {
            hash: world.trace.hash(),
            events: world.events,
            inputs: world.inputs,
            writes: world.model.writes(),
            ms: world.now / MS,
            faults: world.checks.coverage.faults.values().sum(),
            coverage: world.checks.coverage.clone(),
            lines: world.trace.lines().map(str::to_owned).collect(),
        }
    }
}

/// What a seed decides.
struct Setting {
    cluster: Cluster,
    phase_ms: u64,
    mix: Mix,
    hot_blocks: u64,
    planner: Planner,
    plan: Vec<Planned>,
    clocks: Vec<Clock>,
}

fn swarm_cluster(run: &Run, nodes: usize, rng: &mut Stream) -> Cluster {
    let mut cluster = Cluster::new(nodes);
    cluster.seed = run.seed;
    cluster.record = run.record;
    cluster.make_core = run.make_core;
    let volumes = *rng.pick(&[1, 1, 1, 2]);
    // A large volume has more extents than the smallest activity log has slots.
    let most = if rng.chance(350) { 120_000 } else { 40_000 };
    // Below 100 there is one volume.
    let volumes = if run.protocol < 100 { 1 } else { volumes };
    cluster.volume_sectors = (0..volumes).map(|_| rng.between(1_000, most)).collect();
    cluster.placement = *rng.pick(&[Placement::Internal, Placement::FlexExternal]);
    cluster.net.protocol_max = run.protocol;
    cluster.net.protocol = *rng.pick(&[Protocol::C, Protocol::C, Protocol::C, Protocol::B, Protocol::A]);
    cluster.disk_latency_ns = *rng.pick(&[20_000, 100_000, 2_000_000]);
    cluster.links.latency_ns = *rng.pick(&[20_000, 100_000, 1_000_000, 10_000_000]);
    cluster.links.split_per_mille = *rng.pick(&[0, 100, 500]);
    cluster.volatile_cache = rng.chance(800);
    cluster.tear_at_512 = rng.chance(500);
    cluster.discard = rng.chance(700);
    cluster.disk.al_extents = *rng.pick(&[7, 67, 1237]);
    cluster
}

/// Votes, and what becomes of I/O without them; in some clusters the last node has no disk and breaks ties.
fn draw_quorum(cluster: &mut Cluster, rng: &mut Stream) {
    use Quorum::{All, Majority, Number, Off};
    cluster.quorum = QuorumOptions {
        quorum: *rng.pick(&[Majority, Majority, Majority, Majority, Majority, All, Number(2)]),
        minimum_redundancy: *rng.pick(&[Off, Off, Off, Number(1), Number(2)]),
        on_no_quorum: *rng.pick(&[OnNoQuorum::SuspendIo, OnNoQuorum::IoError]),
        // Nobody is there to end suspended I/O by hand.
        on_suspended_primary_outdated: OnSuspendedPrimaryOutdated::ForceSecondary,
        suspended_io_timeout_ms: *rng.pick(&[0, 0, 2_000, 20_000]),
    };
    cluster.net.protocol = *rng.pick(&[Protocol::C, Protocol::C, cluster.net.protocol]);
    if rng.chance(300) {
        cluster.diskless.insert(cluster.nodes - 1);
    }
}
