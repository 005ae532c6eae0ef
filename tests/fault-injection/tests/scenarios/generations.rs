//! New generations, and who hears of them when.

use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_wire::state::ConnState;

#[test]
fn sim_a_generation_that_is_not_stable_is_told_to_nobody() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.write_ok(0, 0, 8);
        w.slow_disk(0, V0, 2_000);
        w.reset_link(0, 1);
        w.expect("the Primary loses node 1", |w| w.conn(0, 1) != ConnState::Connected);
        let before = w.generation(1);
        w.write(0, 64, 8);
        // It connects meanwhile, if it may.
        w.run_ms(1_000);
        assert_eq!(w.generation(1), before, "{}", w.summary());
        for ix in 0..3 {
            w.crash(ix, Crash::Power);
        }
        w.slow_disk(0, V0, 1);
        w.start(0);
        w.start(2);
        w.expect("two are in sync", |w| w.mutually_in_sync(0, 2, V0));
        w.must(0, Command::Promote { force: false });
        w.write_ok(0, 128, 8);
        w.start(1);
        w.settle();
    }
}

/// A Primary loses a node that does not notice it yet, writes on, and steps down. That node takes its data for the newest; the one between the
/// two knows better.
#[test]
fn sim_nobody_is_promoted_beside_later_data() {
    let mut w = Cluster::new(3).synced();
    w.stall(0, 2);
    w.expect("the Primary notices it", |w| w.conn(0, 2) != ConnState::Connected);
    w.write_ok(0, 0, 8);
    w.must(0, Command::Demote);
    w.cut(0, 2);
    w.expect("the other node does, too", |w| w.is_apart(0, 2));
    w.run_ms(50);
    let error = w.command(2, Command::Promote { force: false }).expect_err("its data is not the newest");
    assert!(error.message.contains("later data"), "{error:?}");
    w.run_ms(15_000);
    w.must(2, Command::Promote { force: false });
    w.write_ok(2, 8, 8);
    w.heal_all();
    w.settle();
}
