//! Packets that move or describe blocks (`wire-protocol.md` sections 8, 9, 10, 11).

use super::body::{Body, Checked, Context, Shape, check_range};
use super::{DecodeError, MAX_DATA_BYTES, MAX_TRIM_BYTES};
use crate::bytes::{Field, Reader};
use crate::digest::{Digest, MAX_DIGEST_LEN};
use crate::flags::DpFlags;
use crate::ids::{BlockId, NodeId, NodeMask};

wire_struct! {
    /// `data`: P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY. The payload (and with an integrity algorithm its
    /// digest) follows on the stream.
    Data[24] {
        /// First sector.
        sector: u64,
        /// The request's id.
        block_id: BlockId,
        /// Sequence number of the peer device; 0 in replies.
        seq_num: u32,
        /// Flags; 0 in replies.
        dp_flags: DpFlags,
    }
}

wire_struct! {
    /// `trim`: P_TRIM, P_ZEROES, and P_WSAME (which has one block of payload).
    Trim[28] {
        /// First sector.
        sector: u64,
        /// The request's id.
        block_id: BlockId,
        /// Sequence number of the peer device.
        seq_num: u32,
        /// Flags.
        dp_flags: DpFlags,
        /// Bytes of the range.
        size: u32,
    }
}

wire_struct! {
    /// `block_req`: requests for data or checksums.
    BlockReq[24] {
        /// First sector.
        sector: u64,
        /// The request's id.
        block_id: BlockId,
        /// Bytes of the range.
        blksize: u32,
        /// Undefined: 8.4 sends whatever was there. Send 0; kept so that packets stay bit exact.
        pad: u32,
    }
}

wire_struct! {
    /// `rs_req`: a request with a dagtag dependency.
    RsReq[32] {
        /// First sector.
        sector: u64,
        /// The request's id.
        block_id: BlockId,
        /// Bytes of the range.
        blksize: u32,
        /// The primary whose dagtag it is; meaningless if `dagtag` is 0.
        dagtag_node_id: NodeId,
        /// Serve only when that primary's writes up to here were received; 0 for no dependency.
        dagtag: u64,
    }
}

wire_struct! {
    /// `block_desc`: P_OUT_OF_SYNC, P_RS_DEALLOCATED.
    BlockDesc[16] {
        /// First sector.
        sector: u64,
        /// Bytes of the range.
        blksize: u32,
        ; pad 4
    }
}

wire_struct! {
    /// `peer_block_desc`: P_PEERS_IN_SYNC.
    PeerBlockDesc[24] {
        /// First sector.
        sector: u64,
        /// The nodes that are in sync with each other.
        mask: NodeMask,
        /// Bytes of the range.
        size: u32,
        ; pad 4
    }
}

wire_struct! {
    /// P_DELAY_PROBE: to be skipped.
    DelayProbe[8] {
        /// First half.
        seq_num: u32,
        /// Second half.
        offset: u32,
    }
}

/// A [`BlockReq`] with a digest behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockReqDigest {
    /// The range.
    pub req: BlockReq,
    /// The digest of it.
    pub digest: Digest,
}

/// An [`RsReq`] with a digest behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RsReqDigest {
    /// The range.
    pub req: RsReq,
    /// The digest of it.
    pub digest: Digest,
}

/// P_WSAME: a [`Trim`] whose one block of payload follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wsame {
    /// The range.
    pub trim: Trim,
}

impl Checked for Trim {
    fn check(&self, _: &Context<'_>) -> Result<(), DecodeError> {
        check_range(self.sector, self.size, 512, MAX_TRIM_BYTES)
    }
}

impl Checked for BlockReq {
    fn check(&self, _: &Context<'_>) -> Result<(), DecodeError> {
        check_range(self.sector, self.blksize, 512, MAX_DATA_BYTES)
    }
}

impl Checked for RsReq {
    fn check(&self, _: &Context<'_>) -> Result<(), DecodeError> {
        check_range(self.sector, self.blksize, 512, MAX_DATA_BYTES)
    }
}

impl Checked for BlockDesc {
    fn check(&self, _: &Context<'_>) -> Result<(), DecodeError> {
        check_range(self.sector, self.blksize, 512, MAX_TRIM_BYTES)
    }
}

impl Checked for PeerBlockDesc {
    fn check(&self, _: &Context<'_>) -> Result<(), DecodeError> {
        check_range(self.sector, self.size, 512, MAX_TRIM_BYTES)
    }
}

impl Checked for DelayProbe {}

impl Body for Data {
    fn shape(ctx: &Context<'_>) -> Shape {
        let prefix = Self::LEN + ctx.digest_len;
        Shape { min: prefix, max: prefix + MAX_DATA_BYTES as usize, bulk_prefix: Some(prefix) }
    }

    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
        let data: Data = Field::get(r)?;
        r.skip(ctx.digest_len)?;
        Ok(data)
    }

    fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
        Field::put(self, out);
    }
}

/// The largest logical block, the most that P_WSAME carries.
const MAX_WSAME_BLOCK: usize = 4096;

impl Body for Wsame {
    fn shape(ctx: &Context<'_>) -> Shape {
        let prefix = Trim::LEN + ctx.digest_len;
        Shape { min: prefix + 512, max: prefix + MAX_WSAME_BLOCK, bulk_prefix: Some(prefix) }
    }

    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
        let trim: Trim = Body::get(r, ctx)?;
        r.skip(ctx.digest_len)?;
        Ok(Wsame { trim })
    }

    fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
        Field::put(&self.trim, out);
    }
}

macro_rules! with_digest {
    ($($name:ident: $req:ty),+) => {
        $( impl Body for $name {
            fn shape(_: &Context<'_>) -> Shape {
                Shape::variable(<$req>::LEN + 1, <$req>::LEN + MAX_DIGEST_LEN)
            }

            fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
                let req = Body::get(r, ctx)?;
                let rest = r.rest();
                let digest = Digest::new(rest)
                    .ok_or(DecodeError::BadDigest { len: rest.len() })?;
                Ok($name { req, digest })
            }

            fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
                Field::put(&self.req, out);
                out.extend_from_slice(self.digest.as_slice());
            }
        } )+
    };
}
with_digest!(BlockReqDigest: BlockReq, RsReqDigest: RsReq);
