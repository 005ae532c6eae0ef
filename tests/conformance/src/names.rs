//! The random names that Zea chose, and those that the recorded node chose for the same things.

use std::collections::BTreeMap;

use zea_wire::ids::{BlockId, NodeId};
use zea_wire::packet::{Packet, TwopcReply, Uuids110};

/// Bit 0 of a current UUID tells the role, it is no part of the name.
const ROLE_BIT: u64 = 1;
/// UUIDs that are no names: none, "just created", "no information".
const FIXED: [u64; 3] = [0, 4, u64::MAX - ROLE_BIT];

/// One to one between numbers of the recording and numbers of Zea.
#[derive(Debug, Clone, Default)]
struct Pairs {
    to_recorded: BTreeMap<u64, u64>,
    to_own: BTreeMap<u64, u64>,
}

impl Pairs {
    /// Pairs two numbers, if neither has another partner.
    fn learn(&mut self, own: u64, recorded: u64) {
        if !self.to_recorded.contains_key(&own) && !self.to_own.contains_key(&recorded) {
            self.to_recorded.insert(own, recorded);
            self.to_own.insert(recorded, own);
        }
    }

    fn recorded(&self, own: u64) -> u64 {
        self.to_recorded.get(&own).copied().unwrap_or(own)
    }

    fn own(&self, recorded: u64) -> u64 {
        self.to_own.get(&recorded).copied().unwrap_or(recorded)
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Names {
    uuids: Pairs,
    tids: Pairs,
}

impl Names {
    fn learn_uuid(&mut self, own: u64, recorded: u64) {
        let (own, recorded) = (own & !ROLE_BIT, recorded & !ROLE_BIT);
        if !FIXED.contains(&own) && !FIXED.contains(&recorded) {
            self.uuids.learn(own, recorded);
        }
    }

    /// A packet of Zea stands for one of the recording: what they name is the same, as far as it is not known already.
    pub fn learn(&mut self, own: &Packet, recorded: &Packet) {
        match (own, recorded) {
            (Packet::Uuids110(a), Packet::Uuids110(b)) => {
                self.learn_uuid(a.current, b.current);
                for (node, uuid) in a.bitmap_uuids.iter() {
                    b.bitmap_uuids.get(node).into_iter().for_each(|other| self.learn_uuid(uuid, other));
                }
                for (own, recorded) in self.unknown_past(a, b) {
                    self.learn_uuid(own, recorded);
                }
            }
            (Packet::CurrentUuid(a), Packet::CurrentUuid(b)) => self.learn_uuid(a.uuid, b.uuid),
            (Packet::Uuids(a), Packet::Uuids(b)) => {
                let pairs = [(a.current, b.current), (a.bitmap, b.bitmap)];
                let past = [(a.history0, b.history0), (a.history1, b.history1)];
                pairs.into_iter().chain(past).for_each(|(own, recorded)| self.learn_uuid(own, recorded));
            }
            (Packet::SyncUuid(a), Packet::SyncUuid(b)) => self.learn_uuid(a.uuid, b.uuid),
            (Packet::TwopcPrepare(a), Packet::TwopcPrepare(b)) | (Packet::TwopcPrepRsz(a), Packet::TwopcPrepRsz(b)) => {
                self.tids.learn(a.tid.into(), b.tid.into());
            }
            _ => {}
        }
    }

    /// Former generations that neither side has named before, in their order.
    fn unknown_past(&self, own: &Uuids110, recorded: &Uuids110) -> Vec<(u64, u64)> {
        let unknown = |all: Vec<u64>, known: &BTreeMap<u64, u64>| {
            all.into_iter().filter(|uuid| !known.contains_key(uuid)).collect::<Vec<_>>()
        };
        let own = unknown(past(own), &self.uuids.to_recorded);
        let recorded = unknown(past(recorded), &self.uuids.to_own);
        own.into_iter().zip(recorded).collect()
    }

    /// A packet that the recorded peer sent: what it names by itself has that name on both sides; what it got from the node is
    /// given back under Zea's name.
    pub fn delivered(&mut self, packet: &Packet) -> Packet {
        let mut packet = packet.clone();
        match &mut packet {
            Packet::Uuids110(u) => {
                let seen: Vec<u64> = all_of(u).collect();
                seen.into_iter().for_each(|uuid| self.introduce(uuid));
                map_uuids(u, |uuid| self.own_uuid(uuid));
            }
            Packet::CurrentUuid(u) => {
                self.introduce(u.uuid);
                u.uuid = self.own_uuid(u.uuid);
            }
            Packet::Uuids(u) => {
                for uuid in [&mut u.current, &mut u.bitmap, &mut u.history0, &mut u.history1] {
                    self.introduce(*uuid);
                    *uuid = self.own_uuid(*uuid);
                }
            }
            Packet::SyncUuid(u) => {
                self.introduce(u.uuid);
                u.uuid = self.own_uuid(u.uuid);
            }
            Packet::TwopcYes(r) | Packet::TwopcNo(r) | Packet::TwopcRetry(r) => r.tid = self.own_tid(r.tid),
            Packet::TwopcPrepare(r) | Packet::TwopcCommit(r) | Packet::TwopcAbort(r) | Packet::TwopcPrepRsz(r) => {
                self.tids.learn(r.tid.into(), r.tid.into());
                r.tid = self.own_tid(r.tid);
            }
            _ => {}
        }
        packet
    }

    fn introduce(&mut self, uuid: u64) {
        self.learn_uuid(uuid, uuid);
    }

    fn own_uuid(&self, recorded: u64) -> u64 {
        self.uuids.own(recorded & !ROLE_BIT) | recorded & ROLE_BIT
    }

    fn own_tid(&self, recorded: u32) -> u32 {
        self.tids.own(recorded.into()) as u32
    }

    /// A packet of Zea in the words of the recording.
    pub fn recorded(&self, packet: &Packet) -> Packet {
        let mut packet = packet.clone();
        let uuid = |uuid: u64| self.uuids.recorded(uuid & !ROLE_BIT) | uuid & ROLE_BIT;
        let reply = |r: &mut TwopcReply| r.tid = self.tids.recorded(r.tid.into()) as u32;
        match &mut packet {
            Packet::Uuids110(u) => map_uuids(u, uuid),
            Packet::CurrentUuid(u) => u.uuid = uuid(u.uuid),
            Packet::Uuids(u) => {
                for value in [&mut u.current, &mut u.bitmap, &mut u.history0, &mut u.history1] {
                    *value = uuid(*value);
                }
            }
            Packet::SyncUuid(u) => u.uuid = uuid(u.uuid),
            Packet::TwopcYes(r) | Packet::TwopcNo(r) | Packet::TwopcRetry(r) => reply(r),
            Packet::TwopcPrepare(r) | Packet::TwopcCommit(r) | Packet::TwopcAbort(r) | Packet::TwopcPrepRsz(r) => {
                r.tid = self.tids.recorded(r.tid.into()) as u32;
            }
            _ => {}
        }
        packet
    }
}

fn all_of(u: &Uuids110) -> impl Iterator<Item = u64> + '_ {
    let bitmaps = u.bitmap_uuids.iter().map(|(_, uuid)| uuid);
    [u.current].into_iter().chain(bitmaps).chain(u.history.iter().copied())
}

fn map_uuids(u: &mut Uuids110, map: impl Fn(u64) -> u64) {
    u.current = map(u.current);
    let bitmaps: Vec<(NodeId, u64)> = u.bitmap_uuids.iter().collect();
    bitmaps.into_iter().for_each(|(node, uuid)| u.bitmap_uuids.set(node, map(uuid)));
    u.history.iter_mut().for_each(|uuid| *uuid = map(*uuid));
}

/// The former generations that a packet tells: the bitmap UUID that it sends for a node without a slot, and the history. Without
/// bit 0, each once.
pub fn past(u: &Uuids110) -> Vec<u64> {
    let unallocated = u.uuid_flags.unalloc_node().and_then(|node| u.bitmap_uuids.get(node));
    let mut past = Vec::new();
    for uuid in unallocated.into_iter().chain(u.history.iter().copied()) {
        let uuid = uuid & !ROLE_BIT;
        if !FIXED.contains(&uuid) && uuid != u.current & !ROLE_BIT && !past.contains(&uuid) {
            past.push(uuid);
        }
    }
    past
}

/// The same packet with another block id, for answers to what Zea sent.
pub fn with_block_id(packet: &Packet, id: BlockId) -> Packet {
    let mut packet = packet.clone();
    match &mut packet {
        Packet::WriteAck(a)
        | Packet::RecvAck(a)
        | Packet::NegAck(a)
        | Packet::WriteAckInSync(a)
        | Packet::Superseded(a)
        | Packet::RetryWrite(a)
        | Packet::NegDreply(a)
        | Packet::NegRsDreply(a)
        | Packet::RsCancel(a)
        | Packet::RsCancelAhead(a)
        | Packet::RsIsInSync(a)
        | Packet::RsDeallocatedId(a) => a.block_id = id,
        Packet::OvReply(r) => r.req.block_id = id,
        Packet::OvDagtagReply(r) => r.req.block_id = id,
        Packet::OvResultId(r) => r.block_id = id,
        Packet::DataReply(d) | Packet::RsDataReply(d) => d.block_id = id,
        _ => {}
    }
    packet
}

/// The block id that a packet asks with.
pub fn block_id(packet: &Packet) -> Option<BlockId> {
    Some(match packet {
        Packet::Data(d) => d.block_id,
        Packet::Trim(t) | Packet::Zeroes(t) => t.block_id,
        Packet::DataRequest(r) | Packet::RsDataRequest(r) | Packet::RsThinReq(r) | Packet::OvRequest(r) => r.block_id,
        Packet::CsumRsRequest(r) | Packet::OvReply(r) => r.req.block_id,
        Packet::RsDagtagReq(r) | Packet::RsThinDagtagReq(r) | Packet::OvDagtagReq(r) => r.block_id,
        Packet::RsCsumDagtagReq(r) | Packet::OvDagtagReply(r) => r.req.block_id,
        _ => return None,
    })
}
