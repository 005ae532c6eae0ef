//! A block device of the kernel: the queue of a ublk device on the ring.
//!
//! Each tag is in one of these places: in the ring, where its command ends when there is a request; among those that
//! arrived and wait for a buffer; in the core; among the commands that the end of the turn submits. Its request's data moves by a
//! system call between the queue's file and a buffer of the pool that is as long as the request, so that a tag without a
//! request costs no memory.
//!
//! A tag whose command comes back with an error is not served any more: the device was stopped. The front end is over when
//! this is true of all tags.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd};

use zea_core::io::{BufId, IoError, Op, Payload, ReqId, Request as CoreRequest, Time};
use zea_ublk::{ABORTED, Command, Operation, Queue, Request, commit, data_offset, fetch};
use zea_wire::ids::VolumeNr;

use super::{FrontEnd, Step};
use crate::ResourceId;
use crate::pool::{Buf, Pool, Purpose};
use crate::ring::Ring;
use crate::token::{FrontOp, Token};

const SECTOR_BYTES: u32 = 512;

/// A request in the core.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    request: Request,
    buf: Option<Buf>,
}

/// One device.
#[derive(Debug)]
pub(crate) struct UblkDevice {
    queue: Queue,
    resource: ResourceId,
    volume: VolumeNr,
    /// By tag: what the core has.
    requests: Vec<Option<UnderWay>>,
    /// Tags with a request that nobody looked at.
    arrived: VecDeque<u16>,
    /// What the end of the turn submits.
    commands: Vec<(u16, Command)>,
    /// Tags in the ring.
    in_ring: usize,
    /// Requests are refused.
    closing: bool,
}

impl UblkDevice {
    /// Serves the queue of a device that is not started yet, or is taken over.
    pub(crate) fn new(queue: Queue, resource: ResourceId, volume: VolumeNr) -> UblkDevice {
        let depth = queue.depth();
        UblkDevice {
            resource,
            volume,
            requests: vec![None; usize::from(depth)],
            arrived: VecDeque::with_capacity(depth.into()),
            commands: (0..depth).map(|tag| (tag, fetch(tag))).collect(),
            in_ring: 0,
            closing: false,
            queue,
        }
    }

    /// Answers a request: with the bytes that it moved, or an errno.
    fn commit(&mut self, tag: u16, result: Result<u32, i32>) {
        let result = result.map_or_else(|errno| -errno, |bytes| bytes as i32);
        self.commands.push((tag, commit(tag, result)));
    }

    /// Gives a request its buffer, and a write its data. `None`: no buffer is free.
    fn begin(&mut self, pool: &mut Pool, tag: u16, request: Request) -> Option<Result<CoreRequest, i32>> {
        let Some(len) = request.sectors.checked_mul(SECTOR_BYTES) else {
            return Some(Err(libc::EINVAL));
        };
        let op = match request.op {
            Operation::Read => Op::Read,
            Operation::Write => Op::Write,
            Operation::Flush => Op::Flush,
            Operation::Discard => Op::Discard,
            Operation::WriteZeroes => Op::WriteZeroes { unmap: !request.no_unmap },
            Operation::Unknown(_) => return Some(Err(libc::EOPNOTSUPP)),
        };
        let mut buf = None;
        if matches!(op, Op::Read | Op::Write) {
            if !(1..=Pool::max_len()).contains(&len) {
                return Some(Err(libc::EINVAL));
            }
            buf = Some(pool.alloc(len, Purpose::Request)?);
        }
        if let (Op::Write, Some(buf)) = (op, buf)
            && let Err(error) = pool.read_file(buf, self.queue.as_fd(), data_offset(tag), len)
        {
            // A device that was stopped meanwhile.
            tracing::debug!("the data of a write cannot be had: {error}");
            pool.release(buf);
            return Some(Err(libc::EIO));
        }
        self.requests[usize::from(tag)] = Some(UnderWay { request, buf });
        let flush = op == Op::Flush;
        Some(Ok(CoreRequest {
            id: ReqId(tag.into()),
            volume: self.volume,
            op,
            sector: if flush { 0 } else { request.sector },
            len: if flush { 0 } else { len },
            payload: buf.map(|buf| Payload { buf: BufId(buf.0), offset: 0, len }),
            fua: request.fua,
        }))
    }
}

impl FrontEnd for UblkDevice {
    fn completed(&mut self, _pool: &mut Pool, op: FrontOp, result: i32) {
        let FrontOp::Tag(tag) = op else {
            panic!("a block device has no {op:?} in the ring");
        };
        self.in_ring -= 1;
        match result {
            0 => self.arrived.push_back(tag),
            ABORTED => {}
            error => {
                let error = std::io::Error::from_raw_os_error(-error);
                tracing::warn!(device = self.queue.device(), "tag {tag} is not served any more: {error}");
            }
        }
    }

    fn next(&mut self, pool: &mut Pool) -> Step {
        while let Some(&tag) = self.arrived.front() {
            let request = self.queue.request(tag);
            let begun = if self.closing { Some(Err(libc::EIO)) } else { self.begin(pool, tag, request) };
            let Some(begun) = begun else {
                return Step::NeedBuffer;
            };
            self.arrived.pop_front();
            match begun {
                Ok(request) => return Step::Request(self.resource, request),
                Err(errno) => self.commit(tag, Err(errno)),
            }
        }
        Step::Wait
    }

    fn answer(&mut self, pool: &mut Pool, local: u64, result: Result<(), IoError>) {
        let tag = local as u16;
        let under_way = self.requests[usize::from(tag)].take().expect("each request is answered once");
        let UnderWay { request, buf } = under_way;
        let len = request.sectors.wrapping_mul(SECTOR_BYTES);
        let mut result = result.map(|()| len).map_err(errno);
        if let (Operation::Read, Some(buf), Ok(_)) = (request.op, buf, result)
            && let Err(error) = pool.write_file(buf, self.queue.as_fd(), data_offset(tag), len)
        {
            tracing::debug!("the data of a read is not taken: {error}");
            result = Err(libc::EIO);
        }
        if let Some(buf) = buf {
            pool.release(buf);
        }
        self.commit(tag, result);
    }

    fn submit(&mut self, ring: &mut Ring<Token>, _pool: &Pool, slot: u32) {
        self.in_ring += self.commands.len();
        for (tag, command) in self.commands.drain(..) {
            push(ring, &self.queue, command, Token::Front { slot, op: FrontOp::Tag(tag) });
        }
    }

    fn give_up_at(&self) -> Option<Time> {
        None
    }

    /// From here on its users get errors; what ends it is that the device is stopped.
    fn close(&mut self) {
        self.closing = true;
    }

    fn resource(&self) -> Option<ResourceId> {
        Some(self.resource)
    }

    fn device_tags(&self) -> usize {
        self.requests.len()
    }

    fn is_over(&self) -> bool {
        let in_core = || self.requests.iter().any(Option::is_some);
        self.in_ring == 0 && self.commands.is_empty() && self.arrived.is_empty() && !in_core()
    }

    fn bury(self: Box<Self>, _pool: &mut Pool) {
        assert!(self.is_over(), "a block device with requests under way was buried");
    }
}

#[allow(unsafe_code)]
fn push(ring: &mut Ring<Token>, queue: &Queue, command: Command, token: Token) {
    let fd = io_uring::types::Fd(queue.as_fd().as_raw_fd());
    let entry = io_uring::opcode::UringCmd16::new(fd, command.op).cmd(command.bytes).build();
    // SAFETY: no memory is named, and the queue stays open until its front end is over, which it is not before this ends.
    unsafe { ring.push(entry, token) };
}

fn errno(error: IoError) -> i32 {
    match error {
        IoError::NoSpace => libc::ENOSPC,
        IoError::Invalid => libc::EINVAL,
        IoError::Busy => libc::ENOMEM,
        IoError::Io | IoError::NotPrimary | IoError::NoVolume => libc::EIO,
    }
}

#[cfg(test)]
mod tests;
