//! The packet table: one line per packet.

use super::body::{Body, Context, Shape};
use super::error::DecodeError;
use super::{ack, data, settings, twopc, uuids};
use crate::bytes::Reader;
use crate::features::{ConnectionFeatures, Features, Negotiated};
use crate::header::HeaderFormat;

/// One of the two TCP streams of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stream {
    /// Data, requests, handshake, state.
    Data,
    /// Acks, pings, two-phase commit replies.
    Control,
}

/// What a packet is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// The connection: the header's volume says nothing (8.4 sends 0, 9 sends none).
    Connection,
    /// The volume in the header.
    Volume,
    /// The volume in the header, or the connection or resource if there is none.
    Either,
}

/// Which streams a packet may come on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sock {
    D,
    C,
    /// Either one.
    DC,
}

/// What the table says about a command.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The name, as in the reference.
    pub name: &'static str,
    /// What it is about.
    pub scope: Scope,
    /// First version that has it; 80 for packets before the feature exchange.
    pub min_version: u32,
    /// Last version that has it.
    pub max_version: u32,
    /// Features that must be agreed.
    pub features: Features,
    sock: Sock,
    shape: fn(&Context<'_>) -> Shape,
}

impl Rule {
    /// The stream it is sent on.
    #[must_use]
    pub const fn stream(&self) -> Stream {
        match self.sock {
            Sock::D | Sock::DC => Stream::Data,
            Sock::C => Stream::Control,
        }
    }

    /// True if the packet may be sent and received with these agreements.
    #[must_use]
    pub const fn is_legal(&self, neg: &Negotiated) -> bool {
        self.min_version <= neg.version && neg.version <= self.max_version && neg.features.contains(self.features)
    }

    pub(super) fn shape(&self, ctx: &Context<'_>) -> Shape {
        (self.shape)(ctx)
    }

    pub(super) fn check_legal(&self, neg: &Negotiated) -> Result<(), DecodeError> {
        let Rule { name, .. } = *self;
        if neg.version < self.min_version || neg.version > self.max_version {
            return Err(DecodeError::WrongVersion { name, version: neg.version });
        }
        if !neg.has(self.features) {
            let (needed, agreed) = (self.features, neg.features);
            return Err(DecodeError::MissingFeature { name, needed, agreed });
        }
        Ok(())
    }

    /// The stream must fit. So must the header's format on the data stream; on the control stream a
    /// ping may overtake the feature packet and come in any format (section 2.3).
    pub(super) fn check_stream(&self, stream: Stream, format: HeaderFormat, version: u32) -> Result<(), DecodeError> {
        let fits = match stream {
            Stream::Data => self.sock != Sock::C,
            Stream::Control => self.sock != Sock::D,
        };
        if !fits {
            return Err(DecodeError::WrongStream { name: self.name, stream });
        }
        let known = match format {
            HeaderFormat::H80 => version < 100,
            HeaderFormat::H95 => (95..100).contains(&version),
            HeaderFormat::H100 => version >= 100,
        };
        let initial = version == Negotiated::INITIAL.version;
        if stream == Stream::Data && !initial && !known {
            return Err(DecodeError::WrongHeaderFormat { format, version });
        }
        Ok(())
    }
}

/// Rare large bodies live in a box, to keep [`Packet`] small.
macro_rules! boxed {
    ($($ty:ty),+ $(,)?) => {
        $( impl Body for Box<$ty> {
            fn shape(ctx: &Context<'_>) -> Shape {
                <$ty as Body>::shape(ctx)
            }

            fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
                <$ty as Body>::get(r, ctx).map(Box::new)
            }

            fn put(&self, out: &mut Vec<u8>, ctx: &Context<'_>) {
                <$ty as Body>::put(self, out, ctx);
            }
        } )+
    };
}
boxed!(ConnectionFeatures, settings::Sizes, settings::SyncParam89, twopc::TwopcRequest, uuids::Uuids, uuids::Uuids110,);

const NEWEST: u32 = u32::MAX;
const NONE: Features = Features::EMPTY;

/// Packets without a body, then packets with one:
/// `Variant(type) = number NAME, socks, first version..=last version, features, scope;`
macro_rules! packets {
    (
        bare { $( $(#[$bdoc:meta])* $bare:ident = $bcode:literal $bconst:ident,
            $bsock:ident, $bmin:literal..=$bmax:tt, $bfeat:ident, $bscope:ident; )+ }
        typed { $( $(#[$tdoc:meta])* $typed:ident($ty:ty) = $tcode:literal $tconst:ident,
            $tsock:ident, $tmin:literal..=$tmax:tt, $tfeat:ident, $tscope:ident; )+ }
    ) => {
        /// The command numbers.
        pub mod command {
            $( $(#[$bdoc])* pub const $bconst: u16 = $bcode; )+
            $( $(#[$tdoc])* pub const $tconst: u16 = $tcode; )+
        }

        /// A packet without its bulk payload.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Packet {
            $( $(#[$bdoc])* $bare, )+
            $( $(#[$tdoc])* $typed($ty), )+
        }

        /// The table's line of a command, `None` for an unknown one.
        #[must_use]
        pub const fn rule(command: u16) -> Option<&'static Rule> {
            match command {
                $( $bcode => Some(const { &Rule {
                    name: concat!("P_", stringify!($bconst)),
                    scope: Scope::$bscope,
                    min_version: $bmin,
                    max_version: $bmax,
                    features: packets!(@features $bfeat),
                    sock: Sock::$bsock,
                    shape: |_| Shape::fixed(0),
                } }), )+
                $( $tcode => Some(const { &Rule {
                    name: concat!("P_", stringify!($tconst)),
                    scope: Scope::$tscope,
                    min_version: $tmin,
                    max_version: $tmax,
                    features: packets!(@features $tfeat),
                    sock: Sock::$tsock,
                    shape: <$ty as Body>::shape,
                } }), )+
                _ => None,
            }
        }

        impl Packet {
            /// The number of the packet.
            #[must_use]
            pub const fn command(&self) -> u16 {
                match self {
                    $( Packet::$bare => command::$bconst, )+
                    $( Packet::$typed(_) => command::$tconst, )+
                }
            }

            pub(super) fn get_body(
                r: &mut Reader<'_>,
                ctx: &Context<'_>,
            ) -> Result<Packet, DecodeError> {
                Ok(match ctx.command {
                    $( $bcode => Packet::$bare, )+
                    $( $tcode => Packet::$typed(Body::get(r, ctx)?), )+
                    command => return Err(DecodeError::UnknownCommand { command }),
                })
            }

            pub(super) fn put_body(&self, out: &mut Vec<u8>, ctx: &Context<'_>) {
                match self {
                    $( Packet::$bare => {} )+
                    $( Packet::$typed(body) => body.put(out, ctx), )+
                }
            }
        }

        #[cfg(test)]
        const COMMANDS: &[u16] = &[$( $bcode, )+ $( $tcode, )+];
    };
    (@features NONE) => { NONE };
    (@features $flag:ident) => { Features::$flag };
}

packets! {
    bare {
        /// Hint: submit queued backend I/O now.
        UnplugRemote = 0x07 UNPLUG_REMOTE, D, 86..=NEWEST, NONE, Connection;
        /// Keepalive.
        Ping = 0x13 PING, C, 80..=NEWEST, NONE, Connection;
        /// Answer to P_PING.
        PingAck = 0x14 PING_ACK, C, 80..=NEWEST, NONE, Connection;
        /// Go StandAlone, do not retry.
        Disconnect = 0x4b DISCONNECT, D, 118..=NEWEST, NONE, Connection;
        /// This is the control stream.
        InitialMeta = 0xfff1 INITIAL_META, DC, 80..=80, NONE, Connection;
        /// This is the data stream.
        InitialData = 0xfff2 INITIAL_DATA, DC, 80..=80, NONE, Connection;
    }
    typed {
        /// Replicated write.
        Data(data::Data) = 0x00 DATA, D, 86..=NEWEST, NONE, Volume;
        /// Answer to P_DATA_REQUEST.
        DataReply(data::Data) = 0x01 DATA_REPLY, D, 86..=NEWEST, NONE, Volume;
        /// Answer to a resync request.
        RsDataReply(data::Data) = 0x02 RS_DATA_REPLY, D, 86..=NEWEST, NONE, Volume;
        /// Closes a write epoch.
        Barrier(ack::Barrier) = 0x03 BARRIER, D, 86..=NEWEST, NONE, Connection;
        /// Plain bitmap part.
        Bitmap(settings::Bitmap) = 0x04 BITMAP, D, 86..=NEWEST, NONE, Volume;
        /// Read request.
        DataRequest(data::BlockReq) = 0x08 DATA_REQUEST, D, 86..=NEWEST, NONE, Volume;
        /// The SyncTarget asks for a block.
        RsDataRequest(data::BlockReq) = 0x09 RS_DATA_REQUEST, D, 86..=NEWEST, NONE, Volume;
        /// Resync settings, old.
        SyncParam(settings::SyncParam) = 0x0a SYNC_PARAM, D, 86..=88, NONE, Volume;
        /// Connection wide settings.
        Protocol(settings::Protocol) = 0x0b PROTOCOL, D, 86..=NEWEST, NONE, Connection;
        /// Generation identifiers below 110.
        Uuids(Box<uuids::Uuids>) = 0x0c UUIDS, D, 86..=109, NONE, Volume;
        /// Device sizes and limits.
        Sizes(Box<settings::Sizes>) = 0x0d SIZES, D, 86..=NEWEST, NONE, Volume;
        /// The sender's state; without a volume only the role counts.
        State(settings::State) = 0x0e STATE, D, 86..=NEWEST, NONE, Either;
        /// New sync UUID of the SyncSource.
        SyncUuid(uuids::Uuid) = 0x0f SYNC_UUID, D, 86..=109, NONE, Volume;
        /// Authentication challenge.
        AuthChallenge(settings::AuthChallenge) = 0x10 AUTH_CHALLENGE, D, 86..=NEWEST, NONE, Connection;
        /// Authentication response.
        AuthResponse(settings::AuthResponse) = 0x11 AUTH_RESPONSE, D, 86..=NEWEST, NONE, Connection;
        /// State change of a volume below 110.
        StateChgReq(settings::ReqState) = 0x12 STATE_CHG_REQ, D, 86..=109, NONE, Volume;
        /// Protocol B: received.
        RecvAck(ack::BlockAck) = 0x15 RECV_ACK, C, 86..=NEWEST, NONE, Volume;
        /// Protocol C: written.
        WriteAck(ack::BlockAck) = 0x16 WRITE_ACK, C, 86..=NEWEST, NONE, Volume;
        /// Resync block written.
        RsWriteAck(ack::BlockAck) = 0x17 RS_WRITE_ACK, C, 86..=NEWEST, NONE, Volume;
        /// Two primaries: overwritten by mine (8.4).
        Superseded(ack::BlockAck) = 0x18 SUPERSEDED, C, 86..=109, NONE, Volume;
        /// Write failed.
        NegAck(ack::BlockAck) = 0x19 NEG_ACK, C, 86..=NEWEST, NONE, Volume;
        /// Cannot serve P_DATA_REQUEST.
        NegDreply(ack::BlockAck) = 0x1a NEG_DREPLY, C, 86..=NEWEST, NONE, Volume;
        /// Cannot serve a resync request.
        NegRsDreply(ack::BlockAck) = 0x1b NEG_RS_DREPLY, C, 86..=NEWEST, NONE, Volume;
        /// Epoch is stable.
        BarrierAck(ack::BarrierAck) = 0x1c BARRIER_ACK, C, 86..=NEWEST, NONE, Connection;
        /// Answer to P_STATE_CHG_REQ.
        StateChgReply(ack::RetCode) = 0x1d STATE_CHG_REPLY, C, 86..=109, NONE, Volume;
        /// Verify: send me the checksum.
        OvRequest(data::BlockReq) = 0x1e OV_REQUEST, D, 86..=NEWEST, NONE, Volume;
        /// Verify: the checksum.
        OvReply(data::BlockReqDigest) = 0x1f OV_REPLY, D, 86..=NEWEST, NONE, Volume;
        /// Verify: the result, in the block id.
        OvResult(ack::BlockAck) = 0x20 OV_RESULT, C, 86..=121, NONE, Volume;
        /// Resync request with checksum.
        CsumRsRequest(data::BlockReqDigest) = 0x21 CSUM_RS_REQUEST, D, 89..=NEWEST, NONE, Volume;
        /// Checksum equal.
        RsIsInSync(ack::BlockAck) = 0x22 RS_IS_IN_SYNC, C, 89..=NEWEST, NONE, Volume;
        /// Resync settings.
        SyncParam89(Box<settings::SyncParam89>) = 0x23 SYNC_PARAM89, D, 89..=NEWEST, NONE, Volume;
        /// Run length coded bitmap part.
        CompressedBitmap(settings::CompressedBitmap) = 0x24 COMPRESSED_BITMAP, D, 90..=NEWEST, NONE, Volume;
        /// To be skipped.
        DelayProbe(data::DelayProbe) = 0x27 DELAY_PROBE, DC, 93..=NEWEST, NONE, Either;
        /// Set bits instead of replicating.
        OutOfSync(data::BlockDesc) = 0x28 OUT_OF_SYNC, D, 96..=NEWEST, NONE, Volume;
        /// Resync or verify request not served, try later.
        RsCancel(ack::BlockAck) = 0x29 RS_CANCEL, C, 96..=NEWEST, NONE, Volume;
        /// State change of the connection below 110.
        ConnStChgReq(settings::ReqState) = 0x2a CONN_ST_CHG_REQ, D, 100..=109, NONE, Connection;
        /// Answer to P_CONN_ST_CHG_REQ.
        ConnStChgReply(ack::RetCode) = 0x2b CONN_ST_CHG_REPLY, C, 100..=109, NONE, Connection;
        /// Two primaries: retry that write (8.4).
        RetryWrite(ack::BlockAck) = 0x2c RETRY_WRITE, C, 100..=109, NONE, Volume;
        /// net options changed while connected.
        ProtocolUpdate(settings::Protocol) = 0x2d PROTOCOL_UPDATE, D, 100..=NEWEST, NONE, Connection;
        /// Two-phase commit: prepare.
        TwopcPrepare(Box<twopc::TwopcRequest>) = 0x2e TWOPC_PREPARE, D, 110..=NEWEST, NONE, Either;
        /// Two-phase commit: abort.
        TwopcAbort(Box<twopc::TwopcRequest>) = 0x2f TWOPC_ABORT, D, 110..=NEWEST, NONE, Either;
        /// Sets the current dagtag.
        Dagtag(ack::Dagtag) = 0x30 DAGTAG, D, 110..=NEWEST, NONE, Connection;
        /// Discard.
        Trim(data::Trim) = 0x31 TRIM, D, 86..=NEWEST, TRIM, Volume;
        /// Resync request, zero detection wanted.
        RsThinReq(data::BlockReq) = 0x32 RS_THIN_REQ, D, 86..=NEWEST, THIN_RESYNC, Volume;
        /// Range is all zero.
        RsDeallocated(data::BlockDesc) = 0x33 RS_DEALLOCATED, D, 86..=121, THIN_RESYNC, Volume;
        /// Write same; not sent by current kernels, to be refused by the core.
        Wsame(data::Wsame) = 0x34 WSAME, D, 86..=NEWEST, WSAME, Volume;
        /// Two-phase commit: prepare a resize.
        TwopcPrepRsz(Box<twopc::TwopcRequest>) = 0x35 TWOPC_PREP_RSZ, D, 112..=NEWEST, NONE, Either;
        /// Zero out.
        Zeroes(data::Trim) = 0x36 ZEROES, D, 86..=NEWEST, WZEROES, Volume;
        /// The primary tells who has a write.
        PeerAck(ack::PeerAck) = 0x40 PEER_ACK, C, 110..=NEWEST, NONE, Connection;
        /// Area in sync on these nodes.
        PeersInSync(data::PeerBlockDesc) = 0x41 PEERS_IN_SYNC, C, 110..=NEWEST, NONE, Volume;
        /// Generation identifiers.
        Uuids110(Box<uuids::Uuids110>) = 0x42 UUIDS110, D, 110..=NEWEST, NONE, Volume;
        /// Reconciliation after the loss of a primary.
        PeerDagtag(ack::PeerDagtag) = 0x43 PEER_DAGTAG, D, 110..=NEWEST, NONE, Connection;
        /// View of a diskless node or of a lost primary.
        CurrentUuid(uuids::CurrentUuid) = 0x44 CURRENT_UUID, D, 110..=NEWEST, NONE, Volume;
        /// Two-phase commit: agreed.
        TwopcYes(twopc::TwopcReply) = 0x45 TWOPC_YES, C, 110..=NEWEST, NONE, Either;
        /// Two-phase commit: refused.
        TwopcNo(twopc::TwopcReply) = 0x46 TWOPC_NO, C, 110..=NEWEST, NONE, Either;
        /// Two-phase commit: commit.
        TwopcCommit(Box<twopc::TwopcRequest>) = 0x47 TWOPC_COMMIT, D, 110..=NEWEST, NONE, Either;
        /// Two-phase commit: not now.
        TwopcRetry(twopc::TwopcReply) = 0x48 TWOPC_RETRY, C, 110..=NEWEST, NONE, Either;
        /// Partial barrier ack.
        ConfirmStable(ack::ConfirmStable) = 0x49 CONFIRM_STABLE, C, 114..=NEWEST, NONE, Connection;
        /// As P_RS_CANCEL, the sender is Ahead.
        RsCancelAhead(ack::BlockAck) = 0x4a RS_CANCEL_AHEAD, C, 115..=NEWEST, NONE, Volume;
        /// Replaces P_RS_DATA_REQUEST.
        RsDagtagReq(data::RsReq) = 0x4c RS_DAGTAG_REQ, D, 110..=NEWEST, RESYNC_DAGTAG, Volume;
        /// Replaces P_CSUM_RS_REQUEST.
        RsCsumDagtagReq(data::RsReqDigest) = 0x4d RS_CSUM_DAGTAG_REQ, D, 110..=NEWEST, RESYNC_DAGTAG, Volume;
        /// Replaces P_RS_THIN_REQ.
        RsThinDagtagReq(data::RsReq) = 0x4e RS_THIN_DAGTAG_REQ, D, 110..=NEWEST, RESYNC_DAGTAG, Volume;
        /// Replaces P_OV_REQUEST.
        OvDagtagReq(data::RsReq) = 0x4f OV_DAGTAG_REQ, D, 110..=NEWEST, RESYNC_DAGTAG, Volume;
        /// Replaces P_OV_REPLY.
        OvDagtagReply(data::RsReqDigest) = 0x50 OV_DAGTAG_REPLY, D, 110..=NEWEST, RESYNC_DAGTAG, Volume;
        /// Application write done, range now in sync.
        WriteAckInSync(ack::BlockAck) = 0x51 WRITE_ACK_IN_SYNC, C, 122..=NEWEST, NONE, Volume;
        /// Resync write failed.
        RsNegAck(ack::BlockAck) = 0x52 RS_NEG_ACK, C, 122..=NEWEST, NONE, Volume;
        /// Verify: the result.
        OvResultId(ack::OvResult) = 0x53 OV_RESULT_ID, C, 122..=NEWEST, NONE, Volume;
        /// Range is all zero; `seq_num` is 0.
        RsDeallocatedId(ack::BlockAck) = 0x54 RS_DEALLOCATED_ID, D, 122..=NEWEST, NONE, Volume;
        /// A target asks a primary to flush earlier requests.
        FlushRequests(ack::FlushRequests) = 0x55 FLUSH_REQUESTS, D, 123..=NEWEST, NONE, Connection;
        /// A primary asks the other peers on the initiator's behalf.
        FlushForward(ack::FlushForward) = 0x56 FLUSH_FORWARD, C, 123..=NEWEST, NONE, Connection;
        /// Flushed.
        FlushRequestsAck(ack::FlushAck) = 0x57 FLUSH_REQUESTS_ACK, D, 123..=NEWEST, NONE, Connection;
        /// Replication during the next resync.
        EnableReplicationNext(settings::EnableReplication) = 0x58 ENABLE_REPLICATION_NEXT, D, 86..=NEWEST, RESYNC_WITHOUT_REPLICATION, Volume;
        /// Replication during this resync.
        EnableReplication(settings::EnableReplication) = 0x59 ENABLE_REPLICATION, D, 86..=NEWEST, RESYNC_WITHOUT_REPLICATION, Volume;
        /// Versions and features of the sender.
        ConnectionFeatures(Box<ConnectionFeatures>) = 0xfffe CONNECTION_FEATURES, D, 80..=80, NONE, Connection;
    }
}

impl super::body::Checked for ConnectionFeatures {}

impl Packet {
    /// The table's line of this packet.
    #[must_use]
    pub fn rule(&self) -> &'static Rule {
        rule(self.command()).expect("every variant has a line in the table")
    }

    /// The name, as in the reference.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.rule().name
    }

    /// The stream it is sent on.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.rule().stream()
    }

    /// What it is about.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.rule().scope
    }

    /// True for the packets whose bulk payload follows: P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY, P_WSAME.
    #[must_use]
    pub const fn has_payload(&self) -> bool {
        matches!(self, Packet::Data(_) | Packet::DataReply(_) | Packet::RsDataReply(_) | Packet::Wsame(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_packet_stays_small() {
        assert!(size_of::<Packet>() <= 48, "{} bytes", size_of::<Packet>());
    }

    #[test]
    fn wire_table_is_complete_and_ordered() {
        let mut commands = COMMANDS.to_vec();
        commands.sort_unstable();
        commands.dedup();
        assert_eq!(commands.len(), COMMANDS.len());
        assert_eq!(commands.len(), 80);
        assert!((0..=u16::MAX).filter(|&c| rule(c).is_some()).eq(commands));
        for gone in [0x05, 0x06, 0x25, 0x26, 0x37, 0x3f, 0x5a] {
            assert!(rule(gone).is_none());
        }
    }

    #[test]
    fn wire_rules_know_versions_features_and_streams() {
        let trim = rule(command::TRIM).unwrap();
        let old = Negotiated { version: 101, ..Negotiated::INITIAL };
        assert!(!trim.is_legal(&old));
        assert!(trim.is_legal(&Negotiated { features: Features::DRBD_84, ..old }));
        assert_eq!(rule(command::PEERS_IN_SYNC).unwrap().stream(), Stream::Control);
        let ping = rule(command::PING).unwrap();
        assert!(ping.is_legal(&Negotiated::INITIAL));
        assert!(!rule(command::PROTOCOL).unwrap().is_legal(&Negotiated::INITIAL));
        assert!(ping.check_stream(Stream::Control, HeaderFormat::H80, 124).is_ok());
        assert!(trim.check_stream(Stream::Data, HeaderFormat::H80, 124).is_err());
        assert!(trim.check_stream(Stream::Control, HeaderFormat::H100, 124).is_err());
    }
}
