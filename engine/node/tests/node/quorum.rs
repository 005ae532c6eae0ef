//! Three daemons, one of which is cut off: a majority goes on, and the other one serves nothing.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{Cluster, Daemon, connected, demote, promote};
use zea_core::config::{OnNoQuorum, OnSuspendedPrimaryOutdated, Quorum};
use zea_node::api::Request;
use zea_node::config::quorum::{OnNoQuorumName, OnOutdated, Votes};

const NAME: &str = "r0";

/// Three nodes with a majority as quorum; node 0 is Primary.
fn majority(on_no_quorum: OnNoQuorum) -> Cluster {
    let cluster = Cluster::empty(3);
    for id in 0..3 {
        cluster.create(id, |file| {
            file.options.quorum = Votes(Quorum::Majority);
            file.options.on_no_quorum = OnNoQuorumName(on_no_quorum);
            file.options.on_suspended_primary_outdated = OnOutdated(OnSuspendedPrimaryOutdated::ForceSecondary);
        });
    }
    cluster.nodes.iter().for_each(|node| node.wait("connected", connected));
    cluster.nodes[0].ok(&promote(true));
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    cluster
}

/// The others do not talk to node 0 any more. For node 0 both connections break.
fn cut_off(cluster: &Cluster) {
    for node in &cluster.nodes[1..] {
        let peer = Some("alpha".to_owned());
        node.ok(&Request::Disconnect { name: NAME.into(), peer, force: true });
    }
    cluster.nodes[0].wait("no quorum", |status| !status.devices[0].quorum);
}

fn heal(cluster: &Cluster) {
    for node in &cluster.nodes[1..] {
        let peer = Some("alpha".to_owned());
        node.ok(&Request::Connect { name: NAME.into(), peer, discard_my_data: false });
    }
}

/// Another one is promoted, and writes; the first one comes back, is Secondary, and gets what it missed.
fn fail_over(cluster: &Cluster) {
    let [alpha, bravo, _] = &cluster.nodes[..] else { panic!() };
    bravo.wait("UpToDate", |status| status.devices[0].disk_state == "UpToDate");
    bravo.ok(&promote(false));
    let mut client = bravo.nbd();
    client.check_pattern(0..50, 1);
    client.write_pattern(25..75, 2);
    heal(cluster);
    alpha.wait("Secondary", |status| status.role == "Secondary");
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    client.check_pattern(0..25, 1);
    client.check_pattern(25..75, 2);
    drop(client);
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(failure) = bravo.call(&demote()) {
        assert!(failure.code == -12 && Instant::now() < end, "{failure}");
        sleep(Duration::from_millis(10));
    }
    cluster.assert_equal_disks();
}

#[test]
fn node_quorum_fails_the_writes_of_a_primary_that_is_cut_off() {
    let cluster = majority(OnNoQuorum::IoError);
    let alpha = &cluster.nodes[0];
    let mut client = alpha.nbd();
    client.write_pattern(0..50, 1);
    cut_off(&cluster);
    assert!(client.write_error(0, &[3; 4096]) && client.read_error(0, 4096));
    let device = &alpha.status(NAME).devices[0];
    let why = device.no_quorum.clone().unwrap_or_default();
    assert!(why.contains("1 of 2 votes") && why.contains("connect bravo, charlie"), "{why}");
    drop(client);
    fail_over(&cluster);
}

#[test]
fn node_quorum_suspends_the_writes_of_a_primary_that_is_cut_off() {
    let cluster = majority(OnNoQuorum::SuspendIo);
    let alpha = &cluster.nodes[0];
    let mut client = alpha.nbd();
    client.write_pattern(0..50, 1);
    cut_off(&cluster);
    let held = std::thread::spawn(move || client.write_error(0, &[3; 4096]));
    alpha.wait("suspended", |status| status.suspended && status.suspended_quorum);
    assert!(!held.is_finished(), "it waits");
    fail_over(&cluster);
    assert!(held.join().unwrap(), "it fails when others went on");
}
