//! Resync by checksums: what is equal is not copied, what differs is.

use zea_core::config::NetOptions;
use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::pool::Tag;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::digest::DigestAlg;
use zea_wire::state::{ConnState, DiskState};

/// What nobody wrote.
const EVIL: Tag = 0x666;

fn options(csums_alg: Option<DigestAlg>) -> NetOptions {
    NetOptions { csums_alg, ..NetOptions::default() }
}

/// Zea's nodes, and those of 8.4: with Zea's private feature and without.
fn dialects() -> [NetOptions; 3] {
    let csums = options(Some(DigestAlg::Crc32c));
    let old = NetOptions { protocol_max: 101, ..csums.clone() };
    [csums, old.clone(), NetOptions { keep_bits: false, ..old }]
}

fn pair(net: NetOptions) -> Cluster {
    Cluster { net, ..Cluster::new(2) }
}

fn plant(w: &mut World, ix: usize, sectors: &[u64]) {
    for sector in sectors {
        w.nodes[ix].disks.get_mut(&V0).expect("a disk").preset(*sector, &[EVIL]);
    }
}

/// Everything is marked, two blocks differ.
#[test]
fn sim_r17_only_what_differs_is_copied() {
    for net in dialects() {
        let mut w = pair(net).synced();
        for n in 0..32 {
            w.write_ok(0, n * 1024, 64);
        }
        w.flush_ok(0);
        plant(&mut w, 1, &[1_024, 20_000]);
        w.must(1, Command::Invalidate { volume: V0 });
        w.settle();
        let received = w.received(1, 0);
        // Without a new connection the writes before are counted, too.
        assert!((16..=2 * 2048 + 32 * 64).contains(&received), "{received} sectors for two that differ");
    }
}

#[test]
fn sim_r17_writes_go_on_meanwhile() {
    for (seed, net) in (0..9).zip(dialects().into_iter().cycle()) {
        let mut w = Cluster { seed, ..pair(net) }.synced();
        w.write_ok(0, 0, 2048);
        plant(&mut w, 1, &[8, 700, 1_500]);
        w.must(1, Command::Invalidate { volume: V0 });
        w.under_load_until(Mix { gap_ns: 50_000, depth: 16, ..Mix::default() }, |w| w.disk(1) == DiskState::UpToDate);
        w.settle();
    }
}

#[test]
fn sim_r17_interruptions_do_no_harm() {
    for (seed, net) in (0..24).zip(dialects().into_iter().cycle()) {
        let mut w = Cluster { seed, ..pair(net) }.synced();
        w.write_ok(0, 0, 2048);
        plant(&mut w, 1, &[8, 700, 1_500]);
        w.must(1, Command::Invalidate { volume: V0 });
        w.run_ms(seed % 7);
        if seed % 2 == 0 {
            w.reset_link(0, 1);
        } else {
            w.crash(1, Crash::Power);
            w.start(1);
        }
        w.settle();
    }
}

#[test]
fn sim_r17_three_nodes_of_different_configuration() {
    let mut w = Cluster { net: options(Some(DigestAlg::Sha1)), ..Cluster::new(3) }.synced();
    w.set_net_options(0, 2, options(None));
    w.write_ok(0, 0, 512);
    for ix in [1, 2] {
        w.isolate(ix);
        plant(&mut w, ix, &[9]);
        w.write_ok(0, 0, 64);
        w.rejoin(ix);
        w.settle();
    }
    w.under_load(100, Mix::default());
    w.settle();
}

#[test]
fn sim_84_digests_must_be_the_same_with_a_kernel() {
    let [_, _, kernel] = dialects();
    for other in [
        NetOptions { csums_alg: None, ..kernel.clone() },
        NetOptions { verify_alg: Some(DigestAlg::Md5), ..kernel.clone() },
    ] {
        let mut w = pair(kernel.clone()).build();
        for peer in w.nodes[1].saved.peers.iter_mut() {
            peer.net = other.clone();
        }
        for ix in [0, 1] {
            w.start(ix);
        }
        let refused = |w: &World, ix: usize| {
            w.conn(ix, 1 - ix) == ConnState::StandAlone && w.nodes[ix].notices.iter().any(|n| n.contains("here and"))
        };
        w.expect("refused by both, with the reason", |w| refused(w, 0) && refused(w, 1));
        w.set_net_options(1, 0, kernel.clone());
        for ix in [0, 1] {
            w.must(ix, Command::Connect { peer: node_id(1 - ix), discard_my_data: false });
        }
        w.expect("connections", World::all_connected);
    }
}
