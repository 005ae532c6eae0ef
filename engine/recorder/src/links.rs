//! How the packets of each link are encoded: what the core agreed on with the peer.

use zea_core::io::{Action, LinkId};
use zea_wire::features::Negotiated;
use zea_wire::ids::NodeId;

/// What was agreed last with each peer, and on which link.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links(Vec<(NodeId, LinkId, Negotiated)>);

impl Links {
    pub(crate) fn new(known: Vec<(NodeId, LinkId, Negotiated)>) -> Links {
        Links(known)
    }

    pub(crate) fn known(&self) -> &[(NodeId, LinkId, Negotiated)] {
        &self.0
    }

    /// Packets are recorded without their payload, and so without its digest.
    pub(crate) fn of(&self, link: LinkId) -> Negotiated {
        let found = self.0.iter().find(|(_, id, _)| *id == link);
        let agreed = found.map_or(Negotiated::INITIAL, |(.., negotiated)| *negotiated);
        Negotiated { integrity_alg: None, ..agreed }
    }

    /// Takes note of what the core decided. A peer has one link at a time.
    #[inline]
    pub(crate) fn follow(&mut self, action: &Action) {
        if let Action::SetNegotiated { peer, link, negotiated } = action {
            self.0.retain(|(node, ..)| node != peer);
            self.0.push((*peer, *link, *negotiated));
        }
    }
}
