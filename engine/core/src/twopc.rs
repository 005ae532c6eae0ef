//! Two-phase commit: cluster wide state changes (handshake-and-states.md 8).

mod participant;
mod wording;

use std::collections::VecDeque;

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::flags::TwopcFlags;
use zea_wire::ids::{NodeId, NodeMask, VolumeNr};
use zea_wire::packet::{Packet, TwopcBody, TwopcReply, TwopcRequest};
use zea_wire::state::{DiskState, Role, StateBits};

use self::wording::{is_connect, is_resize, prepare};
use crate::connection::LinkPhase;
use crate::dialect::request::Request;
use crate::event::Severity;
use crate::full_sync::FullSync;
use crate::io::{AdminError, AdminTag, Time};
use crate::limits;
use crate::resize::Resize;
use crate::resource::{Ctx, Resource};
use crate::verify::VerifyPlan;

/// DRBD's codes for the outcome of a state change (handshake-and-states.md 2.3).
pub(crate) mod ss {
    pub(crate) const SUCCESS: i32 = 1;
    pub(crate) const TWO_PRIMARIES: i32 = -1;
    pub(crate) const NO_UP_TO_DATE_DISK: i32 = -2;
    pub(crate) const NO_LOCAL_DISK: i32 = -4;
    pub(crate) const NO_REMOTE_DISK: i32 = -5;
    pub(crate) const RESYNC_RUNNING: i32 = -8;
    pub(crate) const ALREADY_STANDALONE: i32 = -9;
    pub(crate) const CW_FAILED_BY_PEER: i32 = -10;
    pub(crate) const DEVICE_IN_USE: i32 = -12;
    pub(crate) const NO_VERIFY_ALG: i32 = -14;
    pub(crate) const NEED_CONNECTION: i32 = -15;
    pub(crate) const NOT_SUPPORTED: i32 = -17;
    pub(crate) const IN_TRANSIENT_STATE: i32 = -18;
    pub(crate) const CONCURRENT_ST_CHG: i32 = -19;
    pub(crate) const TIMEOUT: i32 = -23;
    pub(crate) const NO_QUORUM: i32 = -25;
}

/// A change that wants the cluster's consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Change {
    /// Connecting to Connected with this peer.
    Connect(NodeId),
    /// This node becomes Primary; with force on data that is not UpToDate.
    Promote { force: bool },
    /// This node becomes Secondary.
    Demote,
    /// Graceful disconnect from this peer.
    Disconnect(NodeId),
    /// Established to VerifyS, for the target to VerifyT.
    Verify(VerifyPlan),
    /// One of two nodes gets all data from the other.
    FullSync(FullSync),
    /// A volume grows.
    Resize(Resize),
    /// No change: learn who is Primary after a peer was lost.
    Empty,
}

impl Change {
    /// The volume that it is about, if it is about one.
    pub(crate) fn volume(self) -> Option<VolumeNr> {
        match self {
            Change::Verify(plan) => Some(plan.volume),
            Change::Resize(wanted) => Some(wanted.volume),
            Change::FullSync(plan) => Some(plan.volume),
            _ => None,
        }
    }

    /// The node that it is about, if it is about one.
    fn target(self) -> Option<NodeId> {
        match self {
            Change::Connect(n) | Change::Disconnect(n) => Some(n),
            Change::Verify(plan) => Some(plan.peer),
            Change::FullSync(plan) => Some(plan.peer),
            _ => None,
        }
    }
}

/// A change in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) change: Change,
    pub(crate) reply: Option<AdminTag>,
    tries: u32,
}

/// Sums of the replies.
#[derive(Debug, Clone, Copy, Default, Archive, Serialize, Deserialize)]
struct Sums {
    /// What is reached, on the initiator's side of a disconnect.
    reachable: NodeMask,
    /// What the target of a disconnect reaches.
    target_side: NodeMask,
    primary: NodeMask,
    weak: NodeMask,
    /// Of a resize, in sectors: what all of those who have answered have room for.
    largest: Option<u64>,
}

impl Sums {
    fn add(&mut self, r: &TwopcReply, resizes: bool) {
        self.reachable |= r.reachable_nodes;
        self.primary |= r.primary_nodes;
        if resizes {
            self.limit(r.weak_nodes_or_max_size);
        } else {
            self.weak |= r.weak_nodes();
        }
    }

    fn limit(&mut self, size: u64) {
        self.largest = Some(self.largest.map_or(size, |largest| largest.min(size)));
    }
}

/// What a node answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Yes,
    No,
    Retry,
}

/// The transaction that this node started.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Initiator {
    tid: u32,
    wanted: Wanted,
    /// Peers that were lost before it began.
    losses: u32,
    waiting: NodeMask,
    asked: NodeMask,
    sums: Sums,
    verdict: Verdict,
    deadline: Time,
}

/// A transaction of another node.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Participant {
    request: TwopcRequest,
    volume: Option<VolumeNr>,
    parent: NodeId,
    /// The nodes it was passed on to, and those of them that have not answered.
    children: NodeMask,
    waiting: NodeMask,
    sums: Sums,
    verdict: Verdict,
    answered: bool,
    /// Peers that were lost before this node answered.
    losses: u32,
    deadline: Time,
}

#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) enum Running {
    Initiator(Initiator),
    Participant(Participant),
    /// The one peer, which speaks 8.4, was asked.
    Request(Request),
}

/// At most one transaction runs on a node.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct TwoPc {
    pub(crate) running: Option<Running>,
    queue: VecDeque<Wanted>,
    not_before: Option<Time>,
}

impl TwoPc {
    pub(crate) fn deadline(&self) -> Option<Time> {
        match &self.running {
            Some(Running::Initiator(i)) => Some(i.deadline),
            Some(Running::Participant(_)) if broken!(StayPrepared) => None,
            Some(Running::Participant(p)) => Some(p.deadline),
            Some(Running::Request(r)) => Some(r.deadline),
            None if self.queue.is_empty() => None,
            None => self.not_before,
        }
    }

    fn initiator(&mut self) -> Option<&mut Initiator> {
        match self.running.as_mut() {
            Some(Running::Initiator(i)) => Some(i),
            _ => None,
        }
    }

    fn participant(&mut self) -> Option<&mut Participant> {
        match self.running.as_mut() {
            Some(Running::Participant(p)) => Some(p),
            _ => None,
        }
    }

    /// The transaction that runs is about the connection to this peer, and one of the two has begun it.
    pub(crate) fn connects(&self, peer: NodeId) -> bool {
        match &self.running {
            Some(Running::Initiator(i)) => i.wanted.change == Change::Connect(peer),
            Some(Running::Participant(p)) => is_connect(&p.request) && p.parent == peer,
            _ => false,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_none() && self.queue.is_empty()
    }
}

impl Resource {
    /// Queue a change; equal ones without a waiting admin command are one.
    pub(crate) fn want(&mut self, change: Change, reply: Option<AdminTag>) {
        let running = self.twopc.initiator().is_some_and(|i| i.wanted.change == change);
        if reply.is_none() && (running || self.twopc.queue.iter().any(|w| w.change == change)) {
            return;
        }
        self.again = true;
        self.twopc.queue.push_back(Wanted { change, reply, tries: 0 });
    }

    /// The node with the lower id starts the connect transaction, once the link is ready for it.
    pub(crate) fn want_connect(&mut self, cidx: usize) {
        let peer = self.conns[cidx].node();
        let asks = self.config.node_id < peer && !self.conns[cidx].speaks_84();
        if asks && self.in_phase(cidx, LinkPhase::Connecting) {
            self.want(Change::Connect(peer), None);
        }
    }

    /// Start what is due, give up what takes too long.
    pub(crate) fn twopc_step(&mut self, cx: &mut Ctx<'_>) {
        if self.twopc.running.is_some() && self.twopc.deadline().is_some_and(|t| cx.now >= t) {
            self.twopc_timeout(cx);
        }
        while self.twopc.running.is_none() {
            if self.twopc.not_before.is_some_and(|t| cx.now < t) {
                return;
            }
            let Some(wanted) = self.twopc.queue.pop_front() else { return };
            self.twopc_start(cx, wanted);
        }
    }

    fn twopc_timeout(&mut self, cx: &mut Ctx<'_>) {
        match self.twopc.running.take() {
            Some(Running::Initiator(mut i)) => {
                i.verdict = Verdict::Retry;
                self.twopc.running = Some(Running::Initiator(i));
                self.twopc_abort(cx);
            }
            Some(Running::Participant(p)) => self.twopc_forget(&p),
            Some(request @ Running::Request(_)) => {
                self.twopc.running = Some(request);
                self.request_over(cx, ss::TIMEOUT);
            }
            None => {}
        }
    }

    /// A Primary has just been lost: whether the data here is UpToDate is being found out.
    fn promotes_too_soon(&self, wanted: &Wanted) -> bool {
        let unsure = self.volumes.iter().any(|v| v.disk == DiskState::Consistent) || self.awaits_votes();
        wanted.change == (Change::Promote { force: false }) && unsure && wanted.tries < limits::PROMOTE_TRIES
    }

    /// Local checks, then P_TWOPC_PREPARE to everybody who is connected.
    fn twopc_start(&mut self, cx: &mut Ctx<'_>, wanted: Wanted) {
        match self.change_check(cx, wanted.change) {
            Ok(false) => return self.change_without_asking(cx, wanted),
            _ if self.promotes_too_soon(&wanted) => {
                self.twopc.not_before = Some(cx.now.plus_ms(limits::PROMOTE_RETRY_MS));
                return self.twopc.queue.push_back(Wanted { tries: wanted.tries + 1, ..wanted });
            }
            Ok(true) => {}
            Err(e) => return self.change_over(cx, wanted, Err(e)),
        }
        if self.asks_84(wanted.change) {
            return self.request_84(cx, wanted);
        }
        let tid = u32::try_from(cx.rng.next_u64() >> 33).expect("31 bits") | 1;
        let own = self.config.node_id;
        let reachable = self.reachable();
        // An 8.4 peer takes no part: what needs its consent is asked for otherwise.
        let mut asked = if self.peer_84().is_some() { NodeMask::EMPTY } else { reachable };
        asked.remove(own);
        let mut sums = Sums { reachable, ..Sums::default() };
        if let Change::Connect(peer) = wanted.change {
            asked.insert(peer);
            sums.reachable.insert(peer);
        }
        if let Change::Disconnect(peer) = wanted.change {
            sums.reachable.remove(peer);
        }
        self.twopc.running = Some(Running::Initiator(Initiator {
            tid,
            wanted,
            losses: self.quorum.losses,
            waiting: asked,
            asked,
            sums,
            verdict: Verdict::Yes,
            deadline: cx.now.plus_ms(self.config.twopc_timeout_ms),
        }));
        let request = self.twopc_request(tid, own, wanted.change, !(reachable | asked));
        self.send_to_all(cx, asked, wanted.change.volume(), &prepare(request));
        if let Change::Connect(peer) = wanted.change {
            let cidx = self.cidx(peer).expect("checked");
            if let Some(link) = self.conns[cidx].link.as_mut() {
                link.prepares_sent += 1;
            }
            self.handshake_send(cx, cidx);
        }
        self.twopc_decide(cx);
    }

    fn send_to_all(&mut self, cx: &mut Ctx<'_>, nodes: NodeMask, volume: Option<VolumeNr>, packet: &Packet) {
        for node in nodes.iter() {
            self.send_to(cx, node, volume, packet.clone());
        }
    }

    fn send_to(&mut self, cx: &mut Ctx<'_>, node: NodeId, volume: Option<VolumeNr>, packet: Packet) {
        // A link that was made anew in the middle of a transaction knows nothing of it.
        if let Some(cidx) = self.cidx(node)
            && self.conns[cidx].link.as_ref().is_some_and(|link| link.phase >= LinkPhase::Connecting)
        {
            self.send(cx, cidx, volume, packet);
        }
    }

    /// Whether the change may start: `Ok(false)` if there is nothing to do.
    fn change_check(&mut self, cx: &mut Ctx<'_>, change: Change) -> Result<bool, AdminError> {
        match change {
            Change::Connect(peer) => {
                let cidx = self.cidx(peer);
                Ok(cidx.is_some_and(|c| self.in_phase(c, LinkPhase::Connecting) && self.conns[c].retry_at.is_none()))
            }
            Change::Promote { force } => self.promote_check(cx, force),
            Change::Demote => self.demote_check(),
            Change::Disconnect(peer) => match self.cidx(peer).filter(|&c| self.conns[c].is_up()) {
                Some(cidx) if self.needs_data_of(cidx) => Err(last_data(peer)),
                Some(cidx) => self.check_parting(cidx).map(|()| true),
                None => Ok(false),
            },
            Change::Verify(plan) => match (self.cidx(plan.peer), self.vidx(plan.volume)) {
                (Some(cidx), Some(vidx)) => self.verify_check(cidx, vidx).map(|_| true),
                _ => Ok(false),
            },
            Change::FullSync(plan) => self.full_sync_check(plan).map(|()| true),
            Change::Resize(wanted) => self.resize_check(wanted).map(|grows| grows.is_some()),
            Change::Empty => Ok(true),
        }
    }

    // ---- initiator ---------------------------------------------------------------------------------------------

    /// P_TWOPC_YES, NO or RETRY.
    pub(crate) fn twopc_reply(&mut self, cx: &mut Ctx<'_>, cidx: usize, reply: &TwopcReply, verdict: Verdict) {
        let node = self.conns[cidx].node();
        match self.twopc.running.as_mut() {
            Some(Running::Initiator(i)) if i.tid == reply.tid && i.waiting.contains(node) => {
                i.waiting.remove(node);
                let before = i.sums.reachable;
                i.sums.add(reply, matches!(i.wanted.change, Change::Resize(_)));
                if i.wanted.change == Change::Disconnect(node) {
                    (i.sums.reachable, i.sums.target_side) = (before, reply.reachable_nodes);
                }
                i.verdict = i.verdict.max(if broken!(IgnoreVotes) { Verdict::Yes } else { verdict });
                self.twopc_decide(cx);
            }
            Some(Running::Participant(p)) if p.request.tid == reply.tid && p.waiting.contains(node) => {
                p.waiting.remove(node);
                p.sums.add(reply, is_resize(&p.request));
                p.verdict = p.verdict.max(verdict);
                self.twopc_answer(cx);
            }
            _ => {}
        }
    }

    /// Commit or abort once everybody answered and, when connecting, our own comparison is done.
    pub(crate) fn twopc_decide(&mut self, cx: &mut Ctx<'_>) {
        let Some(i) = self.twopc.initiator() else { return };
        let (change, verdict) = (i.wanted.change, i.verdict);
        if verdict != Verdict::Yes {
            let peer_answers = matches!(change, Change::Connect(peer) if i.waiting.contains(peer));
            let own = match change {
                Change::Connect(peer) => self.cidx(peer).map(|cidx| (cidx, self.handshake_verdict(cidx))),
                _ => None,
            };
            let i = self.twopc.initiator().expect("above");
            match own {
                // Refused on the control stream: what it refuses is still to come on the data stream, and tells the reason here too.
                Some((_, None)) if verdict == Verdict::No => return,
                // Bystanders are busy. That counts only if the two have not refused each other: with many nodes it is never over.
                Some((cidx, None)) if peer_answers && self.conns[cidx].keeps_bits() => return,
                Some((cidx, Some(Verdict::No))) if self.conns[cidx].keeps_bits() => i.verdict = Verdict::No,
                _ => {}
            }
            return self.twopc_abort(cx);
        }
        if !i.waiting.is_empty() {
            return;
        }
        if let Change::Connect(peer) = change {
            let cidx = self.cidx(peer).expect("a connection that connects");
            let Some(compared) = self.handshake_verdict(cidx) else { return };
            let refused = compared == Verdict::Yes && self.joins_primaries(cidx);
            let verdict = match compared {
                _ if refused && self.quorum_settles(cx, cidx) => Verdict::Retry,
                _ if refused => Verdict::No,
                compared => compared,
            };
            if verdict != Verdict::Yes {
                self.twopc.initiator().expect("above").verdict = verdict;
                return self.twopc_abort(cx);
            }
        }
        if let Change::Resize(wanted) = change
            && self.twopc.initiator().expect("above").sums.largest.is_some_and(|size| size < wanted.size_sectors)
        {
            self.twopc.initiator().expect("above").verdict = Verdict::No;
            return self.twopc_abort(cx);
        }
        let own = self.config.node_id;
        let role = self.role;
        let becomes_primary = matches!(change, Change::Promote { .. });
        // What it rests on may have gone while all were asked.
        let stands = !becomes_primary || self.change_check(cx, change).is_ok();
        let i = self.twopc.initiator().expect("above");
        let another = becomes_primary && !(i.sums.primary & !own.mask()).is_empty() && !broken!(TwoPrimaries);
        if another || !stands {
            i.verdict = if another { Verdict::No } else { Verdict::Retry };
            return self.twopc_abort(cx);
        }
        if becomes_primary || (role == Role::Primary && change != Change::Demote) {
            i.sums.primary.insert(own);
        }
        self.twopc_commit(cx);
    }

    /// The connection would make two Primaries part of one cluster. Whoever is between them would write for both.
    fn joins_primaries(&mut self, cidx: usize) -> bool {
        let own = if self.role == Role::Primary { self.config.node_id.mask() } else { NodeMask::EMPTY };
        let primaries = self.twopc.initiator().expect("it decides").sums.primary | own;
        let mut nodes = primaries.iter();
        let (Some(a), Some(b)) = (nodes.next(), nodes.next()) else { return false };
        if broken!(TwoPrimaries) || !self.conns[cidx].keeps_bits() {
            return false;
        }
        let why = format!("nodes {a} and {b} are both Primary: split brain; demote one of them");
        self.conns[cidx].refusal = Some(why);
        true
    }

    fn twopc_commit(&mut self, cx: &mut Ctx<'_>) {
        let Some(Running::Initiator(i)) = self.twopc.running.take() else { unreachable!("called by decide") };
        self.twopc.not_before = None;
        let mut request =
            self.twopc_request(i.tid, self.config.node_id, i.wanted.change, !(self.reachable() | i.asked));
        // Where a cluster of kernels splits, what is told is the other side (8.2).
        let Sums { reachable, target_side, .. } = i.sums;
        let splits = !target_side.is_empty() && (reachable & target_side).is_empty();
        let reachable = if splits { target_side } else { reachable | target_side };
        request.body = match i.wanted.change {
            Change::Resize(wanted) => TwopcBody::Commit { primary_nodes: i.sums.primary, last: wanted.size_sectors },
            _ => TwopcBody::CommitReachable { primary_nodes: i.sums.primary, reachable_nodes: reachable },
        };
        if let Change::Promote { force: true } = i.wanted.change {
            request.flags.set(TwopcFlags::PRI_INCAPABLE, (0..self.volumes.len()).any(|v| !self.has_data(v)));
        }
        if let Change::FullSync(plan) = i.wanted.change {
            self.full_sync_announced(cx, plan);
        }
        self.send_to_all(cx, i.asked, i.wanted.change.volume(), &Packet::TwopcCommit(Box::new(request)));
        self.members_agreed(if splits { i.sums.reachable } else { reachable }, i.losses);
        self.change_committed(cx, i.wanted, i.sums.primary);
    }

    /// The change is agreed: carry it out, and answer.
    pub(crate) fn change_committed(&mut self, cx: &mut Ctx<'_>, wanted: Wanted, primaries: NodeMask) {
        match wanted.change {
            Change::Connect(peer) => {
                let cidx = self.cidx(peer).expect("a connection that connects");
                self.connected(cx, cidx);
            }
            Change::Promote { force } => self.become_primary(cx, force),
            Change::Demote => self.become_secondary(cx),
            Change::Disconnect(peer) => {
                let cidx = self.cidx(peer).expect("checked");
                let (mask, _) = self.outdated_by_parting(peer);
                self.part(cidx, mask.names(StateBits::DISK), mask.names(StateBits::PDSK));
                self.disconnected_by_us(cx, cidx);
            }
            Change::Verify(plan) => self.verify_begin(cx, plan),
            Change::FullSync(plan) => self.full_sync_agreed(cx, plan),
            Change::Resize(resize) => {
                return self.resize_agreed(cx, Some(resize.volume), resize.agreed(primaries), wanted.reply);
            }
            Change::Empty => {}
        }
        self.members_learned(cx, primaries);
        match (wanted.change, wanted.reply) {
            (Change::Promote { .. } | Change::Demote, Some(tag)) => self.reply_when_stable(cx, tag),
            _ => self.change_over(cx, wanted, Ok(())),
        }
    }

    /// Tell everybody who was asked that our transaction is not to be.
    fn twopc_call_off(&mut self, cx: &mut Ctx<'_>) -> Option<Initiator> {
        let Some(Running::Initiator(i)) = self.twopc.running.take() else { return None };
        let mut request =
            self.twopc_request(i.tid, self.config.node_id, i.wanted.change, !(self.reachable() | i.asked));
        request.body = TwopcBody::Abort;
        self.send_to_all(cx, i.asked, i.wanted.change.volume(), &Packet::TwopcAbort(Box::new(request)));
        Some(i)
    }

    fn twopc_abort(&mut self, cx: &mut Ctx<'_>) {
        let Some(i) = self.twopc_call_off(cx) else { return };
        if let Change::Connect(peer) = i.wanted.change {
            return self.connect_refused(cx, peer, i.verdict);
        }
        if i.verdict == Verdict::Retry {
            return self.twopc_again(cx, i.wanted);
        }
        let error = match i.verdict {
            Verdict::No if let Change::Disconnect(peer) = i.wanted.change => last_data(peer),
            Verdict::No if let Change::Resize(wanted) = i.wanted.change => wanted.refused(i.sums.largest),
            Verdict::No if !(i.sums.primary & !self.config.node_id.mask()).is_empty() => two_primaries(),
            _ => AdminError { code: ss::CW_FAILED_BY_PEER, message: "refused by a peer node".into() },
        };
        self.change_over(cx, i.wanted, Err(error));
    }

    /// The others were busy: try again, a few times.
    pub(crate) fn twopc_again(&mut self, cx: &mut Ctx<'_>, mut wanted: Wanted) {
        if wanted.tries >= limits::TWOPC_TRIES {
            let message = "the peers were busy or did not answer in time: try again".into();
            return self.change_over(cx, wanted, Err(AdminError { code: ss::TIMEOUT, message }));
        }
        wanted.tries += 1;
        self.twopc_back_off(cx, wanted.tries);
        self.twopc.queue.push_front(wanted);
    }

    /// The connect transaction failed: again soon, or not at all.
    fn connect_refused(&mut self, cx: &mut Ctx<'_>, peer: NodeId, verdict: Verdict) {
        let Some(cidx) = self.cidx(peer) else { return };
        if self.conns[cidx].link.is_none() {
            return;
        }
        // A node whose own state changed in between cannot tell whether the peer still refuses.
        let own = self.handshake_verdict(cidx);
        let refused = verdict == Verdict::No && own != Some(Verdict::Retry);
        self.handshake_reset(cidx);
        if refused {
            self.send(cx, cidx, None, Packet::Disconnect);
            return self.refuse_connection(cx, cidx);
        }
        // Many pairs that try again and again keep each other from ever coming to a vote.
        let tries = self.conns[cidx].link.as_ref().map_or(0, |link| link.prepares_sent);
        let pause_ms = (50 + cx.rng.next_u64() % 100) << tries.saturating_sub(limits::CONNECT_QUICK_TRIES).min(5);
        self.conns[cidx].retry_at = Some(cx.now.plus_ms(pause_ms));
    }

    fn twopc_back_off(&mut self, cx: &mut Ctx<'_>, tries: u32) {
        let most = (100 * (self.conns.len() as u64).max(1)) << tries.min(5);
        let most = most.min(limits::TWOPC_BACK_OFF_MS);
        self.twopc.not_before = Some(cx.now.plus_ms(1 + cx.rng.next_u64() % most));
    }

    pub(crate) fn change_over(&mut self, cx: &mut Ctx<'_>, wanted: Wanted, result: Result<(), AdminError>) {
        let refused = matches!(&result, Err(e) if [ss::NO_UP_TO_DATE_DISK, ss::NO_QUORUM].contains(&e.code));
        if let (Change::Disconnect(_), Err(e), true, Some(tag)) = (wanted.change, &result, refused, self.down) {
            self.down = None;
            return cx.reply(tag, Err(e.clone()));
        }
        if let (Change::Disconnect(peer), Err(_), false, Some(cidx)) =
            (wanted.change, &result, refused, self.cidx_of(wanted.change))
        {
            // Asked to go: go, also if nobody answers.
            cx.notice(Severity::Warning, format!("node {peer} did not agree to the disconnect; disconnecting anyway"));
            self.disconnected_by_us(cx, cidx);
            if let Some(tag) = wanted.reply {
                cx.reply(tag, Ok(()));
            }
            return;
        }
        match (wanted.reply, result) {
            (Some(tag), result) => cx.reply(tag, result),
            (None, Err(e)) => cx.notice(Severity::Warning, format!("{:?}: {e}", wanted.change)),
            (None, Ok(())) => {}
        }
    }

    fn cidx_of(&self, change: Change) -> Option<usize> {
        self.cidx(change.target()?)
    }
}

/// A Primary would be left without UpToDate data.
fn last_data(peer: NodeId) -> AdminError {
    let message = format!(
        "the Primary would lose its last UpToDate data by a disconnect from node {peer}: attach or connect another disk, demote it, or \
         use --force"
    );
    AdminError { code: ss::NO_UP_TO_DATE_DISK, message }
}

/// Somebody else is Primary.
pub(crate) fn two_primaries() -> AdminError {
    AdminError { code: ss::TWO_PRIMARIES, message: "another node is Primary: demote it first".into() }
}
