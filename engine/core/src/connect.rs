//! The life of a link: features, authentication, P_PROTOCOL, keepalive, loss (wire-protocol.md 2.3, 4, 6; handshake-and-states.md 3.2).

use zea_wire::auth::{self, HmacAlg};
use zea_wire::features::{ConnectionFeatures, Features, NegotiateError, Negotiated};
use zea_wire::ids::NodeId;
use zea_wire::packet::{AuthChallenge, AuthResponse, Packet};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use crate::connection::{Link, LinkPhase};
use crate::dialect;
use crate::event::Severity;
use crate::io::{Action, LinkId, LinkLost, Time};
use crate::limits;
use crate::resource::{Ctx, Resource};
use crate::settings::Settings;

/// What no peer may lack: this node sends discards, and sizes with queue limits, without asking.
const NEEDED: Features = Features(Features::TRIM.0 | Features::WSAME.0 | Features::WZEROES.0);

/// What a node offers beside the features of 8.4.
const OFFERED: [Features; 3] = [Features::RESYNC_DAGTAG, Features::TWOPC_V2, Features::RS_SKIP_UUID];

impl Resource {
    /// Both streams are up: send our features.
    pub(crate) fn link_up(&mut self, cx: &mut Ctx<'_>, peer: NodeId, id: LinkId, resolve_conflicts: bool) {
        let Some(cidx) = self.cidx(peer) else { return };
        let own = self.own_features(cidx);
        let c = &mut self.conns[cidx];
        if c.link.is_some() || c.state != ConnState::Connecting {
            cx.out.push(Action::Disconnect { peer });
            return;
        }
        let settings = Settings::new(&c.config.net, c.discard_my_data);
        c.link = Some(Link {
            id,
            resolve_conflicts,
            phase: LinkPhase::Features,
            phase_deadline: Some(cx.now.plus_ms(4 * c.config.net.ping_timeout_ms)),
            own_features: own,
            negotiated: Negotiated::INITIAL,
            own_challenge: [0; 64],
            settings,
            states_sent: false,
            prepares_sent: 0,
            last_received: cx.now,
            ping_sent: None,
            last_ping: cx.now,
            alive_at: None,
            pings: 0,
            ping_acks: 0,
            of_primary: false,
        });
        c.begin_epochs(id);
        self.send(cx, cidx, None, Packet::ConnectionFeatures(Box::new(own)));
    }

    fn own_features(&self, cidx: usize) -> ConnectionFeatures {
        let c = &self.conns[cidx];
        let mut features = Features::EMPTY;
        for f in dialect::FEATURES {
            features.set(f, true);
        }
        for f in OFFERED.into_iter().filter(|_| c.config.net.protocol_max >= limits::PROTOCOL_MIN) {
            features.set(f, true);
        }
        if c.config.net.keep_bits {
            features.set(Features::ZEA_KEEP_BITS, true);
        }
        ConnectionFeatures {
            // Older ones know no third node.
            protocol_min: match self.conns.len() {
                1 => dialect::oldest(c.config.net.protocol_max),
                _ => limits::PROTOCOL_MIN,
            },
            feature_flags: features,
            protocol_max: c.config.net.protocol_max,
            sender_node_id: u32::from(self.config.node_id.0),
            receiver_node_id: u32::from(c.node().0),
        }
    }

    pub(crate) fn phase(&mut self, cidx: usize, phase: LinkPhase, deadline: Option<Time>) {
        let link = self.conns[cidx].link.as_mut().expect("a packet came on it");
        link.phase = phase;
        link.phase_deadline = deadline;
    }

    /// P_CONNECTION_FEATURES.
    pub(crate) fn features(&mut self, cx: &mut Ctx<'_>, cidx: usize, peer: &ConnectionFeatures) {
        let link = self.conns[cidx].link.as_mut().expect("a packet came on it");
        if link.phase != LinkPhase::Features {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "features sent twice");
        }
        let negotiated = match zea_wire::features::negotiate(&link.own_features, peer) {
            Ok(n) => n,
            Err(e @ NegotiateError::NodeIdMismatch { .. }) => {
                let text = format!("refused: {e}");
                return self.drop_link(cx, cidx, ConnState::ProtocolError, &text);
            }
            Err(e) => return self.stand_alone(cx, cidx, &format!("refused: {e}")),
        };
        let lacks = NEEDED.without(negotiated.features);
        if !lacks.is_empty() {
            let why = format!("refused: the peer lacks {lacks}; DRBD 8.4.10, 9.1 and newer have all that is needed");
            return self.stand_alone(cx, cidx, &why);
        }
        link.negotiated = negotiated;
        if let Some(why) = self.lacks_volumes(negotiated.version) {
            return self.stand_alone(cx, cidx, &format!("refused: {why}"));
        }
        let (peer_id, id) = (self.conns[cidx].node(), self.conns[cidx].link.as_ref().expect("above").id);
        cx.out.push(Action::SetNegotiated { peer: peer_id, link: id, negotiated });
        let c = &self.conns[cidx];
        let deadline = Some(cx.now.plus_ms(10 * c.config.net.ping_timeout_ms));
        if c.config.net.cram_hmac_alg.is_some() {
            let mut challenge = [0; 64];
            for chunk in challenge.chunks_exact_mut(8) {
                chunk.copy_from_slice(&cx.rng.next_u64().to_be_bytes());
            }
            self.conns[cidx].link.as_mut().expect("above").own_challenge = challenge;
            self.phase(cidx, LinkPhase::AuthChallenge, deadline);
            self.send(cx, cidx, None, Packet::AuthChallenge(AuthChallenge { challenge: Box::new(challenge) }));
        } else {
            self.phase(cidx, LinkPhase::Protocol, deadline);
            self.send_protocol(cx, cidx);
        }
    }

    /// The node id that goes into an authentication response: 8.4 has none.
    fn id_in_response(&self, cidx: usize, node: NodeId) -> Option<NodeId> {
        (!self.conns[cidx].speaks_84()).then_some(node)
    }

    fn hmac_alg(&self, cidx: usize) -> Option<HmacAlg> {
        self.conns[cidx].config.net.cram_hmac_alg.as_deref().and_then(HmacAlg::from_name)
    }

    /// P_AUTH_CHALLENGE: answer it.
    pub(crate) fn auth_challenge(&mut self, cx: &mut Ctx<'_>, cidx: usize, challenge: &[u8; 64]) {
        let own_id = self.config.node_id;
        let link = self.conns[cidx].link.as_ref().expect("a packet came on it");
        if link.phase != LinkPhase::AuthChallenge {
            return self.drop_link(
                cx,
                cidx,
                ConnState::ProtocolError,
                "the peer wants authentication (cram-hmac-alg), this node has none configured for it",
            );
        }
        if auth::check_challenge(&link.own_challenge, challenge).is_err() {
            return self.stand_alone(cx, cidx, "authentication refused: the peer reflects our challenge");
        }
        let Some(alg) = self.hmac_alg(cidx) else {
            return self.stand_alone(cx, cidx, "cram-hmac-alg is not known: use sha1, sha256 or sha512");
        };
        let secret = self.conns[cidx].config.net.shared_secret.clone();
        let id = self.id_in_response(cidx, own_id);
        let response = auth::respond(alg, secret.as_bytes(), challenge, id);
        let deadline = Some(cx.now.plus_ms(10 * self.conns[cidx].config.net.ping_timeout_ms));
        self.phase(cidx, LinkPhase::AuthResponse, deadline);
        self.send(cx, cidx, None, Packet::AuthResponse(AuthResponse { response }));
    }

    /// P_AUTH_RESPONSE: check it.
    pub(crate) fn auth_response(&mut self, cx: &mut Ctx<'_>, cidx: usize, response: &[u8]) {
        let link = self.conns[cidx].link.as_ref().expect("a packet came on it");
        if link.phase != LinkPhase::AuthResponse {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "authentication response without a challenge");
        }
        let challenge = link.own_challenge;
        let alg = self.hmac_alg(cidx).expect("checked with the challenge");
        let c = &self.conns[cidx];
        let id = self.id_in_response(cidx, c.node());
        if auth::check_response(alg, c.config.net.shared_secret.as_bytes(), &challenge, id, response).is_err() {
            return self.stand_alone(
                cx,
                cidx,
                "authentication of the peer failed: shared-secret or cram-hmac-alg differ",
            );
        }
        let deadline = Some(cx.now.plus_ms(10 * c.config.net.ping_timeout_ms));
        self.phase(cidx, LinkPhase::Protocol, deadline);
        self.send_protocol(cx, cidx);
    }

    // ---- keepalive and timers ------------------------------------------------------------------------------------

    /// Something arrived on the control stream.
    pub(crate) fn heard(&mut self, cx: &Ctx<'_>, cidx: usize) {
        if let Some(link) = self.conns[cidx].link.as_mut() {
            link.last_received = cx.now;
        }
    }

    /// Ask the peer for a sign of life; the number of its P_PING_ACK.
    pub(crate) fn ping(&mut self, cx: &mut Ctx<'_>, cidx: usize) -> u64 {
        let now = cx.now;
        self.send(cx, cidx, None, Packet::Ping);
        let Some(link) = self.conns[cidx].link.as_mut() else { return u64::MAX };
        link.pings += 1;
        link.last_ping = now;
        link.ping_sent.get_or_insert(now);
        link.pings
    }

    pub(crate) fn ping_ack(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let Some(link) = self.conns[cidx].link.as_mut() else { return };
        link.ping_acks += 1;
        if link.ping_acks == link.pings {
            link.alive_at = Some(link.last_ping);
        }
        link.ping_sent = if link.ping_acks < link.pings { Some(cx.now) } else { None };
        self.heard_voter(cx);
    }

    /// Everything that is due.
    pub(crate) fn timers(&mut self, cx: &mut Ctx<'_>) {
        for cidx in 0..self.conns.len() {
            self.link_timers(cx, cidx);
            self.request_timeout(cx, cidx);
            let c = &mut self.conns[cidx];
            if c.retry_at.is_some_and(|t| cx.now >= t) {
                c.retry_at = None;
                self.want_connect(cidx);
            }
            if self.conns[cidx].link_not_before.is_some_and(|t| cx.now >= t) {
                self.lost_peer_drained(cx, cidx);
            }
        }
        self.retry_no_space(cx);
        self.quorum_timers(cx);
        for vidx in 0..self.volumes.len() {
            if self.volumes[vidx].hold_until.is_some_and(|t| cx.now >= t) {
                self.volumes[vidx].hold_until = None;
                self.release_held(cx, vidx);
            }
        }
    }

    fn link_timers(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let c = &self.conns[cidx];
        let Some(link) = &c.link else { return };
        if link.phase_deadline.is_some_and(|t| cx.now >= t) {
            let why = match link.phase {
                LinkPhase::Features => "no P_CONNECTION_FEATURES from the peer in time",
                LinkPhase::AuthChallenge | LinkPhase::AuthResponse => "no authentication from the peer in time",
                LinkPhase::Protocol => "no P_PROTOCOL from the peer in time",
                LinkPhase::Refused => return self.refuse_connection(cx, cidx),
                LinkPhase::Connecting | LinkPhase::Up => "the peer did not tell the state of every volume in time",
            };
            let why = self.silent_volume(cx.now, cidx).unwrap_or_else(|| why.to_owned());
            return self.drop_link(cx, cidx, ConnState::NetworkFailure, &why);
        }
        if link.phase < LinkPhase::Connecting {
            return;
        }
        if let Some(since) = link.ping_sent {
            if cx.now >= since.plus_ms(c.config.net.ping_timeout_ms) {
                self.drop_link(cx, cidx, ConnState::NetworkFailure, "no P_PING_ACK in time");
            }
        } else if cx.now >= link.last_received.plus_ms(c.config.net.ping_int_ms) {
            self.ping(cx, cidx);
        }
    }

    /// The oldest unanswered request or barrier of a peer is too old (wire-protocol.md 2.3).
    fn request_timeout(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        if self.request_deadline(cidx).is_some_and(|t| cx.now >= t) {
            self.drop_link(cx, cidx, ConnState::Timeout, "a write was not answered within ko-count * timeout");
        }
    }

    fn request_deadline(&self, cidx: usize) -> Option<Time> {
        let c = &self.conns[cidx];
        let ms = c.config.net.timeout_ms * u64::from(c.config.net.ko_count);
        if !c.is_up() || ms == 0 {
            return None;
        }
        let node = c.node();
        // The log is in order of time; its head tells, so that this stays cheap with thousands of entries.
        let head = self.transfer_log.front().map(|&i| &self.writes[i]);
        let write = head.filter(|w| w.waits.contains(node)).map(|w| w.since);
        let barrier = c.send.unacked.front().map(|b| b.2);
        [write, barrier].into_iter().flatten().min().map(|t| t.plus_ms(ms))
    }

    /// The earliest instant at which something is due.
    pub(crate) fn next_timer(&self, now: Time) -> Option<Time> {
        let mut next: Option<Time> = None;
        let mut add = |t: Option<Time>| {
            if let Some(t) = t {
                next = Some(next.map_or(t, |n: Time| n.min(t)));
            }
        };
        for (cidx, c) in self.conns.iter().enumerate() {
            add(c.retry_at);
            add(c.link_not_before.filter(|_| c.state == ConnState::Unconnected && c.active_peer_reqs == 0));
            add(self.request_deadline(cidx));
            if let Some(link) = &c.link {
                add(link.phase_deadline);
                if link.phase >= LinkPhase::Connecting {
                    add(Some(match link.ping_sent {
                        Some(t) => t.plus_ms(c.config.net.ping_timeout_ms),
                        None => link.last_received.plus_ms(c.config.net.ping_int_ms),
                    }));
                }
            }
        }
        for v in &self.volumes {
            add(v.hold_until);
        }
        add((self.epoch_writes > 0 && self.may_close_epoch()).then(|| self.epoch_since.plus_ms(limits::EPOCH_AGE_MS)));
        add(self.peer_ack.map(|p| p.since.plus_ms(limits::PEER_ACK_DELAY_MS)));
        add(self.next_no_space_retry());
        add(self.twopc.deadline());
        add(self.recheck_at);
        add(self.next_quorum_timer());
        add(self.primary_back_by);
        add(self.next_throttled());
        for pd in self.conns.iter().flat_map(|c| &c.pds) {
            add(pd.verify.due);
            add(pd.resync.as_ref().and_then(|r| r.retry_at).filter(|&t| t > now));
        }
        next
    }

    // ---- loss ------------------------------------------------------------------------------------------------------

    /// The runtime lost a link.
    pub(crate) fn link_down(&mut self, cx: &mut Ctx<'_>, peer: NodeId, id: LinkId, lost: LinkLost) {
        let Some(cidx) = self.cidx(peer) else { return };
        if self.conns[cidx].link.as_ref().map(|l| l.id) != Some(id) {
            return;
        }
        let (state, why) = match lost {
            LinkLost::Closed => (ConnState::BrokenPipe, "the peer closed the connection".to_owned()),
            LinkLost::Network(e) => (ConnState::NetworkFailure, e),
            LinkLost::Protocol(e) => (ConnState::ProtocolError, e),
            LinkLost::SendTimeout => (ConnState::Timeout, "sending made no progress in time".to_owned()),
        };
        self.link_lost(cx, cidx, state, &why);
    }

    /// Everything that the end of a link means. The connection is tried again unless it is to be StandAlone.
    pub(crate) fn link_lost(&mut self, cx: &mut Ctx<'_>, cidx: usize, state: ConnState, why: &str) {
        // A peer that refused us, and that we refused, closes: its P_DISCONNECT may be lost with the link.
        let refused = state == ConnState::BrokenPipe || self.in_phase(cidx, LinkPhase::Refused);
        let refusal = self.conns[cidx].refusal.take().filter(|_| refused);
        // The peer may have given up for the same reason, a moment before.
        let silent = self.silent_volume(cx.now, cidx).filter(|_| state == ConnState::BrokenPipe);
        let why = silent.as_deref().unwrap_or(why);
        for vidx in 0..self.volumes.len() {
            self.target_may_have_finished(cidx, vidx);
        }
        let c = &mut self.conns[cidx];
        let node = c.node();
        let was_up = c.is_up();
        let was_84 = c.speaks_84();
        c.ignores_bits = if was_up { !c.keeps_bits() } else { c.ignores_bits };
        let ignores_bits = c.ignores_bits;
        let was_primary = was_up && c.role == Role::Primary;
        let graceful = matches!(state, ConnState::TearDown | ConnState::Disconnecting);
        if !graceful {
            let severity = if was_up { Severity::Error } else { Severity::Warning };
            cx.notice(severity, format!("connection to {} (node {node}): {state}: {why}", c.config.name));
            c.last_error = Some(why.to_owned());
        }
        c.state = ConnState::Unconnected;
        c.was_connected |= was_up;
        c.link_not_before = (state == ConnState::ProtocolError).then(|| cx.now.plus_ms(limits::REFUSED_RETRY_MS));
        c.reset_link();
        self.state_changed = true;
        for vidx in 0..self.volumes.len() {
            self.peer_device_lost(cx, cidx, vidx, was_up);
        }
        if was_up {
            self.quorum_lost_peer(cx, cidx, state == ConnState::TearDown);
        }
        self.twopc_lost_peer(cx, node);
        self.kept_lost_origin(cx, cidx);
        self.peer_reqs_lost_link(cx, cidx);
        if was_up {
            self.writes_lost_peer(cx, node, ignores_bits);
            if ignores_bits && was_84 {
                self.rename_without_84(cx, cidx);
            }
        }
        if was_primary {
            self.lost_primary = Some(node);
            match state {
                ConnState::Disconnecting => {}
                ConnState::TearDown => self.primary_away(cx),
                _ => self.primary_lost(),
            }
        }
        for vidx in 0..self.volumes.len() {
            self.maybe_clear_primary_ind(vidx);
        }
        self.dagtag_arrived(cx);
        if let Some(why) = refusal {
            return self.stand_alone(cx, cidx, &why);
        }
        if self.conns[cidx].active_peer_reqs == 0 {
            self.lost_peer_drained(cx, cidx);
        }
    }

    fn peer_device_lost(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, was_up: bool) {
        let (role, node) = (self.role, self.conns[cidx].node());
        let pd = &mut self.conns[cidx].pds[vidx];
        let had_disk = pd.disk >= DiskState::Inconsistent && pd.disk != DiskState::DUnknown;
        // One that was being resynced may have finished.
        pd.is_behind &= pd.repl <= ReplState::Established;
        pd.repl = ReplState::Off;
        pd.paused_by.peer = false;
        pd.serves_at = None;
        self.volumes[vidx].unconfirmed.remove(node);
        self.verify_interrupt(cx, cidx, vidx);
        let pd = &mut self.conns[cidx].pds[vidx];
        if pd.disk > DiskState::Outdated || pd.disk < DiskState::Inconsistent {
            pd.disk = DiskState::DUnknown;
        }
        pd.says = Default::default();
        pd.states_heard = 0;
        pd.decision = None;
        pd.finishing = false;
        pd.bitmap_in = None;
        let resync = pd.resync.take();
        if let Some(r) = resync {
            for (_, q) in r.in_flight.iter().filter(|(_, q)| !q.answered) {
                self.volumes[vidx].intervals.remove(q.interval);
            }
        }
        self.volumes[vidx].retry_waiters = true;
        if was_up && role == Role::Primary && had_disk {
            self.volumes[vidx].new_uuid_needed = true;
        }
        if was_up {
            self.volumes[vidx].meta.push(crate::meta_queue::Step::Bitmap);
        }
        self.generation_stays_unknown(cx, vidx);
        self.resync_choose_target(cx, vidx);
    }

    /// No disk write of the old link is running any more: connect again, and compare with the other survivors.
    pub(crate) fn lost_peer_drained(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        if self.conns[cidx].active_peer_reqs > 0 || self.conns[cidx].link.is_some() {
            return;
        }
        let may_dial = self.conns[cidx].link_not_before.is_none_or(|t| cx.now >= t);
        if self.conns[cidx].state == ConnState::Unconnected && may_dial {
            self.conns[cidx].link_not_before = None;
            self.conns[cidx].state = ConnState::Connecting;
            self.state_changed = true;
            cx.out.push(Action::Connect { peer: self.conns[cidx].node() });
        }
        self.reconcile(cx);
    }

    /// Give a connection up until an administrator says otherwise.
    pub(crate) fn stand_alone(&mut self, cx: &mut Ctx<'_>, cidx: usize, why: &str) {
        let peer = self.conns[cidx].node();
        cx.notice(
            Severity::Error,
            format!("connection to {} (node {peer}): StandAlone: {why}", self.conns[cidx].config.name),
        );
        cx.out.push(Action::Disconnect { peer });
        if self.conns[cidx].link.is_some() {
            self.link_lost(cx, cidx, ConnState::Disconnecting, why);
            cx.out.push(Action::Disconnect { peer });
        }
        let c = &mut self.conns[cidx];
        c.last_error = Some(why.to_owned());
        c.state = ConnState::StandAlone;
        c.retry_at = None;
        c.discard_my_data = false;
        self.state_changed = true;
    }

    /// A connection by index of which the link is in this phase.
    pub(crate) fn in_phase(&self, cidx: usize, phase: LinkPhase) -> bool {
        self.conns[cidx].link.as_ref().is_some_and(|l| l.phase == phase)
    }
}
