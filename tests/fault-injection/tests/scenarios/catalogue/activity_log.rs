//! Section 3: activity log and crash recovery.

use zea_core::io::Op;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::World;

use super::{EXTENT, promote};

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
        promote(&mut w, 0);
    }
    w.settle();
}

/// A2: random writes over far more extents than the log has slots: none waits long, and after a loss of power everything that
/// was written lies in an extent that the log on the disk names.
#[test]
fn sim_a2_writes_all_over_a_small_activity_log() {
    let mut cluster = Cluster { volume_sectors: vec![60 * EXTENT], ..Cluster::new(2) };
    cluster.disk.al_extents = 7;
    let mut w = cluster.synced();
    for round in 0..300 {
        let begin = w.now;
        let spread: Vec<_> = (0..4).map(|n| w.write(0, (round * 7 + n * 13) % 55 * EXTENT, 8)).collect();
        for write in spread {
            assert_eq!(w.wait(write), Ok(()));
        }
        let ms = (w.now - begin) / 1_000_000;
        assert!(ms < 2_000, "round {round}: {ms} ms");
    }
    w.crash(1, Crash::Power);
    w.checkpoint();
    w.start(1);
    w.settle();
}

/// A4: a secondary loses its power while the Primary writes on: it gets back what it may lack, and no more.
#[test]
fn sim_a4_a_secondary_crashes_while_the_primary_goes_on() {
    for seed in 0..10 {
        let mut w = Cluster { seed, volume_sectors: vec![20 * EXTENT], ..Cluster::new(2) }.synced();
        let few = |w: &mut World, n: u64| {
            for block in 0..n {
                w.write(0, block % 2 * EXTENT + block * 8, 8);
            }
        };
        few(&mut w, 40);
        w.run_ms(seed % 4);
        w.crash(1, Crash::Power);
        few(&mut w, 10);
        w.run_ms(20_000);
        w.start(1);
        w.settle();
        let received = w.received(1, 0);
        assert!(received <= 4 * EXTENT, "seed {seed}: {received} sectors");
    }
}

/// A9: a secondary has a smaller activity log than the Primary: heavy writes stall nothing.
#[test]
fn sim_a9_a_smaller_activity_log_on_the_secondary() {
    let mut cluster = Cluster { volume_sectors: vec![60 * EXTENT], ..Cluster::new(2) };
    cluster.disk.al_extents = 1_237;
    let mut w = cluster.build();
    w.nodes[1].saved.volumes[0].disk.al_extents = 7;
    cluster.bring_up(&mut w);
    let mut writes = Vec::new();
    for round in 0..40 {
        writes
            .extend((0..40).map(|n| w.submit(0, V0, Op::Write, (round * 11 + n) % 60 * EXTENT + round * 8, 8, false)));
        w.run_ms(5);
    }
    for write in writes {
        assert_eq!(w.wait(write), Ok(()));
    }
    w.under_load(50, Mix { hot: 0, depth: 32, ..Mix::default() });
    w.settle();
}
