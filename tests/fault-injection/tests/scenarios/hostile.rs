//! Peers that say what they must not, or at the wrong time: a node refuses it, and does not die of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use zea_core::config::NetOptions;
use zea_core::io::{Command, Input, LinkId, Payload};
use zea_sim::faults::Crash;
use zea_sim::net::EndState;
use zea_sim::rng::Stream as Random;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::digest::{Digest, DigestAlg};
use zea_wire::features::{ConnectionFeatures, Features, Negotiated};
use zea_wire::header::{Header, HeaderFormat};
use zea_wire::ids::BlockId;
use zea_wire::packet::{
    AlgName, BlockReq, BlockReqDigest, Dagtag, Packet, Sizes, State, Stream, SyncController, SyncParam89,
};
use zea_wire::state::{ConnState, DiskState, ReplState, Role, StateBits};

/// Gives node `ix` a packet, as from this peer.
fn say(w: &mut World, ix: usize, peer: usize, packet: Packet) {
    say_with(w, ix, peer, packet, None);
}

fn say_with(w: &mut World, ix: usize, peer: usize, packet: Packet, payload: Option<Payload>) {
    let Some(link) = w.net.live_link(ix, peer).map(LinkId) else { return };
    w.feed(ix, Input::Packet { peer: node_id(peer), link, volume: Some(V0), packet, payload });
}

fn sync_param(csums: &str) -> Packet {
    Packet::SyncParam89(Box::new(SyncParam89 {
        resync_rate: 250,
        verify_alg: AlgName::default(),
        csums_alg: AlgName::new(csums).expect("a name"),
        controller: SyncController { c_plan_ahead: 20, c_delay_target: 10, c_fill_target: 100, c_max_rate: 102_400 },
    }))
}

/// The peer changes csums-alg while the source reads for one of its requests.
#[test]
fn sim_f14_csums_alg_changes_midway() {
    let net = NetOptions { csums_alg: Some(DigestAlg::Crc32c), ..NetOptions::default() };
    let mut w = Cluster { net, ..Cluster::new(2) }.synced();
    w.checks.protocol_errors_expected = true;
    w.must(1, Command::Invalidate { volume: V0 });
    w.expect("a resync", |w| w.summary().contains("SyncTarget"));
    w.pause(1);
    w.run_ms(20);
    let req = BlockReq { sector: 32_000, block_id: BlockId(1 << 40), blksize: 4096, pad: 0 };
    let digest = Digest::new(&[0; 4]).expect("a digest");
    say(&mut w, 0, 1, Packet::CsumRsRequest(BlockReqDigest { req, digest }));
    say(&mut w, 0, 1, sync_param("md5"));
    w.expect("node 0 refuses it", |w| w.conn(0, 1) != ConnState::Connected);
    w.resume(1);
    w.settle();
}

/// Dagtags that go back, or have no successor, while writes are under way.
#[test]
fn sim_f14_dagtags_go_astray() {
    for dagtag in [0, u64::MAX] {
        let mut w = Cluster::new(2).synced();
        w.checks.protocol_errors_expected = true;
        w.slow_disk(1, V0, 50);
        let before = w.write(0, 0, 8);
        w.run_ms(1);
        say(&mut w, 1, 0, Packet::Dagtag(Dagtag { dagtag }));
        let after = w.write(0, 8, 8);
        w.run_ms(1);
        let later = w.write(0, 16, 8);
        for write in [before, after, later] {
            assert_eq!(w.wait(write), Ok(()));
        }
        w.slow_disk(1, V0, 1);
        w.settle();
    }
}

/// P_SIZES begins a round of the handshake: what was decided before is void, at every moment of one.
#[test]
fn sim_f14_sizes_at_any_moment_of_a_handshake() {
    for (steps, victim) in (0..80).flat_map(|steps| [(steps, 0), (steps, 1)]) {
        let mut w = Cluster::new(2).synced();
        w.checks.protocol_errors_expected = true;
        w.reset_link(0, 1);
        w.expect("the link is gone", |w| w.net.live_link(victim, 1 - victim).is_none());
        w.expect("there is another one", |w| w.net.live_link(victim, 1 - victim).is_some());
        for _ in 0..steps {
            let limit = w.now + 1_000_000;
            w.step(limit);
        }
        let sizes = Sizes { d_size: 32_768, c_size: 32_768, max_bio_size: 1 << 20, ..Sizes::default() };
        say(&mut w, victim, 1 - victim, Packet::Sizes(Box::new(sizes)));
        w.run_ms(100);
    }
}

/// A peer without the features that are needed is refused, with the reason.
#[test]
fn sim_f14_a_peer_without_features() {
    for protocol_max in [101, 124] {
        let net = NetOptions { protocol_max, keep_bits: false, ..NetOptions::default() };
        let mut w = Cluster { net, ..Cluster::new(2) }.synced();
        w.reset_link(0, 1);
        w.expect("the link is gone", |w| w.net.live_link(0, 1).is_none());
        let up = |w: &World| {
            w.net
                .live_link(0, 1)
                .and_then(|id| w.net.link(id))
                .is_some_and(|l| l.ends[l.side_of(0).expect("its link")].state == EndState::Up)
        };
        w.expect("there is another one", up);
        let bare = ConnectionFeatures::new(86, protocol_max, Features::TRIM, node_id(1), node_id(0));
        say(&mut w, 0, 1, Packet::ConnectionFeatures(Box::new(bare)));
        assert_eq!(w.conn(0, 1), ConnState::StandAlone);
        assert!(w.nodes[0].notices.iter().any(|n| n.contains("WSAME")), "{:?}", w.nodes[0].notices);
    }
}

/// More reads than there is room for end the connection.
#[test]
fn sim_f14_a_flood_of_reads() {
    let mut w = Cluster::new(2).synced();
    w.checks.protocol_errors_expected = true;
    w.slow_disk(0, V0, 10_000);
    for id in 0..40_000 {
        let req = BlockReq { sector: 8 * (id % 4_000), block_id: BlockId(id), blksize: 4096, pad: 0 };
        say(&mut w, 0, 1, Packet::DataRequest(req));
    }
    assert_ne!(w.conn(0, 1), ConnState::Connected);
    w.slow_disk(0, V0, 1);
    w.settle();
}

/// A verify is called off while the source reads for it, and the next one asks for the same block.
#[test]
fn sim_f14_a_verify_that_was_called_off_while_it_was_read_for() {
    let mut w = Cluster::new(2).synced();
    let verify = Command::Verify { peer: node_id(1), volume: V0, start_sector: None, stop_sector: None };
    let link = |w: &World| w.net.live_link(0, 1);
    let first = link(&w);
    w.slow_disk(0, V0, 100);
    w.must(0, verify.clone());
    w.run_ms(5);
    let over = StateBits::of_conn(ReplState::Established)
        | StateBits::of_role(Role::Secondary)
        | StateBits::of_disk(DiskState::UpToDate);
    for ix in [0, 1] {
        say(&mut w, ix, 1 - ix, Packet::State(State { state: over }));
    }
    w.slow_disk(1, V0, 1_000);
    w.must(0, verify);
    w.run_ms(100);
    assert_eq!(link(&w), first);
    for ix in [0, 1] {
        w.slow_disk(ix, V0, 1);
    }
    w.settle();
}

// ---- at random ---------------------------------------------------------------------------------------------------------

/// A number that may mean something.
fn word(rng: &mut Random) -> u64 {
    match rng.below(8) {
        0 => 0,
        1 => u64::MAX - rng.below(4),
        2 => rng.bits(),
        3 => 1 << rng.below(64),
        4 => 8 * rng.below(4_096),
        5 => 4_096 * (1 + rng.below(256)),
        _ => rng.below(40),
    }
}

fn body(rng: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        match rng.chance(500) {
            true => bytes.extend(word(rng).to_be_bytes()),
            false => bytes.extend((word(rng) as u32).to_be_bytes()),
        }
    }
    bytes.truncate(length);
    bytes
}

/// Any packet that the decoder lets through, and the length of its payload.
fn any_packet(rng: &mut Random, neg: &Negotiated, commands: &[u16]) -> Option<(Packet, usize)> {
    let format = HeaderFormat::for_version(neg.version);
    let command = *rng.pick(commands);
    (0..200).find_map(|_| {
        let length = 4 * rng.below(110) as usize;
        let header = Header { format, raw_volume: 0, command, length: length as u32 };
        let bytes = body(rng, length);
        [Stream::Data, Stream::Control].into_iter().find_map(|s| Packet::decode(&header, s, neg, &bytes).ok())
    })
}

fn say_anything(w: &mut World, rng: &mut Random, ix: usize, peer: usize) {
    let Some(id) = w.net.live_link(ix, peer) else { return };
    let Some(link) = w.net.link(id) else { return };
    let neg = link.ends.iter().find(|end| end.node == ix).expect("its link").negotiated;
    let commands: Vec<u16> =
        (0..=u16::MAX).filter(|c| zea_wire::packet::rule(*c).is_some_and(|r| r.is_legal(&neg))).collect();
    for _ in 0..1 + rng.below(6) {
        let Some((packet, _)) = any_packet(rng, &neg, &commands) else { continue };
        // It may have ended the link.
        if w.net.live_link(ix, peer) != Some(id) {
            return;
        }
        let payload = packet.has_payload().then(|| {
            let sectors = 1 + rng.below(16) as usize;
            let buf = w.nodes[ix].pool.give_to_core(vec![77 << 36; sectors]);
            Payload { buf, offset: 0, len: 512 * sectors as u32 }
        });
        say_with(w, ix, peer, packet, payload);
    }
}

fn disturb(w: &mut World, rng: &mut Random, round: u64) {
    match rng.below(12) {
        0 => drop(w.admin(1, Command::Invalidate { volume: V0 })),
        1 => {
            let verify = Command::Verify { peer: node_id(1), volume: V0, start_sector: None, stop_sector: None };
            w.admin(0, verify);
        }
        2 => w.reset_link(0, 1),
        3 | 8 => {
            for ix in 0..w.nodes.len() {
                for peer in w.others(ix).collect::<Vec<_>>() {
                    if w.conn(ix, peer) == ConnState::StandAlone {
                        w.admin(ix, Command::Connect { peer: node_id(peer), discard_my_data: rng.chance(500) });
                    }
                }
            }
        }
        9 if round.is_multiple_of(4) => {
            w.crash(1, Crash::Process);
            w.start(1);
        }
        4 | 5 => w.slow_disk(rng.below(2) as usize, V0, 1 + rng.below(200)),
        6 | 7 => w.run_ms(60),
        _ => {}
    }
}

fn hostile_peer(seed: u64) {
    let csums = [None, Some(DigestAlg::Crc32c)][(seed / 6 % 2) as usize];
    let net = match seed % 3 {
        0 => NetOptions { csums_alg: csums, ..NetOptions::default() },
        1 => NetOptions { csums_alg: csums, keep_bits: false, ..NetOptions::default() },
        _ => NetOptions { csums_alg: csums, protocol_max: 101, keep_bits: false, ..NetOptions::default() },
    };
    let nodes = if seed % 3 == 2 { 2 } else { 2 + (seed / 3 % 2) as usize };
    let mut w = Cluster { seed, net, ..Cluster::new(nodes) }.synced();
    w.checks.protocol_errors_expected = true;
    let mut rng = Random::new(seed, "hostile");
    for round in 0..100 {
        // A peer that was refused is away for a second.
        match rng.below(3) {
            0 => w.run_ms(1_000 + rng.below(60)),
            _ => drop(w.run_until(World::all_connected, 3_000)),
        }
        disturb(&mut w, &mut rng, round);
        if round % 5 == 0 {
            w.under_load(1, Mix::default());
        }
        for _ in 0..rng.below(30) {
            let limit = w.now + 1_000_000;
            w.step(limit);
        }
        let ix = rng.below(nodes as u64) as usize;
        let peer = (ix + 1 + rng.below(nodes as u64 - 1) as usize) % nodes;
        say_anything(&mut w, &mut rng, ix, peer);
    }
}

/// Whatever a peer says, no node panics. That the data is wrong after that, the checks of the simulator may well say.
#[test]
fn sim_whatever_a_peer_says_no_node_panics() {
    let mut panics = Vec::new();
    for seed in 0..24 {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| hostile_peer(seed))) else { continue };
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        if !text.starts_with('[') {
            panics.push(format!("seed {seed}: {text}"));
        }
    }
    assert!(panics.is_empty(), "{} panics:\n{}", panics.len(), panics.join("\n"));
}
