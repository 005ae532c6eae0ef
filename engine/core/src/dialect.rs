//! The 8.4 dialect: what is different on a connection whose agreed version is below 110 (wire-protocol.md 1;
//! handshake-and-states.md 3.1, 4.1, 8.1). The state machine is the same; such a connection
//!
//! * is the only one of its resource;
//! * connects when the peer's P_STATE is there, without a two-phase commit ([`handshake`]), and asks the one peer for the changes
//!   that need its consent ([`request`]);
//! * tells four UUIDs instead of a table ([`uuids`]), compares them by 8.4's rules (`uuid/table84.rs`), and shares a sync UUID in a
//!   resync ([`resync`]), also in one that an administrator asks for ([`full_resync`]);
//! * makes a volume larger while it is in use, by telling sizes ([`resize`]);
//! * does without what versions 86 to 99 lack ([`before_100`]);
//! * leaves it to a Secondary to begin the generation of a Primary without a disk ([`generation`]);
//! * knows neither dagtags nor peer acks: an epoch that was acked is over for both.

mod before_100;
mod full_resync;
mod generation;
mod handshake;
pub(crate) mod request;
mod resize;
mod resync;
mod uuids;

pub(crate) use before_100::{from_sync_param, oldest};
pub(crate) use uuids::{from_packet, to_packet};

use zea_wire::features::Features;
use zea_wire::ids::BlockId;

use crate::connection::Connection;
use crate::resource::Resource;

/// The first version of DRBD 9.
const FIRST_OF_9: u32 = 110;
/// The first version in which resync packets have ids of their own (wire-protocol.md 11).
const FIRST_WITH_RESYNC_IDS: u32 = 122;

/// Features that mean something to 8.4.
pub(crate) const FEATURES: [Features; 4] = [Features::TRIM, Features::THIN_RESYNC, Features::WSAME, Features::WZEROES];

impl Connection {
    /// The agreed version, 0 without a link.
    pub(crate) fn version(&self) -> u32 {
        self.link.as_ref().map_or(0, |link| link.negotiated.version)
    }

    /// The peer speaks 8.4's dialect.
    pub(crate) fn speaks_84(&self) -> bool {
        self.link.is_some() && self.version() < FIRST_OF_9
    }

    /// Resync packets have ids of their own, which are echoed.
    pub(crate) fn echoes_ids(&self) -> bool {
        self.version() >= FIRST_WITH_RESYNC_IDS
    }

    /// What a resync packet about `id` carries on this connection.
    pub(crate) fn resync_id(&self, id: BlockId) -> BlockId {
        if self.echoes_ids() { id } else { BlockId::SYNCER }
    }
}

impl Resource {
    /// The connected peer that speaks 8.4, if that is what the peer of this resource does.
    pub(crate) fn peer_84(&self) -> Option<usize> {
        (0..self.conns.len()).find(|&c| self.conns[c].is_up() && self.conns[c].speaks_84())
    }
}
