//! Online verify on whole nodes, with damage done to a backing file behind the daemon's back.

use std::fs::File;
use std::os::unix::fs::FileExt;

use zea_node::api::{FailureKind, Request, ResourceStatus, VerifyResult};

use crate::common::{Cluster, Daemon, VOLUME_BYTES};

const BLOCK: u64 = 4096;

fn verify(peer: Option<&str>, start: Option<u64>, stop: Option<u64>) -> Request {
    Request::Verify { name: "r0".into(), peer: peer.map(ToOwned::to_owned), volume: None, start, stop }
}

/// Starts a verify and waits for what each peer's copy turned out to be.
fn verified(node: &Daemon, request: &Request) -> Vec<VerifyResult> {
    node.ok(request);
    let runs = |status: &ResourceStatus| {
        let mut peer_devices = status.connections.iter().flat_map(|c| &c.peer_devices);
        peer_devices.any(|it| it.replication_state != "Established")
    };
    node.wait("the end of the verify", |status| !runs(status));
    let connections = node.status("r0").connections;
    connections.iter().flat_map(|c| &c.peer_devices).filter_map(|it| it.last_verify).collect()
}

fn damage(cluster: &Cluster, node: u8, block: u64) {
    let path = cluster.resource(node).volumes[0].disk.clone();
    let disk = File::options().write(true).open(path).unwrap();
    disk.write_all_at(&[0xee; 512], block * BLOCK + 1024).unwrap();
    disk.sync_all().unwrap();
}

fn kib(compared: u64, out_of_sync: u64) -> VerifyResult {
    VerifyResult { complete: true, compared, skipped: 0, out_of_sync }
}

#[test]
fn verify_three_daemons_find_damage_and_connecting_repairs_it() {
    let cluster = Cluster::synced(3);
    let [alpha, bravo, charlie] = &cluster.nodes[..] else { panic!() };
    let mut client = alpha.nbd();
    client.write_pattern(0..200, 1);
    let all = VOLUME_BYTES / 1024;
    assert_eq!(verified(alpha, &verify(None, None, None)), [kib(all, 0), kib(all, 0)]);
    for block in [3, 4, 150] {
        damage(&cluster, 1, block);
    }
    // The damaged node asks another Secondary, which is right, and only about a part.
    let part = verify(Some("charlie"), Some(0), Some(800));
    assert_eq!(verified(bravo, &part)[1], kib(400, 8));
    let found = verified(alpha, &verify(Some("bravo"), None, None));
    assert_eq!(found[0], kib(all, 12));
    let marked = |node: &Daemon, peer: usize| node.status("r0").connections[peer].peer_devices[0].out_of_sync;
    assert_eq!((marked(alpha, 0), marked(bravo, 0), marked(bravo, 1), marked(charlie, 1)), (12, 12, 8, 8));
    alpha.wait_log("12 KiB out of sync. To resync these blocks from the Primary: zea disconnect r0 bravo");
    let name = || "r0".to_owned();
    for request in [
        Request::Disconnect { name: name(), peer: None, force: false },
        Request::Connect { name: name(), peer: None, discard_my_data: false },
    ] {
        bravo.ok(&request);
    }
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    client.check_pattern(0..200, 1);
    assert_eq!(verified(alpha, &verify(None, None, None)), [kib(all, 0), kib(all, 0)]);
    drop(client);
    cluster.assert_equal_disks();
}

#[test]
fn verify_goes_on_while_clients_write() {
    let cluster = Cluster::synced(2);
    let alpha = &cluster.nodes[0];
    let mut client = alpha.nbd();
    client.write_pattern(0..400, 1);
    for round in 2..6 {
        alpha.ok(&verify(None, Some(0), None));
        client.write_pattern(0..400, round);
        alpha.wait("the end of the verify", |status| {
            status.connections[0].peer_devices[0].replication_state == "Established"
        });
        let found = alpha.status("r0").connections[0].peer_devices[0].last_verify.expect("one ended");
        assert!(found.complete && found.out_of_sync == 0, "{found:?}");
        assert_eq!(found.compared + found.skipped, VOLUME_BYTES / 1024);
    }
    client.check_pattern(0..400, 5);
    drop(client);
    cluster.assert_equal_disks();
}

#[test]
fn verify_is_refused_where_it_cannot_be() {
    let cluster = Cluster::synced(2);
    let alpha = &cluster.nodes[0];
    let nobody = alpha.call(&verify(Some("delta"), None, None)).unwrap_err();
    assert!(nobody.message.contains("no peer `delta`"), "{nobody}");
    let nothing = alpha.call(&verify(None, Some(VOLUME_BYTES), None)).unwrap_err();
    assert!(nothing.message.contains("nothing to verify"), "{nothing}");
    alpha.ok(&Request::Disconnect { name: "r0".into(), peer: None, force: false });
    for peer in [None, Some("bravo")] {
        let alone = alpha.call(&verify(peer, None, None)).unwrap_err();
        assert_eq!((alone.kind, alone.code), (FailureKind::Refused, -15), "{alone}");
    }
}
