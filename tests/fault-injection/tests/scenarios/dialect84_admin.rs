//! The 8.4 dialect: what an administrator starts on two nodes whose agreed version is 101, beside roles and connections.

use zea_core::config::NetOptions;
use zea_core::io::Command;
use zea_sim::pool::Tag;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::digest::DigestAlg;
use zea_wire::state::{DiskState, ReplState};

/// What nobody wrote.
const EVIL: Tag = 0x666;

/// Two nodes that offer at most 101; `kernel`: without Zea's private feature.
fn pair(kernel: bool) -> Cluster {
    let verify_alg = Some(DigestAlg::Crc32c);
    Cluster {
        net: NetOptions { protocol_max: 101, keep_bits: !kernel, verify_alg, ..NetOptions::default() },
        ..Cluster::new(2)
    }
}

fn plant(w: &mut World, ix: usize, sectors: &[u64]) {
    for sector in sectors {
        w.nodes[ix].disks.get_mut(&V0).expect("a disk").preset(*sector, &[EVIL]);
    }
}

fn drops(w: &World, ix: usize) -> usize {
    w.nodes[ix].notices.iter().filter(|n| n.contains("connection to node")).count()
}

#[test]
fn sim_84_invalidate_copies_everything_on_the_connection_that_is_up() {
    for (kernel, loser) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let mut w = pair(kernel).synced();
        w.write_ok(0, 0, 64);
        w.flush_ok(0);
        plant(&mut w, loser, &[3, 30_000]);
        w.must(loser, Command::Invalidate { volume: V0 });
        assert_eq!(w.disk(loser), DiskState::Inconsistent);
        w.under_load(200, Mix::default());
        w.settle();
        let received = w.received(loser, 1 - loser);
        assert!(received >= 32_768, "{received} sectors");
        assert_eq!(drops(&w, 0) + drops(&w, 1), 0, "{:?}", w.nodes[loser].notices);
        w.read_ok(0, 0, 2048);
    }
}

#[test]
fn sim_84_invalidate_remote_copies_everything_on_the_connection_that_is_up() {
    for (kernel, loser) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let mut w = pair(kernel).synced();
        w.write_ok(0, 0, 64);
        w.flush_ok(0);
        plant(&mut w, loser, &[3, 30_000]);
        w.must(1 - loser, Command::InvalidateRemote { peer: node_id(loser), volume: V0 });
        w.expect("its data is given up", |w| w.disk(loser) == DiskState::Inconsistent);
        w.under_load(200, Mix::default());
        w.settle();
        let received = w.received(loser, 1 - loser);
        assert!(received >= 32_768, "{received} sectors");
        assert_eq!(drops(&w, 0) + drops(&w, 1), 0, "{:?}", w.nodes[loser].notices);
        w.read_ok(0, 0, 2048);
    }
}

#[test]
fn sim_84_an_interrupted_invalidate_goes_on() {
    for seed in 0..10 {
        for loser in [0, 1] {
            let mut w = Cluster { seed, ..pair(true) }.synced();
            w.write_ok(0, 0, 64);
            plant(&mut w, loser, &[3, 30_000]);
            w.must(loser, Command::Invalidate { volume: V0 });
            w.run_ms(seed % 5);
            w.reset_link(0, 1);
            w.settle();
        }
    }
}

#[test]
fn sim_84_invalidate_needs_a_good_peer() {
    let mut w = pair(true).synced();
    w.must(1, Command::Invalidate { volume: V0 });
    let refused = w.command(0, Command::Invalidate { volume: V0 });
    assert_eq!(refused.expect_err("the peer has nothing to give").code, -2);
    w.settle();
}

fn repl(w: &World, ix: usize) -> ReplState {
    w.nodes[ix].peer_device(1 - ix, V0).expect("a peer device").repl
}

fn verify(w: &mut World, ix: usize) {
    let peer = node_id(1 - ix);
    w.must(ix, Command::Verify { peer, volume: V0, start_sector: None, stop_sector: None });
}

fn verified(w: &mut World) {
    w.expect("the end of the verify", |w| [repl(w, 0), repl(w, 1)] == [ReplState::Established; 2]);
}

#[test]
fn sim_84_verify_finds_planted_differences_and_connecting_repairs_them() {
    for (kernel, asks) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let mut w = pair(kernel).synced();
        for block in 0..40 {
            w.write_ok(0, block * 800, 16);
        }
        w.flush_ok(0);
        w.run_ms(1_000);
        let last = w.nodes[0].device(V0).expect("a volume").size_sectors - 1;
        plant(&mut w, 1, &[0, 8003, 8009, last]);
        verify(&mut w, asks);
        w.expect("the other end follows", |w| repl(w, 1 - asks) == ReplState::VerifyT);
        verified(&mut w);
        assert_eq!((w.out_of_sync(0, 1), w.out_of_sync(1, 0)), (32, 32), "bits on both nodes");
        w.run_ms(20_000);
        assert_eq!(w.out_of_sync(0, 1), 32, "nothing is repaired before somebody says so");
        w.must(0, Command::Disconnect { peer: node_id(1), force: false });
        w.must(0, Command::Connect { peer: node_id(1), discard_my_data: false });
        w.settle();
        assert_eq!(w.received(1, 0), 32, "the four blocks");
    }
}

#[test]
fn sim_84_verify_under_writes_has_no_false_mismatch() {
    for seed in 0..6 {
        let asks = seed as usize % 2;
        let mut w = Cluster { seed, ..pair(true) }.synced();
        verify(&mut w, asks);
        w.under_load_until(Mix { gap_ns: 60_000, depth: 16, ..Mix::default() }, |w| {
            repl(w, asks) == ReplState::Established && repl(w, 1 - asks) == ReplState::Established
        });
        let verdicts = [0, 1, 2].map(|result| w.checks.verdicts.get(&result).copied().unwrap_or(0));
        assert!(verdicts[2] == 0 && verdicts[1] > 1_000, "{verdicts:?}");
        w.settle();
    }
}

/// What is asked with other digests is refused, and a peer that is being verified is asked nothing else.
#[test]
fn sim_84_verify_is_refused_when_it_makes_no_sense() {
    let mut w = pair(true).synced();
    verify(&mut w, 0);
    let refused = w.command(1, Command::Invalidate { volume: V0 });
    assert_eq!(refused.expect_err("a verify runs").code, -8);
    verified(&mut w);
    let mut w = Cluster { net: NetOptions { verify_alg: None, ..pair(true).net }, ..pair(true) }.synced();
    let command = Command::Verify { peer: node_id(1), volume: V0, start_sector: None, stop_sector: None };
    assert_eq!(w.command(0, command).expect_err("no digests are configured").code, -14);
}
