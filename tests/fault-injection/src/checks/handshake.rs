//! What a handshake decides: equal means equal, a split brain is one, and bits of UpToDate data stay.

use zea_core::event::Status;
use zea_core::io::Input;
use zea_wire::ids::VolumeNr;
use zea_wire::packet::Packet;
use zea_wire::state::{DiskState, ReplState};

use super::Check;
use crate::net::NodeIx;
use crate::world::World;

/// Inputs with which a core may decide about data. No bit is cleared by them.
pub(crate) fn may_decide(input: &Input<'_>) -> bool {
    let Input::Packet { packet, .. } = input else {
        return false;
    };
    matches!(
        packet,
        Packet::TwopcYes(_) | Packet::TwopcCommit(_) | Packet::Uuids110(_) | Packet::State(_) | Packet::CurrentUuid(_)
    )
}

impl World {
    /// Two replicas are in sync from here on, with no bit set: what differs is being written, or a third node wrote it and
    /// has not said yet who has it: then the extent is active.
    pub(super) fn check_uuid_truth(&mut self, a: NodeIx, b: NodeIx, volume: VolumeNr) {
        let protocol_c = self.nodes[a].is_protocol_c();
        let differs = |s: &u64| {
            let writer = self.model.settled_writer((volume.0, *s));
            let own = protocol_c && writer.is_some_and(|w| w == a || w == b);
            self.differs_unexplained(a, b, volume, *s, !own)
        };
        let sectors = self.common_sectors(a, b, volume);
        let (disk_a, disk_b) = (&self.nodes[a].disks[&volume], &self.nodes[b].disks[&volume]);
        let differing = |s: &u64| *s < sectors && disk_a.sector(*s) != disk_b.sector(*s);
        let found = self.model.touched(volume.0).filter(differing).find(differs);
        if let Some(sector) = found {
            let text = self.describe_difference(a, b, volume, sector);
            self.fail(Check::UuidTruth, &format!("nodes {a} and {b} are in sync without a mark, and {text}"));
        }
    }

    /// A packet about states and UUIDs was handled: no bit of UpToDate data has gone.
    pub(crate) fn check_kept_bits(&mut self, ix: NodeIx, before: &Status) {
        let now = &self.nodes[ix].status;
        let is_good =
            |s: &Status, v: VolumeNr| s.devices.iter().any(|d| d.volume == v && d.disk == DiskState::UpToDate);
        for (old, new) in before.connections.iter().zip(&now.connections) {
            for (p, q) in old.peer_devices.iter().zip(&new.peer_devices) {
                let quiet = p.repl <= ReplState::Established && q.repl <= ReplState::Established;
                let good = is_good(before, p.volume) && is_good(now, p.volume);
                if quiet && good && q.out_of_sync_sectors < p.out_of_sync_sectors {
                    let text = format!(
                        "node {ix} was UpToDate with {} sectors marked towards node {}, and has {} after a packet about states",
                        p.out_of_sync_sectors, old.peer, q.out_of_sync_sectors
                    );
                    self.fail(Check::KeptBits, &text);
                }
            }
        }
    }

    /// A node refuses a connection for what both hold.
    pub(crate) fn check_refusal(&mut self, ix: NodeIx, notice: &str) {
        let split = notice.contains("split brain detected");
        let unrelated = notice.contains("unrelated data");
        if self.checks.split_brains_expected || !(split || unrelated) {
            return;
        }
        // What a node says of a connection as a whole repeats what it said of a volume.
        let Some((peer, volume)) = named(notice) else {
            return;
        };
        if unrelated || !self.model.diverged(ix, peer, volume) {
            self.fail(
                Check::SplitBrain,
                &format!("nodes {ix} and {peer} did not diverge, and node {ix} says: {notice}"),
            );
        }
    }
}

/// Node and volume of "node N volume V: …".
fn named(notice: &str) -> Option<(NodeIx, u16)> {
    let rest = notice.strip_prefix("node ")?;
    let (node, rest) = rest.split_once(" volume ")?;
    let (volume, _) = rest.split_once(':')?;
    Some((node.parse().ok()?, volume.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn sim_refusals_name_node_and_volume() {
        assert_eq!(super::named("node 2 volume 1: split brain detected (rule x)"), Some((2, 1)));
        assert_eq!(super::named("something else"), None);
    }
}
