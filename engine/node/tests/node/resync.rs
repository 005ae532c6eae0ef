//! Resyncs that an administrator steers, between whole nodes.

use zea_node::api::{FailureKind, PeerDeviceStatus, Request};

use crate::common::{Cluster, Daemon};

fn pause(peer: Option<&str>) -> Request {
    Request::PauseSync { name: "r0".into(), peer: peer.map(ToOwned::to_owned), volume: None }
}

fn resume(peer: Option<&str>) -> Request {
    Request::ResumeSync { name: "r0".into(), peer: peer.map(ToOwned::to_owned), volume: Some(0) }
}

fn peer_device(node: &Daemon) -> PeerDeviceStatus {
    node.status("r0").connections[0].peer_devices[0].clone()
}

#[test]
fn node_a_paused_resync_waits_until_it_is_resumed() {
    let cluster = Cluster::synced(2);
    let [alpha, bravo] = &cluster.nodes[..] else { panic!() };
    let mut client = alpha.nbd();
    alpha.ok(&Request::Disconnect { name: "r0".into(), peer: None, force: false });
    client.write_pattern(0..100, 1);
    bravo.ok(&pause(None));
    assert_eq!(peer_device(bravo).resync_suspended, "user");
    alpha.ok(&Request::Connect { name: "r0".into(), peer: None, discard_my_data: false });
    alpha.wait("the resync is paused", |status| {
        let it = &status.connections[0].peer_devices[0];
        it.replication_state == "PausedSyncS" && it.resync_suspended == "peer"
    });
    client.write_pattern(100..200, 1);
    assert_eq!((peer_device(bravo).replication_state.as_str(), peer_device(alpha).out_of_sync), ("PausedSyncT", 400));
    bravo.ok(&resume(Some("alpha")));
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    let nobody = bravo.call(&pause(Some("delta"))).unwrap_err();
    assert_eq!(nobody.kind, FailureKind::Failed, "{nobody}");
    client.check_pattern(0..200, 1);
    drop(client);
    cluster.assert_equal_disks();
}

#[test]
fn node_the_rate_of_a_resync_is_limited_and_changed_while_it_runs() {
    let cluster = Cluster::synced(2);
    let [alpha, bravo] = &cluster.nodes[..] else { panic!() };
    let mut client = alpha.nbd();
    alpha.ok(&Request::Disconnect { name: "r0".into(), peer: None, force: false });
    client.write_pattern(0..500, 1);
    let apply = |nr: u8, rate: Option<&str>| {
        let mut file = cluster.resource(nr);
        file.disk.c_max_rate = rate.map(|rate| rate.parse().unwrap());
        let text = file.to_toml();
        cluster.nodes[usize::from(nr)].ok(&Request::Apply { file: "r0.toml".into(), text, secret: None, force: false });
    };
    apply(1, Some("100K"));
    alpha.ok(&Request::Connect { name: "r0".into(), peer: None, discard_my_data: false });
    bravo.wait("the resync is slow", |status| {
        let it = &status.connections[0].peer_devices[0];
        it.replication_state == "SyncTarget" && it.resync_rate.is_some_and(|rate| (50..=200).contains(&rate))
    });
    let left = peer_device(bravo).out_of_sync;
    assert!(left > 500, "{left} KiB");
    apply(1, None);
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    client.check_pattern(0..500, 1);
    drop(client);
    cluster.assert_equal_disks();
}
