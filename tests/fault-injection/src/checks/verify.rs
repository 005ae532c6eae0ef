//! Online verify tells the truth: what it calls different differs, what it calls equal does not.

use std::ops::Range;

use zea_wire::ids::VolumeNr;
use zea_wire::packet::{OvVerdict, Packet};

use super::Check;
use crate::net::{EndState, NodeIx};
use crate::world::World;

/// The sectors that a packet gives a verdict about.
fn verdict(packet: &Packet) -> Option<(Range<u64>, OvVerdict)> {
    let range = |sector: u64, len: u32| sector..sector + u64::from(len) / 512;
    match packet {
        Packet::OvResultId(r) => Some((range(r.sector, r.blksize), OvVerdict::from_result(r.result)?)),
        Packet::OvResult(r) => Some((range(r.sector, r.blksize), OvVerdict::from_block_id(r.block_id))),
        _ => None,
    }
}

impl World {
    /// The source of a verify tells the target what it found, at this moment.
    pub(crate) fn check_verdict(
        &mut self,
        ix: NodeIx,
        peer: NodeIx,
        volume: Option<VolumeNr>,
        packet: &Packet,
        link: u64,
    ) {
        let (Some(volume), Some((sectors, verdict))) = (volume, verdict(packet)) else { return };
        // A peer that died meanwhile may have lost what it answered for.
        let both = self.net.link(link).is_some_and(|l| l.ends.iter().all(|end| end.state == EndState::Up));
        if !both {
            return;
        }
        *self.checks.verdicts.entry(verdict.result()).or_default() += 1;
        let disks = [ix, peer].map(|node| &self.nodes[node].disks[&volume]);
        let differs = |s: &u64| disks[0].sector(*s) != disks[1].sector(*s);
        let text = match verdict {
            OvVerdict::Skipped => return,
            OvVerdict::OutOfSync if sectors.clone().any(|s| differs(&s)) => return,
            OvVerdict::OutOfSync => {
                format!("calls sectors {sectors:?} of volume {volume} different on node {peer}, and they are equal")
            }
            OvVerdict::InSync => match sectors.clone().find(|s| self.differs_unexplained(ix, peer, volume, *s, true)) {
                None => return,
                Some(s) => format!("calls sectors equal: {}", self.describe_difference(ix, peer, volume, s)),
            },
        };
        self.fail(Check::Verify, &format!("node {ix} {text}"));
    }
}
