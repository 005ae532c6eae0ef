//! What both nodes hold of a volume, compared: sizes, UUIDs, and what is decided without them (handshake-and-states.md 5).

use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::Sizes;
use zea_wire::state::{DiskState, Role, StateWord};

use super::Decision;
use crate::config::Protocol;
use crate::connection::Connection;
use crate::event::Severity;
use crate::resource::{Ctx, Resource};
use crate::uuid::{self, BitmapPrep, Outcome, Reason, Side, UuidView};

impl Resource {
    /// Compares a volume with a peer's, and says by which rule.
    pub(crate) fn compare(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord) -> Decision {
        self.conns[cidx].pds[vidx].split_brain_end = None;
        let decided = match self.compare_uuids(cidx, vidx, state) {
            Ok(decided) => decided,
            Err(decision @ Decision::Refuse(_)) if self.role == Role::Primary && state.role == Role::Primary => {
                return self.settle_by_quorum(cx, vidx, state).unwrap_or(decision);
            }
            Err(decision) => return decision,
        };
        if decided.outcome == Outcome::Disconnect(Reason::TargetIsPrimary) {
            if self.takes_up_generation(cx, cidx, vidx) {
                return Decision::Retry;
            }
            if let Some(decision) = self.settle_by_quorum(cx, vidx, state) {
                return decision;
            }
        }
        let (volume, node) = (self.volumes[vidx].nr, self.conns[cidx].node());
        let (strategy, rule) = (decided.by_table.as_str(), decided.rule);
        cx.notice(Severity::Info, format!("volume {volume}: compared with node {node}: {strategy} by rule {rule}"));
        self.conns[cidx].pds[vidx].split_brain_end = self.split_brain_end(cidx, vidx, &decided);
        from_uuid_decision(decided)
    }

    /// What a policy does to a split brain, in words.
    fn split_brain_end(&self, cidx: usize, vidx: usize, decided: &uuid::Decision) -> Option<String> {
        let policy = decided.policy?;
        let (own, peer) = (self.config.node_id, self.conns[cidx].node());
        let victim = match decided.outcome {
            Outcome::Source => peer,
            Outcome::Target => own,
            _ => return None,
        };
        let v = &self.volumes[vidx];
        let since = v.uuids.bitmap[peer.index()] & !1;
        Some(format!(
            "volume {}: split brain with node {peer} ended by the policy {policy}: what node {victim} wrote since generation \
             {since:016X} is given up",
            v.nr
        ))
    }

    /// What the UUIDs of both say, or what is decided without them.
    fn compare_uuids(&self, cidx: usize, vidx: usize, state: StateWord) -> Result<uuid::Decision, Decision> {
        if let Err(why) = self.check_sizes(cidx, vidx, state) {
            return Err(Decision::Refuse(why));
        }
        if self.role == Role::Primary && state.role == Role::Primary {
            return Err(Decision::Refuse("both nodes are Primary: split brain; demote one of them".into()));
        }
        let own_disk = self.volumes[vidx].disk;
        if own_disk == DiskState::Attaching || self.volumes[vidx].closing.is_some() {
            return Err(Decision::Retry);
        }
        let has = |d: DiskState| d >= DiskState::Inconsistent && d != DiskState::DUnknown;
        if !has(own_disk) || !has(state.disk) {
            return Err(self.compare_diskless(cidx, vidx, state));
        }
        let node = self.conns[cidx].node();
        if self.volumes[vidx].slot(node).is_none() {
            let why = format!("node {node} has a disk, and no bitmap slot is kept for it here: detach it there");
            return Err(Decision::Refuse(why));
        }
        let pd = &self.conns[cidx].pds[vidx];
        let Some(peer) = pd.says.uuids.as_ref() else {
            return Err(Decision::Refuse("the peer has a disk but sent no UUIDs".into()));
        };
        let Some(sent) = pd.sent_uuids.as_ref() else { return Err(Decision::Retry) };
        let now = self.uuids_for(cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
        let c = &self.conns[cidx];
        let link = c.link.as_ref().expect("a link that connects");
        let (own_id, peer_id) = (self.config.node_id, c.node());
        let views = [
            UuidView::from_packet(own_id, sent),
            UuidView::from_packet(own_id, &now),
            UuidView::from_packet(peer_id, peer),
        ];
        let [sent, now, peer] = &views;
        let protocol_a_or_b = c.config.net.protocol != Protocol::C;
        let tells = self.quorums_overlap() && !protocol_a_or_b && pd.sent_quorum != state.quorum;
        let quorate = tells.then_some(pd.sent_quorum);
        let cx = uuid::Context {
            quorate,
            agreed_version: link.negotiated.version,
            protocol_a_or_b,
            resolve_conflicts: link.resolve_conflicts,
            sent: Some(sent),
            // Of three nodes, the third one could be with the victim.
            after_split_brain: if self.conns.len() == 1 {
                link.settings.after_split_brain()
            } else {
                Default::default()
            },
        };
        let own_side = Side { view: now, disk: pd.sent_state.1, role: pd.sent_state.0 };
        let peer_side = Side { view: peer, disk: state.disk, role: state.role };
        let mut decision = uuid::decide(&cx, &own_side, &peer_side);
        let usable = own_side.disk > DiskState::Inconsistent && peer_side.disk > DiskState::Inconsistent;
        if usable && matches!(decision.outcome, Outcome::Source | Outcome::Target) {
            decision.outcome = match decision.outcome {
                outcome if broken!(StaleSource) => outcome.mirrored(),
                _ if broken!(SkipResync) => Outcome::Established,
                _ if broken!(FalseSplitBrain) => Outcome::Disconnect(Reason::SplitBrain),
                outcome => outcome,
            };
        }
        if decision.outcome == Outcome::Target
            && let Some(conflict) = self.follows_another_primary(cidx, vidx, peer)
        {
            return Err(conflict);
        }
        let own_sent = Side { view: sent, ..own_side };
        if broken!(SkipResync | ClearBitsOnHandshake) {
            return Ok(decision);
        }
        Ok(uuid::keep_bits(decision, &cx, &own_sent, &peer_side, c.keeps_bits()))
    }

    /// This node is to become the target of a peer, and has the data of a connected Primary, which acknowledges on the strength of
    /// that. A peer whose data is of another generation may have to catch up with that Primary first, or must not overwrite it.
    fn follows_another_primary(&self, cidx: usize, vidx: usize, source: &UuidView) -> Option<Decision> {
        let serves = |c: &Connection| {
            let pd = &c.pds[vidx];
            c.is_up() && c.role == Role::Primary && pd.disk == DiskState::UpToDate && pd.is_established()
        };
        let (_, primary) = self.conns.iter().enumerate().find(|(other, c)| *other != cidx && serves(c))?;
        let current = primary.pds[vidx].says.uuids.as_ref()?.current & !1;
        let former = source.history.iter().chain(&source.bitmap).any(|uuid| uuid & !1 == current);
        match source.current & !1 == current {
            true => None,
            false if former => Some(Decision::Refuse(format!(
                "this would overwrite the data that node {} serves, which is Primary: demote it, or disconnect it",
                primary.node()
            ))),
            false => Some(Decision::Retry),
        }
    }

    /// 3.3: sizes that do not fit are refused, nothing shrinks.
    fn check_sizes(&self, cidx: usize, vidx: usize, state: StateWord) -> Result<(), String> {
        let v = &self.volumes[vidx];
        let Some(s) = self.conns[cidx].pds[vidx].says.sizes.as_ref() else {
            return Err("the peer sent no sizes".into());
        };
        if (s.d_size != 0 && s.c_size > s.d_size) || (s.u_size != 0 && s.c_size > s.u_size) {
            return Err("the peer's sizes contradict each other".into());
        }
        if let Some(most) = self.conns[cidx].shorter_packets(s.max_bio_size) {
            return Err(format!("the peer takes at most {most} bytes at once"));
        }
        let peer_disk = state.disk >= DiskState::Inconsistent && state.disk != DiskState::DUnknown;
        if peer_disk && self.grows_when_connected(cidx, vidx) {
            return self.check_room(vidx, s);
        }
        let usable = if s.u_size == 0 { s.d_size } else { s.d_size.min(s.u_size) };
        if peer_disk && v.disk >= DiskState::Outdated && v.size_sectors > 0 && usable < v.size_sectors {
            return Err(format!("the peer's disk is too small: {usable} sectors, this volume has {}", v.size_sectors));
        }
        let both_good = peer_disk && state.disk.min(v.disk) >= DiskState::Outdated;
        if both_good && v.size_sectors > 0 && s.c_size > v.size_sectors {
            let grown =
                "it has grown without this node: detach this disk, and make its meta data anew (`zea apply --force`)";
            return Err(format!("the peer's volume has {} sectors, this one {}: {grown}", s.c_size, v.size_sectors));
        }
        if peer_disk && v.attached.is_some() && s.c_size > 0 && state.disk >= DiskState::Outdated {
            let mine = self.own_usable(vidx);
            if mine < s.c_size {
                return Err(format!("the local disk is too small: {mine} sectors, the volume has {}", s.c_size));
            }
        }
        Ok(())
    }

    /// Of two disks of a volume the smaller one grows now, if it lacks that.
    fn check_room(&self, vidx: usize, peer: &Sizes) -> Result<(), String> {
        let (own_size, usable) = (self.volumes[vidx].size_sectors, self.largest_size(Some(self.volumes[vidx].nr)));
        if peer.d_size < own_size {
            return Err(format!("the peer's disk is too small: {} sectors, this volume has {own_size}", peer.d_size));
        }
        if usable < peer.c_size {
            return Err(format!("the local disk is too small: {usable} sectors, the volume has {}", peer.c_size));
        }
        Ok(())
    }

    /// What this node could give to the volume.
    pub(crate) fn own_usable(&self, vidx: usize) -> u64 {
        let v = &self.volumes[vidx];
        let usable = v.attached.as_ref().map_or(0, |a| a.layout.usable_sectors);
        v.config.size_sectors.map_or(usable, |u| u.min(usable))
    }

    /// One side has no disk (10).
    fn compare_diskless(&self, cidx: usize, vidx: usize, state: StateWord) -> Decision {
        let v = &self.volumes[vidx];
        let says = &self.conns[cidx].pds[vidx].says;
        if v.attached.is_none()
            && self.role == Role::Primary
            && let Some(u) = &says.uuids
        {
            let exposed = v.exposed_uuid & !1;
            if self.conns[cidx].speaks_84() {
                let serves = self.serves_data_of(cidx, vidx, u);
                return if serves { Decision::Established { unverified: false } } else { Decision::Retry };
            }
            let newer = u.history.iter().any(|h| h & !1 == exposed)
                || (0..32).any(|n| u.bitmap_uuids.get(NodeId(n)).is_some_and(|b| b & !1 == exposed));
            if exposed != 0 && u.current & !1 != exposed && newer && state.disk == DiskState::UpToDate {
                return Decision::Refuse(
                    "this Primary without a disk shows older data than the peer has: demote it".into(),
                );
            }
        }
        Decision::Established { unverified: false }
    }
}

/// The outcome of the UUID comparison as a decision, with the reason of a refusal in words.
fn from_uuid_decision(d: uuid::Decision) -> Decision {
    let (full, copy_from) = match d.bitmap {
        BitmapPrep::SetAll => (true, None),
        BitmapPrep::CopyFrom { node, .. } => (false, Some(node)),
        BitmapPrep::Keep | BitmapPrep::Clear => (false, None),
    };
    match d.outcome {
        Outcome::Established => Decision::Established { unverified: d.unverified },
        Outcome::Source => Decision::Source { full, copy_from },
        Outcome::Target => Decision::Target { full },
        Outcome::RetryConnect => Decision::Retry,
        Outcome::Disconnect(reason) => Decision::Refuse(match reason {
            Reason::SplitBrain => format!(
                "split brain detected (rule {}): both nodes wrote without the other. Nothing was changed. Decide whose changes are \
                 lost; there: zea disconnect, then zea connect --discard-my-data; on the other node: zea connect",
                d.rule.as_str()
            ),
            Reason::Unrelated => {
                "unrelated data: these disks never belonged to the same volume. Check the configuration; to overwrite \
                 one side, create its meta data anew there"
                    .to_owned()
            }
            Reason::TargetIsPrimary => format!(
                "this would overwrite the data that a Primary serves (rule {}): demote that node, or disconnect the other",
                d.rule.as_str()
            ),
            Reason::NeedsVersion91 => format!(
                "a resync was interrupted where versions of the protocol below 91 cannot tell it from a split brain (rule {}): let both nodes \
                 offer 91 or more, or make the data of one of them anew",
                d.rule.as_str()
            ),
            Reason::SourceInconsistent => "the better data would be overwritten by an inconsistent disk".to_owned(),
        }),
    }
}
