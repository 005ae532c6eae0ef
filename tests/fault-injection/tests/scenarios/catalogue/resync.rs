//! Section 2, two nodes: how much is resynced, interruptions, writes meanwhile.

use zea_core::config::Protocol;
use zea_core::io::{Command, IoError};
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use super::{FULL, apart, connect, disconnect, write_blocks};

/// R1: peers join one after another while a forced Primary writes: each gets everything.
#[test]
fn sim_r1_initial_sync_of_peers_that_join_one_by_one() {
    for seed in 0..5 {
        let mut w = apart(&Cluster { seed, ..Cluster::new(4) });
        w.must(0, Command::Promote { force: true });
        for ix in 1..4 {
            write_blocks(&mut w, 0, 0..20);
            for other in 0..ix {
                connect(&mut w, other, ix);
            }
            w.under_load(5, Mix::default());
        }
        w.settle();
        for ix in 1..4 {
            let received: u64 = (0..4).map(|other| w.received(ix, other)).sum();
            assert!(received >= FULL, "seed {seed}: node {ix} received {received} sectors");
        }
    }
}

/// R2: the amount of a resync is that of the dirty blocks, not of whole extents.
#[test]
fn sim_r2_a_bitmap_resync_moves_dirty_blocks_only() {
    let mut w = Cluster::new(2).synced();
    w.run_ms(1_000);
    w.part(0, 1);
    write_blocks(&mut w, 0, 0..37);
    assert_eq!(w.out_of_sync(0, 1), 37 * 8);
    w.heal(0, 1);
    w.settle();
    assert_eq!(w.received(1, 0), 37 * 8);
}

/// Node 1 is the target of a resync of three blocks, so many events after its beginning.
fn in_a_short_resync(events: u64) -> World {
    let mut w = Cluster { seed: events, ..Cluster::new(2) }.synced();
    w.part(0, 1);
    write_blocks(&mut w, 0, 0..3);
    w.heal(0, 1);
    w.expect("the resync begins", |w| w.nodes[1].target_of.contains_key(&V0));
    for _ in 0..events {
        w.step(u64::MAX);
    }
    w
}

/// R10: the link breaks around the very end of a resync, at any event: what is needed follows, neither side forgets.
#[test]
fn sim_r10_the_end_of_a_resync_is_lost() {
    for events in 0..80 {
        let mut w = in_a_short_resync(events);
        w.reset_link(0, 1);
        w.expect("both notice", |w| w.is_apart(0, 1));
        w.settle();
    }
}

/// R11: the same with no bit left on either side: nothing is moved again.
#[test]
fn sim_r11_the_end_is_lost_and_no_bit_is_left() {
    let mut without_bits = 0;
    for events in 20..100 {
        let mut w = in_a_short_resync(events);
        w.part(0, 1);
        let clean = w.out_of_sync(0, 1) + w.out_of_sync(1, 0) == 0;
        w.heal(0, 1);
        w.settle();
        if clean {
            without_bits += 1;
            assert_eq!(w.received(1, 0), 0, "after {events} events");
        }
    }
    assert!(without_bits >= 5, "only {without_bits} times no bit was left");
}

/// R12: a resync that is interrupted several times, by the link, the source or the target, resumes and loses no block.
#[test]
fn sim_r12_a_resync_is_interrupted_several_times() {
    let interruptions: [fn(&mut World); 4] =
        [|w| w.reset_link(0, 1), |w| disconnect(w, 0, 1), |w| w.crash(1, Crash::Power), |w| w.crash(0, Crash::Process)];
    for (seed, interrupt) in (0..12).zip(interruptions.into_iter().cycle()) {
        let mut w = Cluster { seed, disk_latency_ns: 2_000_000, ..Cluster::new(2) }.synced();
        w.part(0, 1);
        write_blocks(&mut w, 0, 0..200);
        w.heal(0, 1);
        let mut interruptions = 0;
        while interruptions < 3 && w.run_until(|w| w.nodes[1].target_of.contains_key(&V0), 3_000) {
            interruptions += 1;
            w.run_ms(6);
            interrupt(&mut w);
            w.run_ms(200);
            for ix in 0..2 {
                w.start(ix);
                if w.conn(ix, 1 - ix) == ConnState::StandAlone && w.nodes[ix].boot.is_empty() {
                    connect(&mut w, ix, 1 - ix);
                }
            }
        }
        assert!(interruptions >= 1, "seed {seed}");
        w.settle();
    }
}

/// R13: the link breaks while resync and writes want the same blocks of a slow disk: every request ends, the data is equal.
#[test]
fn sim_r13_interrupted_while_it_conflicts_with_writes() {
    for seed in 0..10 {
        let mut w = Cluster { seed, disk_latency_ns: 3_000_000, ..Cluster::new(2) }.synced();
        w.part(0, 1);
        write_blocks(&mut w, 0, 0..100);
        w.heal(0, 1);
        w.expect("the resync begins", |w| w.nodes[1].target_of.contains_key(&V0));
        let requests: Vec<_> = (0..100).map(|n| w.write(0, n * 64 + n % 8, 8)).collect();
        w.run_ms(seed * 3);
        w.reset_link(0, 1);
        for request in requests {
            assert_eq!(w.wait(request), Ok(()));
        }
        w.settle();
    }
}

/// R14: a resync with a writer at work ends, with each protocol, and whichever node writes.
#[test]
fn sim_r14_writes_during_a_resync() {
    for (seed, protocol) in [(0, Protocol::A), (1, Protocol::B), (2, Protocol::C), (5, Protocol::C)] {
        for writer in [0, 2] {
            let mut cluster = Cluster { seed, ..Cluster::new(3) };
            cluster.net.protocol = protocol;
            cluster.disk.resync_window_sectors = 256;
            let mut w = cluster.synced();
            w.isolate(1);
            write_blocks(&mut w, 0, 0..200);
            if writer == 2 {
                w.must(0, Command::Demote);
                super::promote(&mut w, 2);
            }
            w.rejoin(1);
            w.under_load_until(Mix::default(), |w| w.mutually_in_sync(0, 1, V0) && w.mutually_in_sync(1, 2, V0));
            w.settle();
        }
    }
}

/// R22: an invalidated replica is synced in full, from a peer, and only where that does not destroy the only good copy.
#[test]
fn sim_r22_invalidate_syncs_everything_the_right_way() {
    let mut w = Cluster::new(2).synced();
    write_blocks(&mut w, 0, 0..10);
    for victim in [1, 0] {
        w.model.gave_up(victim, 0);
        w.must(victim, Command::Invalidate { volume: V0 });
        w.settle();
        assert!(w.received(victim, 1 - victim) >= FULL);
        assert_eq!(w.received(1 - victim, victim), 0);
    }
    w.read_ok(0, 0, 640);
    w.part(0, 1);
    for ix in 0..2 {
        w.command(ix, Command::Invalidate { volume: V0 }).expect_err("nobody could give the data back");
        assert_ne!(w.disk(ix), DiskState::Inconsistent);
    }
    w.write_ok(0, 0, 8);
    w.heal(0, 1);
    w.settle();
}

/// R22: the peer is synced in full from this node, if this node's copy is good, and there is somebody to be asked.
#[test]
fn sim_r22_invalidate_remote_has_the_peer_synced() {
    for nodes in [2, 3] {
        let mut w = Cluster::new(nodes).synced();
        write_blocks(&mut w, 0, 0..10);
        let ask = |ix: usize, peer: usize| (ix, Command::InvalidateRemote { peer: node_id(peer), volume: V0 });
        for victim in [1, 0] {
            w.model.gave_up(victim, 0);
            let (ix, command) = ask(1 - victim, victim);
            w.must(ix, command.clone());
            w.expect("its data is given up", |w| w.disk(victim) == DiskState::Inconsistent);
            w.command(victim, ask(victim, ix).1).expect_err("this is the only good copy of the two");
            w.settle();
            let received: u64 = (0..nodes).filter(|peer| *peer != victim).map(|peer| w.received(victim, peer)).sum();
            assert!(received >= FULL, "{nodes} nodes: {received} sectors");
        }
        w.read_ok(0, 0, 640);
        w.part(0, 1);
        let (ix, command) = ask(0, 1);
        w.command(ix, command).expect_err("nobody is there to be asked");
        w.write_ok(0, 0, 8);
        w.heal(0, 1);
        w.settle();
    }
}

/// R22: two that compare on the connection that is up, as kernels do, keep it.
#[test]
fn sim_r22_kernels_are_synced_on_the_connection_that_is_up() {
    for (remote, victim) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let mut cluster = Cluster::new(2);
        cluster.net.keep_bits = false;
        let mut w = cluster.synced();
        write_blocks(&mut w, 0, 0..10);
        w.flush_ok(0);
        w.model.gave_up(victim, 0);
        let peer = node_id(victim);
        if remote {
            w.must(1 - victim, Command::InvalidateRemote { peer, volume: V0 });
        } else {
            w.must(victim, Command::Invalidate { volume: V0 });
        }
        w.expect("its data is given up", |w| w.disk(victim) == DiskState::Inconsistent);
        w.under_load(100, Mix::default());
        w.settle();
        assert!(w.received(victim, 1 - victim) >= FULL);
        let lost = |w: &World, ix: usize| w.nodes[ix].notices.iter().any(|n| n.contains("connection to node"));
        assert!(!lost(&w, 0) && !lost(&w, 1), "{:?}", w.nodes[victim].notices);
    }
}

/// R22: the same, with writes going on, while links break and nodes die at any moment.
#[test]
fn sim_r22_invalidate_remote_is_interrupted() {
    for seed in 0..24 {
        let mut w = Cluster { seed, disk_latency_ns: 500_000, ..Cluster::new(3) }.synced();
        let victim = [1, 0][seed as usize % 2];
        w.model.gave_up(victim, 0);
        w.admin(2, Command::InvalidateRemote { peer: node_id(victim), volume: V0 });
        let limit = w.now + seed * 700_000;
        while w.step(limit) {}
        match seed / 2 % 4 {
            0 => w.reset_link(2, victim),
            1 => w.crash(victim, Crash::Power),
            2 => w.crash(2, Crash::Power),
            _ => w.cut(0, 1),
        }
        if w.nodes[0].is_up() {
            w.under_load(50, Mix::default());
        }
        w.heal(0, 1);
        (0..3).for_each(|ix| w.start(ix));
        w.settle();
    }
}

/// R30: a resync of one block races with writes to the same block: none is lost.
#[test]
fn sim_r30_a_very_short_resync_races_with_writes() {
    for seed in 0..60 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        w.part(0, 1);
        w.write_ok(0, 80, 8);
        w.heal(0, 1);
        w.expect("they connect", |w| w.is_connected(0, 1));
        let limit = w.now + seed * 40_000;
        while w.step(limit) {}
        let requests: Vec<_> = (0..6).map(|n| w.write(0, 80 + n % 3, 4)).collect();
        for request in requests {
            assert_eq!(w.wait(request), Ok(()));
        }
        w.settle();
    }
}

/// R32: the bits of a volume end at the end of a page of the bitmap, or beside it.
#[test]
fn sim_r32_the_bitmap_ends_at_a_page() {
    const PAGE: u64 = 4096 * 8 * 8;
    for sectors in [PAGE - 8, PAGE, PAGE + 8] {
        let mut w = Cluster { volume_sectors: vec![sectors], ..Cluster::new(2) }.build();
        let cluster = Cluster { volume_sectors: vec![sectors], ..Cluster::new(2) };
        for node in &mut w.nodes {
            node.saved.volumes[0].size_sectors = Some(sectors);
        }
        cluster.bring_up(&mut w);
        assert_eq!(w.nodes[0].device(V0).map(|d| d.size_sectors), Some(sectors));
        w.part(0, 1);
        w.write_ok(0, sectors - 8, 8);
        let beyond = w.read(0, sectors - 4, 8);
        assert_eq!(w.wait(beyond), Err(IoError::Invalid));
        w.crash(0, Crash::Power);
        w.start(0);
        w.heal(0, 1);
        w.settle();
    }
}

/// What a target says of itself on the way, and what its source says of it.
#[test]
fn sim_r2_states_on_the_way() {
    let mut cluster = Cluster::new(2);
    cluster.disk.resync_window_sectors = 8;
    let mut w = cluster.synced();
    w.part(0, 1);
    write_blocks(&mut w, 0, 0..100);
    w.heal(0, 1);
    w.expect("the target is Inconsistent", |w| w.disk(1) == DiskState::Inconsistent);
    w.run_ms(1);
    let repl = |w: &World, ix: usize| w.nodes[ix].peer_device(1 - ix, V0).map(|p| p.repl);
    assert_eq!((repl(&w, 0), repl(&w, 1)), (Some(ReplState::SyncSource), Some(ReplState::SyncTarget)));
    assert_eq!((w.role(0), w.role(1)), (Role::Primary, Role::Secondary));
    w.settle();
}
