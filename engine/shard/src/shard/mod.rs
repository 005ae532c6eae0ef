//! The shard: its thread, its loop, and who gets which completion.

mod actions;
mod fronts;
mod legs;
mod links;
mod messages;
mod resource;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use io_uring::opcode;
use io_uring::types::Fd;
use slab::Slab;
use thiserror::Error;
use zea_core::io::{Input, Outbox, Time};
use zea_recorder::Outlet;

use crate::clock::{Clock, KernelRng};
use crate::disk::Disks;
use crate::events::Subscriber;
use crate::frontend::{ExportDirectory, FrontEnd};
use crate::handle::{AdminResult, Message, ReplyTo, ShardHandle};
use crate::limits::{LEGS_WAIT_MS, MAILBOX_BATCH, MAILBOX_MESSAGES, TICK_MS};
use crate::link::Link;
use crate::mailbox::{Mail, Mailbox, mailbox};
use crate::metrics::Metrics;
use crate::pool::{Pool, PoolConfig, PoolError};
use crate::ring::{Done, Ring, RingConfig, RingError};
use crate::token::Token;
use crate::{LinkMaker, ResourceId};

use actions::Digesting;
use fronts::Listener;
use legs::Legs;
use links::Lost;
use resource::{AdminWait, Res};

/// What a shard is made from.
#[derive(Clone)]
pub struct ShardConfig {
    /// Its number on this node, from 0.
    pub index: u16,
    /// Its ring.
    pub ring: RingConfig,
    /// Its buffers.
    pub pool: PoolConfig,
    /// The processor it stays on.
    pub pin_cpu: Option<usize>,
    /// Who makes links.
    pub links: Arc<dyn LinkMaker>,
    /// The node's exports; the same for all shards.
    pub exports: ExportDirectory,
    /// Who writes the flight recordings of the resources; `None`: nothing is recorded.
    pub recordings: Option<Outlet>,
}

impl std::fmt::Debug for ShardConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardConfig")
            .field("index", &self.index)
            .field("ring", &self.ring)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl ShardConfig {
    /// Defaults for shard number `index`.
    pub fn new(index: u16, links: Arc<dyn LinkMaker>, exports: ExportDirectory) -> ShardConfig {
        let (ring, pool) = Default::default();
        ShardConfig { index, ring, pool, pin_cpu: None, links, exports, recordings: None }
    }
}

/// Why a shard did not start.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// No ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// No thread, no descriptor, or no such processor.
    #[error("cannot start a shard: {0}")]
    System(#[from] std::io::Error),
}

/// See the crate's documentation.
pub struct Shard {
    /// First, so that it is dropped first: what follows is memory that the kernel may still use.
    ring: Ring<Token>,
    pool: Pool,
    disks: Disks,
    links: Slab<Link>,
    fronts: Slab<Box<dyn FrontEnd>>,
    listeners: Slab<Listener>,
    /// What the kernel counts the bell's rings into.
    bell_count: Box<[u8; 8]>,

    mailbox: Mailbox<Message>,
    mail: Mail<Message>,
    /// The bell was heard and the mailbox not yet found empty.
    rung: bool,
    stopping: bool,

    resources: Slab<Res>,
    by_id: BTreeMap<ResourceId, usize>,
    admins: Slab<AdminWait>,
    /// Answers of the input whose actions are being carried out.
    replies: Vec<(ReplyTo<AdminResult>, AdminResult)>,
    /// Who waits until nobody uses a resource's exports.
    closers: Vec<(ResourceId, crossbeam_channel::Sender<()>)>,
    subscribers: Vec<Subscriber>,
    /// Links that were lost and whose core does not know yet.
    lost: VecDeque<Lost>,
    /// Digests that cores wait for.
    digests: VecDeque<Digesting>,
    /// Front ends that may have something.
    touched: Vec<usize>,
    /// Front ends that wait for buffers.
    starved_fronts: Vec<usize>,
    /// [`Pool::freed`] when those who wait for buffers looked last.
    looked_at: u64,
    next_tick: Time,
    links_made: u64,
    legs: Legs,

    config: ShardConfig,
    metrics: Arc<Metrics>,
    clock: Clock,
    now: Time,
    rng: KernelRng,
    /// Kept between turns for their memory.
    outbox: Outbox,
    meta: Vec<u8>,
    due: Vec<usize>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shard {
    /// Starts a shard's thread.
    ///
    /// # Errors
    /// No ring, pool or thread is to be had.
    pub fn spawn(config: ShardConfig) -> Result<ShardHandle, SpawnError> {
        let index = config.index;
        let (mail, inbox) = mailbox(MAILBOX_MESSAGES)?;
        let metrics = Arc::new(Metrics::default());
        let (ready, started) = bounded(1);
        let (own_mail, own_metrics) = (mail.clone(), Arc::clone(&metrics));
        let thread = std::thread::Builder::new().name(format!("zea-shard-{index}")).spawn(move || {
            // The ring belongs to the thread that makes it.
            match Shard::new(config, own_mail, inbox, own_metrics) {
                Ok(shard) => {
                    let _ = ready.send(Ok(()));
                    shard.run();
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        })?;
        let gone = || std::io::Error::other("its thread ended at once");
        started.recv().map_err(|_| gone())??;
        Ok(ShardHandle::new(index, mail, metrics, thread))
    }

    fn new(
        config: ShardConfig,
        mail: Mail<Message>,
        mailbox: Mailbox<Message>,
        metrics: Arc<Metrics>,
    ) -> Result<Shard, SpawnError> {
        if let Some(cpu) = config.pin_cpu {
            let mut set = rustix::thread::CpuSet::new();
            if cpu >= rustix::thread::CpuSet::MAX_CPU {
                return Err(std::io::Error::from_raw_os_error(libc::EINVAL).into());
            }
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set).map_err(std::io::Error::from)?;
        }
        let ring = Ring::new(&config.ring, Arc::clone(&metrics.ring))?;
        let mut pool = Pool::new(&config.pool)?;
        match ring.reserve_buffers(pool.chunks() as u32) {
            Ok(()) => pool.enable_registration(),
            Err(e) => tracing::info!("buffers are not registered with the ring: {e}"),
        }
        let clock = Clock::start();
        Ok(Shard {
            ring,
            pool,
            disks: Disks::default(),
            links: Slab::new(),
            fronts: Slab::new(),
            listeners: Slab::new(),
            bell_count: Box::new([0; 8]),
            mailbox,
            mail,
            rung: false,
            stopping: false,
            resources: Slab::new(),
            by_id: BTreeMap::new(),
            admins: Slab::new(),
            replies: Vec::new(),
            closers: Vec::new(),
            subscribers: Vec::new(),
            lost: VecDeque::new(),
            digests: VecDeque::new(),
            touched: Vec::new(),
            starved_fronts: Vec::new(),
            looked_at: 0,
            next_tick: Time(0),
            links_made: 0,
            legs: Legs::default(),
            config,
            metrics,
            clock,
            now: clock.now(),
            rng: KernelRng::new(),
            outbox: Outbox::new(),
            meta: Vec::new(),
            due: Vec::new(),
        })
    }

    fn run(mut self) {
        let mut done = Vec::new();
        self.hear_bell();
        while !self.stopping {
            self.now = self.clock.now();
            for done in done.drain(..) {
                self.dispatch(done);
            }
            self.read_mail();
            self.run_timers();
            self.tick();
            self.settle();
            self.end_turn();
            let legs = self.legs.take();
            let mut timeout = self.timeout();
            if legs > 1 {
                let most = Duration::from_millis(LEGS_WAIT_MS);
                timeout = Some(timeout.map_or(most, |t| t.min(most)));
            }
            if let Err(e) = self.ring.turn(timeout, legs, &mut done) {
                panic!("io_uring_enter failed: {e}");
            }
        }
        tracing::info!(shard = self.config.index, "the shard stops");
        if self.fronts.iter().any(|(_, front)| front.device_tags() > 0) {
            // Nothing but the end of the process takes a device's commands out of the ring.
            std::mem::forget(self);
        }
    }

    fn dispatch(&mut self, done: Done<Token>) {
        match done.token {
            Token::Wake => {
                self.mailbox.lower();
                self.rung = true;
                self.hear_bell();
            }
            Token::Disk(op) => self.disks.complete(&mut self.ring, &mut self.pool, op, done.result),
            Token::LinkReceive { link, stream } => self.link_received(link as usize, stream, done.result),
            Token::LinkSend { link, stream } => self.link_sent(link as usize, stream, done.result),
            Token::Accept(listener) => self.accepted(listener as usize, done.result),
            Token::Front { slot, op } => {
                let slot = slot as usize;
                self.fronts[slot].completed(&mut self.pool, op, done.result);
                self.touched.push(slot);
            }
        }
    }

    fn read_mail(&mut self) {
        if !self.rung {
            return;
        }
        for _ in 0..MAILBOX_BATCH {
            match self.mailbox.take() {
                Some(message) => self.message(message),
                None => {
                    self.rung = false;
                    return;
                }
            }
        }
    }

    fn run_timers(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        let now = self.now;
        due.extend(self.resources.iter().filter(|(_, r)| r.deadline.is_some_and(|at| at <= now)).map(|(slot, _)| slot));
        for slot in due.drain(..) {
            self.feed(slot, Input::Timer);
        }
        self.due = due;
    }

    /// Feeds the cores everything that is known, until nothing new comes of it.
    fn settle(&mut self) {
        loop {
            let mut progress = false;
            while let Some(done) = self.disks.take_done() {
                self.disk_done(done);
                progress = true;
            }
            while let Some(digesting) = self.digests.pop_front() {
                self.digest(digesting);
                progress = true;
            }
            while let Some(lost) = self.lost.pop_front() {
                self.link_lost(lost);
                progress = true;
            }
            while let Some(slot) = self.touched.pop() {
                self.pump_front(slot);
                progress = true;
            }
            if self.looked_at != self.pool.freed() {
                self.looked_at = self.pool.freed();
                self.disks.resume(&mut self.ring, &mut self.pool);
                self.feed_the_starved();
                progress = true;
            }
            progress |= self.bury_links();
            if !progress {
                return;
            }
        }
    }

    /// Starts sends and receives, one of each per socket. What somebody waits for is submitted first.
    fn end_turn(&mut self) {
        self.bury_fronts();
        for (_, link) in &mut self.links {
            link.flush(&mut self.ring, &self.pool, self.now);
        }
        for (slot, front) in &mut self.fronts {
            front.submit(&mut self.ring, &self.pool, slot as u32);
        }
        for (_, link) in &mut self.links {
            link.arm(&mut self.ring, &self.pool);
        }
        for (_, resource) in &mut self.resources {
            resource.refresh(self.now);
        }
        let metrics = &self.metrics;
        Metrics::set(&metrics.links, self.links.len() as u64);
        Metrics::set(&metrics.front_ends, self.fronts.len() as u64);
        Metrics::set(&metrics.disk_in_flight, self.disks.in_flight() as u64);
        Metrics::set(&metrics.buffers_in_use, self.pool.in_use() as u64);
        Metrics::set(&metrics.buffer_bytes_in_use, self.pool.bytes_in_use());
    }

    /// Time until somebody wants to be called without a completion.
    fn timeout(&self) -> Option<Duration> {
        // A silent send's buffers come back when the turn is over: not to be waited for where somebody waits for buffers.
        if self.rung || self.stopping || (self.ring.has_silent() && self.starved()) {
            return Some(Duration::ZERO);
        }
        let ticks = self.links.iter().any(|(_, link)| link.needs_tick()) || self.listeners_pause();
        let tick = ticks.then_some(self.next_tick);
        let cores = self.resources.iter().filter_map(|(_, resource)| resource.deadline);
        let fronts = self.fronts.iter().filter_map(|(_, front)| Some(front.give_up_at()?.max(self.next_tick)));
        let recordings = self.resources.iter().filter_map(|(_, resource)| resource.recording.as_ref()?.due(self.now));
        let deadline = cores.chain(fronts).chain(recordings).chain(tick).min()?;
        Some(Duration::from_nanos(deadline.0.saturating_sub(self.clock.now().0)))
    }

    fn tick(&mut self) {
        if self.now < self.next_tick {
            return;
        }
        self.next_tick = self.now.plus_ms(TICK_MS);
        self.tick_links();
        self.tick_listeners();
        self.tick_fronts();
    }

    fn hear_bell(&mut self) {
        use std::os::fd::AsRawFd;
        let fd = Fd(self.mailbox.bell().as_raw_fd());
        let entry = opcode::Read::new(fd, self.bell_count.as_mut_ptr(), 8).build();
        self.push_bell(entry);
    }

    fn resource_slot(&self, id: ResourceId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }
}

#[allow(unsafe_code)]
impl Shard {
    fn push_bell(&mut self, entry: io_uring::squeue::Entry) {
        // SAFETY: count and bell belong to this shard, whose ring is dropped first; one read is under way at a time.
        unsafe { self.ring.push(entry, Token::Wake) };
    }
}
