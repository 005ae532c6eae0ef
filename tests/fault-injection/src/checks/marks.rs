//! Bitmap soundness: each block that differs between replicas which may meet without a full resync is being written, lies in
//! an active extent of the activity log, or has its bit set on one of them. Replicas on nodes that are down count with what
//! their meta data says.

use std::collections::BTreeMap;

use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState};

use super::Check;
use super::offline::Offline;
use crate::net::NodeIx;
use crate::node::Node;
use crate::world::{World, node_id};

const JUST_CREATED: u64 = 4;

fn same(a: u64, b: u64) -> bool {
    (a ^ b) & !1 == 0 && a & !1 != 0 && a & !1 != JUST_CREATED && a != u64::MAX
}

impl World {
    pub(super) fn check_bitmaps(&mut self) {
        let count = self.nodes.len();
        let volumes: Vec<VolumeNr> = self.nodes[0].disks.keys().copied().collect();
        for volume in volumes {
            let offline: BTreeMap<NodeIx, Offline> = (0..count)
                .filter(|ix| self.is_offline(*ix, volume))
                .filter_map(|ix| Some((ix, Offline::read(&self.nodes[ix].disks[&volume])?)))
                .collect();
            for (a, b) in (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))) {
                if let Some(sector) = self.unmarked(a, b, volume, &offline) {
                    let text = self.describe_difference(a, b, volume, sector);
                    self.fail(Check::Bitmap, &format!("{text}, and no bit says so"));
                }
            }
        }
    }

    /// No core has the disk: what is in its meta data is all there is.
    fn is_offline(&self, ix: NodeIx, volume: VolumeNr) -> bool {
        let node = &self.nodes[ix];
        let Some(disk) = node.disks.get(&volume) else {
            return false;
        };
        (!node.is_up() || node.disk_state(volume) == DiskState::Diskless)
            && !disk.busy()
            && disk.faults == Default::default()
    }

    /// An unmarked difference between two replicas that would meet without a full resync.
    fn unmarked(&self, a: NodeIx, b: NodeIx, volume: VolumeNr, offline: &BTreeMap<NodeIx, Offline>) -> Option<u64> {
        let usable = |ix: NodeIx| {
            let state = self.nodes[ix].disk_state(volume);
            let live = self.nodes[ix].is_up() && state > DiskState::Inconsistent && state != DiskState::DUnknown;
            live || offline.get(&ix).is_some_and(Offline::is_consistent)
        };
        if !usable(a) || !usable(b) || (offline.contains_key(&a) && offline.contains_key(&b)) {
            return None;
        }
        let up_to_date =
            |ix: NodeIx| !offline.contains_key(&ix) && self.nodes[ix].disk_state(volume) == DiskState::UpToDate;
        let related = (up_to_date(a) && up_to_date(b)) || self.meet_by_bits(a, b, volume, offline);
        if !related || self.model.diverged(a, b, volume.0) {
            return None;
        }
        let marked = |x: NodeIx, y: NodeIx, s: u64| offline.get(&x).is_some_and(|o| o.is_marked(y, s));
        let sectors = self.common_sectors(a, b, volume);
        let knows = |x: NodeIx, y: NodeIx| !offline.contains_key(&x) && self.knows_what_it_has(x, y, volume);
        let (a_knows, b_knows) = (knows(a, b), knows(b, a));
        let (disk_a, disk_b) = (&self.nodes[a].disks[&volume], &self.nodes[b].disks[&volume]);
        let mut differing =
            self.model.touched(volume.0).filter(|s| *s < sectors && disk_a.sector(*s) != disk_b.sector(*s));
        differing.find(|s| {
            let writer = self.model.settled_writer((volume.0, *s));
            let known = (a_knows && writer == Some(a)) || (b_knows && writer == Some(b));
            self.differs_unexplained(a, b, volume, *s, !known) && !marked(a, b, *s) && !marked(b, a, *s)
        })
    }

    /// A node knows what a peer has of its writes: the peer is away, or has acknowledged each. Then an active extent explains
    /// nothing.
    fn knows_what_it_has(&self, ix: NodeIx, peer: NodeIx, volume: VolumeNr) -> bool {
        let away = self.nodes[ix].conn_state(peer) != ConnState::Connected;
        self.nodes[ix].is_protocol_c() && (away || self.mutually_in_sync(ix, peer, volume))
    }

    /// Their UUIDs say that bits are enough.
    fn meet_by_bits(&self, a: NodeIx, b: NodeIx, volume: VolumeNr, offline: &BTreeMap<NodeIx, Offline>) -> bool {
        let current = |x: NodeIx| match offline.get(&x) {
            Some(o) => o.current_uuid(),
            None => self.nodes[x].device(volume).map_or(0, |d| d.current_uuid),
        };
        let bitmap = |x: NodeIx, y: NodeIx| match offline.get(&x) {
            Some(o) => o.bitmap_uuid(y),
            None => self.nodes[x].peer_device(y, volume).map_or(0, |p| p.bitmap_uuid),
        };
        same(current(a), current(b)) || same(bitmap(a, b), current(b)) || same(bitmap(b, a), current(a))
    }

    pub(super) fn common_sectors(&self, a: NodeIx, b: NodeIx, volume: VolumeNr) -> u64 {
        self.nodes[a].disks[&volume].data_sectors().min(self.nodes[b].disks[&volume].data_sectors())
    }

    /// A sector differs, is not being written, and no core that is up marks it; `hot`: an active extent is a mark.
    pub(super) fn differs_unexplained(&self, a: NodeIx, b: NodeIx, volume: VolumeNr, sector: u64, hot: bool) -> bool {
        let (disk_a, disk_b) = (&self.nodes[a].disks[&volume], &self.nodes[b].disks[&volume]);
        if disk_a.sector(sector) == disk_b.sector(sector) {
            return false;
        }
        let marked = |x: NodeIx, y: NodeIx| {
            self.nodes[x].core.as_ref().is_some_and(|core| {
                core.is_out_of_sync(volume, node_id(y), sector) == Some(true)
                    || (hot && core.is_al_active(volume, sector))
            })
        };
        if self.may_be_on_its_way(a, b, (volume.0, sector)) {
            return false;
        }
        let busy = disk_a.writes_in_flight().chain(disk_b.writes_in_flight()).any(|r| r.contains(&sector));
        !(busy || marked(a, b) || marked(b, a) || self.model.write_in_flight((volume.0, sector)))
    }

    /// With protocols A and B a write may be completed before it reaches a third node, or while it waits there for its turn;
    /// its Primary keeps the extent in use until it is stable everywhere.
    fn may_be_on_its_way(&self, a: NodeIx, b: NodeIx, (volume, sector): (u16, u64)) -> bool {
        if self.nodes[a].is_protocol_c() && self.nodes[b].is_protocol_c() {
            return false;
        }
        let in_use = |node: &Node| node.core.as_ref().is_some_and(|core| core.is_al_in_use(VolumeNr(volume), sector));
        let writer = self.model.settled_writer((volume, sector));
        self.nodes.iter().any(in_use)
            || writer.is_some_and(|w| [a, b].iter().any(|x| *x != w && !self.net.is_quiet(w, *x)))
    }

    pub(super) fn describe_difference(&self, a: NodeIx, b: NodeIx, volume: VolumeNr, sector: u64) -> String {
        let at = |ix: NodeIx| crate::model::describe_tag(self.nodes[ix].disks[&volume].sector(sector));
        let state = |ix: NodeIx| {
            let node = &self.nodes[ix];
            if node.is_up() { node.disk_state(volume).to_string() } else { "down".into() }
        };
        format!(
            "volume {volume} sector {sector} differs between node {a} ({}: {}) and node {b} ({}: {})",
            state(a),
            at(a),
            state(b),
            at(b)
        )
    }
}
