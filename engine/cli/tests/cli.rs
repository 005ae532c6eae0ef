//! The real `zea` binary against a control server with an engine in memory.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use zea_node::fake::FakeNode;

struct Lab {
    // Dropped in this order: the daemon stops before its directory goes.
    node: FakeNode,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let node = FakeNode::start(dir.path()).unwrap();
        Lab { node, dir }
    }

    fn zea(&self, line: &str) -> Output {
        zea(&self.node.socket, line)
    }

    /// Runs a line that works; gives its output.
    fn ok(&self, line: &str) -> String {
        let output = self.zea(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a line that fails; gives its exit code and message.
    fn fails(&self, line: &str) -> (i32, String) {
        failure(&self.zea(line))
    }

    fn create(&self, name: &str) {
        let port = 7789 + u16::from(name == "r1");
        self.ok(&self.create_line(name, port));
    }

    fn create_line(&self, name: &str, port: u16) -> String {
        let disk = self.dir.path().join(format!("{name}.img"));
        format!(
            "resource create {name} --node 0=alpha@127.0.0.1:{port} --node 1=bravo@127.0.0.2:{port} --volume 0={},size=4M",
            disk.display()
        )
    }
}

fn zea(socket: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zea"))
        .args(line.split_whitespace())
        .env("ZEA_SOCKET", socket)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn failure(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

#[test]
fn cli_exit_codes_say_what_kind_of_end_it_was() {
    let lab = Lab::new();
    lab.create("r0");
    assert_eq!(lab.fails("status r7").0, 1);
    assert_eq!(lab.fails("promote").0, 2);
    assert_eq!(lab.fails("apply /nowhere").0, 2);
    let (code, message) = lab.fails("promote r0");
    assert_eq!((code, message.as_str()), (3, "zea: r0: State change failed: (-2) Need access to UpToDate data\n"));
    let (code, message) = lab.fails("wait r0 --for uptodate --timeout 0");
    assert_eq!((code, message.as_str()), (5, "zea: r0: after 0 s still not there: r0/0 is Inconsistent\n"));
    let (code, message) = failure(&zea(&lab.dir.path().join("other.sock"), "status"));
    assert!(code == 4 && message.contains("is zead running"), "{code} {message}");
}

#[test]
fn cli_lists_and_versions_are_there_for_scripts() {
    let lab = Lab::new();
    lab.create("r0");
    let json = |line: &str| serde_json::from_str::<serde_json::Value>(&lab.ok(line)).unwrap();
    let list = json("resource list --json");
    assert_eq!((&list[0]["name"], &list[0]["up"]), (&"r0".into(), &true.into()));
    let version = json("version --json");
    assert_eq!(version["zea"], version["zead"]["version"]);
}

#[test]
fn cli_resources_do_not_share_a_port_or_a_device() {
    let lab = Lab::new();
    lab.create("r0");
    let (code, message) = lab.fails(&lab.create_line("r1", 7789));
    assert!(code == 3 && message.contains("r0 has 127.0.0.1:7789 towards the same host"), "{code} {message}");
    let (code, message) = lab.fails(&lab.create_line("r1", 7790).replace("r1.img", "r0.img"));
    assert!(code == 3 && message.contains("belongs to r0"), "{code} {message}");
    assert!(!lab.ok("status").contains("r1"), "nothing of it is left");
    assert!(!lab.dir.path().join("r1.img").exists());
    lab.create("r1");
}

#[test]
fn cli_what_is_so_already_is_no_failure() {
    let lab = Lab::new();
    lab.create("r0");
    let output = lab.zea("attach r0 0");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("r0/0 is attached already"), "{output:?}");
    for line in ["connect r0", "disconnect r0", "disconnect r0", "demote r0", "up r0", "down r0", "down r0"] {
        lab.ok(line);
    }
}

#[test]
fn cli_a_daemon_that_goes_away_is_not_reachable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        listener.accept().unwrap();
        listener.accept().unwrap().0.write_all(b"{\"surprise\":1}\n").unwrap();
    });
    assert_eq!(failure(&zea(&socket, "status")).0, 4);
    assert_eq!(failure(&zea(&socket, "demote r0")).0, 4);
    server.join().unwrap();
}

#[test]
fn cli_status_is_a_table_or_json() {
    let lab = Lab::new();
    assert_eq!(lab.ok("status"), "no resources (zea resource create --help)\n");
    assert_eq!(lab.ok("status --json"), "[]\n");
    lab.create("r0");
    lab.create("r1");
    lab.ok("down r1");
    lab.node.engine.edit("r0", |r0| {
        r0.connections[0].connection_state = "Connected".into();
        let peer_device = &mut r0.connections[0].peer_devices[0];
        peer_device.replication_state = "SyncTarget".into();
        peer_device.out_of_sync = 1536;
        peer_device.rs_total = Some(8192);
        peer_device.percent_resync_done = Some(62.5);
        peer_device.unverified = true;
    });
    let table = lab.ok("status");
    insta::assert_snapshot!(table);
    assert!(!table.contains('\x1b'), "no colours outside of a terminal");
    let json: serde_json::Value = serde_json::from_str(&lab.ok("status r0 --json")).unwrap();
    assert_eq!(json[0]["connections"][0]["peer_devices"][0]["replication-state"], "SyncTarget");
    assert_eq!(json[0]["connections"][0]["peer_devices"][0]["unverified"], true);
    assert_eq!(json[0]["devices"][0]["disk-state"], "Inconsistent");
    let verbose = lab.ok("status r0 -v");
    let export = format!("nbd+unix:///r0/0?socket={}", lab.dir.path().join("nbd.sock").display());
    assert!(verbose.contains(&export), "{verbose}");
}

#[test]
fn cli_verify_waits_and_says_what_was_found() {
    let lab = Lab::new();
    lab.create("r0");
    let (code, message) = lab.fails("verify r0");
    assert!(code == 3 && message.contains("(-15) no peer is connected"), "{message}");
    let found = |out_of_sync: u64| {
        lab.node.engine.edit("r0", |r0| {
            let result = zea_node::api::VerifyResult { complete: true, compared: 4096, skipped: 8, out_of_sync };
            r0.connections[0].connection_state = "Connected".into();
            r0.connections[0].peer_devices[0].last_verify = Some(result);
        });
    };
    found(0);
    assert_eq!(lab.ok("verify r0 --wait"), "r0/0 bravo: 4.00 MiB compared, 8.00 KiB skipped, 0 B out of sync\n");
    let json: serde_json::Value = serde_json::from_str(&lab.ok("verify r0 --wait --json")).unwrap();
    assert_eq!((json[0]["conn-name"].as_str(), json[0]["compared"].as_u64()), (Some("bravo"), Some(4096)));
    assert_eq!(lab.ok("verify r0 --wait --volume 0 bravo").lines().count(), 1);
    found(12);
    let output = lab.zea("verify r0 --wait");
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(out.contains("12.00 KiB out of sync"), "{out}");
    assert!(err.contains("zea disconnect r0 bravo, then zea connect r0 bravo"), "{err}");
}

#[test]
fn cli_json_status_has_the_keys_of_drbdsetup() {
    let lab = Lab::new();
    lab.create("r0");
    let json: serde_json::Value = serde_json::from_str(&lab.ok("status --json")).unwrap();
    let has = |value: &serde_json::Value, keys: &[&str]| {
        keys.iter().for_each(|key| assert!(value.get(key).is_some(), "{key} in {value}"));
    };
    let r0 = &json[0];
    has(r0, &["name", "node-id", "role", "suspended", "suspended-user", "suspended-no-data", "suspended-fencing"]);
    has(r0, &["suspended-quorum", "write-ordering", "devices", "connections"]);
    has(&r0["devices"][0], &["volume", "disk-state", "open", "size", "read", "written", "al-writes", "bm-writes"]);
    has(&r0["devices"][0], &["upper-pending"]);
    let connection = &r0["connections"][0];
    has(connection, &["peer-node-id", "name", "connection-state", "peer-role", "paths", "peer_devices"]);
    let peer_device = &connection["peer_devices"][0];
    has(peer_device, &["volume", "replication-state", "peer-disk-state", "received", "sent", "out-of-sync"]);
    has(peer_device, &["has-sync-details", "percent-in-sync", "unverified"]);
}

#[test]
fn cli_events_begin_with_the_state() {
    let lab = Lab::new();
    lab.create("r0");
    for (option, begin) in [("", "exists resource name:r0 role:Secondary"), ("--json", "{\"action\":\"exists\"")] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_zea"))
            .args(["events", "r0"])
            .args(option.split_whitespace())
            .env("ZEA_SOCKET", &lab.node.socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(line.starts_with(begin), "{line}");
    }
}

#[test]
fn cli_apply_shows_the_mistake_in_the_file() {
    let lab = Lab::new();
    let file = lab.dir.path().join("r0.toml");
    std::fs::write(&file, "name = \"r0\"\n[nett]\n").unwrap();
    let (code, message) = lab.fails(&format!("apply {}", file.display()));
    assert_eq!(code, 2);
    assert!(message.contains("r0.toml:2:2") && message.contains("^^^^"), "{message}");
    let disk = lab.dir.path().join("r0.img");
    let text = format!(
        "name = \"r0\"\nnet = {{ cram-hmac-alg = \"sha256\", secret-file = \"r0.secret\" }}\n\
         node = [{{ id = 0, name = \"alpha\", address = \"127.0.0.1:7789\" }}]\n\
         volume = [{{ nr = 0, disk = \"{}\", size = \"4M\" }}]\n",
        disk.display()
    );
    std::fs::write(&file, text).unwrap();
    let (code, message) = lab.fails(&format!("apply {}", file.display()));
    assert!(code == 2 && message.contains("r0.secret") && message.contains("r0.toml:2:"), "{code} {message}");
    std::fs::write(lab.dir.path().join("r0.secret"), "hush\n").unwrap();
    lab.ok(&format!("apply {}", file.display()));
    assert_eq!(std::fs::read(lab.dir.path().join("secrets/r0")).unwrap(), b"hush");
    assert!(lab.ok("resource list").contains("nbd+unix:///r0/0"));
}

#[test]
fn cli_wait_ends_when_the_goal_is_reached() {
    let lab = Lab::new();
    lab.create("r0");
    let (code, message) = lab.fails("wait r0 --for connected --timeout 0");
    assert!(code == 5 && message.contains("the connection to bravo is Connecting"), "{message}");
    lab.ok("promote r0 --force");
    lab.ok("wait r0 --for uptodate --timeout 5");
    lab.node.engine.edit("r0", |r0| {
        let bravo = &mut r0.connections[0];
        bravo.connection_state = "Connected".into();
        bravo.peer_devices[0].replication_state = "Established".into();
        bravo.peer_devices[0].peer_disk_state = "Inconsistent".into();
    });
    lab.ok("wait r0 --for connected --timeout 5");
    assert!(lab.fails("wait r0 --for synced --timeout 0").1.contains("r0/0 on bravo is Inconsistent"));
    lab.node.engine.edit("r0", |r0| r0.connections[0].peer_devices[0].peer_disk_state = "UpToDate".into());
    lab.ok("wait r0 --for synced --timeout 5");
    lab.ok("demote r0");
    lab.ok("down r0");
    assert_eq!(lab.fails("wait r0 --for synced --timeout 5").0, 3);
}

#[test]
fn cli_closed_output_is_no_error() {
    let lab = Lab::new();
    lab.create("r0");
    let mut child = Command::new(env!("CARGO_BIN_EXE_zea"))
        .args(["status", "--watch"])
        .env("ZEA_SOCKET", &lab.node.socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn cli_foreign_data_is_not_overwritten() {
    let lab = Lab::new();
    let disk = lab.dir.path().join("disk");
    let mut image = vec![0; 4 << 20];
    image[..4].copy_from_slice(b"XFSB");
    std::fs::write(&disk, &image).unwrap();
    let line = format!("resource create r0 --node 0=alpha@127.0.0.1:7789 --volume 0={}", disk.display());
    let (code, message) = lab.fails(&line);
    assert!(code == 3 && message.contains("XFS file system") && message.contains("--force"), "{code} {message}");
    assert_eq!(std::fs::read(&disk).unwrap(), image);
    lab.ok(&format!("{line} --force"));
}
