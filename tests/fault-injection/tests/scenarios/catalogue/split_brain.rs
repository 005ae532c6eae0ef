//! Section 4, without the diskless: split brains, unrelated data, histories.

use zea_core::io::Command;
use zea_meta::flags::DeviceFlags;
use zea_meta::superblock::SuperBlock;
use zea_sim::disk::Disk;
use zea_sim::faults::Crash;
use zea_sim::scenario::{BUDGET_MS, Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, DiskState, Role};

use super::{FULL, connect, promote, write_blocks};

fn reconnect(w: &mut World, ix: usize, peer: usize, discard_my_data: bool) {
    w.must(ix, Command::Connect { peer: node_id(peer), discard_my_data });
}

/// Node 0 is cut off, and both sides write; node 1 is Primary of the other side.
fn split_brain(nodes: usize) -> World {
    let mut w = Cluster::new(nodes).synced();
    w.write_ok(0, 0, 8);
    w.run_ms(1_000);
    w.isolate(0);
    w.run_ms(1_000);
    promote(&mut w, 1);
    w.write_ok(0, 8, 8);
    w.write_ok(0, 16, 8);
    w.write_ok(1, 8, 8);
    w.write_ok(1, 24, 8);
    w
}

fn demote_both(w: &mut World) {
    w.must(1, Command::Demote);
    w.must(0, Command::Demote);
}

fn stand_alone(w: &World, a: usize, b: usize) -> bool {
    w.conn(a, b) == ConnState::StandAlone && w.conn(b, a) == ConnState::StandAlone
}

fn image(w: &World, ix: usize) -> Vec<u64> {
    (0..32_000).map(|s| w.nodes[ix].disks[&V0].sector(s)).collect()
}

/// S1: both wrote without the other: both ends see it, stand alone, and touch nothing.
#[test]
fn sim_s1_split_brain_is_detected_on_both_sides() {
    let mut w = split_brain(2);
    demote_both(&mut w);
    let before = [image(&w, 0), image(&w, 1)];
    w.heal(0, 1);
    w.expect("both stand alone", |w| stand_alone(w, 0, 1));
    let errors = [0, 1].map(|ix| {
        w.refresh(ix);
        assert_eq!(w.disk(ix), DiskState::UpToDate);
        w.nodes[ix].connection(1 - ix).and_then(|c| c.last_error.clone()).unwrap_or_default()
    });
    // Who is refused before it has compared can only point to the other one.
    let splits = errors.iter().filter(|e| e.contains("split brain detected")).count();
    let points = errors.iter().filter(|e| e.contains("its log says why")).count();
    assert!(splits >= 1 && splits + points == 2, "{errors:?}");
    assert!([image(&w, 0), image(&w, 1)] == before, "nobody touched the images");
}

/// S1: of three, those that did not write apart stay together.
#[test]
fn sim_s1_split_brain_of_three() {
    let mut w = split_brain(3);
    demote_both(&mut w);
    w.rejoin(0);
    w.expect("node 0 is alone", |w| stand_alone(w, 0, 1) && stand_alone(w, 0, 2));
    assert!(w.mutually_in_sync(1, 2, V0), "{}", w.summary());
    w.model.forgive(0);
    for peer in [1, 2] {
        reconnect(&mut w, peer, 0, false);
        reconnect(&mut w, 0, peer, true);
    }
    w.settle();
}

/// S3: either side may give up its changes, unless it is Primary; the other one's data wins.
#[test]
fn sim_s3_one_side_discards_its_data() {
    for (victim, primary_left) in [(0, false), (1, false), (0, true), (1, true)] {
        let winner = 1 - victim;
        let mut w = split_brain(2);
        let refused = w.command(victim, Command::Connect { peer: node_id(winner), discard_my_data: true });
        assert_eq!(refused.expect_err("it is Primary").code, -12);
        w.must(victim, Command::Demote);
        if !primary_left {
            w.must(winner, Command::Demote);
        }
        w.heal(0, 1);
        w.expect("both stand alone", |w| stand_alone(w, 0, 1));
        let kept = image(&w, winner);
        w.model.forgive(victim);
        reconnect(&mut w, victim, winner, true);
        reconnect(&mut w, winner, victim, false);
        w.settle();
        assert!(image(&w, victim) == kept, "the data of node {winner} won");
        let moved = w.received(victim, winner);
        assert!(moved < FULL, "bits of both sides are enough, not {moved} sectors");
        assert_eq!(w.role(winner), if primary_left { Role::Primary } else { Role::Secondary });
    }
}

/// S3: of three that wrote apart one gives up its changes to both others. What it has got from the first is not among them.
#[test]
fn sim_s3_what_was_got_in_exchange_is_not_discarded() {
    let mut w = split_brain(3);
    w.isolate(2);
    w.run_ms(1_000);
    w.must(2, Command::Promote { force: true });
    w.write_ok(1, 8, 8);
    w.write_ok(2, 8, 8);
    demote_both(&mut w);
    w.must(2, Command::Demote);
    w.rejoin(0);
    w.rejoin(2);
    let pairs = [(0, 1), (0, 2), (1, 2)];
    w.expect("all stand alone", |w| pairs.iter().all(|&(a, b)| stand_alone(w, a, b)));
    w.model.forgive(2);
    for peer in [0, 1] {
        reconnect(&mut w, peer, 2, false);
        reconnect(&mut w, 2, peer, true);
    }
    let of_one = |w: &World, a, b| w.mutually_in_sync(a, 2, V0) && stand_alone(w, b, 2);
    w.expect("node 2 has the data of one, and is no friend of the other", |w| of_one(w, 0, 1) || of_one(w, 1, 0));
}

/// S3: both want to give up theirs: nobody's data wins, they stand alone.
#[test]
fn sim_s3_both_sides_discard_their_data() {
    let mut w = split_brain(2);
    demote_both(&mut w);
    w.heal(0, 1);
    w.expect("both stand alone", |w| stand_alone(w, 0, 1));
    let before = [image(&w, 0), image(&w, 1)];
    reconnect(&mut w, 0, 1, true);
    reconnect(&mut w, 1, 0, true);
    w.expect("both stand alone again", |w| stand_alone(w, 0, 1));
    assert!([image(&w, 0), image(&w, 1)] == before);
}

/// S4: two Primaries meet, directly or through a secondary: they do not connect, and both serve their data on.
#[test]
fn sim_s4_two_primaries_meet() {
    for nodes in [2, 3] {
        let mut w = split_brain(nodes);
        if nodes == 3 {
            w.heal(0, 2);
            w.run_ms(20_000);
        }
        w.heal(0, 1);
        w.run_ms(20_000);
        assert!(!w.is_connected(0, 1), "{}", w.summary());
        w.write_ok(0, 64, 8);
        w.write_ok(1, 72, 8);
        w.read_ok(0, 0, 64);
        w.read_ok(1, 0, 64);
        w.checkpoint();
    }
}

fn edit_super_block(disk: &mut Disk, edit: impl FnOnce(&mut SuperBlock)) {
    let backing = disk.backing();
    let at = backing.size_bytes / 4096 * 4096 - 4096;
    let mut super_block = SuperBlock::decode(&disk.meta_bytes(at, 4096)).expect("it was just created");
    edit(&mut super_block);
    let mut block = [0; 4096];
    super_block.encode(&mut block);
    disk.format_meta(at, &block);
}

/// Everybody is told that all have the same data, as `drbdsetup new-current-uuid` and `drbdmeta set-gi` do on day 0.
fn day_0(ix: u8, super_block: &mut SuperBlock) {
    super_block.node_id = Some(ix);
    super_block.current_uuid = 0x0da7_0da7_0da7_0da6;
    super_block.flags.insert(DeviceFlags::CONSISTENT);
    super_block.flags.insert(DeviceFlags::WAS_UP_TO_DATE);
    for peer in (0..3).filter(|peer| *peer != ix) {
        super_block.assign_slot(peer).expect("there is room for two");
    }
}

/// S7: nodes with the same UUID from day 0 need no first sync; one that is made anew with it later is not taken for one of
/// them when they have written since.
#[test]
fn sim_s7_day_0_uuids() {
    for writes in [0, 1, 20] {
        let cluster = Cluster::new(3);
        let mut w = cluster.build();
        for ix in 0..3 {
            edit_super_block(w.nodes[ix].disks.get_mut(&V0).expect("a disk"), |sb| day_0(ix as u8, sb));
            w.start(ix);
        }
        w.expect("no sync is needed", World::is_converged);
        assert!((0..3).all(|ix| (0..3).all(|peer| ix == peer || w.received(ix, peer) == 0)));
        promote(&mut w, 0);
        write_blocks(&mut w, 0, 0..writes);
        w.settle();
        w.must(2, Command::Down);
        w.crash(2, Crash::Process);
        write_blocks(&mut w, 0, 20..20 + writes);
        let mut fresh = cluster.disk(32_768);
        edit_super_block(&mut fresh, |sb| day_0(2, sb));
        w.nodes[2].disks.insert(V0, fresh);
        w.model.gave_up(2, 0);
        w.start(2);
        w.settle();
        if writes > 0 {
            let received = w.received(2, 0) + w.received(2, 1);
            assert!(received >= 2 * writes * 8, "{writes} writes: {received} sectors");
        }
    }
}

/// S10: disks that never belonged together are not connected.
#[test]
fn sim_s10_unrelated_data_is_refused() {
    let mut w = Cluster::new(2).synced();
    w.checks.split_brains_expected = true;
    w.write_ok(0, 0, 8);
    let mut other = Cluster { seed: 99, ..Cluster::new(2) }.synced();
    other.crash(1, Crash::Process);
    w.crash(1, Crash::Process);
    w.nodes[1].disks = std::mem::take(&mut other.nodes[1].disks);
    w.start(1);
    w.run_until(|w| stand_alone(w, 0, 1), BUDGET_MS);
    assert!(stand_alone(&w, 0, 1), "{}", w.summary());
    w.read_ok(0, 0, 8);
}

/// S11: more generations than a history has pass while a node is away: it is still known as older, nothing seems to have split.
#[test]
fn sim_s11_more_generations_than_a_history_holds() {
    for generations in [10, 32, 40] {
        let mut w = Cluster::new(3).synced();
        w.isolate(2);
        let away = w.generation(2);
        for round in 0..generations {
            w.part(0, 1);
            w.write_ok(0, round * 64, 8);
            w.heal(0, 1);
            w.expect("they are in sync", |w| w.mutually_in_sync(0, 1, V0));
        }
        assert_ne!(w.generation(0), away);
        // The one that it never saw write comes first.
        w.heal(1, 2);
        w.run_ms(generations);
        w.heal(0, 2);
        w.settle();
    }
}

/// S12: equal UUIDs after a crash of the Primary, of the secondary, of both at once, with either of them promoted after it.
#[test]
fn sim_s12_crashes_at_equal_uuids() {
    for seed in 0..24 {
        let (crashed, first) = ([&[0][..], &[1], &[0, 1]][seed as usize % 3], seed as usize / 3 % 2);
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        w.under_load(15, Mix::default());
        for &ix in crashed {
            w.crash(ix, if seed % 2 == 0 { Crash::Power } else { Crash::Process });
        }
        if crashed.len() == 2 {
            w.start(first);
            w.run_ms(seed * 50);
        }
        (0..2).for_each(|ix| w.start(ix));
        w.expect("they are in sync", |w| w.mutually_in_sync(0, 1, V0));
        w.run_ms(1_000);
        w.checkpoint();
        assert_eq!(w.generation(0), w.generation(1));
        if w.role(0) != Role::Primary {
            promote(&mut w, first);
        }
        w.under_load(10, Mix::default());
        w.settle();
    }
}

/// S13: a Primary that writes nothing, in a chain whose last node leaves: nobody is stuck, nothing is resynced.
#[test]
fn sim_s13_a_promotion_without_a_write() {
    for leaving in [3, 2, 1] {
        let mut w = Cluster::new(4).synced();
        w.must(0, Command::Demote);
        w.settle();
        let resyncs = w.checks.resyncs.clone();
        for (a, b) in [(0, 2), (0, 3), (1, 3)] {
            w.part(a, b);
        }
        promote(&mut w, 0);
        w.run_ms(1_000);
        w.others(leaving).for_each(|other| w.cut(leaving, other));
        w.expect("it is gone", |w| w.is_apart(leaving, leaving - 1));
        w.run_ms(15_000);
        w.must(0, Command::Demote);
        for a in 0..4 {
            for b in a + 1..4 {
                w.heal(a, b);
            }
        }
        w.settle();
        assert_eq!(w.checks.resyncs, resyncs, "node {leaving} left");
    }
}

/// S14: of three generations the oldest is synced from the newest, then meets the one in between, which has become the oldest.
#[test]
fn sim_s14_a_resync_to_the_older() {
    for cut_off in [true, false] {
        let mut w = Cluster::new(3).synced();
        w.crash(2, Crash::Process);
        w.expect("node 2 is gone", |w| w.conn(0, 2) != ConnState::Connected && w.conn(1, 2) != ConnState::Connected);
        write_blocks(&mut w, 0, 0..10);
        w.crash(1, Crash::Process);
        w.expect("node 1 is gone", |w| w.conn(0, 1) != ConnState::Connected);
        write_blocks(&mut w, 0, 10..20);
        w.start(2);
        w.expect("node 2 is synced", |w| w.mutually_in_sync(0, 2, V0));
        w.run_ms(1_000);
        w.must(0, Command::Demote);
        if cut_off {
            w.cut(0, 1);
        }
        w.start(1);
        w.expect("node 1 is synced", |w| w.mutually_in_sync(1, 2, V0));
        assert!(w.received(1, 2) + w.received(1, 0) >= 80);
        w.heal(0, 1);
        w.settle();
    }
}

/// S1 and S3 through a third node: who was resynced from the winner brings the loser's end.
#[test]
fn sim_s3_the_loser_is_discarded_through_a_third_node() {
    let mut w = split_brain(3);
    demote_both(&mut w);
    w.rejoin(0);
    w.expect("node 0 is alone", |w| stand_alone(w, 0, 1) && stand_alone(w, 0, 2));
    w.model.forgive(0);
    reconnect(&mut w, 2, 0, false);
    reconnect(&mut w, 0, 2, true);
    w.expect("node 0 is synced from node 2", |w| w.mutually_in_sync(0, 2, V0));
    connect(&mut w, 0, 1);
    w.settle();
}
