//! Arbitrary packets: for every command and every agreement a strategy for legal packets.

use proptest::collection::vec;
use proptest::prelude::*;
use zea_wire::bitmap;
use zea_wire::digest::Digest;
use zea_wire::features::{ConnectionFeatures, Features, Negotiated};
use zea_wire::flags::{ConnFlags, DdsFlags, DpFlags, TwopcFlags, UuidFlags};
use zea_wire::fuzz::AGREEMENTS;
use zea_wire::header::HeaderFormat;
use zea_wire::ids::{BlockId, NodeId, NodeMask, VolumeNr};
use zea_wire::packet::*;
use zea_wire::state::{ConnField, DiskState, Role, StateBits, StateWord};

/// A packet with everything that is needed to send it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) neg: Negotiated,
    pub(crate) volume: Option<VolumeNr>,
    pub(crate) packet: Packet,
    pub(crate) digest: Vec<u8>,
    pub(crate) payload_len: usize,
}

impl Sent {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Sent { neg, volume, packet, digest, payload_len } = self;
        let mut out = Vec::new();
        packet.encode_with_digest(neg, *volume, digest, *payload_len, &mut out);
        out
    }
}

/// The commands of the packet table.
pub(crate) fn commands() -> impl Iterator<Item = u16> {
    (0..=u16::MAX).filter(|&c| rule(c).is_some())
}

/// Any packet under any agreement.
pub(crate) fn any_sent() -> impl Strategy<Value = Sent> {
    let pairs: Vec<_> = AGREEMENTS
        .into_iter()
        .flat_map(|neg| commands().map(move |c| (c, neg)))
        .filter(|(c, neg)| rule(*c).unwrap().is_legal(neg))
        .collect();
    proptest::sample::select(pairs).prop_flat_map(|(command, neg)| sent(command, neg))
}

/// A packet of this command under this agreement, which must make it legal.
pub(crate) fn sent(command: u16, neg: Negotiated) -> impl Strategy<Value = Sent> {
    let volume = match HeaderFormat::for_version(neg.version) {
        HeaderFormat::H100 => proptest::option::of((0..65535_u16).prop_map(VolumeNr)).boxed(),
        _ => Just(None).boxed(),
    };
    // 8 byte headers below 95 hold 64 KiB.
    let sectors = neg.max_bio_bytes() as usize / 512;
    let digest = vec(any::<u8>(), neg.digest_len());
    (packet(command, neg), volume, digest, 1..=sectors).prop_map(move |(packet, volume, digest, sectors)| {
        let payload_len = match packet {
            Packet::Data(d) if d.dp_flags.contains(DpFlags::FLUSH) && sectors % 2 == 0 => 0,
            Packet::Wsame(_) => 512 << (sectors % 4),
            _ => 512 * sectors,
        };
        let bulk = packet.has_payload();
        Sent {
            neg,
            volume,
            payload_len: if bulk { payload_len } else { 0 },
            digest: if bulk { digest } else { Vec::new() },
            packet,
        }
    })
}

fn packet(command: u16, neg: Negotiated) -> BoxedStrategy<Packet> {
    use Packet as P;
    macro_rules! of {
        ($strategy:expr, $variant:ident) => {
            $strategy.prop_map(P::$variant).boxed()
        };
        ($strategy:expr, box $variant:ident) => {
            $strategy.prop_map(|body| P::$variant(Box::new(body))).boxed()
        };
    }
    match command {
        command::UNPLUG_REMOTE => Just(P::UnplugRemote).boxed(),
        command::PING => Just(P::Ping).boxed(),
        command::PING_ACK => Just(P::PingAck).boxed(),
        command::DISCONNECT => Just(P::Disconnect).boxed(),
        command::INITIAL_META => Just(P::InitialMeta).boxed(),
        command::INITIAL_DATA => Just(P::InitialData).boxed(),
        command::DATA => of!(data(), Data),
        command::DATA_REPLY => of!(data(), DataReply),
        command::RS_DATA_REPLY => of!(data(), RsDataReply),
        command::BARRIER => any::<u32>().prop_map(|barrier| P::Barrier(Barrier { barrier })).boxed(),
        command::BITMAP => of!(plain_bitmap(neg), Bitmap),
        command::DATA_REQUEST => of!(block_req(), DataRequest),
        command::RS_DATA_REQUEST => of!(block_req(), RsDataRequest),
        command::SYNC_PARAM => of!(sync_param(neg), SyncParam),
        command::PROTOCOL => of!(protocol(neg), Protocol),
        command::UUIDS => of!(uuids(), box Uuids),
        command::SIZES => of!(sizes(neg), box Sizes),
        command::STATE => of!(state(neg), State),
        command::SYNC_UUID => any::<u64>().prop_map(|uuid| P::SyncUuid(Uuid { uuid })).boxed(),
        command::AUTH_CHALLENGE => of!(challenge(), AuthChallenge),
        command::AUTH_RESPONSE => {
            of!(digest().prop_map(|response| AuthResponse { response }), AuthResponse)
        }
        command::STATE_CHG_REQ => of!(req_state(), StateChgReq),
        command::RECV_ACK => of!(block_ack(), RecvAck),
        command::WRITE_ACK => of!(block_ack(), WriteAck),
        command::RS_WRITE_ACK => of!(block_ack(), RsWriteAck),
        command::SUPERSEDED => of!(block_ack(), Superseded),
        command::NEG_ACK => of!(block_ack(), NegAck),
        command::NEG_DREPLY => of!(block_ack(), NegDreply),
        command::NEG_RS_DREPLY => of!(block_ack(), NegRsDreply),
        command::BARRIER_ACK => of!(barrier_ack(), BarrierAck),
        command::STATE_CHG_REPLY => of!(retcode(), StateChgReply),
        command::OV_REQUEST => of!(block_req(), OvRequest),
        command::OV_REPLY => of!(block_req_digest(), OvReply),
        command::OV_RESULT => of!(block_ack(), OvResult),
        command::CSUM_RS_REQUEST => of!(block_req_digest(), CsumRsRequest),
        command::RS_IS_IN_SYNC => of!(block_ack(), RsIsInSync),
        command::SYNC_PARAM89 => of!(sync_param89(neg), box SyncParam89),
        command::COMPRESSED_BITMAP => of!(compressed_bitmap(neg), CompressedBitmap),
        command::DELAY_PROBE => of!(delay_probe(), DelayProbe),
        command::OUT_OF_SYNC => of!(block_desc(), OutOfSync),
        command::RS_CANCEL => of!(block_ack(), RsCancel),
        command::CONN_ST_CHG_REQ => of!(req_state(), ConnStChgReq),
        command::CONN_ST_CHG_REPLY => of!(retcode(), ConnStChgReply),
        command::RETRY_WRITE => of!(block_ack(), RetryWrite),
        command::PROTOCOL_UPDATE => of!(protocol(neg), ProtocolUpdate),
        command::TWOPC_PREPARE => of!(twopc(command, neg), box TwopcPrepare),
        command::TWOPC_ABORT => of!(twopc(command, neg), box TwopcAbort),
        command::TWOPC_PREP_RSZ => of!(twopc(command, neg), box TwopcPrepRsz),
        command::TWOPC_COMMIT => of!(twopc(command, neg), box TwopcCommit),
        command::DAGTAG => any::<u64>().prop_map(|dagtag| P::Dagtag(Dagtag { dagtag })).boxed(),
        command::TRIM => of!(trim(), Trim),
        command::RS_THIN_REQ => of!(block_req(), RsThinReq),
        command::RS_DEALLOCATED => of!(block_desc(), RsDeallocated),
        command::WSAME => of!(trim().prop_map(|trim| Wsame { trim }), Wsame),
        command::ZEROES => of!(trim(), Zeroes),
        command::PEER_ACK => of!(peer_ack(), PeerAck),
        command::PEERS_IN_SYNC => of!(peer_block_desc(), PeersInSync),
        command::UUIDS110 => of!(uuids110(), box Uuids110),
        command::PEER_DAGTAG => of!(peer_dagtag(), PeerDagtag),
        command::CURRENT_UUID => of!(current_uuid(), CurrentUuid),
        command::TWOPC_YES => of!(twopc_reply(), TwopcYes),
        command::TWOPC_NO => of!(twopc_reply(), TwopcNo),
        command::TWOPC_RETRY => of!(twopc_reply(), TwopcRetry),
        command::CONFIRM_STABLE => of!(confirm_stable(), ConfirmStable),
        command::RS_CANCEL_AHEAD => of!(block_ack(), RsCancelAhead),
        command::RS_DAGTAG_REQ => of!(rs_req(), RsDagtagReq),
        command::RS_CSUM_DAGTAG_REQ => of!(rs_req_digest(), RsCsumDagtagReq),
        command::RS_THIN_DAGTAG_REQ => of!(rs_req(), RsThinDagtagReq),
        command::OV_DAGTAG_REQ => of!(rs_req(), OvDagtagReq),
        command::OV_DAGTAG_REPLY => of!(rs_req_digest(), OvDagtagReply),
        command::WRITE_ACK_IN_SYNC => of!(block_ack(), WriteAckInSync),
        command::RS_NEG_ACK => of!(block_ack(), RsNegAck),
        command::OV_RESULT_ID => of!(ov_result(), OvResultId),
        command::RS_DEALLOCATED_ID => of!(block_ack(), RsDeallocatedId),
        command::FLUSH_REQUESTS => {
            any::<u64>().prop_map(|flush_sequence| P::FlushRequests(FlushRequests { flush_sequence })).boxed()
        }
        command::FLUSH_FORWARD => of!(flush_forward(), FlushForward),
        command::FLUSH_REQUESTS_ACK => of!(flush_ack(), FlushRequestsAck),
        command::ENABLE_REPLICATION_NEXT => of!(enable(), EnableReplicationNext),
        command::ENABLE_REPLICATION => of!(enable(), EnableReplication),
        command::CONNECTION_FEATURES => of!(features(), box ConnectionFeatures),
        other => panic!("no strategy for command {other:#x}"),
    }
}

prop_compose! {
    fn data()(sector in sectors(), id in any::<u64>(), seq_num in any::<u32>(), flags in any::<u32>())
        -> Data {
        Data { sector, block_id: BlockId(id), seq_num, dp_flags: DpFlags(flags) }
    }
}

prop_compose! {
    fn trim()(data in data(), size in sizes_up_to(MAX_TRIM_BYTES)) -> Trim {
        let Data { sector, block_id, seq_num, dp_flags } = data;
        Trim { sector, block_id, seq_num, dp_flags, size }
    }
}

prop_compose! {
    fn block_req()(sector in sectors(), id in any::<u64>(), blksize in sizes_up_to(MAX_DATA_BYTES),
            pad in any::<u32>()) -> BlockReq {
        BlockReq { sector, block_id: BlockId(id), blksize, pad }
    }
}

prop_compose! {
    fn rs_req()(sector in sectors(), id in any::<u64>(), blksize in sizes_up_to(MAX_DATA_BYTES),
            dagtag_node_id in node(), dagtag in any::<u64>()) -> RsReq {
        RsReq { sector, block_id: BlockId(id), blksize, dagtag_node_id, dagtag }
    }
}

prop_compose! {
    fn block_req_digest()(req in block_req(), digest in digest()) -> BlockReqDigest {
        BlockReqDigest { req, digest }
    }
}

prop_compose! {
    fn rs_req_digest()(req in rs_req(), digest in digest()) -> RsReqDigest {
        RsReqDigest { req, digest }
    }
}

prop_compose! {
    fn block_ack()(sector in sectors(), id in any::<u64>(),
            blksize in prop_oneof![Just(0), sizes_up_to(MAX_TRIM_BYTES)], seq_num in any::<u32>())
        -> BlockAck {
        BlockAck { sector, block_id: BlockId(id), blksize, seq_num }
    }
}

prop_compose! {
    fn ov_result()(ack in block_ack(), result in 0..3_u32) -> OvResult {
        let BlockAck { sector, block_id, blksize, seq_num } = ack;
        OvResult { sector, block_id, blksize, seq_num, result }
    }
}

prop_compose! {
    fn block_desc()(sector in sectors(), blksize in sizes_up_to(MAX_TRIM_BYTES)) -> BlockDesc {
        BlockDesc { sector, blksize }
    }
}

prop_compose! {
    fn peer_block_desc()(sector in sectors(), mask in any::<u64>(),
            size in sizes_up_to(MAX_TRIM_BYTES)) -> PeerBlockDesc {
        PeerBlockDesc { sector, mask: NodeMask(mask), size }
    }
}

prop_compose! {
    fn delay_probe()(seq_num in any::<u32>(), offset in any::<u32>()) -> DelayProbe {
        DelayProbe { seq_num, offset }
    }
}

prop_compose! {
    fn barrier_ack()(barrier in any::<u32>(), set_size in any::<u32>()) -> BarrierAck {
        BarrierAck { barrier, set_size }
    }
}

prop_compose! {
    fn confirm_stable()(old in any::<u64>(), young in any::<u64>(), set_size in any::<u32>())
        -> ConfirmStable {
        ConfirmStable {
            oldest_block_id: BlockId(old),
            youngest_block_id: BlockId(young),
            set_size,
        }
    }
}

prop_compose! {
    fn peer_ack()(mask in any::<u64>(), dagtag in any::<u64>()) -> PeerAck {
        PeerAck { mask: NodeMask(mask), dagtag }
    }
}

prop_compose! {
    fn peer_dagtag()(dagtag in any::<u64>(), node_id in node()) -> PeerDagtag {
        PeerDagtag { dagtag, node_id }
    }
}

prop_compose! {
    fn flush_forward()(flush_sequence in any::<u64>(), initiator_node_id in node()) -> FlushForward {
        FlushForward { flush_sequence, initiator_node_id }
    }
}

prop_compose! {
    fn flush_ack()(flush_sequence in any::<u64>(), primary_node_id in node()) -> FlushAck {
        FlushAck { flush_sequence, primary_node_id }
    }
}

prop_compose! {
    fn enable()(enable in any::<bool>()) -> EnableReplication {
        EnableReplication { enable }
    }
}

prop_compose! {
    fn retcode()(retcode in any::<i32>()) -> RetCode {
        RetCode { retcode }
    }
}

prop_compose! {
    fn req_state()(mask in any::<u32>(), val in any::<u32>()) -> ReqState {
        ReqState { mask: StateBits(mask), val: StateBits(val) }
    }
}

fn state(neg: Negotiated) -> impl Strategy<Value = State> {
    let role = || (0..3_u8).prop_map(|n| Role::from_u8(n).unwrap());
    let disk = || (0..10_u8).prop_map(|n| DiskState::from_u8(n).unwrap());
    let word = (role(), role(), 0..24_u8, disk(), disk(), any::<[bool; 7]>());
    word.prop_map(move |(role, peer, conn, disk, pdsk, flags)| {
        let [susp, aftr_isp, peer_isp, user_isp, susp_nod, susp_fen, quorum] = flags;
        let conn = ConnField::new(conn).unwrap();
        let word =
            StateWord { role, peer, conn, disk, pdsk, susp, aftr_isp, peer_isp, user_isp, susp_nod, susp_fen, quorum };
        State { state: word.bits(neg.version) }
    })
}

fn challenge() -> impl Strategy<Value = AuthChallenge> {
    vec(any::<u8>(), CHALLENGE_LEN).prop_map(|bytes| {
        let challenge = Box::new(<[u8; CHALLENGE_LEN]>::try_from(bytes).unwrap());
        AuthChallenge { challenge }
    })
}

fn plain_bitmap(neg: Negotiated) -> impl Strategy<Value = Bitmap> {
    let most = bitmap::max_plain_bytes(HeaderFormat::for_version(neg.version), 0) / 8;
    (0..=most).prop_flat_map(|words| vec(any::<u8>(), 8 * words)).prop_map(|words| Bitmap { words: words.into() })
}

fn compressed_bitmap(neg: Negotiated) -> impl Strategy<Value = CompressedBitmap> {
    let most = bitmap::max_code_bytes(HeaderFormat::for_version(neg.version));
    (any::<u8>(), vec(any::<u8>(), 1..=most))
        .prop_map(|(encoding, code)| CompressedBitmap { encoding, code: code.into() })
}

fn sync_param(neg: Negotiated) -> impl Strategy<Value = SyncParam> {
    (any::<u32>(), alg()).prop_map(move |(resync_rate, alg)| SyncParam {
        resync_rate,
        verify_alg: if neg.version < 88 { AlgName::default() } else { alg },
    })
}

fn sync_param89(neg: Negotiated) -> impl Strategy<Value = SyncParam89> {
    (any::<u32>(), alg(), alg(), any::<[u32; 4]>()).prop_map(move |(resync_rate, verify_alg, csums_alg, numbers)| {
        let numbers = if neg.version < 95 { [0; 4] } else { numbers };
        let [c_plan_ahead, c_delay_target, c_fill_target, c_max_rate] = numbers;
        let controller = SyncController { c_plan_ahead, c_delay_target, c_fill_target, c_max_rate };
        SyncParam89 { resync_rate, verify_alg, csums_alg, controller }
    })
}

fn protocol(neg: Negotiated) -> impl Strategy<Value = Protocol> {
    (any::<[u32; 6]>(), alg()).prop_map(move |(numbers, alg)| {
        let [protocol, after_sb_0p, after_sb_1p, after_sb_2p, conn_flags, two_primaries] = numbers;
        Protocol {
            protocol,
            after_sb_0p,
            after_sb_1p,
            after_sb_2p,
            conn_flags: ConnFlags(conn_flags),
            two_primaries,
            integrity_alg: if neg.version < 87 { AlgName::default() } else { alg },
        }
    })
}

fn sizes(neg: Negotiated) -> impl Strategy<Value = Sizes> {
    let numbers = (any::<[u64; 3]>(), any::<u32>(), any::<u16>(), any::<u16>());
    (numbers, any::<[u32; 5]>(), any::<[u8; 4]>()).prop_map(
        move |(([d_size, u_size, c_size], max_bio_size, queue_order_type, dds), limits, bytes)| {
            let qlim = QueueLimits {
                physical_block_size: limits[0],
                logical_block_size: limits[1],
                alignment_offset: limits[2],
                io_min: limits[3],
                io_opt: limits[4],
                discard_enabled: bytes[0],
                discard_zeroes_data: bytes[1],
                write_same_capable: bytes[2],
                bm_block_shift_minus_12: bytes[3],
            };
            Sizes {
                d_size,
                u_size,
                c_size,
                max_bio_size,
                queue_order_type,
                dds_flags: DdsFlags(dds),
                qlim: neg.has(Features::WSAME).then_some(qlim),
            }
        },
    )
}

fn uuids() -> impl Strategy<Value = Uuids> {
    any::<[u64; 6]>().prop_map(|[current, bitmap, history0, history1, dirty_bits, flags]| Uuids {
        current,
        bitmap,
        history0,
        history1,
        dirty_bits,
        uuid_flags: UuidFlags(flags),
    })
}

fn uuids110() -> impl Strategy<Value = Uuids110> {
    let bitmaps = vec((node(), any::<u64>()), 0..32);
    (any::<[u64; 4]>(), bitmaps, vec(any::<u64>(), 0..64)).prop_map(|(numbers, bitmaps, history)| {
        let [current, dirty_bits, flags, node_mask] = numbers;
        Uuids110 {
            current,
            dirty_bits,
            uuid_flags: UuidFlags(flags),
            node_mask: NodeMask(node_mask),
            bitmap_uuids: bitmaps.into_iter().collect(),
            history,
        }
    })
}

fn current_uuid() -> impl Strategy<Value = CurrentUuid> {
    any::<[u64; 2]>().prop_map(|[uuid, weak]| CurrentUuid { uuid, weak_nodes: NodeMask(weak) })
}

fn twopc(command: u16, neg: Negotiated) -> impl Strategy<Value = TwopcRequest> {
    let version_2 = neg.has(Features::TWOPC_V2);
    let numbers = (any::<u32>(), any::<u32>(), any::<[u64; 3]>());
    let nodes = (node(), proptest::option::of(node()));
    (numbers, nodes).prop_map(move |((tid, flags, [reach, a, b]), (initiator, target))| {
        let flags = TwopcFlags(if version_2 { flags & 0x7fff_ffff } else { 0 });
        let body = match command {
            command::TWOPC_PREPARE => TwopcBody::Prepare { mask: StateBits(a as u32), val: StateBits(b as u32) },
            command::TWOPC_PREP_RSZ => TwopcBody::PrepareResize {
                user_size: a,
                dds_flags: DdsFlags(b as u16),
                undefined: (b >> 16).to_be_bytes()[2..].try_into().unwrap(),
            },
            command::TWOPC_ABORT => TwopcBody::Abort,
            _ if flags.contains(TwopcFlags::HAS_REACHABLE) => {
                let (primary_nodes, reachable_nodes) = (NodeMask(a), NodeMask(b));
                TwopcBody::CommitReachable { primary_nodes, reachable_nodes }
            }
            _ => TwopcBody::Commit { primary_nodes: NodeMask(a), last: b },
        };
        TwopcRequest {
            tid,
            flags,
            initiator_node_id: initiator,
            target_node_id: target,
            nodes_to_reach: NodeMask(reach),
            body,
        }
    })
}

fn twopc_reply() -> impl Strategy<Value = TwopcReply> {
    (any::<u32>(), node(), any::<[u64; 3]>()).prop_map(|(tid, initiator, [a, b, c])| TwopcReply {
        tid,
        initiator_node_id: initiator,
        reachable_nodes: NodeMask(a),
        primary_nodes: NodeMask(b),
        weak_nodes_or_max_size: c,
    })
}

fn features() -> impl Strategy<Value = ConnectionFeatures> {
    any::<[u32; 5]>().prop_map(|[min, flags, max, sender, receiver]| ConnectionFeatures {
        protocol_min: min,
        feature_flags: Features(flags),
        protocol_max: max,
        sender_node_id: sender,
        receiver_node_id: receiver,
    })
}

fn node() -> impl Strategy<Value = NodeId> {
    (0..32_u8).prop_map(NodeId)
}

fn sectors() -> impl Strategy<Value = u64> {
    prop_oneof![0..1_u64 << 20, 0..(1_u64 << 54) - (1 << 18)]
}

fn sizes_up_to(max: u32) -> impl Strategy<Value = u32> {
    (1..=max / 512).prop_map(|sectors| sectors * 512)
}

fn digest() -> impl Strategy<Value = Digest> {
    vec(any::<u8>(), 1..=64).prop_map(|bytes| Digest::new(&bytes).unwrap())
}

fn alg() -> impl Strategy<Value = AlgName> {
    vec(b'!'..=b'~', 0..64).prop_map(|name| AlgName::new(std::str::from_utf8(&name).unwrap()).unwrap())
}
