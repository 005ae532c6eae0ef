//! An NBD connection on the ring: handshake, then requests.
//!
//! A connection is accepted by the shard of the listener; when the handshake tells that the export lives on another shard,
//! the socket moves there with what was read from it.
#![allow(clippy::large_enum_variant)]

mod requests;

use std::os::fd::{AsFd, OwnedFd};

use zea_core::io::{IoError, Time};
use zea_nbd::{Handshake, Negotiated, Progress};

use super::exports::{ExportDirectory, OpenExport};
use super::{FrontEnd, Step};
use crate::ResourceId;
use crate::handle::Message;
use crate::limits::NBD_STAGING_BYTES;
use crate::pool::Pool;
use crate::ring::Ring;
use crate::stream::{Moved, Receiver, SendQueue};
use crate::token::{FrontOp, Token};

use requests::Requests;

/// A connection whose handshake is over, on its way to the shard that serves it.
#[derive(Debug)]
pub(crate) struct Transmission {
    fd: OwnedFd,
    negotiated: Negotiated,
    /// What was read behind the handshake.
    rest: Vec<u8>,
    open: OpenExport,
}

impl Transmission {
    pub(crate) fn resource(&self) -> ResourceId {
        self.open.export().resource
    }
}

#[derive(Debug)]
enum Phase {
    Handshake {
        handshake: Handshake,
        directory: ExportDirectory,
        shard: u16,
        give_up: Time,
    },
    /// The last answer of the handshake goes out, then the connection moves to another shard.
    Leaving {
        negotiated: Negotiated,
        open: OpenExport,
    },
    Transmission {
        requests: Requests,
        open: OpenExport,
    },
    Over,
}

/// One client.
#[derive(Debug)]
pub(crate) struct NbdConnection {
    fd: OwnedFd,
    phase: Phase,
    receiver: Receiver,
    queue: SendQueue,
    /// No more requests are taken.
    closing: bool,
    /// The socket is of no use any more.
    broken: bool,
}

impl NbdConnection {
    /// A client that was just accepted by shard number `shard`; its handshake has to be over by `give_up`.
    pub(crate) fn accepted(fd: OwnedFd, directory: ExportDirectory, shard: u16, give_up: Time) -> NbdConnection {
        let phase = Phase::Handshake { handshake: Handshake::new(), directory, shard, give_up };
        let mut connection = NbdConnection::new(fd, phase, Receiver::new(NBD_STAGING_BYTES));
        connection.queue.push_bytes(|out| out.extend_from_slice(&Handshake::GREETING));
        connection
    }

    /// A client that comes from the shard that accepted it.
    pub(crate) fn adopted(arrived: Transmission) -> NbdConnection {
        let Transmission { fd, negotiated, rest, open } = arrived;
        let phase = transmission(&negotiated, open);
        NbdConnection::new(fd, phase, Receiver::with_bytes(NBD_STAGING_BYTES, &rest))
    }

    fn new(fd: OwnedFd, phase: Phase, receiver: Receiver) -> NbdConnection {
        NbdConnection { fd, phase, receiver, queue: SendQueue::new(), closing: false, broken: false }
    }

    /// Feeds the handshake what arrived.
    fn negotiate(&mut self) {
        while let Phase::Handshake { handshake, directory, shard, .. } = &mut self.phase {
            let (directory, shard) = (directory.clone(), *shard);
            let receiver = &mut self.receiver;
            let mut fed = Ok((0, Progress::NeedInput));
            self.queue.push_bytes(|out| fed = handshake.feed(&directory, receiver.unread(), out));
            match fed {
                Ok((consumed, progress)) => {
                    receiver.consume(consumed);
                    match progress {
                        Progress::NeedInput => return,
                        Progress::Answered => {}
                        Progress::Aborted => return self.end(),
                        Progress::Ready(negotiated) => self.ready(negotiated, &directory, shard),
                    }
                }
                Err(e) => {
                    tracing::info!("NBD client dropped in the handshake: {e}");
                    return self.end();
                }
            }
        }
    }

    fn ready(&mut self, negotiated: Negotiated, directory: &ExportDirectory, shard: u16) {
        // Asked again, because it may have changed since it was described.
        let opened = directory.find(&negotiated.export.name).map(|export| export.open());
        let Some(Ok(open)) = opened else {
            tracing::info!(export = negotiated.export.name, "NBD export became unusable during the handshake");
            return self.end();
        };
        self.phase = if open.export().shard == shard {
            transmission(&negotiated, open)
        } else {
            Phase::Leaving { negotiated, open }
        };
    }

    /// No more requests; what is under way is answered.
    fn end(&mut self) {
        self.closing = true;
        if let Phase::Handshake { .. } | Phase::Leaving { .. } = self.phase {
            self.phase = Phase::Over;
        }
    }

    fn break_off(&mut self) {
        self.broken = true;
        self.end();
    }

    fn requests_under_way(&self) -> bool {
        match &self.phase {
            Phase::Transmission { requests, .. } => requests.under_way() > 0,
            _ => false,
        }
    }

    /// The handshake's last bytes are sent and nothing is in the ring: the socket can go.
    fn may_leave(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
            && self.queue.queued_bytes() == 0
            && !self.queue.in_flight()
            && !self.receiver.in_flight()
    }
}

fn transmission(negotiated: &Negotiated, open: OpenExport) -> Phase {
    let requests = Requests::new(negotiated, open.export().volume, open.export().longest.piece);
    Phase::Transmission { requests, open }
}

impl FrontEnd for NbdConnection {
    fn completed(&mut self, pool: &mut Pool, op: FrontOp, result: i32) {
        let moved = match op {
            FrontOp::Send => self.queue.complete(pool, result),
            FrontOp::Receive => self.receiver.complete(result).map(|(direct, moved)| {
                if let Phase::Transmission { requests, .. } = &mut self.phase {
                    requests.received(direct);
                }
                moved
            }),
            FrontOp::Tag(_) => panic!("a connection has no tags"),
        };
        match moved {
            None | Some(Moved::Bytes(_)) => {}
            // A client may close its writing side and still read answers.
            Some(Moved::Closed) => self.end(),
            Some(Moved::Failed(errno)) => {
                tracing::debug!("NBD client lost: {}", std::io::Error::from_raw_os_error(errno));
                self.break_off();
            }
        }
    }

    fn next(&mut self, pool: &mut Pool) -> Step {
        if self.closing || self.receiver.in_flight() {
            return Step::Wait;
        }
        self.negotiate();
        let Phase::Transmission { requests, open } = &mut self.phase else {
            return Step::Wait;
        };
        match requests.next(pool, &mut self.receiver, &mut self.queue) {
            requests::Next::Request(request) => Step::Request(open.export().resource, request),
            requests::Next::NeedBuffer => Step::NeedBuffer,
            requests::Next::Wait => Step::Wait,
            requests::Next::End => {
                self.end();
                Step::Wait
            }
        }
    }

    fn answer(&mut self, pool: &mut Pool, local: u64, result: Result<(), IoError>) {
        let Phase::Transmission { requests, .. } = &mut self.phase else {
            panic!("an answer to a connection without requests");
        };
        requests.answer(pool, &mut self.queue, local, result);
    }

    fn submit(&mut self, ring: &mut Ring<Token>, pool: &Pool, slot: u32) {
        if self.broken {
            return;
        }
        let unwatched = matches!(self.phase, Phase::Transmission { .. }) && !self.closing;
        self.queue.submit(ring, pool, self.fd.as_fd(), Token::Front { slot, op: FrontOp::Send }, unwatched);
        let target = match &self.phase {
            Phase::Handshake { .. } => None,
            Phase::Transmission { requests, .. } if requests.wants_input(&self.queue) => requests.target(),
            _ => return,
        };
        if !self.closing && !self.receiver.in_flight() {
            let token = Token::Front { slot, op: FrontOp::Receive };
            self.receiver.submit(ring, pool, self.fd.as_fd(), target, token);
        }
    }

    fn give_up_at(&self) -> Option<Time> {
        match self.phase {
            Phase::Handshake { give_up, .. } => Some(give_up),
            _ => None,
        }
    }

    fn close(&mut self) {
        self.end();
        // Ends a receive that is under way; what it brings is not looked at.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Read);
    }

    fn resource(&self) -> Option<ResourceId> {
        match &self.phase {
            Phase::Transmission { open, .. } | Phase::Leaving { open, .. } => Some(open.export().resource),
            _ => None,
        }
    }

    fn is_over(&self) -> bool {
        if self.may_leave() {
            return true;
        }
        let unsent = self.queue.queued_bytes() > 0 && !self.broken;
        if !self.closing || self.requests_under_way() || unsent || self.queue.in_flight() {
            return false;
        }
        if self.receiver.in_flight() {
            let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
            return false;
        }
        true
    }

    fn bury(mut self: Box<Self>, pool: &mut Pool) {
        assert!(self.is_over(), "a front end with operations under way was buried");
        self.queue.clear(pool);
        match self.phase {
            Phase::Transmission { mut requests, .. } => requests.abandon(pool),
            Phase::Leaving { negotiated, open } => {
                let rest = self.receiver.unread().to_vec();
                let mail = open.export().mail.clone();
                let leaving = Transmission { fd: self.fd, negotiated, rest, open };
                // A full mailbox closes the connection: waiting here would hold this shard up.
                if mail.send(Message::AdoptNbd(Box::new(leaving)), std::time::Duration::ZERO).is_err() {
                    tracing::warn!("NBD client dropped: the shard of its export does not keep up");
                }
            }
            Phase::Handshake { .. } | Phase::Over => {}
        }
    }
}
