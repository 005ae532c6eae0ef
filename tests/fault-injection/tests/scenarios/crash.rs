//! Crashes of the Primary, of secondaries, of everything.

use zea_core::config::{NetOptions, Protocol};
use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::{Mix, Workload};
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, DiskState};

fn under_load(w: &mut World, ms: u64) {
    let mut load = Workload::new(w.seed, Mix { flushes: 20, ..Mix::default() }, 12, 32_000);
    let end = w.now + ms * 1_000_000;
    load.step(w, &Default::default());
    while w.step(end) {
        load.step(w, &Default::default());
    }
}

#[test]
fn sim_primary_crash_under_load_and_failover() {
    for seed in 0..10 {
        for how in [Crash::Power, Crash::Process] {
            let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
            under_load(&mut w, 60);
            w.crash(0, how);
            w.expect("the survivors notice", |w| {
                w.conn(1, 0) != ConnState::Connected && w.conn(2, 0) != ConnState::Connected
            });
            w.expect("the survivors reconcile", |w| w.mutually_in_sync(1, 2, V0));
            w.run_ms(500);
            w.checkpoint();
            w.must(1, Command::Promote { force: false });
            under_load(&mut w, 40);
            w.start(0);
            under_load(&mut w, 60);
            w.settle();
        }
    }
}

#[test]
fn sim_the_old_primary_resyncs_its_active_extents_only() {
    let mut w = Cluster { volume_sectors: vec![20 * 8192], ..Cluster::new(2) }.synced();
    for block in 0..50 {
        w.write_ok(0, block * 8, 8);
    }
    w.crash(0, Crash::Power);
    w.expect("node 1 notices", |w| w.conn(1, 0) != ConnState::Connected);
    w.must(1, Command::Promote { force: false });
    w.write_ok(1, 8192 * 9, 8);
    w.start(0);
    w.settle();
    w.refresh(0);
    let received = w.nodes[0].peer_device(1, V0).expect("a peer device").received_sectors;
    assert!(received >= 8, "the new write travels");
    assert!(received <= 3 * 8192, "only the active extents travel, not {received} sectors");
}

#[test]
fn sim_primary_crash_and_return_without_failover() {
    for seed in 0..20 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        under_load(&mut w, 60);
        w.crash(0, Crash::Power);
        w.run_ms(seed * 700);
        w.start(0);
        w.expect("both in sync", |w| w.mutually_in_sync(0, 1, V0));
        w.checkpoint();
        w.must(0, Command::Promote { force: false });
        under_load(&mut w, 40);
        w.settle();
    }
}

#[test]
fn sim_a_crashed_primary_that_synced_another_does_not_overwrite_a_survivor() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.crash(2, Crash::Process);
        under_load(&mut w, 60);
        // Unflushed writes are lost here; node 1 has them, and does not see the other two for now.
        w.crash(0, Crash::Power);
        w.cut(0, 1);
        w.cut(1, 2);
        w.start(0);
        w.start(2);
        w.expect("node 2 is resynced", |w| w.mutually_in_sync(0, 2, V0));
        w.heal(0, 1);
        w.heal(1, 2);
        w.settle();
        w.must(0, Command::Promote { force: false });
        w.read_ok(0, 0, 2048);
    }
}

#[test]
fn sim_a_crashed_primary_whose_data_was_given_up_is_resynced_though_interrupted() {
    for after_ms in [0, 1, 2, 5, 20] {
        give_up_and_interrupt(after_ms);
    }
}

fn give_up_and_interrupt(after_ms: u64) {
    let cluster = Cluster::new(2);
    let net = NetOptions { protocol: Protocol::A, ..cluster.net.clone() };
    let mut w = Cluster { net, volume_sectors: vec![65_536], ..cluster }.synced();
    for mib in 0..16 {
        w.write_ok(0, mib * 2048, 2048);
    }
    w.run_ms(500);
    w.cut(0, 1);
    w.crash(0, Crash::Process);
    w.start(0);
    w.model.forgive(0);
    w.must(0, Command::Connect { peer: node_id(1), discard_my_data: true });
    w.heal(0, 1);
    w.expect("node 0 is to be a target", |w| w.disk(0) == DiskState::Outdated);
    // It does not remember what it was asked for, but that it was Primary when it died.
    w.run_ms(after_ms);
    w.crash(0, Crash::Process);
    w.start(0);
    w.settle();
}

#[test]
fn sim_everything_crashes() {
    for seed in 0..20 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        under_load(&mut w, 60);
        for ix in 0..3 {
            w.crash(ix, Crash::Power);
        }
        let order = [[0, 1, 2], [2, 1, 0], [1, 0, 2]][(seed % 3) as usize];
        for ix in order {
            w.start(ix);
            w.run_ms(seed * 100);
        }
        w.expect("all in sync", World::is_converged);
        w.must(order[1], Command::Promote { force: false });
        under_load(&mut w, 40);
        w.settle();
    }
}

#[test]
fn sim_a_lost_write_on_a_crashed_secondary_is_repaired() {
    for seed in 0..20 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        for block in 0..30 {
            w.write_ok(0, block * 8, 8);
        }
        w.crash(1, Crash::Power);
        w.start(1);
        w.expect("node 1 is back", |w| w.mutually_in_sync(0, 1, V0));
        w.checkpoint();
        w.settle();
    }
}

#[test]
fn sim_a_crash_right_after_a_resync_loses_nothing() {
    // What was resynced has to be stable before the bits and the UUIDs say so.
    for seed in 0..20 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        w.cut(0, 1);
        w.run_ms(500);
        for block in 0..100 {
            w.write_ok(0, block * 24, 8);
        }
        w.heal(0, 1);
        w.expect("node 1 is back", |w| w.mutually_in_sync(0, 1, V0));
        w.crash(1, Crash::Power);
        w.start(1);
        w.expect("node 1 is back again", |w| w.mutually_in_sync(0, 1, V0));
        w.checkpoint();
        w.settle();
    }
}

#[test]
fn sim_a_crash_during_a_role_change_leaves_no_stuck_transaction() {
    for seed in 0..20 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.must(0, Command::Demote);
        w.admin(1, Command::Promote { force: false });
        for _ in 0..seed {
            w.step(u64::MAX);
        }
        w.crash(1 + (seed % 2) as usize, Crash::Process);
        w.run_ms(40_000);
        w.start(1);
        w.start(2);
        w.settle();
        let primary = (0..3).find(|ix| w.role(*ix) == zea_wire::state::Role::Primary);
        let ix = primary.unwrap_or(2);
        if primary.is_none() {
            w.must(ix, Command::Promote { force: false });
        }
        w.write_ok(ix, 0, 8);
        w.settle();
    }
}
