//! The transmission phase of a connection: requests in, pieces to the core, answers out.
//!
//! A request takes all buffers that it needs at once or none: two connections that each hold half of what they need would
//! wait for each other for ever. Reads and writes go to the core in pieces of at most 1 MiB (less where a peer takes less), none of which
//! crosses a multiple of that.

use slab::Slab;
use zea_core::io::{BufId, IoError, Op, Payload, ReqId, Request};
use zea_core::limits::{MAX_BIO_BYTES, MAX_DISCARD_BYTES};
use zea_nbd::{
    ERROR_LEN_MAX, Errno, Negotiated, Op as NbdOp, Parsed, Piece, Pieces, REPLY_LEN_MAX, ReplyStyle,
    Request as NbdRequest, RequestParser, pieces,
};
use zea_wire::ids::VolumeNr;

use crate::limits::{NBD_MAX_PAYLOAD, NBD_MAX_UNSENT_BYTES, NBD_QUEUE_DEPTH};
use crate::pool::{Buf, Pool, Purpose};
use crate::stream::{Receiver, SendQueue, Target};

/// Buffers of the longest request: one more than its length takes where it is not aligned.
const MAX_BUFFERS: usize = (NBD_MAX_PAYLOAD / MAX_BIO_BYTES) as usize + 1;
const SECTOR_BYTES: u64 = 512;
/// A request id is `key << PIECE_BITS | piece`.
const PIECE_BITS: u32 = 16;

/// What the connection has for the core.
pub(super) enum Next {
    Request(Request),
    NeedBuffer,
    Wait,
    /// The client leaves, or broke the protocol.
    End,
}

/// A request that was not answered.
#[derive(Debug)]
struct Pending {
    request: NbdRequest,
    /// Pieces that the core has or will get.
    left: u32,
    error: Option<IoError>,
    /// Buffer and length of each piece of a read or write; taken when it is done with.
    buffers: [Option<(Buf, u32)>; MAX_BUFFERS],
}

/// The request whose pieces are being handed out.
#[derive(Debug)]
struct Active {
    key: usize,
    pieces: Pieces,
    current: Option<Piece>,
    index: u16,
    /// Payload bytes of the current piece that arrived.
    filled: u32,
}

#[derive(Debug)]
pub(super) struct Requests {
    parser: RequestParser,
    style: ReplyStyle,
    volume: VolumeNr,
    /// Bytes of the longest piece of a read or write.
    piece: u32,
    pending: Slab<Pending>,
    active: Option<Active>,
    /// Waits for buffers.
    stalled: Option<NbdRequest>,
}

impl Requests {
    pub(super) fn new(negotiated: &Negotiated, volume: VolumeNr, piece: u32) -> Requests {
        Requests {
            parser: negotiated.parser(),
            style: negotiated.style,
            volume,
            piece,
            pending: Slab::with_capacity(NBD_QUEUE_DEPTH),
            active: None,
            stalled: None,
        }
    }

    /// Requests that were not answered.
    pub(super) fn under_way(&self) -> usize {
        // A write whose payload never came is nobody's work any more once nothing of it is in the core.
        let unfinished = self.active.as_ref().filter(|a| self.pending[a.key].left == self.still_to_come(a));
        self.pending.len() - usize::from(unfinished.is_some())
    }

    /// Pieces of the active request that the core did not get.
    fn still_to_come(&self, active: &Active) -> u32 {
        active.pieces.len() as u32 + u32::from(active.current.is_some())
    }

    /// More requests can be read.
    pub(super) fn wants_input(&self, queue: &SendQueue) -> bool {
        self.stalled.is_none() && (self.active.is_some() || self.has_room(queue))
    }

    fn has_room(&self, queue: &SendQueue) -> bool {
        self.pending.len() < NBD_QUEUE_DEPTH && queue.queued_bytes() < NBD_MAX_UNSENT_BYTES
    }

    /// What is missing of a write's payload.
    pub(super) fn target(&self) -> Option<Target> {
        let active = self.active.as_ref()?;
        let piece = active.current?;
        let (buf, _) = self.pending[active.key].buffers[usize::from(active.index)]?;
        Some(Target { buf, offset: active.filled, len: piece.len - active.filled })
    }

    /// Payload arrived in place.
    pub(super) fn received(&mut self, direct: u32) {
        if let (Some(active), true) = (&mut self.active, direct > 0) {
            active.filled += direct;
            self.parser.payload_taken(direct);
        }
    }

    pub(super) fn next(&mut self, pool: &mut Pool, receiver: &mut Receiver, queue: &mut SendQueue) -> Next {
        loop {
            if self.active.is_some() {
                return self.next_piece(pool, receiver);
            }
            if let Some(request) = self.stalled.take() {
                if !self.begin(pool, queue, request) {
                    self.stalled = Some(request);
                    return Next::NeedBuffer;
                }
                continue;
            }
            if !self.has_room(queue) {
                return Next::Wait;
            }
            let (consumed, parsed) = match self.parser.parse(receiver.unread()) {
                Ok(parsed) => parsed,
                Err(e) => {
                    tracing::info!("NBD client dropped: {e}");
                    return Next::End;
                }
            };
            receiver.consume(consumed);
            match parsed {
                Parsed::NeedMore => return Next::Wait,
                Parsed::Disconnect => return Next::End,
                Parsed::Refused(r) => self.reply_error(queue, r.cookie, r.errno, r.reason),
                Parsed::Request(request) => self.stalled = Some(request),
            }
        }
    }

    /// Takes a request in. `false`: its buffers are not to be had now.
    fn begin(&mut self, pool: &mut Pool, queue: &mut SendQueue, request: NbdRequest) -> bool {
        let mut buffers = [None; MAX_BUFFERS];
        let cut = match request.op {
            // Nothing is fetched ahead: the hint is taken and dropped.
            NbdOp::Cache => {
                self.reply(queue, |style, out| style.encode_done(out, request.cookie));
                return true;
            }
            // One piece without a range.
            NbdOp::Flush => pieces(0, 1, 1),
            NbdOp::Trim | NbdOp::WriteZeroes => pieces(request.offset, request.len, MAX_DISCARD_BYTES),
            NbdOp::Read | NbdOp::Write => {
                let cut = pieces(request.offset, request.len, self.piece);
                assert!(cut.len() <= MAX_BUFFERS, "the parser lets {} bytes through", request.len);
                for (slot, piece) in buffers.iter_mut().zip(cut.clone()) {
                    *slot = pool.alloc(piece.len, Purpose::Request).map(|buf| (buf, piece.len));
                    if slot.is_none() {
                        for (buf, _) in buffers.iter().flatten() {
                            pool.put_back(*buf);
                        }
                        return false;
                    }
                }
                cut
            }
        };
        let left = cut.len() as u32;
        let key = self.pending.insert(Pending { request, left, error: None, buffers });
        self.active = Some(Active { key, pieces: cut, current: None, index: 0, filled: 0 });
        true
    }

    /// The active request's next piece.
    fn next_piece(&mut self, pool: &mut Pool, receiver: &mut Receiver) -> Next {
        let active = self.active.as_mut().expect("a request is active");
        if active.current.is_none() {
            active.current = active.pieces.next();
            active.filled = 0;
        }
        let piece = active.current.expect("a request has pieces, and ends with its last one");
        let pending = &self.pending[active.key];
        let request = pending.request;
        let buffer = pending.buffers.get(usize::from(active.index)).copied().flatten();
        if request.op == NbdOp::Write {
            let (buf, _) = buffer.expect("a write has all its buffers");
            if active.filled < piece.len {
                let target = Target { buf, offset: active.filled, len: piece.len - active.filled };
                let copied = receiver.copy_to(pool, target);
                active.filled += copied;
                self.parser.payload_taken(copied);
            }
            if active.filled < piece.len {
                return Next::Wait;
            }
        }
        let local = (active.key as u64) << PIECE_BITS | u64::from(active.index);
        active.current = None;
        active.index += 1;
        if active.pieces.len() == 0 {
            // Its answer may come before the next call.
            self.active = None;
        }
        let flush = request.op == NbdOp::Flush;
        Next::Request(Request {
            id: ReqId(local),
            volume: self.volume,
            op: match request.op {
                NbdOp::Read => Op::Read,
                NbdOp::Write => Op::Write,
                NbdOp::Trim => Op::Discard,
                NbdOp::WriteZeroes => Op::WriteZeroes { unmap: !request.flags.no_hole },
                NbdOp::Flush | NbdOp::Cache => Op::Flush,
            },
            sector: if flush { 0 } else { piece.offset / SECTOR_BYTES },
            len: if flush { 0 } else { piece.len },
            payload: buffer.map(|(buf, len)| Payload { buf: BufId(buf.0), offset: 0, len }),
            fua: request.flags.fua,
        })
    }

    /// The core carried a piece out.
    pub(super) fn answer(&mut self, pool: &mut Pool, queue: &mut SendQueue, local: u64, result: Result<(), IoError>) {
        let key = (local >> PIECE_BITS) as usize;
        let index = (local & ((1 << PIECE_BITS) - 1)) as usize;
        let pending = &mut self.pending[key];
        let NbdRequest { cookie, op, offset, len: whole, flags } = pending.request;
        pending.left -= 1;
        if let Err(e) = result {
            pending.error.get_or_insert(e);
        }
        let cut = op == NbdOp::Read && pieces(offset, whole, self.piece).len() > 1;
        let in_parts = self.style == ReplyStyle::Structured && !flags.df && cut;
        if op == NbdOp::Write || in_parts {
            let (buf, len) = pending.buffers[index].take().expect("each piece is answered once");
            if op == NbdOp::Read && result.is_ok() {
                let at = piece_offset(offset, index, self.piece);
                self.reply(queue, |style, out| style.encode_read_part(out, cookie, at, len));
                queue.push_payload(pool, buf, 0, len);
            }
            pool.release(buf);
        }
        if self.pending[key].left == 0 {
            let pending = self.pending.remove(key);
            self.finish(pool, queue, pending);
        }
    }

    fn finish(&mut self, pool: &mut Pool, queue: &mut SendQueue, mut pending: Pending) {
        let NbdRequest { cookie, op, offset, len, .. } = pending.request;
        let has_data = pending.buffers.iter().any(Option::is_some);
        match pending.error {
            Some(e) => self.reply_error(queue, cookie, errno(e), &e.to_string()),
            None if op == NbdOp::Read && has_data => {
                self.reply(queue, |style, out| style.encode_read(out, cookie, offset, len));
                for (buf, len) in pending.buffers.iter().flatten() {
                    queue.push_payload(pool, *buf, 0, *len);
                }
            }
            None => self.reply(queue, |style, out| style.encode_done(out, cookie)),
        }
        release(pool, &mut pending.buffers);
    }

    fn reply(&self, queue: &mut SendQueue, encode: impl FnOnce(ReplyStyle, &mut [u8]) -> usize) {
        let mut bytes = [0; REPLY_LEN_MAX];
        let len = encode(self.style, &mut bytes);
        queue.push_bytes(|out| out.extend_from_slice(&bytes[..len]));
    }

    fn reply_error(&self, queue: &mut SendQueue, cookie: u64, errno: Errno, reason: &str) {
        let mut bytes = [0; ERROR_LEN_MAX];
        let len = self.style.encode_error(&mut bytes, cookie, errno, reason);
        queue.push_bytes(|out| out.extend_from_slice(&bytes[..len]));
    }

    /// Gives back what an unfinished write holds.
    ///
    /// # Panics
    /// While pieces are in the core.
    pub(super) fn abandon(&mut self, pool: &mut Pool) {
        assert_eq!(self.under_way(), 0, "requests are under way");
        for mut pending in self.pending.drain() {
            release(pool, &mut pending.buffers);
        }
    }
}

/// Where piece number `index` of a request begins.
fn piece_offset(offset: u64, index: usize, piece: u32) -> u64 {
    let max = u64::from(piece);
    if index == 0 { offset } else { (offset / max + index as u64) * max }
}

fn release(pool: &mut Pool, buffers: &mut [Option<(Buf, u32)>]) {
    for (buf, _) in buffers.iter_mut().filter_map(Option::take) {
        pool.release(buf);
    }
}

fn errno(error: IoError) -> Errno {
    match error {
        IoError::Io => Errno::Io,
        IoError::NotPrimary => Errno::Perm,
        IoError::NoSpace => Errno::NoSpc,
        IoError::Invalid => Errno::Inval,
        IoError::NoVolume => Errno::Shutdown,
        IoError::Busy => Errno::NoMem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{ClassConfig, PoolConfig};

    /// Or it would try again for ever, and nothing else would be done that gives a buffer back.
    #[test]
    fn nbd_a_request_that_gets_only_some_of_its_buffers_waits_for_others() {
        let classes = vec![ClassConfig { bytes: 4096, count: 8 }, ClassConfig { bytes: 1 << 20, count: 8 }];
        let mut pool = Pool::new(&PoolConfig { classes }).expect("a pool");
        let export = zea_nbd::ExportInfo {
            name: "r0/0".into(),
            size_bytes: 1 << 30,
            read_only: false,
            block_min: 512,
            block_preferred: 4096,
            block_max: 1 << 20,
            can_multi_conn: true,
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: false,
            cache: true,
            rotational: false,
        };
        let negotiated = Negotiated { export, style: ReplyStyle::Simple };
        let mut requests = Requests::new(&negotiated, VolumeNr(0), 32 << 10);
        let mut queue = SendQueue::new();
        let taken = pool.alloc(1 << 20, Purpose::Request).expect("of four");
        let read = NbdRequest { cookie: 1, op: NbdOp::Read, flags: Default::default(), offset: 0, len: 128 << 10 };
        let freed = pool.freed();
        assert!(!requests.begin(&mut pool, &mut queue, read), "there are three buffers for four pieces");
        assert_eq!((pool.freed(), pool.in_use()), (freed, 1), "nothing has become free");
        pool.release(taken);
        assert!(pool.freed() != freed && requests.begin(&mut pool, &mut queue, read));
        assert_eq!(pool.in_use(), 4);
    }
}
