//! Administrators' commands, roles, and what happens when a queued meta-data write is stable.

use zea_meta::flags::{DeviceFlags, PeerFlags};
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::{Packet, State};
use zea_wire::state::{ConnState, DiskState, Role, StateBits};

use crate::attach::missing_slots;
use crate::connection::{Connection, PeerDevice};
use crate::io::{Action, AdminError, AdminTag, Command};
use crate::limits;
use crate::meta_queue::{Step, Then};
use crate::resize::Resize;
use crate::resource::{Ctx, Resource};
use crate::twopc::{Change, Wanted, ss, two_primaries};
use crate::volume::Volume;

fn refuse(code: i32, message: impl Into<String>) -> AdminError {
    AdminError { code, message: message.into() }
}

impl Resource {
    pub(crate) fn admin(&mut self, cx: &mut Ctx<'_>, tag: AdminTag, command: Command) {
        let result = match command {
            Command::Promote { force } => return self.want(Change::Promote { force }, Some(tag)),
            Command::Demote => return self.want(Change::Demote, Some(tag)),
            Command::Disconnect { peer, force } => return self.disconnect(cx, tag, peer, force),
            Command::Attach { volume, backing } => match self.vidx(volume) {
                Some(vidx) => return self.attach(cx, tag, vidx, backing),
                None => Err(refuse(0, format!("no volume {volume}"))),
            },
            Command::Detach { volume, force } => match self.vidx(volume) {
                Some(vidx) => return self.detach(cx, Some(tag), vidx, force),
                None => Err(refuse(0, format!("no volume {volume}"))),
            },
            Command::NewCurrentUuid { volume } => match self.vidx(volume) {
                Some(vidx) => return self.skip_initial_sync(cx, tag, vidx),
                None => Err(refuse(0, format!("no volume {volume}"))),
            },
            Command::Down => return self.start_down(cx, tag),
            Command::Invalidate { volume } => return self.invalidate(cx, tag, volume),
            Command::InvalidateRemote { peer, volume } => return self.invalidate_remote(peer, volume, tag),
            Command::Resize { volume, size_sectors, assume_clean } => {
                return self.resize(cx, tag, Resize { volume, size_sectors, assume_clean });
            }
            Command::Verify { peer, volume, start_sector, stop_sector } => {
                match self.verify_command(tag, (peer, volume), start_sector, stop_sector) {
                    Ok(()) => return,
                    Err(e) => Err(e),
                }
            }
            Command::AddPeer(config) => self.add_peer(cx, config),
            Command::RemovePeer { peer } => self.remove_peer(peer),
            Command::SetNetOptions { peer, net } => self.set_net_options(peer, net),
            Command::SetQuorumOptions(options) => {
                self.config.quorum = options;
                self.quorum_gate_moved(cx);
                Ok(())
            }
            Command::SetResyncAfter { volume, after } => self.set_resync_after(volume, after),
            Command::SetResyncOptions { volume, options } => match self.set_resync_options(volume, options) {
                true => Ok(()),
                false => Err(refuse(0, format!("no volume {volume}"))),
            },
            Command::PauseSync { peer, volume, paused } => self.pause_sync(cx, peer, volume, paused),
            Command::AddVolume(config) => self.add_volume(config),
            Command::RemoveVolume { volume } => self.remove_volume(volume),
            Command::Connect { peer, discard_my_data } => self.connect(cx, peer, discard_my_data),
        };
        cx.reply(tag, result);
    }

    fn add_peer(&mut self, cx: &mut Ctx<'_>, config: crate::config::PeerConfig) -> Result<(), AdminError> {
        let node = config.node_id;
        if node == self.config.node_id || node.0 > 31 {
            return Err(refuse(0, format!("node id {node} is this node's own or out of range (0..31)")));
        }
        match self.conns.binary_search_by_key(&node, Connection::node) {
            Ok(_) => Err(refuse(0, format!("node id {node} is in use already"))),
            Err(_) if self.conns.iter().any(Connection::speaks_84) => {
                Err(refuse(0, "the peer that is connected speaks DRBD 8.4, which knows two nodes: disconnect it first"))
            }
            Err(_)
                if config.net.max_bio_bytes() < self.max_bio_bytes() && (self.role == Role::Primary || self.busy()) =>
            {
                Err(refuse(ss::IN_TRANSIENT_STATE, "requests of a Primary are too long for this peer: demote first"))
            }
            Err(_) if self.conns.len() >= limits::MAX_PEERS => Err(refuse(0, "too many peers (31)")),
            Err(at) => {
                let bitmap = config.net.bitmap;
                if bitmap {
                    self.check_slots_for(node)?;
                }
                self.conns.insert(at, Connection::new(config, self.volumes.len()));
                for vidx in 0..self.volumes.len() {
                    if bitmap {
                        self.ensure_slot(cx, vidx, node.0);
                    }
                }
                self.state_changed = true;
                Ok(())
            }
        }
    }

    /// Every attached disk has a bitmap slot for this node, or one to give.
    fn check_slots_for(&self, node: NodeId) -> Result<(), AdminError> {
        let full = self.volumes.iter().find_map(|v| Some((v.nr, missing_slots(&v.attached.as_ref()?.sb, [node])?)));
        full.map_or(Ok(()), |(nr, why)| Err(refuse(0, format!("volume {nr}: {why}"))))
    }

    fn remove_peer(&mut self, peer: NodeId) -> Result<(), AdminError> {
        let Some(cidx) = self.cidx(peer) else { return Err(refuse(0, format!("no peer with node id {peer}"))) };
        let c = &self.conns[cidx];
        if c.state != ConnState::StandAlone || c.active_peer_reqs > 0 {
            return Err(refuse(0, "disconnect the peer first"));
        }
        self.conns.remove(cidx);
        self.state_changed = true;
        Ok(())
    }

    fn set_net_options(&mut self, peer: NodeId, net: crate::config::NetOptions) -> Result<(), AdminError> {
        let Some(cidx) = self.cidx(peer) else { return Err(refuse(0, format!("no peer with node id {peer}"))) };
        let other_size = net.max_bio_bytes() != self.conns[cidx].config.net.max_bio_bytes();
        if other_size && (self.role == Role::Primary || self.busy()) {
            let why =
                "requests of a Primary are cut for the newest version of the protocol that is offered: demote first";
            return Err(refuse(ss::IN_TRANSIENT_STATE, why));
        }
        self.conns[cidx].config.net = net;
        Ok(())
    }

    fn add_volume(&mut self, config: crate::config::VolumeConfig) -> Result<(), AdminError> {
        let nr = config.volume;
        match self.volumes.binary_search_by_key(&nr, |v| v.nr) {
            Ok(_) => Err(refuse(0, format!("volume {nr} exists already"))),
            Err(_) if self.volumes.len() >= limits::MAX_VOLUMES => Err(refuse(0, "too many volumes (256)")),
            Err(_) if self.busy() => Err(refuse(ss::IN_TRANSIENT_STATE, "I/O is in flight: try again")),
            Err(_) if self.conns.iter().any(|c| !c.has_volumes()) => Err(refuse(
                0,
                "the version of the protocol that is spoken to the peer knows volume 0 only: disconnect first",
            )),
            Err(at) => {
                self.volumes.insert(at, Volume::new(config));
                for c in &mut self.conns {
                    c.pds.insert(at, PeerDevice::new());
                }
                self.state_changed = true;
                Ok(())
            }
        }
    }

    fn remove_volume(&mut self, nr: zea_wire::ids::VolumeNr) -> Result<(), AdminError> {
        let Some(vidx) = self.vidx(nr) else { return Err(refuse(0, format!("no volume {nr}"))) };
        if self.volumes[vidx].disk != DiskState::Diskless || self.volumes[vidx].disk_jobs > 0 {
            return Err(refuse(0, "detach the volume first"));
        }
        if self.busy() {
            return Err(refuse(ss::IN_TRANSIENT_STATE, "I/O is in flight: try again"));
        }
        self.volumes.remove(vidx);
        for c in &mut self.conns {
            c.pds.remove(vidx);
        }
        self.state_changed = true;
        Ok(())
    }

    /// Requests refer to volumes by index: none may be in flight when indices move.
    fn busy(&self) -> bool {
        !(self.writes.is_empty()
            && self.reads.is_empty()
            && self.peer_reqs.is_empty()
            && self.jobs.is_empty()
            && self.flushes.is_empty())
            || self.conns.iter().any(|c| !c.kept.is_empty())
    }

    fn connect(&mut self, cx: &mut Ctx<'_>, peer: NodeId, discard_my_data: bool) -> Result<(), AdminError> {
        let Some(cidx) = self.cidx(peer) else { return Err(refuse(0, format!("no peer with node id {peer}"))) };
        if discard_my_data && self.role == Role::Primary {
            return Err(refuse(ss::DEVICE_IN_USE, "a Primary does not discard its data: demote it first"));
        }
        let c = &mut self.conns[cidx];
        if c.state != ConnState::StandAlone {
            return if discard_my_data {
                Err(refuse(0, "disconnect first: the option counts when a connection is made"))
            } else {
                Ok(())
            };
        }
        c.discard_my_data = discard_my_data;
        c.last_error = None;
        c.state = ConnState::Unconnected;
        self.state_changed = true;
        self.lost_peer_drained(cx, cidx);
        Ok(())
    }

    fn disconnect(&mut self, cx: &mut Ctx<'_>, tag: AdminTag, peer: NodeId, force: bool) {
        let Some(cidx) = self.cidx(peer) else {
            return cx.reply(tag, Err(refuse(0, format!("no peer with node id {peer}"))));
        };
        if self.conns[cidx].state == ConnState::StandAlone {
            return cx.reply(tag, Err(refuse(ss::ALREADY_STANDALONE, "is StandAlone already")));
        }
        if self.conns[cidx].is_up() && !force {
            self.close_epoch();
            return self.want(Change::Disconnect(peer), Some(tag));
        }
        self.disconnect_without_asking(cx, cidx);
        cx.reply(tag, Ok(()));
    }

    fn disconnect_without_asking(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        self.disconnected_by_us(cx, cidx);
        self.give_up_suspended(cx);
    }

    /// Nobody is there whose consent a change needs. A peer that was lost while it was asked to part is parted from.
    pub(crate) fn change_without_asking(&mut self, cx: &mut Ctx<'_>, wanted: Wanted) {
        if let Change::Disconnect(peer) = wanted.change
            && let Some(cidx) = self.cidx(peer).filter(|&c| self.conns[c].state != ConnState::StandAlone)
        {
            self.disconnect_without_asking(cx, cidx);
        }
        self.change_over(cx, wanted, Ok(()));
    }

    /// This node asked to be disconnected: StandAlone, without a complaint.
    pub(crate) fn disconnected_by_us(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let peer = self.conns[cidx].node();
        if self.conns[cidx].link.is_some() {
            self.drop_link(cx, cidx, ConnState::Disconnecting, "disconnected by this node");
        }
        cx.out.push(Action::Disconnect { peer });
        let c = &mut self.conns[cidx];
        c.state = ConnState::StandAlone;
        c.retry_at = None;
        c.last_error = None;
        self.state_changed = true;
    }

    // ---- roles -------------------------------------------------------------------------------------------------

    /// Whether this node may become Primary now; `Ok(false)`: it is.
    pub(crate) fn promote_check(&self, _cx: &Ctx<'_>, force: bool) -> Result<bool, AdminError> {
        if self.role == Role::Primary {
            // By force a Primary takes the data of its own disk for good when it can reach no better.
            return Ok(force && (0..self.volumes.len()).any(|v| !self.has_data(v) && self.volumes[v].has_disk()));
        }
        if self.primary_peer().is_some() && !broken!(TwoPrimaries) {
            return Err(two_primaries());
        }
        if !(force || broken!(IgnoreQuorum)) {
            self.check_quorum()?;
        }
        for (vidx, v) in self.volumes.iter().enumerate() {
            if v.disk != DiskState::UpToDate && self.up_to_date_peers_disagree(vidx) {
                let why = "connected nodes with UpToDate data are at different generations, and resync each other first: try again";
                return Err(refuse(ss::IN_TRANSIENT_STATE, format!("volume {}: {why}", v.nr)));
            }
            if let Some(node) = self.later_peer(vidx).filter(|_| !force) {
                let why = format!("node {node} has later data, which is resynced to this one: try again");
                return Err(refuse(ss::IN_TRANSIENT_STATE, format!("volume {}: {why}", v.nr)));
            }
            if self.has_data(vidx) || (force && v.has_disk()) {
                continue;
            }
            let next = if v.has_disk() {
                "connect to a node with UpToDate data, or use --force to accept what is here"
            } else {
                "attach a disk"
            };
            let message = format!("volume {}: no UpToDate data here ({}) or on a connected node: {next}", v.nr, v.disk);
            return Err(refuse(ss::NO_UP_TO_DATE_DISK, message));
        }
        Ok(true)
    }

    /// Whether this node may become Secondary now. Writes that are not stable on the peers are waited for before.
    pub(crate) fn demote_check(&self) -> Result<bool, AdminError> {
        if self.role != Role::Primary {
            return Ok(false);
        }
        if self.writes.iter().any(|(_, w)| !w.completed) || !self.reads.is_empty() || !self.flushes.is_empty() {
            return Err(refuse(ss::DEVICE_IN_USE, "I/O is in flight: close the device first"));
        }
        Ok(true)
    }

    pub(crate) fn become_primary(&mut self, cx: &mut Ctx<'_>, force: bool) {
        self.role = Role::Primary;
        self.lost_primary = None;
        self.state_changed = true;
        // It is told when the UUIDs are stable and told: it compares on that state.
        let peer_84 = self.peer_84();
        // Who becomes Primary when the others are gone is the younger one of a split brain.
        let connected = self.up_conns().next().is_some();
        for vidx in 0..self.volumes.len() {
            let forced = force && !self.has_data(vidx);
            let v = &mut self.volumes[vidx];
            v.new_uuid_needed = true;
            v.by_force = forced;
            v.former.clear();
            v.withdrawn.clear();
            v.writes_lost = false;
            self.serve_peers_data(vidx);
            let v = &mut self.volumes[vidx];
            if !v.has_disk() {
                if let Some(cidx) = peer_84 {
                    self.send_state(cx, cidx, vidx);
                }
                continue;
            }
            if forced {
                if v.set_flag(DeviceFlags::ZEA_BEHIND, false) {
                    // Others go on in this generation: what this disk had of it must not be taken for all of it.
                    v.uuids.part_from_generation(cx.uuid());
                }
                v.disk = DiskState::UpToDate;
                v.becomes_consistent();
                v.set_flag(DeviceFlags::WAS_UP_TO_DATE, true);
            }
            v.set_flag(DeviceFlags::PRIMARY_IND, true);
            v.set_flag(DeviceFlags::CRASHED_PRIMARY, true);
            v.uuids.mark_primary(connected);
            if forced {
                v.new_uuid_needed = false;
                let named = self.new_current_uuid(cx, vidx);
                self.volumes[vidx].forced = named && self.up_conns().any(|c| self.compares_here(c));
            }
            let v = &mut self.volumes[vidx];
            v.new_uuid_running = true;
            v.meta.push(Step::SuperBlock);
            v.meta.push(Step::Then(Then::RoleStable));
            // Kernels compare by themselves.
            let by_themselves = v.forced && !self.up_conns().any(|c| self.conns[c].keeps_bits());
            if forced && peer_84.is_none() && !by_themselves {
                self.volumes[vidx].meta.push(Step::Then(Then::Compare));
            }
        }
        if peer_84.is_none() {
            self.tell_role(cx);
        }
    }

    /// Without UpToDate data of its own, a new Primary serves that of a peer, of its generation.
    fn serve_peers_data(&mut self, vidx: usize) {
        let Some(cidx) = self.up_to_date_peer(vidx).filter(|_| self.volumes[vidx].disk != DiskState::UpToDate) else {
            return;
        };
        let weak = self.not_replicated(vidx);
        if let Some(u) = &self.conns[cidx].pds[vidx].says.uuids {
            let v = &mut self.volumes[vidx];
            (v.exposed_uuid, v.exposed_weak) = (u.current, weak);
        }
    }

    /// The change may be answered when the meta data of every volume is stable; the last volume answers.
    pub(crate) fn reply_when_stable(&mut self, cx: &mut Ctx<'_>, tag: AdminTag) {
        match self.volumes.iter_mut().rev().find(|v| v.attached.is_some()) {
            Some(v) => v.meta.push(Step::Then(Then::Reply(tag))),
            None => cx.reply(tag, Ok(())),
        }
    }

    pub(crate) fn become_secondary(&mut self, cx: &mut Ctx<'_>) {
        // The last writes are confirmed soon: until then their receivers do not know who has them.
        self.close_epoch();
        self.send_peer_ack(cx);
        self.withdraw_generations();
        self.role = Role::Secondary;
        self.state_changed = true;
        // What it wrote past a peer that peer gets elsewhere, from now on, and is UpToDate then.
        self.conns.iter_mut().flat_map(|c| &mut c.pds).for_each(|pd| pd.told_out_of_sync = false);
        let unsettled = self.has_unsettled_writes();
        for vidx in 0..self.volumes.len() {
            let v = &mut self.volumes[vidx];
            v.new_uuid_needed = false;
            v.unconfirmed = NodeMask::EMPTY;
            v.uuids.mark_primary(false);
            v.set_flag(DeviceFlags::CRASHED_PRIMARY, v.crashed_primary);
            v.set_flag(DeviceFlags::PRIMARY_IND, unsettled);
            for step in [Step::Bitmap, Step::DataFlush, Step::SuperBlock] {
                v.meta.push(step);
            }
        }
        for cidx in self.up_conns().filter(|_| self.peer_84().is_none()).collect::<Vec<_>>() {
            let role_only = Packet::State(State { state: StateBits::of_role(Role::Secondary) });
            self.send(cx, cidx, None, role_only);
        }
        self.send_states(cx);
    }

    /// A connected peer changed its role.
    pub(crate) fn peer_role(&mut self, cx: &mut Ctx<'_>, cidx: usize, role: Role) {
        if self.conns[cidx].role == role {
            return;
        }
        self.conns[cidx].role = role;
        if let Some(link) = self.conns[cidx].link.as_mut() {
            link.of_primary |= role == Role::Primary;
        }
        self.state_changed = true;
        self.dagtag_arrived(cx);
        for vidx in 0..self.volumes.len() {
            self.volumes[vidx].meta.push(Step::Bitmap);
            self.maybe_clear_primary_ind(vidx);
            // Being a neighbour of a Primary, or not any more, is part of what the UUIDs say, but not of 8.4's.
            if self.conns[cidx].speaks_84() {
                continue;
            }
            self.send_uuids(cx, vidx, zea_wire::flags::UuidFlags::EMPTY, zea_wire::ids::NodeMask::EMPTY);
        }
    }

    // ---- down --------------------------------------------------------------------------------------------------

    fn start_down(&mut self, cx: &mut Ctx<'_>, tag: AdminTag) {
        if self.down.is_some() {
            return cx.reply(tag, Err(refuse(ss::IN_TRANSIENT_STATE, "is going down already")));
        }
        self.down = Some(tag);
        self.give_up_suspended(cx);
        if self.role == Role::Primary {
            self.want(Change::Demote, None);
        }
    }

    /// Demoted, then disconnected, then detached.
    pub(crate) fn down_step(&mut self, cx: &mut Ctx<'_>) {
        let Some(tag) = self.down else { return };
        if !self.twopc.is_idle() {
            return;
        }
        if self.role == Role::Primary {
            self.down = None;
            return cx.reply(tag, Err(refuse(ss::DEVICE_IN_USE, "could not be demoted: the device is in use")));
        }
        // First from a Primary: it may refuse.
        let connected = (0..self.conns.len()).filter(|&c| self.conns[c].state != ConnState::StandAlone);
        if let Some(cidx) = connected.min_by_key(|&c| self.conns[c].role != Role::Primary) {
            if self.conns[cidx].is_up() {
                self.want(Change::Disconnect(self.conns[cidx].node()), None);
                return self.twopc_step(cx);
            }
            self.disconnected_by_us(cx, cidx);
            return self.down_step(cx);
        }
        let mut all_closed = true;
        for vidx in 0..self.volumes.len() {
            if self.volumes[vidx].attached.is_some() && self.volumes[vidx].closing.is_none() {
                self.detach(cx, None, vidx, true);
            }
            self.try_close_disk(cx, vidx);
            all_closed &= self.volumes[vidx].disk == DiskState::Diskless && self.volumes[vidx].closing.is_none();
        }
        if all_closed {
            self.down = None;
            cx.reply(tag, Ok(()));
        }
    }

    // ---- meta data is stable -------------------------------------------------------------------------------------

    pub(crate) fn meta_then(&mut self, cx: &mut Ctx<'_>, vidx: usize, then: Then) {
        self.again = true;
        match then {
            Then::NewUuid => self.new_uuid_stable(cx, vidx),
            Then::RoleStable => {
                self.volumes[vidx].new_uuid_running = false;
                if let Some(cidx) = self.peer_84() {
                    self.volumes[vidx].told_disk = self.volumes[vidx].disk;
                    self.send_state(cx, cidx, vidx);
                }
                self.release_held(cx, vidx);
            }
            Then::ResyncBegins(node, nr) => self.resync_begins(vidx, node, nr),
            Then::ResyncFinished(node) => self.resync_finished(cx, vidx, node),
            Then::AttachDone => self.attach_done(cx, vidx),
            // A flush for a peer may have begun meanwhile: once more when it has ended.
            Then::Detach if self.volumes[vidx].disk_jobs > 0 => {}
            Then::Detach => self.disk_closed(cx, vidx),
            Then::Reply(_) if broken!(ForgetReplies) => {}
            Then::Reply(tag) => cx.reply(tag, Ok(())),
            Then::SyncUuid(node, uuid) => self.sync_uuid_stable(cx, vidx, node, uuid),
            Then::FullSyncWritten(node) => {
                if let Some(a) = self.volumes[vidx].attached.as_mut() {
                    a.sb.peers[usize::from(node.0)].flags.remove(PeerFlags::FULL_SYNC);
                }
                self.full_bitmap_stable(cx, vidx, node);
            }
            Then::SyncSkipped(by) => self.sync_skipped(cx, vidx, by),
            Then::Compare => self.compare_again(cx, vidx),
            Then::Grown(growth) => self.grown(cx, vidx, growth),
        }
    }
}
