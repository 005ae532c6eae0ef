//! The handshake of a volume: sizes, UUIDs and states are exchanged, compared, and the outcome applied at the commit of the
//! connect transaction (handshake-and-states.md 3.2, 3.3, 5).

mod compare;

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::flags::{DeviceFlags, PeerFlags};
use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::{CurrentUuid, Packet, QueueLimits, Sizes, State};
use zea_wire::state::{ConnField, ConnState, DiskState, ReplState, Role, StateBits, StateWord};

use crate::connection::{Connection, LinkPhase};
use crate::event::Severity;
use crate::io::{Action, Time};
use crate::limits;
use crate::meta_queue::{Step, Then};
use crate::quorum::is_behind;
use crate::resource::{Ctx, Resource};
use crate::twopc::Verdict;

/// What was decided about a volume.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Decision {
    /// No resync. `unverified`: bits are set that the peer ignores.
    Established { unverified: bool },
    /// This node is the source; `full`: of everything; `copy_from`: its bits are those towards another node.
    Source { full: bool, copy_from: Option<NodeId> },
    /// This node is the target.
    Target { full: bool },
    /// Not now.
    Retry,
    /// Never, until somebody acts: why.
    Refuse(String),
}

impl Resource {
    /// Send our side of the handshake for every volume.
    pub(crate) fn handshake_send(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        self.handshake_reset_decisions(cidx);
        self.conns[cidx].refusal = None;
        self.withdraw_generations();
        let deadline = cx.now.plus_ms(10 * self.conns[cidx].config.net.ping_timeout_ms);
        let link = self.conns[cidx].link.as_mut().expect("a link that connects");
        link.states_sent = true;
        link.phase_deadline = Some(deadline);
        self.handshake_packets(cx, cidx);
        // A resource without volumes is compared at once.
        self.handshake_progress(cx);
    }

    /// Sizes, UUIDs and state of every volume.
    pub(crate) fn handshake_packets(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        for vidx in 0..self.volumes.len() {
            let param = self.own_sync_param(cidx, vidx);
            let param = self.conns[cidx].sync_param_packet(param);
            self.send_volume(cx, cidx, vidx, param);
            let sizes = self.own_sizes(cidx, vidx);
            self.send_volume(cx, cidx, vidx, Packet::Sizes(Box::new(sizes)));
            self.tell_former_generations(cx, cidx, vidx);
            let weak = match self.role {
                Role::Primary => {
                    self.mark_kept(cx, cidx, vidx);
                    self.weak_nodes(vidx)
                }
                _ => NodeMask::EMPTY,
            };
            self.send_uuids_to(cx, cidx, vidx, UuidFlags::EMPTY, weak);
            let sent = self.volumes[vidx]
                .attached
                .is_some()
                .then(|| self.uuids_for(cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY));
            self.conns[cidx].pds[vidx].sent_uuids = sent;
            self.tell_exposed_uuid(cx, cidx, vidx);
            self.tell_unfinished(cx, cidx, vidx);
            self.conns[cidx].pds[vidx].sent_shown = self.shown_uuids(vidx);
            self.conns[cidx].pds[vidx].sent_state = (self.role, self.volumes[vidx].disk);
            self.conns[cidx].pds[vidx].sent_quorum = self.volumes[vidx].standing.has_quorum();
            self.send_state(cx, cidx, vidx);
        }
    }

    /// The generations that a peer is shown: of the own data, and of what this node serves as Primary.
    fn shown_uuids(&self, vidx: usize) -> (u64, u64) {
        let v = &self.volumes[vidx];
        let serves = if self.serves_peers(vidx) { v.exposed_uuid } else { 0 };
        (v.current_uuid(), serves)
    }

    /// A Primary serves the data of its peers.
    pub(crate) fn serves_peers(&self, vidx: usize) -> bool {
        let v = &self.volumes[vidx];
        self.role == Role::Primary && v.disk != DiskState::UpToDate && v.exposed_uuid != 0
    }

    /// A Primary that serves the data of its peers tells a Zea peer which generations are as good as the one that it tells last.
    fn tell_former_generations(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let lacks = self.volumes[vidx].lacking.contains(self.conns[cidx].node());
        let tells = self.serves_peers(vidx) && self.conns[cidx].keeps_bits() && !lacks;
        let former = if tells { self.volumes[vidx].former.clone() } else { Vec::new() };
        for &uuid in &former {
            let packet = Packet::CurrentUuid(CurrentUuid { uuid, weak_nodes: NodeMask::EMPTY });
            self.send_volume(cx, cidx, vidx, packet);
        }
        self.conns[cidx].pds[vidx].sent_former = former;
    }

    /// A peer that connects may be told by this Primary that a former generation is as good, since nothing has been acknowledged after it.
    /// That holds until the peer gets what is written, so nothing is written before. (If something was, the comparison holds no longer.)
    pub(crate) fn tells_former(&self, vidx: usize) -> bool {
        let connects =
            |c: &Connection| c.link.as_ref().is_some_and(|l| l.phase == LinkPhase::Connecting && l.states_sent);
        let told = || self.conns.iter().any(|c| connects(c) && !c.pds[vidx].sent_former.is_empty());
        !self.volumes[vidx].former.is_empty() && told()
    }

    /// What has been told of former generations may not hold at the commit: one that the peer does not get is under way, or is acknowledged.
    fn former_is_past(&self, cidx: usize, vidx: usize) -> bool {
        let sent = &self.conns[cidx].pds[vidx].sent_former;
        let writes = || self.transfer_log.iter().any(|&w| self.writes[w].vidx == vidx && !self.writes[w].completed);
        !sent.is_empty() && (*sent != self.volumes[vidx].former || writes())
    }

    /// A Primary whose own disk is behind serves the data of its peers: say which generation that is.
    fn tell_exposed_uuid(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let c = &self.conns[cidx];
        let tells = c.keeps_bits() && !c.speaks_84();
        if self.serves_peers(vidx) && self.volumes[vidx].attached.is_some() && tells {
            let packet = self.exposed(cidx, vidx);
            self.send_volume(cx, cidx, vidx, Packet::CurrentUuid(packet));
        }
    }

    pub(crate) fn own_sizes(&self, cidx: usize, vidx: usize) -> Sizes {
        let v = &self.volumes[vidx];
        let (d_size, block, discard) = match &v.attached {
            Some(a) => (a.layout.usable_sectors, a.backing.logical_block_bytes, a.backing.discard),
            None => (0, 512, false),
        };
        Sizes {
            d_size,
            u_size: v.config.size_sectors.unwrap_or(0),
            c_size: v.size_sectors,
            max_bio_size: self.conns[cidx].max_bio_bytes(),
            queue_order_type: 0,
            dds_flags: Default::default(),
            qlim: Some(QueueLimits {
                physical_block_size: 4096,
                logical_block_size: block,
                alignment_offset: 0,
                io_min: block,
                io_opt: 0,
                discard_enabled: u8::from(discard),
                discard_zeroes_data: 0,
                write_same_capable: 0,
                bm_block_shift_minus_12: 0,
            }),
        }
    }

    /// The state word of a volume for a peer.
    fn state_word(&self, cidx: usize, vidx: usize, conn: ConnField) -> StateBits {
        let c = &self.conns[cidx];
        let pd = &c.pds[vidx];
        let version = c.version();
        StateWord {
            role: self.role,
            peer: c.role,
            conn,
            disk: self.volumes[vidx].disk,
            pdsk: pd.disk,
            user_isp: pd.paused_by.user,
            peer_isp: pd.paused_by.peer,
            aftr_isp: pd.paused_by.dependency,
            quorum: self.volumes[vidx].standing.has_quorum(),
            ..StateWord::default()
        }
        .bits(version)
    }

    pub(crate) fn send_state(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let c = &self.conns[cidx];
        let conn =
            if c.is_up() { ConnField::from(c.pds[vidx].shown_repl()) } else { ConnField::from(ConnState::Connecting) };
        let bits = self.state_word(cidx, vidx, conn);
        self.send_volume(cx, cidx, vidx, Packet::State(State { state: bits }));
    }

    /// Say that this node is about to close the connection and to connect again.
    pub(crate) fn announce_tear_down(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let bits = self.state_word(cidx, 0, ConnField::from(ConnState::TearDown));
        self.send_volume(cx, cidx, 0, Packet::State(State { state: bits }));
    }

    /// Tell every connected peer when the local disk changed.
    pub(crate) fn tell_disk_state(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let told = self.volumes[vidx].told_disk == self.volumes[vidx].disk;
        // 8.4 compares UUIDs when it hears of a disk: the new ones go first.
        let early = self.volumes[vidx].new_uuid_running && self.peer_84().is_some();
        if told || early || broken!(SkipPeerStates) {
            return;
        }
        self.volumes[vidx].told_disk = self.volumes[vidx].disk;
        if self.volumes[vidx].disk == DiskState::Outdated {
            self.gets_no_longer_all(vidx);
        }
        for cidx in self.up_conns() {
            self.send_state(cx, cidx, vidx);
        }
    }

    /// Tell every connected peer the state of every volume.
    pub(crate) fn send_states(&mut self, cx: &mut Ctx<'_>) {
        for cidx in self.up_conns() {
            for vidx in 0..self.volumes.len() {
                self.send_state(cx, cidx, vidx);
            }
        }
    }

    /// Forget what was decided; a new round begins.
    pub(crate) fn handshake_reset_decisions(&mut self, cidx: usize) {
        for pd in &mut self.conns[cidx].pds {
            pd.decision = None;
        }
    }

    /// The connect transaction was aborted. A link that was made anew meanwhile, and is not as far, has no part in it.
    pub(crate) fn handshake_reset(&mut self, cidx: usize) {
        self.handshake_reset_decisions(cidx);
        if let Some(link) = self.conns[cidx].link.as_mut().filter(|link| link.phase == LinkPhase::Connecting) {
            link.states_sent = false;
            link.phase_deadline = None;
        }
        self.volumes.iter_mut().for_each(|v| v.retry_waiters = true);
    }

    /// A volume of which the peer says nothing, although the handshake has waited for it for a while: the peer does not have it.
    pub(crate) fn silent_volume(&self, now: Time, cidx: usize) -> Option<String> {
        let c = &self.conns[cidx];
        let link = c.link.as_ref().filter(|link| link.phase == LinkPhase::Connecting && link.states_sent)?;
        let waits_since =
            Time(link.phase_deadline?.0.saturating_sub(Time(0).plus_ms(10 * c.config.net.ping_timeout_ms).0));
        let silent = c.pds.iter().position(|pd| pd.decision.is_none())?;
        (now.ms_since(waits_since) >= limits::SILENT_VOLUME_MS).then(|| {
            format!(
                "the peer says nothing of volume {}: both nodes must have the same volume numbers",
                self.volumes[silent].nr
            )
        })
    }

    /// P_STATE during the handshake: everything about this volume is here, compare.
    pub(crate) fn handshake_state(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord) {
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.is_behind = is_behind(state.disk);
        pd.says.state = Some(state);
        pd.states_heard += 1;
        if !self.is_of_this_round(cidx, vidx) {
            return;
        }
        let decision = self.compare(cx, cidx, vidx, state);
        if let Decision::Refuse(why) = &decision {
            self.conns[cidx].refusal = Some(why.clone());
            cx.notice(
                Severity::Error,
                format!("node {} volume {}: {why}", self.conns[cidx].node(), self.volumes[vidx].nr),
            );
        }
        self.conns[cidx].pds[vidx].decision = Some(decision);
        if self.conns[cidx].speaks_84() {
            return self.connect_84(cx, cidx);
        }
        self.handshake_progress(cx);
        self.refuse_without_vote(cx, cidx);
    }

    /// The transaction in which the two compared is over already, since one of them was busy. That they refuse each other both know now,
    /// and no vote would change it.
    fn refuse_without_vote(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let votes = self.twopc.connects(self.conns[cidx].node()) && !self.decides_alone(cidx);
        let waits = self.in_phase(cidx, LinkPhase::Connecting) && !votes;
        if waits && self.conns[cidx].keeps_bits() && self.handshake_verdict(cidx) == Some(Verdict::No) {
            self.handshake_reset(cidx);
            self.send(cx, cidx, None, Packet::Disconnect);
            self.refuse_connection(cx, cidx);
        }
    }

    /// What was heard may be of a round that was aborted, when this node is the initiator: the target's answers to its transactions
    /// and their abort cross. A Zea target sends its states once for each P_TWOPC_PREPARE.
    fn is_of_this_round(&self, cidx: usize, vidx: usize) -> bool {
        let c = &self.conns[cidx];
        let pd = &c.pds[vidx];
        let initiator = self.config.node_id < c.node() && !c.speaks_84();
        let asked = c.link.as_ref().map_or(0, |link| link.prepares_sent);
        let complete = pd.says.sizes.is_some();
        !initiator || if c.keeps_bits() { pd.states_heard == asked } else { complete }
    }

    /// Whoever waits for the comparison goes on.
    fn handshake_progress(&mut self, cx: &mut Ctx<'_>) {
        self.twopc_answer(cx);
        self.twopc_decide(cx);
    }

    /// The result over all volumes, `None` while some are missing.
    pub(crate) fn handshake_verdict(&self, cidx: usize) -> Option<Verdict> {
        let c = &self.conns[cidx];
        if c.link.is_none() {
            return Some(Verdict::Retry);
        }
        let mut verdict = Verdict::Yes;
        for (vidx, pd) in c.pds.iter().enumerate() {
            verdict = verdict.max(match pd.decision.as_ref()? {
                Decision::Refuse(_) => Verdict::No,
                Decision::Retry => Verdict::Retry,
                // The peer decided on what it was told: that must still hold.
                _ if pd.sent_shown != self.shown_uuids(vidx) => Verdict::Retry,
                _ if pd.sent_state != (self.role, self.volumes[vidx].disk) => Verdict::Retry,
                _ if self.former_is_past(cidx, vidx) => Verdict::Retry,
                _ if self.volumes[vidx].names_generation() && !c.speaks_84() => Verdict::Retry,
                _ => Verdict::Yes,
            });
        }
        Some(verdict)
    }

    /// One of the two nodes refuses: both give up.
    pub(crate) fn refuse_connection(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let why = self.conns[cidx]
            .refusal
            .take()
            .unwrap_or_else(|| "the peer refused the connection; its log says why".to_owned());
        self.stand_alone(cx, cidx, &why);
    }

    // ---- the commit ------------------------------------------------------------------------------------------------

    /// The connect transaction is committed.
    pub(crate) fn connected(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let now = cx.now;
        let c = &mut self.conns[cidx];
        let Some(link) = c.link.as_mut() else { return };
        link.phase = LinkPhase::Up;
        link.phase_deadline = None;
        link.last_received = now;
        c.state = ConnState::Connected;
        c.last_error = None;
        c.refusal = None;
        (c.retry_at, c.back_by) = (None, None);
        c.role = c.pds.iter().find_map(|pd| pd.says.state).map_or(Role::Secondary, |s| s.role);
        if c.role == Role::Primary {
            link.of_primary = true;
            self.primary_back_by = None;
            self.lost_primary.take_if(|lost| *lost == c.config.node_id);
        }
        self.state_changed = true;
        self.recheck_at = Some(now.plus_ms(limits::RECHECK_MS));
        self.close_epoch();
        for vidx in 0..self.volumes.len() {
            self.conns[cidx].pds[vidx].begin();
            self.volumes[vidx].may_have_finished.remove(self.conns[cidx].node());
            self.apply_decision(cx, cidx, vidx);
            let v = &self.volumes[vidx];
            self.conns[cidx].pds[vidx].gets_all = v.has_disk() && v.disk != DiskState::Outdated;
            self.await_confirmation(vidx);
        }
        let tells_uuids = !self.conns[cidx].speaks_84();
        for vidx in 0..self.volumes.len() {
            if tells_uuids {
                self.send_uuids_to(cx, cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
            }
            self.send_state(cx, cidx, vidx);
        }
        self.send_dagtag(cx, cidx);
        self.send_dagtags(cx);
        for vidx in 0..self.volumes.len() {
            if self.conns[cidx].speaks_84() {
                self.connected_without_disk(vidx);
            }
            self.start_bitmap_exchange(cx, cidx, vidx);
            self.volumes[vidx].hold_until = None;
            self.release_held(cx, vidx);
        }
    }

    pub(crate) fn apply_decision(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let Some(decision) = self.conns[cidx].pds[vidx].decision.take() else { return };
        let state = self.conns[cidx].pds[vidx].says.state.expect("decided on it");
        if let Some(text) = self.conns[cidx].pds[vidx].split_brain_end.take() {
            cx.notice(Severity::Warning, text.clone());
            self.conns[cidx].last_split_brain = Some(text);
        }
        self.agree_on_size(cx, cidx, vidx);
        let primary = self.role == Role::Primary;
        self.volumes[vidx].uuids.mark_primary(primary);
        let node = self.conns[cidx].node();
        // An interrupted resync must not turn a resolved split brain into a new one.
        self.conns[cidx].discard_my_data &= matches!(decision, Decision::Target { .. });
        let stale = self.shows_other_generation(cidx, vidx);
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.disk = if stale { state.disk.min(DiskState::Outdated) } else { state.disk };
        pd.unverified = false;
        pd.paused_by.peer = state.user_isp || state.aftr_isp;
        (pd.verify.found, pd.verify.due) = (false, None);
        pd.resync_total_bits = 0;
        match decision {
            Decision::Established { unverified } => {
                pd.repl = ReplState::Established;
                if broken!(SkipResync | ClearBitsOnHandshake) {
                    let sectors = self.volumes[vidx].size_sectors;
                    self.volumes[vidx].set_in_sync(node, 0, u32::try_from(sectors * 512).expect("a small volume"));
                }
                let pd = &mut self.conns[cidx].pds[vidx];
                pd.unverified = unverified;
                pd.verify.due = unverified.then_some(cx.now);
                if unverified {
                    let text = format!(
                        "volume {}: node {node} ignores blocks that are marked out of sync here; they are kept and unverified",
                        self.volumes[vidx].nr
                    );
                    cx.notice(Severity::Warning, text);
                }
                self.established_without_resync(vidx, cidx, state);
                self.forget_lost_writes(vidx, None);
            }
            Decision::Source { full, copy_from } => {
                self.wait_for_bitmap_as_source(cidx, vidx, full, copy_from);
                self.compare_exposed_uuid(vidx, cidx, state);
                self.heed_moved_on(vidx, cidx, state);
            }
            Decision::Target { full } => self.wait_for_bitmap_as_target(cx, cidx, vidx, full),
            Decision::Retry | Decision::Refuse(_) => unreachable!("not committed"),
        }
    }

    /// WFBitMapS.
    pub(crate) fn wait_for_bitmap_as_source(
        &mut self,
        cidx: usize,
        vidx: usize,
        full: bool,
        copy_from: Option<NodeId>,
    ) {
        let node = self.conns[cidx].node();
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.repl = ReplState::WFBitMapS;
        if pd.disk >= DiskState::Consistent {
            pd.disk = DiskState::Outdated;
        }
        self.prepare_source_bitmap(vidx, node, full, copy_from);
    }

    /// WFBitMapT.
    pub(crate) fn wait_for_bitmap_as_target(&mut self, cx: &Ctx<'_>, cidx: usize, vidx: usize, full: bool) {
        self.conns[cidx].pds[vidx].repl = ReplState::WFBitMapT;
        self.remember_source(cidx, vidx);
        let v = &mut self.volumes[vidx];
        if v.disk > DiskState::Outdated {
            v.disk = DiskState::Outdated;
            v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
            v.meta.push(Step::SuperBlock);
        }
        self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
        if full {
            self.set_full_bitmap(vidx, self.conns[cidx].node());
        }
    }

    /// The volume gets the size that all known replicas can hold.
    fn agree_on_size(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let Some(s) = self.conns[cidx].pds[vidx].says.sizes else { return };
        if self.grows_when_connected(cidx, vidx) {
            if s.c_size > self.volumes[vidx].size_sectors {
                self.grow_to_peer(cx, vidx, s.c_size);
            }
            return;
        }
        let own = self.own_usable(vidx);
        let peer = match (s.d_size, s.u_size) {
            (0, _) => s.c_size,
            (d, 0) => d,
            (d, u) => d.min(u),
        };
        let v = &mut self.volumes[vidx];
        let wanted = match (own, peer) {
            (0, p) if s.c_size > 0 => s.c_size.min(p.max(s.c_size)),
            (0, p) => p,
            (o, 0) => o,
            (o, p) => o.min(p),
        };
        // Established sizes stay: growing is an administrator's decision, shrinking is refused before.
        let size = match (v.size_sectors, s.c_size) {
            (0, 0) => wanted,
            (0, c) => c,
            (mine, 0) => mine.min(wanted),
            (mine, c) => mine.min(c).max(wanted.min(mine)),
        };
        if size != v.size_sectors && size > 0 {
            v.size_sectors = size;
            if let Some(a) = v.attached.as_mut() {
                a.bitmap.resize(size.div_ceil(8));
                v.meta.push(Step::Bitmap);
                v.meta.push(Step::SuperBlock);
            }
            cx.out.push(Action::Event(crate::event::Event::Device {
                volume: v.nr,
                disk: v.disk,
                size_sectors: size,
                quorum: v.standing.has_quorum(),
            }));
            // Bitmaps of another size are on their way there.
            let exchanging =
                |c: &usize| matches!(self.conns[*c].pds[vidx].repl, ReplState::WFBitMapS | ReplState::WFBitMapT);
            let others: Vec<usize> = self.up_conns().filter(|c| *c != cidx).filter(exchanging).collect();
            for other in others {
                self.reconnect(cx, other, "the volume got another size");
            }
        }
    }

    fn established_without_resync(&mut self, vidx: usize, cidx: usize, state: StateWord) {
        let node = self.conns[cidx].node();
        let says = &self.conns[cidx].pds[vidx].says;
        let peer_current = says.uuids.as_ref().map(|u| u.current & !1);
        let peer_stable = state.role == Role::Primary
            || says.uuids.as_ref().is_some_and(|u| u.uuid_flags.contains(UuidFlags::STABLE));
        let peer_has_all = state.disk >= DiskState::Consistent
            && says.uuids.as_ref().is_some_and(|u| {
                u.dirty_bits == 0
                    && !u.uuid_flags.contains(UuidFlags::ZEA_LOST_WRITES)
                    && !u.uuid_flags.contains(UuidFlags::SYNC_TARGET)
            });
        let v = &mut self.volumes[vidx];
        if v.attached.is_none() {
            if self.role == Role::Secondary && state.disk == DiskState::UpToDate {
                v.exposed_uuid = peer_current.unwrap_or(0);
            }
            return;
        }
        let mine = v.uuids.current & !1;
        if self.compare_exposed_uuid(vidx, cidx, state) || self.heed_moved_on(vidx, cidx, state) {
            return;
        }
        // A Primary that serves a later generation does not go back to a former one: another peer may know the later one already.
        let former = self.serves_peers(vidx) && mine != self.volumes[vidx].exposed_uuid & !1;
        let lacks = former || self.awaits_resync(vidx) || self.lacks_unfinished(cidx, vidx);
        let v = &mut self.volumes[vidx];
        if peer_current == Some(mine) {
            if v.dirty_bits(node) == 0 && v.uuids.bitmap[usize::from(node.0)] != 0 {
                v.uuids.retire_bitmap_uuid(node);
                v.meta.push(Step::SuperBlock);
            }
            if peer_has_all && v.dirty_bits(node) == 0 && v.set_flag(DeviceFlags::ZEA_LOST_WRITES, false) {
                v.meta.push(Step::SuperBlock);
            }
            let lifted = matches!(v.disk, DiskState::Outdated | DiskState::Consistent);
            if lifted && state.disk == DiskState::UpToDate && peer_stable && !lacks {
                v.disk = DiskState::UpToDate;
                v.set_flag(DeviceFlags::WAS_UP_TO_DATE, true);
                v.set_flag(DeviceFlags::ZEA_BEHIND, false);
                v.meta.push(Step::SuperBlock);
            }
            if v.disk == DiskState::UpToDate && state.disk == DiskState::UpToDate && v.crashed_primary {
                v.crashed_primary = false;
                if self.role == Role::Secondary {
                    v.set_flag(DeviceFlags::CRASHED_PRIMARY, false);
                }
                v.meta.push(Step::SuperBlock);
            }
        }
    }

    /// A connected peer has data that this disk lacks: one that has not heard of them is no measure.
    fn awaits_resync(&self, vidx: usize) -> bool {
        let waits = [ReplState::WFBitMapT, ReplState::WFSyncUUID, ReplState::PausedSyncT, ReplState::SyncTarget];
        self.conns.iter().any(|c| c.is_up() && waits.contains(&c.pds[vidx].repl))
    }

    /// This Primary serves the data of its peers, of another generation than that of the disk behind this connection.
    fn shows_other_generation(&self, cidx: usize, vidx: usize) -> bool {
        let exposed = self.volumes[vidx].exposed_uuid & !1;
        let pd = &self.conns[cidx].pds[vidx];
        let good = |current: u64| current == exposed || pd.sent_former.contains(&current);
        self.serves_peers(vidx) && pd.says.uuids.as_ref().is_some_and(|u| !good(u.current & !1))
    }

    /// Likewise of a disk that becomes UpToDate on a connection that is up: it was resynced from somebody who has nothing to do with
    /// what this Primary serves. It may lack the name of a generation that has just begun.
    pub(crate) fn became_something_else(&self, cidx: usize, vidx: usize) -> bool {
        let (c, v) = (&self.conns[cidx], &self.volumes[vidx]);
        let lacks_name = |current: u64| v.former.contains(&current) || v.unconfirmed.contains(c.node());
        let pd = &c.pds[vidx];
        let current = pd.says.uuids.as_ref().map_or(0, |u| u.current & !1);
        let becomes = c.keeps_bits() && !c.speaks_84() && pd.disk != DiskState::UpToDate;
        becomes && !lacks_name(current) && self.shows_other_generation(cidx, vidx)
    }

    /// A Primary without an UpToDate disk of its own told which generation it serves: this node's data is of that one, and then as
    /// good as it was when the Primary left it (2.4 no. 16), or it is behind. An Outdated disk may have been resynced since from
    /// a node that knew more: it is good only if the Primary does not name it as one that misses something. True if it is
    /// behind.
    fn compare_exposed_uuid(&mut self, vidx: usize, cidx: usize, state: StateWord) -> bool {
        let says = self.conns[cidx].pds[vidx].says.clone();
        let told = says.current_uuid.map_or(0, |u| u & !1);
        let weak = says.weak_nodes.contains(self.config.node_id);
        let v = &self.volumes[vidx];
        if told == 0 || state.role != Role::Primary || v.disk < DiskState::Outdated {
            return false;
        }
        let mine = v.uuids.current & !1;
        // Nothing was acknowledged since: also a disk that is Outdated because it heard of the Primary from others has everything.
        if told != mine
            && (v.disk >= DiskState::Consistent || !v.lost_writes())
            && let Some(at) = says.former.iter().position(|&uuid| uuid == mine)
        {
            // One after the other: each may be what another disk has.
            for &uuid in says.former[at + 1..].iter().chain([&told]) {
                self.follow_generation(vidx, cidx, uuid, says.weak_nodes);
            }
        }
        let v = &mut self.volumes[vidx];
        let behind = told != v.uuids.current & !1;
        if v.disk == DiskState::Outdated && (behind || weak) {
            return false;
        }
        if !behind && v.disk == DiskState::UpToDate {
            return false;
        }
        v.disk = if behind { DiskState::Outdated } else { DiskState::UpToDate };
        v.set_flag(DeviceFlags::WAS_UP_TO_DATE, !behind);
        v.meta.push(Step::SuperBlock);
        behind
    }

    /// A Secondary without a disk, or with one that is on its way to it, has seen a generation that this node knows nothing of: its data moved
    /// on elsewhere (5.7). True if this disk is behind.
    fn heed_moved_on(&mut self, vidx: usize, cidx: usize, state: StateWord) -> bool {
        let told = self.conns[cidx].pds[vidx].says.current_uuid.map_or(0, |u| u & !1);
        let v = &mut self.volumes[vidx];
        let known = v.uuids.bitmap.iter().chain(&v.uuids.history).chain([&v.uuids.current]);
        let known = known.into_iter().any(|uuid| uuid & !1 == told);
        // Somebody has decided for this disk.
        let decided = self.role == Role::Primary && v.by_force;
        if told == 0 || known || decided || state.role != Role::Secondary || v.disk < DiskState::Consistent {
            return false;
        }
        v.disk = DiskState::Outdated;
        v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
        v.meta.push(Step::SuperBlock);
        true
    }

    fn prepare_source_bitmap(&mut self, vidx: usize, node: NodeId, full: bool, copy_from: Option<NodeId>) {
        let v = &mut self.volumes[vidx];
        let from = copy_from.and_then(|n| v.slot(n));
        if let (Some(from), Some(to), Some(a)) = (from, v.slot(node), v.attached.as_mut()) {
            // What is already marked stays marked.
            a.bitmap.or_slot(from, to);
            v.meta.push(Step::Bitmap);
        } else if full || copy_from.is_some() {
            self.set_full_bitmap(vidx, node);
        }
    }

    /// Everything is out of sync towards a node; the mark that says so is stable before the bits (4.2).
    pub(crate) fn set_full_bitmap(&mut self, vidx: usize, node: NodeId) {
        let v = &mut self.volumes[vidx];
        let Some(slot) = v.slot(node) else { return };
        let Some(a) = v.attached.as_mut() else { return };
        a.sb.peers[usize::from(node.0)].flags.insert(PeerFlags::FULL_SYNC);
        a.bitmap.set_all(slot);
        v.meta.push(Step::SuperBlock);
        v.meta.push(Step::Bitmap);
        v.meta.push(Step::Then(Then::FullSyncWritten(node)));
        v.meta.push(Step::SuperBlock);
    }
}
