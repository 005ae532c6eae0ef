//! What two nodes refuse each other, and what a peer may send.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use zea_node::api::{Request, ResourceStatus, Secret};
use zea_node::config::{Algorithm, Protocol, ResourceFile, Size};
use zea_tcp::{Connector, ConnectorConfig, Event, PathConfig, PathOptions};

use crate::common::{Cluster, Daemon, NbdClient, connected, promote};

fn told(status: &ResourceStatus) -> &str {
    status.connections[0].last_error.as_deref().unwrap_or_default()
}

fn wait_stand_alone(cluster: &Cluster) {
    let stand_alone = |status: &ResourceStatus| status.connections[0].connection_state == "StandAlone";
    cluster.nodes.iter().for_each(|node| node.wait("StandAlone", stand_alone));
}

/// Waits until status and log of a node say why it is not connected.
fn wait_told(node: &Daemon, why: &str) {
    node.wait(why, |status| told(status).contains(why) && status.connections[0].connection_state != "Connected");
    node.wait_log(why);
}

/// `r0` on two nodes, each changed, and each with a reason not to connect.
fn refused(edit: [&dyn Fn(&mut ResourceFile); 2], secrets: [Option<&str>; 2], why: [&str; 2]) -> Cluster {
    let cluster = Cluster::empty(2);
    for id in 0..2_u8 {
        let index = usize::from(id);
        let mut resource = Box::new(cluster.resource(id));
        edit[index](&mut resource);
        let secret = secrets[index].map(|secret| {
            resource.net.cram_hmac_alg.get_or_insert(Algorithm::Sha256);
            resource.net.secret_file = Some("given".into());
            Secret(secret.into())
        });
        cluster.nodes[index].ok(&Request::ResourceCreate { resource, secret, force: false });
    }
    (0..2).for_each(|index| wait_told(&cluster.nodes[index], why[index]));
    cluster
}

fn same(_: &mut ResourceFile) {}

#[test]
fn badinput_wire_secrets_that_differ_are_refused() {
    let why = "shared-secret or cram-hmac-alg differ";
    let cluster = refused([&same, &same], [Some("hush"), Some("other")], [why, why]);
    wait_stand_alone(&cluster);
    // The secret itself is nobody's business.
    assert!(!cluster.nodes.iter().any(|node| node.log().contains("hush") || node.log().contains("\"other\"")));
    let sha1 = |resource: &mut ResourceFile| resource.net.cram_hmac_alg = Some(Algorithm::Sha1);
    refused([&same, &sha1], [Some("hush"), Some("hush")], ["authentication of the peer failed"; 2]);
}

#[test]
fn badinput_wire_a_peer_without_a_secret_is_refused() {
    refused(
        [&same, &same],
        [Some("hush"), None],
        ["the peer does not authenticate", "the peer wants authentication (cram-hmac-alg)"],
    );
}

#[test]
fn badinput_wire_settings_that_differ_are_refused() {
    let asynchronous = |resource: &mut ResourceFile| resource.net.protocol = Protocol::A;
    let cluster = refused([&asynchronous, &same], [None, None], ["incompatible settings: protocol"; 2]);
    wait_stand_alone(&cluster);
    // Made alike, they connect.
    let text = cluster.resource(0).to_toml();
    cluster.nodes[0].ok(&Request::Apply { file: "r0.toml".into(), text, secret: None, force: false });
    let connect = Request::Connect { name: "r0".into(), peer: None, discard_my_data: false };
    cluster.nodes.iter().for_each(|node| node.ok(&connect));
    cluster.nodes.iter().for_each(|node| node.wait("connected", connected));
}

#[test]
fn badinput_wire_node_ids_that_differ_are_refused() {
    let other = |resource: &mut ResourceFile| resource.nodes[0].id = 2;
    let cluster =
        refused([&same, &other], [None, None], ["expects node id 2 (own 0)", "presented node id 0 (expected 2)"]);
    sleep(Duration::from_secs(1));
    for node in &cluster.nodes {
        let log = node.log();
        let lines = log.lines().filter(|line| line.contains("node id") && !line.contains("DEBUG")).count();
        assert!(lines <= 3, "tried again and again, said once, not {lines} times");
    }
}

#[test]
fn badinput_wire_a_node_that_the_peer_does_not_know_is_told_so() {
    let cluster = Cluster::empty(3);
    cluster.create(0, same);
    cluster.create(1, |resource| resource.nodes.truncate(2));
    cluster.create(2, same);
    let to_node_1 = |status: &ResourceStatus| {
        let connection = status.connections.iter().find(|connection| connection.peer_node_id == 1).unwrap();
        connection.last_error.clone().unwrap_or_default()
    };
    let why = format!("knows no peer with the address {}", cluster.addresses[2].ip());
    cluster.nodes[2].wait("a reason", |status| to_node_1(status).contains(&why));
    // The others are connected meanwhile.
    cluster.nodes[1].wait("connected", connected);
    let to_node_0 = |status: &ResourceStatus| status.connections[0].connection_state == "Connected";
    cluster.nodes[2].wait("connected with node 0", to_node_0);
}

#[test]
fn badinput_wire_a_disk_that_is_too_small_is_refused() {
    let cluster = Cluster::empty(2);
    cluster.create(0, same);
    cluster.nodes[0].ok(&promote(true));
    cluster.create(1, |resource| resource.volumes[0].size = Some(Size(8 << 20)));
    wait_told(&cluster.nodes[0], "the peer's disk is too small: 16384 sectors, this volume has 32768");
    wait_told(&cluster.nodes[1], "the local disk is too small: 16384 sectors, the volume has 32768");
    cluster.nodes[0].nbd().write_pattern(0..4000, 1);
}

#[test]
fn badinput_wire_a_larger_disk_gives_what_the_volume_needs() {
    let cluster = Cluster::empty(2);
    cluster.create(0, same);
    cluster.nodes[0].ok(&promote(true));
    cluster.create(1, |resource| resource.volumes[0].size = Some(Size(40 << 20)));
    cluster.nodes[0].wait_synced();
    cluster.nodes[0].nbd().write_pattern(0..4000, 1);
    cluster.nodes[1].wait("the agreed size", |status| status.devices[0].size == 16 << 10);
}

#[test]
fn badinput_wire_volume_numbers_that_differ_are_told() {
    let cluster = Cluster::empty(2);
    for nr in 0..2_u8 {
        cluster.create(nr, |resource| {
            resource.volumes[0].nr = nr.into();
            resource.net.ping_timeout_ms = 200;
        });
    }
    wait_told(&cluster.nodes[0], "says nothing of volume 0");
    wait_told(&cluster.nodes[1], "says nothing of volume 1");
}

#[test]
fn badinput_wire_disks_of_different_clusters_are_refused() {
    let cluster = Cluster::empty(2);
    for id in 0..2 {
        cluster.create(id, same);
        let disconnect = Request::Disconnect { name: "r0".into(), peer: None, force: true };
        cluster.nodes[usize::from(id)].ok(&disconnect);
        cluster.nodes[usize::from(id)].ok(&promote(true));
        cluster.nodes[usize::from(id)].nbd().write_pattern(0..10, id);
        let down = Request::Down { name: "r0".into() };
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(failure) = cluster.nodes[usize::from(id)].call(&down) {
            assert!(Instant::now() < end, "{failure}");
        }
    }
    let up = Request::Up { name: "r0".into() };
    let connect = Request::Connect { name: "r0".into(), peer: None, discard_my_data: false };
    for node in &cluster.nodes {
        node.ok(&up);
        node.call(&connect).ok();
    }
    cluster.nodes.iter().for_each(|node| wait_told(node, "unrelated data: these disks never belonged"));
    for (tag, node) in (0..).zip(&cluster.nodes) {
        node.ok(&promote(false));
        node.nbd().check_pattern(0..10, tag);
    }
}

/// Somebody who connects as a peer does, and then sends what he likes.
struct RawPeer {
    connector: Connector,
    events: Receiver<Event>,
}

impl RawPeer {
    fn new(own: SocketAddr, peer: SocketAddr) -> RawPeer {
        let (sender, events) = channel();
        let on_event = Box::new(move |event| drop(sender.send(event)));
        let connector = Connector::spawn(ConnectorConfig::default(), on_event).unwrap();
        connector.set_peer((0, 0), PathConfig { own, peer, options: PathOptions::default() }).unwrap();
        RawPeer { connector, events }
    }

    /// Data and control stream.
    fn connect(&self) -> [TcpStream; 2] {
        self.connector.connect((0, 0)).unwrap();
        loop {
            let event = self.events.recv_timeout(Duration::from_secs(20)).expect("a pair of sockets");
            if let Event::Established { data, control, .. } = event {
                return [data, control].map(|fd| {
                    let stream = TcpStream::from(fd);
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                    stream
                });
            }
        }
    }
}

/// A packet with header 100.
fn packet(volume: u16, command: u16, length: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = 0x8620_ec20_u32.to_be_bytes().to_vec();
    bytes.extend(volume.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// P_CONNECTION_FEATURES of node 1 for node 0, in its header 80.
fn features(protocol_min: u32, protocol_max: u32) -> Vec<u8> {
    let mut body = vec![0; 80];
    body[..4].copy_from_slice(&protocol_min.to_be_bytes());
    body[8..12].copy_from_slice(&protocol_max.to_be_bytes());
    body[12..16].copy_from_slice(&1_u32.to_be_bytes());
    let mut bytes = vec![0x83, 0x74, 0x02, 0x67, 0xff, 0xfe, 0, 80];
    bytes.extend(body);
    bytes
}

/// True if the other side ends the stream.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn badinput_wire_illegal_packets_end_the_connection_and_nothing_else() {
    let mut cluster = Cluster::empty(2);
    cluster.create(0, same);
    cluster.nodes[1].kill();
    cluster.nodes[0].ok(&promote(true));
    let mut client = cluster.nodes[0].nbd();
    let peer = RawPeer::new(cluster.addresses[1], cluster.addresses[0]);
    let mut noise = vec![0; 64 << 10];
    File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let good = || features(118, 124);
    let cases: [(&str, Vec<u8>); 9] = [
        ("noise", noise),
        ("zeros", vec![0; 4096]),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: zea\r\n\r\n".to_vec()),
        ("half a packet and the end", good()[..50].to_vec()),
        ("no protocol version in common", features(90, 96)),
        ("an unknown command", [good(), packet(0xffff, 0x7777, 8, &[0; 8])].concat()),
        ("a body of 4 GiB", [good(), packet(0, 0, u32::MAX, &[])].concat()),
        ("data before the handshake", [good(), packet(0, 0, 4120, &[0; 4120])].concat()),
        ("a packet of another length", [good(), packet(0xffff, 0x0b, 3, &[1, 2, 3])].concat()),
    ];
    for (nr, (what, bytes)) in (0..).zip(cases) {
        // After a refusal for good the administrator has the word.
        let connect = Request::Connect { name: "r0".into(), peer: None, discard_my_data: false };
        cluster.nodes[0].call(&connect).ok();
        let [mut data, control] = peer.connect();
        // It may close before it has read everything.
        data.write_all(&bytes).ok();
        if what.contains("the end") {
            data.shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert!(is_closed(&mut data), "{what}\n{}", cluster.nodes[0].log_tail());
        // Where the end came before the daemon had the pair, it may still wait for another socket to go with this one.
        drop(control);
        serves(&mut cluster.nodes[0], &mut client, nr, what);
    }
    let [_data, mut control] = {
        cluster.nodes[0].call(&Request::Connect { name: "r0".into(), peer: None, discard_my_data: false }).ok();
        peer.connect()
    };
    control.write_all(&[0x55; 100]).unwrap();
    assert!(is_closed(&mut control), "noise on the control stream");
    serves(&mut cluster.nodes[0], &mut client, 20, "noise on the control stream");
    // The real peer still gets in.
    drop(peer);
    cluster.nodes[1].restart();
    cluster.create(1, same);
    cluster.nodes[0].call(&Request::Connect { name: "r0".into(), peer: None, discard_my_data: false }).ok();
    cluster.nodes.iter().for_each(Daemon::wait_synced);
}

/// The daemon runs, answers, says why there is no peer, and its client can write.
fn serves(node: &mut Daemon, client: &mut NbdClient, tag: u8, what: &str) {
    assert!(node.is_alive(), "{what}");
    client.write_pattern(0..4, tag);
    client.check_pattern(0..4, tag);
    let status = node.status("r0");
    assert_ne!(status.connections[0].connection_state, "Connected", "{what}");
    assert_ne!(told(&status), "", "{what}: the status says why");
}

#[test]
fn badinput_wire_strangers_and_floods_leave_a_connection_alone() {
    let mut cluster = Cluster::synced(2);
    let mut client = cluster.nodes[0].nbd();
    let target = cluster.addresses[0];
    let streams: Vec<TcpStream> = (0..200)
        .filter_map(|nr: usize| {
            let mut stream = TcpStream::connect(target).ok()?;
            stream.write_all(&vec![0xa5; nr * 7]).ok();
            Some(stream)
        })
        .collect();
    client.write_pattern(0..100, 1);
    drop(streams);
    client.check_pattern(0..100, 1);
    assert!(cluster.nodes[0].is_alive());
    cluster.nodes.iter().for_each(Daemon::wait_synced);
}
