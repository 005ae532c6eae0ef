//! Front ends and their listeners.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::opcode;
use io_uring::types::Fd;
use zea_core::io::{Input, IoError, ReqId, Time};
use zea_core::limits::MAX_DISCARD_BYTES;
use zea_ublk::{Limits, MIN_IO_BYTES, Queue};
use zea_wire::ids::VolumeNr;
use zea_wire::state::Role;

use super::Shard;
use super::resource::DEFAULT_BLOCK_BYTES;
use crate::ResourceId;
use crate::frontend::{FrontEnd, LOCAL_BITS, NbdConnection, Step, Transmission, UblkDevice};
use crate::handle::ShardError;
use crate::limits::{HANDSHAKE_MS, MAX_DEVICE_TAGS, MAX_FRONT_ENDS, MAX_LISTENERS};
use crate::metrics::Metrics;
use crate::pool::Pool;

/// Time that accepting pauses after a failure, such as no descriptors left, in milliseconds.
const ACCEPT_PAUSE_MS: u64 = 100;

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    fd: OwnedFd,
    /// Accepting failed: when to try again.
    pause: Option<Time>,
}

impl Shard {
    pub(super) fn listen(&mut self, fd: OwnedFd) -> Result<(), ShardError> {
        if self.listeners.len() >= MAX_LISTENERS {
            return Err(ShardError::Limit(format!("more than {MAX_LISTENERS} listeners on a shard")));
        }
        if let Err(e) = rustix::io::ioctl_fionbio(&fd, false) {
            return Err(ShardError::Limit(format!("the listening socket cannot be used: {e}")));
        }
        let at = self.listeners.insert(Listener { fd, pause: None });
        self.accept(at);
        Ok(())
    }

    pub(super) fn listeners_pause(&self) -> bool {
        self.listeners.iter().any(|(_, listener)| listener.pause.is_some())
    }

    pub(super) fn tick_listeners(&mut self) {
        let now = self.now;
        let over = |l: &Listener| l.pause.is_some_and(|until| until <= now);
        while let Some(at) = self.listeners.iter().find(|(_, l)| over(l)).map(|(at, _)| at) {
            self.listeners[at].pause = None;
            self.accept(at);
        }
    }

    pub(super) fn tick_fronts(&mut self) {
        for (_, front) in &mut self.fronts {
            if front.give_up_at().is_some_and(|at| at <= self.now) {
                front.close();
            }
        }
    }

    /// Whether volumes of a resource are block devices.
    pub(super) fn has_device(&self, id: ResourceId) -> bool {
        self.fronts.iter().any(|(_, front)| front.device_tags() > 0 && front.resource() == Some(id))
    }

    /// What the block device of a volume has to look like; nothing while the volume cannot be used.
    pub(super) fn device_limits(&self, id: ResourceId, volume: VolumeNr) -> Result<Option<Limits>, ShardError> {
        let slot = self.resource_slot(id).ok_or(ShardError::NoResource)?;
        let resource = &self.resources[slot];
        let status = resource.core.status();
        let device = status.devices.iter().find(|d| d.volume == volume).filter(|d| d.size_sectors > 0);
        let Some(device) = device.filter(|_| status.role == Role::Primary) else {
            return Ok(None);
        };
        let disk = resource.disks.get(&volume);
        let logical_block_bytes = disk.map_or(DEFAULT_BLOCK_BYTES, |disk| disk.backing.logical_block_bytes);
        Ok(Some(Limits {
            size_sectors: device.size_sectors,
            logical_block_bytes,
            physical_block_bytes: disk.map_or(MIN_IO_BYTES, |disk| disk.hints.physical_block_bytes),
            max_io_bytes: resource.core.max_bio_bytes().min(Pool::max_len()).max(MIN_IO_BYTES),
            max_range_bytes: MAX_DISCARD_BYTES,
            discard: disk.is_some_and(|disk| disk.backing.discard),
            rotational: disk.is_some_and(|disk| disk.hints.rotational),
            read_only: false,
        }))
    }

    /// Serves the queue of a block device from the end of this turn on.
    pub(super) fn serve_device(&mut self, id: ResourceId, volume: VolumeNr, queue: Queue) -> Result<(), ShardError> {
        self.resource_slot(id).ok_or(ShardError::NoResource)?;
        let tags: usize = self.fronts.iter().map(|(_, front)| front.device_tags()).sum();
        if self.fronts.len() >= MAX_FRONT_ENDS || tags + usize::from(queue.depth()) > MAX_DEVICE_TAGS {
            let most = MAX_DEVICE_TAGS / usize::from(queue.depth());
            return Err(ShardError::Limit(format!(
                "more than {most} block devices on a shard: give zead more of them (--shards)"
            )));
        }
        self.add_front(Box::new(UblkDevice::new(queue, id, volume)));
        Ok(())
    }

    fn add_front(&mut self, front: Box<dyn FrontEnd>) {
        let at = self.fronts.insert(front);
        self.touched.push(at);
    }

    /// A client comes from the shard that accepted it. It is turned away where there is no room, or where the clients of
    /// its resource are being sent home.
    pub(super) fn adopt(&mut self, arrived: Transmission) {
        let closing = self.closers.iter().any(|(id, _)| *id == arrived.resource());
        if self.fronts.len() < MAX_FRONT_ENDS && !closing {
            self.add_front(Box::new(NbdConnection::adopted(arrived)));
        }
    }

    /// Gives a front end's requests to their core.
    pub(super) fn pump_front(&mut self, at: usize) {
        while let Some(front) = self.fronts.get_mut(at) {
            match front.next(&mut self.pool) {
                Step::Wait => return,
                Step::NeedBuffer => {
                    if !self.starved_fronts.contains(&at) {
                        self.starved_fronts.push(at);
                    }
                    return;
                }
                Step::Request(id, mut request) => {
                    let local = request.id.0;
                    assert!(local < 1 << LOCAL_BITS, "a front end's request number is too large");
                    let Some(slot) = self.by_id.get(&id).copied() else {
                        front.answer(&mut self.pool, local, Err(IoError::NoVolume));
                        continue;
                    };
                    request.id = ReqId((at as u64) << LOCAL_BITS | local);
                    Metrics::add(&self.metrics.requests, 1);
                    self.resources[slot].requests += 1;
                    self.legs.request();
                    self.feed(slot, Input::Request(request));
                }
            }
        }
    }

    /// Somebody waits for a buffer.
    pub(super) fn starved(&self) -> bool {
        let links = || self.links.iter().any(|(_, link)| link.starved().is_some());
        !self.starved_fronts.is_empty() || self.disks.starved() || links()
    }

    /// Buffers became free: everybody who waits for one looks again, peers first.
    pub(super) fn feed_the_starved(&mut self) {
        let starved_links = self.links.iter().any(|(_, link)| link.starved().is_some());
        if starved_links || !self.starved_fronts.is_empty() {
            Metrics::add(&self.metrics.turns_starved, 1);
        }
        for at in 0..self.links.capacity() {
            if let Some(stream) = self.links.get(at).and_then(|link| link.starved()) {
                self.pump_link(at, stream);
            }
        }
        self.touched.append(&mut self.starved_fronts);
    }

    pub(super) fn close_exports(&mut self, id: ResourceId) {
        for (at, front) in &mut self.fronts {
            if front.resource() == Some(id) {
                front.close();
                self.touched.push(at);
            }
        }
    }

    pub(super) fn bury_fronts(&mut self) {
        while let Some((at, _)) = self.fronts.iter().find(|(_, front)| front.is_over()) {
            self.fronts.remove(at).bury(&mut self.pool);
            self.starved_fronts.retain(|&starved| starved != at);
        }
        let exports = &self.config.exports;
        self.closers.retain(|(id, done)| {
            if exports.open_count(*id, None) > 0 {
                return true;
            }
            // Who asked may have stopped waiting.
            let _ = done.try_send(());
            false
        });
    }
}

#[allow(unsafe_code)]
impl Shard {
    fn accept(&mut self, at: usize) {
        let fd = Fd(self.listeners[at].fd.as_raw_fd());
        let entry =
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: no memory is named, and the listener stays open as long as the shard.
        unsafe { self.ring.push(entry, crate::token::Token::Accept(at as u32)) };
    }

    pub(super) fn accepted(&mut self, at: usize, result: i32) {
        if result < 0 {
            tracing::warn!("accept failed: {}", std::io::Error::from_raw_os_error(-result));
            self.listeners[at].pause = Some(self.now.plus_ms(ACCEPT_PAUSE_MS));
            return;
        }
        // SAFETY: the kernel just opened this descriptor for us, nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        self.accept(at);
        if self.fronts.len() >= MAX_FRONT_ENDS {
            tracing::warn!("NBD client turned away: {MAX_FRONT_ENDS} connections are the limit");
            return;
        }
        // A Unix socket has no such option.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
        let give_up = self.now.plus_ms(HANDSHAKE_MS);
        let client = NbdConnection::accepted(fd, self.config.exports.clone(), self.config.index, give_up);
        self.add_front(Box::new(client));
    }
}
