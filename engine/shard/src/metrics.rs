//! Counters of a shard. Written by the shard only, readable from everywhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ring::RingCounters;

/// See the module.
#[derive(Debug, Default)]
pub struct Metrics {
    /// The ring's.
    pub ring: Arc<RingCounters>,
    /// Inputs given to cores.
    pub inputs: AtomicU64,
    /// Front-end requests given to cores.
    pub requests: AtomicU64,
    /// Disk commands given to backing devices.
    pub disk_commands: AtomicU64,
    /// Packets sent to peers.
    pub packets_sent: AtomicU64,
    /// Packets received from peers.
    pub packets_received: AtomicU64,
    /// Links that are up or ending, at the end of the last turn.
    pub links: AtomicU64,
    /// Front-end connections, likewise.
    pub front_ends: AtomicU64,
    /// Disk commands that did not end, likewise.
    pub disk_in_flight: AtomicU64,
    /// Pool buffers in use, likewise.
    pub buffers_in_use: AtomicU64,
    /// Bytes of these buffers.
    pub buffer_bytes_in_use: AtomicU64,
    /// Turns that ended with somebody waiting for a buffer.
    pub turns_starved: AtomicU64,
}

impl Metrics {
    /// Adds with a plain load and store: there is one writer.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn set(gauge: &AtomicU64, n: u64) {
        gauge.store(n, Ordering::Relaxed);
    }
}
