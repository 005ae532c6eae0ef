//! NBD clients that other people wrote, at a replicated export of a daemon.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use zea_node::api::Request;

use crate::common::{Cluster, Daemon, VOLUME_BYTES};

/// Runs a client. `None`: it is not installed, which is said, and fails in CI.
fn run(tool: &str, args: &[&str]) -> Option<Output> {
    let output = Command::new("timeout").arg("60").arg(tool).args(args).output().unwrap();
    // What timeout(1) says where the command is not found.
    if output.status.code() == Some(127) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{tool} is not installed");
        eprintln!("SKIPPED: {tool} is not installed; this check did NOT run");
        return None;
    }
    Some(output)
}

/// Runs a client that has to succeed; its output.
fn ok(tool: &str, args: &[&str]) -> Option<String> {
    let output = run(tool, args)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {args:?}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

fn uri(node: &Daemon) -> String {
    format!("nbd+unix:///r0/0?socket={}", node.dir().join("nbd.sock").display())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that differ everywhere.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// Clients that said good-bye are gone a moment later; then all replicas are equal.
fn compare_replicas(cluster: &Cluster) {
    let demote = Request::Demote { name: "r0".into() };
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(failure) = cluster.nodes[0].call(&demote) {
        assert!(Instant::now() < end, "{failure}");
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.assert_equal_disks();
}

#[test]
fn nbd_export_tells_clients_what_it_can() {
    let cluster = Cluster::synced(1);
    let Some(json) = ok("nbdinfo", &["--json", &uri(&cluster.nodes[0])]) else { return };
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let export = &json["exports"][0];
    assert_eq!(export["export-size"], VOLUME_BYTES);
    for ability in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[ability], true, "{ability} in {export}");
    }
    assert_eq!((&export["is_read_only"], &export["block_size_minimum"]), (&false.into(), &512.into()), "{export}");
    let unknown = uri(&cluster.nodes[0]).replace("r0/0", "r0/7");
    let output = run("nbdinfo", &[&unknown]).unwrap();
    assert!(!output.status.success());
}

#[test]
fn nbd_export_copies_with_many_connections_also_over_tcp() {
    let mut cluster = Cluster::synced(2);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = cluster.nodes[0].dir().to_owned();
    assert!(cluster.nodes[0].terminate().success());
    cluster.nodes[0] = Daemon::spawn_with(0, &dir, &["--nbd-listen", &format!("127.0.0.1:{port}")]);
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    cluster.nodes[0].ok(&Request::Promote { name: "r0".into(), force: false });
    let tcp = format!("nbd://127.0.0.1:{port}/r0/0");
    let (from, back) = (dir.join("from"), dir.join("back"));
    let data = noise(VOLUME_BYTES as usize);
    std::fs::write(&from, &data).unwrap();
    for (there, here) in [(uri(&cluster.nodes[0]), tcp.clone()), (tcp, uri(&cluster.nodes[0]))] {
        let flags = ["--connections=4", "--flush"];
        if ok("nbdcopy", &[flags[0], flags[1], text(&from), &there]).is_none() {
            return;
        }
        std::fs::write(&back, []).unwrap();
        ok("nbdcopy", &["--connections=4", &here, text(&back)]);
        assert!(std::fs::read(&back).unwrap() == data, "{there}");
        std::fs::write(&from, &data).unwrap();
    }
    compare_replicas(&cluster);
    assert!(cluster.nodes[1].backing() == data);
}

#[test]
fn nbd_export_holds_a_qemu_image() {
    let cluster = Cluster::synced(2);
    let node = &cluster.nodes[0];
    let image = node.dir().join("image.raw");
    let mut data = noise(VOLUME_BYTES as usize);
    data[4 << 20..12 << 20].fill(0);
    std::fs::write(&image, &data).unwrap();
    if ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &uri(node)]).is_none() {
        return;
    }
    ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &uri(node)]);
    compare_replicas(&cluster);
    assert!(cluster.nodes[1].backing() == data);
}

#[test]
fn nbd_export_replicates_every_kind_of_qemu_request() {
    let cluster = Cluster::synced(3);
    let node = &cluster.nodes[0];
    let commands = [
        "write -P 1 0 1M",
        "write -f -P 2 4k 8k",
        "write -z 64k 64k",
        "write -z -u 256k 128k",
        "discard 512k 128k",
        "flush",
        "aio_write -P 3 2M 512k",
        "aio_write -P 4 3M 512k",
        "aio_flush",
        "read -P 1 0 4k",
        "read -P 2 4k 8k",
        "read -P 0 64k 64k",
        "read -P 0 256k 128k",
        "read -P 0 512k 128k",
        "read -P 3 2M 512k",
        "read -P 4 3M 512k",
        // Across two extents of the activity log, and the last sector.
        "write -P 5 4193792 1k",
        "write -P 6 16776704 512",
        "read -P 5 4193792 1k",
        "read -P 6 16776704 512",
    ];
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let uri = uri(node);
    args.push(&uri);
    let Some(said) = ok("qemu-io", &args) else { return };
    assert!(!said.contains("failed"), "{said}");
    compare_replicas(&cluster);
}

#[test]
fn nbd_export_passes_fio_verify_while_a_secondary_dies_and_returns() {
    let mut cluster = Cluster::synced(2);
    let Some(engines) = ok("fio", &["--enghelp"]) else { return };
    if !engines.lines().any(|line| line.trim() == "nbd") {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "fio has no nbd engine");
        eprintln!("SKIPPED: fio has no nbd engine; this check did NOT run");
        return;
    }
    let (dir, uri) = (cluster.nodes[0].dir().to_owned(), uri(&cluster.nodes[0]));
    let fio = std::thread::spawn(move || {
        let (aux, uri) = (format!("--aux-path={}", dir.display()), format!("--uri={uri}"));
        let what = ["--size=16M", "--iodepth=16", "--rw=randwrite", "--bsrange=4k-64k", "--loops=8"];
        let verify = ["--name=verify", "--verify=crc32c", "--verify_fatal=1", "--fsync=32", "--randseed=7"];
        ok("fio", &[&[aux.as_str(), "--ioengine=nbd", uri.as_str()], &what[..], &verify[..]].concat())
    });
    let written = || cluster.nodes[0].status("r0").devices[0].written;
    let begin = written();
    cluster.nodes[0].wait("the load", |_| written() > begin + 1024);
    cluster.nodes[1].kill();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!fio.is_finished(), "the load goes on");
    cluster.nodes[1].restart();
    fio.join().expect("fio verified what it wrote");
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    compare_replicas(&cluster);
}
