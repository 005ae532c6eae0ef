//! What NBD clients may send: it ends their connection or is answered with an error, and touches nobody else.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::common::{Cluster, Daemon, VOLUME_BYTES};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// A request's header.
fn request(magic: u32, command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend([7; 8]);
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

const MAGIC: u32 = 0x2560_9513;

/// An option of the handshake: header only.
fn option(number: u32, len: u32) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT");
    bytes.extend(number.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// True if the server ends it.
fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        }
    }
}

#[test]
fn badinput_nbd_clients_end_their_own_connection_only() {
    let mut cluster = Cluster::synced(2);
    let mut client = cluster.nodes[0].nbd();
    client.write_pattern(0..64, 1);
    let socket = cluster.nodes[0].dir().join("nbd.sock");
    // Connections that say nothing stay until their time is up, and are in nobody's way.
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let handshakes: [(&str, Vec<u8>); 4] = [
        ("noise", vec![0x5a; 4096]),
        ("a web browser", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("an option of 4 GiB", option(7, u32::MAX)),
        ("half an option and the end", option(7, 20)[..15].to_vec()),
    ];
    for (what, bytes) in handshakes {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&bytes).ok();
        if what.contains("the end") {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert!(is_closed(&mut stream), "{what}");
        client.check_pattern(0..64, 1);
    }
    let requests: [(&str, Vec<u8>); 3] = [
        ("a request with another magic", request(1, 0, 0, 4096)),
        ("a write of 4 GiB", request(MAGIC, 1, 0, u32::MAX)),
        ("half a write and the end", [request(MAGIC, 1, 0, 1 << 20), vec![9; 1 << 19]].concat()),
    ];
    for (what, bytes) in requests {
        let bad = cluster.nodes[0].nbd();
        let mut stream = bad.stream();
        stream.write_all(&bytes).ok();
        if what.contains("the end") {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert!(is_closed(&mut stream), "{what}");
        // A write that did not arrive whole changed nothing.
        client.check_pattern(0..64, 1);
    }
    drop(silent);
    assert!(cluster.nodes[0].is_alive());
    client.write_pattern(0..64, 2);
    cluster.nodes.iter().for_each(Daemon::wait_synced);
}

#[test]
fn badinput_nbd_requests_outside_of_the_volume_are_errors() {
    let cluster = Cluster::synced(1);
    let client = cluster.nodes[0].nbd();
    let mut stream = client.stream();
    let cases = [
        ("a read behind the end", 0, VOLUME_BYTES, 4096, EINVAL),
        ("a read over the end", 0, VOLUME_BYTES - 2048, 4096, EINVAL),
        ("a read at the end of all numbers", 0, u64::MAX - 511, 4096, EINVAL),
        ("a discard behind the end", 4, VOLUME_BYTES, 4096, EINVAL),
        ("zeroes behind the end", 6, VOLUME_BYTES, 4096, ENOSPC),
        ("an unknown command", 77, 0, 4096, EINVAL),
    ];
    for (what, command, offset, len, error) in cases {
        stream.write_all(&request(MAGIC, command, offset, len)).unwrap();
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(u32::from_be_bytes(reply[4..8].try_into().unwrap()), error, "{what}");
    }
    let mut client = client;
    client.write_pattern(0..10, 1);
}
