//! Section 11: what requests promise.

use zea_core::config::Protocol;
use zea_core::io::{IoError, Op};
use zea_core::limits;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::World;

/// I1: a journal with barriers; the secondary loses its power at any instant: what its disk shows is a prefix of the epochs.
#[test]
fn sim_i1_a_crash_image_is_a_prefix_of_epochs() {
    for seed in 0..30 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        let mut wait_for = Vec::new();
        for entry in 0..6 {
            for block in 0..4 {
                wait_for.push(w.write(0, entry * 128 + block * 8, 8));
            }
            wait_for.push(w.flush(0));
            if entry < seed % 6 {
                for request in wait_for.drain(..) {
                    assert_eq!(w.wait(request), Ok(()));
                }
            }
        }
        let limit = w.now + seed * 60_000;
        while w.step(limit) {}
        w.crash(1, Crash::Power);
        w.run_ms(100);
        w.start(1);
        w.settle();
    }
}

/// Virtual microseconds until a write is complete.
fn write_us(w: &mut World) -> u64 {
    let begin = w.now;
    w.write_ok(0, 0, 8);
    (w.now - begin) / 1_000
}

/// I2: a write completes with protocol A when it is written here, with B when the peer has it, with C when the peer wrote it.
#[test]
fn sim_i2_acknowledgements_of_each_protocol() {
    const LINK_US: u64 = 20_000;
    const DISK_US: u64 = 400_000;
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut cluster = Cluster::new(2);
        cluster.net.protocol = protocol;
        let mut w = cluster.synced();
        w.write_ok(0, 0, 8);
        w.run_ms(1_000);
        w.slow_disk(1, V0, DISK_US / 100);
        for (from, to) in [(0, 1), (1, 0)] {
            (0..2).for_each(|stream| w.slow_stream(from, to, stream, LINK_US / 100));
        }
        let us = write_us(&mut w);
        let within = match protocol {
            Protocol::A => 0..LINK_US / 2,
            Protocol::B => LINK_US / 2..DISK_US / 4,
            Protocol::C => DISK_US / 4..u64::MAX,
        };
        assert!(within.contains(&us), "{protocol:?}: {us} us");
    }
}

/// I3: discards and zeroes, also unaligned, end with the same content everywhere.
#[test]
fn sim_i3_discards_and_zeroes_end_equal_everywhere() {
    for discard in [true, false] {
        let mut w = Cluster { discard, ..Cluster::new(3) }.synced();
        w.write_ok(0, 0, 64);
        for (op, sector, sectors) in [
            (Op::Discard, 8, 8),
            (Op::WriteZeroes { unmap: true }, 19, 3),
            (Op::WriteZeroes { unmap: false }, 33, 20),
            (Op::Discard, 100, 20_000),
            (Op::WriteZeroes { unmap: false }, 3, 30_001),
        ] {
            w.write_ok(0, 0, 64);
            let req = w.submit(0, V0, op, sector, sectors, false);
            assert_eq!(w.wait(req), Ok(()));
        }
        let flush = w.submit(0, V0, Op::Flush, 0, 0, false);
        assert_eq!(w.wait(flush), Ok(()));
        w.read_ok(0, 0, 64);
        w.settle();
    }
}

/// I4: requests of every size and alignment, also across extents, and of none at all.
#[test]
fn sim_i4_large_and_tiny_requests() {
    let most = u64::from(limits::MAX_BIO_BYTES / 512);
    let mut w = Cluster::new(3).synced();
    for (sector, sectors) in [(0, most), (1, 1), (7, 2), (8_190, 5), (4_001, 511), (511, 1_025), (8_192 - 1, most)] {
        w.write_ok(0, sector, sectors);
        w.read_ok(0, sector, sectors);
    }
    for (sector, sectors) in [(0, most + 1), (0, 0), (u64::MAX / 512, 8)] {
        let request = w.read(0, sector.min(1 << 40), sectors);
        assert_eq!(w.wait(request), Err(IoError::Invalid), "{sectors} sectors at {sector}");
    }
    w.settle();
}

/// I7: protocol A under load for a long time, with links that fail and come back: equal in the end, and nothing piles up.
#[test]
fn sim_i7_protocol_a_for_a_long_time() {
    let mut cluster = Cluster::new(3);
    cluster.net.protocol = Protocol::A;
    cluster.links.latency_ns = 2_000_000;
    let mut w = cluster.synced();
    for round in 0..20 {
        w.under_load(2_000, Mix { gap_ns: 20_000_000, ..Mix::default() });
        w.reset_link(0, 1 + round % 2);
        w.checkpoint();
        w.expect("they are together again", |w| w.mutually_in_sync(0, 1, V0) && w.mutually_in_sync(0, 2, V0));
    }
    w.settle();
}

/// I8: more writes at once than an epoch or the resource takes: all that are taken end, the others are told to come again.
#[test]
fn sim_i8_more_writes_than_an_epoch_takes() {
    let mut w = Cluster::new(2).synced();
    let requests: Vec<_> = (0..limits::MAX_REQUESTS as u64).map(|n| w.write(0, n * 7 % 32_000, 1)).collect();
    let over = w.write(0, 0, 1);
    assert_eq!(w.wait(over), Err(IoError::Busy));
    for request in requests {
        assert_eq!(w.wait(request), Ok(()));
    }
    w.write_ok(0, 0, 8);
    w.settle();
}
