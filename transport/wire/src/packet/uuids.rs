//! Generation identifiers (`wire-protocol.md` sections 8, 8.4).

use rkyv::{Archive, Deserialize, Serialize};

use super::DecodeError;
use super::body::{Body, Checked, Context, MAX_PACKET, Shape};
use crate::bytes::{Field, Reader};
use crate::flags::UuidFlags;
use crate::ids::{NodeId, NodeMask};

wire_struct! {
    /// P_UUIDS, below 110.
    Uuids[48] {
        /// Current UUID.
        current: u64,
        /// Bitmap UUID.
        bitmap: u64,
        /// Newest history UUID.
        history0: u64,
        /// The one before.
        history1: u64,
        /// Bits set in the sender's bitmap.
        dirty_bits: u64,
        /// Flags.
        uuid_flags: UuidFlags,
    }
}

wire_struct! {
    /// P_SYNC_UUID, below 110.
    Uuid[8] {
        /// The new UUID.
        uuid: u64,
    }
}

wire_struct! {
    /// P_CURRENT_UUID.
    CurrentUuid[16] {
        /// The current UUID.
        uuid: u64,
        /// Nodes that miss data.
        weak_nodes: NodeMask,
    }
}

impl Checked for Uuids {}
impl Checked for Uuid {}
impl Checked for CurrentUuid {}

/// One bitmap UUID per node, for the nodes in the mask.
#[derive(Clone, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct BitmapUuids {
    mask: NodeMask,
    values: [u64; 32],
}

impl BitmapUuids {
    /// The nodes that have one.
    #[must_use]
    pub const fn mask(&self) -> NodeMask {
        self.mask
    }

    /// The bitmap UUID of a node, if there is one.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<u64> {
        self.mask.contains(node).then(|| self.values[node.index()])
    }

    /// Sets the bitmap UUID of a node.
    pub fn set(&mut self, node: NodeId, uuid: u64) {
        self.mask.insert(node);
        self.values[node.index()] = uuid;
    }

    /// Takes a node out.
    pub fn clear(&mut self, node: NodeId) {
        self.mask.remove(node);
        self.values[node.index()] = 0;
    }

    /// The nodes with their bitmap UUIDs, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        self.mask.iter().map(|node| (node, self.values[node.index()]))
    }
}

impl FromIterator<(NodeId, u64)> for BitmapUuids {
    fn from_iter<I: IntoIterator<Item = (NodeId, u64)>>(uuids: I) -> Self {
        let mut set = BitmapUuids::default();
        uuids.into_iter().for_each(|(node, uuid)| set.set(node, uuid));
        set
    }
}

/// P_UUIDS110.
#[derive(Clone, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Uuids110 {
    /// Current UUID.
    pub current: u64,
    /// Bits set in the sender's bitmap towards the receiver.
    pub dirty_bits: u64,
    /// Flags.
    pub uuid_flags: UuidFlags,
    /// Weak or authoritative nodes, by flags.
    pub node_mask: NodeMask,
    /// Bitmap UUIDs by node (`bitmap_uuids_mask` on the wire).
    pub bitmap_uuids: BitmapUuids,
    /// History UUIDs, newest first. 9 sends 32, any number is taken.
    pub history: Vec<u64>,
}

impl Uuids110 {
    /// The sender is at this generation, or has been at it.
    pub fn knows(&self, generation: u64) -> bool {
        let bitmap = self.bitmap_uuids.iter().map(|(_, uuid)| uuid);
        let mut known = bitmap.chain(self.history.iter().copied()).chain([self.current]);
        known.any(|uuid| uuid & !1 == generation & !1)
    }
}

const FIXED_LEN: usize = 40;

impl Body for Uuids110 {
    fn shape(ctx: &Context<'_>) -> Shape {
        Shape::variable(FIXED_LEN, MAX_PACKET - ctx.format.len())
    }

    fn get(r: &mut Reader<'_>, _: &Context<'_>) -> Result<Self, DecodeError> {
        let current = Field::get(r)?;
        let dirty_bits = Field::get(r)?;
        let uuid_flags = Field::get(r)?;
        let node_mask = Field::get(r)?;
        let mask: NodeMask = Field::get(r)?;
        let len = r.remaining();
        if !mask.without(NodeMask::ALL).is_empty() || mask.len() * 8 > len || !len.is_multiple_of(8) {
            return Err(DecodeError::BadBitmapUuids { mask, len });
        }
        let mut bitmap_uuids = BitmapUuids::default();
        for node in mask.iter() {
            bitmap_uuids.set(node, Field::get(r)?);
        }
        let mut history = Vec::with_capacity(r.remaining() / 8);
        while r.remaining() > 0 {
            history.push(Field::get(r)?);
        }
        Ok(Uuids110 { current, dirty_bits, uuid_flags, node_mask, bitmap_uuids, history })
    }

    fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
        self.current.put(out);
        self.dirty_bits.put(out);
        self.uuid_flags.put(out);
        self.node_mask.put(out);
        self.bitmap_uuids.mask().put(out);
        self.bitmap_uuids.iter().for_each(|(_, uuid)| uuid.put(out));
        self.history.iter().for_each(|uuid| uuid.put(out));
    }
}
