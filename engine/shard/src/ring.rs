//! The ring: one io_uring of one thread, with typed routing of completions.
//!
//! An operation is pushed with a token; its completion hands the token back. Nothing is submitted before
//! [`Ring::turn`], which submits everything and waits in one system call (performance.md D3: two `io_uring_enter` for a
//! replicated write at queue depth 1, a fraction of one at depth).
//!
//! Invariant: an operation's memory stays valid until its completion was reaped. [`Ring::push`] is unsafe for this
//! reason alone, and dropping the ring first cancels and reaps whatever is still in the kernel.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, opcode, squeue};
use slab::Slab;
use thiserror::Error;

/// Time the ring's end waits for operations that are still in the kernel. A disk that hangs for longer takes the
/// process down: memory that the kernel writes to cannot be given back.
const DROP_WAIT: Duration = Duration::from_secs(60);
/// User data of operations whose completion interests nobody.
const IGNORED: u64 = u64::MAX;

/// Size of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Entries of the submission queue.
    pub sq_entries: u32,
    /// Entries of the completion queue: the most operations in the kernel at once.
    pub cq_entries: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        RingConfig { sq_entries: crate::limits::SQ_ENTRIES, cq_entries: crate::limits::CQ_ENTRIES }
    }
}

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum RingError {
    /// The kernel refused to set one up.
    #[error(
        "cannot set up an io_uring: {0}; it may be switched off (sysctl kernel.io_uring_disabled) or filtered by seccomp"
    )]
    Setup(io::Error),
    /// The kernel is too old.
    #[error("this kernel's io_uring lacks {0}, it takes Linux 5.11 or newer")]
    Missing(&'static str),
}

/// Counters of a ring. Written by the shard only, readable from everywhere.
#[derive(Debug, Default)]
pub struct RingCounters {
    /// `io_uring_enter` calls.
    pub enters: AtomicU64,
    /// Operations pushed.
    pub ops: AtomicU64,
    /// Turns of the loop.
    pub turns: AtomicU64,
}

impl RingCounters {
    /// Adds with a plain load and store: there is one writer.
    fn add(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}

/// An operation that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done<T> {
    /// What it was pushed with.
    pub token: T,
    /// The kernel's result: a count, or a negative errno.
    pub result: i32,
    /// The operation goes on (multishot).
    pub more: bool,
}

/// One io_uring with a slab of tokens.
pub struct Ring<T: Copy> {
    submitter: Submitter<'static>,
    sq: ManuallyDrop<SubmissionQueue<'static>>,
    cq: ManuallyDrop<CompletionQueue<'static>>,
    /// What the three above borrow from; freed by `drop`.
    owner: *mut IoUring,
    tokens: Slab<T>,
    /// Entries that found the queues full, in order.
    backlog: VecDeque<squeue::Entry>,
    in_kernel: usize,
    limit: usize,
    /// Operations whose success is known by the absence of a completion, with the result that stands for it.
    silent: Vec<(usize, i32)>,
    /// The kernel can leave the completions of successes out.
    can_be_silent: bool,
    counters: Arc<RingCounters>,
}

impl<T: Copy> std::fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.tokens.len())
            .field("backlog", &self.backlog.len())
            .finish_non_exhaustive()
    }
}

/// Sets a ring up with the best flags that this kernel knows.
fn build(config: &RingConfig) -> Result<IoUring, RingError> {
    let base = || {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(config.cq_entries).setup_submit_all();
        builder
    };
    // 6.1: completions run when this thread asks for them, not by interrupting it.
    let deferred = base().setup_single_issuer().setup_defer_taskrun().build(config.sq_entries);
    let ring = match deferred {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            tracing::info!("kernel without DEFER_TASKRUN (6.1): the ring runs in an older, slower mode");
            // 5.19, then anything.
            base()
                .setup_coop_taskrun()
                .build(config.sq_entries)
                .or_else(|_| IoUring::builder().setup_cqsize(config.cq_entries).build(config.sq_entries))
        }
        other => other,
    };
    let ring = ring.map_err(RingError::Setup)?;
    if !ring.params().is_feature_ext_arg() {
        return Err(RingError::Missing("timed waits (EXT_ARG)"));
    }
    if !ring.params().is_feature_nodrop() {
        return Err(RingError::Missing("lossless completion (NODROP)"));
    }
    Ok(ring)
}

impl<T: Copy> Ring<T> {
    /// Sets up a ring for the calling thread; every later call has to come from it.
    ///
    /// # Errors
    /// io_uring is not there, not allowed or too old.
    pub fn new(config: &RingConfig, counters: Arc<RingCounters>) -> Result<Ring<T>, RingError> {
        let owner = Box::into_raw(Box::new(build(config)?));
        // SAFETY: `owner` comes from Box::into_raw and is freed in `drop` only, after its borrowers.
        let ring: &'static mut IoUring = unsafe { &mut *owner };
        let limit = ring.params().cq_entries() as usize;
        // The best flags are there (6.1), so that what ends while it is submitted has its completion in the queue by then.
        let can_be_silent = ring.params().is_feature_skip_cqe_on_success() && ring.params().is_setup_single_issuer();
        let (mut submitter, sq, cq) = ring.split();
        if let Err(e) = submitter.register_ring_fd() {
            tracing::debug!("the ring's descriptor is not registered (Linux 5.18): {e}");
        }
        Ok(Ring {
            submitter,
            sq: ManuallyDrop::new(sq),
            cq: ManuallyDrop::new(cq),
            owner,
            tokens: Slab::with_capacity(limit),
            backlog: VecDeque::new(),
            in_kernel: 0,
            limit,
            silent: Vec::new(),
            can_be_silent,
            counters,
        })
    }

    /// Operations that were pushed and whose completion was not reaped.
    pub fn in_flight(&self) -> usize {
        self.tokens.len()
    }

    /// The counters of this ring.
    pub fn counters(&self) -> &Arc<RingCounters> {
        &self.counters
    }

    /// Queues an operation for the next turn. Returns a key for [`Ring::cancel`], valid until the operation's completion.
    ///
    /// # Safety
    /// The memory and the descriptor that `entry` names have to stay valid until its completion comes out of
    /// [`Ring::turn`] without `more`, or until the ring is dropped.
    pub unsafe fn push(&mut self, entry: squeue::Entry, token: T) -> usize {
        let key = self.tokens.insert(token);
        RingCounters::add(&self.counters.ops, 1);
        self.enqueue(entry.user_data(key as u64));
        key
    }

    /// Queues an operation that ends while it is submitted, whatever comes of it, because it may not block. If it succeeds,
    /// it does not end the wait of the next turn: it comes out of that turn as `success`, with whatever else does. So it
    /// is for operations that nobody waits for; without this, each of them would cost a turn in which nothing else happens.
    ///
    /// # Safety
    /// As for [`Ring::push`].
    pub unsafe fn push_silent(&mut self, entry: squeue::Entry, token: T, success: i32) {
        let silent = self.can_be_silent && self.backlog.is_empty() && self.in_kernel < self.limit;
        let entry = if silent { entry.flags(squeue::Flags::SKIP_SUCCESS) } else { entry };
        // SAFETY: the caller's.
        let key = unsafe { self.push(entry, token) };
        if silent {
            self.silent.push((key, success));
        }
    }

    /// Silent operations are queued for the next turn.
    pub fn has_silent(&self) -> bool {
        !self.silent.is_empty()
    }

    /// Asks the kernel to end an operation early; its completion comes either way.
    pub fn cancel(&mut self, key: usize) {
        assert!(self.tokens.contains(key), "cancel of an operation that is not in flight");
        self.enqueue(opcode::AsyncCancel::new(key as u64).build().user_data(IGNORED));
    }

    fn enqueue(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.in_kernel < self.limit && self.try_push(&entry) {
            return;
        }
        self.backlog.push_back(entry);
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the entry was handed to `push` under its contract, or names no memory (cancel).
        let pushed = unsafe { self.sq.push(entry) }.is_ok();
        if pushed {
            self.in_kernel += 1;
        }
        pushed
    }

    /// Registers `buffers` memory regions that are given later by [`Ring::register_buffer`].
    ///
    /// # Errors
    /// The kernel is too old (5.19) or short of memory.
    pub fn reserve_buffers(&self, buffers: u32) -> io::Result<()> {
        self.submitter.register_buffers_sparse(buffers)
    }

    /// Registers one region: the kernel pins its pages.
    ///
    /// # Safety
    /// The region has to stay mapped as long as the ring lives.
    ///
    /// # Errors
    /// ENOMEM over RLIMIT_MEMLOCK.
    pub unsafe fn register_buffer(&self, index: u16, base: *mut u8, len: usize) -> io::Result<()> {
        let iov = libc::iovec { iov_base: base.cast(), iov_len: len };
        // SAFETY: the caller keeps the region mapped.
        unsafe { self.submitter.register_buffers_update(u32::from(index), &[iov], None) }
    }

    /// One turn: submits everything, waits until something completed or `timeout` is over (`None`: for ever), and
    /// appends what completed to `out`.
    ///
    /// `at_least`: how many completions to wait for; more than one only where fewer are of no use, because meanwhile
    /// nothing else is noticed either.
    ///
    /// # Errors
    /// What the kernel says, other than a timeout or an interruption.
    pub fn turn(&mut self, timeout: Option<Duration>, at_least: usize, out: &mut Vec<Done<T>>) -> io::Result<()> {
        RingCounters::add(&self.counters.turns, 1);
        self.flush_backlog();
        self.sq.sync();
        self.cq.sync();
        let loud = self.in_kernel - self.silent.len();
        let silent_only = loud == 0 && !self.silent.is_empty();
        let wait = self.cq.is_empty() && timeout != Some(Duration::ZERO) && !silent_only;
        self.enter(if wait { at_least.min(loud).max(1) } else { 0 }, timeout)?;
        self.reap(out);
        self.reap_silent(out);
        Ok(())
    }

    fn flush_backlog(&mut self) {
        while self.in_kernel < self.limit {
            let Some(entry) = self.backlog.pop_front() else {
                return;
            };
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                self.sq.sync();
                // The submission queue is full: one more system call empties it.
                if self.enter(0, Some(Duration::ZERO)).is_err() || self.sq.is_full() {
                    return;
                }
            }
        }
    }

    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        RingCounters::add(&self.counters.enters, 1);
        // A wait of no time where none is wanted: only an enter with a wait runs what DEFER_TASKRUN put off.
        let time = Timespec::from(if want == 0 { Duration::ZERO } else { timeout.unwrap_or_default() });
        let mut args = SubmitArgs::new();
        if want == 0 || timeout.is_some() {
            args = args.timespec(&time);
        }
        let result = self.submitter.submit_with_args(want.max(1), &args);
        self.sq.sync();
        match result {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                // Nothing came in time; a signal; a full completion queue, which the caller reaps next.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    fn reap(&mut self, out: &mut Vec<Done<T>>) {
        self.cq.sync();
        for cqe in self.cq.by_ref() {
            let more = io_uring::cqueue::more(cqe.flags());
            if !more {
                assert!(self.in_kernel > 0, "a completion without an operation");
                self.in_kernel -= 1;
            }
            if cqe.user_data() == IGNORED {
                continue;
            }
            let key = cqe.user_data() as usize;
            self.silent.retain(|silent| silent.0 != key);
            let token = self.tokens[key];
            if !more {
                self.tokens.remove(key);
            }
            out.push(Done { token, result: cqe.result(), more });
        }
        self.cq.sync();
    }

    /// Silent operations that were submitted and have no completion succeeded.
    fn reap_silent(&mut self, out: &mut Vec<Done<T>>) {
        // One that is in the backlog or in the submission queue did not begin. It is waited for with the next turn.
        if self.silent.is_empty() || !self.backlog.is_empty() || !self.sq.is_empty() {
            return;
        }
        for (key, result) in self.silent.drain(..) {
            self.in_kernel -= 1;
            let token = self.tokens.remove(key);
            out.push(Done { token, result, more: false });
        }
    }

    /// Cancels what can be cancelled and reaps everything. `false`: something is still in the kernel.
    fn wind_down(&mut self) -> bool {
        let start = Instant::now();
        let mut sink = Vec::new();
        // What never reached the kernel needs no completion.
        for entry in std::mem::take(&mut self.backlog) {
            if entry.get_user_data() != IGNORED {
                self.tokens.try_remove(entry.get_user_data() as usize);
            }
        }
        self.silent.retain(|silent| self.tokens.contains(silent.0));
        if !self.tokens.is_empty() {
            self.enqueue(opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(IGNORED));
        }
        while !self.tokens.is_empty() {
            let turn = self.turn(Some(Duration::from_millis(100)), 1, &mut sink);
            if turn.is_err() || start.elapsed() > DROP_WAIT {
                return false;
            }
            sink.clear();
        }
        true
    }
}

impl<T: Copy> Drop for Ring<T> {
    fn drop(&mut self) {
        if !self.wind_down() {
            tracing::error!(in_flight = self.tokens.len(), "operations do not end: the process has to");
            std::process::abort();
        }
        // SAFETY: `self` is being dropped: the queues are not used again, and go before what they borrow from, which
        // came from Box::into_raw.
        unsafe {
            ManuallyDrop::drop(&mut self.sq);
            ManuallyDrop::drop(&mut self.cq);
            drop(Box::from_raw(self.owner));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::AsRawFd;

    fn ring(entries: u32) -> Ring<u32> {
        let config = RingConfig { sq_entries: entries, cq_entries: entries * 2 };
        Ring::new(&config, Arc::new(RingCounters::default())).expect("io_uring is there")
    }

    #[test]
    fn ring_routes_each_completion_to_its_token() {
        let mut ring = ring(4);
        // More than both queues hold: the rest waits in the backlog.
        for token in 0..100 {
            // SAFETY: a nop names no memory.
            unsafe { ring.push(opcode::Nop::new().build(), token) };
        }
        let mut done = Vec::new();
        while ring.in_flight() > 0 {
            ring.turn(Some(Duration::from_secs(5)), 1, &mut done).expect("a turn");
        }
        let mut tokens: Vec<u32> = done.iter().map(|d| d.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..100).collect::<Vec<u32>>());
        assert!(done.iter().all(|d| d.result == 0 && !d.more));
        assert_eq!(ring.counters().ops.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn ring_turn_ends_with_the_timeout() {
        let mut ring = ring(4);
        let start = Instant::now();
        let mut done = Vec::new();
        ring.turn(Some(Duration::from_millis(20)), 1, &mut done).expect("a turn");
        assert!(done.is_empty() && start.elapsed() >= Duration::from_millis(20));
        ring.turn(Some(Duration::ZERO), 1, &mut done).expect("a turn without a wait");
        assert_eq!(ring.counters().turns.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn ring_submits_a_batch_in_one_enter() {
        let mut ring = ring(64);
        for token in 0..32 {
            // SAFETY: a nop names no memory.
            unsafe { ring.push(opcode::Nop::new().build(), token) };
        }
        let mut done = Vec::new();
        ring.turn(None, 1, &mut done).expect("a turn");
        assert_eq!(done.len(), 32);
        assert_eq!(ring.counters().enters.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn ring_silent_success_does_not_end_a_turn_and_failure_does() {
        let mut ring = ring(8);
        assert!(ring.can_be_silent, "this test takes Linux 6.1");
        let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let mut target = Box::new([0_u8; 8]);
        let read = opcode::Read::new(io_uring::types::Fd(event.as_raw_fd()), target.as_mut_ptr(), 8).build();
        let mut done = Vec::new();
        let bell = event.try_clone().expect("a second descriptor");
        let ringer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            rustix::io::write(&bell, &1_u64.to_ne_bytes()).expect("rings");
        });
        // SAFETY: `target` and `event` outlive the ring, which is dropped first below; a nop names no memory.
        unsafe {
            ring.push(read.clone(), 1);
            ring.push_silent(opcode::Nop::new().build(), 2, 77);
        }
        ring.turn(Some(Duration::from_secs(30)), 1, &mut done).expect("a turn");
        let both = [Done { token: 1, result: 8, more: false }, Done { token: 2, result: 77, more: false }];
        assert_eq!(done, both, "the silent one waited for the other one");
        ringer.join().expect("rang");

        done.clear();
        let nowhere = opcode::Close::new(io_uring::types::Fd(i32::MAX)).build();
        // SAFETY: as above.
        unsafe {
            ring.push(read, 3);
            ring.push_silent(nowhere, 4, 77);
        }
        ring.turn(Some(Duration::from_secs(30)), 1, &mut done).expect("a turn");
        assert_eq!(done, [Done { token: 4, result: -libc::EBADF, more: false }]);

        // More than the submission queue holds, and nothing else to wait for.
        done.clear();
        for token in 10..30 {
            // SAFETY: as above.
            unsafe { ring.push_silent(opcode::Nop::new().build(), token, 77) };
        }
        while done.len() < 20 {
            ring.turn(Some(Duration::ZERO), 1, &mut done).expect("a turn");
        }
        assert!(done.iter().all(|d| d.token >= 10));
        assert_eq!(ring.in_flight(), 1, "the read");
        // Nor does the ring's end wait for what never began.
        for token in 30..50 {
            // SAFETY: as above.
            unsafe { ring.push_silent(opcode::Nop::new().build(), token, 77) };
        }
        drop(ring);
        drop((event, target));
    }

    #[test]
    fn ring_cancel_and_drop_end_what_would_wait_for_ever() {
        let mut ring = ring(4);
        let never = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let mut target = Box::new([0_u8; 8]);
        let read = opcode::Read::new(io_uring::types::Fd(never.as_raw_fd()), target.as_mut_ptr(), 8).build();
        // SAFETY: `target` and `never` outlive the ring, which is dropped first below.
        let key = unsafe { ring.push(read.clone(), 1) };
        let mut done = Vec::new();
        ring.turn(Some(Duration::from_millis(5)), 1, &mut done).expect("a turn");
        ring.cancel(key);
        while done.is_empty() {
            ring.turn(Some(Duration::from_secs(5)), 1, &mut done).expect("a turn");
        }
        assert_eq!(done, [Done { token: 1, result: -libc::ECANCELED, more: false }]);
        // SAFETY: as above.
        unsafe { ring.push(read, 2) };
        ring.turn(Some(Duration::from_millis(5)), 1, &mut done).expect("a turn");
        let start = Instant::now();
        drop(ring);
        assert!(start.elapsed() < Duration::from_secs(10));
        drop((never, target));
    }
}
