//! A backing device: a tag for each data sector, real bytes in the meta-data region, a volatile cache in front of both.
//!
//! A completed write is visible at once and volatile until a flush (or its own FUA, `sync`) covers it. A crash keeps an
//! arbitrary subset of the volatile writes, torn at 512 bytes or at 4 KiB. Every effect happens at completion, and
//! commands complete in any order: who needs an order has to wait for completions. Sectors may turn unreadable until they
//! are written again.

use std::collections::{BTreeMap, BTreeSet};

use zea_core::io::{Backing, DiskCmd, DiskError, DiskTag, Payload};
use zea_meta::placement::Placement;

use crate::pool::Tag;
use crate::rng::Stream;

const BLOCK: u64 = 4096;
type Block = Box<[u8; 4096]>;

/// More volatile writes than this are destaged, oldest first.
const CACHE_WRITES_MAX: usize = 8192;

/// What a device is like.
#[derive(Debug, Clone)]
pub struct DiskParams {
    /// Sectors of the data device, meta data included if internal.
    pub size_sectors: u64,
    /// Where the meta data lies: internal or flexible external.
    pub placement: Placement,
    /// First sector that is no data (internal: the bitmap's begin).
    pub data_end_sector: u64,
    /// Bytes of the meta-data device.
    pub meta_size_bytes: u64,
    /// Writes are volatile until flushed.
    pub volatile_cache: bool,
    /// A crash tears writes at 512 bytes, else at 4 KiB.
    pub tear_at_512: bool,
    /// Typical time of a command.
    pub latency_ns: u64,
    /// Discards reach the device.
    pub discard: bool,
}

/// What goes wrong at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskFaults {
    /// Data reads fail.
    pub reads: bool,
    /// Data writes fail.
    pub writes: bool,
    /// Flushes fail.
    pub flushes: bool,
    /// Meta-data commands fail.
    pub meta: bool,
    /// Data writes find no space.
    pub no_space: bool,
}

impl DiskFaults {
    /// Nothing works any more.
    pub const DEAD: DiskFaults = DiskFaults { reads: true, writes: true, flushes: true, meta: true, no_space: false };
}

/// A write to the device.
#[derive(Debug, Clone)]
enum Change {
    Data { sector: u64, tags: Vec<Tag> },
    Zero { sector: u64, sectors: u64 },
    Meta { block: u64, bytes: Block },
}

impl Change {
    /// The data sectors that it writes.
    fn sectors(&self) -> Option<std::ops::Range<u64>> {
        match self {
            Change::Data { sector, tags } => Some(*sector..sector + tags.len() as u64),
            Change::Zero { sector, sectors } => Some(*sector..sector + sectors),
            Change::Meta { .. } => None,
        }
    }
}

#[derive(Debug, Clone)]
struct CachedWrite {
    id: u64,
    change: Change,
    stable: bool,
}

/// A command between submission and completion.
#[derive(Debug, Clone)]
pub struct InFlight {
    /// The command.
    pub cmd: DiskCmd,
    /// What a write writes.
    tags: Vec<Tag>,
    /// Writes that had completed when the command was submitted.
    watermark: u64,
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    /// The command.
    pub cmd: DiskCmd,
    /// How it ended.
    pub result: Result<(), DiskError>,
    /// What a data read found.
    pub tags: Vec<Tag>,
    /// What a meta-data read found.
    pub meta: Vec<u8>,
}

/// A simulated device.
#[derive(Debug, Clone)]
pub struct Disk {
    params: DiskParams,
    /// What survives a loss of power, and what a read sees.
    stable_data: Vec<Tag>,
    view_data: Vec<Tag>,
    stable_meta: BTreeMap<u64, Block>,
    view_meta: BTreeMap<u64, Block>,
    cache: Vec<CachedWrite>,
    in_flight: BTreeMap<DiskTag, InFlight>,
    completed_writes: u64,
    /// Faults that are on.
    pub faults: DiskFaults,
    /// Sectors that cannot be read until they are written.
    pub latent: BTreeSet<u64>,
    /// Commands take so many times as long.
    pub slowness: u64,
}

impl Disk {
    /// A device full of zeroes.
    pub fn new(params: DiskParams) -> Disk {
        Disk {
            stable_data: vec![0; params.data_end_sector as usize],
            view_data: vec![0; params.data_end_sector as usize],
            stable_meta: BTreeMap::new(),
            view_meta: BTreeMap::new(),
            cache: Vec::new(),
            in_flight: BTreeMap::new(),
            completed_writes: 0,
            faults: DiskFaults::default(),
            latent: BTreeSet::new(),
            slowness: 1,
            params,
        }
    }

    /// What the device is like.
    pub fn params(&self) -> &DiskParams {
        &self.params
    }

    /// What the core is told at attach.
    pub fn backing(&self) -> Backing {
        Backing {
            size_bytes: self.params.size_sectors * 512,
            meta_size_bytes: self.params.meta_size_bytes,
            placement: self.params.placement,
            discard: self.params.discard,
            logical_block_bytes: 512,
        }
    }

    /// The value of a sector as a read sees it now.
    pub fn sector(&self, sector: u64) -> Tag {
        self.view_data[sector as usize]
    }

    /// Bytes of the meta-data device as a read sees them now, in whole blocks.
    pub fn meta_bytes(&self, offset_bytes: u64, len: u64) -> Vec<u8> {
        let first = offset_bytes / BLOCK;
        (first..first + len / BLOCK).flat_map(|block| self.meta_block(block)).collect()
    }

    fn meta_block(&self, block: u64) -> [u8; 4096] {
        self.view_meta.get(&block).map_or([0; 4096], |bytes| **bytes)
    }

    /// Writes meta data from outside of the world (`create-md`): stable at once.
    pub fn format_meta(&mut self, offset_bytes: u64, bytes: &[u8; 4096]) {
        assert_eq!(offset_bytes % BLOCK, 0);
        self.view_meta.insert(offset_bytes / BLOCK, Box::new(*bytes));
        self.stable_meta.insert(offset_bytes / BLOCK, Box::new(*bytes));
    }

    /// Writes data from outside of the world: stable at once.
    pub fn preset(&mut self, sector: u64, tags: &[Tag]) {
        self.stable_data[sector as usize..][..tags.len()].copy_from_slice(tags);
        self.view_data[sector as usize..][..tags.len()].copy_from_slice(tags);
    }

    /// Sectors of data.
    pub fn data_sectors(&self) -> u64 {
        self.params.data_end_sector
    }

    /// Whether commands are in flight.
    pub fn busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Sectors that commands in flight write.
    pub fn writes_in_flight(&self) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        self.in_flight.values().filter_map(|f| match f.cmd {
            DiskCmd::Write { sector, payload, .. } => Some(sector..sector + u64::from(payload.len / 512)),
            DiskCmd::Discard { sector, len } | DiskCmd::WriteZeroes { sector, len, .. } => {
                Some(sector..sector + u64::from(len / 512))
            }
            _ => None,
        })
    }

    fn check_range(&self, cmd: &DiskCmd) {
        let data = |sector: u64, len: u32| {
            assert!(len > 0 && len.is_multiple_of(512), "length of {cmd:?}");
            let end = sector + u64::from(len / 512);
            assert!(
                end <= self.params.data_end_sector,
                "{cmd:?} exceeds the data area of {} sectors",
                self.params.data_end_sector
            );
        };
        let meta = |offset: u64, len: u64| {
            assert!(offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && len > 0, "alignment of {cmd:?}");
            assert!(offset + len <= self.params.meta_size_bytes, "{cmd:?} exceeds the meta-data device");
            if self.params.placement == Placement::Internal {
                assert!(offset >= self.params.data_end_sector * 512, "{cmd:?} overwrites data");
            }
        };
        match *cmd {
            DiskCmd::Read { sector, payload } | DiskCmd::Write { sector, payload, .. } => data(sector, payload.len),
            DiskCmd::ReadNew { sector, len } => {
                assert!(len <= 1 << 20, "{cmd:?} is too long");
                data(sector, len);
            }
            DiskCmd::Discard { sector, len } | DiskCmd::WriteZeroes { sector, len, .. } => data(sector, len),
            DiskCmd::MetaRead { offset_bytes, len } => {
                assert!(len <= 1 << 20, "{cmd:?} is too long");
                meta(offset_bytes, u64::from(len));
            }
            DiskCmd::MetaWrite { offset_bytes, .. } => meta(offset_bytes, BLOCK),
            DiskCmd::Flush => {}
        }
    }

    /// Takes a command; `tags` is what a write writes. Returns its latency.
    pub fn submit(&mut self, tag: DiskTag, cmd: DiskCmd, tags: Vec<Tag>, rng: &mut Stream) -> u64 {
        self.check_range(&cmd);
        let factor = match cmd {
            DiskCmd::Flush => 4,
            DiskCmd::MetaWrite { sync: true, .. } => 2,
            _ => 1,
        };
        let watermark = self.completed_writes;
        let old = self.in_flight.insert(tag, InFlight { cmd, tags, watermark });
        assert!(old.is_none(), "disk tag {tag:?} is used twice");
        rng.delay_ns(self.params.latency_ns * factor * self.slowness)
    }

    /// A command reaches its end: its effect happens now.
    pub fn complete(&mut self, tag: DiskTag, rng: &mut Stream) -> Done {
        let InFlight { cmd, tags, watermark } = self.in_flight.remove(&tag).expect("completion of a command in flight");
        let result = self.outcome(&cmd);
        let mut done = Done { cmd, result, tags: Vec::new(), meta: Vec::new() };
        if done.result.is_err() {
            self.fail_write(&done.cmd, &tags, rng);
            return done;
        }
        match &done.cmd {
            DiskCmd::Read { sector, payload } => done.tags = self.sectors(*sector, payload.len),
            DiskCmd::ReadNew { sector, len } => done.tags = self.sectors(*sector, *len),
            DiskCmd::MetaRead { offset_bytes, len } => done.meta = self.meta_bytes(*offset_bytes, u64::from(*len)),
            DiskCmd::Flush => self.destage(|w| w.id <= watermark),
            DiskCmd::Write { fua, .. } => {
                let change = change_of(&done.cmd, &tags).expect("a write changes something");
                self.apply(change, *fua);
            }
            DiskCmd::MetaWrite { sync, .. } => {
                let sync = *sync;
                let change = change_of(&done.cmd, &tags).expect("a write changes something");
                self.apply(change, sync);
                if sync {
                    self.destage(|w| w.id <= watermark && matches!(w.change, Change::Meta { .. }));
                }
            }
            DiskCmd::Discard { .. } | DiskCmd::WriteZeroes { .. } => {
                let change = change_of(&done.cmd, &tags).expect("a write changes something");
                self.apply(change, false);
            }
        }
        done
    }

    fn outcome(&self, cmd: &DiskCmd) -> Result<(), DiskError> {
        const EIO: DiskError = DiskError::Io(5);
        let f = self.faults;
        let latent = |sector: u64, len: u32| self.latent.range(sector..sector + u64::from(len / 512)).next().is_some();
        match *cmd {
            DiskCmd::Read { sector, payload } if latent(sector, payload.len) => Err(EIO),
            DiskCmd::ReadNew { sector, len } if latent(sector, len) => Err(EIO),
            DiskCmd::Read { .. } | DiskCmd::ReadNew { .. } if f.reads => Err(EIO),
            DiskCmd::Write { .. } | DiskCmd::Discard { .. } | DiskCmd::WriteZeroes { .. } if f.writes => Err(EIO),
            DiskCmd::Write { .. } | DiskCmd::WriteZeroes { .. } if f.no_space => Err(DiskError::NoSpace),
            DiskCmd::Flush if f.flushes => Err(EIO),
            DiskCmd::MetaRead { .. } | DiskCmd::MetaWrite { .. } if f.meta => Err(EIO),
            DiskCmd::Discard { .. } if !self.params.discard => Err(DiskError::Unsupported),
            _ => Ok(()),
        }
    }

    /// A failed write may have reached the medium in parts.
    fn fail_write(&mut self, cmd: &DiskCmd, tags: &[Tag], rng: &mut Stream) {
        if let DiskCmd::Write { sector, .. } = cmd {
            for (nr, tag) in (*sector..).zip(tags) {
                if rng.chance(500) {
                    self.apply(Change::Data { sector: nr, tags: vec![*tag] }, false);
                }
            }
        }
    }

    fn sectors(&self, sector: u64, len: u32) -> Vec<Tag> {
        self.view_data[sector as usize..][..(len / 512) as usize].to_vec()
    }

    fn apply(&mut self, change: Change, stable: bool) {
        self.completed_writes += 1;
        let id = self.completed_writes;
        if let Some(range) = change.sectors()
            && !self.latent.is_empty()
        {
            self.latent.retain(|s| !range.contains(s));
        }
        write_to(&mut self.view_data, &mut self.view_meta, &change);
        if !self.params.volatile_cache {
            write_to(&mut self.stable_data, &mut self.stable_meta, &change);
            return;
        }
        self.cache.push(CachedWrite { id, change, stable });
        if self.cache.len() > CACHE_WRITES_MAX {
            let oldest = self.cache[CACHE_WRITES_MAX / 2].id;
            self.destage(|w| w.id <= oldest);
        }
    }

    /// Makes the volatile writes that `which` names stable.
    fn destage(&mut self, which: impl Fn(&CachedWrite) -> bool) {
        for write in self.cache.extract_if(.., |w| which(w)) {
            write_to(&mut self.stable_data, &mut self.stable_meta, &write.change);
        }
    }

    /// Power is lost: an arbitrary subset of what was not stable survives.
    pub fn crash(&mut self, rng: &mut Stream) {
        let in_flight = std::mem::take(&mut self.in_flight);
        let unfinished = in_flight.values().filter_map(|f| change_of(&f.cmd, &f.tags));
        let unfinished = unfinished.map(|change| CachedWrite { id: 0, change, stable: false });
        let cache = std::mem::take(&mut self.cache);
        let keep_per_mille = *rng.pick(&[0, 200, 500, 900, 1000]);
        for write in cache.into_iter().chain(unfinished) {
            let survivors = if write.stable {
                vec![write.change]
            } else if rng.chance(150) {
                self.torn(&write.change, rng)
            } else if rng.chance(keep_per_mille) {
                vec![write.change]
            } else {
                Vec::new()
            };
            for change in &survivors {
                write_to(&mut self.stable_data, &mut self.stable_meta, change);
            }
        }
        self.view_data.clone_from(&self.stable_data);
        self.view_meta.clone_from(&self.stable_meta);
    }

    /// The process that gave the commands died: those in flight happen or not, nothing else is lost.
    pub fn abandon(&mut self, rng: &mut Stream) {
        for (_, InFlight { cmd, tags, .. }) in std::mem::take(&mut self.in_flight) {
            if rng.chance(700)
                && let Some(change) = change_of(&cmd, &tags)
            {
                self.apply(change, false);
            }
        }
    }

    /// The parts of a torn write that survive, given what is stable so far.
    fn torn(&self, change: &Change, rng: &mut Stream) -> Vec<Change> {
        let unit = if self.params.tear_at_512 { 1 } else { 8 };
        match change {
            Change::Data { sector, tags } => split_at(*sector, tags.len() as u64, unit)
                .filter(|_| rng.chance(500))
                .map(|part| {
                    let first = (part.start - sector) as usize;
                    let tags = tags[first..][..(part.end - part.start) as usize].to_vec();
                    Change::Data { sector: part.start, tags }
                })
                .collect(),
            Change::Zero { sector, sectors } => split_at(*sector, *sectors, unit)
                .filter(|_| rng.chance(500))
                .map(|part| Change::Zero { sector: part.start, sectors: part.end - part.start })
                .collect(),
            Change::Meta { block, bytes } if self.params.tear_at_512 => {
                let mut mixed = self.stable_meta.get(block).map_or([0; 4096], |b| **b);
                for (new, old) in bytes.chunks(512).zip(mixed.chunks_mut(512)) {
                    if rng.chance(500) {
                        old.copy_from_slice(new);
                    }
                }
                vec![Change::Meta { block: *block, bytes: Box::new(mixed) }]
            }
            Change::Meta { .. } => Vec::new(),
        }
    }

    /// Commands that a fault made slow or that are in flight, for messages.
    pub fn describe_in_flight(&self) -> String {
        self.in_flight.iter().take(8).map(|(tag, f)| format!("[{}: {:?}]", tag.0, summary(&f.cmd))).collect()
    }
}

/// A command without its bytes, for traces.
pub fn summary(cmd: &DiskCmd) -> String {
    match cmd {
        DiskCmd::MetaWrite { offset_bytes, sync, .. } => {
            format!("MetaWrite {{ offset_bytes: {offset_bytes}, sync: {sync} }}")
        }
        other => format!("{other:?}"),
    }
}

/// The payload that a read fills.
pub fn read_target(cmd: &DiskCmd) -> Option<Payload> {
    match cmd {
        DiskCmd::Read { payload, .. } => Some(*payload),
        _ => None,
    }
}

fn change_of(cmd: &DiskCmd, tags: &[Tag]) -> Option<Change> {
    match cmd {
        DiskCmd::Write { sector, .. } => Some(Change::Data { sector: *sector, tags: tags.to_vec() }),
        DiskCmd::Discard { sector, len } | DiskCmd::WriteZeroes { sector, len, .. } => {
            Some(Change::Zero { sector: *sector, sectors: u64::from(len / 512) })
        }
        DiskCmd::MetaWrite { offset_bytes, block, .. } => {
            Some(Change::Meta { block: offset_bytes / BLOCK, bytes: block.clone() })
        }
        _ => None,
    }
}

/// A range in pieces that end at multiples of `unit`.
fn split_at(first: u64, sectors: u64, unit: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let end = first + sectors;
    let mut at = first;
    std::iter::from_fn(move || {
        let next = ((at / unit + 1) * unit).min(end);
        (at < end).then(|| std::mem::replace(&mut at, next)..next)
    })
}

fn write_to(data: &mut [Tag], meta: &mut BTreeMap<u64, Block>, change: &Change) {
    match change {
        Change::Data { sector, tags } => data[*sector as usize..][..tags.len()].copy_from_slice(tags),
        Change::Zero { sector, sectors } => data[*sector as usize..][..*sectors as usize].fill(0),
        Change::Meta { block, bytes } => {
            meta.insert(*block, bytes.clone());
        }
    }
}
