//! The send side: what is queued goes out in one gathered `sendmsg`, payload straight from the pool.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::opcode;
use io_uring::types::Fd;

use super::Moved;
use crate::pool::{Buf, Pool};
use crate::ring::Ring;
use crate::token::Token;

/// Parts of one `sendmsg`. The kernel takes 1024; fewer keep one turn short.
const MAX_PARTS: usize = 256;
/// A byte slab that grew larger than this is given back when it is empty.
const KEEP_BYTES: usize = 256 << 10;

#[derive(Debug, Clone, Copy)]
enum Part {
    /// Bytes of the batch's slab.
    Bytes { start: usize, end: usize },
    /// Bytes of a pool buffer, with a reference.
    Payload { buf: Buf, offset: u32, len: u32 },
}

impl Part {
    fn len(&self) -> usize {
        match *self {
            Part::Bytes { start, end } => end - start,
            Part::Payload { len, .. } => len as usize,
        }
    }

    fn advance(&mut self, by: usize) {
        match self {
            Part::Bytes { start, .. } => *start += by,
            Part::Payload { offset, len, .. } => {
                *offset += by as u32;
                *len -= by as u32;
            }
        }
    }
}

/// Parts in the order of the stream, and the slab that some of them lie in.
#[derive(Debug, Default)]
struct Batch {
    slab: Vec<u8>,
    parts: VecDeque<Part>,
}

impl Batch {
    fn reset(&mut self) {
        assert!(self.parts.is_empty());
        self.slab.clear();
        if self.slab.capacity() > KEEP_BYTES {
            self.slab = Vec::new();
        }
    }

    fn drop_parts(&mut self, pool: &mut Pool) {
        for part in self.parts.drain(..) {
            if let Part::Payload { buf, .. } = part {
                pool.release(buf);
            }
        }
    }
}

/// What the kernel reads while a send is under way. Boxed: it must not move.
struct Gather {
    msg: libc::msghdr,
    iov: [libc::iovec; MAX_PARTS],
}

/// The queue of one socket.
pub(crate) struct SendQueue {
    /// Collects what comes. Its slab may move.
    filling: Batch,
    /// Is being sent. Its slab stays where it is.
    flying: Batch,
    in_flight: bool,
    /// The socket had no room for the last send: the next one waits for some.
    blocked: bool,
    queued_bytes: u64,
    gather: Box<Gather>,
}

impl std::fmt::Debug for SendQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendQueue")
            .field("queued_bytes", &self.queued_bytes)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl SendQueue {
    pub(crate) fn new() -> SendQueue {
        // SAFETY: msghdr and iovec are plain C structs for which all-zero is a value.
        let gather = Box::new(unsafe { std::mem::zeroed::<Gather>() });
        SendQueue {
            filling: Batch::default(),
            flying: Batch::default(),
            in_flight: false,
            blocked: false,
            queued_bytes: 0,
            gather,
        }
    }

    /// Appends what `encode` writes.
    pub(crate) fn push_bytes(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.filling.slab.len();
        encode(&mut self.filling.slab);
        let end = self.filling.slab.len();
        assert!(end >= start, "an encoder took bytes away");
        self.queued_bytes += (end - start) as u64;
        match self.filling.parts.back_mut() {
            Some(Part::Bytes { end: last, .. }) if *last == start => *last = end,
            _ if end > start => self.filling.parts.push_back(Part::Bytes { start, end }),
            _ => {}
        }
    }

    /// Appends bytes of a pool buffer and takes a reference of its own.
    pub(crate) fn push_payload(&mut self, pool: &mut Pool, buf: Buf, offset: u32, len: u32) {
        if len == 0 {
            return;
        }
        pool.retain(buf);
        self.queued_bytes += u64::from(len);
        self.filling.parts.push_back(Part::Payload { buf, offset, len });
    }

    /// Bytes that the socket has not taken.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// A send is in the ring.
    pub(crate) fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Sends what is queued, unless a send is under way. `unwatched`: nobody waits for the socket to have taken it all, so
    /// that this alone need not end a turn.
    pub(crate) fn submit(
        &mut self,
        ring: &mut Ring<Token>,
        pool: &Pool,
        fd: BorrowedFd<'_>,
        token: Token,
        unwatched: bool,
    ) {
        if self.in_flight {
            return;
        }
        if self.flying.parts.is_empty() {
            if self.filling.parts.is_empty() {
                return;
            }
            self.flying.reset();
            std::mem::swap(&mut self.flying, &mut self.filling);
        }
        let mut count = 0;
        for (slot, part) in self.gather.iov.iter_mut().zip(&self.flying.parts) {
            let (base, len) = match *part {
                Part::Bytes { start, end } => (self.flying.slab[start..end].as_ptr().cast_mut(), end - start),
                Part::Payload { buf, offset, len } => (pool.region(buf, offset, len).ptr, len as usize),
            };
            *slot = libc::iovec { iov_base: base.cast(), iov_len: len };
            count += 1;
        }
        self.gather.msg.msg_iov = self.gather.iov.as_mut_ptr();
        self.gather.msg.msg_iovlen = count;
        let entry = opcode::SendMsg::new(Fd(fd.as_raw_fd()), &raw const self.gather.msg);
        let whole = count == self.flying.parts.len() && self.filling.parts.is_empty();
        // SAFETY: header, vector and slab of the flying batch are on the heap and not touched before `complete`; its
        // payload parts hold references. The owner keeps queue and socket until the send is over.
        unsafe {
            match u16::try_from(self.queued_bytes) {
                // A send that may not block ends at once. To wait for all is to call a part of it a failure.
                Ok(bytes) if unwatched && whole && !self.blocked => {
                    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;
                    ring.push_silent(entry.flags(flags as u32).build(), token, bytes.into());
                }
                _ => drop(ring.push(entry.flags(libc::MSG_NOSIGNAL as u32).build(), token)),
            }
        }
        self.in_flight = true;
    }

    /// The send ended. `None`: it has to be tried again.
    pub(crate) fn complete(&mut self, pool: &mut Pool, result: i32) -> Option<Moved> {
        assert!(self.in_flight, "a send that was not under way ended");
        self.in_flight = false;
        let moved = Moved::from_result(result);
        if let Some(Moved::Bytes(mut left)) = moved {
            self.queued_bytes -= left as u64;
            while left > 0 {
                let part = self.flying.parts.front_mut().expect("no more was sent than queued");
                let taken = left.min(part.len());
                left -= taken;
                part.advance(taken);
                if part.len() == 0
                    && let Some(Part::Payload { buf, .. }) = self.flying.parts.pop_front()
                {
                    pool.release(buf);
                }
            }
        }
        self.blocked = !self.flying.parts.is_empty();
        moved
    }

    /// Forgets what is queued.
    ///
    /// # Panics
    /// While a send is in the ring.
    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        assert!(!self.in_flight, "the queue of a send that is under way");
        self.flying.drop_parts(pool);
        self.filling.drop_parts(pool);
        self.flying.reset();
        self.filling.reset();
        self.queued_bytes = 0;
    }
}
