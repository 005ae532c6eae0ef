//! Section 2: how fast a resync goes.

use zea_core::config::ResyncOptions;
use zea_core::io::Command;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::World;
use zea_wire::state::DiskState;

/// KiB that are resynced, in pieces of 1 MiB.
const DIRTY_KIB: u64 = 12 << 10;

/// Node 1 has begun to be resynced from node 0, which is Primary.
fn in_a_resync(cluster: Cluster, options: ResyncOptions) -> World {
    let mut w = cluster.synced();
    w.part(0, 1);
    for piece in 0..DIRTY_KIB >> 10 {
        w.write_ok(0, piece * 2048, 2048);
    }
    w.run_ms(1_000);
    for ix in 0..2 {
        w.must(ix, Command::SetResyncOptions { volume: V0, options });
    }
    w.heal(0, 1);
    w.expect("the resync begins", |w| w.disk(1) == DiskState::Inconsistent);
    w
}

/// KiB that node 1 has received since they connected.
fn received_kib(w: &mut World) -> u64 {
    w.received(1, 0) / 2
}

fn shown_kib(w: &mut World, ix: usize) -> u64 {
    w.refresh(ix);
    w.nodes[ix].peer_device(1 - ix, V0).and_then(|p| p.resync_rate_kib).expect("a resync runs")
}

fn assert_near(what: &str, rate: u64, expected: u64) {
    assert!((expected * 8 / 10..=expected * 12 / 10).contains(&rate), "{what}: {rate} KiB/s instead of {expected}");
}

/// R16: c-max-rate holds on links of any latency, and is what observers see.
#[test]
fn sim_r16_a_resync_keeps_to_its_highest_rate() {
    for (max_rate_kib, latency_ns) in [(512, 100_000), (2_048, 100_000), (2_048, 20_000_000)] {
        let mut cluster = Cluster::new(2);
        cluster.links.latency_ns = latency_ns;
        let options = ResyncOptions { max_rate_kib, ..ResyncOptions::default() };
        let mut w = in_a_resync(cluster, options);
        w.run_ms(500);
        let before = received_kib(&mut w);
        w.run_ms(4_000);
        let rate = (received_kib(&mut w) - before) / 4;
        assert_near("received", rate, max_rate_kib);
        let shown = [shown_kib(&mut w, 0), shown_kib(&mut w, 1)];
        shown.into_iter().for_each(|rate| assert_near("shown", rate, max_rate_kib));
        for ix in 0..2 {
            w.must(ix, Command::SetResyncOptions { volume: V0, options: ResyncOptions::default() });
        }
        w.expect("no limit is left", |w| w.disk(1) == DiskState::UpToDate);
        w.settle();
    }
}

/// R16: the controller fills a slow link without a queue of seconds before it, and a fixed rate is kept.
#[test]
fn sim_r16_the_controller_plans_ahead() {
    let plans = [(Some(20), 512), (Some(20), 0), (Some(5), 512), (Some(0), 0)];
    for (plan_ahead, fill_target_sectors) in plans {
        let mut cluster = Cluster { disk_latency_ns: 2_000_000, ..Cluster::new(2) };
        cluster.links.latency_ns = 5_000_000;
        let options =
            ResyncOptions { plan_ahead, fill_target_sectors, resync_rate_kib: 1_024, ..ResyncOptions::default() };
        let mut w = in_a_resync(cluster, options);
        w.expect("the resync ends", |w| w.disk(1) == DiskState::UpToDate);
        w.settle();
    }
}

/// R15: while an application writes a resync takes about c-min-rate, and ends; when it is idle, whatever it can get.
#[test]
fn sim_r15_an_application_goes_first() {
    let options = ResyncOptions { min_rate_kib: 1_000, ..ResyncOptions::default() };
    let mut w = in_a_resync(Cluster::new(2), options);
    w.under_load(500, Mix::default());
    let before = w.out_of_sync(1, 0);
    w.under_load(4_000, Mix::default());
    let moved = (before - w.out_of_sync(1, 0)) / 2;
    assert!((2_500..=6_000).contains(&moved), "{moved} KiB in 4 s beside an application");
    w.run_ms(2_000);
    assert_eq!(w.disk(1), DiskState::UpToDate, "nobody uses it any more");
    let mut w = in_a_resync(Cluster::new(2), ResyncOptions { min_rate_kib: 6_000, ..options });
    w.under_load_until(Mix::default(), |w| w.disk(1) == DiskState::UpToDate);
    w.settle();
}

/// R15: reads, of which only the source knows, go first there.
#[test]
fn sim_r15_reads_on_the_source_go_first() {
    let options = ResyncOptions { min_rate_kib: 1_000, ..ResyncOptions::default() };
    let mut w = in_a_resync(Cluster::new(2), ResyncOptions { max_rate_kib: 64, ..options });
    w.must(1, Command::SetResyncOptions { volume: V0, options: ResyncOptions::default() });
    w.must(0, Command::SetResyncOptions { volume: V0, options });
    let begin = w.now;
    let mut before = None;
    while w.now < begin + 4_500 * 1_000_000 {
        w.read_ok(0, 0, 256);
        w.run_ms(20);
        if before.is_none() && w.now > begin + 500 * 1_000_000 {
            before = Some(received_kib(&mut w));
        }
    }
    let moved = received_kib(&mut w) - before.expect("time has passed");
    assert!((2_500..=6_500).contains(&moved), "{moved} KiB in 4 s beside an application");
    w.settle();
}
