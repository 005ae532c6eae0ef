//! Resize: all nodes agree, and grow together.

use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::pool::Tag;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::World;
use zea_wire::state::{DiskState, ReplState, Role};

/// Sectors before and after.
const SMALL: u64 = 16_004;
const LARGE: u64 = 30_000;
/// What lay on the disk of one node where the volume was not yet.
const OLD: Tag = 0x666;
/// Where it lay.
const TRACES: [u64; 3] = [SMALL, 20_000, LARGE - 1];

/// All nodes synced at the small size, node 0 is Primary.
fn small(cluster: &Cluster) -> World {
    let mut w = cluster.build();
    for saved in w.nodes.iter_mut().map(|node| &mut node.saved) {
        saved.volumes.iter_mut().for_each(|volume| volume.size_sectors = Some(SMALL));
        let diskless = saved.peers.iter_mut().filter(|peer| cluster.diskless.contains(&peer.node_id.index()));
        diskless.for_each(|peer| peer.net.bitmap = false);
    }
    cluster.bring_up(&mut w);
    w
}

fn resize(size_sectors: u64) -> Command {
    Command::Resize { volume: V0, size_sectors, assume_clean: false }
}

fn size(w: &mut World, ix: usize) -> u64 {
    w.refresh(ix);
    w.nodes[ix].device(V0).map_or(0, |device| device.size_sectors)
}

fn sizes(w: &mut World) -> Vec<u64> {
    (0..w.nodes.len()).map(|ix| size(w, ix)).collect()
}

fn leave_traces(w: &mut World, ix: usize) {
    let disk = w.nodes[ix].disks.get_mut(&V0).expect("a disk");
    TRACES.into_iter().for_each(|sector| disk.preset(sector, &[OLD]));
}

fn has_traces(w: &World, ix: usize) -> bool {
    TRACES.into_iter().all(|sector| w.nodes[ix].disks[&V0].sector(sector) == OLD)
}

fn refused(w: &mut World, ix: usize, size: u64, why: &str) {
    let error = w.command(ix, resize(size)).expect_err(why);
    assert!(error.message.contains(why), "{error}");
}

#[test]
fn sim_z1_all_devices_grow() {
    for nodes in 2..=5 {
        let mut w = small(&Cluster { seed: nodes as u64, ..Cluster::new(nodes) });
        leave_traces(&mut w, 0);
        let before: Vec<u64> = (1..nodes).map(|ix| w.received(ix, 0)).collect();
        w.must(0, resize(LARGE));
        w.settle();
        assert_eq!(sizes(&mut w), vec![LARGE; nodes]);
        for ix in 1..nodes {
            assert!(has_traces(&w, ix), "what is new is not the same on node {ix} of {nodes}");
            let moved = w.received(ix, 0) - before[ix - 1];
            assert!((LARGE - SMALL..LARGE - SMALL + 64).contains(&moved), "{moved} sectors");
        }
        w.write_ok(0, LARGE - 64, 64);
        w.flush_ok(0);
        w.settle();
    }
}

#[test]
fn sim_z1_all_devices_grow_under_load_and_are_written_to_at_once() {
    for seed in 0..12 {
        let mut w = small(&Cluster { seed, ..Cluster::new(2 + seed as usize % 3) });
        w.under_load(50, Mix::default());
        w.must(0, resize(LARGE));
        w.write_ok(0, LARGE - 128, 64);
        w.under_load(200, Mix::default());
        w.settle();
        assert!(sizes(&mut w).into_iter().all(|size| size == LARGE), "seed {seed}");
    }
}

#[test]
fn sim_z1_the_node_that_is_asked_is_the_source_without_a_primary() {
    let mut w = small(&Cluster::new(3));
    w.must(0, Command::Demote);
    leave_traces(&mut w, 1);
    w.must(1, resize(LARGE));
    w.settle();
    assert_eq!(sizes(&mut w), [LARGE; 3]);
    assert!(has_traces(&w, 0) && has_traces(&w, 2));
}

#[test]
fn sim_z1_what_is_new_is_not_copied_if_it_is_assumed_to_be_clean() {
    let mut w = small(&Cluster::new(3));
    let before = [w.received(1, 0), w.received(2, 0)];
    w.must(0, Command::Resize { volume: V0, size_sectors: LARGE, assume_clean: true });
    w.settle();
    assert_eq!(sizes(&mut w), [LARGE; 3]);
    assert_eq!([w.received(1, 0), w.received(2, 0)], before);
    w.write_ok(0, LARGE - 64, 64);
    w.settle();
}

#[test]
fn sim_z2_one_device_that_is_too_small_is_named() {
    let cluster = Cluster::new(3);
    let mut w = small(&cluster);
    refused(&mut w, 0, 1 << 20, "the disk here has");
    w.must(0, resize(SMALL));
    assert_eq!(sizes(&mut w), [SMALL; 3]);
}

#[test]
fn sim_z3_nobody_grows_while_a_node_is_away() {
    let mut w = small(&Cluster::new(3));
    w.isolate(2);
    w.run_ms(20_000);
    refused(&mut w, 0, LARGE, "node 2 is not connected");
    w.rejoin(2);
    w.settle();
    w.part(1, 2);
    w.run_ms(20_000);
    // The one that is asked sees both.
    refused(&mut w, 0, LARGE, "another node cannot grow now");
    assert_eq!(sizes(&mut w), [SMALL; 3]);
}

#[test]
fn sim_z4_a_primary_without_a_disk_has_the_new_size() {
    let mut w = small(&Cluster::new(3));
    w.detach(0);
    refused(&mut w, 0, LARGE, "no local disk");
    w.attach(0);
    w.settle();
    let cluster = Cluster { diskless: [2].into(), ..Cluster::new(3) };
    let mut w = small(&cluster);
    w.must(0, Command::Demote);
    w.must(2, Command::Promote { force: false });
    w.write_ok(2, 0, 8);
    w.must(1, resize(LARGE));
    w.settle();
    assert_eq!(sizes(&mut w), [LARGE; 3]);
    w.write_ok(2, LARGE - 64, 64);
    w.settle();
}

#[test]
fn sim_z5_no_volume_shrinks() {
    let mut w = small(&Cluster::new(2));
    refused(&mut w, 0, SMALL - 8, "no volume shrinks");
    refused(&mut w, 1, LARGE, "node 0 is Primary");
}

/// Wherever somebody dies: all of them have the same size afterwards, and what was acknowledged.
#[test]
fn sim_z7_a_node_dies_while_all_grow() {
    let mut grown = 0;
    for seed in 0..150 {
        let nodes = 2 + seed as usize % 2;
        let victim = seed as usize / 2 % nodes;
        let mut w = small(&Cluster { seed, ..Cluster::new(nodes) });
        w.admin(0, resize(LARGE));
        let until = w.now + seed * 20_000;
        while w.step(until) {}
        w.crash(victim, Crash::Power);
        w.run_ms(seed % 7 * 100);
        w.start(victim);
        w.expect("all connected", World::all_connected);
        if victim == 0 {
            w.expect("it can be Primary again", |w| w.role(0) == Role::Secondary && w.disk(0) == DiskState::UpToDate);
            w.must(0, Command::Promote { force: false });
        }
        w.settle();
        let sizes = sizes(&mut w);
        assert!(sizes.iter().all(|size| *size == sizes[0]), "seed {seed}: {sizes:?}");
        grown += u64::from(sizes[0] == LARGE);
        w.write_ok(0, sizes[0] - 64, 64);
        w.settle();
    }
    assert!((10..140).contains(&grown), "{grown} of 150 have grown");
}

/// The others grow all the same: whoever asked is told what has become of it.
#[test]
fn sim_z7_the_node_that_is_asked_lets_its_disk_go_while_all_grow() {
    for step in 0..30 {
        let mut w = small(&Cluster::new(3));
        let asked = w.admin(0, resize(LARGE));
        let until = w.now + step * 20_000;
        while w.step(until) {}
        w.must(0, Command::Detach { volume: V0, force: true });
        w.expect("an answer", |w| w.replies.contains_key(&asked));
        w.attach(0);
        w.settle();
        let sizes = sizes(&mut w);
        assert!(sizes.iter().all(|size| *size == sizes[0]), "step {step}: {sizes:?}");
        w.write_ok(0, sizes[0] - 64, 64);
        w.settle();
    }
}

#[test]
fn sim_z7_a_link_breaks_while_all_grow() {
    for seed in 0..60 {
        let mut w = small(&Cluster { seed, ..Cluster::new(3) });
        w.admin(0, resize(LARGE));
        let until = w.now + seed * 40_000;
        while w.step(until) {}
        let (a, b) = [(0, 1), (0, 2), (1, 2)][seed as usize % 3];
        w.part(a, b);
        w.run_ms(12_000);
        w.rejoin(a);
        w.rejoin(b);
        w.settle();
        let sizes = sizes(&mut w);
        assert!(sizes.iter().all(|size| *size == sizes[0]), "seed {seed}: {sizes:?}");
        w.write_ok(0, sizes[0] - 64, 64);
        w.settle();
    }
}

#[test]
fn sim_z8_a_node_that_is_busy_votes_against_it() {
    let mut w = small(&Cluster::new(3));
    w.isolate(2);
    w.under_load(500, Mix::default());
    w.rejoin(2);
    w.expect("a resync", |w| w.nodes[2].peer_device(0, V0).is_some_and(|p| p.repl == ReplState::SyncTarget));
    refused(&mut w, 0, LARGE, "busy with node 2");
    w.settle();
    w.must(0, resize(LARGE));
    w.settle();
    assert_eq!(sizes(&mut w), [LARGE; 3]);
}
