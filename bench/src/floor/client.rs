//! The floor's client: a closed loop with a fixed number of operations in flight.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;

use super::ring::{Event, TurnRing};
use super::wire::{BLOCK_BYTES, Kind, MAX_SLOTS, Operation, REPLY_BYTES, from_reply};
use crate::sample::{Latency, Sample};

const PRIMARY: usize = 0;

/// When the client stops.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After this many writes.
    Writes(u64),
    /// After a warm-up, and then this long of what is measured.
    Time {
        /// Not measured.
        warm_up: Duration,
        /// Measured.
        measured: Duration,
    },
}

/// What the client does.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Operations in flight, 1 to 256.
    pub depth: usize,
    /// Whether each slot sends a flush after each of its writes.
    pub flush: bool,
    /// When it stops.
    pub limit: Limit,
    /// Seed of the offsets and of the blocks' content.
    pub seed: u64,
}

/// Connects to the primary at `socket`, runs `load`, and says what it measured.
///
/// # Errors
/// Failing IO, a primary that goes away, and bytes that no primary of this kind sends.
pub fn client(socket: &Path, load: Load) -> Result<Sample> {
    ensure!((1..=MAX_SLOTS).contains(&load.depth), "the depth must be 1 to {MAX_SLOTS}");
    let mut primary =
        UnixStream::connect(socket).with_context(|| format!("connect to the primary at {}", socket.display()))?;
    let mut size = [0; 8];
    primary.read_exact(&mut size)?;
    let blocks = u64::from_be_bytes(size) / BLOCK_BYTES as u64;
    ensure!(blocks > 0, "the primary's device is empty");

    let ring = TurnRing::new(vec![primary.into()], None)?;
    let mut run = Run::new(ring, load, blocks)?;
    for slot in 0..load.depth {
        run.next(slot, Kind::Write);
    }
    let mut events = Vec::new();
    while run.in_flight > 0 {
        run.ring.turn(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Received(_) => run.take_replies()?,
                Event::Closed(_) => bail!("the primary has closed the connection"),
                Event::DiskDone(_) => unreachable!("a client has no disk"),
            }
        }
    }
    Ok(run.sample())
}

struct Run {
    ring: TurnRing,
    load: Load,
    blocks: u64,
    random: Random,
    block: Vec<u8>,
    slots: Vec<Option<(Kind, Instant)>>,
    in_flight: usize,
    writes_issued: u64,
    measure_from: Instant,
    measure_to: Option<Instant>,
    last_reply: Instant,
    writes: Histogram<u64>,
    flushes: Histogram<u64>,
}

impl Run {
    fn new(ring: TurnRing, load: Load, blocks: u64) -> Result<Self> {
        let mut random = Random(load.seed);
        let block = (0..BLOCK_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        let now = Instant::now();
        let (measure_from, measure_to) = match load.limit {
            Limit::Writes(_) => (now, None),
            Limit::Time { warm_up, measured } => (now + warm_up, Some(now + warm_up + measured)),
        };
        Ok(Self {
            ring,
            load,
            blocks,
            random,
            block,
            slots: vec![None; load.depth],
            in_flight: 0,
            writes_issued: 0,
            measure_from,
            measure_to,
            last_reply: now,
            writes: Histogram::new(3)?,
            flushes: Histogram::new(3)?,
        })
    }

    /// Queues an operation of `kind` in the free `slot`, unless this one would be a write too many.
    fn next(&mut self, slot: usize, kind: Kind) {
        let now = Instant::now();
        let mut operation = Operation { kind, slot, offset: 0 };
        if kind == Kind::Write {
            let over = match self.load.limit {
                Limit::Writes(writes) => self.writes_issued >= writes,
                Limit::Time { .. } => self.measure_to.is_some_and(|end| now >= end),
            };
            if over {
                return;
            }
            self.writes_issued += 1;
            operation.offset = self.random.next() % self.blocks * BLOCK_BYTES as u64;
            self.block[..8].copy_from_slice(&operation.offset.to_le_bytes());
        }
        self.ring.send(PRIMARY, &operation.to_request());
        if kind == Kind::Write {
            self.ring.send(PRIMARY, &self.block);
        }
        self.slots[slot] = Some((kind, now));
        self.in_flight += 1;
    }

    fn take_replies(&mut self) -> Result<()> {
        while let Some(slot) = from_reply(self.ring.received(PRIMARY))? {
            self.ring.consume(PRIMARY, REPLY_BYTES);
            let used = self.slots.get_mut(slot).and_then(Option::take);
            let (kind, issued) = used.with_context(|| format!("a reply for idle slot {slot}"))?;
            self.in_flight -= 1;
            let now = Instant::now();
            if now >= self.measure_from && self.measure_to.is_none_or(|end| now < end) {
                self.last_reply = now;
                let latency_ns = (now - issued).as_nanos() as u64;
                let histogram = match kind {
                    Kind::Write => &mut self.writes,
                    Kind::Flush => &mut self.flushes,
                };
                histogram.record(latency_ns)?;
            }
            let next = match kind {
                Kind::Write if self.load.flush => Kind::Flush,
                Kind::Write | Kind::Flush => Kind::Write,
            };
            self.next(slot, next);
        }
        Ok(())
    }

    fn sample(&self) -> Sample {
        let end = self.measure_to.unwrap_or(self.last_reply);
        let seconds = (end - self.measure_from).as_secs_f64();
        Sample {
            write_iops: self.writes.len() as f64 / seconds,
            write: latency(&self.writes),
            flush: self.load.flush.then(|| latency(&self.flushes)),
        }
    }
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    Latency { mean_us: histogram.mean() / 1e3, p99_us: histogram.value_at_quantile(0.99) as f64 / 1e3 }
}

/// SplitMix64: offsets need to be spread and repeatable, no more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
