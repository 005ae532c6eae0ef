//! The scenarios of the test catalogue, one test each, with its id in the name. `docs/reference/scenario-catalogue.md` lists all
//! of them, and what later features the others wait for. Each scenario ends in `settle`, unless its cluster cannot: connected
//! on both sides, UpToDate, equal sector by sector, no bit set, nothing left over.

mod activity_log;
mod diskless;
mod failures;
mod handshake;
mod nodes;
mod requests;
mod resize;
mod resync;
mod resync_many;
mod resync_pauses;
mod resync_rates;
mod split_brain;
mod table;

use std::ops::Range;

use zea_core::io::Command;
use zea_sim::net::NodeIx;
use zea_sim::scenario::Cluster;
use zea_sim::world::{World, node_id};

/// Sectors of the volume of [`Cluster::new`], about: what a full sync moves.
const FULL: u64 = 32_768;
/// Sectors of an activity log extent.
const EXTENT: u64 = 8192;

/// Writes 4 KiB each at every eighth block of a range of them, so that no two lie beside each other.
fn write_blocks(w: &mut World, ix: NodeIx, blocks: Range<u64>) {
    for block in blocks {
        w.write_ok(ix, block * 64, 8);
    }
}

fn connect(w: &mut World, a: NodeIx, b: NodeIx) {
    for (from, to) in [(a, b), (b, a)] {
        w.must(from, Command::Connect { peer: node_id(to), discard_my_data: false });
    }
}

/// Both ends let the connection go.
fn disconnect(w: &mut World, a: NodeIx, b: NodeIx) {
    for (from, to) in [(a, b), (b, a)] {
        w.must(from, Command::Disconnect { peer: node_id(to), force: true });
    }
}

fn promote(w: &mut World, ix: NodeIx) {
    w.must(ix, Command::Promote { force: false });
}

/// A cluster in which nobody connects by itself, every node up.
fn apart(cluster: &Cluster) -> World {
    let mut w = cluster.build();
    for ix in 0..cluster.nodes {
        w.nodes[ix].saved.unconnected = w.others(ix).collect();
        w.start(ix);
    }
    w.expect("the nodes are up", |w| w.nodes.iter().all(|n| n.boot.is_empty() && n.boot_waits.is_none()));
    w
}

/// A cluster of which only these nodes have no disk; the first of them is Primary.
fn diskless_primary(cluster: Cluster, diskless: &[NodeIx]) -> World {
    let mut w = Cluster { diskless: diskless.iter().copied().collect(), ..cluster }.synced();
    let first = (0..w.nodes.len()).find(|ix| !diskless.contains(ix)).expect("somebody has a disk");
    w.must(first, Command::Demote);
    promote(&mut w, diskless[0]);
    w
}

/// All orders of three things.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
