//! How the packets of a transaction say what is to change (wire-protocol.md, twopc_request).

use zea_wire::flags::TwopcFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::{Packet, TwopcBody, TwopcRequest};
use zea_wire::state::{ConnState, DiskState, ReplState, Role, StateBits};

use super::Change;
use crate::resource::Resource;

impl Resource {
    /// The request of a transaction.
    pub(super) fn twopc_request(
        &self,
        tid: u32,
        initiator: NodeId,
        change: Change,
        to_reach: NodeMask,
    ) -> TwopcRequest {
        let (flags, body) = match change {
            Change::Resize(wanted) => (TwopcFlags::EMPTY, wanted.body()),
            _ => {
                let (mask, val) = self.mask_val(change);
                (TwopcFlags::HAS_REACHABLE, TwopcBody::Prepare { mask, val })
            }
        };
        TwopcRequest {
            tid,
            flags,
            initiator_node_id: initiator,
            target_node_id: change.target(),
            nodes_to_reach: to_reach,
            body,
        }
    }

    fn mask_val(&self, change: Change) -> (StateBits, StateBits) {
        let role = |r| (StateBits(StateBits::ROLE.0), StateBits::of_role(r));
        match change {
            Change::Connect(_) => (
                StateBits(StateBits::CONN.0 | StateBits::ROLE.0),
                StateBits::of_conn(ConnState::Connected) | StateBits::of_role(self.role),
            ),
            Change::Promote { force: false } => role(Role::Primary),
            Change::Promote { force: true } => (
                StateBits(StateBits::ROLE.0 | StateBits::DISK.0),
                StateBits::of_role(Role::Primary) | StateBits::of_disk(DiskState::UpToDate),
            ),
            Change::Demote => role(Role::Secondary),
            Change::Disconnect(peer) => {
                let (mask, val) = self.outdated_by_parting(peer);
                (mask | StateBits::CONN, val | StateBits::of_conn(ConnState::Disconnecting))
            }
            Change::Verify(_) => (StateBits(StateBits::CONN.0), StateBits::of_conn(ReplState::VerifyS)),
            Change::FullSync(plan) => (StateBits(StateBits::CONN.0), StateBits::of_conn(plan.wanted())),
            Change::Resize(_) => unreachable!("asked for otherwise"),
            Change::Empty => (StateBits(0), StateBits(0)),
        }
    }
}

/// The packet that begins a transaction.
pub(super) fn prepare(request: TwopcRequest) -> Packet {
    let resizes = is_resize(&request);
    let request = Box::new(request);
    if resizes { Packet::TwopcPrepRsz(request) } else { Packet::TwopcPrepare(request) }
}

/// The transaction is a resize.
pub(super) fn is_resize(request: &TwopcRequest) -> bool {
    matches!(request.body, TwopcBody::PrepareResize { .. })
}

/// The transaction is a connect.
pub(super) fn is_connect(request: &TwopcRequest) -> bool {
    wanted_conn(request) == Some(ConnState::Connected)
}

/// The transaction is a graceful disconnect.
pub(super) fn is_disconnect(request: &TwopcRequest) -> bool {
    wanted_conn(request) == Some(ConnState::Disconnecting)
}

fn wanted_conn(request: &TwopcRequest) -> Option<ConnState> {
    match request.body {
        TwopcBody::Prepare { mask, val } if mask.names(StateBits::CONN) => val.conn().and_then(|c| c.conn_state()),
        _ => None,
    }
}

/// The transaction starts a verify of its target by its initiator.
pub(super) fn is_verify(request: &TwopcRequest) -> bool {
    match request.body {
        TwopcBody::Prepare { mask, val } => {
            mask.names(StateBits::CONN) && val.conn().and_then(|c| c.repl_state()) == Some(ReplState::VerifyS)
        }
        _ => false,
    }
}
