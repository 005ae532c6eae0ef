//! The node that is asked: prepare, answer, commit, abort (handshake-and-states.md 8.3).

use zea_wire::flags::{DdsFlags, TwopcFlags};
use zea_wire::ids::{NodeId, NodeMask, VolumeNr};
use zea_wire::packet::{Packet, TwopcBody, TwopcReply, TwopcRequest};
use zea_wire::state::{ConnState, DiskState, Role, StateBits};

use super::wording::{is_connect, is_disconnect, is_resize, is_verify, prepare};
use super::{Change, Participant, Running, Sums, Verdict};
use crate::connection::LinkPhase;
use crate::full_sync::starts_full_sync;
use crate::resize::Agreed;
use crate::resource::{Ctx, Resource};

impl Resource {
    /// P_TWOPC_PREPARE.
    pub(crate) fn twopc_prepare(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        volume: Option<VolumeNr>,
        request: TwopcRequest,
    ) {
        let parent = self.conns[cidx].node();
        let connects_us = request.target_node_id == Some(self.config.node_id) && is_connect(&request);
        match self.twopc.running.as_ref() {
            Some(Running::Participant(p)) if p.request.tid == request.tid => {
                let sums = self.own_sums();
                return self.twopc_send_reply(cx, (parent, volume), &request, sums, Verdict::Yes);
            }
            Some(Running::Initiator(_)) if request.initiator_node_id < self.config.node_id => {
                self.twopc_yield(cx);
            }
            Some(_) => {
                if connects_us && self.in_phase(cidx, LinkPhase::Connecting) && self.conns[cidx].keeps_bits() {
                    self.handshake_packets(cx, cidx);
                }
                let sums = self.own_sums();
                return self.twopc_send_reply(cx, (parent, volume), &request, sums, Verdict::Retry);
            }
            None => {}
        }
        self.notice_lost_initiator(cx, parent, request.initiator_node_id);
        let connecting = self.in_phase(cidx, LinkPhase::Connecting);
        if connecting != connects_us {
            let sums = self.own_sums();
            return self.twopc_send_reply(cx, (parent, volume), &request, sums, Verdict::Retry);
        }
        let direct = self.reachable();
        let mut children = direct & request.nodes_to_reach;
        children.remove(self.config.node_id);
        children.remove(parent);
        let verdict = self.far_away_check(cidx, volume, &request);
        self.twopc.running = Some(Running::Participant(Participant {
            request,
            volume,
            parent,
            children,
            waiting: children,
            sums: Sums::default(),
            verdict,
            answered: false,
            losses: self.quorum.losses,
            deadline: cx.now.plus_ms(self.config.twopc_timeout_ms),
        }));
        let mut forward = request;
        forward.nodes_to_reach = request.nodes_to_reach & !direct;
        self.send_to_all(cx, children, volume, &prepare(forward));
        if connects_us {
            self.handshake_send(cx, cidx);
        }
        self.twopc_answer(cx);
    }

    /// A transaction of a node with a lower id goes first; ours starts again later.
    fn twopc_yield(&mut self, cx: &mut Ctx<'_>) {
        let Some(i) = self.twopc_call_off(cx) else { return };
        if let Change::Connect(peer) = i.wanted.change {
            return self.connect_refused(cx, peer, Verdict::Retry);
        }
        self.twopc_back_off(cx, i.wanted.tries);
        self.twopc.queue.push_front(i.wanted);
    }

    /// What this node adds to an answer. Asked by a node to part from it, only its own side: the asking one's is cut off (seen:
    /// 03a f247).
    fn sums_for(&self, parent: NodeId, request: &TwopcRequest, own: Sums) -> Sums {
        let mut reachable = own.reachable;
        if !is_disconnect(request) || request.target_node_id != Some(self.config.node_id) {
            reachable.insert(parent);
            return Sums { reachable, ..own };
        }
        reachable.remove(parent);
        let weak = if own.primary.is_empty() { NodeMask::EMPTY } else { !reachable };
        Sums { reachable, weak, ..own }
    }

    fn own_sums(&self) -> Sums {
        let reachable = self.reachable();
        let mut sums = Sums { reachable, ..Sums::default() };
        if self.role == Role::Primary {
            sums.primary.insert(self.config.node_id);
            sums.weak = !reachable;
        }
        sums
    }

    /// Whether this node can live with the change.
    fn far_away_check(&self, cidx: usize, volume: Option<VolumeNr>, request: &TwopcRequest) -> Verdict {
        if is_verify(request) && request.target_node_id == Some(self.config.node_id) {
            let vidx = volume.and_then(|nr| self.vidx(nr));
            let can = vidx.is_some_and(|vidx| self.verify_check(cidx, vidx).is_ok());
            return if can { Verdict::Yes } else { Verdict::No };
        }
        if let Some(wanted) = starts_full_sync(request).filter(|_| request.target_node_id == Some(self.config.node_id))
        {
            return self.full_sync_vote(cidx, volume, wanted);
        }
        if let TwopcBody::PrepareResize { user_size, .. } = request.body {
            return self.resize_vote(volume, user_size);
        }
        let TwopcBody::Prepare { mask, val } = request.body else { return Verdict::No };
        if is_disconnect(request) {
            let asked = request.target_node_id == Some(self.config.node_id);
            return if asked && self.needs_data_of(cidx) { Verdict::No } else { Verdict::Yes };
        }
        let becomes_primary = mask.names(StateBits::ROLE) && val.role() == Some(Role::Primary) && !is_connect(request);
        if !becomes_primary {
            return Verdict::Yes;
        }
        let other_primary =
            self.conns.iter().enumerate().any(|(i, c)| {
                i != cidx && c.is_up() && c.role == Role::Primary && c.node() != request.initiator_node_id
            });
        // It hears of that, if it has not yet.
        let behind = |vidx| self.is_later_than(request.initiator_node_id, vidx) && !mask.names(StateBits::DISK);
        match (self.role == Role::Primary || other_primary) && !broken!(TwoPrimaries) {
            true => Verdict::No,
            false if (0..self.volumes.len()).any(behind) => Verdict::Retry,
            false => Verdict::Yes,
        }
    }

    /// Answer the parent when all children have, and when our own comparison is done.
    pub(crate) fn twopc_answer(&mut self, cx: &mut Ctx<'_>) {
        let (own, losses) = (self.own_sums(), self.quorum.losses);
        let Some(p) = self.twopc.participant() else { return };
        if p.answered {
            return;
        }
        let (request, parent, volume, complete) = (p.request, p.parent, p.volume, p.waiting.is_empty());
        let mut refused = false;
        if request.target_node_id == Some(self.config.node_id) && is_connect(&request) {
            let cidx = self.cidx(parent).expect("a connection that connects");
            let Some(v) = self.handshake_verdict(cidx) else { return };
            // What bystanders say makes no difference then, and busy ones may be busy for long.
            refused = v == Verdict::No && self.conns[cidx].keeps_bits();
            let p = self.twopc.participant().expect("above");
            p.verdict = if refused { v } else { p.verdict.max(v) };
        }
        if !(complete || refused) {
            return;
        }
        let p = self.twopc.participant().expect("above");
        (p.answered, p.losses) = (true, losses);
        let (mut sums, verdict) = (p.sums, p.verdict);
        let own = self.sums_for(parent, &request, own);
        sums.reachable |= own.reachable;
        sums.weak |= own.weak;
        if is_resize(&request) {
            sums.limit(self.largest_size(volume));
        }
        // Of a resize they are those with a disk.
        if !is_resize(&request) || volume.and_then(|nr| self.vidx(nr)).is_some_and(|v| self.volumes[v].has_disk()) {
            sums.primary |= own.primary;
        }
        self.twopc_send_reply(cx, (parent, volume), &request, sums, verdict);
    }

    fn twopc_send_reply(
        &mut self,
        cx: &mut Ctx<'_>,
        (to, volume): (NodeId, Option<VolumeNr>),
        request: &TwopcRequest,
        sums: Sums,
        verdict: Verdict,
    ) {
        let reply = TwopcReply {
            tid: request.tid,
            initiator_node_id: request.initiator_node_id,
            reachable_nodes: sums.reachable,
            primary_nodes: sums.primary,
            weak_nodes_or_max_size: sums.largest.unwrap_or(sums.weak.0),
        };
        let packet = match verdict {
            Verdict::Yes => Packet::TwopcYes(reply),
            Verdict::No => Packet::TwopcNo(reply),
            Verdict::Retry => Packet::TwopcRetry(reply),
        };
        self.send_to(cx, to, volume, packet);
    }

    /// P_TWOPC_COMMIT.
    pub(crate) fn twopc_commit_received(&mut self, cx: &mut Ctx<'_>, cidx: usize, commit: TwopcRequest) {
        let from = self.conns[cidx].node();
        let fits =
            self.twopc.participant().is_some_and(|p| p.request.tid == commit.tid && p.parent == from && p.answered);
        if !fits {
            return;
        }
        let Some(Running::Participant(p)) = self.twopc.running.take() else { unreachable!("checked above") };
        self.send_to_all(cx, p.children, p.volume, &Packet::TwopcCommit(Box::new(commit)));
        let primaries = match commit.body {
            TwopcBody::CommitReachable { primary_nodes, .. } | TwopcBody::Commit { primary_nodes, .. } => primary_nodes,
            _ => NodeMask::default(),
        };
        if let (TwopcBody::PrepareResize { user_size, dds_flags, .. }, TwopcBody::Commit { last: size_sectors, .. }) =
            (p.request.body, commit.body)
        {
            let (assume_clean, parent) = (dds_flags.contains(DdsFlags::NO_RESYNC), Some(from));
            let agreed = Agreed { size_sectors, user_size, assume_clean, primaries, parent };
            return self.resize_agreed(cx, p.volume, agreed, None);
        }
        if let TwopcBody::CommitReachable { reachable_nodes, .. } = commit.body {
            self.members_agreed(reachable_nodes, p.losses);
        }
        self.apply_commit(cx, p.volume, &p.request);
        if !commit.flags.contains(TwopcFlags::PRI_INCAPABLE) {
            self.members_learned(cx, primaries);
        }
    }

    fn apply_commit(&mut self, cx: &mut Ctx<'_>, volume: Option<VolumeNr>, request: &TwopcRequest) {
        let Some(cidx) = self.cidx(request.initiator_node_id) else { return };
        let TwopcBody::Prepare { mask, val } = request.body else { return };
        let about_us = request.target_node_id == Some(self.config.node_id);
        if is_connect(request) {
            match self.handshake_verdict(cidx) {
                Some(Verdict::Yes) if about_us => self.connected(cx, cidx),
                _ if about_us => {
                    // A resync ended, or a disk failed, after the answer: what was decided is not true any more.
                    self.announce_tear_down(cx, cidx);
                    self.drop_link(cx, cidx, ConnState::TearDown, "the state changed while it connected");
                }
                _ => {}
            }
        } else if is_verify(request) {
            if let Some(vidx) = volume.and_then(|nr| self.vidx(nr)).filter(|_| about_us) {
                self.verify_begin_target(cx, cidx, vidx);
            }
        } else if let Some(wanted) = starts_full_sync(request) {
            if about_us {
                self.full_sync_by_peer(cx, cidx, volume, wanted);
            }
        } else if mask.names(StateBits::CONN) {
            if about_us {
                // A Zea peer may be back at once. A kernel was told by an administrator: this disk is Outdated if it was Primary.
                let zea = self.conns[cidx].keeps_bits();
                let outdates = |field, disk| mask.names(field) && disk == Some(DiskState::Outdated);
                self.part(cidx, outdates(StateBits::PDSK, val.pdsk()), outdates(StateBits::DISK, val.disk()));
                let state = if zea { ConnState::TearDown } else { ConnState::Disconnecting };
                self.drop_link(cx, cidx, state, "the peer disconnected");
                self.quorum_parted(cidx);
            }
        } else if mask.names(StateBits::ROLE)
            && let Some(role) = val.role()
            && self.conns[cidx].is_up()
        {
            self.peer_role(cx, cidx, role);
        }
    }

    /// P_TWOPC_ABORT.
    pub(crate) fn twopc_abort_received(&mut self, cx: &mut Ctx<'_>, cidx: usize, abort: TwopcRequest) {
        let from = self.conns[cidx].node();
        let fits = self.twopc.participant().is_some_and(|p| p.request.tid == abort.tid && p.parent == from);
        if fits {
            self.twopc_roll_back(cx, abort);
        }
    }

    /// The transaction of another node is not to be: tell those it was passed on to.
    fn twopc_roll_back(&mut self, cx: &mut Ctx<'_>, abort: TwopcRequest) {
        let Some(Running::Participant(p)) = self.twopc.running.take() else { unreachable!("a participant rolls back") };
        self.send_to_all(cx, p.children, p.volume, &Packet::TwopcAbort(Box::new(abort)));
        self.twopc_forget(&p);
    }

    /// Roll a transaction of another node back.
    pub(super) fn twopc_forget(&mut self, p: &Participant) {
        if is_connect(&p.request)
            && p.request.target_node_id == Some(self.config.node_id)
            && let Some(cidx) = self.cidx(p.parent)
            && self.conns[cidx].link.is_some()
        {
            self.handshake_reset(cidx);
        }
    }

    /// A peer is gone in the middle of a transaction.
    pub(crate) fn twopc_lost_peer(&mut self, cx: &mut Ctx<'_>, node: NodeId) {
        match self.twopc.running.as_mut() {
            Some(Running::Request(r)) if r.peer == node => self.request_lost(cx),
            Some(Running::Initiator(i)) if i.waiting.contains(node) => {
                i.waiting.remove(node);
                i.verdict = i.verdict.max(Verdict::Retry);
                let parts = i.wanted.change == Change::Disconnect(node);
                self.twopc_abort(cx);
                if parts {
                    // It is gone: at once, before it is connected again.
                    self.twopc.not_before = None;
                    self.again = true;
                }
            }
            Some(Running::Participant(p)) if p.parent == node && broken!(StayPrepared) => {}
            Some(Running::Participant(p)) if p.parent == node => {
                let abort = TwopcRequest { body: TwopcBody::Abort, ..p.request };
                self.twopc_roll_back(cx, abort);
            }
            Some(Running::Participant(p)) if p.waiting.contains(node) => {
                p.waiting.remove(node);
                p.verdict = p.verdict.max(Verdict::Retry);
                self.twopc_answer(cx);
            }
            _ => {}
        }
    }
}
