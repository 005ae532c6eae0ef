//! Flight recordings of daemons that are killed.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use zea_node::api::{Request, ResourceStatus};
use zea_node::recorded_status;
use zea_recorder::limits::CHUNK_MS;
use zea_recorder::{Begin, Ending, Moment, Recorded, replay};

use crate::common::{Cluster, Daemon};

/// What the replay of a recording showed.
#[derive(Debug)]
struct Seen {
    begins: Vec<Begin>,
    endings: Vec<Ending>,
    inputs: u64,
    /// Of the last run.
    state: ResourceStatus,
}

fn folder(node: &Daemon) -> PathBuf {
    node.dir().join("flight/r0")
}

fn replayed(node: &Daemon) -> Seen {
    let (mut begins, mut endings, mut inputs, mut state) = (Vec::new(), Vec::new(), 0, None);
    let recorded = Recorded::open(&folder(node)).unwrap();
    replay(&recorded, |moment| {
        match moment {
            Moment::Begins { how, .. } => begins.push(how),
            Moment::Input { .. } => {}
            Moment::Done { .. } => inputs += 1,
            Moment::Ends { ending, core } => {
                endings.push(ending.clone());
                state = core.map(|core| recorded_status("r0", &core.status()));
            }
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    Seen { begins, endings, inputs, state: state.expect("a core") }
}

/// What a core knows of a status; without what changes with every write, if writes go on.
fn of_the_core(mut status: ResourceStatus, writes_go_on: bool) -> ResourceStatus {
    for device in &mut status.devices {
        (device.open, device.open_count) = (false, 0);
        device.backing_dev.clear();
        device.export.clear();
        if writes_go_on {
            (device.read, device.written, device.upper_pending) = (0, 0, 0);
            (device.al_writes, device.bm_writes) = (0, 0);
        }
    }
    for connection in &mut status.connections {
        connection.paths.clear();
        connection.last_error = None;
        for device in connection.peer_devices.iter_mut().filter(|_| writes_go_on) {
            (device.sent, device.received) = (0, 0);
        }
    }
    status
}

/// Longer than a recording may lag behind.
fn let_it_write() {
    sleep(Duration::from_millis(5 * CHUNK_MS));
}

/// The status, and then the end of the process.
fn status_and_kill(node: &mut Daemon) -> ResourceStatus {
    let status = node.status("r0");
    let_it_write();
    node.kill();
    status
}

#[test]
fn recorder_of_a_killed_node_replays_to_the_state_that_it_had() {
    let mut cluster = Cluster::synced(2);
    let mut client = cluster.nodes[0].nbd();
    client.write_pattern(0..100, 1);

    // The Secondary dies under I/O.
    let stop = AtomicBool::new(false);
    let bravo = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                client.write_pattern(100..200, 2);
            }
        });
        let status = status_and_kill(&mut cluster.nodes[1]);
        stop.store(true, Ordering::Relaxed);
        status
    });
    let seen = replayed(&cluster.nodes[1]);
    assert_eq!((&seen.begins[..], &seen.endings[..]), (&[Begin::Start][..], &[Ending::Stopped][..]));
    assert!(seen.inputs > 300, "{} inputs", seen.inputs);
    assert_eq!(of_the_core(seen.state, true), of_the_core(bravo, true));

    // The Primary notes what its peer misses, and dies.
    cluster.nodes[0].wait("the loss of node 1", |status| status.connections[0].connection_state != "Connected");
    client.write_pattern(50..150, 3);
    client.flush();
    let alpha = status_and_kill(&mut cluster.nodes[0]);
    assert!(alpha.connections[0].peer_devices[0].out_of_sync >= 400, "{alpha:?}");
    let seen = replayed(&cluster.nodes[0]);
    assert_eq!((&seen.begins[..], &seen.endings[..]), (&[Begin::Start][..], &[Ending::Stopped][..]));
    assert_eq!(of_the_core(seen.state, false), of_the_core(alpha, false));

    // The next run is recorded behind it, and ends in order.
    cluster.nodes[0].restart();
    let_it_write();
    assert!(cluster.nodes[0].terminate().success());
    let seen = replayed(&cluster.nodes[0]);
    assert_eq!(seen.begins, [Begin::Start, Begin::Start]);
    assert_eq!(seen.endings, [Ending::Stopped, Ending::Ended]);
    assert_eq!(seen.state.devices[0].disk_state, "Diskless", "it was taken down");
}

#[test]
fn recorder_replays_a_ring_that_has_wrapped() {
    let mut cluster = Cluster::empty(1);
    let options = ["--flight-recorder-size", "1"];
    cluster.nodes[0].kill();
    let dir = cluster.nodes[0].dir().to_owned();
    cluster.nodes[0] = Daemon::spawn_with(0, &dir, &options);
    cluster.create(0, |_| {});
    cluster.nodes[0].ok(&Request::Promote { name: "r0".into(), force: true });
    let mut client = cluster.nodes[0].nbd();
    let first = folder(&cluster.nodes[0]).join("000000000000.zeaflt");
    let_it_write();
    assert!(first.exists());
    let mut rounds = 0;
    while first.exists() {
        client.write_pattern(0..400, 1);
        rounds += 1;
        assert!(rounds < 1000, "the ring does not wrap");
    }
    let status = status_and_kill(&mut cluster.nodes[0]);
    let files: Vec<u64> =
        std::fs::read_dir(folder(&cluster.nodes[0])).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).collect();
    assert!(files.len() > 1 && files.iter().sum::<u64>() <= 1 << 20, "{files:?}");
    let seen = replayed(&cluster.nodes[0]);
    assert_eq!((&seen.begins[..], &seen.endings[..]), (&[Begin::Middle][..], &[Ending::Stopped][..]));
    assert_eq!(of_the_core(seen.state, false), of_the_core(status, false));
    println!("{rounds} rounds, {} inputs left in {files:?}", seen.inputs);
}

#[test]
fn recorder_goes_with_its_resource_and_can_be_off() {
    let mut cluster = Cluster::empty(1);
    cluster.create(0, |_| {});
    let_it_write();
    assert!(folder(&cluster.nodes[0]).exists());
    cluster.nodes[0].ok(&Request::Down { name: "r0".into() });
    cluster.nodes[0].ok(&Request::ResourceDelete { name: "r0".into(), wipe_metadata: true });
    assert!(!folder(&cluster.nodes[0]).exists());
    cluster.nodes[0].kill();
    let dir = cluster.nodes[0].dir().to_owned();
    cluster.nodes[0] = Daemon::spawn_with(0, &dir, &["--flight-recorder", "off"]);
    cluster.create(0, |_| {});
    let_it_write();
    assert!(!folder(&cluster.nodes[0]).exists());
}
