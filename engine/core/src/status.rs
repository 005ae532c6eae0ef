//! What observers see: the status snapshot, and events made by comparing with what was announced before.

use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::state::ReplState;

use crate::event::{ConnectionStatus, DeviceStatus, Event, PeerDeviceStatus, Status};
use crate::io::Action;
use crate::resource::{Ctx, Resource};

impl Resource {
    /// Snapshot for observers.
    pub fn status(&self) -> Status {
        let devices = (0..self.volumes.len()).map(|v| self.device_status(v)).collect();
        let connections = (0..self.conns.len()).map(|c| self.connection_status(c)).collect();
        let suspended_quorum = self.suspended_for_quorum();
        Status { node_id: self.config.node_id, role: self.role, suspended_quorum, devices, connections }
    }

    fn device_status(&self, vidx: usize) -> DeviceStatus {
        let v = &self.volumes[vidx];
        let open = self.writes.iter().filter(|(_, w)| w.vidx == vidx && !w.completed).count();
        let reads = self.reads.iter().filter(|(_, r)| r.vidx == vidx).count();
        DeviceStatus {
            volume: v.nr,
            disk: v.disk,
            size_sectors: v.size_sectors,
            quorum: v.standing.has_quorum(),
            no_quorum: (!v.standing.has_quorum()).then(|| self.no_quorum_text(vidx)),
            current_uuid: v.current_uuid(),
            requests_in_flight: (open + reads + v.held.len() + v.conflict_waiters.len() + v.al_waiters.len()) as u64,
            read_bytes: v.read_bytes,
            written_bytes: v.written_bytes,
            al_writes: v.meta.al_writes,
            bm_writes: v.meta.bm_writes,
        }
    }

    fn connection_status(&self, cidx: usize) -> ConnectionStatus {
        let c = &self.conns[cidx];
        let peer_devices = c
            .pds
            .iter()
            .zip(&self.volumes)
            .map(|(pd, v)| {
                let per_bit = v.attached.as_ref().map_or(8, |a| a.bitmap.sectors_per_bit());
                PeerDeviceStatus {
                    volume: v.nr,
                    repl: pd.shown_repl(),
                    peer_disk: pd.disk,
                    resync_rate_kib: matches!(pd.shown_repl(), ReplState::SyncSource | ReplState::SyncTarget)
                        .then(|| pd.meter.rate_kib(self.now)),
                    paused_by: pd.paused_by,
                    out_of_sync_sectors: v.dirty_bits(c.node()) * per_bit,
                    unverified: pd.unverified,
                    resync_total_sectors: if pd.repl > ReplState::Established {
                        pd.resync_total_bits * per_bit
                    } else {
                        0
                    },
                    verify: pd.verify.tally().map(|t| t.status(false)),
                    last_verify: pd.verify.last,
                    sent_sectors: pd.sent_sectors,
                    received_sectors: pd.received_sectors,
                    bitmap_uuid: v.uuids.bitmap[usize::from(c.node().0)],
                }
            })
            .collect();
        ConnectionStatus {
            peer: c.node(),
            name: c.config.name.clone(),
            conn: c.state,
            last_error: c.last_error.clone(),
            last_split_brain: c.last_split_brain.clone(),
            role: c.role,
            version: c.link.as_ref().filter(|_| c.is_up()).map_or(0, |l| l.negotiated.version),
            peer_devices,
        }
    }

    /// The present state as events.
    fn state_events(&self) -> Vec<Event> {
        let mut events = vec![Event::Role { role: self.role, suspended_quorum: self.suspended_for_quorum() }];
        for v in &self.volumes {
            let quorum = v.standing.has_quorum();
            events.push(Event::Device { volume: v.nr, disk: v.disk, size_sectors: v.size_sectors, quorum });
        }
        for c in &self.conns {
            events.push(Event::Connection { peer: c.node(), conn: c.state, role: c.role });
            for (pd, v) in c.pds.iter().zip(&self.volumes) {
                let (repl, paused_by) = (pd.shown_repl(), pd.paused_by);
                events.push(Event::PeerDevice { peer: c.node(), volume: v.nr, repl, peer_disk: pd.disk, paused_by });
            }
        }
        events
    }

    /// Tell what changed since the last time.
    pub(crate) fn announce(&mut self, cx: &mut Ctx<'_>) {
        if broken!(SkipEvents) {
            return;
        }
        let events = self.state_events();
        for event in &events {
            if !self.announced.contains(event) {
                cx.out.push(Action::Event(event.clone()));
            }
        }
        self.announced = events;
    }

    /// Whether the bitmap marks this sector out of sync towards `peer`; `None` if the volume is not attached or the peer has no
    /// slot. For checkers.
    pub fn is_out_of_sync(&self, volume: VolumeNr, peer: NodeId, sector: u64) -> Option<bool> {
        let v = &self.volumes[self.vidx(volume)?];
        v.slot(peer).map(|_| v.any_out_of_sync(peer, sector, 512))
    }

    /// Whether the sector lies in an active activity log extent. For checkers.
    pub fn is_al_active(&self, volume: VolumeNr, sector: u64) -> bool {
        let attached = self.vidx(volume).and_then(|v| self.volumes[v].attached.as_ref());
        attached.is_some_and(|a| a.al.active(crate::activity_log::extent_of(sector)))
    }

    /// A write in this extent is not stable everywhere, as far as this node knows.
    pub fn is_al_in_use(&self, volume: VolumeNr, sector: u64) -> bool {
        let attached = self.vidx(volume).and_then(|v| self.volumes[v].attached.as_ref());
        attached.is_some_and(|a| a.al.refs(crate::activity_log::extent_of(sector)) > 0)
    }

    /// Assert what must always hold.
    ///
    /// # Panics
    /// If it does not: a bug in this crate.
    pub fn check_invariants(&self) {
        for &index in &self.transfer_log {
            let w = &self.writes[index];
            assert!(w.waits & !w.sent == Default::default(), "a write waits for a peer that it was not sent to");
            for c in self.conns.iter().filter(|c| !c.is_up()) {
                assert!(!w.unstable.contains(c.node()), "a write waits for the barrier of a peer that is gone");
            }
        }
        assert_eq!(self.transfer_log.len(), self.writes.len(), "every write is in the transfer log");
        for c in &self.conns {
            assert!(
                c.is_up() == c.link.as_ref().is_some_and(|l| l.phase == crate::connection::LinkPhase::Up),
                "connected is a link that is up"
            );
            assert!(!c.recv.is_empty(), "one epoch is always open");
            for pd in &c.pds {
                assert!(c.is_up() || pd.repl == ReplState::Off, "replication without a connection");
                assert!(
                    pd.resync.is_some() == (pd.repl == ReplState::SyncTarget),
                    "requests go out exactly while this is a sync target"
                );
                assert!(
                    pd.verify.source.is_some() == (pd.repl == ReplState::VerifyS)
                        && pd.verify.target.is_some() == (pd.repl == ReplState::VerifyT),
                    "what is known of a verify is known while it runs"
                );
            }
        }
        for v in &self.volumes {
            let targets = self
                .conns
                .iter()
                .filter(|c| c.pds[self.vidx(v.nr).expect("own volume")].repl == ReplState::SyncTarget)
                .count();
            assert!(targets <= 1, "one source at a time");
        }
    }
}
