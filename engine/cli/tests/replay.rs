//! The real `zea replay` on recordings that are made here.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use zea_core::Resource;
use zea_core::config::{DiskOptions, NetOptions, PeerConfig, ResourceConfig, VolumeConfig};
use zea_core::io::{AdminTag, Command as Admin, Input, LinkId, LinkLost, Outbox, Rng, Time};
use zea_recorder::limits::MIN_RING_BYTES;
use zea_recorder::{RingOptions, Writer};
use zea_wire::ids::{NodeId, VolumeNr};

const SECRET: &str = "hush-hush";

struct Seven;

impl Rng for Seven {
    fn next_u64(&mut self) -> u64 {
        7 << 40
    }
}

/// Records a resource that gets a volume and a peer, and loses a link.
fn record(dir: &Path) {
    let writer = Writer::start(&RingOptions { dir: dir.to_owned(), ring_bytes: MIN_RING_BYTES }).unwrap();
    let mut recording = writer.outlet().record("r0", Time(0));
    let mut core = Resource::new(ResourceConfig::new("r0", NodeId(0)));
    let (peer, link, volume) = (NodeId(1), LinkId(1), VolumeNr(0));
    let net = NetOptions { shared_secret: SECRET.into(), ..NetOptions::default() };
    let commands = [
        Admin::AddVolume(VolumeConfig { volume, size_sectors: None, disk: DiskOptions::default() }),
        Admin::AddPeer(PeerConfig { node_id: peer, name: "bravo".into(), net }),
        Admin::Connect { peer, discard_my_data: false },
    ];
    let inputs = commands.map(|command| Input::Admin { tag: AdminTag(1), command }).into_iter();
    let inputs = inputs.chain([
        Input::LinkUp { peer, link, resolve_conflicts: true },
        Input::LinkDown { peer, link, lost: LinkLost::Network("no route".into()) },
    ]);
    for (ms, input) in (1..).zip(inputs) {
        recording.handle(&mut core, Time(0).plus_ms(ms), &mut Seven, input, &mut Outbox::new());
        recording.end_turn(Time(0).plus_ms(ms));
    }
    drop(recording);
    writer.stop();
}

fn zea(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zea")).arg("replay").args(arguments).output().unwrap()
}

/// Runs a line that works; gives its output.
fn ok(arguments: &[&str]) -> String {
    let output = zea(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn cli_replay_shows_each_transition() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let folder = dir.path().join("r0");
    let text = ok(&[folder.to_str().unwrap()]);
    // Without the instants.
    let lines: Vec<&str> = text.lines().map(|line| line.split_once("Z  ").map_or(line, |(_, rest)| rest)).collect();
    let has = |line: &str| assert!(lines.contains(&line), "{line:?} in\n{text}");
    has("r0: is added");
    has("          resource role: Secondary");
    has("       1  device volume 0 disk-state: Diskless");
    has("       2  connection bravo connection-state: StandAlone");
    has("       3  connection bravo connection-state: StandAlone -> Connecting");
    has("state after input 5:");
    has("end: the resource was taken down in order");
    assert!(text.contains("connection bravo last-error: ") && text.contains("no route"), "{text}");
    let inputs = ok(&[folder.to_str().unwrap(), "--inputs"]);
    assert!(inputs.contains("       2  < command AddPeer bravo\n"), "{inputs}");
    assert!(inputs.contains("       4  < LinkUp"), "{inputs}");
    assert!(!inputs.contains(SECRET));
}

#[test]
fn cli_replay_stops_at_an_instant_and_speaks_json() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let file = dir.path().join("r0/000000000000.zeaflt");
    let file = file.to_str().unwrap();
    let parse = |text: &str| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let all = parse(&ok(&[file, "--json", "--inputs"]));
    assert_eq!(all[0]["begins"], "start");
    let third = all.iter().find(|line| line["input"] == 3 && line["field"] == "connection-state").unwrap();
    assert_eq!((&third["from"], &third["to"]), (&"StandAlone".into(), &"Connecting".into()));
    let state = all.iter().find(|line| line["after-input"] == 5).unwrap();
    assert_eq!(state["state"]["connections"][0]["name"], "bravo");
    assert_eq!(all.last().unwrap()["ends"], "the resource was taken down in order");

    let until = parse(&ok(&[file, "--json", "--until", third["time"].as_str().unwrap()]));
    let last = until.last().unwrap();
    assert_eq!(
        (&last["after-input"], &last["state"]["connections"][0]["connection-state"]),
        (&3.into(), &"Connecting".into())
    );
}

#[test]
fn cli_replay_says_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let fails = |arguments: &[&str], code: i32, text: &str| {
        let output = zea(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains(text), "{arguments:?}: {output:?}");
    };
    fails(&[&path("nothing")], 1, "cannot read");
    fails(&[dir.path().to_str().unwrap()], 1, "has no recording");
    std::fs::write(path("text"), "not a recording").unwrap();
    fails(&[&path("text")], 1, "is no recording");
    fails(&[&path("text"), "--until", "yesterday"], 2, "2026-03-01T04:05:06.789Z");

    // Damage costs what lies behind it, and is an error with a name.
    record(dir.path());
    let file = path("r0/000000000000.zeaflt");
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    for (torn, why) in [
        (true, "behind input 5: a frame that is not complete"),
        (false, "behind input 3: a frame with a wrong checksum"),
    ] {
        if torn {
            bytes.truncate(end - 3);
        } else {
            // In the frame before, of inputs 4 and 5: the one of the end has 13 bytes.
            bytes[end - 15] ^= 1;
        }
        std::fs::write(&file, &bytes).unwrap();
        let output = zea(&[&file]);
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(
            shown.contains("StandAlone -> Connecting") && shown.contains("end: the recording is cut off: "),
            "{shown}"
        );
        fails(&[&file], 1, why);
    }
}
