//! Connectors on loopback, against each other and against a hand-made peer.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{DATA, LIMIT, META, Node, Pair, addr, assert_connected, connect_from, is_closed_by_peer, path};
use rustix::fs::OFlags;
use zea_tcp::{AttemptError, Connector, ConnectorConfig, ConnectorError, Event, InitialError, PathOptions, limits};

const KEY: (u32, u8) = (3, 1);

#[test]
fn tcp_two_nodes_connect_again_and_again() {
    let (a, b) = (addr(1, 1), addr(1, 2));
    let left = Node::with(KEY, a, b);
    let right = Node::with(KEY, b, a);
    for round in 0..20 {
        let begin = Instant::now();
        let order = [&left, &right];
        order[round % 2].connector.connect(KEY).unwrap();
        if round % 3 == 0 {
            thread::sleep(Duration::from_millis(20));
        }
        order[1 - round % 2].connector.connect(KEY).unwrap();
        let (x, y) = (left.established(), right.established());
        println!("round {round}: {:?}", begin.elapsed());
        assert_eq!((x.key, y.key), (KEY, KEY));
        assert_connected(&x, &y);
    }
}

#[test]
fn tcp_handed_over_sockets_are_nonblocking_close_on_exec_and_undelayed() {
    let (a, b) = (addr(2, 1), addr(2, 2));
    let left = Node::with(KEY, a, b);
    let right = Node::with(KEY, b, a);
    left.connector.connect(KEY).unwrap();
    right.connector.connect(KEY).unwrap();
    // Both first: the end of one node's pair would take the other's before it is confirmed.
    let pairs = [&left, &right].map(|node| {
        node.wait_for(|event| match event {
            Event::Established { data, control, .. } => Some((data, control)),
            _ => None,
        })
    });
    for (data, control) in pairs {
        for fd in [&data, &control] {
            let flags = rustix::fs::fcntl_getfl(fd).unwrap();
            assert!(flags.contains(OFlags::NONBLOCK));
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            assert!(rustix::net::sockopt::tcp_nodelay(fd).unwrap());
            let timeout = rustix::net::sockopt::tcp_user_timeout(fd).unwrap();
            assert_eq!(timeout, 6_000);
        }
        let keepalive = |fd| rustix::net::sockopt::socket_keepalive(fd).unwrap();
        assert!(keepalive(data.as_fd()));
        assert!(!keepalive(control.as_fd()));
    }
}

#[test]
fn tcp_ipv6_and_nodes_that_differ_by_port_only() {
    let free = || {
        let probe = TcpListener::bind("[::1]:0").expect("IPv6 loopback");
        probe.local_addr().unwrap()
    };
    let (a, b) = (free(), free());
    let left = Node::with(KEY, a, b);
    let right = Node::with(KEY, b, a);
    left.connector.connect(KEY).unwrap();
    right.connector.connect(KEY).unwrap();
    let (x, y) = (left.established(), right.established());
    assert_ne!(x.resolve_conflicts, y.resolve_conflicts);
    assert_eq!(x.data.local_addr().unwrap(), y.data.peer_addr().unwrap());
    assert_eq!(x.control.local_addr().unwrap(), y.control.peer_addr().unwrap());
}

#[test]
fn tcp_a_restarted_node_is_found_again() {
    let (a, b) = (addr(3, 1), addr(3, 2));
    let left = Node::with(KEY, a, b);
    left.connector.connect(KEY).unwrap();
    for _ in 0..3 {
        let right = Node::with(KEY, b, a);
        right.connector.connect(KEY).unwrap();
        let (mut x, y) = (left.established(), right.established());
        assert_connected(&x, &y);
        drop((right, y));
        assert!(is_closed_by_peer(&mut x.control));
        left.connector.connect(KEY).unwrap();
    }
    // Killed in the middle of an attempt.
    let half = TcpListener::bind(b).unwrap();
    let (mut stream, _) = half.accept().unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    drop((half, stream));
    let right = Node::with(KEY, b, a);
    right.connector.connect(KEY).unwrap();
    assert_connected(&left.established(), &right.established());
}

#[test]
fn tcp_two_resources_share_a_listen_address() {
    let (hub, b, c) = (addr(4, 1), addr(4, 2), addr(4, 3));
    let node = Node::new();
    let (first, second) = ((1, 1), (2, 2));
    node.connector.set_peer(first, path(hub, b)).unwrap();
    node.connector.set_peer(second, path(hub, c)).unwrap();
    let spokes = [(first, b), (second, c)].map(|(key, own)| (key, Node::with(key, own, hub)));
    for (key, spoke) in &spokes {
        node.connector.connect(*key).unwrap();
        spoke.connector.connect(*key).unwrap();
    }
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let ours = node.established();
        let (_, spoke) = spokes.iter().find(|(key, _)| *key == ours.key).unwrap();
        assert_connected(&ours, &spoke.established());
        seen.insert(ours.key);
    }
    assert_eq!(seen, BTreeSet::from([first, second]));

    // Removing one leaves the other's listener alone; removing both closes it.
    node.connector.remove_peer(first).unwrap();
    node.connector.connect(second).unwrap();
    spokes[1].1.connector.connect(second).unwrap();
    assert_connected(&node.established(), &spokes[1].1.established());
    node.connector.remove_peer(second).unwrap();
    let end = Instant::now() + LIMIT;
    while connect_from(c.ip(), hub).is_some() {
        assert!(Instant::now() < end, "the listener is still there");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn tcp_a_foreign_address_is_refused() {
    let (a, b, foreign) = (addr(5, 1), addr(5, 2), addr(5, 3));
    let node = Node::with(KEY, a, b);
    node.connector.connect(KEY).unwrap();
    // The listener is there when the attempt was reported.
    node.wait_for(attempt);
    for packet in [DATA, META] {
        let mut stream = connect_from(foreign.ip(), a).unwrap();
        stream.write_all(&packet).unwrap();
        assert!(is_closed_by_peer(&mut stream));
    }
    // The peer itself is let in at the same time.
    let right = Node::with(KEY, b, a);
    right.connector.connect(KEY).unwrap();
    assert_connected(&node.established(), &right.established());
}

fn attempt(event: Event) -> Option<AttemptError> {
    match event {
        Event::Attempt { key: KEY, error } => Some(error),
        _ => None,
    }
}

#[test]
fn tcp_garbage_instead_of_an_initial_packet_is_dropped() {
    let (a, b) = (addr(6, 1), addr(6, 2));
    let node = Node::with(KEY, a, b);
    node.connector.connect(KEY).unwrap();
    node.wait_for(attempt);
    let mut ping = DATA;
    ping[5] = 0x13;
    let header95 = [0x83, 0x5a, 0xff, 0xf2, 0, 0, 0, 0];
    for garbage in [*b"GET / HT", [0; 8], [0xff; 8], ping, header95] {
        let mut stream = connect_from(b.ip(), a).unwrap();
        stream.write_all(&garbage).unwrap();
        assert!(is_closed_by_peer(&mut stream), "{garbage:x?}");
    }
    // One goes away in the middle of the packet, one never says a word.
    drop(connect_from(b.ip(), a).unwrap().write_all(&DATA[..5]));
    assert!(is_closed_by_peer(&mut connect_from(b.ip(), a).unwrap()));

    let right = Node::with(KEY, b, a);
    right.connector.connect(KEY).unwrap();
    assert_connected(&node.established(), &right.established());
}

#[test]
fn tcp_refused_initial_packets_are_reported() {
    let (a, b) = (addr(7, 1), addr(7, 2));
    let node = Node::new();
    let mut quick = path(a, b);
    quick.options.ping_timeout_ms = 10;
    // Once it has one socket it waits for us, and has nothing else to report.
    quick.options.connect_int_ms = 60_000;
    let silent = TcpListener::bind(b).unwrap();
    node.connector.set_peer(KEY, quick).unwrap();
    node.connector.connect(KEY).unwrap();
    let (_ours, _) = silent.accept().unwrap();
    let cases: [(&[u8], InitialError); 2] = [(b"GET / HT", InitialError::Unknown), (&[], InitialError::Timeout)];
    for (bytes, cause) in cases {
        // At most one report a second: the first one may fall to it.
        let end = Instant::now() + LIMIT;
        let mut told = false;
        while !told {
            assert!(Instant::now() < end, "{cause:?} is never reported");
            let mut stream = connect_from(b.ip(), a).unwrap();
            stream.write_all(bytes).unwrap();
            assert!(is_closed_by_peer(&mut stream));
            thread::sleep(Duration::from_millis(50));
            told = node
                .events
                .try_iter()
                .any(|event| matches!(attempt(event), Some(AttemptError::Initial(error)) if error == cause));
        }
    }
}

#[test]
fn tcp_a_closed_port_is_tried_until_it_opens() {
    let (a, b) = (addr(8, 1), addr(8, 2));
    let node = Node::with(KEY, a, b);
    node.connector.connect(KEY).unwrap();
    for _ in 0..2 {
        let error = node.wait_for(attempt);
        assert!(
            matches!(&error, AttemptError::Connect { peer, error }
                if *peer == b && error.kind() == std::io::ErrorKind::ConnectionRefused),
            "{error}"
        );
    }
    let right = Node::with(KEY, b, a);
    right.connector.connect(KEY).unwrap();
    assert_connected(&node.established(), &right.established());
}

/// A peer that is not ours: a listener, and sockets by hand.
struct HandMade {
    listener: TcpListener,
    own: SocketAddr,
    node: SocketAddr,
}

impl HandMade {
    fn new(own: SocketAddr, node: SocketAddr) -> HandMade {
        let listener = TcpListener::bind(own).unwrap();
        HandMade { listener, own, node }
    }

    /// Accepts, and reads the initial packet.
    fn accept(&self) -> (TcpStream, [u8; 8]) {
        let (mut stream, from) = self.listener.accept().unwrap();
        assert_eq!(from.ip(), self.node.ip());
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut packet = [0; 8];
        stream.read_exact(&mut packet).unwrap();
        (stream, packet)
    }

    fn bring(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = connect_from(self.own.ip(), self.node).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    }
}

#[test]
fn tcp_what_follows_the_initial_packet_stays_in_the_socket() {
    let (a, b) = (addr(9, 1), addr(9, 2));
    let peer = HandMade::new(b, a);
    let node = Node::with(KEY, a, b);
    node.connector.connect(KEY).unwrap();
    let (mut control, packet) = peer.accept();
    assert_eq!(packet, META, "the smaller address initiates control");
    control.write_all(b"ping").unwrap();
    let _data = peer.bring(&[&DATA[..], b"features"].concat());
    let mut ours = node.established();
    let mut got = [0; 8];
    ours.data.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"features");
    ours.control.read_exact(&mut got[..4]).unwrap();
    assert_eq!(&got[..4], b"ping");
    assert!(!ours.resolve_conflicts, "it initiated the control socket");
}

#[test]
fn tcp_a_peer_that_only_accepts_or_only_connects_gets_its_pair() {
    let (a, b) = (addr(10, 2), addr(10, 1));
    let peer = HandMade::new(b, a);
    let node = Node::with(KEY, a, b);
    node.connector.connect(KEY).unwrap();
    let (_data, first) = peer.accept();
    let (_control, second) = peer.accept();
    assert_eq!((first, second), (DATA, META));
    assert!(!node.established().resolve_conflicts);

    drop(peer);
    node.connector.connect(KEY).unwrap();
    node.wait_for(attempt);
    let pair = [META, DATA].map(|packet| {
        let mut stream = connect_from(b.ip(), a).unwrap();
        stream.write_all(&packet).unwrap();
        stream
    });
    assert!(node.established().resolve_conflicts);
    drop(pair);
}

#[test]
fn tcp_a_crossed_socket_replaces_the_old_one() {
    let (a, b) = (addr(11, 2), addr(11, 1));
    let peer = HandMade::new(b, a);
    let node = Node::with(KEY, a, b);
    node.connector.connect(KEY).unwrap();
    let (mut old, packet) = peer.accept();
    assert_eq!(packet, DATA);
    let mut new = peer.bring(&DATA);
    assert!(is_closed_by_peer(&mut old));
    let _control = peer.bring(&META);
    let mut ours = node.established();
    new.write_all(b"!").unwrap();
    let mut got = [0];
    ours.data.read_exact(&mut got).unwrap();
    assert!(ours.resolve_conflicts);
}

#[test]
fn tcp_a_socket_lost_during_the_check_is_made_again() {
    let (a, b) = (addr(12, 2), addr(12, 1));
    let peer = HandMade::new(b, a);
    let node = Node::new();
    let mut patient = path(a, b);
    patient.options.socket_check_ms = 400;
    node.connector.set_peer(KEY, patient).unwrap();
    node.connector.connect(KEY).unwrap();
    let (data, packet) = peer.accept();
    assert_eq!(packet, DATA);
    let _control = peer.bring(&META);
    drop(data);
    let (mut again, packet) = peer.accept();
    assert_eq!(packet, DATA);
    let mut ours = node.established();
    ours.data.write_all(b"!").unwrap();
    again.read_exact(&mut [0]).unwrap();
}

#[test]
fn tcp_who_is_not_wanted_is_closed_at_once() {
    let (a, b) = (addr(13, 2), addr(13, 1));
    let peer = HandMade::new(b, a);
    let node = Node::with(KEY, a, b);
    let unwanted = || {
        // Connecting may come before the listener or before the last command.
        let end = Instant::now() + LIMIT;
        loop {
            assert!(Instant::now() < end);
            if let Some(mut stream) = connect_from(b.ip(), a) {
                let _ = stream.write_all(&DATA);
                return is_closed_by_peer(&mut stream);
            }
        }
    };
    assert!(unwanted());

    // A half-made pair ends with disconnect.
    node.connector.connect(KEY).unwrap();
    let (mut data, _) = peer.accept();
    node.connector.disconnect(KEY).unwrap();
    assert!(is_closed_by_peer(&mut data));
    assert!(unwanted());

    // After a pair was handed over nothing touches it, and no other is taken.
    node.connector.connect(KEY).unwrap();
    let (mut data, _) = peer.accept();
    let _control = peer.bring(&META);
    let mut ours = node.established();
    assert!(unwanted());
    node.connector.disconnect(KEY).unwrap();
    node.connector.remove_peer(KEY).unwrap();
    drop(node);
    ours.data.write_all(b"!").unwrap();
    data.read_exact(&mut [0]).unwrap();
}

#[test]
fn tcp_changed_path_goes_on_connecting() {
    let (a, b, moved) = (addr(14, 1), addr(14, 2), addr(14, 3));
    let node = Node::with(KEY, a, b);
    node.connector.connect(KEY).unwrap();
    let right = Node::with(KEY, b, moved);
    right.connector.connect(KEY).unwrap();
    node.connector.set_peer(KEY, path(moved, b)).unwrap();
    assert_connected(&node.established(), &right.established());
}

#[test]
fn tcp_silent_sockets_are_bounded_and_do_not_keep_the_peer_out() {
    let (a, b) = (addr(15, 1), addr(15, 2));
    let node = Node::new();
    let mut quick = path(a, b);
    quick.options.ping_timeout_ms = 50;
    node.connector.set_peer(KEY, quick).unwrap();
    node.connector.connect(KEY).unwrap();
    node.wait_for(attempt);
    let mut silent: Vec<TcpStream> =
        (0..3 * limits::PENDING_PER_PEER).map(|_| connect_from(b.ip(), a).unwrap()).collect();
    let right = Node::with(KEY, b, a);
    right.connector.connect(KEY).unwrap();
    assert_connected(&node.established(), &right.established());
    assert!(silent.iter_mut().all(is_closed_by_peer));
}

#[test]
fn tcp_a_taken_address_is_reported_and_tried_again() {
    let (a, b) = (addr(16, 1), addr(16, 2));
    let squatter = TcpListener::bind(a).unwrap();
    let node = Node::with(KEY, a, b);
    let (addr, error) = node.wait_for(|event| match event {
        Event::ListenFailed { addr, error } => Some((addr, error)),
        _ => None,
    });
    assert_eq!(addr, a);
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(squatter);
    let right = Node::with(KEY, b, a);
    node.connector.connect(KEY).unwrap();
    right.connector.connect(KEY).unwrap();
    assert_ne!(node.established().resolve_conflicts, right.established().resolve_conflicts);
}

#[test]
fn tcp_bad_calls_are_refused() {
    let (a, b) = (addr(17, 1), addr(17, 2));
    let connector = Connector::spawn(ConnectorConfig::default(), Box::new(|_| {})).unwrap();
    connector.set_peer(KEY, path(a, b)).unwrap();
    let mut same_host = b;
    same_host.set_port(1);
    assert!(matches!(
        connector.set_peer((9, 9), path(a, same_host)),
        Err(ConnectorError::Ambiguous { other: KEY, .. })
    ));
    assert!(matches!(connector.set_peer((9, 9), path(a, a)), Err(ConnectorError::Path(_))));
    assert!(matches!(connector.connect((9, 9)), Err(ConnectorError::UnknownPeer((9, 9)))));
    connector.remove_peer(KEY).unwrap();
    assert!(matches!(connector.disconnect(KEY), Err(ConnectorError::UnknownPeer(KEY))));
    connector.set_peer((9, 9), path(a, same_host)).unwrap();
}

#[test]
fn tcp_peers_are_bounded() {
    let connector = Connector::spawn(ConnectorConfig::default(), Box::new(|_| {})).unwrap();
    let own = addr(18, 1);
    let set = |n: usize| {
        let host = u16::try_from(n).unwrap().to_be_bytes();
        let peer = SocketAddr::new([127, 99, host[0], host[1]].into(), 7789);
        connector.set_peer((u32::try_from(n).unwrap(), 0), path(own, peer))
    };
    for n in 0..limits::PEERS {
        set(n).unwrap();
        connector.connect((u32::try_from(n).unwrap(), 0)).unwrap();
    }
    assert!(matches!(set(limits::PEERS), Err(ConnectorError::TooManyPeers)));
}

#[test]
fn tcp_the_callback_may_use_and_drop_the_connector() {
    let (a, b) = (addr(19, 1), addr(19, 2));
    let holder = Arc::new(Mutex::new(None::<Connector>));
    let (tell, told) = mpsc::channel();
    let inner = Arc::clone(&holder);
    let on_event = Box::new(move |event| {
        if let Event::Attempt { key, .. } = event
            && let Some(connector) = inner.lock().unwrap().take()
        {
            connector.disconnect(key).unwrap();
            drop(connector);
            tell.send(()).unwrap();
        }
    });
    let connector = Connector::spawn(ConnectorConfig::default(), on_event).unwrap();
    connector.set_peer(KEY, path(a, b)).unwrap();
    let mut lock = holder.lock().unwrap();
    connector.connect(KEY).unwrap();
    *lock = Some(connector);
    drop(lock);
    told.recv_timeout(LIMIT).unwrap();
}

#[test]
fn tcp_buffer_sizes_reach_both_kinds_of_sockets() {
    let (a, b) = (addr(20, 1), addr(20, 2));
    let nodes = [(a, b), (b, a)].map(|(own, peer)| {
        let node = Node::new();
        let mut sized = path(own, peer);
        sized.options = PathOptions { sndbuf_bytes: 128 << 10, rcvbuf_bytes: 64 << 10, ..PathOptions::default() };
        node.connector.set_peer(KEY, sized).unwrap();
        node.connector.connect(KEY).unwrap();
        node
    });
    // Both first: the end of one node's pair would take the other's before it is confirmed.
    let pairs = nodes.each_ref().map(Node::established);
    for Pair { data, control, .. } in pairs {
        for stream in [data, control] {
            let socket = socket2::SockRef::from(&stream);
            assert_eq!(socket.send_buffer_size().unwrap(), 256 << 10);
            assert_eq!(socket.recv_buffer_size().unwrap(), 128 << 10);
        }
    }
}
