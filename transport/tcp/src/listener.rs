//! The own addresses listened on, and whose incoming sockets they take.
//!
//! Several connections share a listener if their peers are different hosts: an accepted socket shows the peer
//! by its address only, the port is any (`wire-protocol.md` section 2).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use socket2::Socket;

use crate::address::{PathConfig, PathOptions};
use crate::connector::{Event, PeerKey};
use crate::limits;
use crate::poller::{Interest, Poller};
use crate::socket;

#[derive(Debug)]
enum State {
    /// Not listening; to be tried.
    Closed { retry_ms: u64 },
    /// Listening.
    Open { socket: Socket, token: u64 },
    /// Listening, but nothing can be accepted for now.
    Paused { socket: Socket, token: u64, until_ms: u64 },
}

#[derive(Debug)]
struct Listener {
    state: State,
    /// Of the peer that came first: buffers are per listener, as in the kernel.
    options: PathOptions,
    peers: BTreeMap<IpAddr, PeerKey>,
    reported: Option<(Option<i32>, u64)>,
}

/// All listeners.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    by_addr: BTreeMap<SocketAddr, Listener>,
    by_token: BTreeMap<u64, SocketAddr>,
}

/// One accept.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A socket of this peer.
    Peer(PeerKey, Socket),
    /// A socket of nobody we know, or one that was gone already; it is closed.
    Stranger,
    /// No more for now.
    Nothing,
}

impl Listeners {
    /// Takes incoming sockets for a peer from now on.
    pub(crate) fn add(&mut self, key: PeerKey, path: &PathConfig) {
        let listener = self.by_addr.entry(path.own).or_insert_with(|| Listener {
            state: State::Closed { retry_ms: 0 },
            options: path.options,
            peers: BTreeMap::new(),
            reported: None,
        });
        listener.peers.insert(path.peer.ip(), key);
    }

    /// Undoes `add`; the last peer's leaving closes the listener.
    pub(crate) fn remove(&mut self, path: &PathConfig) {
        let Some(listener) = self.by_addr.get_mut(&path.own) else {
            return;
        };
        listener.peers.remove(&path.peer.ip());
        if listener.peers.is_empty() {
            if let State::Open { token, .. } | State::Paused { token, .. } = &listener.state {
                self.by_token.remove(token);
            }
            self.by_addr.remove(&path.own);
        }
    }

    /// Whether the token is a listener's.
    pub(crate) fn has(&self, token: u64) -> bool {
        self.by_token.contains_key(&token)
    }

    /// Opens what is due to be opened. Returns what to report.
    pub(crate) fn service(&mut self, now_ms: u64, poller: &mut Poller) -> Vec<Event> {
        let mut events = Vec::new();
        for (addr, listener) in &mut self.by_addr {
            let error = match &listener.state {
                State::Closed { retry_ms } if *retry_ms <= now_ms => match open(addr, &listener.options, poller) {
                    Ok((socket, token)) => {
                        listener.state = State::Open { socket, token };
                        listener.reported = None;
                        self.by_token.insert(token, *addr);
                        continue;
                    }
                    Err(error) => error,
                },
                State::Paused { until_ms, .. } if *until_ms <= now_ms => match resume(&mut listener.state, poller) {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                _ => continue,
            };
            if let State::Paused { token, .. } = &listener.state {
                self.by_token.remove(token);
            }
            listener.state = State::Closed { retry_ms: now_ms + limits::LISTEN_RETRY_MS };
            events.extend(listener.report(*addr, now_ms, error));
        }
        events
    }

    /// Accepts one socket. What to report, if anything, comes with it.
    pub(crate) fn accept(&mut self, token: u64, now_ms: u64, poller: &Poller) -> (Accepted, Option<Event>) {
        let Some(addr) = self.by_token.get(&token) else {
            return (Accepted::Nothing, None);
        };
        let Some(listener) = self.by_addr.get_mut(addr) else {
            return (Accepted::Nothing, None);
        };
        let State::Open { socket, .. } = &listener.state else {
            return (Accepted::Nothing, None);
        };
        let error = match socket.accept() {
            Ok((socket, from)) => {
                let key = from.as_socket().and_then(|from| listener.peers.get(&from.ip()));
                return match key {
                    Some(key) => (Accepted::Peer(*key, socket), None),
                    None => (Accepted::Stranger, None),
                };
            }
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            return (Accepted::Nothing, None);
        }
        if !is_shortage(&error) {
            // The error of that one connection, which is off the queue.
            return (Accepted::Stranger, None);
        }
        // It stays readable; without a pause this thread would spin.
        listener.pause(now_ms, poller);
        let report = listener.report(*addr, now_ms, error);
        (Accepted::Nothing, report)
    }

    /// When `service` is due.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.by_addr
            .values()
            .filter_map(|listener| match listener.state {
                State::Closed { retry_ms: at } | State::Paused { until_ms: at, .. } => Some(at),
                State::Open { .. } => None,
            })
            .min()
    }
}

impl Listener {
    fn pause(&mut self, now_ms: u64, poller: &Poller) {
        let closed = State::Closed { retry_ms: now_ms };
        if let State::Open { socket, token } = std::mem::replace(&mut self.state, closed) {
            // If it cannot be changed, it goes on being told, and does nothing until the pause is over.
            let _ = poller.change(&socket, token, Interest::Nothing);
            self.state = State::Paused { socket, token, until_ms: now_ms + limits::LISTEN_RETRY_MS };
        }
    }

    fn report(&mut self, addr: SocketAddr, now_ms: u64, error: io::Error) -> Option<Event> {
        let cause = error.raw_os_error();
        if let Some((last, at_ms)) = self.reported
            && last == cause
            && now_ms < at_ms + limits::LISTEN_REPORT_MS
        {
            return None;
        }
        self.reported = Some((cause, now_ms));
        Some(Event::ListenFailed { addr, error })
    }
}

fn open(addr: &SocketAddr, options: &PathOptions, poller: &mut Poller) -> io::Result<(Socket, u64)> {
    let socket = socket::listen(addr, options)?;
    let token = poller.add(&socket, Interest::Read)?;
    Ok((socket, token))
}

fn resume(state: &mut State, poller: &Poller) -> io::Result<()> {
    if let State::Paused { socket, token, .. } = state {
        poller.change(&*socket, *token, Interest::Read)?;
    }
    let closed = State::Closed { retry_ms: 0 };
    *state = match std::mem::replace(state, closed) {
        State::Paused { socket, token, .. } => State::Open { socket, token },
        other => other,
    };
    Ok(())
}

/// Whether accept failed for want of something that this or another process holds.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    shortages.iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}
