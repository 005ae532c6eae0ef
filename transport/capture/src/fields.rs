//! What the fields of a packet say, for people and for programs.
//!
//! Every field of every packet is here: the patterns below name them all, so a new field does not compile without.

use std::fmt;

use zea_wire::Negotiated;
use zea_wire::digest::Digest;
use zea_wire::features::ConnectionFeatures;
use zea_wire::packet::{
    AuthChallenge, AuthResponse, Barrier, BarrierAck, Bitmap, BlockAck, BlockDesc, BlockReq, BlockReqDigest,
    CompressedBitmap, ConfirmStable, CurrentUuid, Dagtag, Data, DelayProbe, EnableReplication, FlushAck, FlushForward,
    FlushRequests, OvResult, OvVerdict, Packet, PeerAck, PeerBlockDesc, PeerDagtag, Protocol, QueueLimits,
    ReplicationProtocol, ReqState, RetCode, RsReq, RsReqDigest, Sizes, State, SyncController, SyncParam, SyncParam89,
    Trim, TwopcBody, TwopcReply, TwopcRequest, Uuid, Uuids, Uuids110, Wsame,
};
use zea_wire::state::{DiskState, Role, StateBits};
use zea_wire::vli;

/// What a field says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A number that may be negative.
    Signed(i64),
    /// Yes or no.
    Flag(bool),
    /// A name, flags, or a number that is better read in hexadecimal.
    Text(String),
    /// Several.
    List(Vec<Value>),
    /// None.
    None,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => number.fmt(f),
            Value::Signed(number) => number.fmt(f),
            Value::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Value::Text(text) if text.is_empty() => f.write_str("-"),
            Value::Text(text) => f.write_str(text),
            Value::List(values) => {
                f.write_str("[")?;
                for (i, value) in values.iter().enumerate() {
                    let space = if i == 0 { "" } else { " " };
                    write!(f, "{space}{value}")?;
                }
                f.write_str("]")
            }
            Value::None => f.write_str("none"),
        }
    }
}

macro_rules! from_number {
    ($($number:ty),+) => {
        $( impl From<$number> for Value {
            fn from(number: $number) -> Self {
                Value::Number(number.into())
            }
        } )+
    };
}
from_number!(u8, u16, u32, u64);

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Value::Flag(flag)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

/// A field: its name, as in the reference, and what it says.
pub type Field = (&'static str, Value);

/// The fields of a packet in their order on the wire, at what was agreed when it was sent.
#[must_use]
pub fn fields(packet: &Packet, neg: &Negotiated) -> Vec<Field> {
    let mut out = Out { fields: Vec::new(), version: neg.version };
    out.packet(packet);
    out.fields
}

struct Out {
    fields: Vec<Field>,
    version: u32,
}

impl Out {
    fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        self.fields.push((name, value.into()));
    }

    /// Something that prints itself well.
    fn show(&mut self, name: &'static str, value: impl fmt::Display) {
        self.put(name, value.to_string());
    }

    fn uuid(&mut self, name: &'static str, uuid: u64) {
        self.put(name, hex64(uuid));
    }

    fn packet(&mut self, packet: &Packet) {
        match packet {
            Packet::UnplugRemote
            | Packet::Ping
            | Packet::PingAck
            | Packet::Disconnect
            | Packet::InitialMeta
            | Packet::InitialData => {}
            Packet::Data(p) | Packet::DataReply(p) | Packet::RsDataReply(p) => self.data(*p),
            Packet::Barrier(p) => self.barrier(*p),
            Packet::Bitmap(p) => self.bitmap(p),
            Packet::DataRequest(p) | Packet::RsDataRequest(p) | Packet::OvRequest(p) | Packet::RsThinReq(p) => {
                self.block_req(*p);
            }
            Packet::SyncParam(p) => self.sync_param(p),
            Packet::Protocol(p) | Packet::ProtocolUpdate(p) => self.protocol(p),
            Packet::Uuids(p) => self.uuids(**p),
            Packet::Sizes(p) => self.sizes(**p),
            Packet::State(State { state }) => self.state(*state),
            Packet::SyncUuid(Uuid { uuid }) => self.uuid("uuid", *uuid),
            Packet::AuthChallenge(AuthChallenge { challenge }) => self.put("challenge", bytes(&challenge[..])),
            Packet::AuthResponse(AuthResponse { response }) => self.digest("response", response),
            Packet::StateChgReq(p) | Packet::ConnStChgReq(p) => self.req_state(*p),
            Packet::OvResult(p) => self.ov_result(*p),
            Packet::RecvAck(p)
            | Packet::WriteAck(p)
            | Packet::RsWriteAck(p)
            | Packet::Superseded(p)
            | Packet::NegAck(p)
            | Packet::NegDreply(p)
            | Packet::NegRsDreply(p)
            | Packet::RsIsInSync(p)
            | Packet::RsCancel(p)
            | Packet::RetryWrite(p)
            | Packet::RsCancelAhead(p)
            | Packet::WriteAckInSync(p)
            | Packet::RsNegAck(p)
            | Packet::RsDeallocatedId(p) => self.block_ack(*p),
            Packet::BarrierAck(p) => self.barrier_ack(*p),
            Packet::StateChgReply(RetCode { retcode }) | Packet::ConnStChgReply(RetCode { retcode }) => {
                self.put("retcode", Value::Signed((*retcode).into()));
            }
            Packet::OvReply(BlockReqDigest { req, digest }) | Packet::CsumRsRequest(BlockReqDigest { req, digest }) => {
                self.block_req(*req);
                self.digest("digest", digest);
            }
            Packet::SyncParam89(p) => self.sync_param89(p),
            Packet::CompressedBitmap(p) => self.compressed_bitmap(p),
            Packet::DelayProbe(DelayProbe { seq_num, offset }) => {
                self.put("seq_num", *seq_num);
                self.put("offset", *offset);
            }
            Packet::OutOfSync(BlockDesc { sector, blksize }) | Packet::RsDeallocated(BlockDesc { sector, blksize }) => {
                self.put("sector", *sector);
                self.put("blksize", *blksize);
            }
            Packet::TwopcPrepare(p) | Packet::TwopcAbort(p) | Packet::TwopcPrepRsz(p) | Packet::TwopcCommit(p) => {
                self.twopc_request(**p);
            }
            Packet::TwopcYes(p) | Packet::TwopcNo(p) | Packet::TwopcRetry(p) => self.twopc_reply(*p),
            Packet::Dagtag(Dagtag { dagtag }) => self.put("dagtag", *dagtag),
            Packet::Trim(p) | Packet::Zeroes(p) | Packet::Wsame(Wsame { trim: p }) => self.trim(*p),
            Packet::PeerAck(PeerAck { mask, dagtag }) => {
                self.show("mask", mask);
                self.put("dagtag", *dagtag);
            }
            Packet::PeersInSync(PeerBlockDesc { sector, mask, size }) => {
                self.put("sector", *sector);
                self.show("mask", mask);
                self.put("size", *size);
            }
            Packet::Uuids110(p) => self.uuids110(p),
            Packet::PeerDagtag(PeerDagtag { dagtag, node_id }) => {
                self.put("dagtag", *dagtag);
                self.put("node_id", node_id.0);
            }
            Packet::CurrentUuid(CurrentUuid { uuid, weak_nodes }) => {
                self.uuid("uuid", *uuid);
                self.show("weak_nodes", weak_nodes);
            }
            Packet::ConfirmStable(p) => self.confirm_stable(*p),
            Packet::RsDagtagReq(p) | Packet::RsThinDagtagReq(p) | Packet::OvDagtagReq(p) => self.rs_req(*p),
            Packet::RsCsumDagtagReq(RsReqDigest { req, digest })
            | Packet::OvDagtagReply(RsReqDigest { req, digest }) => {
                self.rs_req(*req);
                self.digest("digest", digest);
            }
            Packet::OvResultId(p) => self.ov_result_id(*p),
            Packet::FlushRequests(FlushRequests { flush_sequence }) => self.put("flush_sequence", *flush_sequence),
            Packet::FlushForward(FlushForward { flush_sequence, initiator_node_id }) => {
                self.put("flush_sequence", *flush_sequence);
                self.put("initiator_node_id", initiator_node_id.0);
            }
            Packet::FlushRequestsAck(FlushAck { flush_sequence, primary_node_id }) => {
                self.put("flush_sequence", *flush_sequence);
                self.put("primary_node_id", primary_node_id.0);
            }
            Packet::EnableReplicationNext(EnableReplication { enable })
            | Packet::EnableReplication(EnableReplication { enable }) => self.put("enable", *enable),
            Packet::ConnectionFeatures(p) => self.features(**p),
        }
    }

    fn data(&mut self, data: Data) {
        let Data { sector, block_id, seq_num, dp_flags } = data;
        self.put("sector", sector);
        self.show("block_id", block_id);
        self.put("seq_num", seq_num);
        self.show("dp_flags", dp_flags);
    }

    fn trim(&mut self, trim: Trim) {
        let Trim { sector, block_id, seq_num, dp_flags, size } = trim;
        self.data(Data { sector, block_id, seq_num, dp_flags });
        self.put("size", size);
    }

    fn block_req(&mut self, req: BlockReq) {
        let BlockReq { sector, block_id, blksize, pad } = req;
        self.put("sector", sector);
        self.show("block_id", block_id);
        self.put("blksize", blksize);
        if pad != 0 {
            self.put("pad", format!("{pad:#x}"));
        }
    }

    fn rs_req(&mut self, req: RsReq) {
        let RsReq { sector, block_id, blksize, dagtag_node_id, dagtag } = req;
        self.put("sector", sector);
        self.show("block_id", block_id);
        self.put("blksize", blksize);
        self.put("dagtag_node_id", dagtag_node_id.0);
        self.put("dagtag", dagtag);
    }

    fn block_ack(&mut self, ack: BlockAck) {
        let BlockAck { sector, block_id, blksize, seq_num } = ack;
        self.put("sector", sector);
        self.show("block_id", block_id);
        self.put("blksize", blksize);
        self.put("seq_num", seq_num);
    }

    /// The block id is the verdict.
    fn ov_result(&mut self, ack: BlockAck) {
        self.block_ack(ack);
        self.verdict(Some(OvVerdict::from_block_id(ack.block_id)));
    }

    fn ov_result_id(&mut self, result: OvResult) {
        let OvResult { sector, block_id, blksize, seq_num, result } = result;
        self.block_ack(BlockAck { sector, block_id, blksize, seq_num });
        self.verdict(OvVerdict::from_result(result));
    }

    fn verdict(&mut self, verdict: Option<OvVerdict>) {
        let name = match verdict {
            Some(OvVerdict::Skipped) => "skipped",
            Some(OvVerdict::InSync) => "in-sync",
            Some(OvVerdict::OutOfSync) => "out-of-sync",
            None => "unknown",
        };
        self.show("result", name);
    }

    /// Opaque to its receiver; the kernels that are met count in little endian.
    fn barrier(&mut self, barrier: Barrier) {
        let Barrier { barrier } = barrier;
        self.put("barrier", barrier.swap_bytes());
    }

    fn barrier_ack(&mut self, ack: BarrierAck) {
        let BarrierAck { barrier, set_size } = ack;
        self.barrier(Barrier { barrier });
        self.put("set_size", set_size);
    }

    fn confirm_stable(&mut self, confirm: ConfirmStable) {
        let ConfirmStable { oldest_block_id, youngest_block_id, set_size } = confirm;
        self.show("oldest_block_id", oldest_block_id);
        self.show("youngest_block_id", youngest_block_id);
        self.put("set_size", set_size);
    }

    fn digest(&mut self, name: &'static str, digest: &Digest) {
        self.put(name, bytes(digest.as_slice()));
    }

    fn protocol(&mut self, protocol: &Protocol) {
        let Protocol { protocol, after_sb_0p, after_sb_1p, after_sb_2p, conn_flags, two_primaries, integrity_alg } =
            protocol;
        match ReplicationProtocol::from_wire(*protocol) {
            Some(known) => self.put("protocol", format!("{known:?}")),
            None => self.put("protocol", *protocol),
        }
        self.put("after_sb_0p", *after_sb_0p);
        self.put("after_sb_1p", *after_sb_1p);
        self.put("after_sb_2p", *after_sb_2p);
        self.show("conn_flags", conn_flags);
        self.put("two_primaries", *two_primaries);
        self.show("integrity_alg", integrity_alg.as_str());
    }

    fn sync_param(&mut self, param: &SyncParam) {
        let SyncParam { resync_rate, verify_alg } = param;
        self.put("resync_rate", *resync_rate);
        self.show("verify_alg", verify_alg.as_str());
    }

    fn sync_param89(&mut self, param: &SyncParam89) {
        let SyncParam89 { resync_rate, verify_alg, csums_alg, controller } = param;
        let SyncController { c_plan_ahead, c_delay_target, c_fill_target, c_max_rate } = *controller;
        self.put("resync_rate", *resync_rate);
        self.show("verify_alg", verify_alg.as_str());
        self.show("csums_alg", csums_alg.as_str());
        self.put("c_plan_ahead", c_plan_ahead);
        self.put("c_delay_target", c_delay_target);
        self.put("c_fill_target", c_fill_target);
        self.put("c_max_rate", c_max_rate);
    }

    fn sizes(&mut self, sizes: Sizes) {
        let Sizes { d_size, u_size, c_size, max_bio_size, queue_order_type, dds_flags, qlim } = sizes;
        self.put("d_size", d_size);
        self.put("u_size", u_size);
        self.put("c_size", c_size);
        self.put("max_bio_size", max_bio_size);
        self.put("queue_order_type", queue_order_type);
        self.show("dds_flags", dds_flags);
        if let Some(limits) = qlim {
            self.queue_limits(limits);
        }
    }

    fn queue_limits(&mut self, limits: QueueLimits) {
        let QueueLimits {
            physical_block_size,
            logical_block_size,
            alignment_offset,
            io_min,
            io_opt,
            discard_enabled,
            discard_zeroes_data,
            write_same_capable,
            bm_block_shift_minus_12,
        } = limits;
        self.put("physical_block_size", physical_block_size);
        self.put("logical_block_size", logical_block_size);
        self.put("alignment_offset", alignment_offset);
        self.put("io_min", io_min);
        self.put("io_opt", io_opt);
        self.put("discard_enabled", discard_enabled);
        self.put("discard_zeroes_data", discard_zeroes_data);
        self.put("write_same_capable", write_same_capable);
        self.put("bm_block_shift_minus_12", bm_block_shift_minus_12);
    }

    fn uuids(&mut self, uuids: Uuids) {
        let Uuids { current, bitmap, history0, history1, dirty_bits, uuid_flags } = uuids;
        self.uuid("current", current);
        self.uuid("bitmap", bitmap);
        self.uuid("history0", history0);
        self.uuid("history1", history1);
        self.put("dirty_bits", dirty_bits);
        self.show("uuid_flags", uuid_flags);
    }

    fn uuids110(&mut self, uuids: &Uuids110) {
        let Uuids110 { current, dirty_bits, uuid_flags, node_mask, bitmap_uuids, history } = uuids;
        self.uuid("current", *current);
        self.put("dirty_bits", *dirty_bits);
        self.show("uuid_flags", uuid_flags);
        self.show("node_mask", node_mask);
        let by_node = bitmap_uuids.iter().map(|(node, uuid)| Value::Text(format!("{node}:{}", hex64(uuid))));
        self.put("bitmap_uuids", Value::List(by_node.collect()));
        // The slots that were never used are at the end.
        let used = history.iter().rposition(|&uuid| uuid != 0).map_or(0, |last| last + 1);
        let used = history[..used].iter().map(|&uuid| Value::Text(hex64(uuid)));
        self.put("history", Value::List(used.collect()));
        self.put("history_slots", history.len() as u64);
    }

    fn features(&mut self, features: ConnectionFeatures) {
        let ConnectionFeatures { protocol_min, feature_flags, protocol_max, sender_node_id, receiver_node_id } =
            features;
        self.put("protocol_min", protocol_min);
        self.show("feature_flags", feature_flags);
        self.put("protocol_max", protocol_max);
        self.put("sender_node_id", sender_node_id);
        self.put("receiver_node_id", receiver_node_id);
    }

    fn state(&mut self, state: StateBits) {
        let all = StateBits::ROLE | StateBits::PEER | StateBits::CONN | StateBits::DISK | StateBits::PDSK;
        self.state_fields(all, state, "Off");
        self.show("flags", state.without(all));
    }

    fn req_state(&mut self, req: ReqState) {
        let ReqState { mask, val } = req;
        self.change(mask, val);
    }

    /// A state change: the fields that it names, and both words.
    fn change(&mut self, mask: StateBits, val: StateBits) {
        self.put("mask", format!("{:#x}", mask.0));
        self.put("val", format!("{:#x}", val.0));
        self.state_fields(mask, val, "Connected");
    }

    /// The fields of `val` that `mask` names. The number 9 of the connection has one name in states and another in
    /// changes: `nine`.
    fn state_fields(&mut self, mask: StateBits, val: StateBits, nine: &'static str) {
        let named = |field| mask.contains(field);
        if named(StateBits::ROLE) {
            self.put("role", role(val.role()));
        }
        if named(StateBits::PEER) {
            self.put("peer", role(val.peer()));
        }
        if named(StateBits::CONN) {
            self.put("conn", conn(val, self.version, nine));
        }
        if named(StateBits::DISK) {
            self.put("disk", disk(val, StateBits::DISK, self.version));
        }
        if named(StateBits::PDSK) {
            self.put("pdsk", disk(val, StateBits::PDSK, self.version));
        }
    }

    fn twopc_request(&mut self, request: TwopcRequest) {
        let TwopcRequest { tid, flags, initiator_node_id, target_node_id, nodes_to_reach, body } = request;
        self.put("tid", format!("{tid:08x}"));
        self.show("flags", flags);
        self.put("initiator_node_id", initiator_node_id.0);
        self.put("target_node_id", target_node_id.map_or(Value::None, |node| node.0.into()));
        self.show("nodes_to_reach", nodes_to_reach);
        match body {
            TwopcBody::Prepare { mask, val } => self.change(mask, val),
            TwopcBody::PrepareResize { user_size, dds_flags, undefined: _ } => {
                self.put("user_size", user_size);
                self.show("dds_flags", dds_flags);
            }
            TwopcBody::CommitReachable { primary_nodes, reachable_nodes } => {
                self.show("primary_nodes", primary_nodes);
                self.show("reachable_nodes", reachable_nodes);
            }
            TwopcBody::Commit { primary_nodes, last } => {
                self.show("primary_nodes", primary_nodes);
                self.put("mask_val_or_size", format!("{last:#x}"));
            }
            TwopcBody::Abort => {}
        }
    }

    fn twopc_reply(&mut self, reply: TwopcReply) {
        let TwopcReply { tid, initiator_node_id, reachable_nodes, primary_nodes, weak_nodes_or_max_size } = reply;
        self.put("tid", format!("{tid:08x}"));
        self.put("initiator_node_id", initiator_node_id.0);
        self.show("reachable_nodes", reachable_nodes);
        self.show("primary_nodes", primary_nodes);
        self.put("weak_nodes_or_max_size", format!("{weak_nodes_or_max_size:#x}"));
    }

    fn bitmap(&mut self, bitmap: &Bitmap) {
        let Bitmap { words } = bitmap;
        self.put("words", words.len() as u64 / 8);
        self.put("bits_set", words.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>());
    }

    /// The runs from where the part before ended.
    fn compressed_bitmap(&mut self, bitmap: &CompressedBitmap) {
        let CompressedBitmap { encoding, code } = bitmap;
        self.put("encoding", format!("{encoding:#04x}"));
        self.put("code", bytes(code));
        let runs: Result<Vec<_>, _> = vli::decode_part(bitmap, 0, u64::MAX).and_then(Iterator::collect);
        match runs {
            Ok(runs) => {
                let run = |run: &vli::Run| Value::Text(format!("{}{}", if run.set { "+" } else { "-" }, run.len));
                self.put("runs", Value::List(runs.iter().map(run).collect()));
                self.put("bits_set", runs.iter().filter(|run| run.set).map(|run| run.len).sum::<u64>());
            }
            Err(error) => self.show("runs", error),
        }
    }
}

fn hex64(number: u64) -> String {
    format!("{number:016X}")
}

fn bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn role(role: Option<Role>) -> String {
    role.map_or_else(|| "?".to_owned(), |role| role.to_string())
}

fn disk(state: StateBits, field: StateBits, version: u32) -> String {
    let number = ((state & field).0 >> field.0.trailing_zeros()) as u8;
    let disk = if version < 110 { DiskState::from_wire_pre110(number) } else { DiskState::from_u8(number) };
    disk.map_or_else(|| number.to_string(), |disk| disk.to_string())
}

/// 8.4 has names of its own for 8 to 10.
fn conn(state: StateBits, version: u32, nine: &str) -> String {
    let Some(field) = state.conn() else {
        return "?".to_owned();
    };
    match field.number() {
        8 if version < 110 => "WFConnection".to_owned(),
        9 if version < 110 => "WFReportParams".to_owned(),
        10 if version < 110 => "Connected".to_owned(),
        9 => nine.to_owned(),
        0..=8 => field.conn_state().expect("up to 8 it is one").to_string(),
        _ => field.repl_state().expect("from 9 on it is one").to_string(),
    }
}
