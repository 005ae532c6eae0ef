//! One io_uring for one floor process: a few sockets, one disk, one system call a turn.
//!
//! The ring owns every buffer the kernel is given, so that safe code can never free or touch one
//! while an operation on it is in flight. Sockets and the disk are registered files; the disk's
//! blocks are one registered buffer.
#![allow(unsafe_code, reason = "io_uring operations carry raw addresses of their buffers")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::{CancelBuilder, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::wire::{BLOCK_BYTES, MAX_SLOTS};

/// Room for what a full set of slots may have sent, and one message more.
const RECEIVE_BYTES: usize = (MAX_SLOTS + 1) * (BLOCK_BYTES + 64);
/// Every slot may have one disk operation, and each of two streams a send and a receive.
const RING_ENTRIES: u32 = (MAX_SLOTS * 2) as u32;

/// What a turn brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// More bytes of this stream can be read.
    Received(usize),
    /// The other end of this stream has closed it.
    Closed(usize),
    /// The disk operation of this slot is done.
    DiskDone(usize),
}

#[derive(Clone, Copy)]
enum Tag {
    Send = 1,
    Receive = 2,
    Write = 3,
    Sync = 4,
}

/// A block, placed as `O_DIRECT` wants it.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Block([u8; BLOCK_BYTES]);

struct Stream {
    _socket: OwnedFd,
    received: Box<[u8]>,
    start: usize,
    end: usize,
    receiving: bool,
    closed: bool,
    sending: Vec<u8>,
    is_sending: bool,
    queued: Vec<u8>,
}

/// The ring with all that it works on. See the module's text for who owns what.
pub(super) struct TurnRing {
    ring: IoUring,
    streams: Vec<Stream>,
    blocks: Vec<Block>,
    disk_busy: [bool; MAX_SLOTS],
    disk_queue: Vec<squeue::Entry>,
    in_flight: usize,
    _disk: File,
}

impl TurnRing {
    /// Sets up the ring; `streams[0]` is stream 0.
    pub(super) fn new(streams: Vec<OwnedFd>, disk: File) -> io::Result<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(RING_ENTRIES)?;
        let mut files: Vec<_> = streams.iter().map(AsRawFd::as_raw_fd).collect();
        files.push(disk.as_raw_fd());
        ring.submitter().register_files(&files)?;

        let mut blocks = vec![Block([0; BLOCK_BYTES]); MAX_SLOTS];
        let whole = libc::iovec { iov_base: blocks.as_mut_ptr().cast(), iov_len: size_of_val(blocks.as_slice()) };
        // SAFETY: `blocks` is never resized and lives in `self` beside the ring; `drop` waits
        // for what is in flight before either goes.
        unsafe { ring.submitter().register_buffers(&[whole])? };
        let streams = streams.into_iter().map(Stream::new).collect();
        Ok(Self {
            ring,
            streams,
            blocks,
            disk_busy: [false; MAX_SLOTS],
            disk_queue: Vec::with_capacity(MAX_SLOTS),
            in_flight: 0,
            _disk: disk,
        })
    }

    /// The bytes of `stream` that have come and are not yet consumed.
    pub(super) fn received(&self, stream: usize) -> &[u8] {
        let stream = &self.streams[stream];
        &stream.received[stream.start..stream.end]
    }

    /// Forgets the first `bytes` of what was received.
    pub(super) fn consume(&mut self, stream: usize, bytes: usize) {
        assert!(bytes <= self.received(stream).len());
        self.streams[stream].start += bytes;
    }

    /// Queues `bytes` to be sent on `stream` in the next turn.
    pub(super) fn send(&mut self, stream: usize, bytes: &[u8]) {
        self.streams[stream].queued.extend_from_slice(bytes);
    }

    /// Copies the received block that starts `skip` bytes into `stream` to `slot`'s disk block.
    pub(super) fn load_block(&mut self, slot: usize, stream: usize, skip: usize) {
        assert!(!self.disk_busy[slot], "slot {slot} is busy on the disk");
        let stream = &self.streams[stream];
        let from = &stream.received[stream.start..stream.end][skip..skip + BLOCK_BYTES];
        self.blocks[slot].0.copy_from_slice(from);
    }

    /// Queues `slot`'s block to be sent on `stream` in the next turn.
    pub(super) fn send_block(&mut self, stream: usize, slot: usize) {
        let block = &self.blocks[slot].0;
        self.streams[stream].queued.extend_from_slice(block);
    }

    /// Queues the write of `slot`'s block at byte `offset`.
    pub(super) fn write_block(&mut self, slot: usize, offset: u64) {
        self.claim_disk(slot);
        let block = &self.blocks[slot].0;
        let write = opcode::WriteFixed::new(self.disk(), block.as_ptr(), BLOCK_BYTES as u32, 0);
        let write = write.offset(offset).build();
        self.disk_queue.push(write.user_data(user_data(Tag::Write, slot)));
    }

    /// Queues an `fdatasync` of the disk for `slot`.
    pub(super) fn sync_disk(&mut self, slot: usize) {
        self.claim_disk(slot);
        let sync = opcode::Fsync::new(self.disk()).flags(FsyncFlags::DATASYNC);
        self.disk_queue.push(sync.build().user_data(user_data(Tag::Sync, slot)));
    }

    /// Submits all that is queued, in one system call that also waits for at least one
    /// completion; then adds what has completed to `events`.
    ///
    /// Sends go first: the way over the network is the longer of a write's two legs.
    ///
    /// # Errors
    /// An operation that failed, or did only part of its work.
    pub(super) fn turn(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        for index in 0..self.streams.len() {
            if let Some(send) = self.streams[index].next_send(index) {
                self.push(&send);
            }
        }
        for entry in std::mem::take(&mut self.disk_queue) {
            self.push(&entry);
        }
        for index in 0..self.streams.len() {
            if let Some(receive) = self.streams[index].next_receive(index) {
                self.push(&receive);
            }
        }
        self.ring.submit_and_wait(1)?;
        let completions: Vec<_> = self.ring.completion().collect();
        self.in_flight -= completions.len();
        for completion in completions {
            events.extend(self.complete(completion.user_data(), completion.result())?);
        }
        Ok(())
    }

    fn complete(&mut self, user_data: u64, result: i32) -> io::Result<Option<Event>> {
        let index = (user_data & u64::from(u32::MAX)) as usize;
        let done = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        match user_data >> 32 {
            tag if tag == Tag::Send as u64 => {
                let stream = &mut self.streams[index];
                stream.is_sending = false;
                // The kernel repeats a short send by itself (MSG_WAITALL), so a short count here
                // means that the connection broke.
                whole(done?, stream.sending.len())?;
                Ok(None)
            }
            tag if tag == Tag::Receive as u64 => {
                let stream = &mut self.streams[index];
                stream.receiving = false;
                let bytes = done?;
                stream.closed = bytes == 0;
                stream.end += bytes;
                Ok(Some(if bytes == 0 { Event::Closed(index) } else { Event::Received(index) }))
            }
            tag => {
                self.disk_busy[index] = false;
                let expected = if tag == Tag::Write as u64 { BLOCK_BYTES } else { 0 };
                whole(done?, expected)?;
                Ok(Some(Event::DiskDone(index)))
            }
        }
    }

    fn claim_disk(&mut self, slot: usize) {
        assert!(!std::mem::replace(&mut self.disk_busy[slot], true), "slot {slot} is busy on the disk");
    }

    /// The disk is the registered file behind the streams.
    fn disk(&self) -> Fixed {
        Fixed(self.streams.len() as u32)
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: every buffer named by an entry is owned by `self`, is neither moved nor changed
        // while its flag (`is_sending`, `receiving`, `disk_busy`) is set, and outlives the
        // operation because `drop` waits for it.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the ring has an entry for every operation");
        self.in_flight += 1;
    }
}

impl Drop for TurnRing {
    /// Waits until the kernel has let go of every buffer.
    fn drop(&mut self) {
        // The outcomes do not matter: what could not be cancelled is waited for.
        drop(self.ring.submit());
        let submitter = self.ring.submitter();
        drop(submitter.register_sync_cancel(None, CancelBuilder::any()));
        while self.in_flight > 0 {
            if self.ring.submit_and_wait(1).is_err() {
                std::process::abort();
            }
            self.in_flight -= self.ring.completion().count();
        }
    }
}

impl Stream {
    fn new(socket: OwnedFd) -> Self {
        Self {
            _socket: socket,
            received: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            receiving: false,
            closed: false,
            sending: Vec::new(),
            is_sending: false,
            queued: Vec::new(),
        }
    }

    fn next_send(&mut self, index: usize) -> Option<squeue::Entry> {
        if self.is_sending || self.queued.is_empty() {
            return None;
        }
        self.is_sending = true;
        self.sending.clear();
        std::mem::swap(&mut self.sending, &mut self.queued);
        let (address, bytes) = (self.sending.as_ptr(), self.sending.len() as u32);
        let send = opcode::Send::new(Fixed(index as u32), address, bytes);
        let send = send.flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL).build();
        Some(send.user_data(user_data(Tag::Send, index)))
    }

    fn next_receive(&mut self, index: usize) -> Option<squeue::Entry> {
        if self.receiving || self.closed {
            return None;
        }
        self.receiving = true;
        self.received.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = &mut self.received[self.end..];
        assert!(!room.is_empty(), "a stream has room for every slot");
        let receive = opcode::Recv::new(Fixed(index as u32), room.as_mut_ptr(), room.len() as u32).build();
        Some(receive.user_data(user_data(Tag::Receive, index)))
    }
}

fn user_data(tag: Tag, index: usize) -> u64 {
    (tag as u64) << 32 | index as u64
}

fn whole(done: usize, expected: usize) -> io::Result<()> {
    if done == expected {
        return Ok(());
    }
    let text = format!("only {done} of {expected} bytes done");
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
}
