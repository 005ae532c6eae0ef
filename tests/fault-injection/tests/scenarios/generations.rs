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
