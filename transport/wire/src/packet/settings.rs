//! Settings, sizes and states of the handshake (`wire-protocol.md` sections 6, 8, 8.3).

use rkyv::{Archive, Deserialize, Serialize};

use super::DecodeError;
use super::body::{Body, Checked, Context, MAX_PACKET, Shape};
use crate::bytes::{Field, Reader};
use crate::features::Features;
use crate::flags::{ConnFlags, DdsFlags};
use crate::state::StateBits;

/// Bytes of an algorithm's name on the wire, the terminating zero included.
const NAME_LEN: usize = 64;

/// The name of a hash algorithm: up to 63 printable ASCII characters, empty for none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AlgName(Box<str>);

impl AlgName {
    /// A name, `None` if it is too long or not printable ASCII.
    #[must_use]
    pub fn new(name: &str) -> Option<AlgName> {
        let printable = name.bytes().all(|b| b.is_ascii_graphic());
        (name.len() < NAME_LEN && printable).then(|| AlgName(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for "none".
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the bytes up to the first zero; what is behind it does not matter.
    fn from_wire(bytes: &[u8]) -> Result<AlgName, DecodeError> {
        let end = bytes.iter().position(|&b| b == 0).ok_or(DecodeError::BadName)?;
        let name = std::str::from_utf8(&bytes[..end]).map_err(|_| DecodeError::BadName)?;
        AlgName::new(name).ok_or(DecodeError::BadName)
    }

    fn put_terminated(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.as_bytes());
        out.push(0);
    }

    fn put_padded(&self, out: &mut Vec<u8>) {
        let end = out.len() + NAME_LEN;
        out.extend_from_slice(self.0.as_bytes());
        out.resize(end, 0);
    }
}

/// The replication protocol of P_PROTOCOL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum ReplicationProtocol {
    /// Done when handed to the network.
    A = 1,
    /// Done when received.
    B = 2,
    /// Done when written.
    C = 3,
}

impl ReplicationProtocol {
    /// The protocol with this number.
    #[must_use]
    pub const fn from_wire(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::A),
            2 => Some(Self::B),
            3 => Some(Self::C),
            _ => None,
        }
    }
}

/// P_PROTOCOL, P_PROTOCOL_UPDATE. All numbers as sent: they are compared with our own, not judged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Protocol {
    /// See [`ReplicationProtocol`].
    pub protocol: u32,
    /// Policy without a primary.
    pub after_sb_0p: u32,
    /// Policy with one primary.
    pub after_sb_1p: u32,
    /// Policy with two primaries.
    pub after_sb_2p: u32,
    /// Flags.
    pub conn_flags: ConnFlags,
    /// 1 if two primaries are allowed.
    pub two_primaries: u32,
    /// The sender's data-integrity-alg, empty for none (not sent below 87).
    pub integrity_alg: AlgName,
}

const PROTOCOL_LEN: usize = 24;

impl Body for Protocol {
    fn shape(ctx: &Context<'_>) -> Shape {
        if ctx.neg.version < 87 {
            Shape::fixed(PROTOCOL_LEN)
        } else {
            Shape::variable(PROTOCOL_LEN + 1, PROTOCOL_LEN + NAME_LEN)
        }
    }

    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
        Ok(Protocol {
            protocol: Field::get(r)?,
            after_sb_0p: Field::get(r)?,
            after_sb_1p: Field::get(r)?,
            after_sb_2p: Field::get(r)?,
            conn_flags: Field::get(r)?,
            two_primaries: Field::get(r)?,
            integrity_alg: if ctx.neg.version < 87 { AlgName::default() } else { AlgName::from_wire(r.rest())? },
        })
    }

    fn put(&self, out: &mut Vec<u8>, ctx: &Context<'_>) {
        self.protocol.put(out);
        self.after_sb_0p.put(out);
        self.after_sb_1p.put(out);
        self.after_sb_2p.put(out);
        self.conn_flags.put(out);
        self.two_primaries.put(out);
        if ctx.neg.version >= 87 {
            self.integrity_alg.put_terminated(out);
        }
    }
}

/// P_SYNC_PARAM, versions 86..=88.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SyncParam {
    /// KiB/s.
    pub resync_rate: u32,
    /// The verify-alg (sent at version 88 only).
    pub verify_alg: AlgName,
}

impl Body for SyncParam {
    fn shape(ctx: &Context<'_>) -> Shape {
        if ctx.neg.version < 88 { Shape::fixed(4) } else { Shape::variable(5, 4 + NAME_LEN) }
    }

    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
        Ok(SyncParam {
            resync_rate: Field::get(r)?,
            verify_alg: if ctx.neg.version < 88 { AlgName::default() } else { AlgName::from_wire(r.rest())? },
        })
    }

    fn put(&self, out: &mut Vec<u8>, ctx: &Context<'_>) {
        self.resync_rate.put(out);
        if ctx.neg.version >= 88 {
            self.verify_alg.put_terminated(out);
        }
    }
}

wire_struct! {
    /// The controller's parameters in P_SYNC_PARAM89 from version 95 on.
    SyncController[16] {
        /// Steps of 0.1 s, 0 for a fixed rate.
        c_plan_ahead: u32,
        /// Steps of 0.1 s.
        c_delay_target: u32,
        /// Sectors.
        c_fill_target: u32,
        /// KiB/s.
        c_max_rate: u32,
    }
}

/// P_SYNC_PARAM89.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SyncParam89 {
    /// KiB/s.
    pub resync_rate: u32,
    /// The verify-alg.
    pub verify_alg: AlgName,
    /// The csums-alg.
    pub csums_alg: AlgName,
    /// Sent from version 95 on, zero below.
    pub controller: SyncController,
}

impl Body for SyncParam89 {
    fn shape(ctx: &Context<'_>) -> Shape {
        let base = 4 + 2 * NAME_LEN;
        Shape::fixed(if ctx.neg.version < 95 { base } else { base + SyncController::LEN })
    }

    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
        Ok(SyncParam89 {
            resync_rate: Field::get(r)?,
            verify_alg: AlgName::from_wire(r.take(NAME_LEN)?)?,
            csums_alg: AlgName::from_wire(r.take(NAME_LEN)?)?,
            controller: if ctx.neg.version < 95 { SyncController::default() } else { Field::get(r)? },
        })
    }

    fn put(&self, out: &mut Vec<u8>, ctx: &Context<'_>) {
        self.resync_rate.put(out);
        self.verify_alg.put_padded(out);
        self.csums_alg.put_padded(out);
        if ctx.neg.version >= 95 {
            self.controller.put(out);
        }
    }
}

wire_struct! {
    /// `qlim`: the limits of the sender's device in P_SIZES.
    QueueLimits[24] {
        /// Bytes.
        physical_block_size: u32,
        /// Bytes.
        logical_block_size: u32,
        /// Bytes.
        alignment_offset: u32,
        /// Bytes.
        io_min: u32,
        /// Bytes.
        io_opt: u32,
        /// 1 if discards are supported.
        discard_enabled: u8,
        /// Sent as 0.
        discard_zeroes_data: u8,
        /// Sent as 0.
        write_same_capable: u8,
        /// log2 of the bitmap block size, minus 12 (with `BM_BLOCK_SHIFT`, else 0).
        bm_block_shift_minus_12: u8,
    }
}

archived_as_bytes!(QueueLimits);

/// P_SIZES.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Sizes {
    /// Size of the backing device in sectors.
    pub d_size: u64,
    /// The user's cap in sectors, 0 for none.
    pub u_size: u64,
    /// Current size in sectors.
    pub c_size: u64,
    /// Bytes.
    pub max_bio_size: u32,
    /// 0.
    pub queue_order_type: u16,
    /// Flags.
    pub dds_flags: DdsFlags,
    /// Present if and only if the feature `WSAME` is agreed.
    pub qlim: Option<QueueLimits>,
}

impl Body for Sizes {
    fn shape(ctx: &Context<'_>) -> Shape {
        Shape::fixed(if ctx.neg.has(Features::WSAME) { 32 + QueueLimits::LEN } else { 32 })
    }

    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
        Ok(Sizes {
            d_size: Field::get(r)?,
            u_size: Field::get(r)?,
            c_size: Field::get(r)?,
            max_bio_size: Field::get(r)?,
            queue_order_type: Field::get(r)?,
            dds_flags: Field::get(r)?,
            qlim: if ctx.neg.has(Features::WSAME) { Some(Field::get(r)?) } else { None },
        })
    }

    fn put(&self, out: &mut Vec<u8>, ctx: &Context<'_>) {
        let wanted = ctx.neg.has(Features::WSAME);
        assert_eq!(self.qlim.is_some(), wanted, "queue limits go with the feature WSAME");
        self.d_size.put(out);
        self.u_size.put(out);
        self.c_size.put(out);
        self.max_bio_size.put(out);
        self.queue_order_type.put(out);
        self.dds_flags.put(out);
        if let Some(qlim) = &self.qlim {
            qlim.put(out);
        }
    }
}

wire_struct! {
    /// P_STATE.
    State[4] {
        /// The sender's state; typed by [`StateBits::word`]. Checked when received.
        state: StateBits,
    }
}

impl Checked for State {
    fn check(&self, ctx: &Context<'_>) -> Result<(), DecodeError> {
        self.state.word(ctx.neg.version).map(|_| ()).map_err(DecodeError::BadState)
    }
}

wire_struct! {
    /// P_STATE_CHG_REQ, P_CONN_ST_CHG_REQ. Disk states in it have the sender's own numbers.
    ReqState[8] {
        /// Which fields are to change (all bits of a field).
        mask: StateBits,
        /// Their new values.
        val: StateBits,
    }
}

impl Checked for ReqState {}

wire_struct! {
    /// P_ENABLE_REPLICATION, P_ENABLE_REPLICATION_NEXT.
    EnableReplication[4] {
        /// Replicate writes during a resync.
        enable: bool,
        ; pad 3
    }
}

impl Checked for EnableReplication {}

/// P_AUTH_CHALLENGE: 64 random bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuthChallenge {
    /// The bytes.
    pub challenge: Box<[u8; CHALLENGE_LEN]>,
}

/// Bytes of a challenge.
pub const CHALLENGE_LEN: usize = 64;

impl Body for AuthChallenge {
    fn shape(_: &Context<'_>) -> Shape {
        Shape::fixed(CHALLENGE_LEN)
    }

    fn get(r: &mut Reader<'_>, _: &Context<'_>) -> Result<Self, DecodeError> {
        Ok(AuthChallenge { challenge: Box::new(r.array()?) })
    }

    fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
        out.extend_from_slice(&*self.challenge);
    }
}

/// P_AUTH_RESPONSE: an HMAC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuthResponse {
    /// The HMAC.
    pub response: crate::digest::Digest,
}

impl Body for AuthResponse {
    fn shape(_: &Context<'_>) -> Shape {
        Shape::variable(1, crate::digest::MAX_DIGEST_LEN)
    }

    fn get(r: &mut Reader<'_>, _: &Context<'_>) -> Result<Self, DecodeError> {
        let bytes = r.rest();
        crate::digest::Digest::new(bytes)
            .map(|response| AuthResponse { response })
            .ok_or(DecodeError::BadDigest { len: bytes.len() })
    }

    fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
        out.extend_from_slice(self.response.as_slice());
    }
}

/// P_BITMAP: a part of a bitmap as it is, or empty as end marker; see [`crate::bitmap`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bitmap {
    /// Little endian 64 bit words.
    pub words: Box<[u8]>,
}

impl Body for Bitmap {
    fn shape(ctx: &Context<'_>) -> Shape {
        Shape::variable(0, MAX_PACKET - ctx.format.len())
    }

    fn get(r: &mut Reader<'_>, _: &Context<'_>) -> Result<Self, DecodeError> {
        let words = r.rest();
        if !words.len().is_multiple_of(8) {
            return Err(DecodeError::BadBitmapLength { len: words.len() });
        }
        Ok(Bitmap { words: words.into() })
    }

    fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
        out.extend_from_slice(&self.words);
    }
}

/// P_COMPRESSED_BITMAP: a part of a bitmap as run lengths; see [`crate::vli`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CompressedBitmap {
    /// Bits 0..=3 code, 4..=6 unused bits of the last byte, 7 polarity of the first run.
    pub encoding: u8,
    /// The bit stream.
    pub code: Box<[u8]>,
}

impl Body for CompressedBitmap {
    fn shape(ctx: &Context<'_>) -> Shape {
        Shape::variable(2, MAX_PACKET - ctx.format.len())
    }

    fn get(r: &mut Reader<'_>, _: &Context<'_>) -> Result<Self, DecodeError> {
        Ok(CompressedBitmap { encoding: Field::get(r)?, code: r.rest().into() })
    }

    fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
        out.push(self.encoding);
        out.extend_from_slice(&self.code);
    }
}
