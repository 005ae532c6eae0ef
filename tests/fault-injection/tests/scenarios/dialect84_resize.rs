//! A volume that grows while it is in use, next to a peer that speaks 8.4.

use zea_core::config::NetOptions;
use zea_core::io::Command;
use zea_sim::disk::Disk;
use zea_sim::faults::Crash;
use zea_sim::pool::Tag;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::World;
use zea_wire::state::DiskState;

/// Sectors before and after.
const SMALL: u64 = 16_004;
const LARGE: u64 = 30_000;
/// What lay on the disk of node 0 where the volume was not yet.
const OLD: Tag = 0x666;

/// Two nodes at 101, synced at the small size, node 0 is Primary; `kernel`: without Zea's private feature.
fn small(kernel: bool, seed: u64) -> World {
    let net = NetOptions { protocol_max: 101, keep_bits: !kernel, ..NetOptions::default() };
    let cluster = Cluster { seed, net, ..Cluster::new(2) };
    let mut w = cluster.build();
    for volume in w.nodes.iter_mut().flat_map(|node| &mut node.saved.volumes) {
        volume.size_sectors = Some(SMALL);
    }
    cluster.bring_up(&mut w);
    w
}

/// Where something lies that nobody wrote.
const TRACES: [u64; 3] = [SMALL, 20_000, LARGE - 1];

fn disk(w: &mut World, ix: usize) -> &mut Disk {
    w.nodes[ix].disks.get_mut(&V0).expect("a disk")
}

fn size(w: &mut World, ix: usize) -> u64 {
    w.refresh(ix);
    w.nodes[ix].device(V0).map_or(0, |device| device.size_sectors)
}

fn resize(size_sectors: u64) -> Command {
    Command::Resize { volume: V0, size_sectors, assume_clean: false }
}

/// Both have the large size and the same data.
fn check_large(w: &mut World) {
    w.settle();
    assert_eq!((size(w, 0), size(w, 1)), (LARGE, LARGE));
}

#[test]
fn sim_84_a_volume_grows_from_either_node_and_what_is_new_is_resynced() {
    for (kernel, by) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let mut w = small(kernel, 1);
        w.write_ok(0, SMALL - 8, 8);
        TRACES.into_iter().for_each(|sector| disk(&mut w, 0).preset(sector, &[OLD]));
        w.must(by, resize(LARGE));
        w.expect("both are larger", |w| {
            (0..2).all(|ix| w.nodes[ix].device(V0).is_some_and(|d| d.size_sectors == LARGE))
        });
        check_large(&mut w);
        assert!(TRACES.into_iter().all(|sector| disk(&mut w, 1).sector(sector) == OLD), "what is new is not the same");
        let received = w.received(1, 0);
        assert!((LARGE - SMALL..LARGE - SMALL + 32_768).contains(&received), "{received} sectors");
        w.write_ok(0, LARGE - 64, 64);
        w.flush_ok(0);
        w.settle();
    }
}

#[test]
fn sim_84_a_volume_grows_under_load_and_is_written_to_at_once() {
    for (seed, by) in (0..20).zip([0, 1].into_iter().cycle()) {
        let mut w = small(seed % 4 < 2, seed);
        w.under_load(50, Mix::default());
        w.must(by, resize(LARGE));
        w.expect("the Primary is larger", |w| w.nodes[0].device(V0).is_some_and(|d| d.size_sectors == LARGE));
        w.write_ok(0, LARGE - 128, 64);
        w.under_load(200, Mix::default());
        check_large(&mut w);
    }
}

#[test]
fn sim_84_a_grown_volume_keeps_its_size_when_it_is_attached_again() {
    for by in [0, 1] {
        let mut w = small(true, 3);
        w.must(by, resize(LARGE));
        check_large(&mut w);
        for ix in [0, 1] {
            w.crash(ix, Crash::Power);
            w.start(ix);
            w.settle();
            assert_eq!(size(&mut w, ix), LARGE);
        }
    }
}

#[test]
fn sim_84_what_cannot_grow_is_refused() {
    let mut w = small(true, 4);
    let refused = |w: &mut World, size: u64, why: &str| {
        let error = w.command(0, resize(size)).expect_err(why);
        assert!(error.message.contains(why), "{error}");
    };
    refused(&mut w, SMALL - 8, "no volume shrinks");
    refused(&mut w, 1 << 20, "the disk here has");
    w.must(0, resize(SMALL));
    w.must(0, Command::Demote);
    refused(&mut w, LARGE, "has to be Primary");
    w.isolate(1);
    w.run_ms(20_000);
    refused(&mut w, LARGE, "node 1 is not connected");
    w.rejoin(1);
    w.settle();
    assert_eq!((size(&mut w, 0), size(&mut w, 1)), (SMALL, SMALL));
}

/// Wherever it is interrupted: both have the same size and data, or they do not connect and say why.
#[test]
fn sim_84_an_interrupted_growth_never_loses_a_write() {
    let mut connected = 0;
    for seed in 0..60 {
        let (by, victim) = (seed as usize % 2, seed as usize / 2 % 2);
        let mut w = small(true, seed);
        w.admin(by, resize(LARGE));
        let until = w.now + seed * 40_000;
        while w.step(until) {}
        w.crash(victim, Crash::Power);
        w.start(victim);
        let why = ["too small", "grown without"];
        let told = |w: &World| w.nodes.iter().flat_map(|n| &n.notices).any(|n| why.iter().any(|why| n.contains(why)));
        w.expect("connected, or refused", |w| w.all_connected() || told(w));
        if told(&w) {
            continue;
        }
        connected += 1;
        if victim == 0 {
            w.must(0, Command::Promote { force: false });
        }
        let (here, there) = (size(&mut w, 0), size(&mut w, 1));
        assert_eq!(here, there, "seed {seed}");
        w.write_ok(0, here - 64, 64);
        w.expect("both are good", |w| (0..2).all(|ix| w.disk(ix) == DiskState::UpToDate));
    }
    assert!(connected > 0);
}
