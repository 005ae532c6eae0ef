//! The 8.4 dialect at versions 86 to 99, which both nodes have to ask for.

use zea_core::config::{NetOptions, Protocol};
use zea_core::io::{Command, IoError, Op};
use zea_sim::disk::DiskFaults;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::digest::DigestAlg;
use zea_wire::state::{ConnState, DiskState};

/// Each that brought something that matters here, and the last.
const VERSIONS: [u32; 10] = [86, 87, 88, 89, 90, 91, 94, 95, 96, 99];

fn net(protocol_max: u32) -> NetOptions {
    NetOptions { protocol_max, ..NetOptions::default() }
}

/// Two nodes that offer no newer one; `kernel`: without Zea's private feature.
fn pair(version: u32, kernel: bool) -> Cluster {
    Cluster { net: NetOptions { keep_bits: !kernel, ..net(version) }, seed: u64::from(version), ..Cluster::new(2) }
}

/// A pair at each version, with and without Zea's private feature in turn.
fn pairs() -> impl Iterator<Item = (u32, Cluster)> {
    VERSIONS.into_iter().enumerate().map(|(nr, version)| (version, pair(version, nr % 2 == 0)))
}

fn agreed(w: &mut World) -> u32 {
    w.refresh(0);
    w.nodes[0].status.connections[0].version
}

/// Sectors of the longest request.
fn longest(version: u32) -> u64 {
    u64::from(net(version).max_bio_bytes()) / 512
}

/// Connections that were lost.
fn drops(w: &World) -> usize {
    let lost = |n: &&String| n.contains("connection to node") || n.contains("connecting again");
    w.nodes.iter().map(|node| node.notices.iter().filter(lost).count()).sum()
}

#[test]
fn sim_84_old_versions_replicate_and_resync_from_either_node() {
    for (version, cluster) in pairs() {
        let mut w = cluster.build();
        w.preset(0, V0, 0, 4096);
        cluster.bring_up(&mut w);
        assert_eq!(agreed(&mut w), version);
        for primary in [0, 1] {
            if primary == 1 {
                w.must(0, Command::Demote);
                w.expect("it is told", |w| w.nodes[1].connection(0).is_some_and(|c| c.role.to_string() == "Secondary"));
                w.must(1, Command::Promote { force: false });
            }
            w.under_load(20, Mix::default());
            w.settle();
            let before = w.received(1 - primary, primary);
            w.must(1 - primary, Command::Disconnect { peer: node_id(primary), force: false });
            w.expect("apart", |w| w.conn(primary, 1 - primary) != ConnState::Connected);
            for n in 0..10 {
                w.write_ok(primary, n * 800, 8);
            }
            w.must(1 - primary, Command::Connect { peer: node_id(primary), discard_my_data: false });
            w.settle();
            assert!(before > 80);
            assert_eq!(w.received(1 - primary, primary), 80, "version {version}");
            w.write_ok(primary, 0, longest(version));
            w.flush_ok(primary);
        }
    }
}

#[test]
fn sim_84_old_versions_write_in_every_way() {
    for version in VERSIONS {
        for protocol in [Protocol::A, Protocol::B, Protocol::C] {
            let mut cluster = pair(version, true);
            cluster.net.protocol = protocol;
            cluster.net.integrity_alg = (version > 86).then_some(DigestAlg::Crc32c);
            let mut w = cluster.synced();
            for round in 0..20 {
                w.write_ok(0, round * 128, longest(version).min(8 + round));
                let op = match round % 3 {
                    0 => Op::Discard,
                    1 => Op::WriteZeroes { unmap: false },
                    _ => Op::WriteZeroes { unmap: true },
                };
                let zeroes = w.submit(0, V0, op, round * 64, 512, false);
                let fua = w.submit(0, V0, Op::Write, 20_000 + round * 8, 8, true);
                assert_eq!((w.wait(zeroes), w.wait(fua)), (Ok(()), Ok(())), "version {version}, protocol {protocol:?}");
                w.flush_ok(0);
            }
            w.read_ok(0, 0, longest(version));
            w.settle();
        }
    }
}

/// A write is one packet, and has one acknowledgement.
#[test]
fn sim_84_old_versions_take_requests_that_fit_into_a_packet() {
    for (version, bytes) in [(86, 32 << 10), (94, 32 << 10), (95, 128 << 10), (99, 128 << 10), (100, 1 << 20)] {
        let mut w = pair(version, true).synced();
        let sectors = bytes / 512;
        for op in [Op::Write, Op::Read] {
            let fits = w.submit(0, V0, op, 0, sectors, false);
            let longer = w.submit(0, V0, op, 0, sectors + 8, false);
            assert_eq!((w.wait(fits), w.wait(longer)), (Ok(()), Err(IoError::Invalid)), "version {version}");
        }
        // What is cut for a version stays so.
        let mut newer = net(if version < 100 { 101 } else { 95 });
        newer.keep_bits = false;
        let command = Command::SetNetOptions { peer: node_id(1), net: newer };
        assert_eq!(w.command(0, command).expect_err("it is Primary").code, -18, "version {version}");
        w.settle();
    }
}

/// No word would tell the target of a write that is made while bitmaps are exchanged.
#[test]
fn sim_84_old_versions_exchange_bitmaps_under_load() {
    for (version, kernel) in [(86, false), (94, true), (95, false), (95, true), (96, true)] {
        let mut cluster = pair(version, kernel);
        // Long enough for many writes.
        (cluster.links.latency_ns, cluster.disk_latency_ns) = (5_000_000, 20_000);
        let mut w = cluster.synced();
        let before = drops(&w);
        for _ in 0..2 {
            w.must(1, Command::Disconnect { peer: node_id(0), force: false });
            w.under_load(20, Mix::default());
            w.must(1, Command::Connect { peer: node_id(0), discard_my_data: false });
            w.under_load_until(Mix::default(), |w| w.is_connected(0, 1) && w.disk(1) == DiskState::UpToDate);
        }
        w.settle();
        let lost = drops(&w) - before;
        assert!(lost <= 2, "version {version}: {lost} more losses than partings");
    }
}

/// P_STATE of a disk that has become good crosses the write that it does not get.
#[test]
fn sim_84_old_versions_end_a_resync_under_load_many_times() {
    for seed in 0..4 {
        for version in [86, 95] {
            let mut w = Cluster { seed, ..pair(version, seed % 2 == 0) }.synced();
            for _ in 0..3 {
                w.must(1, Command::Disconnect { peer: node_id(0), force: false });
                w.under_load(50 + seed, Mix::default());
                w.must(1, Command::Connect { peer: node_id(0), discard_my_data: false });
                w.under_load_until(Mix::default(), |w| w.is_connected(0, 1) && w.disk(1) == DiskState::UpToDate);
            }
            w.settle();
        }
    }
}

/// Below 95 a write cannot say that it is to be stable.
#[test]
fn sim_84_old_versions_fua_covers_the_peer() {
    for version in VERSIONS {
        let mut w = pair(version, false).synced();
        for block in 0..20 {
            let req = w.submit(0, V0, Op::Write, block * 8, 8, true);
            assert_eq!(w.wait(req), Ok(()));
        }
        w.crash(0, Crash::Power);
        w.crash(1, Crash::Power);
        w.start(1);
        w.run_ms(1_000);
        w.must(1, Command::Promote { force: false });
        w.read_ok(1, 0, 64);
    }
}

/// A Primary without a disk cannot ask for the acknowledgement that it needs.
#[test]
fn sim_84_old_versions_write_without_a_disk_what_the_peer_has() {
    for version in VERSIONS {
        for protocol in [Protocol::A, Protocol::B, Protocol::C] {
            let mut cluster = pair(version, false);
            cluster.net.protocol = protocol;
            let mut w = cluster.synced();
            w.write_ok(0, 0, 8);
            w.set_disk_faults(0, V0, DiskFaults::DEAD);
            for n in 1..20 {
                w.write_ok(0, n * 8, 8);
            }
            w.read_ok(0, 0, 64);
            // The disk of the peer fails after that too, and what was acknowledged is on it.
            let on_disk = |sector: u64| w.nodes[1].disks[&V0].sector(sector);
            assert!((0..20).all(|n| on_disk(n * 8) != 0), "version {version}, protocol {protocol:?}");
            w.set_disk_faults(0, V0, DiskFaults::default());
            w.expect("the disk is closed", |w| w.nodes[0].attached.is_empty());
            let backing = w.nodes[0].disks[&V0].backing();
            w.must(0, Command::Attach { volume: V0, backing });
            w.settle();
        }
    }
}

#[test]
fn sim_84_old_versions_survive_crashes_of_either_node() {
    for (_, cluster) in pairs() {
        let mut w = cluster.synced();
        w.under_load(50, Mix::default());
        w.crash(1, Crash::Power);
        w.write_ok(0, 64, 8);
        w.start(1);
        w.settle();
        w.write_ok(0, 128, 8);
        w.crash(0, Crash::Power);
        w.expect("it is noticed", |w| w.conn(1, 0) != ConnState::Connected);
        w.must(1, Command::Promote { force: false });
        w.write_ok(1, 256, 8);
        w.start(0);
        w.settle();
        w.read_ok(1, 0, 64);
    }
}

#[test]
fn sim_84_old_versions_refuse_a_split_brain_and_end_it_by_hand() {
    for (version, cluster) in pairs() {
        let mut w = cluster.synced();
        w.checks.split_brains_expected = true;
        w.must(0, Command::Demote);
        w.must(1, Command::Disconnect { peer: node_id(0), force: false });
        w.must(0, Command::Disconnect { peer: node_id(1), force: false });
        for ix in [0, 1] {
            w.must(ix, Command::Promote { force: false });
            w.write_ok(ix, 64 * ix as u64, 8);
            w.must(ix, Command::Demote);
        }
        for ix in [0, 1] {
            w.must(ix, Command::Connect { peer: node_id(1 - ix), discard_my_data: false });
        }
        w.expect("refused by both", |w| [w.conn(0, 1), w.conn(1, 0)] == [ConnState::StandAlone; 2]);
        assert!((0..2).all(|ix| w.nodes[ix].notices.iter().any(|n| n.contains("split brain"))), "version {version}");
        w.must(0, Command::Connect { peer: node_id(1), discard_my_data: false });
        w.model.forgive(1);
        w.must(1, Command::Connect { peer: node_id(0), discard_my_data: true });
        w.settle();
        assert_eq!(w.received(1, 0), 16, "version {version}: what either of them wrote");
    }
}

#[test]
fn sim_84_old_versions_know_volume_0_only() {
    for version in [86, 95, 99, 100] {
        let mut w = Cluster { volume_sectors: vec![8192, 8192], ..pair(version, false) }.build();
        w.checks.protocol_errors_expected = true;
        (0..2).for_each(|ix| w.start(ix));
        let why = format!("refused: version {version} of the protocol knows volume 0 only, and there is volume 1");
        if version < 100 {
            w.expect("both say why", |w| w.nodes.iter().all(|node| node.notices.iter().any(|n| n.contains(&why))));
            assert_eq!([w.conn(0, 1), w.conn(1, 0)], [ConnState::StandAlone; 2]);
        } else {
            w.expect("connected", World::all_connected);
        }
    }
}

/// The older of the two counts, if it has packets of the same size; else the requests of one would be too long.
#[test]
fn sim_84_old_versions_are_agreed_on_between_equal_sizes_of_packets() {
    for ([a, b], expected) in [
        ([99, 95], Some(95)),
        ([95, 97], Some(95)),
        ([94, 86], Some(86)),
        ([99, 94], None),
        ([101, 99], None),
        ([94, 124], None),
        ([100, 124], Some(100)),
    ] {
        let mut w = Cluster::new(2).build();
        w.checks.protocol_errors_expected = true;
        w.nodes[0].saved.peers[0].net.protocol_max = a;
        w.nodes[1].saved.peers[0].net.protocol_max = b;
        (0..2).for_each(|ix| w.start(ix));
        match expected {
            Some(version) => {
                w.expect("connected", World::all_connected);
                assert_eq!(agreed(&mut w), version);
            }
            None => {
                let why = |n: &String| n.contains("incompatible versions");
                w.expect("refused", |w| w.nodes.iter().any(|node| node.notices.iter().any(why)));
                assert!(w.conn(0, 1) == ConnState::StandAlone || w.conn(1, 0) == ConnState::StandAlone, "{a} and {b}");
            }
        }
    }
}

/// From 89 on a resync can compare checksums, from 90 on a verify says where it begins.
#[test]
fn sim_84_old_versions_verify_and_compare_checksums_if_they_can() {
    for version in VERSIONS {
        let mut cluster = pair(version, true);
        (cluster.net.verify_alg, cluster.net.csums_alg) = (Some(DigestAlg::Crc32c), Some(DigestAlg::Sha1));
        let mut w = cluster.synced();
        let verify = Command::Verify { peer: node_id(1), volume: V0, start_sector: None, stop_sector: None };
        assert_eq!(w.command(0, verify).map_err(|e| e.code), if version < 90 { Err(-17) } else { Ok(()) });
        w.settle();
        w.must(1, Command::Invalidate { volume: V0 });
        w.settle();
        let copied = w.received(1, 0);
        assert_eq!(copied < 32_768 + 64, version >= 89, "version {version}: {copied} sectors in two resyncs");
    }
}
