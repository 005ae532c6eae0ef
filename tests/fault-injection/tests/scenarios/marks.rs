//! A disk that is being resynced: what has to be marked, and what it is called until it is done.

use zea_core::config::{DiskOptions, NetOptions, Protocol};
use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::World;
use zea_wire::state::{ConnState, DiskState, ReplState};

fn slow(seed: u64) -> Cluster {
    let disk = DiskOptions { al_extents: 67, resync_window_sectors: 128, ..DiskOptions::default() };
    Cluster { seed, disk, disk_latency_ns: 2_000_000, ..Cluster::new(3) }
}

fn write_apart(w: &mut World, ix: usize, blocks: std::ops::Range<u64>) {
    for block in blocks {
        w.write_ok(ix, block * 64, 8);
    }
}

/// Resync data may hold a later write, and an earlier one be missing still. That has to be marked before the data comes, and before
/// the resync ends: whoever takes this image gets the later without the earlier.
#[test]
fn sim_marks_of_earlier_writes_come_before_resync_data() {
    for seed in 0..8 {
        let mut w = slow(seed).synced();
        w.isolate(2);
        write_apart(&mut w, 0, 0..24);
        w.run_ms(2_000);
        w.heal(1, 2);
        w.expect("node 2 is being resynced", |w| w.nodes[2].target_of.contains_key(&V0));
        w.run_ms(4 * seed);
        for block in (0..24).rev() {
            w.write_ok(0, 16_384 + block * 64, 8);
            w.flush_ok(0);
            w.write_ok(0, block * 64, 8);
            w.flush_ok(0);
            if w.disk(2) == DiskState::Outdated {
                break;
            }
        }
        w.expect("it is over", |w| w.disk(2) == DiskState::Outdated);
        w.crash(2, Crash::Process);
        w.start(2);
        w.run_ms(200);
    }
}

/// Node 2 has heard that the Primary wrote without it, and waits for its bitmap. Node 0 has not heard of that yet.
#[test]
fn sim_one_that_has_not_heard_of_it_does_not_make_a_disk_up_to_date() {
    for delay in 0..40 {
        let mut w = slow(delay).synced();
        w.isolate(0);
        write_apart(&mut w, 0, 0..24);
        w.part(1, 2);
        w.heal(0, 1);
        w.run_ms(delay);
        w.heal(1, 2);
        let waits = |w: &World| {
            let repl = w.nodes[1].peer_device(0, V0).map(|pd| pd.repl);
            matches!(repl, Some(ReplState::WFBitMapT | ReplState::PausedSyncT))
        };
        w.run_until(waits, 500);
        while waits(&w) {
            assert_ne!(w.disk(1), DiskState::UpToDate);
            w.run_ms(1);
        }
        w.rejoin(2);
        w.settle();
    }
}

/// The Primary lets its disk go. What it has written last the other node has not made stable, and loses.
#[test]
fn sim_marks_of_unstable_writes_are_made_before_a_disk_goes() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let net = NetOptions { protocol, ..NetOptions::default() };
        let mut w = Cluster { net, ..Cluster::new(2) }.synced();
        write_apart(&mut w, 0, 0..10);
        w.detach(0);
        w.crash(1, Crash::Power);
        w.run_ms(100);
        w.attach(0);
        w.start(1);
        w.settle();
    }
}

/// Node 1 is resynced to a newer generation while node 0, which has only the old one, is connected to it: node 0 must not become
/// Primary on that.
#[test]
fn sim_an_old_generation_is_not_served_beside_a_newer_one() {
    for delay in [0, 5, 50, 500] {
        let mut w = Cluster::new(3).synced();
        w.must(0, Command::Demote);
        w.isolate(2);
        w.must(2, Command::Promote { force: true });
        w.write_ok(2, 0, 8);
        w.flush_ok(2);
        w.must(2, Command::Demote);
        w.heal(1, 2);
        w.expect("node 1 has it", |w| w.mutually_in_sync(1, 2, V0));
        w.isolate(2);
        w.run_ms(delay);
        w.expect("node 0 is not alone", |w| w.is_connected(0, 1));
        w.must(0, Command::Promote { force: false });
        w.rejoin(2);
        w.settle();
    }
}

/// Node 2 is resynced by a neighbour of a Primary that it does not see, and goes by force from there. What the Primary writes meanwhile
/// is of the same generation: it must not pass for something that node 2 had.
#[test]
fn sim_a_copy_behind_a_primary_is_not_taken_for_all_of_its_generation() {
    let mut w = slow(3).synced();
    w.isolate(2);
    write_apart(&mut w, 0, 0..24);
    w.heal(1, 2);
    w.expect("node 2 is being resynced", |w| w.disk(2) == DiskState::Inconsistent);
    w.expect("it has what there was", |w| w.disk(2) == DiskState::Outdated);
    w.part(1, 2);
    w.run_ms(1_000);
    w.model.gave_up(2, 0);
    w.model.forked(2, 0);
    (0..2).for_each(|other| w.model.forgive(other));
    w.must(2, Command::Promote { force: true });
    write_apart(&mut w, 0, 24..30);
    w.part(0, 1);
    w.run_ms(1_000);
    w.heal(1, 2);
    w.expect("nobody decides", |w| w.conn(1, 2) == ConnState::StandAlone && w.conn(2, 1) == ConnState::StandAlone);
}

/// Node 0 loses its power while it is being resynced, and meets a node at its former generation: what has been
/// replaced meanwhile is different there.
#[test]
fn sim_marks_of_replaced_blocks_survive_a_loss_of_power() {
    for seed in 0..8 {
        let mut w = slow(seed).synced();
        w.must(0, Command::Demote);
        w.isolate(1);
        w.must(1, Command::Promote { force: true });
        write_apart(&mut w, 1, 0..40);
        w.must(1, Command::Demote);
        w.part(0, 2);
        w.heal(0, 1);
        w.expect("node 0 is being resynced", |w| w.nodes[0].target_of.contains_key(&V0));
        w.run_ms(20 + 10 * seed);
        w.crash(0, Crash::Power);
        w.part(0, 1);
        w.heal(0, 2);
        w.start(0);
        w.expect("node 2 helps", |w| w.disk(0) == DiskState::UpToDate && w.mutually_in_sync(0, 2, V0));
        w.rejoin(1);
        w.run_ms(1_000);
    }
}

/// Likewise with what the source tells of when the resync has begun: its Primary, which node 0 does not see, goes on writing.
#[test]
fn sim_marks_of_blocks_that_were_told_late_survive_a_loss_of_power() {
    for seed in 0..12 {
        let mut w = Cluster { nodes: 4, ..slow(seed) }.synced();
        w.must(0, Command::Demote);
        for apart in [0, 2] {
            w.part(1, apart);
            w.part(3, apart);
        }
        w.run_ms(1_000);
        w.must(3, Command::Promote { force: true });
        write_apart(&mut w, 3, 0..40);
        w.part(0, 2);
        w.heal(0, 1);
        w.expect("node 0 is being resynced", |w| w.nodes[0].target_of.contains_key(&V0));
        w.run_ms(10);
        write_apart(&mut w, 3, 100..104);
        w.run_ms(2 * seed);
        w.crash(0, Crash::Power);
        w.part(0, 1);
        w.heal(0, 2);
        w.start(0);
        w.expect("node 2 helps", |w| w.disk(0) == DiskState::UpToDate && w.mutually_in_sync(0, 2, V0));
    }
}
