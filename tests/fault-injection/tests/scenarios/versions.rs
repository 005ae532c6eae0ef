//! Every version of the protocol that is spoken, with one node that has nothing newer.

use zea_core::io::Command;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::World;
use zea_wire::state::{ConnState, DiskState};

/// With [`REFUSED`] all from 86 to 124.
const SPOKEN: [u32; 8] = [100, 101, 118, 119, 120, 122, 123, 124];
/// Those that both nodes have to ask for (`dialect84_old`), the first of DRBD 9, which nobody speaks any more, and 121 with dependencies on
/// dagtags, which is broken.
const REFUSED: [std::ops::RangeInclusive<u32>; 3] = [86..=99, 102..=117, 121..=121];

/// Two nodes, one of which speaks at most this version.
fn cluster(version: u32, limited: usize) -> (Cluster, World) {
    let cluster = Cluster { seed: u64::from(version), ..Cluster::new(2) };
    let mut w = cluster.build();
    for peer in &mut w.nodes[limited].saved.peers {
        peer.net.protocol_max = version;
    }
    (cluster, w)
}

#[test]
fn sim_every_version_that_is_spoken_replicates_and_resyncs() {
    for (version, limited) in SPOKEN.into_iter().flat_map(|version| [(version, 0), (version, 1)]) {
        let (cluster, mut w) = cluster(version, limited);
        w.preset(0, V0, 0, 4096);
        cluster.bring_up(&mut w);
        for (ix, primary) in [(0, 0), (1, 1)] {
            w.refresh(ix);
            assert_eq!(w.nodes[ix].status.connections[0].version, version);
            if w.role(primary) != zea_wire::state::Role::Primary {
                w.must(1 - primary, Command::Demote);
                w.must(primary, Command::Promote { force: false });
            }
            w.under_load(100, Mix::default());
            w.isolate(1 - primary);
            w.run_ms(20_000);
            w.write_ok(primary, 8 * u64::from(version), 8);
            w.rejoin(1 - primary);
            w.settle();
            let received = w.received(1 - primary, primary);
            assert!((8..30_000).contains(&received), "version {version}: {received} sectors were resynced");
            w.write_ok(primary, 0, 64);
            w.flush_ok(primary);
            w.settle();
        }
        assert!((0..2).all(|ix| w.disk(ix) == DiskState::UpToDate));
    }
}

#[test]
fn sim_every_other_version_is_refused() {
    for (version, limited) in REFUSED.into_iter().flatten().flat_map(|version| [(version, 0), (version, 1)]) {
        let (_, mut w) = cluster(version, limited);
        w.checks.protocol_errors_expected = true;
        (0..2).for_each(|ix| w.start(ix));
        let why = |n: &String| n.contains("refused") && n.contains("version");
        w.expect("the newer node says why", |w| w.nodes[1 - limited].notices.iter().any(why));
        assert_eq!(w.conn(1 - limited, limited), ConnState::StandAlone, "version {version}");
    }
}
