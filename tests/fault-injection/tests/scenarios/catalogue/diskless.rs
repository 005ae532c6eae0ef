//! Section 10, and what section 4 says of Primaries without a disk.

use zea_core::io::{Command, IoError};
use zea_sim::disk::DiskFaults;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, DiskState};

use super::{FULL, ORDERS, diskless_primary, promote, write_blocks};

fn peer_disk(w: &mut World, ix: usize, peer: usize) -> DiskState {
    w.refresh(ix);
    w.nodes[ix].peer_device(peer, V0).map_or(DiskState::DUnknown, |p| p.peer_disk)
}

/// S5: a Primary without a disk writes through one to three servers, of which one is away, and starts anew in between: the
/// generation changes before the first write that the absent one misses, and it is resynced.
#[test]
fn sim_s5_a_diskless_primary_writes_while_a_server_is_away() {
    for (servers, restart) in [(2, false), (2, true), (3, false), (3, true)] {
        let mut w = diskless_primary(Cluster::new(1 + servers), &[0]);
        w.write_ok(0, 0, 8);
        w.run_ms(500);
        let before = w.generation(1);
        w.isolate(servers);
        w.run_ms(500);
        assert_eq!(w.generation(1), before, "nothing was written yet");
        if restart {
            w.crash(0, Crash::Process);
            w.run_ms(1_000);
            w.start(0);
            w.expect("node 0 sees the data", |w| w.nodes[0].sees_in_sync(1, V0));
            promote(&mut w, 0);
        }
        write_blocks(&mut w, 0, 0..10);
        assert_ne!(w.generation(1), before);
        assert_eq!(w.generation(servers), before);
        w.rejoin(servers);
        w.settle();
        let received: u64 = (1..servers).map(|source| w.received(servers, source)).sum();
        assert!(received >= 80 && (servers > 2 || received < FULL / 2), "{servers} servers: {received} sectors");
    }
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

/// S8: a node without a disk is promoted twice while another one is cut off: that one comes back by its bits.
#[test]
fn sim_s8_a_diskless_node_is_promoted_twice() {
    let mut w = diskless_primary(Cluster::new(3), &[0]);
    w.isolate(2);
    for round in 0..2 {
        write_blocks(&mut w, 0, 10 * round..10 * round + 5);
        w.must(0, Command::Demote);
        promote(&mut w, 0);
    }
    w.rejoin(2);
    w.settle();
    let received = w.received(2, 1);
    assert!((80..FULL / 2).contains(&received), "{received} sectors");
}

/// S9: a server leaves a Primary without a disk, in order or not, and comes back: the generation changes if something is
/// written meanwhile, and what was written is resynced, no more.
#[test]
fn sim_s9_a_server_leaves_a_diskless_primary_and_returns() {
    type Step = fn(&mut World);
    let ways: [(&str, Step, Step); 4] = [
        ("detach", |w| w.detach(2), |w| w.attach(2)),
        ("disconnect", |w| leave(w, false), reconnect),
        ("disconnect by force", |w| leave(w, true), reconnect),
        ("cut off", |w| w.isolate(2), |w| w.rejoin(2)),
    ];
    for (way, goes, returns) in ways {
        for writes in [0, 5] {
            let mut w = diskless_primary(Cluster::new(3), &[0]);
            write_blocks(&mut w, 0, 20..25);
            w.run_ms(1_000);
            let before = w.generation(1);
            goes(&mut w);
            w.run_ms(500);
            write_blocks(&mut w, 0, 0..writes);
            if writes > 0 {
                assert_ne!(w.generation(1), before, "{way}");
            }
            returns(&mut w);
            w.settle();
            let received = w.received(2, 1);
            assert!(received >= writes * 8 && received < FULL / 2, "{way}, {writes} writes: {received} sectors");
        }
    }
}

fn leave(w: &mut World, force: bool) {
    for peer in [0, 1] {
        w.must(2, Command::Disconnect { peer: node_id(peer), force });
    }
}

fn reconnect(w: &mut World) {
    for peer in [0, 1] {
        w.must(2, Command::Connect { peer: node_id(peer), discard_my_data: false });
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

/// D6: a fail-over to a node without a disk while a storage node starts again: it is resynced, whoever comes first.
#[test]
fn sim_d6_failover_to_a_diskless_node() {
    for order in ORDERS {
        for writes in [0, 5] {
            let mut w = Cluster { diskless: [2].into(), ..Cluster::new(3) }.synced();
            w.under_load(10, Mix::default());
            w.crash(0, Crash::Power);
            w.expect("the others notice", |w| w.is_apart(0, 1) && w.is_apart(0, 2));
            w.run_ms(500);
            promote(&mut w, 2);
            write_blocks(&mut w, 2, 0..writes);
            for step in order {
                match step {
                    0 => w.start(0),
                    1 => w.under_load(10, Mix { depth: 4, ..Mix::default() }),
                    _ => w.reset_link(1, 2),
                }
                w.run_ms(300);
            }
            w.settle();
        }
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

/// F5: disks fail under a Primary without one: nobody notices as long as one is left.
#[test]
fn sim_f5_disks_fail_under_a_diskless_primary() {
    for faults in [DiskFaults::DEAD, DiskFaults { reads: true, ..DiskFaults::default() }] {
        let mut w = diskless_primary(Cluster::new(3), &[0]);
        write_blocks(&mut w, 0, 0..10);
        for victim in [1, 2] {
            w.set_disk_faults(victim, V0, faults);
            for block in 0..20 {
                w.read_ok(0, block * 64, 8);
                w.write_ok(0, block * 64, 8);
            }
            w.detach(victim);
            w.attach(victim);
            w.settle();
        }
    }
}

/// F8: the server that is to answer a read vanishes: another one answers.
#[test]
fn sim_f8_a_read_is_asked_of_another_server() {
    for victim in [1, 2] {
        let mut w = diskless_primary(Cluster::new(3), &[0]);
        write_blocks(&mut w, 0, 0..10);
        (1..3).for_each(|server| w.slow_disk(server, V0, 100));
        let reads: Vec<_> = (0..10).map(|block| w.read(0, block * 64, 8)).collect();
        w.run_ms(3);
        assert!(reads.iter().any(|r| !w.outcomes.contains_key(r)), "no read is under way");
        w.crash(victim, Crash::Process);
        for read in reads {
            assert_eq!(w.wait(read), Ok(()));
        }
        assert_eq!(w.conn(0, 3 - victim), ConnState::Connected);
        (1..3).for_each(|server| w.slow_disk(server, V0, 1));
        w.start(victim);
        w.settle();
    }
}
