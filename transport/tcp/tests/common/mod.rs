//! Nodes on loopback addresses of their own, and a hand-made peer.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use zea_tcp::{Connector, ConnectorConfig, Event, PathConfig, PathOptions, PeerKey};

/// No wait in these tests is longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
pub(crate) const DATA: [u8; 8] = [0x83, 0x74, 0x02, 0x67, 0xff, 0xf2, 0, 0];
pub(crate) const META: [u8; 8] = [0x83, 0x74, 0x02, 0x67, 0xff, 0xf1, 0, 0];

/// Address `host` of a test; tests (by number) and runs at the same time do not meet.
pub(crate) fn addr(test: u8, host: u8) -> SocketAddr {
    let [.., run_high, run_low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 64 + test, run_low, (run_high & 0xf) << 4 | host);
    SocketAddr::new(IpAddr::V4(ip), 7789)
}

pub(crate) fn path(own: SocketAddr, peer: SocketAddr) -> PathConfig {
    PathConfig { own, peer, options: PathOptions::default() }
}

/// A pair that was handed over.
pub(crate) struct Pair {
    pub(crate) key: PeerKey,
    pub(crate) data: TcpStream,
    pub(crate) control: TcpStream,
    pub(crate) resolve_conflicts: bool,
}

pub(crate) struct Node {
    pub(crate) connector: Connector,
    pub(crate) events: Receiver<Event>,
}

impl Node {
    pub(crate) fn new() -> Node {
        let (tell, events) = channel();
        let on_event = Box::new(move |event| {
            // A test that has seen enough no longer listens.
            let _ = tell.send(event);
        });
        let connector = Connector::spawn(ConnectorConfig::default(), on_event).unwrap();
        Node { connector, events }
    }

    /// A node with one peer.
    pub(crate) fn with(key: PeerKey, own: SocketAddr, peer: SocketAddr) -> Node {
        let node = Node::new();
        node.connector.set_peer(key, path(own, peer)).unwrap();
        node
    }

    /// The next event that `pick` takes.
    pub(crate) fn wait_for<T>(&self, pick: impl Fn(Event) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("an event in time");
            if let Some(found) = pick(event) {
                return found;
            }
        }
    }

    pub(crate) fn established(&self) -> Pair {
        self.wait_for(|event| match event {
            Event::Established { key, data, control, resolve_conflicts } => {
                Some(Pair { key, data: blocking(data), control: blocking(control), resolve_conflicts })
            }
            _ => None,
        })
    }
}

fn blocking(fd: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Both have the same two sockets, and exactly one wins ties: the one that accepted the control socket.
pub(crate) fn assert_connected(a: &Pair, b: &Pair) {
    assert_ne!(a.resolve_conflicts, b.resolve_conflicts);
    for (byte, x, y) in [(b'd', &a.data, &b.data), (b'c', &a.control, &b.control)] {
        for (mut from, mut to) in [(x, y), (y, x)] {
            from.write_all(&[byte]).unwrap();
            let mut got = [0];
            to.read_exact(&mut got).unwrap();
            assert_eq!(got, [byte]);
        }
    }
    for pair in [a, b] {
        let accepted = pair.control.local_addr().unwrap().port() == 7789;
        assert_eq!(pair.resolve_conflicts, accepted);
    }
}

/// Connects from an address (any port) to another; `None` if refused.
pub(crate) fn connect_from(from: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None);
    let socket = socket.unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&to.into()).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    Some(stream)
}

/// Whether the other side closes the stream in time.
pub(crate) fn is_closed_by_peer(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}
