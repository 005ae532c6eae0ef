//! All packets (`wire-protocol.md` section 7).
//!
//! [`Packet`] is the fixed part of a packet; [`rule`] says which are legal when and on which stream.

mod ack;
mod body;
mod codec;
mod data;
mod error;
mod rules;
mod settings;
mod twopc;
mod uuids;

pub use ack::{
    Barrier, BarrierAck, BlockAck, ConfirmStable, Dagtag, FlushAck, FlushForward, FlushRequests, OvResult, OvVerdict,
    PeerAck, PeerDagtag, RetCode,
};
pub use codec::prefix_len;
pub use data::{BlockDesc, BlockReq, BlockReqDigest, Data, DelayProbe, PeerBlockDesc, RsReq, RsReqDigest, Trim, Wsame};
pub use error::DecodeError;
pub use rules::{Packet, Rule, Scope, Stream, command, rule};
pub use settings::{
    AlgName, AuthChallenge, AuthResponse, Bitmap, CHALLENGE_LEN, CompressedBitmap, EnableReplication, Protocol,
    QueueLimits, ReplicationProtocol, ReqState, Sizes, State, SyncController, SyncParam, SyncParam89,
};
pub use twopc::{TwopcBody, TwopcReply, TwopcRequest};
pub use uuids::{BitmapUuids, CurrentUuid, Uuid, Uuids, Uuids110};

/// The largest data payload of a packet in bytes, at any version.
pub const MAX_DATA_BYTES: u32 = 1 << 20;
/// The largest range of P_TRIM and P_ZEROES in bytes, and so of anything that names a range.
pub const MAX_TRIM_BYTES: u32 = 128 << 20;
/// The most bytes in front of bulk payload, header and digest included: nothing that is decoded whole
/// is longer.
pub const MAX_PREFIX_BYTES: usize = body::MAX_PACKET;
