//! Real clients against the state machines: libnbd's tools, qemu's tools, fio. And, because all of them negotiate
//! structured replies and GO, a hand-made client for what older ones do.

mod server;
mod tools;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use server::Builder;
use tools::{fio_verify, nbdcopy_roundtrip, nbdinfo, path, run_failing, run_ok};

const MIB: u64 = 1 << 20;

fn seen(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Content that differs everywhere, with a hole in its middle.
fn content(size_bytes: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut data = Vec::with_capacity(usize::try_from(size_bytes).expect("small"));
    while (data.len() as u64) < size_bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data.extend_from_slice(&state.to_be_bytes());
    }
    let third = data.len() / 3;
    data[third..2 * third].fill(0);
    data
}

#[test]
fn nbd_client_nbdinfo_sees_what_is_offered() {
    let server = Builder::default()
        .disk("r0", 4 * MIB, |_| {})
        .disk("ro", 8 * MIB, |e| {
            e.read_only = true;
            e.block_min = 4096;
            e.block_max = 1 << 20;
            e.can_multi_conn = false;
            e.rotational = true;
        })
        .start();
    let Some(info) = nbdinfo(&server.uri("r0")) else {
        return;
    };
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "r0");
    assert_eq!(export["export-size"], 4 * MIB);
    for able in ["can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[able], true, "{able}: {export}");
    }
    for not in ["is_read_only", "is_rotational", "can_cache"] {
        assert_eq!(export[not], false, "{not}: {export}");
    }
    assert_eq!(export["block_size_minimum"], 512);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 * MIB);

    let info = nbdinfo(&server.uri("ro")).expect("was there before");
    let export = &info["exports"][0];
    for is in ["is_read_only", "is_rotational", "can_flush"] {
        assert_eq!(export[is], true, "{is}: {export}");
    }
    for not in ["can_fast_zero", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[not], false, "{not}: {export}");
    }
    assert_eq!(export["block_size_minimum"], 4096);
    assert_eq!(export["block_size_maximum"], MIB);
}

#[test]
fn nbd_client_nbdinfo_lists_exports() {
    let server = Builder::default().disk("r0", MIB, |_| {}).disk("r1", 2 * MIB, |_| {}).start();
    let Some(text) = run_ok("nbdinfo", &["--list", "--json", &server.uri("")]) else {
        return;
    };
    let info: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let exports: Vec<_> = info["exports"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| (e["export-name"].as_str().expect("a name"), e["export-size"].as_u64().expect("a size")))
        .collect();
    assert_eq!(exports, [("r0", MIB), ("r1", 2 * MIB)]);
}

#[test]
fn nbd_client_learns_why_an_export_is_refused() {
    let server = Builder::default().secondary("r9").start();
    if let Some(stderr) = run_failing("qemu-img", &["info", &server.uri("r9")]) {
        assert!(stderr.contains("resource r9 is Secondary here: promote it first"), "{stderr}");
    }
    if let Some(stderr) = run_failing("qemu-img", &["info", &server.uri("nix")]) {
        assert!(stderr.contains("no resource \"nix\" here"), "{stderr}");
    }
    if let Some(stderr) = run_failing("nbdinfo", &[&server.uri("r9")]) {
        assert!(stderr.contains("nbd_opt_go"), "{stderr}");
    }
}

#[test]
fn nbd_client_nbdcopy_copies_there_and_back() {
    let size = 40 * MIB;
    let server = Builder::default().disk("r0", size, |_| {}).start();
    let file = server.dir().join("source");
    let data = content(size);
    std::fs::write(&file, &data).expect("the source");
    // The largest requests there are, several connections, zeroes for the hole, a flush at the end.
    let flags = ["--request-size=33554432", "--connections=2", "--threads=2", "--flush"];
    let Some(back) = nbdcopy_roundtrip(&server.uri("r0"), &file, &flags) else {
        return;
    };
    assert!(*server.data("r0") == data, "the disk differs from the source");
    assert!(back == data, "the copy differs from the source");
    let counts = server.counts();
    assert!(seen(&counts.flush) > 0 && seen(&counts.write_zeroes) + seen(&counts.trim) > 0, "{counts:?}");
    assert_eq!(seen(&counts.refused), 0, "{counts:?}");
}

#[test]
fn nbd_client_nbdcopy_reads_in_parts() {
    let size = 40 * MIB;
    let server = Builder::default().disk("r0", size, |_| {}).start();
    let data = content(size);
    server.data("r0").copy_from_slice(&data);
    let file = server.dir().join("copy");
    let args = ["--request-size=33554432", "--synchronous", &server.uri("r0"), path(&file)];
    if run_ok("nbdcopy", &args).is_none() {
        return;
    }
    assert!(std::fs::read(file).expect("the copy") == data, "the copy differs");
    let counts = server.counts();
    assert_eq!(seen(&counts.read_in_parts), seen(&counts.read), "{counts:?}");
    assert!(seen(&counts.read) > 0 && seen(&counts.structured) > 0, "{counts:?}");
}

#[test]
fn nbd_client_qemu_img_converts_there_and_back() {
    let size = 24 * MIB;
    let server = Builder::default().disk("r0", size, |e| e.block_min = 4096).start();
    let (raw, qcow) = (server.dir().join("raw"), server.dir().join("qcow2"));
    let data = content(size);
    std::fs::write(&raw, &data).expect("the source");
    let uri = server.uri("r0");
    let Some(text) = run_ok("qemu-img", &["info", "--output=json", &uri]) else {
        return;
    };
    let info: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((info["virtual-size"].as_u64(), info["format"].as_str()), (Some(size), Some("raw")));
    run_ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", path(&raw), &uri]);
    assert!(*server.data("r0") == data, "the disk differs from the source");
    run_ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, path(&qcow)]);
    run_ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", path(&raw), path(&qcow)]);
    assert_eq!(seen(&server.counts().refused), 0, "{:?}", server.counts());
}

#[test]
fn nbd_client_qemu_io_sends_every_kind_of_request() {
    let server = Builder::default().disk("r0", 8 * MIB, |_| {}).start();
    let uri = server.uri("r0");
    let commands = [
        "write -P 0x5a 0 1M",
        "write -f -P 0xa5 1M 4k",
        "read -P 0xa5 1M 4k",
        "write -z -u 64k 64k",
        "read -P 0 64k 64k",
        "discard 128k 64k",
        "read -P 0x5a 512 512",
        "flush",
        // Not aligned: the client reads, changes and writes whole blocks.
        "write -P 0x11 100 20",
        "read -P 0x11 100 20",
    ];
    let args: Vec<&str> =
        ["-f", "raw"].into_iter().chain(commands.iter().flat_map(|c| ["-c", c])).chain([&*uri]).collect();
    let Some(stdout) = run_ok("qemu-io", &args) else {
        return;
    };
    assert!(!stdout.contains("failed"), "{stdout}");
    let counts = server.counts();
    for (what, counter) in [
        ("read", &counts.read),
        ("write", &counts.write),
        ("fua", &counts.fua),
        ("flush", &counts.flush),
        ("trim", &counts.trim),
        ("write zeroes", &counts.write_zeroes),
    ] {
        assert!(seen(counter) > 0, "no {what}: {counts:?}");
    }
    assert_eq!(seen(&counts.refused), 0, "{counts:?}");
}

#[test]
fn nbd_client_qemu_io_may_not_write_a_read_only_export() {
    let server = Builder::default().disk("ro", MIB, |e| e.read_only = true).start();
    let uri = server.uri("ro");
    let Some(stderr) = run_failing("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri]) else {
        return;
    };
    assert!(stderr.contains("Permission denied"), "{stderr}");
    let stdout = run_ok("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 4k", &uri]).expect("is there");
    assert!(!stdout.contains("failed"), "{stdout}");
}

#[test]
fn nbd_client_fio_verifies_what_it_wrote() {
    let size = 16 * MIB;
    let server = Builder::default().disk("r0", size, |_| {}).start();
    if fio_verify(&server.uri("r0"), size, server.dir()).is_none() {
        return;
    }
    let counts = server.counts();
    assert!(seen(&counts.write) > 256 && seen(&counts.read) > 256, "{counts:?}");
    assert!(seen(&counts.flush) > 0 && seen(&counts.trim) > 0, "{counts:?}");
    assert_eq!(seen(&counts.refused), 0, "{counts:?}");
}

/// A client of the old kind: EXPORT_NAME, zeroes behind it, simple replies.
struct OldClient(UnixStream);

impl OldClient {
    fn connect(server: &server::RamServer, name: &str) -> OldClient {
        let mut stream = server.connect();
        // A server that sends too little is a failure, not an endless test.
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("the greeting");
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        let mut option = b"\0\0\0\x01IHAVEOPT\0\0\0\x01".to_vec();
        option.extend((name.len() as u32).to_be_bytes());
        option.extend(name.as_bytes());
        stream.write_all(&option).expect("the option");
        OldClient(stream)
    }

    fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).expect("bytes from the server");
        bytes
    }

    fn request(&mut self, command: u16, offset: u64, len: u32, payload: &[u8]) {
        let mut out = vec![0x25, 0x60, 0x95, 0x13, 0, 0];
        out.extend(command.to_be_bytes());
        out.extend(b"cookie..");
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        out.extend(payload);
        self.0.write_all(&out).expect("the request");
    }

    fn reply(&mut self, error: u8) {
        let want = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, error], &b"cookie.."[..]].concat();
        assert_eq!(self.receive::<16>()[..], want);
    }

    fn is_closed(&mut self) -> bool {
        // A close with input that nobody read is a reset.
        match self.0.read(&mut [0]) {
            Ok(len) => len == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn nbd_client_of_the_old_kind() {
    let server = Builder::default().disk("r0", MIB, |_| {}).start();
    let mut client = OldClient::connect(&server, "r0");
    let export: [u8; 134] = client.receive();
    assert_eq!(export[..10], *b"\0\0\0\0\0\x10\0\0\x09\x6d");
    assert_eq!(export[10..], [0; 124]);

    client.request(1, 4096, 1024, &[7; 1024]);
    client.reply(0);
    client.request(0, 4608, 1024, &[]);
    client.reply(0);
    let data: [u8; 1024] = client.receive();
    assert_eq!((data[..512].to_vec(), data[512..].to_vec()), (vec![7; 512], vec![0; 512]));

    // Each of these is refused, and the next request is understood all the same.
    client.request(1, MIB, 1024, &[1; 1024]);
    client.reply(28);
    client.request(1, 100, 4096, &[2; 4096]);
    client.reply(22);
    client.request(0, MIB, 512, &[]);
    client.reply(22);
    client.request(7, 0, 512, &[]);
    client.reply(22);
    assert_eq!(seen(&server.counts().refused), 4);
    client.request(3, 0, 0, &[]);
    client.reply(0);
    client.request(2, 0, 0, &[]);
    assert!(client.is_closed());
}

#[test]
fn nbd_client_of_the_old_kind_is_refused_by_closing() {
    let server = Builder::default().secondary("r9").start();
    assert!(OldClient::connect(&server, "r9").is_closed());
    assert!(OldClient::connect(&server, "nix").is_closed());
}
