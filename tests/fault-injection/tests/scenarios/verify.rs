//! Online verify: it finds what differs, and nothing else; what it finds is repaired when the nodes connect.

use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::pool::Tag;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::{Mix, Workload};
use zea_sim::world::{World, node_id};
use zea_wire::digest::DigestAlg;
use zea_wire::state::{ConnState, ReplState};

/// What nobody wrote.
const EVIL: Tag = 0x666;

/// Changes sectors below one node, as a failing disk does.
fn plant(w: &mut World, ix: usize, sectors: &[u64]) {
    for sector in sectors {
        w.nodes[ix].disks.get_mut(&V0).expect("a disk").preset(*sector, &[EVIL]);
    }
}

fn verify(w: &mut World, ix: usize, peer: usize, start: Option<u64>, stop: Option<u64>) {
    w.must(ix, Command::Verify { peer: node_id(peer), volume: V0, start_sector: start, stop_sector: stop });
}

fn repl(w: &World, ix: usize, peer: usize) -> ReplState {
    w.nodes[ix].peer_device(peer, V0).expect("a peer device").repl
}

fn ends(w: &mut World, ix: usize, peer: usize) {
    w.expect("the end of the verify", |w| {
        repl(w, ix, peer) == ReplState::Established && repl(w, peer, ix) == ReplState::Established
    });
}

/// The last notice of a node about the end of a verify.
fn outcome(w: &World, ix: usize) -> &str {
    let text = w.nodes[ix].notices.iter().rev().find(|n| n.contains("verify with node"));
    text.expect("a verify ended")
}

fn verdicts(w: &World) -> [u64; 3] {
    [0, 1, 2].map(|result| w.checks.verdicts.get(&result).copied().unwrap_or(0))
}

fn written() -> World {
    let mut w = Cluster::new(2).synced();
    for block in 0..40 {
        w.write_ok(0, block * 800, 16);
    }
    w.flush_ok(0);
    w.run_ms(1_000);
    w
}

#[test]
fn sim_verify_of_equal_replicas_finds_nothing() {
    let mut w = written();
    verify(&mut w, 0, 1, None, None);
    assert_eq!((repl(&w, 0, 1), w.conn(0, 1)), (ReplState::VerifyS, ConnState::Connected));
    w.expect("the other end follows", |w| repl(w, 1, 0) == ReplState::VerifyT);
    ends(&mut w, 0, 1);
    let size = w.nodes[0].device(V0).expect("a volume").size_sectors;
    assert_eq!(verdicts(&w), [0, size.div_ceil(8), 0]);
    for ix in [0, 1] {
        let all =
            format!("is complete: {} KiB compared, 0 KiB skipped (written to meanwhile), 0 KiB out of sync", size / 2);
        assert!(outcome(&w, ix).contains(&all), "{}", outcome(&w, ix));
    }
    w.settle();
}

/// At the begin, in the middle side by side, and in the last sector.
#[test]
fn sim_verify_finds_planted_differences_and_connecting_repairs_them() {
    for asks in [0, 1] {
        let mut w = written();
        let last = w.nodes[0].device(V0).expect("a volume").size_sectors - 1;
        plant(&mut w, 1, &[0, 8003, 8009, last]);
        verify(&mut w, asks, 1 - asks, None, None);
        ends(&mut w, 0, 1);
        assert_eq!(verdicts(&w)[2], 4);
        assert_eq!((w.out_of_sync(0, 1), w.out_of_sync(1, 0)), (32, 32), "bits on both nodes");
        for ix in [0, 1] {
            assert!(
                outcome(&w, ix).contains("16 KiB out of sync. To resync these blocks from the Primary: zea disconnect")
            );
        }
        w.run_ms(20_000);
        assert_eq!(w.out_of_sync(0, 1), 32, "nothing is repaired before somebody says so");
        w.must(0, Command::Disconnect { peer: node_id(1), force: false });
        w.must(0, Command::Connect { peer: node_id(1), discard_my_data: false });
        w.settle();
        w.refresh(1);
        assert_eq!(w.nodes[1].peer_device(0, V0).expect("a peer").received_sectors, 32, "the four blocks");
    }
}

#[test]
fn sim_verify_keeps_to_start_and_stop() {
    let mut w = written();
    plant(&mut w, 1, &[100, 5_000, 20_000]);
    verify(&mut w, 1, 0, Some(4_096), Some(8_192));
    ends(&mut w, 1, 0);
    assert_eq!(verdicts(&w), [0, 4_096 / 8 - 1, 1]);
    assert_eq!(w.out_of_sync(0, 1), 8);
}

#[test]
fn sim_verify_under_writes_has_no_false_mismatch() {
    for seed in 0..6 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        let (asks, asked) = [(0, 1), (1, 0), (1, 2)][seed as usize % 3];
        let mut load = Workload::new(seed, Mix { gap_ns: 60_000, depth: 16, ..Mix::default() }, 40, 32_000);
        verify(&mut w, asks, asked, None, None);
        let end = w.now + 3_000_000_000;
        while repl(&w, asks, asked) == ReplState::VerifyS && w.step(end) {
            load.step(&mut w, &Default::default());
        }
        ends(&mut w, asks, asked);
        let [skipped, equal, different] = verdicts(&w);
        assert!(different == 0 && equal > 1_000, "{skipped} {equal} {different}");
        w.settle();
    }
}

/// What is written again and again is skipped, not called different.
#[test]
fn sim_verify_skips_what_is_being_written() {
    let mut cluster = Cluster::new(2);
    cluster.links.latency_ns = 3_000_000;
    let mut w = cluster.synced();
    verify(&mut w, 0, 1, None, None);
    for block in 0..64 {
        w.write(0, block * 8, 8);
    }
    ends(&mut w, 0, 1);
    let [skipped, _, different] = verdicts(&w);
    assert_eq!(different, 0);
    assert!(skipped > 0, "the writes met the first requests");
    w.settle();
}

#[test]
fn sim_verify_goes_on_where_the_link_was_cut() {
    let mut cluster = Cluster::new(2);
    cluster.links.latency_ns = 1_000_000;
    let mut w = cluster.synced();
    plant(&mut w, 1, &[24_000]);
    verify(&mut w, 0, 1, None, None);
    w.expect("a part is compared", |w| verdicts(w)[1] > 1_000);
    w.cut(0, 1);
    w.expect("the loss is noticed", |w| w.conn(0, 1) != ConnState::Connected);
    let before = verdicts(&w)[1];
    w.heal(0, 1);
    w.expect("connected and UpToDate", World::is_converged);
    assert!(outcome(&w, 0).contains("was interrupted"));
    verify(&mut w, 0, 1, None, None);
    ends(&mut w, 0, 1);
    let size = w.nodes[0].device(V0).expect("a volume").size_sectors;
    let [_, equal, different] = verdicts(&w);
    assert_eq!(different, 1);
    assert!(equal < size / 8 + 600, "{before} blocks before the cut, {equal} in all: it began anew");
    assert!(equal + 1 >= size / 8, "{equal}: something was left out");
}

#[test]
fn sim_verify_ends_when_a_disk_or_a_node_goes() {
    for what in 0..3 {
        let mut cluster = Cluster::new(2);
        cluster.links.latency_ns = 1_000_000;
        let mut w = cluster.synced();
        verify(&mut w, 0, 1, None, None);
        w.expect("a part is compared", |w| verdicts(w)[1] > 500);
        match what {
            0 => w.must(1, Command::Detach { volume: V0, force: true }),
            1 => w.must(1, Command::Invalidate { volume: V0 }),
            _ => w.crash(1, Crash::Power),
        }
        w.expect("the end of the verify", |w| !matches!(repl(w, 0, 1), ReplState::VerifyS));
        if what == 0 {
            let backing = w.nodes[1].disks[&V0].backing();
            w.must(1, Command::Attach { volume: V0, backing });
        }
        w.start(1);
        w.settle();
    }
}

#[test]
fn sim_verify_is_refused_with_the_reason() {
    let mut w = written();
    let ask = |w: &mut World, start, stop| {
        let command = Command::Verify { peer: node_id(1), volume: V0, start_sector: start, stop_sector: stop };
        w.command(0, command).expect_err("refused")
    };
    assert!(ask(&mut w, Some(1 << 40), None).message.contains("nothing to verify"));
    verify(&mut w, 1, 0, None, None);
    assert_eq!(ask(&mut w, None, None).code, -8);
    ends(&mut w, 1, 0);
    w.must(0, Command::Disconnect { peer: node_id(1), force: false });
    assert_eq!(ask(&mut w, None, None).code, -15);
}

#[test]
fn sim_verify_uses_the_algorithm_that_one_end_has() {
    let mut cluster = Cluster::new(2);
    cluster.net.verify_alg = Some(DigestAlg::Sha256);
    let mut w = cluster.build();
    w.nodes[1].saved.peers[0].net.verify_alg = None;
    cluster.bring_up(&mut w);
    verify(&mut w, 1, 0, None, None);
    assert!(w.nodes[1].notices.iter().any(|n| n.contains("sha256")));
    ends(&mut w, 0, 1);
    assert_eq!(verdicts(&w)[2], 0);
}

/// Node 0 has marks on five blocks that node 1, which acts like a kernel node, ignores; `really`: those that do differ.
fn left_over_marks(really: &[u64]) -> World {
    let mut cluster = Cluster::new(2);
    cluster.net.verify_alg = Some(DigestAlg::Crc32c);
    let mut w = cluster.build();
    w.nodes[1].saved.peers[0].net.keep_bits = false;
    cluster.bring_up(&mut w);
    w.run_ms(1_000);
    let marked = [80, 88, 800, 8_000, 16_000];
    for sector in marked {
        plant(&mut w, 1, &[sector]);
        verify(&mut w, 0, 1, Some(sector), Some(sector + 8));
        ends(&mut w, 0, 1);
    }
    assert_eq!(w.out_of_sync(0, 1), 40);
    for sector in marked.iter().filter(|s| !really.contains(s)) {
        let tag = w.nodes[0].disks[&V0].sector(*sector);
        w.nodes[1].disks.get_mut(&V0).expect("a disk").preset(*sector, &[tag]);
    }
    w.must(0, Command::Disconnect { peer: node_id(1), force: false });
    w.must(0, Command::Connect { peer: node_id(1), discard_my_data: false });
    w.expect("connected", World::all_connected);
    w
}

fn unverified(w: &mut World) -> bool {
    w.refresh(0);
    w.nodes[0].peer_device(1, V0).expect("a peer").unverified
}

#[test]
fn sim_verify_compares_marks_that_a_kernel_peer_ignores() {
    let mut w = left_over_marks(&[]);
    let before = verdicts(&w)[1];
    w.run_ms(5_000);
    assert!(!unverified(&mut w));
    assert_eq!((verdicts(&w)[1] - before, w.out_of_sync(0, 1)), (5, 0), "just these blocks, and they are equal");
}

#[test]
fn sim_verify_keeps_marks_that_are_true_with_a_kernel_peer() {
    let mut w = left_over_marks(&[80, 16_000]);
    w.run_ms(60_000);
    assert!(!unverified(&mut w), "what they are is known");
    assert_eq!(w.out_of_sync(0, 1), 16);
    assert!(
        outcome(&w, 0).contains("8 KiB out of sync. The peer forgets such marks when it connects"),
        "{}",
        outcome(&w, 0)
    );
    w.must(1, Command::Invalidate { volume: V0 });
    w.settle();
}
