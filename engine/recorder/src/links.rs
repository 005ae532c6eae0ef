//! How the packets of each link are encoded: what the core agreed on with the peer.

use zea_core::io::{Action, LinkId};
use zea_wire::features::Negotiated;

use crate::limits::MAX_LINKS;

/// What was agreed, by link, the newest last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links(Vec<(LinkId, Negotiated)>);

impl Links {
    pub(crate) fn new(mut known: Vec<(LinkId, Negotiated)>) -> Links {
        known.truncate(MAX_LINKS);
        Links(known)
    }

    pub(crate) fn known(&self) -> &[(LinkId, Negotiated)] {
        &self.0
    }

    /// Packets are recorded without their payload, and so without its digest.
    pub(crate) fn of(&self, link: LinkId) -> Negotiated {
        let found = self.0.iter().find(|(id, _)| *id == link);
        let agreed = found.map_or(Negotiated::INITIAL, |(_, negotiated)| *negotiated);
        Negotiated { integrity_digest_len: 0, own_integrity_digest_len: 0, ..agreed }
    }

    /// Takes note of what the core decided.
    pub(crate) fn follow(&mut self, actions: &[Action]) {
        for action in actions {
            if let Action::SetNegotiated { link, negotiated, .. } = action {
                self.0.retain(|(id, _)| id != link);
                if self.0.len() >= MAX_LINKS {
                    self.0.remove(0);
                }
                self.0.push((*link, *negotiated));
            }
        }
    }
}
