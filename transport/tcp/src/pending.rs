//! Accepted sockets that have not introduced themselves yet.

use std::collections::BTreeMap;
use std::io;

use socket2::Socket;
use zea_wire::Stream;

use crate::connector::{InitialError, PeerKey};
use crate::initial;
use crate::limits;

#[derive(Debug)]
struct Visitor {
    key: PeerKey,
    socket: Socket,
    bytes: [u8; initial::LEN],
    have: usize,
    until_ms: u64,
}

/// The sockets that wait for their initial packet; bounded by [`limits::PENDING`].
#[derive(Debug, Default)]
pub(crate) struct Pending {
    visitors: BTreeMap<u64, Visitor>,
}

/// What reading from a pending socket came to.
#[derive(Debug)]
pub(crate) enum Introduction {
    /// The token is not of a pending socket.
    NotHere,
    /// More bytes are needed.
    Incomplete,
    /// It is this stream of this peer, and no longer pending.
    Done(PeerKey, Socket, Stream),
    /// It was closed.
    Refused(PeerKey, InitialError),
}

impl Pending {
    /// Whether one more socket of a peer may wait.
    pub(crate) fn has_room(&self, key: PeerKey) -> bool {
        let own = self.visitors.values().filter(|v| v.key == key).count();
        self.visitors.len() < limits::PENDING && own < limits::PENDING_PER_PEER
    }

    /// Lets a socket wait.
    pub(crate) fn insert(&mut self, token: u64, key: PeerKey, socket: Socket, until_ms: u64) {
        assert!(self.has_room(key), "asked for room before");
        let visitor = Visitor { key, socket, bytes: [0; initial::LEN], have: 0, until_ms };
        self.visitors.insert(token, visitor);
    }

    /// Reads what is there, never a byte behind the initial packet.
    pub(crate) fn read(&mut self, token: u64) -> Introduction {
        let Some(visitor) = self.visitors.get_mut(&token) else {
            return Introduction::NotHere;
        };
        let key = visitor.key;
        while visitor.have < initial::LEN {
            match rustix::io::read(&visitor.socket, &mut visitor.bytes[visitor.have..]) {
                Ok(n @ 1..) => visitor.have += n,
                Err(e) if io::Error::from(e).kind() == io::ErrorKind::WouldBlock => {
                    return Introduction::Incomplete;
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) | Err(_) => {
                    self.visitors.remove(&token);
                    return Introduction::Refused(key, InitialError::Closed);
                }
            }
        }
        let stream = initial::decode(&visitor.bytes);
        match (self.visitors.remove(&token), stream) {
            (Some(visitor), Some(stream)) => Introduction::Done(key, visitor.socket, stream),
            _ => Introduction::Refused(key, InitialError::Unknown),
        }
    }

    /// Closes the sockets of a peer.
    pub(crate) fn close_peer(&mut self, key: PeerKey) {
        self.visitors.retain(|_, visitor| visitor.key != key);
    }

    /// Closes the sockets whose time is over; returns their peers.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<PeerKey> {
        self.visitors.extract_if(.., |_, visitor| visitor.until_ms <= now_ms).map(|(_, visitor)| visitor.key).collect()
    }

    /// When the next socket's time is over.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.visitors.values().map(|v| v.until_ms).min()
    }
}
