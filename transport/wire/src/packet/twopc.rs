//! Two-phase commit (`wire-protocol.md` section 8.1).

use rkyv::{Archive, Deserialize, Serialize};

use super::body::{Body, Checked, Context, Shape};
use super::{DecodeError, command};
use crate::bytes::{Field, Reader};
use crate::features::Features;
use crate::flags::{DdsFlags, TwopcFlags};
use crate::ids::{NodeId, NodeMask};
use crate::state::StateBits;

/// P_TWOPC_PREPARE, P_TWOPC_PREP_RSZ, P_TWOPC_COMMIT, P_TWOPC_ABORT. Version 2 with the feature
/// `TWOPC_V2`, else version 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct TwopcRequest {
    /// The transaction's number, random and not 0.
    pub tid: u32,
    /// Flags of version 2 without `HAS_FLAGS`; empty in version 1.
    pub flags: TwopcFlags,
    /// Who started it.
    pub initiator_node_id: NodeId,
    /// Whom it is about; `None` for all.
    pub target_node_id: Option<NodeId>,
    /// Nodes the receiver is to pass it on to.
    pub nodes_to_reach: NodeMask,
    /// The rest, which depends on the command.
    pub body: TwopcBody,
}

/// Bytes 20..36 of a two-phase commit request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum TwopcBody {
    /// P_TWOPC_PREPARE: the state change.
    Prepare {
        /// Which fields change.
        mask: StateBits,
        /// To what.
        val: StateBits,
    },
    /// P_TWOPC_PREP_RSZ: a resize.
    PrepareResize {
        /// The wanted size in sectors, 0 for the largest.
        user_size: u64,
        /// Flags.
        dds_flags: DdsFlags,
        /// Undefined: 9 sends whatever was there. Send zeros; kept so that packets stay bit exact.
        undefined: [u8; 6],
    },
    /// P_TWOPC_COMMIT with `HAS_REACHABLE`.
    CommitReachable {
        /// The primaries.
        primary_nodes: NodeMask,
        /// The nodes that remain connected with each other.
        reachable_nodes: NodeMask,
    },
    /// P_TWOPC_COMMIT without `HAS_REACHABLE`. Which of both readings of `last` is meant follows from
    /// the transaction's prepare packet.
    Commit {
        /// The primaries; of a resize: the primaries with a disk.
        primary_nodes: NodeMask,
        /// Mask and value of the state change ([`TwopcBody::mask_val`]) or the new size in sectors.
        last: u64,
    },
    /// P_TWOPC_ABORT: zeros that have no meaning.
    Abort,
}

impl TwopcBody {
    /// The body of a version 1 commit of a state change.
    #[must_use]
    pub const fn commit_v1(primary_nodes: NodeMask, mask: StateBits, val: StateBits) -> TwopcBody {
        TwopcBody::Commit { primary_nodes, last: (mask.0 as u64) << 32 | val.0 as u64 }
    }

    /// Mask and value of a prepare packet or a version 1 commit of a state change.
    #[must_use]
    pub const fn mask_val(&self) -> Option<(StateBits, StateBits)> {
        match *self {
            TwopcBody::Prepare { mask, val } => Some((mask, val)),
            TwopcBody::Commit { last, .. } => Some((StateBits((last >> 32) as u32), StateBits(last as u32))),
            _ => None,
        }
    }
}

const NO_TARGET_V1: u32 = u32::MAX;
const NO_TARGET_V2: u8 = 0xff;

/// tid, flags, initiator, target of either version.
type Head = (u32, TwopcFlags, NodeId, Option<NodeId>);

fn get_head_v1(r: &mut Reader<'_>) -> Result<Head, DecodeError> {
    let tid = Field::get(r)?;
    let initiator = Field::get(r)?;
    let target = match Field::get(r)? {
        NO_TARGET_V1 => None,
        id => Some(NodeId::from_wire(id).ok_or(DecodeError::BadNodeId { id: id.into() })?),
    };
    Ok((tid, TwopcFlags::EMPTY, initiator, target))
}

fn get_head_v2(r: &mut Reader<'_>) -> Result<Head, DecodeError> {
    let tid = Field::get(r)?;
    let flags: TwopcFlags = TwopcFlags(Field::get(r)?);
    if !flags.contains(TwopcFlags::HAS_FLAGS) {
        return Err(DecodeError::BadTwopcFlags { flags: flags.0 });
    }
    r.skip(2)?;
    let node = |id: u8| NodeId::new(id).ok_or(DecodeError::BadNodeId { id: i64::from(id as i8) });
    let initiator = node(Field::get(r)?)?;
    let target = match Field::get(r)? {
        NO_TARGET_V2 => None,
        id => Some(node(id)?),
    };
    Ok((tid, flags.without(TwopcFlags::HAS_FLAGS), initiator, target))
}

fn get_body(r: &mut Reader<'_>, command: u16, flags: TwopcFlags) -> Result<TwopcBody, DecodeError> {
    Ok(match command {
        command::TWOPC_PREPARE => {
            r.skip(8)?;
            TwopcBody::Prepare { mask: Field::get(r)?, val: Field::get(r)? }
        }
        command::TWOPC_PREP_RSZ => {
            TwopcBody::PrepareResize { user_size: Field::get(r)?, dds_flags: Field::get(r)?, undefined: r.array()? }
        }
        command::TWOPC_COMMIT if flags.contains(TwopcFlags::HAS_REACHABLE) => {
            TwopcBody::CommitReachable { primary_nodes: Field::get(r)?, reachable_nodes: Field::get(r)? }
        }
        command::TWOPC_COMMIT => TwopcBody::Commit { primary_nodes: Field::get(r)?, last: Field::get(r)? },
        _ => {
            r.skip(16)?;
            TwopcBody::Abort
        }
    })
}

impl TwopcRequest {
    fn put_head(&self, out: &mut Vec<u8>, version_2: bool) {
        self.tid.put(out);
        if version_2 {
            (self.flags | TwopcFlags::HAS_FLAGS).0.put(out);
            0_u16.put(out);
            self.initiator_node_id.0.put(out);
            self.target_node_id.map_or(NO_TARGET_V2, |n| n.0).put(out);
        } else {
            self.initiator_node_id.put(out);
            self.target_node_id.map_or(NO_TARGET_V1, |n| n.0.into()).put(out);
        }
        self.nodes_to_reach.put(out);
    }

    /// Panics if the body is not the one of the command.
    fn put_body(&self, out: &mut Vec<u8>, command: u16, version_2: bool) {
        let reachable = version_2 && self.flags.contains(TwopcFlags::HAS_REACHABLE);
        match (command, self.body) {
            (command::TWOPC_PREPARE, TwopcBody::Prepare { mask, val }) => {
                0_u64.put(out);
                mask.put(out);
                val.put(out);
            }
            (command::TWOPC_PREP_RSZ, TwopcBody::PrepareResize { user_size, dds_flags, undefined }) => {
                user_size.put(out);
                dds_flags.put(out);
                out.extend_from_slice(&undefined);
            }
            (command::TWOPC_COMMIT, TwopcBody::CommitReachable { primary_nodes, reachable_nodes }) if reachable => {
                primary_nodes.put(out);
                reachable_nodes.put(out);
            }
            (command::TWOPC_COMMIT, TwopcBody::Commit { primary_nodes, last }) if !reachable => {
                primary_nodes.put(out);
                last.put(out);
            }
            (command::TWOPC_ABORT, TwopcBody::Abort) => out.extend_from_slice(&[0; 16]),
            (command, body) => panic!("{body:?} does not go into command {command:#x}"),
        }
    }
}

impl Body for TwopcRequest {
    fn shape(_: &Context<'_>) -> Shape {
        Shape::fixed(36)
    }

    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
        let (tid, flags, initiator_node_id, target_node_id) =
            if ctx.neg.has(Features::TWOPC_V2) { get_head_v2(r)? } else { get_head_v1(r)? };
        Ok(TwopcRequest {
            tid,
            flags,
            initiator_node_id,
            target_node_id,
            nodes_to_reach: Field::get(r)?,
            body: get_body(r, ctx.command, flags)?,
        })
    }

    fn put(&self, out: &mut Vec<u8>, ctx: &Context<'_>) {
        let version_2 = ctx.neg.has(Features::TWOPC_V2);
        self.put_head(out, version_2);
        self.put_body(out, ctx.command, version_2);
    }
}

wire_struct! {
    /// P_TWOPC_YES, P_TWOPC_NO, P_TWOPC_RETRY.
    TwopcReply[32] {
        /// The transaction's number.
        tid: u32,
        /// Who started the transaction.
        initiator_node_id: NodeId,
        /// The nodes that the sender's side reaches; of a resize as well.
        reachable_nodes: NodeMask,
        /// The primaries; of a resize: the primaries with a disk.
        primary_nodes: NodeMask,
        /// The nodes that a primary does not reach as number ([`TwopcReply::weak_nodes`]); of a resize:
        /// the largest possible size in sectors ([`TwopcReply::max_possible_size`]).
        weak_nodes_or_max_size: u64,
    }
}

impl TwopcReply {
    /// The nodes that a primary does not reach; not for a resize.
    #[must_use]
    pub const fn weak_nodes(&self) -> NodeMask {
        NodeMask(self.weak_nodes_or_max_size)
    }

    /// The largest possible size in sectors; for a resize only.
    #[must_use]
    pub const fn max_possible_size(&self) -> u64 {
        self.weak_nodes_or_max_size
    }
}

impl Checked for TwopcReply {}
