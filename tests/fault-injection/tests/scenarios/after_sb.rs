//! Split brains that a policy ends (after-sb-0pri, after-sb-1pri): whose changes are lost, and that nobody else's are.

use zea_core::config::{AfterSb0Pri, AfterSb1Pri, NetOptions};
use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, Role};

fn policies(after_sb_0pri: AfterSb0Pri, after_sb_1pri: AfterSb1Pri) -> NetOptions {
    NetOptions { after_sb_0pri, after_sb_1pri, ..NetOptions::default() }
}

/// Zea's nodes, and those of 8.4: with Zea's private feature and without.
fn dialects(net: &NetOptions) -> [NetOptions; 3] {
    let old = NetOptions { protocol_max: 101, ..net.clone() };
    [net.clone(), old.clone(), NetOptions { keep_bits: false, ..old }]
}

/// Node 0 is Primary when the two part; node 1 becomes Primary then. Both write so many blocks without the other.
fn split(net: NetOptions, blocks: [u64; 2]) -> World {
    let mut w = Cluster { net, ..Cluster::new(2) }.synced();
    w.write_ok(0, 0, 8);
    w.run_ms(1_000);
    w.isolate(0);
    w.run_ms(3_000);
    w.must(1, Command::Promote { force: false });
    for (ix, blocks) in [0, 1].into_iter().zip(blocks) {
        (0..blocks).for_each(|n| w.write_ok(ix, 1_000 * n + 8 * ix as u64, 8));
    }
    w
}

fn demote(w: &mut World, nodes: &[usize]) {
    nodes.iter().for_each(|ix| w.must(*ix, Command::Demote));
}

fn image(w: &World, ix: usize) -> Vec<u64> {
    (0..32_000).map(|s| w.nodes[ix].disks[&V0].sector(s)).collect()
}

/// They meet, and what `victim` wrote is lost; both say so.
fn loses(w: &mut World, victim: usize) {
    let kept = image(w, 1 - victim);
    w.rejoin(0);
    w.settle();
    assert!(image(w, 0) == kept && image(w, 1) == kept, "the changes of node {victim} were to be lost");
    let told = format!("what node {victim} wrote since generation");
    for ix in [0, 1] {
        w.refresh(ix);
        let shown = w.nodes[ix].connection(1 - ix).and_then(|c| c.last_split_brain.clone()).unwrap_or_default();
        assert!(shown.contains(&told), "node {ix} shows {shown:?}");
        assert!(w.nodes[ix].notices.iter().any(|n| n.contains(&told)), "{:?}", w.nodes[ix].notices);
    }
}

/// They meet, and nothing is lost.
fn refused(w: &mut World) {
    let before = [image(w, 0), image(w, 1)];
    w.rejoin(0);
    let alone = |w: &World, ix: usize| w.conn(ix, 1 - ix) == ConnState::StandAlone;
    w.expect("both stand alone", |w| alone(w, 0) && alone(w, 1));
    assert!([image(w, 0), image(w, 1)] == before, "something was changed");
}

#[test]
fn sim_s2_without_primaries() {
    use AfterSb0Pri::*;
    for (policy, blocks, victim) in [
        (DiscardLeastChanges, [3, 1], 1),
        (DiscardLeastChanges, [1, 3], 0),
        (DiscardYoungerPrimary, [1, 3], 1),
        (DiscardOlderPrimary, [3, 1], 0),
    ] {
        for net in dialects(&policies(policy, AfterSb1Pri::Disconnect)) {
            let mut w = split(net, blocks);
            demote(&mut w, &[0, 1]);
            loses(&mut w, victim);
        }
    }
}

#[test]
fn sim_s2_who_was_primary_first_is_known_after_roles_have_changed_hands() {
    for net in dialects(&policies(AfterSb0Pri::DiscardYoungerPrimary, AfterSb1Pri::Disconnect)) {
        let mut w = Cluster { net, ..Cluster::new(2) }.synced();
        w.write_ok(0, 0, 8);
        demote(&mut w, &[0]);
        w.must(1, Command::Promote { force: false });
        w.run_ms(1_000);
        w.isolate(0);
        w.run_ms(3_000);
        w.crash(0, Crash::Process);
        w.start(0);
        w.run_ms(3_000);
        w.must(0, Command::Promote { force: true });
        w.write_ok(0, 0, 8);
        w.write_ok(0, 100, 8);
        w.write_ok(1, 200, 8);
        demote(&mut w, &[0, 1]);
        loses(&mut w, 0);
    }
}

#[test]
fn sim_s2_zero_changes_are_none_where_both_wrote() {
    for net in dialects(&policies(AfterSb0Pri::DiscardZeroChanges, AfterSb1Pri::Disconnect)) {
        let mut w = split(net, [3, 1]);
        demote(&mut w, &[0, 1]);
        refused(&mut w);
    }
}

#[test]
fn sim_s2_the_secondary_loses_and_the_primary_writes_on() {
    for net in dialects(&policies(AfterSb0Pri::Disconnect, AfterSb1Pri::DiscardSecondary)) {
        for victim in [0, 1] {
            let mut w = split(net.clone(), [2, 2]);
            demote(&mut w, &[victim]);
            loses(&mut w, victim);
            assert_eq!(w.role(1 - victim), Role::Primary);
            w.under_load(100, Mix::default());
            w.settle();
        }
    }
}

#[test]
fn sim_s2_consensus() {
    for net in dialects(&policies(AfterSb0Pri::DiscardLeastChanges, AfterSb1Pri::Consensus)) {
        let mut w = split(net.clone(), [3, 1]);
        demote(&mut w, &[1]);
        loses(&mut w, 1);
        let mut w = split(net, [3, 1]);
        demote(&mut w, &[0]);
        refused(&mut w);
    }
}

#[test]
fn sim_s2_two_primaries_are_refused() {
    for net in dialects(&policies(AfterSb0Pri::DiscardLeastChanges, AfterSb1Pri::DiscardSecondary)) {
        refused(&mut split(net, [3, 1]));
    }
}

#[test]
fn sim_s2_a_policy_that_contradicts_the_administrator_solves_nothing() {
    for net in dialects(&policies(AfterSb0Pri::DiscardLeastChanges, AfterSb1Pri::Disconnect)) {
        let mut w = split(net, [3, 1]);
        demote(&mut w, &[0, 1]);
        w.must(0, Command::Disconnect { peer: node_id(1), force: true });
        w.must(0, Command::Connect { peer: node_id(1), discard_my_data: true });
        refused(&mut w);
    }
}

#[test]
fn sim_s2_local_and_remote_are_the_same_policy() {
    use AfterSb0Pri::{DiscardLocal, DiscardRemote};
    for net in dialects(&NetOptions::default()) {
        for theirs in [DiscardRemote, DiscardLocal] {
            let mut w = split(net.clone(), [3, 1]);
            demote(&mut w, &[0, 1]);
            w.set_net_options(0, 1, NetOptions { after_sb_0pri: DiscardLocal, ..net.clone() });
            w.set_net_options(1, 0, NetOptions { after_sb_0pri: theirs, ..net.clone() });
            if theirs == DiscardRemote {
                loses(&mut w, 0);
                continue;
            }
            refused(&mut w);
            let told = |ix: usize| w.nodes[ix].notices.iter().any(|n| n.contains("after-sb-0pri differs"));
            assert!(told(0) || told(1));
        }
    }
}

#[test]
fn sim_s2_three_nodes_are_left_to_the_administrator() {
    let net = policies(AfterSb0Pri::DiscardLeastChanges, AfterSb1Pri::DiscardSecondary);
    let mut w = Cluster { net, ..Cluster::new(3) }.synced();
    w.write_ok(0, 0, 8);
    w.run_ms(1_000);
    w.isolate(0);
    w.run_ms(3_000);
    w.must(1, Command::Promote { force: false });
    w.write_ok(0, 8, 8);
    w.write_ok(1, 16, 8);
    demote(&mut w, &[0, 1]);
    let before = image(&w, 0);
    w.rejoin(0);
    w.expect("they stand alone", |w| [1, 2].iter().all(|ix| w.conn(*ix, 0) == ConnState::StandAlone));
    assert!(image(&w, 0) == before, "something was changed");
}

/// A victim that dies while it is being resynced is resynced to the end, from the same survivor.
#[test]
fn sim_s2_the_resync_of_a_victim_is_interrupted() {
    for (seed, net) in
        (0..12).zip(dialects(&policies(AfterSb0Pri::DiscardLeastChanges, AfterSb1Pri::Disconnect)).into_iter().cycle())
    {
        let mut w = split(net, [24, 8]);
        demote(&mut w, &[0, 1]);
        let kept = image(&w, 0);
        w.rejoin(0);
        w.run_ms(20 + 3 * seed);
        if seed % 2 == 0 {
            w.crash(1, Crash::Power);
            w.start(1);
        } else {
            w.reset_link(0, 1);
        }
        w.settle();
        assert!(image(&w, 1) == kept, "seed {seed}");
    }
}
