//! Cluster-wide changes, seen from the wire: who was asked, who agreed, what was decided. And what comes of it: connected
//! nodes agree on what each of them is.

use std::collections::{BTreeMap, BTreeSet};

use zea_wire::packet::{Packet, TwopcBody, TwopcRequest};
use zea_wire::state::{ConnState, DiskState, ReplState, Role, StateBits};

use super::Check;
use crate::net::NodeIx;
use crate::world::World;

#[derive(Debug, Default)]
struct Transaction {
    change: &'static str,
    asked: BTreeSet<NodeIx>,
    agreed: BTreeSet<NodeIx>,
    against: Option<NodeIx>,
    committed: Option<bool>,
}

/// Transactions by initiator and number.
#[derive(Debug, Default)]
pub(crate) struct TwoPhase(BTreeMap<(NodeIx, u32), Transaction>);

impl TwoPhase {
    /// A node sends a packet. Returns the change that it decides by that, and whether it commits it.
    ///
    /// # Errors
    /// It may not decide so.
    pub(crate) fn sent(
        &mut self,
        from: NodeIx,
        to: NodeIx,
        packet: &Packet,
    ) -> Result<Option<(&'static str, bool)>, String> {
        let (request, commits) = match packet {
            Packet::TwopcPrepare(request) | Packet::TwopcPrepRsz(request) => (request, None),
            Packet::TwopcCommit(request) => (request, Some(true)),
            Packet::TwopcAbort(request) => (request, Some(false)),
            _ => return Ok(None),
        };
        if request.initiator_node_id.index() != from {
            return Ok(None);
        }
        let transaction = self.0.entry((from, request.tid)).or_default();
        let Some(commits) = commits else {
            transaction.change = change_of(request);
            transaction.asked.insert(to);
            return Ok(None);
        };
        if transaction.committed.is_some_and(|c| c != commits) {
            return Err(format!("node {from} commits and aborts transaction {}", request.tid));
        }
        let first = transaction.committed.replace(commits).is_none();
        let decided = first.then_some((transaction.change, commits));
        if !commits {
            return Ok(decided);
        }
        if let Some(node) = transaction.against {
            return Err(format!("node {from} commits transaction {} against the vote of node {node}", request.tid));
        }
        match transaction.asked.difference(&transaction.agreed).next() {
            Some(node) => {
                Err(format!("node {from} commits transaction {} without the vote of node {node}", request.tid))
            }
            None => Ok(decided),
        }
    }

    /// A packet reaches its receiver.
    pub(crate) fn delivered(&mut self, to: NodeIx, from: NodeIx, packet: &Packet) {
        let (reply, agrees) = match packet {
            Packet::TwopcYes(reply) => (reply, true),
            Packet::TwopcNo(reply) | Packet::TwopcRetry(reply) => (reply, false),
            _ => return,
        };
        if reply.initiator_node_id.index() != to {
            return;
        }
        let transaction = self.0.entry((to, reply.tid)).or_default();
        if agrees {
            transaction.agreed.insert(from);
        } else {
            transaction.against = Some(from);
        }
    }
}

/// What a P_TWOPC_PREPARE asks for.
fn change_of(request: &TwopcRequest) -> &'static str {
    let (mask, val) = match request.body {
        TwopcBody::Prepare { mask, val } => (mask, val),
        TwopcBody::PrepareResize { .. } => return "resize",
        _ => return "empty",
    };
    match (val.conn().and_then(|c| c.conn_state()), val.role()) {
        (Some(ConnState::Connected), _) if mask.names(StateBits::CONN) => "connect",
        _ if mask.names(StateBits::CONN) && starts_full_sync(val) => "full-sync",
        _ if mask.names(StateBits::CONN) => "disconnect",
        (_, Some(Role::Primary)) if mask.names(StateBits::ROLE) => "promote",
        _ if mask.names(StateBits::ROLE) => "demote",
        _ => "empty",
    }
}

fn starts_full_sync(val: StateBits) -> bool {
    let repl = val.conn().and_then(|c| c.repl_state());
    matches!(repl, Some(ReplState::StartingSyncS | ReplState::StartingSyncT))
}

impl World {
    /// Connected nodes with nothing on its way between them say the same of each other.
    pub(super) fn check_views(&mut self) {
        let count = self.nodes.len();
        for (a, b) in (0..count).flat_map(|a| (0..count).filter(move |b| *b != a).map(move |b| (a, b))) {
            let (here, there) = (&self.nodes[a], &self.nodes[b]);
            let connected = here.conn_state(b) == ConnState::Connected && there.conn_state(a) == ConnState::Connected;
            let listens = |n: &crate::node::Node| n.is_up() && !n.paused;
            if !connected || !listens(here) || !listens(there) || !self.net.is_quiet(a, b) {
                continue;
            }
            let says = here.connection(b).expect("it is connected").role;
            if says != there.role() && !self.checks.roles_untold {
                let text = format!("node {a} takes node {b} for {says}, which says it is {}", there.role());
                self.fail(Check::Views, &text);
            }
            for device in &there.status.devices {
                let good = device.disk == DiskState::UpToDate;
                let seen = here.peer_device(b, device.volume).map(|p| p.peer_disk);
                if let Some(seen) = seen.filter(|s| (*s == DiskState::UpToDate) != good) {
                    let text = format!(
                        "node {a} takes volume {} of node {b} for {seen}, which says it is {}",
                        device.volume, device.disk
                    );
                    self.fail(Check::Views, &text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zea_wire::flags::TwopcFlags;
    use zea_wire::ids::{NodeId, NodeMask};
    use zea_wire::packet::TwopcReply;

    fn request(body: TwopcBody) -> Box<TwopcRequest> {
        Box::new(TwopcRequest {
            tid: 7,
            flags: TwopcFlags::EMPTY,
            initiator_node_id: NodeId(0),
            target_node_id: None,
            nodes_to_reach: NodeMask::EMPTY,
            body,
        })
    }

    fn reply() -> TwopcReply {
        TwopcReply {
            tid: 7,
            initiator_node_id: NodeId(0),
            reachable_nodes: NodeMask::EMPTY,
            primary_nodes: NodeMask::EMPTY,
            weak_nodes_or_max_size: 0,
        }
    }

    fn asked() -> TwoPhase {
        let mut seen = TwoPhase::default();
        for peer in [1, 2] {
            seen.sent(0, peer, &Packet::TwopcPrepare(request(TwopcBody::Abort))).expect("a prepare");
        }
        seen
    }

    fn commit(seen: &mut TwoPhase) -> Result<Option<(&'static str, bool)>, String> {
        seen.sent(0, 1, &Packet::TwopcCommit(request(TwopcBody::Abort)))
    }

    #[test]
    fn sim_two_phase_wants_every_vote() {
        let mut seen = asked();
        seen.delivered(0, 1, &Packet::TwopcYes(reply()));
        assert!(commit(&mut seen).is_err());
        let mut seen = asked();
        seen.delivered(0, 1, &Packet::TwopcYes(reply()));
        seen.delivered(0, 2, &Packet::TwopcYes(reply()));
        assert!(commit(&mut seen).is_ok());
        assert!(seen.sent(0, 2, &Packet::TwopcAbort(request(TwopcBody::Abort))).is_err());
    }

    #[test]
    fn sim_two_phase_heeds_a_vote_against() {
        let mut seen = asked();
        seen.delivered(0, 1, &Packet::TwopcYes(reply()));
        seen.delivered(0, 2, &Packet::TwopcNo(reply()));
        assert!(commit(&mut seen).is_err());
    }
}
