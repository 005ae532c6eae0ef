//! Section 10, and what section 4 says of Primaries without a disk.

use zea_core::io::{Command, IoError};
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::state::DiskState;

use super::{diskless_primary, write_blocks};

fn peer_disk(w: &mut World, ix: usize, peer: usize) -> DiskState {
    w.refresh(ix);
    w.nodes[ix].peer_device(peer, V0).map_or(DiskState::DUnknown, |p| p.peer_disk)
}

/// S6: a Primary without a disk begins a generation that one server does not hear of: that one does not count as equal.
#[test]
fn sim_s6_a_new_generation_is_not_heard_of() {
    for seed in 0..10 {
        let mut w = diskless_primary(Cluster { seed, ..Cluster::new(4) }, &[0]);
        write_blocks(&mut w, 0, 0..3);
        w.isolate(3);
        w.stall(0, 2);
        w.write(0, 640, 8);
        w.run_ms(5 + seed);
        w.crash(0, Crash::Process);
        w.expect("they notice", |w| w.is_apart(0, 1) && w.is_apart(0, 2));
        w.expect("the two that are left agree", |w| w.mutually_in_sync(1, 2, V0));
        w.heal(0, 2);
        w.rejoin(3);
        w.start(0);
        w.settle();
    }
}

/// D1: a Primary without a disk reads and writes through one to four servers.
#[test]
fn sim_d1_a_diskless_primary_works_through_its_servers() {
    for servers in 1..=4 {
        let mut w = diskless_primary(Cluster::new(1 + servers), &[0]);
        w.under_load(60, Mix::default());
        w.flush_ok(0);
        w.read_ok(0, 0, 2_048);
        w.settle();
        assert!(w.model.writes() > 50, "{servers} servers: {} writes", w.model.writes());
    }
}

/// D2: a node that its peers take for one without a disk attaches one: nobody has bits for it, so it is no replica.
#[test]
fn sim_d2_a_disk_on_a_node_without_a_bitmap() {
    let cluster = Cluster { diskless: [2].into(), ..Cluster::new(3) };
    let mut w = cluster.build();
    for peer in w.nodes[..2].iter_mut().flat_map(|n| n.saved.peers.iter_mut()).filter(|p| p.node_id == node_id(2)) {
        peer.net.bitmap = false;
    }
    cluster.bring_up(&mut w);
    w.write_ok(0, 0, 8);
    let backing = w.nodes[2].disks[&V0].backing();
    let _ = w.command(2, Command::Attach { volume: V0, backing });
    w.run_ms(10_000);
    w.write_ok(0, 8, 8);
    assert!(w.disk(2) <= DiskState::Inconsistent, "it claims to have the data\n{}", w.summary());
    assert!(!w.mutually_in_sync(0, 2, V0) && !w.mutually_in_sync(1, 2, V0));
    w.checkpoint();
}

/// D3: a Primary without a disk meets an older server first: it does not serve that one's data, and goes on with the other.
#[test]
fn sim_d3_a_diskless_primary_meets_an_older_server_first() {
    for older in [1, 2] {
        let newer = 3 - older;
        let mut w = diskless_primary(Cluster::new(3), &[0]);
        write_blocks(&mut w, 0, 0..5);
        w.isolate(older);
        write_blocks(&mut w, 0, 0..5);
        w.part(0, newer);
        w.heal(0, older);
        w.expect("it connects to the older one", |w| w.is_connected(0, older));
        assert!(peer_disk(&mut w, 0, older) < DiskState::UpToDate, "{}", w.summary());
        let refused = w.read(0, 0, 8);
        assert_ne!(w.wait(refused), Ok(()), "answered by the older one");
        w.heal(0, newer);
        w.expect("it sees good data", |w| w.nodes[0].sees_in_sync(newer, V0));
        w.read_ok(0, 0, 640);
        w.checkpoint();
    }
}

/// D4: a Secondary without a disk sees others change: it knows who is UpToDate, and who only seems to be.
#[test]
fn sim_d4_a_diskless_secondary_sees_disks_as_they_are() {
    let mut w = Cluster { diskless: [2].into(), ..Cluster::new(4) }.synced();
    for (victim, keeps) in [(1, 3), (3, 1), (0, 1)] {
        w.detach(victim);
        w.run_ms(200);
        assert_eq!(peer_disk(&mut w, 2, victim), DiskState::Diskless);
        assert_eq!(peer_disk(&mut w, 2, keeps), DiskState::UpToDate);
        w.write_ok(0, 0, 8);
        w.attach(victim);
        w.settle();
        assert_eq!(peer_disk(&mut w, 2, victim), DiskState::UpToDate);
    }
}

/// D7: a Primary without a disk loses every server: requests fail, and are served again when one returns.
#[test]
fn sim_d7_a_diskless_primary_without_data() {
    for away_ms in [500, 60_000] {
        let mut w = diskless_primary(Cluster::new(2), &[0]);
        w.write_ok(0, 0, 8);
        w.part(0, 1);
        let requests = [w.read(0, 0, 8), w.write(0, 8, 8)];
        for request in requests {
            assert_eq!(w.wait(request), Err(IoError::Io));
        }
        w.run_ms(away_ms);
        w.heal(0, 1);
        w.expect("it sees good data", |w| w.nodes[0].sees_in_sync(1, V0));
        w.read_ok(0, 0, 16);
        w.write_ok(0, 8, 8);
        w.settle();
    }
}
