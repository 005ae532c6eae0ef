mod mutations;
mod rules;
mod rules84;
mod symmetry;
mod table;

use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};

use super::{AfterSplitBrain, Context, NODES, UuidView};

/// Node 0 is "own", node 1 the peer, 2 and 3 are others. Generations are letters: A is the oldest.
const A: u64 = 0xa0;
const B: u64 = 0xb0;
const C: u64 = 0xc0;
const D: u64 = 0xd0;

fn view(node: u8, current: u64) -> UuidView {
    UuidView {
        node: NodeId(node),
        current,
        bitmap: [0; NODES],
        history: [0; NODES],
        flags: UuidFlags::STABLE,
        dirty_bits: 0,
        primaries: NodeMask::EMPTY,
    }
}

/// A connected pair at an established connection.
fn context(agreed_version: u32) -> Context<'static> {
    Context {
        quorate: None,
        agreed_version,
        protocol_a_or_b: false,
        resolve_conflicts: true,
        sent: None,
        after_split_brain: AfterSplitBrain::default(),
    }
}
