//! The end of a resync beside a Primary. One with an UpToDate disk has a bitmap that says what the target lacks. One that serves the
//! data of its peers has none; those who have its writes learn from its peer acks who lacks them, some time later
//! (wire-protocol.md 10.5). Beside it a target is complete when
//!
//! * it gets whatever the Primary writes, since they connected ([`PeerDevice::gets_all`](crate::connection::PeerDevice));
//! * its source is UpToDate, and connected to that Primary in the same generation;
//! * and its source has, asked on this connection, vouched for what the Primary had written by then ([`Vouched`]).

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::flags::UuidFlags;
use zea_wire::ids::{BlockId, NodeId, NodeMask};
use zea_wire::packet::{BlockReq, Packet, PeerDagtag};
use zea_wire::state::{DiskState, ReplState};

use crate::io::LinkId;
use crate::resource::{Ctx, Resource};

/// Whether a target that has all of its source has all of the Primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complete {
    /// Nothing is missing.
    Yes,
    /// It takes a while to know.
    NotYet,
    /// The Primary has written more.
    Behind,
}

/// The source of a resync is asked for a block behind all that a Primary had written, and tells before it answers what no peer ack
/// has come for yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Vouched {
    /// Not asked.
    #[default]
    No,
    /// The request is out. On that link to the Primary its writes were counted.
    Asked(BlockId, LinkId),
    /// It was answered.
    Yes(LinkId),
}

impl Resource {
    /// A connected Primary that serves the data of its peers, by connection.
    pub(crate) fn served_primary(&self, vidx: usize) -> Option<usize> {
        let cidx = self.primary_peer().and_then(|node| self.cidx(node))?;
        (self.conns[cidx].pds[vidx].disk != DiskState::UpToDate).then_some(cidx)
    }

    /// Whether the resync from this source leaves nothing out that a Primary wrote. Either the source is a neighbour of one that this
    /// node cannot see (6.5), or one that it does see wrote past it meanwhile (P_OUT_OF_SYNC), or see above.
    pub(crate) fn target_is_complete(&self, cidx: usize, vidx: usize) -> Complete {
        if let Some(primary) = self.served_primary(vidx).filter(|&primary| primary != cidx) {
            return self.is_complete_beside(primary, cidx, vidx);
        }
        let hidden = self.conns[cidx].pds[vidx].says.uuids.as_ref().is_some_and(|u| {
            let unstable = !u.uuid_flags.contains(UuidFlags::STABLE);
            // One that has died and is back is not the Primary that the source means: what it wrote then is not told any more.
            let seen = |node| self.was_primary_here(node) && self.is_at_generation(node, vidx, u.current);
            unstable && u.node_mask.iter().any(|primary| !seen(primary))
        });
        let written_past = self.primary_peer().and_then(|node| self.cidx(node)).is_some_and(|primary| {
            let pd = &self.conns[primary].pds[vidx];
            // Its bitmap is still to come.
            let told = pd.repl == ReplState::WFBitMapT && pd.says.uuids.as_ref().is_some_and(|u| u.dirty_bits > 0);
            told || self.volumes[vidx].dirty_bits(self.conns[primary].node()) > 0
        });
        match (hidden, written_past) {
            (true, _) if self.primary_back_by.is_some() => Complete::NotYet,
            (false, false) => Complete::Yes,
            _ => Complete::Behind,
        }
    }

    fn is_complete_beside(&self, primary: usize, cidx: usize, vidx: usize) -> Complete {
        let source = &self.conns[cidx].pds[vidx];
        let pd = &self.conns[primary].pds[vidx];
        let told = pd.says.current_uuid.or(pd.says.uuids.as_ref().map(|u| u.current)).unwrap_or(0);
        let has_all = source.says.uuids.as_ref().is_some_and(|u| {
            let neighbour = u.node_mask.contains(self.conns[primary].node());
            neighbour && !u.uuid_flags.contains(UuidFlags::STABLE) && u.current & !1 == told & !1
        });
        if !has_all || source.disk != DiskState::UpToDate {
            return Complete::Behind;
        }
        let link = self.conns[primary].link.as_ref().map(|link| Vouched::Yes(link.id));
        let vouched = source.resync.as_ref().map(|r| r.vouched);
        if pd.gets_all && link == vouched { Complete::Yes } else { Complete::NotYet }
    }

    fn was_primary_here(&self, node: NodeId) -> bool {
        let link = self.cidx(node).and_then(|c| self.conns[c].link.as_ref());
        node == self.config.node_id || link.is_some_and(|link| link.of_primary)
    }

    /// A node is connected and told of this generation. One that did not may have dropped the connection already, without this
    /// node having noticed.
    pub(crate) fn is_at_generation(&self, node: NodeId, vidx: usize, current: u64) -> bool {
        if node == self.config.node_id {
            return true;
        }
        let Some(c) = self.cidx(node).map(|c| &self.conns[c]).filter(|c| c.is_up()) else { return false };
        let says = &c.pds[vidx].says;
        let told = [says.uuids.as_ref().map(|u| u.current), says.current_uuid];
        told.iter().flatten().any(|uuid| uuid & !1 == current & !1)
    }

    /// Connected nodes that are at this generation.
    pub(crate) fn nodes_at(&self, vidx: usize, current: u64) -> NodeMask {
        let mut mask = NodeMask::EMPTY;
        for c in self.conns.iter().filter(|c| c.is_up()) {
            if c.pds[vidx].says.uuids.as_ref().is_some_and(|u| u.current & !1 == current & !1) {
                mask.insert(c.node());
            }
        }
        mask
    }

    /// No block is marked any more. What is left to do to be complete beside a Primary that serves the data of its peers.
    pub(crate) fn complete_target(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let Some(primary) = self.served_primary(vidx) else { return };
        let c = &self.conns[primary];
        if !c.pds[vidx].gets_all {
            return self.reconnect(cx, primary, "to get everything that the Primary writes");
        }
        let (Some(dagtag), Some(link), node_id) = (c.dagtag_received, c.link.as_ref().map(|l| l.id), c.node()) else {
            return;
        };
        let r = self.conns[cidx].pds[vidx].resync.as_ref().expect("a resync that ends");
        if r.retry_at.is_some_and(|t| cx.now < t) {
            return;
        }
        if self.conns[cidx].keeps_bits() {
            self.send(cx, cidx, None, Packet::PeerDagtag(PeerDagtag { dagtag, node_id }));
        }
        let len = u32::try_from(self.volumes[vidx].size_sectors.min(8) * 512).expect("a block");
        if let Some((_, id)) = self.resync_take(cidx, vidx, 0, len) {
            // For the data, not for a word that they are equal: that comes on the control stream, and may overtake the marks.
            self.resync_ask(cx, cidx, vidx, BlockReq { sector: 0, block_id: id, blksize: len, pad: 0 }, None);
            self.conns[cidx].pds[vidx].resync.as_mut().expect("above").vouched = Vouched::Asked(id, link);
        }
    }

    /// P_PEER_DAGTAG: the peer gets the later writes of that Primary itself, and relies on this node for those up to the dagtag.
    pub(crate) fn peer_relies(&mut self, cx: &mut Ctx<'_>, cidx: usize, told: PeerDagtag) {
        if self.conns[cidx].keeps_bits() && self.conns[cidx].is_up() {
            self.conns[cidx].relies_on = Some((told.node_id, told.dagtag));
            self.mark_relied_on(cx, cidx);
        }
    }

    /// What no peer ack covers yet of the writes that a target relies on this node for is marked: it may be missing there. A later
    /// peer ack says nothing new about it.
    pub(crate) fn mark_relied_on(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let Some((origin, until)) = self.conns[cidx].relies_on else { return };
        let Some(origin) = self.cidx(origin) else { return };
        let target = self.conns[cidx].node();
        for at in 0..self.conns[origin].kept.len() {
            let k = self.conns[origin].kept[at];
            if k.dagtag > until {
                break;
            }
            if !k.marked.contains(target) {
                self.conns[origin].kept[at].marked.insert(target);
                self.mark_missing(cx, cidx, k.vidx, k.sector, k.len);
            }
        }
    }

    /// In the handshake with another Zea node this one says that its Primary serves the data of its peers: nobody but they know what
    /// they lack. An Outdated disk is made UpToDate by nothing but a resync then, and be it one of not a block.
    pub(crate) fn compares_beside_served_primary(&self, cidx: usize, vidx: usize) -> bool {
        let primary = self.served_primary(vidx).filter(|&primary| primary != cidx);
        primary.is_some() && self.conns[cidx].keeps_bits() && !self.conns[cidx].is_up()
    }

    /// The disk is only Outdated: a Primary may leave writes out from here on.
    pub(crate) fn gets_no_longer_all(&mut self, vidx: usize) {
        self.conns.iter_mut().for_each(|c| c.pds[vidx].gets_all = false);
    }
}
