//! With a majority as quorum, two nodes never serve writes of a volume at once, and no split brain comes of anything.

use std::collections::BTreeMap;

use zea_core::config::Quorum;
use zea_wire::ids::VolumeNr;
use zea_wire::state::Role;

use super::Check;
use crate::net::NodeIx;
use crate::world::World;

/// What is followed.
#[derive(Debug, Default)]
pub(crate) struct Quorate {
    since: BTreeMap<(NodeIx, VolumeNr), u64>,
    /// Somebody was promoted by force: what comes of that is an administrator's doing.
    forced: bool,
}

impl World {
    /// Votes count here.
    pub fn counts_votes(&self) -> bool {
        self.nodes.iter().any(|n| n.saved.resource.quorum.quorum != Quorum::Off)
    }

    /// All volumes of a node have quorum, as far as it has told.
    pub fn has_quorum(&self, ix: NodeIx) -> bool {
        self.nodes[ix].status.devices.iter().all(|d| d.quorum)
    }

    /// Every node asks for a majority, and writes wait for the peers' disks.
    fn wants_majority(&self) -> bool {
        let majority = |q: Quorum| q == Quorum::Majority;
        self.nodes.iter().all(|n| majority(n.saved.resource.quorum.quorum) && n.is_protocol_c())
    }

    /// A node has changed: since when is it a Primary with quorum?
    pub(crate) fn follow_quorum(&mut self, ix: NodeIx) {
        let (node, now) = (&self.nodes[ix], self.now);
        self.checks.quorate.forced |= node.forcing && self.checks.is_set_up;
        for device in &node.status.devices {
            let key = (ix, device.volume);
            if node.is_up() && node.role() == Role::Primary && device.quorum {
                self.checks.quorate.since.entry(key).or_insert(now);
            } else {
                self.checks.quorate.since.remove(&key);
            }
        }
    }

    /// A write has been acknowledged: it did not begin after somebody else had become Primary with quorum.
    pub(crate) fn check_quorum(&mut self, ix: NodeIx, volume: VolumeNr, began: u64) {
        if !self.wants_majority() || self.checks.quorate.forced {
            return;
        }
        let since = &self.checks.quorate.since;
        let own = since.get(&(ix, volume)).copied().unwrap_or(0);
        let mut others = since.iter().filter(|((other, v), _)| *other != ix && *v == volume);
        let other = others.find(|((other, _), since)| (own..began).contains(*since) && self.nodes[*other].is_up());
        if let Some(((other, _), since)) = other.map(|(key, since)| (*key, *since)) {
            let what = format!(
                "node {ix} acknowledges a write of {began} ns, and node {other} has been Primary with quorum since {since} ns"
            );
            self.fail(Check::Quorum, &what);
        }
    }

    /// No rule finds a split brain.
    pub(crate) fn check_no_split_brain(&mut self, ix: NodeIx, text: &str) {
        let found = text.contains("split brain detected") && self.wants_majority() && !self.checks.quorate.forced;
        if found {
            self.fail(Check::Quorum, &format!("node {ix}: {text}"));
        }
    }
}
