//! State changes that need the consent of the one peer: P_STATE_CHG_REQ about a volume, P_CONN_ST_CHG_REQ about the connection, and
//! their replies (handshake-and-states.md 8.1). They take the place of two-phase commits.

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::flags::DeviceFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::{Packet, ReqState, RetCode};
use zea_wire::state::{ConnField, ConnState, DiskState, ReplState, Role, StateBits};

use crate::io::{AdminError, Time};
use crate::meta_queue::Step;
use crate::resource::{Ctx, Resource};
use crate::twopc::{Change, Running, Wanted, ss, two_primaries};

/// A change that the peer was asked for.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) wanted: Wanted,
    pub(crate) peer: NodeId,
    /// Replies that are outstanding: one for each volume, or one.
    outstanding: usize,
    /// The worst code so far.
    code: i32,
    pub(crate) deadline: Time,
}

/// A whole field of a request with 8.4's numbers, which are not shifted in requests (2.1).
const UP_TO_DATE: u32 = 8 << 9;

impl Resource {
    /// Whether this change is asked for with a request, at a peer that speaks 8.4. Giving up the role of Primary is not.
    pub(crate) fn asks_84(&self, change: Change) -> bool {
        let asks = !matches!(change, Change::Connect(_) | Change::Demote | Change::Empty);
        asks && self.peer_84().is_some()
    }

    /// Ask. As 8.4 does, a ping goes ahead, so that a dead peer is noticed.
    pub(crate) fn request_84(&mut self, cx: &mut Ctx<'_>, wanted: Wanted) {
        let cidx = self.peer_84().expect("asked by whoever calls");
        let request = request_for(wanted.change);
        let volumes = self.volumes_of(cidx, wanted.change);
        let outstanding = volumes.as_ref().map_or(1, Vec::len);
        let deadline = cx.now.plus_ms(self.config.twopc_timeout_ms);
        let peer = self.conns[cidx].node();
        self.twopc.running = Some(Running::Request(Request { wanted, peer, outstanding, code: ss::SUCCESS, deadline }));
        match volumes {
            Some(volumes) => {
                self.ping(cx, cidx);
                for vidx in volumes {
                    self.send_volume(cx, cidx, vidx, Packet::StateChgReq(request));
                }
            }
            None => self.send(cx, cidx, None, Packet::ConnStChgReq(request)),
        }
        if outstanding == 0 {
            self.request_over(cx, ss::SUCCESS);
        }
    }

    /// The volumes that are asked about, each by itself; `None`: the connection is.
    fn volumes_of(&self, cidx: usize, change: Change) -> Option<Vec<usize>> {
        match change {
            Change::Disconnect(_) if !self.conns[cidx].has_volumes() => Some((0..self.volumes.len()).collect()),
            Change::Promote { .. } => Some((0..self.volumes.len()).collect()),
            change => change.volume().map(|nr| self.vidx(nr).into_iter().collect()),
        }
    }

    /// The change that the peer is being asked for.
    pub(crate) fn asked_for(&self) -> Option<Wanted> {
        match &self.twopc.running {
            Some(Running::Request(r)) => Some(r.wanted),
            _ => None,
        }
    }

    /// P_STATE_CHG_REPLY, P_CONN_ST_CHG_REPLY.
    pub(crate) fn request_replied(&mut self, cx: &mut Ctx<'_>, cidx: usize, reply: RetCode) {
        let node = self.conns[cidx].node();
        let Some(Running::Request(r)) = self.twopc.running.as_mut() else { return };
        if r.peer != node || r.outstanding == 0 {
            return;
        }
        r.outstanding -= 1;
        r.code = r.code.min(reply.retcode);
        if r.outstanding == 0 {
            let code = r.code;
            self.request_over(cx, code);
        }
    }

    /// The answer is there, or will not come (`ss::TIMEOUT`).
    pub(crate) fn request_over(&mut self, cx: &mut Ctx<'_>, code: i32) {
        let Some(Running::Request(r)) = self.twopc.running.take() else { return };
        let wanted = r.wanted;
        if code >= ss::SUCCESS {
            let mut primaries = NodeMask::EMPTY;
            if let Change::Promote { .. } = wanted.change {
                primaries.insert(self.config.node_id);
            }
            return self.change_committed(cx, wanted, primaries);
        }
        if code == ss::CONCURRENT_ST_CHG && wanted.change != Change::Disconnect(r.peer) {
            return self.twopc_again(cx, wanted);
        }
        let error = match code {
            ss::TWO_PRIMARIES => two_primaries(),
            ss::TIMEOUT => AdminError { code, message: "the peer did not answer in time: try again".into() },
            code => AdminError { code, message: format!("refused by the peer node (code {code})") },
        };
        self.change_over(cx, wanted, Err(error));
    }

    /// The peer is gone, or takes too long.
    pub(crate) fn request_lost(&mut self, cx: &mut Ctx<'_>) {
        let Some(Running::Request(r)) = self.twopc.running.as_ref() else { return };
        match r.wanted.change {
            Change::Disconnect(_) => self.request_over(cx, ss::TIMEOUT),
            _ => self.request_over(cx, ss::CONCURRENT_ST_CHG),
        }
    }

    // ---- asked by the peer -----------------------------------------------------------------------------------------

    /// P_STATE_CHG_REQ about a volume.
    pub(crate) fn state_requested(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, request: ReqState) {
        let begins = begins(request);
        let retcode = match begins {
            Some(_) if self.asks_first(cidx) => ss::CONCURRENT_ST_CHG,
            Some(repl) => self.may_begin(cidx, vidx, repl),
            None => self.judge_84(cidx, request),
        };
        self.send_volume(cx, cidx, vidx, Packet::StateChgReply(RetCode { retcode }));
        match begins {
            _ if retcode < ss::SUCCESS => {}
            None => self.apply_84(cx, cidx, vidx..vidx + 1, request),
            Some(ReplState::VerifyS) => self.verify_begin_target(cx, cidx, vidx),
            Some(repl) => self.full_resync_begins(cidx, vidx, repl == ReplState::StartingSyncT),
        }
    }

    /// Whether the peer may begin to verify, or a resync of everything.
    fn may_begin(&self, cidx: usize, vidx: usize, repl: ReplState) -> i32 {
        let check = match repl {
            ReplState::VerifyS => self.verify_check(cidx, vidx).map(drop),
            repl => self.full_resync_check(cidx, vidx, repl == ReplState::StartingSyncT),
        };
        check.map_or_else(|error| error.code, |()| ss::SUCCESS)
    }

    /// Both ask at once, and the peer is the one to give way.
    fn asks_first(&self, cidx: usize) -> bool {
        let resolves = self.conns[cidx].link.as_ref().is_some_and(|link| link.resolve_conflicts);
        resolves && self.asked_for().is_some()
    }

    /// P_CONN_ST_CHG_REQ about all volumes.
    pub(crate) fn conn_state_requested(&mut self, cx: &mut Ctx<'_>, cidx: usize, request: ReqState) {
        let retcode = self.judge_84(cidx, request);
        self.send(cx, cidx, None, Packet::ConnStChgReply(RetCode { retcode }));
        if retcode >= ss::SUCCESS {
            self.apply_84(cx, cidx, 0..self.volumes.len(), request);
        }
    }

    /// Whether this node agrees.
    fn judge_84(&self, cidx: usize, request: ReqState) -> i32 {
        let ReqState { mask, val } = request;
        if self.asks_first(cidx) {
            return ss::CONCURRENT_ST_CHG;
        }
        let known = StateBits::ROLE.0 | StateBits::CONN.0 | StateBits::DISK.0 | StateBits::PDSK.0;
        let wants_conn = mask.names(StateBits::CONN);
        if mask.0 & !known != 0 || (wants_conn && !leaves(request)) {
            return ss::NOT_SUPPORTED;
        }
        let becomes_primary = mask.names(StateBits::ROLE) && val.role() == Some(Role::Primary);
        if becomes_primary && self.role == Role::Primary && !broken!(TwoPrimaries) {
            return ss::TWO_PRIMARIES;
        }
        ss::SUCCESS
    }

    fn apply_84(&mut self, cx: &mut Ctx<'_>, cidx: usize, volumes: std::ops::Range<usize>, request: ReqState) {
        let ReqState { mask, val } = request;
        if mask.names(StateBits::ROLE)
            && let Some(role) = val.role()
        {
            self.peer_role(cx, cidx, role);
        }
        if mask.names(StateBits::PDSK) && is_outdated(val) && self.role == Role::Secondary {
            for vidx in volumes {
                self.outdated_by_peer(vidx);
            }
        }
        if leaves(request) {
            self.drop_link(cx, cidx, ConnState::TearDown, "the peer disconnected");
        }
    }

    /// A Primary that leaves says that what is here is behind from now on.
    fn outdated_by_peer(&mut self, vidx: usize) {
        let v = &mut self.volumes[vidx];
        if v.disk > DiskState::Outdated && v.has_disk() {
            v.disk = DiskState::Outdated;
            v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
            v.meta.push(Step::SuperBlock);
            self.state_changed = true;
        }
    }
}

/// What a change is called in a request.
fn request_for(change: Change) -> ReqState {
    let role = StateBits::of_role(Role::Primary).0;
    let conn = |conn: ConnField| (StateBits::CONN.0, StateBits::of_conn(conn).0);
    let (mask, val) = match change {
        Change::Promote { force: true } => (StateBits::ROLE.0 | StateBits::DISK.0, role | UP_TO_DATE),
        Change::Promote { force: false } => (StateBits::ROLE.0, role),
        Change::Verify(_) => conn(ReplState::VerifyS.into()),
        Change::FullSync(plan) => conn(plan.wanted().into()),
        _ => conn(ConnState::Disconnecting.into()),
    };
    ReqState { mask: StateBits(mask), val: StateBits(val) }
}

/// The sender wants to verify, or that its data (StartingSyncT) or ours (StartingSyncS) is given up.
fn begins(request: ReqState) -> Option<ReplState> {
    let repl = request.val.conn().and_then(|conn| conn.repl_state())?;
    let begins = matches!(repl, ReplState::VerifyS | ReplState::StartingSyncS | ReplState::StartingSyncT);
    (request.mask == StateBits::CONN && begins).then_some(repl)
}

/// The sender disconnects.
fn leaves(request: ReqState) -> bool {
    request.mask.names(StateBits::CONN)
        && request.val.conn().and_then(|conn| conn.conn_state()) == Some(ConnState::Disconnecting)
}

/// 5 is 8.4's number of Outdated, 6 that of 9, which does not shift in requests.
fn is_outdated(val: StateBits) -> bool {
    matches!((val.0 & StateBits::PDSK.0) >> 13, 5 | 6)
}
