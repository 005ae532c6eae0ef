//! Whole nodes: real daemons, real disks and sockets, one machine.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{Cluster, Daemon, connected, demote, promote};
use zea_node::api::{FailureKind, Request, ResourceStatus, Secret};
use zea_node::config::{Algorithm, Size};

fn name() -> String {
    "r0".into()
}

/// A client that said good-bye is gone a moment later.
fn demote_when_closed(node: &Daemon) {
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(failure) = node.call(&demote()) {
        assert!(failure.code == -12 && Instant::now() < end, "{failure}");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn node_three_daemons_replicate_and_move_the_primary() {
    let cluster = Cluster::synced(3);
    let [alpha, bravo, charlie] = &cluster.nodes[..] else { panic!() };
    assert!(bravo.nbd_refusal().contains("promote it first"));
    let mut client = alpha.nbd();
    client.write_pattern(0..200, 1);
    let refused = bravo.call(&promote(false)).unwrap_err();
    assert_eq!((refused.kind, refused.code), (FailureKind::Refused, -1), "{refused}");
    let refused = alpha.call(&demote()).unwrap_err();
    assert_eq!((refused.kind, refused.code), (FailureKind::Refused, -12), "{refused}");
    assert!(refused.message.contains("1 NBD client has r0/0 open"), "{refused}");
    drop(client);
    demote_when_closed(alpha);
    bravo.ok(&promote(false));
    let mut client = bravo.nbd();
    client.check_pattern(0..200, 1);
    client.write_pattern(100..300, 2);
    drop(client);
    demote_when_closed(bravo);
    charlie.ok(&promote(false));
    let mut client = charlie.nbd();
    client.check_pattern(0..100, 1);
    client.check_pattern(100..300, 2);
    drop(client);
    demote_when_closed(charlie);
    cluster.assert_equal_disks();
}

#[test]
fn node_three_daemons_survive_the_death_of_the_primary() {
    let mut cluster = Cluster::synced(3);
    cluster.nodes[0].nbd().write_pattern(0..100, 1);
    cluster.nodes[0].kill();
    let bravo = &cluster.nodes[1];
    bravo.wait("the loss of node 0", |status| status.connections[0].connection_state != "Connected");
    // The survivors have to talk first.
    bravo.wait("UpToDate", |status| status.devices[0].disk_state == "UpToDate");
    bravo.ok(&promote(false));
    let mut client = bravo.nbd();
    client.check_pattern(0..100, 1);
    client.write_pattern(50..150, 2);
    drop(client);
    cluster.nodes[0].restart();
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    assert_eq!(cluster.nodes[0].status("r0").role, "Secondary", "nothing promotes by itself");
    demote_when_closed(&cluster.nodes[1]);
    cluster.nodes[0].ok(&promote(false));
    let mut client = cluster.nodes[0].nbd();
    client.check_pattern(0..50, 1);
    client.check_pattern(50..150, 2);
    drop(client);
    demote_when_closed(&cluster.nodes[0]);
    cluster.assert_equal_disks();
}

#[test]
fn resize_three_daemons_grow_together_and_the_new_area_is_replicated() {
    let mut cluster = Cluster::empty(3);
    let (mib, small, large) = (1_u64 << 20, Size(16 << 20), Size(32 << 20));
    for node in 0..3 {
        cluster.create(node, |resource| {
            std::fs::File::create(&resource.volumes[0].disk).unwrap().set_len(40 * mib).unwrap();
            resource.volumes[0].size = Some(small);
        });
    }
    cluster.nodes[0].ok(&promote(true));
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    cluster.nodes[0].nbd().write_pattern(0..100, 1);
    let resize = |size| Request::Resize { name: name(), volume: 0, size, assume_clean: false };
    let refused = |node: usize, size, why: &str| {
        let failure = cluster.nodes[node].call(&resize(size)).unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
    };
    refused(1, large, "node 0 is Primary: ask it");
    refused(0, Size(64 << 20), "the disk here has");
    refused(0, Size(8 << 20), "no volume shrinks");
    cluster.nodes[0].ok(&resize(large));
    for node in &cluster.nodes {
        node.wait("the new size", |status| status.devices[0].size == 32 << 10);
        node.wait_synced();
    }
    // 4 KiB blocks: what is new begins at 4096.
    let mut client = cluster.nodes[0].nbd();
    client.write_pattern(4000..8000, 2);
    drop(client);
    // The file of another node becomes true, and what it says is what its disk has after a crash.
    cluster.nodes[2].ok(&resize(large));
    cluster.nodes[2].kill();
    cluster.nodes[2].restart();
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    assert_eq!(cluster.nodes[2].status("r0").devices[0].size, 32 << 10);
    let mut client = cluster.nodes[0].nbd();
    client.check_pattern(0..100, 1);
    client.check_pattern(4000..8000, 2);
    drop(client);
    demote_when_closed(&cluster.nodes[0]);
    cluster.assert_equal_disks();
}

#[test]
fn node_two_daemons_go_on_without_a_disk() {
    let cluster = Cluster::synced(2);
    let alpha = &cluster.nodes[0];
    let mut client = alpha.nbd();
    client.write_pattern(0..50, 1);
    alpha.ok(&Request::Detach { name: name(), volume: Some(0), force: false });
    assert_eq!(alpha.status("r0").devices[0].disk_state, "Diskless");
    client.check_pattern(0..50, 1);
    client.write_pattern(25..75, 2);
    alpha.ok(&Request::Attach { name: name(), volume: Some(0) });
    alpha.wait_synced();
    client.check_pattern(0..25, 1);
    client.check_pattern(25..75, 2);
    drop(client);
    demote_when_closed(alpha);
    cluster.assert_equal_disks();
}

#[test]
fn node_two_daemons_recover_from_split_brain_as_documented() {
    let cluster = Cluster::synced(2);
    let [alpha, bravo] = &cluster.nodes[..] else { panic!() };
    let peer = |name: &str| Some(name.to_owned());
    alpha.ok(&Request::Disconnect { name: name(), peer: peer("bravo"), force: true });
    alpha.nbd().write_pattern(0..20, 1);
    bravo.wait("the loss of node 0", |status| status.connections[0].connection_state != "Connected");
    bravo.ok(&promote(true));
    bravo.nbd().write_pattern(10..30, 2);
    demote_when_closed(bravo);
    demote_when_closed(alpha);
    alpha.ok(&Request::Connect { name: name(), peer: None, discard_my_data: false });
    let stand_alone = |status: &ResourceStatus| status.connections[0].connection_state == "StandAlone";
    alpha.wait("a split brain", stand_alone);
    bravo.wait("a split brain", stand_alone);
    let told = alpha.status("r0").connections[0].last_error.clone().unwrap_or_default();
    assert!(told.contains("split brain"), "{told}");
    // Node 1's changes go.
    bravo.ok(&Request::Connect { name: name(), peer: peer("alpha"), discard_my_data: true });
    alpha.ok(&Request::Connect { name: name(), peer: peer("1"), discard_my_data: false });
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    bravo.ok(&promote(false));
    bravo.nbd().check_pattern(0..20, 1);
    demote_when_closed(bravo);
    cluster.assert_equal_disks();
}

#[test]
fn node_two_daemons_replace_a_failed_disk_as_documented() {
    let cluster = Cluster::synced(2);
    let [alpha, bravo] = &cluster.nodes[..] else { panic!() };
    let mut client = alpha.nbd();
    client.write_pattern(0..50, 1);
    bravo.ok(&Request::Detach { name: name(), volume: Some(0), force: true });
    let mut resource = cluster.resource(1);
    resource.volumes[0].disk.set_file_name("new.img");
    let apply = Request::Apply { file: "r0.toml".into(), text: resource.to_toml(), secret: None, force: false };
    let refused = alpha.call(&apply).unwrap_err();
    assert!(refused.kind == FailureKind::Refused && refused.message.contains("zea down r0"), "{refused}");
    let notes = bravo.call(&apply).unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("new meta data on"), "{notes:?}");
    bravo.ok(&Request::Attach { name: name(), volume: Some(0) });
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    client.write_pattern(25..75, 2);
    drop(client);
    demote_when_closed(alpha);
    bravo.ok(&promote(false));
    let mut client = bravo.nbd();
    client.check_pattern(0..25, 1);
    client.check_pattern(25..75, 2);
}

#[test]
fn node_two_daemons_stop_cleanly_with_a_client_and_come_back_as_they_were() {
    let mut cluster = Cluster::synced(2);
    let mut client = cluster.nodes[0].nbd();
    client.write_pattern(0..20, 1);
    assert!(cluster.nodes[0].terminate().success());
    drop(client);
    cluster.nodes[1].ok(&Request::Disconnect { name: name(), peer: None, force: false });
    assert!(cluster.nodes[1].terminate().success());
    cluster.nodes.iter_mut().for_each(Daemon::restart);
    let [alpha, bravo] = &cluster.nodes[..] else { panic!() };
    alpha.wait("UpToDate", |status| status.devices[0].disk_state == "UpToDate");
    let seen = bravo.status("r0");
    assert_eq!((seen.role.as_str(), seen.connections[0].connection_state.as_str()), ("Secondary", "StandAlone"));
    assert_ne!(alpha.status("r0").connections[0].connection_state, "Connected");
    bravo.ok(&Request::Connect { name: name(), peer: None, discard_my_data: false });
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    alpha.ok(&promote(false));
    alpha.nbd().check_pattern(0..20, 1);
}

#[test]
fn node_two_daemons_forget_a_resource_and_make_it_again() {
    let cluster = Cluster::synced(2);
    let [alpha, bravo] = &cluster.nodes[..] else { panic!() };
    let delete = Request::ResourceDelete { name: name(), wipe_metadata: true };
    assert_eq!(alpha.call(&delete).unwrap_err().kind, FailureKind::Refused);
    alpha.ok(&demote());
    bravo.ok(&delete);
    alpha.wait("the loss of node 1", |status| !connected(status));
    // A node whose disk was replaced: new meta data, all of it copied.
    let resource = Box::new(cluster.resource(1));
    bravo.ok(&Request::ResourceCreate { resource, secret: None, force: false });
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    alpha.ok(&promote(false));
    alpha.nbd().write_pattern(0..10, 3);
    demote_when_closed(alpha);
    cluster.assert_equal_disks();
}

#[test]
fn node_two_daemons_authenticate_each_other() {
    let mut cluster = Cluster::empty(2);
    let create = |cluster: &Cluster, id: u8, secret: &str| {
        let mut resource = Box::new(cluster.resource(id));
        resource.net.cram_hmac_alg = Some(Algorithm::Sha256);
        resource.net.secret_file = Some("given".into());
        let secret = Some(Secret(secret.into()));
        cluster.nodes[usize::from(id)].ok(&Request::ResourceCreate { resource, secret, force: false });
    };
    create(&cluster, 0, "hush");
    create(&cluster, 1, "other");
    let told = |status: &ResourceStatus| {
        status.connections[0].last_error.as_ref().is_some_and(|error| error.contains("authenticat"))
    };
    cluster.nodes[0].wait("a word about the authentication", told);
    assert_ne!(cluster.nodes[0].status("r0").connections[0].connection_state, "Connected");
    cluster.nodes[1].ok(&Request::ResourceDelete { name: name(), wipe_metadata: true });
    create(&cluster, 1, "hush");
    cluster.nodes[0].call(&Request::Connect { name: name(), peer: None, discard_my_data: false }).ok();
    cluster.nodes.iter().for_each(|node| node.wait("connected", connected));
    // The secret is read from the state directory.
    cluster.nodes[1].kill();
    cluster.nodes[1].restart();
    cluster.nodes.iter().for_each(|node| node.wait("connected", connected));
}

#[test]
fn node_daemon_refuses_to_share_a_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Daemon::spawn(0, dir.path());
    let second = Command::new(env!("CARGO_BIN_EXE_zead"))
        .args(["--node-id", "0", "--state-dir"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(text.contains("is in use by the daemon with pid"), "{text}");
}
