//! The floor's primary: serves one client after another, and copies every operation to the secondary. One thread.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use zea_nbd::{Negotiated, Op, Parsed, REPLY_LEN_MAX, ReplyStyle, Request, RequestParser};

use super::device::{announce, open_device};
use super::export::handshake;
use super::ring::{Event, TurnRing};
use super::wire::{BLOCK_BYTES, Kind, MAX_SLOTS, Operation};

const CLIENT: usize = 0;
const PEER: usize = 1;

/// Connects to the secondary, listens at the Unix socket `socket`, prints that path, and serves whoever connects,
/// until it is killed.
///
/// # Errors
/// Failing IO, a secondary that goes away, and a client that wants something else than to write and flush blocks.
pub fn primary(socket: &Path, secondary: SocketAddr, device: &Path) -> Result<()> {
    let (disk, device_bytes) = open_device(device)?;
    let peer = TcpStream::connect(secondary).with_context(|| format!("connect to the secondary at {secondary}"))?;
    peer.set_nodelay(true)?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    announce(&socket.display().to_string())?;
    loop {
        let (mut client, _) = listener.accept()?;
        if let Some(negotiated) = handshake(&mut client, device_bytes)? {
            Session::new(client, &peer, &disk, &negotiated)?.serve()?;
        }
    }
}

/// An operation that is in flight.
#[derive(Clone, Copy)]
struct InFlight {
    operation: Operation,
    cookie: u64,
    /// Which of an operation's two legs is the last is known by counting them.
    open_legs: u8,
}

/// One client, from its first request to its last.
struct Session {
    ring: TurnRing,
    parser: RequestParser,
    style: ReplyStyle,
    /// A write whose block has not come yet.
    incomplete: Option<Request>,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
}

impl Session {
    fn new(client: UnixStream, peer: &TcpStream, disk: &File, negotiated: &Negotiated) -> Result<Self> {
        let streams = vec![client.into(), peer.try_clone()?.into()];
        Ok(Self {
            ring: TurnRing::new(streams, disk.try_clone()?)?,
            parser: negotiated.parser(),
            style: negotiated.style,
            incomplete: None,
            in_flight: vec![None; MAX_SLOTS],
            free: (0..MAX_SLOTS).collect(),
        })
    }

    fn serve(mut self) -> Result<()> {
        let mut events = Vec::new();
        loop {
            self.ring.turn(&mut events)?;
            for event in events.drain(..) {
                match event {
                    Event::Received(CLIENT) => {
                        while let Some(request) = self.next_request()? {
                            self.replicate(request)?;
                        }
                    }
                    Event::Received(_) => self.take_acks()?,
                    Event::DiskDone(slot) => self.leg_done(slot)?,
                    Event::Closed(CLIENT) => {
                        ensure!(self.free.len() == MAX_SLOTS, "the client left with operations in flight");
                        return Ok(());
                    }
                    Event::Closed(_) => bail!("the secondary has closed the connection"),
                }
            }
        }
    }

    /// The next request of the client, once all of it has come.
    fn next_request(&mut self) -> Result<Option<Request>> {
        if self.incomplete.is_none() {
            let (consumed, parsed) = self.parser.parse(self.ring.received(CLIENT))?;
            self.ring.consume(CLIENT, consumed);
            self.incomplete = match parsed {
                Parsed::Request(request) => Some(request),
                Parsed::Refused(refused) => bail!("from the client: {}", refused.reason),
                Parsed::NeedMore | Parsed::Disconnect => None,
            };
        }
        let whole = self.ring.received(CLIENT).len() >= self.parser.payload_left() as usize;
        Ok(self.incomplete.take_if(|_| whole))
    }

    /// Sends the request, whose block is at the front of the client's bytes, down both legs.
    fn replicate(&mut self, request: Request) -> Result<()> {
        let slot = self.free.pop().context("the client has too many requests in flight")?;
        let kind = match request.op {
            Op::Write => Kind::Write,
            Op::Flush => Kind::Flush,
            other => bail!("the client sent {other:?}"),
        };
        let operation = Operation { kind, slot, offset: request.offset };
        self.in_flight[slot] = Some(InFlight { operation, cookie: request.cookie, open_legs: 2 });
        self.ring.send(PEER, &operation.to_peer()[..operation.peer_bytes()]);
        match kind {
            Kind::Write => {
                ensure!(request.len as usize == BLOCK_BYTES, "the client writes {} bytes", request.len);
                self.ring.load_block(slot, CLIENT, 0);
                self.ring.send_block(PEER, slot);
                self.ring.consume(CLIENT, BLOCK_BYTES);
                self.parser.payload_taken(request.len);
                self.ring.write_block(slot, operation.offset);
            }
            Kind::Flush => self.ring.sync_disk(slot),
        }
        Ok(())
    }

    fn take_acks(&mut self) -> Result<()> {
        while let Some(ack) = Operation::from_peer(self.ring.received(PEER), 0)? {
            let sent = self.in_flight[ack.slot].is_some_and(|in_flight| in_flight.operation == ack);
            ensure!(sent, "an ack for what was not sent: {ack:?}");
            self.ring.consume(PEER, ack.peer_bytes());
            self.leg_done(ack.slot)?;
        }
        Ok(())
    }

    fn leg_done(&mut self, slot: usize) -> Result<()> {
        let in_flight = self.in_flight[slot].as_mut().context("a leg ended twice")?;
        in_flight.open_legs -= 1;
        if in_flight.open_legs == 0 {
            let mut reply = [0; REPLY_LEN_MAX];
            let length = self.style.encode_done(&mut reply, in_flight.cookie);
            self.ring.send(CLIENT, &reply[..length]);
            self.in_flight[slot] = None;
            self.free.push(slot);
        }
        Ok(())
    }
}
