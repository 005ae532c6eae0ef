//! Scenarios of the test catalogue, named after it.

use zea_core::io::{Command, Op};
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, DiskState, Role};

fn cut_for(w: &mut World, a: usize, b: usize, ms: u64) {
    w.cut(a, b);
    w.run_ms(ms);
    w.heal(a, b);
}

/// H4: crossed connects with random delays, many times: always one link, no conflict for good.
#[test]
fn sim_h4_simultaneous_connect_from_both_sides() {
    for seed in 0..30 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        for round in 0..5 {
            w.must(0, Command::Disconnect { peer: node_id(1), force: true });
            w.must(1, Command::Disconnect { peer: node_id(0), force: true });
            w.admin(round % 2, Command::Connect { peer: node_id(1 - round % 2), discard_my_data: false });
            w.run_ms(round as u64 * 7);
            w.admin(1 - round % 2, Command::Connect { peer: node_id(round % 2), discard_my_data: false });
            w.expect("they connect", World::all_connected);
        }
        w.settle();
    }
}

/// H8: the connection breaks during the handshake, at any instant, in a triangle: the other connections are unaffected and
/// the next attempt succeeds.
#[test]
fn sim_h8_connection_breaks_during_the_handshake() {
    let mut w = Cluster::new(3).synced();
    for delay_us in (0..60_000).step_by(1_500) {
        w.reset_link(1, 2);
        w.expect("both notice", |w| w.conn(1, 2) != ConnState::Connected && w.conn(2, 1) != ConnState::Connected);
        let limit = w.now + delay_us * 1_000;
        while w.step(limit) {}
        w.reset_link(1, 2);
        w.expect("they connect again", |w| w.is_connected(1, 2));
        assert!(w.is_connected(0, 1) && w.is_connected(0, 2), "{}", w.summary());
    }
    w.settle();
}

/// H20: a peer that froze is noticed within ping-int and ping-timeout.
#[test]
fn sim_h20_a_frozen_peer_is_noticed_in_time() {
    let mut w = Cluster::new(2).synced();
    w.pause(1);
    let begin = w.now;
    w.expect("node 0 notices", |w| w.conn(0, 1) != ConnState::Connected);
    let ms = (w.now - begin) / 1_000_000;
    assert!(ms <= 11_000, "noticed after {ms} ms");
    w.resume(1);
    w.settle();
}

/// R2: the amount of a resync is that of the dirty blocks, not of whole extents.
#[test]
fn sim_r2_a_bitmap_resync_moves_dirty_blocks_only() {
    let mut w = Cluster::new(2).synced();
    w.cut(0, 1);
    w.expect("node 0 notices", |w| w.conn(0, 1) != ConnState::Connected);
    for block in 0..37 {
        w.write_ok(0, block * 64, 8);
    }
    assert_eq!(w.out_of_sync(0, 1), 37 * 8);
    w.heal(0, 1);
    w.settle();
}

/// R12: a resync that is interrupted several times resumes and loses no block.
#[test]
fn sim_r12_a_resync_is_interrupted_several_times() {
    for seed in 0..10 {
        let cluster = Cluster { seed, disk_latency_ns: 2_000_000, ..Cluster::new(2) };
        let mut w = cluster.synced();
        cut_for(&mut w, 0, 1, 1_000);
        w.expect("they connect", World::all_connected);
        w.cut(0, 1);
        w.expect("node 0 notices", |w| w.conn(0, 1) != ConnState::Connected);
        for block in 0..200 {
            w.write_ok(0, block * 160, 8);
        }
        w.heal(0, 1);
        let mut interruptions = 0;
        while interruptions < 4 && w.run_until(|w| w.disk(1) == DiskState::Inconsistent, 1_000) {
            w.run_ms(3);
            w.reset_link(0, 1);
            w.expect("node 1 notices", |w| w.conn(1, 0) != ConnState::Connected);
            interruptions += 1;
        }
        assert!(interruptions >= 2, "seed {seed}: {interruptions} interruptions");
        w.settle();
    }
}

/// R14: a resync with a writer at work ends, and the data is equal.
#[test]
fn sim_r14_writes_during_a_resync() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        w.cut(0, 1);
        w.expect("node 0 notices", |w| w.conn(0, 1) != ConnState::Connected);
        for block in 0..300 {
            w.write_ok(0, block * 96, 8);
        }
        w.heal(0, 1);
        for block in 0..200 {
            w.write_ok(0, (block * 7919) % 28_000, 8);
        }
        w.settle();
    }
}

/// A1: the Primary is killed again and again under writes; the bits of all hot extents lead to equal data.
#[test]
fn sim_a1_the_primary_crashes_again_and_again() {
    let mut w = Cluster::new(2).synced();
    for round in 0..12 {
        for block in 0..10 {
            w.write(0, (block * 1_237 + round * 8) % 28_000, 8);
        }
        w.run_ms(round);
        w.crash(0, if round % 2 == 0 { Crash::Power } else { Crash::Process });
        w.run_ms(50);
        w.start(0);
        w.expect("both in sync", |w| w.mutually_in_sync(0, 1, V0));
        w.must(0, Command::Promote { force: false });
    }
    w.settle();
}

/// F9: the link is lost with writes in every phase; each completes exactly once, and what is missing is marked.
#[test]
fn sim_f9_link_loss_with_writes_in_every_phase() {
    let mut w = Cluster::new(2).synced();
    for delay_us in (0..2_000).step_by(50) {
        let requests: Vec<_> = (0..8).map(|n| w.write(0, n * 808, 8)).collect();
        let limit = w.now + delay_us * 1_000;
        while w.step(limit) {}
        w.reset_link(0, 1);
        for req in requests {
            assert_eq!(w.wait(req), Ok(()));
        }
        w.expect("they are in sync again", |w| w.mutually_in_sync(0, 1, V0));
    }
    w.settle();
}

/// M1: the Primary moves around quickly.
#[test]
fn sim_m1_the_primary_moves_around_quickly() {
    let mut w = Cluster::new(4).synced();
    for round in 0..20 {
        let (from, to) = (round % 4, (round * 3 + 1) % 4);
        if w.role(from) != Role::Primary {
            let primary = (0..4).find(|ix| w.role(*ix) == Role::Primary).expect("somebody is Primary");
            w.must(primary, Command::Demote);
        } else {
            w.must(from, Command::Demote);
        }
        w.must(to, Command::Promote { force: false });
        w.write_ok(to, 8 * round as u64, 8);
    }
    w.settle();
}

/// M5: a role change with a node that has just died silently ends in time.
#[test]
fn sim_m5_a_promotion_with_a_node_that_died_silently() {
    let mut w = Cluster::new(3).synced();
    w.must(0, Command::Demote);
    w.crash(2, Crash::Power);
    let begin = w.now;
    w.must(1, Command::Promote { force: false });
    assert!((w.now - begin) / 1_000_000 <= 60_000, "it takes too long");
    w.start(2);
    w.settle();
}

/// I3: discards and zeroes, also unaligned, end with the same content everywhere.
#[test]
fn sim_i3_discards_and_zeroes_end_equal_everywhere() {
    for discard in [true, false] {
        let mut w = Cluster { discard, ..Cluster::new(3) }.synced();
        w.write_ok(0, 0, 64);
        for (op, sector, sectors) in
            [(Op::Discard, 8, 8), (Op::WriteZeroes { unmap: true }, 19, 3), (Op::WriteZeroes { unmap: false }, 33, 20)]
        {
            let req = w.submit(0, V0, op, sector, sectors, false);
            assert_eq!(w.wait(req), Ok(()));
        }
        w.read_ok(0, 0, 64);
        w.settle();
    }
}
