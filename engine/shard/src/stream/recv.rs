//! The receive side: a staging buffer for small things, and the rest of a large payload straight into its pool buffer.
//!
//! One receive names up to two targets, so that finishing a payload does not cost a receive of its own: first what is
//! missing of the payload, then the staging buffer for what follows it.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::opcode;
use io_uring::types::Fd;

use super::Moved;
use crate::pool::{Buf, Pool};
use crate::ring::Ring;
use crate::token::Token;

/// Behind a payload at least this long, only [`BEHIND_LARGE`] bytes are staged: more would be the next payload, copied.
const LARGE: u32 = 64 << 10;
/// Room for the next packet's prefix.
const BEHIND_LARGE: usize = 4 << 10;

/// What is missing of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) buf: Buf,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// What the kernel reads while a receive is under way. Boxed: it must not move.
struct Scatter {
    msg: libc::msghdr,
    iov: [libc::iovec; 2],
}

/// The receiver of one socket.
pub(crate) struct Receiver {
    staging: Box<[u8]>,
    head: usize,
    tail: usize,
    /// Payload bytes that the receive under way takes first.
    direct: Option<u32>,
    scatter: Box<Scatter>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("unread", &(self.tail - self.head))
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// A receiver with a staging buffer of `staging_bytes`. Memory is only used as far as bytes arrive.
    pub(crate) fn new(staging_bytes: usize) -> Receiver {
        Receiver::with_bytes(staging_bytes, &[])
    }

    /// A receiver that has bytes already.
    pub(crate) fn with_bytes(staging_bytes: usize, bytes: &[u8]) -> Receiver {
        let mut staging = vec![0; staging_bytes.max(bytes.len())].into_boxed_slice();
        staging[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: msghdr and iovec are plain C structs for which all-zero is a value.
        let scatter = Box::new(unsafe { std::mem::zeroed::<Scatter>() });
        Receiver { staging, head: 0, tail: bytes.len(), direct: None, scatter }
    }

    /// What arrived and was not consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        assert!(!self.in_flight(), "the staging buffer belongs to the kernel");
        &self.staging[self.head..self.tail]
    }

    /// Takes bytes from the head.
    pub(crate) fn consume(&mut self, len: usize) {
        assert!(len <= self.tail - self.head, "more consumed than there was");
        self.head += len;
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        }
    }

    /// A receive is in the ring.
    pub(crate) fn in_flight(&self) -> bool {
        self.direct.is_some()
    }

    /// Moves up to `target.len` unread bytes into a pool buffer. Returns how many.
    pub(crate) fn copy_to(&mut self, pool: &mut Pool, target: Target) -> u32 {
        let len = self.unread().len().min(target.len as usize);
        pool.fill(target.buf, target.offset, &self.staging[self.head..self.head + len]);
        self.consume(len);
        len as u32
    }

    /// Starts a receive: first into `target`, then into the staging buffer.
    ///
    /// # Panics
    /// Where a receive is under way, or unread bytes stand in front of the target's or fill the staging buffer.
    pub(crate) fn submit(
        &mut self,
        ring: &mut Ring<Token>,
        pool: &Pool,
        fd: BorrowedFd<'_>,
        target: Option<Target>,
        token: Token,
    ) {
        assert!(!self.in_flight(), "two receives on one socket");
        self.staging.copy_within(self.head..self.tail, 0);
        self.tail -= self.head;
        self.head = 0;
        let mut room = &mut self.staging[self.tail..];
        assert!(!room.is_empty(), "the staging buffer is full of what nobody consumes");
        let iov = &mut self.scatter.iov;
        let mut count = 0;
        if let Some(target) = target {
            assert!(self.tail == 0 && target.len > 0, "staged bytes come before the target's");
            let to = pool.region(target.buf, target.offset, target.len);
            iov[0] = libc::iovec { iov_base: to.ptr.cast(), iov_len: to.len as usize };
            count = 1;
            if target.len >= LARGE {
                let behind = room.len().min(BEHIND_LARGE);
                room = &mut room[..behind];
            }
        }
        iov[count] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        self.scatter.msg.msg_iov = iov.as_mut_ptr();
        self.scatter.msg.msg_iovlen = count + 1;
        let entry = opcode::RecvMsg::new(Fd(fd.as_raw_fd()), &raw mut self.scatter.msg).build();
        // SAFETY: staging buffer, header and vector are on the heap and not touched before `complete`; the owner keeps
        // them, the target's reference and the socket until the receive is over.
        unsafe { ring.push(entry, token) };
        self.direct = Some(target.map_or(0, |t| t.len));
    }

    /// The receive ended: how many bytes of the target arrived, and what happened. `None`: try again.
    pub(crate) fn complete(&mut self, result: i32) -> Option<(u32, Moved)> {
        let wanted = self.direct.take().expect("a receive that was not under way ended");
        let moved = Moved::from_result(result)?;
        let Moved::Bytes(bytes) = moved else {
            return Some((0, moved));
        };
        let direct = bytes.min(wanted as usize);
        self.tail += bytes - direct;
        Some((direct as u32, moved))
    }

    /// Forgets what is unread.
    pub(crate) fn clear(&mut self) {
        assert!(!self.in_flight(), "the staging buffer belongs to the kernel");
        self.head = 0;
        self.tail = 0;
    }
}
