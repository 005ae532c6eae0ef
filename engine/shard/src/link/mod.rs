//! A link: the two streams to a peer, framed, with their queues and their end.
//!
//! **Life.** `Up` until either side wants an end. The core's own wish ([`Link::drain`]): what is queued is sent within
//! the send time-out, then the peer gets a moment to close, so that a reset does not eat our last words. A loss
//! ([`Link::kill`]): at once. Either way the link is over ([`Link::is_over`]) when no operation of it is in the ring;
//! only then is it buried, and only then may the peer's next link be announced.

use std::os::fd::{AsFd, OwnedFd};

use zea_core::io::{BufId, LinkId, LinkLost, Payload, Time};
use zea_wire::digest::Digest;
use zea_wire::features::Negotiated;
use zea_wire::framer::{Framer, Progress};
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::packet::{Packet, Scope, Stream};

use crate::limits::{CONTROL_STAGING_BYTES, DATA_STAGING_BYTES, LINGER_MS, MAX_SEND_QUEUE_BYTES};
use crate::pool::{Buf, Pool, Purpose};
use crate::ring::Ring;
use crate::stream::{Moved, Receiver, SendQueue, Target};
use crate::token::Token;

/// The sockets of a new link. Both are connected, TCP_NODELAY is set, the first packets are exchanged.
#[derive(Debug)]
pub struct LinkSockets {
    /// The data stream.
    pub data: OwnedFd,
    /// The control stream.
    pub control: OwnedFd,
    /// This node accepted the control stream: the tie-break flag of wire-protocol.md 2.2.
    pub resolve_conflicts: bool,
}

/// Time-outs of a link in milliseconds (wire-protocol.md 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SendTimeouts {
    /// A send on the data stream without progress: `ko-count` times `timeout`.
    pub(crate) data_ms: u64,
    /// The same on the control stream: `timeout`.
    pub(crate) control_ms: u64,
}

/// What is next on a stream.
#[derive(Debug)]
pub(crate) enum Step {
    /// More bytes have to arrive.
    NeedMore,
    /// No buffer is free for a payload.
    NeedBuffer,
    /// A packet; the core gets the reference of its payload.
    Packet { volume: Option<VolumeNr>, packet: Packet, payload: Option<Payload> },
    /// No legal packet.
    Illegal(String),
}

/// A packet whose payload is not complete.
#[derive(Debug)]
struct Incoming {
    packet: Packet,
    volume: Option<VolumeNr>,
    buf: Option<Buf>,
    filled: u32,
    len: u32,
    /// What the peer says the digest of the payload is.
    digest: Option<Digest>,
}

#[derive(Debug)]
struct Half {
    fd: OwnedFd,
    stream: Stream,
    framer: Framer,
    receiver: Receiver,
    queue: SendQueue,
    incoming: Option<Incoming>,
    needs_buffer: bool,
    /// The peer closed it, or it failed.
    ended: bool,
    /// When the send under way began or last moved.
    progress: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Up,
    /// Sends what is queued, drops what arrives.
    Draining {
        give_up: Time,
    },
    /// Everything is sent, the peer is to close.
    Lingering {
        give_up: Time,
    },
    Dead,
}

/// Two streams to a peer.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    /// Slot of the resource.
    pub(crate) resource: usize,
    pub(crate) peer: NodeId,
    slot: u32,
    negotiated: Negotiated,
    timeouts: SendTimeouts,
    phase: Phase,
    data: Half,
    control: Half,
}

impl Half {
    fn new(fd: OwnedFd, stream: Stream, staging_bytes: usize) -> Half {
        Half {
            fd,
            stream,
            framer: Framer::new(stream),
            receiver: Receiver::new(staging_bytes),
            queue: SendQueue::new(),
            incoming: None,
            needs_buffer: false,
            ended: false,
            progress: Time(0),
        }
    }

    fn target(&self) -> Option<Target> {
        let incoming = self.incoming.as_ref()?;
        let buf = incoming.buf?;
        Some(Target { buf, offset: incoming.filled, len: incoming.len - incoming.filled })
    }

    fn next_packet(&mut self, pool: &mut Pool) -> Step {
        if self.incoming.is_none() {
            let (consumed, header, packet, digest_len, payload_len) = match self.framer.next(self.receiver.unread()) {
                Err(e) => return Step::Illegal(e.to_string()),
                Ok(Progress::NeedMore { .. }) => return Step::NeedMore,
                Ok(Progress::Packet { consumed, header, packet, digest_len, payload_len }) => {
                    (consumed, header, packet, digest_len, payload_len)
                }
            };
            let digest = Digest::new(&self.receiver.unread()[consumed - digest_len..consumed]);
            self.receiver.consume(consumed);
            let volume = match packet.scope() {
                Scope::Connection => None,
                Scope::Volume | Scope::Either => header.device_volume(),
            };
            if payload_len == 0 {
                return Step::Packet { volume, packet, payload: None };
            }
            match u32::try_from(payload_len) {
                Ok(len) if len <= Pool::max_len() => {
                    self.incoming = Some(Incoming { packet, volume, buf: None, filled: 0, len, digest });
                }
                _ => {
                    return Step::Illegal(format!("{} with {payload_len} bytes of data", packet.name()));
                }
            }
        }
        self.payload(pool)
    }

    /// Completes the payload from what is staged.
    fn payload(&mut self, pool: &mut Pool) -> Step {
        let incoming = self.incoming.as_mut().expect("a packet with payload");
        if incoming.buf.is_none() {
            incoming.buf = pool.alloc(incoming.len, Purpose::Receive);
            self.needs_buffer = incoming.buf.is_none();
            if self.needs_buffer {
                return Step::NeedBuffer;
            }
        }
        if let Some(target) = self.target().filter(|t| t.len > 0) {
            let copied = self.receiver.copy_to(pool, target);
            if copied < target.len {
                self.incoming.as_mut().expect("still there").filled += copied;
                return Step::NeedMore;
            }
        }
        if let Some(why) = self.wrong_digest(pool) {
            return Step::Illegal(why);
        }
        let Incoming { packet, volume, buf, len, .. } = self.incoming.take().expect("still there");
        let buf = BufId(buf.expect("was allocated").0);
        Step::Packet { volume, packet, payload: Some(Payload { buf, offset: 0, len }) }
    }

    /// Says that the payload is not what the peer sent, by data-integrity-alg.
    fn wrong_digest(&self, pool: &mut Pool) -> Option<String> {
        let alg = self.framer.negotiated().integrity_alg?;
        let Incoming { packet, buf: Some(buf), len, digest, .. } = self.incoming.as_ref()? else { return None };
        let wrong = pool.digest(alg, *buf, 0, *len) != *digest.as_ref()?;
        wrong.then(|| digest_mismatch(packet))
    }

    fn drop_incoming(&mut self, pool: &mut Pool) {
        if let Some(buf) = self.incoming.take().and_then(|incoming| incoming.buf) {
            pool.release(buf);
        }
        self.needs_buffer = false;
        self.receiver.clear();
    }

    fn idle(&self) -> bool {
        !self.receiver.in_flight() && !self.queue.in_flight()
    }

    fn shutdown(&self, how: rustix::net::Shutdown) {
        // Fails where the connection is gone already, which is as good.
        let _ = rustix::net::shutdown(&self.fd, how);
    }
}

impl Link {
    pub(crate) fn new(
        id: LinkId,
        slot: u32,
        resource: usize,
        peer: NodeId,
        sockets: LinkSockets,
        timeouts: SendTimeouts,
    ) -> Link {
        Link {
            id,
            resource,
            peer,
            slot,
            negotiated: Negotiated::INITIAL,
            timeouts,
            phase: Phase::Up,
            data: Half::new(sockets.data, Stream::Data, DATA_STAGING_BYTES),
            control: Half::new(sockets.control, Stream::Control, CONTROL_STAGING_BYTES),
        }
    }

    fn half(&mut self, stream: Stream) -> &mut Half {
        match stream {
            Stream::Data => &mut self.data,
            Stream::Control => &mut self.control,
        }
    }

    fn halves(&mut self) -> [&mut Half; 2] {
        [&mut self.data, &mut self.control]
    }

    /// The core may use it.
    pub(crate) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// From the next packet on, in both directions.
    pub(crate) fn set_negotiated(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
        for half in self.halves() {
            half.framer.set_negotiated(negotiated);
        }
    }

    /// Queues a packet. `Err`: the peer does not take what it asked for.
    pub(crate) fn send(
        &mut self,
        pool: &mut Pool,
        volume: Option<VolumeNr>,
        packet: &Packet,
        payload: Option<Payload>,
    ) -> Result<(), LinkLost> {
        let negotiated = self.negotiated;
        let half = self.half(packet.stream());
        let payload_len = payload.map_or(0, |p| p.len as usize);
        let digest = negotiated.integrity_alg.zip(payload);
        let digest = digest.map(|(alg, p)| pool.digest(alg, Buf(p.buf.0), p.offset, p.len));
        let digest = digest.as_ref().map_or(&[][..], Digest::as_slice);
        half.queue.push_bytes(|out| packet.encode_with_digest(&negotiated, volume, digest, payload_len, out));
        if let Some(payload) = payload {
            half.queue.push_payload(pool, Buf(payload.buf.0), payload.offset, payload.len);
        }
        if half.queue.queued_bytes() > MAX_SEND_QUEUE_BYTES {
            let why = format!("more than {MAX_SEND_QUEUE_BYTES} bytes wait to be sent to the peer");
            return Err(LinkLost::Network(why));
        }
        Ok(())
    }

    /// A receive ended.
    pub(crate) fn received(&mut self, pool: &mut Pool, stream: Stream, result: i32) -> Result<(), LinkLost> {
        let up = self.is_up();
        let half = self.half(stream);
        let moved = half.receiver.complete(result);
        if !up {
            half.drop_incoming(pool);
        }
        match moved {
            None => Ok(()),
            Some((direct, Moved::Bytes(_))) => {
                if let Some(incoming) = &mut half.incoming {
                    incoming.filled += direct;
                }
                Ok(())
            }
            Some((_, Moved::Closed)) => {
                half.ended = true;
                // Whoever closes in order closes both: what it sent on the data stream before is to be seen.
                if stream == Stream::Data { Err(LinkLost::Closed) } else { Ok(()) }
            }
            Some((_, Moved::Failed(errno))) => {
                half.ended = true;
                Err(network(errno))
            }
        }
    }

    /// Takes the next packet from a stream.
    pub(crate) fn next_packet(&mut self, pool: &mut Pool, stream: Stream) -> Step {
        self.half(stream).next_packet(pool)
    }

    /// A stream that waits for a buffer.
    pub(crate) fn starved(&self) -> Option<Stream> {
        [&self.data, &self.control].into_iter().find(|half| half.needs_buffer && self.is_up()).map(|half| half.stream)
    }

    /// Starts receives where none is under way. Not where a payload waits for a buffer: the peer feels that.
    pub(crate) fn arm(&mut self, ring: &mut Ring<Token>, pool: &Pool) {
        let (slot, phase) = (self.slot, self.phase);
        if phase == Phase::Dead {
            return;
        }
        for half in self.halves() {
            if half.receiver.in_flight() || half.needs_buffer || half.ended {
                continue;
            }
            let token = Token::LinkReceive { link: slot, stream: half.stream };
            half.receiver.submit(ring, pool, half.fd.as_fd(), half.target(), token);
        }
    }

    /// Sends what is queued, one gathered send per stream.
    pub(crate) fn flush(&mut self, ring: &mut Ring<Token>, pool: &Pool, now: Time) {
        let (slot, phase) = (self.slot, self.phase);
        if phase == Phase::Dead {
            return;
        }
        for half in self.halves() {
            if half.queue.in_flight() || half.queue.queued_bytes() == 0 {
                continue;
            }
            half.progress = now;
            let token = Token::LinkSend { link: slot, stream: half.stream };
            half.queue.submit(ring, pool, half.fd.as_fd(), token, phase == Phase::Up);
        }
    }

    /// A send ended.
    pub(crate) fn sent(&mut self, pool: &mut Pool, stream: Stream, result: i32, now: Time) -> Result<(), LinkLost> {
        let half = self.half(stream);
        match half.queue.complete(pool, result) {
            None => Ok(()),
            Some(Moved::Bytes(_)) => {
                half.progress = now;
                Ok(())
            }
            Some(Moved::Closed) => Err(LinkLost::Closed),
            Some(Moved::Failed(errno)) => Err(network(errno)),
        }
    }

    /// A send that did not move for its time.
    pub(crate) fn send_timed_out(&self, now: Time) -> bool {
        let overdue = |half: &Half, ms| half.queue.in_flight() && now.ms_since(half.progress) >= ms;
        self.is_up() && (overdue(&self.data, self.timeouts.data_ms) || overdue(&self.control, self.timeouts.control_ms))
    }

    /// Somebody has to look at the time for it.
    pub(crate) fn needs_tick(&self) -> bool {
        self.phase != Phase::Up || self.data.queue.in_flight() || self.control.queue.in_flight()
    }

    /// Begins an orderly end.
    pub(crate) fn drain(&mut self, pool: &mut Pool, now: Time) {
        if self.phase != Phase::Up {
            return;
        }
        self.phase = Phase::Draining { give_up: now.plus_ms(self.timeouts.control_ms) };
        for half in self.halves() {
            if !half.receiver.in_flight() {
                half.drop_incoming(pool);
            }
        }
    }

    /// Ends it now.
    pub(crate) fn kill(&mut self) {
        self.phase = Phase::Dead;
        for half in self.halves() {
            half.shutdown(rustix::net::Shutdown::Both);
        }
    }

    /// Moves an ending link on. `hurry`: its successor waits.
    pub(crate) fn advance(&mut self, now: Time, hurry: bool) {
        if let Phase::Draining { give_up } = self.phase {
            if self.halves().iter().all(|half| half.queue.queued_bytes() == 0) {
                for half in self.halves() {
                    half.shutdown(rustix::net::Shutdown::Write);
                }
                self.phase = Phase::Lingering { give_up: now.plus_ms(LINGER_MS) };
            } else if now >= give_up {
                self.kill();
            }
        }
        if let Phase::Lingering { give_up } = self.phase
            && (hurry || now >= give_up || self.halves().iter().all(|half| half.ended))
        {
            self.kill();
        }
    }

    /// It is dead, and nothing of it is in the ring.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Dead && self.data.idle() && self.control.idle()
    }

    /// Gives its buffers back.
    ///
    /// # Panics
    /// Before [`Link::is_over`].
    pub(crate) fn bury(mut self, pool: &mut Pool) {
        assert!(self.is_over(), "a link with operations in the ring was buried");
        for half in self.halves() {
            half.queue.clear(pool);
            half.drop_incoming(pool);
        }
    }
}

fn digest_mismatch(packet: &Packet) -> String {
    format!("the data of {} were changed on their way: their digest (data-integrity-alg) is another", packet.name())
}

fn network(errno: i32) -> LinkLost {
    LinkLost::Network(std::io::Error::from_raw_os_error(errno).to_string())
}

#[cfg(test)]
mod tests;
