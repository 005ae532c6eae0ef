//! What will go wrong in a run, decided before it begins: so a failing run can be tried again with fewer faults.

use std::fmt;

use zea_wire::ids::VolumeNr;

use crate::disk::DiskFaults;
use crate::faults::Crash;
use crate::net::NodeIx;
use crate::rng::Stream;

/// Something that goes wrong, or an administrator's command at a bad moment. `ms`: how long it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nodes of the mask lose power or their process.
    Crash { nodes: u8, how: Crash, ms: u64 },
    /// A node stands still.
    Pause { node: NodeIx, ms: u64 },
    /// The clock of a node jumps forward.
    ClockJump { node: NodeIx, ms: u64 },
    /// Nothing passes between two nodes.
    Cut { a: NodeIx, b: NodeIx, ms: u64 },
    /// Nothing passes between a node and all others.
    Isolate { node: NodeIx, ms: u64 },
    /// The link of two nodes is reset.
    Reset { a: NodeIx, b: NodeIx },
    /// The link of two nodes is gone and `b` does not learn it.
    HalfOpen { a: NodeIx, b: NodeIx },
    /// Nothing that `from` sends to `to` arrives.
    Stall { from: NodeIx, to: NodeIx, ms: u64 },
    /// The links of a node clog one after the other, and get free in another order.
    Swizzle { node: NodeIx, ms: u64 },
    /// One direction of one stream is slow.
    SlowStream { from: NodeIx, to: NodeIx, stream: usize, times: u64, ms: u64 },
    /// A disk fails commands.
    Disk { node: NodeIx, volume: VolumeNr, faults: DiskFaults, ms: u64 },
    /// Sectors of a disk become unreadable until they are written.
    Latent { node: NodeIx, volume: VolumeNr, per_mille: u64, sectors: u64 },
    /// A disk is slow.
    SlowDisk { node: NodeIx, volume: VolumeNr, times: u64, ms: u64 },
    /// The load of a Primary stops, and it becomes Secondary.
    Demote { node: NodeIx },
    /// A Secondary wants to be Primary.
    Promote { node: NodeIx, force: bool },
    /// A node disconnects from a peer.
    Disconnect { node: NodeIx, peer: NodeIx, force: bool, ms: u64 },
    /// A replica is thrown away.
    Invalidate { node: NodeIx, volume: VolumeNr },
    /// A disk is taken away.
    Detach { node: NodeIx, volume: VolumeNr, force: bool, ms: u64 },
    /// A resource goes down on a node, and comes up again.
    DownUp { node: NodeIx, ms: u64 },
    /// A part of a volume is compared with a peer's.
    Verify { node: NodeIx, peer: NodeIx, volume: VolumeNr, per_mille: u64, sectors: u64 },
}

/// A fault and when it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Virtual milliseconds after the begin of the phase with faults.
    pub at_ms: u64,
    /// What.
    pub fault: Fault,
}

impl Fault {
    /// Names of all kinds.
    pub const KINDS: [&'static str; 20] = [
        "crash",
        "pause",
        "clock-jump",
        "cut",
        "isolate",
        "reset",
        "half-open",
        "stall",
        "swizzle",
        "slow-stream",
        "disk",
        "latent",
        "slow-disk",
        "demote",
        "promote",
        "disconnect",
        "invalidate",
        "detach",
        "down-up",
        "verify",
    ];

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        Fault::KINDS[match self {
            Fault::Crash { .. } => 0,
            Fault::Pause { .. } => 1,
            Fault::ClockJump { .. } => 2,
            Fault::Cut { .. } => 3,
            Fault::Isolate { .. } => 4,
            Fault::Reset { .. } => 5,
            Fault::HalfOpen { .. } => 6,
            Fault::Stall { .. } => 7,
            Fault::Swizzle { .. } => 8,
            Fault::SlowStream { .. } => 9,
            Fault::Disk { .. } => 10,
            Fault::Latent { .. } => 11,
            Fault::SlowDisk { .. } => 12,
            Fault::Demote { .. } => 13,
            Fault::Promote { .. } => 14,
            Fault::Disconnect { .. } => 15,
            Fault::Invalidate { .. } => 16,
            Fault::Detach { .. } => 17,
            Fault::DownUp { .. } => 18,
            Fault::Verify { .. } => VERIFY,
        }]
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:>6} ms {:?}", self.at_ms, self.fault)
    }
}

/// The number of [`Fault::Verify`] among the kinds.
const VERIFY: usize = 19;

/// What a plan is made for.
#[derive(Debug, Clone)]
pub struct Planner {
    nodes: u64,
    volumes: u64,
    phase_ms: u64,
    kinds: Vec<usize>,
}

impl Planner {
    /// Picks which kinds of faults a run may meet: a seed leaves some of them out, so that the others go deeper.
    pub fn new(nodes: usize, volumes: usize, phase_ms: u64, rng: &mut Stream) -> Planner {
        let share = *rng.pick(&[200, 400, 700]);
        let mut kinds: Vec<usize> = (0..VERIFY).filter(|_| rng.chance(share)).collect();
        kinds.push(*rng.pick(&[0, 3, 5]));
        Planner { nodes: nodes as u64, volumes: volumes as u64, phase_ms, kinds }
    }

    /// Verifies are among the faults. Who draws that has a stream of its own, so that older seeds keep their plans.
    pub fn add_verify(&mut self) {
        self.kinds.push(VERIFY);
    }

    /// Only these kinds, if there are any.
    pub fn restrict(&mut self, kinds: &[usize]) {
        if !kinds.is_empty() {
            self.kinds = kinds.to_vec();
        }
    }

    /// The names of the kinds in use.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|k| Fault::KINDS[*k]).collect()
    }

    /// The faults of a run, by time.
    pub fn plan(&self, rng: &mut Stream) -> Vec<Planned> {
        let count = rng.between(10, 24);
        let mut plan: Vec<Planned> = (0..count)
            .map(|_| {
                let at_ms = rng.below(self.phase_ms * 95 / 100);
                Planned { at_ms, fault: self.fault(rng) }
            })
            .collect();
        plan.sort_by_key(|p| p.at_ms);
        plan
    }

    fn fault(&self, rng: &mut Stream) -> Fault {
        let kind = *rng.pick(&self.kinds);
        let node = rng.below(self.nodes) as NodeIx;
        let other = (node + 1 + rng.below(self.nodes - 1) as NodeIx) % self.nodes as NodeIx;
        let volume = VolumeNr(rng.below(self.volumes) as u16);
        let ms = if rng.chance(300) { rng.between(1, 200) } else { rng.between(200, self.phase_ms / 3) };
        let force = rng.chance(500);
        match kind {
            0 => {
                let how = if rng.chance(650) { Crash::Power } else { Crash::Process };
                let nodes = if rng.chance(100) { u8::MAX } else { 1 << node };
                Fault::Crash { nodes, how, ms }
            }
            1 => Fault::Pause { node, ms: ms / 2 },
            2 => Fault::ClockJump { node, ms: rng.between(1, 120_000) },
            3 => Fault::Cut { a: node, b: other, ms },
            4 => Fault::Isolate { node, ms },
            5 => Fault::Reset { a: node, b: other },
            6 => Fault::HalfOpen { a: node, b: other },
            7 => Fault::Stall { from: node, to: other, ms },
            8 => Fault::Swizzle { node, ms },
            9 => {
                let (stream, times) = (rng.below(2) as usize, *rng.pick(&[5, 50, 500]));
                Fault::SlowStream { from: node, to: other, stream, times, ms }
            }
            10 => Fault::Disk { node, volume, faults: disk_faults(rng), ms },
            11 => Fault::Latent { node, volume, per_mille: rng.below(1000), sectors: rng.between(1, 64) },
            12 => Fault::SlowDisk { node, volume, times: *rng.pick(&[5, 50, 300]), ms },
            13 => Fault::Demote { node },
            14 => Fault::Promote { node, force },
            15 => Fault::Disconnect { node, peer: other, force, ms },
            16 => Fault::Invalidate { node, volume },
            17 => Fault::Detach { node, volume, force, ms },
            18 => Fault::DownUp { node, ms },
            _ => {
                let (per_mille, sectors) = (rng.below(1000), rng.between(8, 6_000));
                Fault::Verify { node, peer: other, volume, per_mille, sectors }
            }
        }
    }
}

fn disk_faults(rng: &mut Stream) -> DiskFaults {
    let none = DiskFaults::default();
    match rng.below(6) {
        0 => DiskFaults::DEAD,
        1 => DiskFaults { writes: true, ..none },
        2 => DiskFaults { reads: true, ..none },
        3 => DiskFaults { flushes: true, ..none },
        4 => DiskFaults { meta: true, ..none },
        _ => DiskFaults { no_space: true, ..none },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sim_plans_are_repeatable_and_have_ten_faults() {
        let plan = |seed| {
            let mut rng = Stream::new(seed, "plan");
            Planner::new(3, 2, 10_000, &mut rng).plan(&mut rng)
        };
        for seed in 0..50 {
            assert_eq!(plan(seed), plan(seed));
            assert!(plan(seed).len() >= 10);
            assert!(plan(seed).is_sorted_by_key(|p| p.at_ms));
        }
    }
}
