//! A connection to one peer, and the peer devices on it.

use std::collections::{BTreeMap, VecDeque};

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::features::{ConnectionFeatures, Features, Negotiated};
use zea_wire::ids::{BlockId, NodeId, NodeMask};
use zea_wire::packet::{Sizes, Uuids110};
use zea_wire::state::{ConnState, DiskState, ReplState, Role, StateWord};

use crate::config::PeerConfig;
use crate::csums::DigestAlgs;
use crate::event::PausedBy;
use crate::handshake::Decision;
use crate::interval::IntervalId;
use crate::io::{LinkId, Time};
use crate::late_bits::LateBits;
use crate::resync_rate::{Bucket, Meter, Pace};
use crate::served::Vouched;
use crate::settings::Settings;
use crate::verify::Verify;

/// How far the set-up of a link has come (wire-protocol.md 4, 6; handshake-and-states.md 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub(crate) enum LinkPhase {
    /// P_CONNECTION_FEATURES sent, the peer's awaited.
    Features,
    /// Challenge sent, the peer's awaited.
    AuthChallenge,
    /// Response sent, the peer's awaited.
    AuthResponse,
    /// P_PROTOCOL sent, the peer's awaited.
    Protocol,
    /// Waiting for the connect two-phase commit.
    Connecting,
    /// This node refused the peer, which has yet to judge for itself, and closes when it has (8.4 only: elsewhere the transaction
    /// tells both).
    Refused,
    /// Connected.
    Up,
}

/// The link of a connection while it is up.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) resolve_conflicts: bool,
    pub(crate) phase: LinkPhase,
    /// The phase must change before this instant.
    pub(crate) phase_deadline: Option<Time>,
    pub(crate) own_features: ConnectionFeatures,
    pub(crate) negotiated: Negotiated,
    pub(crate) own_challenge: [u8; 64],
    pub(crate) settings: Settings,
    /// Our handshake packets of the running connect transaction are out.
    pub(crate) states_sent: bool,
    /// P_TWOPC_PREPAREs of connect transactions that this node sent on this link.
    pub(crate) prepares_sent: u32,
    /// Last packet from the control stream.
    pub(crate) last_received: Time,
    /// An unanswered P_PING, since when.
    pub(crate) ping_sent: Option<Time>,
    /// When the last P_PING was sent.
    pub(crate) last_ping: Time,
    /// The peer was there after this instant: it has answered a P_PING that was sent then.
    pub(crate) alive_at: Option<Time>,
    /// P_PINGs sent and P_PING_ACKs received, to wait for "all before has arrived".
    pub(crate) pings: u64,
    pub(crate) ping_acks: u64,
    /// The peer is Primary, or was so since the link is up.
    pub(crate) of_primary: bool,
}

impl Link {
    pub(crate) fn has(&self, feature: Features) -> bool {
        self.negotiated.has(feature)
    }
}

/// Sender side of the write epochs of a connection (wire-protocol.md 10.1).
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct SendEpochs {
    /// The epoch that was last written to, and the number of writes sent in it; `None` when its barrier is out.
    pub(crate) open: Option<(u32, u32)>,
    /// Barriers that are not acked: number, set size, when sent.
    pub(crate) unacked: VecDeque<(u32, u32, Time)>,
}

/// One epoch on the receiver's side (wire-protocol.md 10.3).
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct RecvEpoch {
    /// The number, once its P_BARRIER arrived.
    pub(crate) barrier: Option<u32>,
    /// Writes in it.
    pub(crate) size: u32,
    /// Writes that are not completed.
    pub(crate) active: u32,
    /// Flushes of backing devices that are running; `None`: not started.
    pub(crate) flushing: Option<u32>,
    /// The dagtag behind its last write.
    pub(crate) dagtag: u64,
}

/// A peer write that is done here and waits for its P_PEER_ACK.
#[derive(Debug, Clone, Copy, Archive, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) dagtag: u64,
    pub(crate) vidx: usize,
    pub(crate) sector: u64,
    pub(crate) len: u32,
    /// It holds references on activity log extents.
    pub(crate) al: bool,
    /// Index of the peer request while it is still being written.
    pub(crate) active: Option<usize>,
    /// Nodes towards which it was marked already, as it may be missing there.
    pub(crate) marked: NodeMask,
    /// Resync data was written over it: its peer ack tells who has the write, not whether this disk still has it.
    pub(crate) overwritten: bool,
}

impl Kept {
    /// A write that is being carried out by a peer request, or one that this node has no disk for.
    pub(crate) fn new(dagtag: u64, vidx: usize, sector: u64, len: u32, active: Option<usize>) -> Self {
        let al = active.is_some();
        Kept { dagtag, vidx, sector, len, al, active, marked: NodeMask::EMPTY, overwritten: false }
    }
}

/// A connection to one peer.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Connection {
    pub(crate) config: PeerConfig,
    pub(crate) state: ConnState,
    pub(crate) role: Role,
    pub(crate) link: Option<Link>,
    pub(crate) last_error: Option<String>,
    /// The last split brain that a policy ended.
    pub(crate) last_split_brain: Option<String>,
    /// Why the last comparison on this link refused the peer.
    pub(crate) refusal: Option<String>,
    pub(crate) discard_my_data: bool,
    /// This connection was up before in this run (UUID flag RECONNECT).
    pub(crate) was_connected: bool,
    /// The last peer that was connected ignores bits at equal generations.
    pub(crate) ignores_bits: bool,
    /// Try the connect transaction again at this instant.
    pub(crate) retry_at: Option<Time>,
    /// It has said that it connects again, and is waited for until then.
    pub(crate) back_by: Option<Time>,
    /// Ask for a new link only at this instant: the last one ended for a reason that will not go away by itself.
    pub(crate) link_not_before: Option<Time>,
    pub(crate) send: SendEpochs,
    /// Open epochs of the peer, oldest first; the last one takes new writes.
    pub(crate) recv: VecDeque<RecvEpoch>,
    /// Serial number of the front of `recv`.
    pub(crate) recv_base: u64,
    /// The link that these epochs came on: it may be gone, and its writes still under way.
    pub(crate) recv_link: Option<LinkId>,
    /// The dagtag that the peer expects for the next write that is sent.
    pub(crate) dagtag_sent: Option<u64>,
    /// The dagtag of the last write received from this peer, if one was received since connect.
    pub(crate) dagtag_received: Option<u64>,
    /// Writes of this peer that wait for P_PEER_ACK, in dagtag order.
    pub(crate) kept: VecDeque<Kept>,
    /// A Primary, and a dagtag of it: of writes up to there this peer gets from here what it lacks.
    pub(crate) relies_on: Option<(NodeId, u64)>,
    /// Peer requests of this connection that are not finished.
    pub(crate) active_peer_reqs: u32,
    pub(crate) verify_algs: DigestAlgs,
    pub(crate) csums_algs: DigestAlgs,
    /// By index of the volume in the resource.
    pub(crate) pds: Vec<PeerDevice>,
}

impl Connection {
    pub(crate) fn new(config: PeerConfig, volumes: usize) -> Self {
        Connection {
            config,
            state: ConnState::StandAlone,
            role: Role::Unknown,
            link: None,
            last_error: None,
            last_split_brain: None,
            refusal: None,
            discard_my_data: false,
            was_connected: false,
            ignores_bits: false,
            retry_at: None,
            back_by: None,
            link_not_before: None,
            send: SendEpochs::default(),
            recv: VecDeque::from([RecvEpoch::default()]),
            recv_base: 0,
            recv_link: None,
            dagtag_sent: None,
            dagtag_received: None,
            kept: VecDeque::new(),
            relies_on: None,
            active_peer_reqs: 0,
            verify_algs: DigestAlgs::default(),
            csums_algs: DigestAlgs::default(),
            pds: (0..volumes).map(|_| PeerDevice::new()).collect(),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.config.node_id
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == ConnState::Connected
    }

    /// Forget everything that belongs to a link, but the epochs in which its writes are carried out.
    pub(crate) fn reset_link(&mut self) {
        self.link = None;
        self.role = Role::Unknown;
        self.send = SendEpochs::default();
        self.dagtag_sent = None;
        self.dagtag_received = None;
        self.relies_on = None;
    }

    /// The epochs of a new link begin.
    pub(crate) fn begin_epochs(&mut self, link: LinkId) {
        self.recv = VecDeque::from([RecvEpoch::default()]);
        (self.recv_base, self.recv_link) = (0, Some(link));
    }

    /// The dagtag behind a write that comes now; `None` if there is none.
    pub(crate) fn dagtag_behind(&self, len: u32) -> Option<u64> {
        self.dagtag_received.unwrap_or(0).checked_add(u64::from(len) / 512)
    }

    /// Both ends keep bits (Zea's private feature).
    pub(crate) fn keeps_bits(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.has(Features::ZEA_KEEP_BITS))
    }
}

/// What the peer told about a volume during the handshake.
#[derive(Debug, Default, Clone, Archive, Serialize, Deserialize)]
pub(crate) struct PeerSays {
    pub(crate) sizes: Option<Sizes>,
    pub(crate) uuids: Option<Box<Uuids110>>,
    /// P_CURRENT_UUID of a peer without a disk.
    pub(crate) current_uuid: Option<u64>,
    /// Nodes that miss something of that generation.
    pub(crate) weak_nodes: NodeMask,
    /// What it told before that in the same handshake: generations that are as good.
    pub(crate) former: Vec<u64>,
    pub(crate) state: Option<StateWord>,
}

/// A volume on a connection.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct PeerDevice {
    pub(crate) repl: ReplState,
    pub(crate) disk: DiskState,
    /// It said last that its disk is Inconsistent or Outdated: nobody promotes it.
    pub(crate) is_behind: bool,
    /// The last P_SIZES, P_UUIDS110 and P_STATE.
    pub(crate) says: PeerSays,
    /// P_STATEs of handshakes on this link.
    pub(crate) states_heard: u32,
    /// The generations that were shown in the running handshake, and the UUIDs as they were sent: a change in between means retry.
    pub(crate) sent_shown: (u64, u64),
    pub(crate) sent_uuids: Option<Box<Uuids110>>,
    pub(crate) sent_state: (Role, DiskState),
    pub(crate) sent_quorum: bool,
    pub(crate) sent_former: Vec<u64>,
    /// Result of the comparison, applied at the commit of the connect transaction.
    pub(crate) decision: Option<Decision>,
    /// What the decision does to a split brain, in words.
    pub(crate) split_brain_end: Option<String>,
    /// The peer ignores bits that we keep (a kernel peer).
    pub(crate) unverified: bool,
    /// The UUIDs that the peer was sent last said that bits towards it are set.
    pub(crate) told_bits: bool,
    /// On this connection the peer was told of a write of this Primary that it did not get (P_OUT_OF_SYNC): it connects again before
    /// it is UpToDate, and what it says of its disk before was not meant for that.
    pub(crate) told_out_of_sync: bool,
    /// It lacks a write of which it could not be told: the connection is to be made again.
    pub(crate) untold: bool,
    /// On this connection the peer was told that the volume has grown, and has not answered.
    pub(crate) growth_told: bool,
    /// On this connection the volume has grown, and what is new is copied from the peer, once it says so.
    pub(crate) awaits_source: bool,
    /// Since the peer connected this node's disk has not been one that a Primary leaves writes out for.
    pub(crate) gets_all: bool,
    /// When this node last marked a write as missing there.
    pub(crate) marked_at: Option<Time>,
    pub(crate) packet_seq: u32,
    pub(crate) peer_seq: u32,
    /// The bitmap that is arriving.
    pub(crate) bitmap_in: Option<zea_wire::bitmap::Receiver>,
    pub(crate) resync: Option<ResyncTarget>,
    pub(crate) resync_total_bits: u64,
    /// Why a resync with this peer does not go on. What was said here outlasts the connection.
    pub(crate) paused_by: PausedBy,
    /// What the source of a resync serves while an application uses the volume, and when it goes on.
    pub(crate) serves: Bucket,
    pub(crate) serves_at: Option<Time>,
    /// How fast the resync goes.
    pub(crate) meter: Meter,
    pub(crate) verify: Verify,
    pub(crate) sent_sectors: u64,
    pub(crate) received_sectors: u64,
    /// Volume packets that arrived while a state change of ours is being written.
    pub(crate) finishing: bool,
}

impl PeerDevice {
    pub(crate) fn new() -> Self {
        PeerDevice {
            repl: ReplState::Off,
            disk: DiskState::DUnknown,
            is_behind: false,
            says: PeerSays::default(),
            states_heard: 0,
            sent_shown: (0, 0),
            sent_uuids: None,
            sent_state: (Role::Unknown, DiskState::Diskless),
            sent_quorum: false,
            sent_former: Vec::new(),
            decision: None,
            split_brain_end: None,
            unverified: false,
            told_bits: false,
            told_out_of_sync: false,
            untold: false,
            growth_told: false,
            awaits_source: false,
            gets_all: false,
            marked_at: None,
            packet_seq: 0,
            peer_seq: 0,
            bitmap_in: None,
            resync: None,
            resync_total_bits: 0,
            paused_by: PausedBy::default(),
            serves: Bucket::default(),
            serves_at: None,
            meter: Meter::default(),
            verify: Verify::default(),
            sent_sectors: 0,
            received_sectors: 0,
            finishing: false,
        }
    }

    /// The next sequence number for a write or an ack.
    pub(crate) fn next_seq(&mut self) -> u32 {
        self.packet_seq = self.packet_seq.wrapping_add(1);
        self.packet_seq
    }

    /// Writes go to this peer (wire-protocol.md 10.1). Not to an Outdated one that is no target of this node: it would have later
    /// writes without the earlier ones. An Inconsistent one gets them also if this node waits to be resynced from it: both may be
    /// targets of somebody else, and the peer is UpToDate first.
    pub(crate) fn replicates(&self) -> bool {
        match self.disk {
            DiskState::UpToDate | DiskState::Consistent => self.repl >= ReplState::Established,
            DiskState::Inconsistent => {
                let waits = self.repl == ReplState::WFBitMapT || self.is_sync_target();
                self.repl == ReplState::Established || self.is_sync_source() || waits
            }
            DiskState::Outdated => self.is_sync_source(),
            _ => false,
        }
    }

    /// Both disks are complete, as far as it is known, and nothing is moved.
    pub(crate) fn is_established(&self) -> bool {
        matches!(self.repl, ReplState::Established | ReplState::VerifyS | ReplState::VerifyT)
    }

    /// Counters and sequence numbers of a new connection.
    pub(crate) fn begin(&mut self) {
        (self.told_out_of_sync, self.untold) = (false, false);
        (self.growth_told, self.awaits_source) = (false, false);
        (self.packet_seq, self.peer_seq) = (0, 0);
        (self.sent_sectors, self.received_sectors) = (0, 0);
    }

    pub(crate) fn is_sync_target(&self) -> bool {
        matches!(self.repl, ReplState::SyncTarget | ReplState::PausedSyncT)
    }

    pub(crate) fn is_sync_source(&self) -> bool {
        matches!(self.repl, ReplState::SyncSource | ReplState::PausedSyncS)
    }
}

/// The running resync in which we are the target.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct ResyncTarget {
    /// The number of this resync, until the meta data says that it goes on.
    pub(crate) begins: Option<u64>,
    /// Bits that are not asked for yet.
    pub(crate) late: LateBits,
    /// Where the scan of the bitmap goes on.
    pub(crate) next_bit: u64,
    /// Requests that are out or being written, by first sector.
    #[rkyv(with = rkyv::with::AsVec)]
    pub(crate) in_flight: BTreeMap<u64, ResyncReq>,
    pub(crate) in_flight_sectors: u64,
    /// Writes or reads that failed: the blocks stay out of sync.
    pub(crate) failed: u64,
    /// All bits are clear; the number of P_PING_ACKs that must have come before the end.
    pub(crate) end_ping: Option<u64>,
    /// How many writes of peers had arrived then. They may be older than what was resynced.
    pub(crate) end_writes: u64,
    /// Requests were not served: the next one goes out after this instant.
    pub(crate) retry_at: Option<Time>,
    /// How much may be asked for, and when to look at that again.
    pub(crate) pace: Pace,
    pub(crate) asks_at: Option<Time>,
    /// The source has vouched for what a Primary had written.
    pub(crate) vouched: Vouched,
    /// Something was skipped because of a conflict: another pass is due when an interval leaves.
    pub(crate) blocked: bool,
}

/// One resync request of the target.
#[derive(Debug, Clone, Copy, Archive, Serialize, Deserialize)]
pub(crate) struct ResyncReq {
    /// Of all requests of this node.
    pub(crate) serial: u64,
    pub(crate) block_id: BlockId,
    pub(crate) len: u32,
    pub(crate) interval: IntervalId,
    /// The reply arrived.
    pub(crate) answered: bool,
}
