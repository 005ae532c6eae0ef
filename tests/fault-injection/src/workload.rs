//! The load on a Primary: reads, writes, discards and flushes on a small hot set of blocks and at random places.

use std::collections::BTreeSet;

use zea_core::io::Op;
use zea_wire::ids::VolumeNr;
use zea_wire::state::Role;

use crate::net::NodeIx;
use crate::rng::Stream;
use crate::world::{Event, World};

/// Driver event that only lets the load look again.
pub const WAKE: u32 = 0;

/// What the load is like, in parts of 1000.
#[derive(Debug, Clone)]
pub struct Mix {
    /// Reads.
    pub reads: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and write-zeroes.
    pub zeroes: u64,
    /// FUA among writes.
    pub fua: u64,
    /// Requests that go to the hot set.
    pub hot: u64,
    /// Requests in flight for each Primary.
    pub depth: usize,
    /// Pause between two bursts; 0: whenever a request ends, the next one follows.
    pub gap_ns: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Mix { reads: 300, flushes: 30, zeroes: 20, fua: 30, hot: 700, depth: 8, gap_ns: 0 }
    }
}

/// A load that keeps every Primary busy.
#[derive(Debug)]
pub struct Workload {
    rng: Stream,
    mix: Mix,
    hot: Vec<u64>,
    next_at: u64,
}

impl Workload {
    /// A load with a hot set of `hot_blocks` blocks of 4 KiB, spread over the first volume.
    pub fn new(seed: u64, mix: Mix, hot_blocks: u64, sectors: u64) -> Workload {
        let mut rng = Stream::new(seed, "workload");
        let hot = (0..hot_blocks).map(|_| rng.below(sectors / 8) * 8).collect();
        Workload { rng, mix, hot, next_at: 0 }
    }

    /// Tops up the requests of every Primary that is not `resting`. Call it after every event.
    pub fn step(&mut self, world: &mut World, resting: &BTreeSet<NodeIx>) {
        if world.now < self.next_at {
            return;
        }
        if self.mix.gap_ns > 0 {
            self.next_at = world.now + self.rng.between(self.mix.gap_ns / 4, self.mix.gap_ns * 2);
            world.at(self.next_at, Event::Driver { what: WAKE });
        }
        for ix in 0..world.nodes.len() {
            let node = &world.nodes[ix];
            if node.is_up() && !node.paused && node.role() == Role::Primary && !resting.contains(&ix) {
                self.top_up(world, ix);
            }
        }
    }

    /// Tops up the requests of one node, but submits no more than `depth` at one instant.
    pub fn top_up(&mut self, world: &mut World, ix: NodeIx) {
        let burst =
            if self.mix.gap_ns > 0 { self.rng.between(1, self.mix.depth as u64) as usize } else { self.mix.depth };
        for _ in 0..burst {
            if world.nodes[ix].requests.len() >= self.mix.depth || !world.nodes[ix].is_up() {
                return;
            }
            self.submit_one(world, ix);
        }
    }

    fn submit_one(&mut self, world: &mut World, ix: NodeIx) {
        let volumes: Vec<VolumeNr> = world.nodes[ix].disks.keys().copied().collect();
        let volume = *self.rng.pick(&volumes);
        let size = world.nodes[ix].device(volume).map_or(0, |d| d.size_sectors);
        if size < 16 {
            return;
        }
        let kind = self.rng.below(1000);
        let (reads, flushes, zeroes) = (self.mix.reads, self.mix.flushes, self.mix.zeroes);
        if kind < flushes {
            world.submit(ix, volume, Op::Flush, 0, 0, false);
            return;
        }
        let (sector, sectors) = self.range(size);
        // What a front end cuts its requests to.
        let longest = world.nodes[ix].saved.peers.iter().map(|p| p.net.max_bio_bytes()).min();
        let sectors = longest.map_or(sectors, |bytes| sectors.min(u64::from(bytes) / 512));
        let op = match kind - flushes {
            k if k < reads => Op::Read,
            k if k < reads + zeroes / 2 => Op::Discard,
            k if k < reads + zeroes => Op::WriteZeroes { unmap: self.rng.chance(500) },
            _ => Op::Write,
        };
        let fua = op == Op::Write && self.rng.chance(self.mix.fua);
        world.submit(ix, volume, op, sector, sectors, fua);
    }

    fn range(&mut self, size: u64) -> (u64, u64) {
        let sectors = match self.rng.below(20) {
            0 => self.rng.between(1, 7),
            1..=3 => 8 * self.rng.between(2, 16),
            _ => 8,
        };
        let start =
            if self.rng.chance(self.mix.hot) { *self.rng.pick(&self.hot) } else { self.rng.below(size / 8) * 8 };
        let start = if self.rng.chance(50) { start + self.rng.below(8) } else { start };
        let sectors = sectors.min(size);
        (start.min(size - sectors), sectors)
    }
}
