//! Newtypes for the numbers that name nodes, volumes and requests.

use std::fmt;
use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not};

use rkyv::{Archive, Deserialize, Serialize};

/// A node of a resource, 0..=31 (`wire-protocol.md` section 8: masks name nodes by bit).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Archive, Serialize, Deserialize)]
pub struct NodeId(pub u8);

impl NodeId {
    /// The largest node id.
    pub const MAX: NodeId = NodeId(31);

    /// A node id, or `None` above 31.
    #[must_use]
    pub const fn new(id: u8) -> Option<NodeId> {
        if id <= Self::MAX.0 { Some(NodeId(id)) } else { None }
    }

    /// A node id from a 32 bit wire field, or `None` above 31.
    #[must_use]
    pub fn from_wire(id: u32) -> Option<NodeId> {
        u8::try_from(id).ok().and_then(NodeId::new)
    }

    /// The mask that holds only this node. Panics above 31: such an id is not a node id.
    #[must_use]
    pub const fn mask(self) -> NodeMask {
        assert!(self.0 <= Self::MAX.0, "node id above 31");
        NodeMask(1 << self.0)
    }

    /// The id as an index, 0..=31.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of nodes; bit n is node n. Bits above 31 are kept (peers send `!mask`) but never iterated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Archive, Serialize, Deserialize)]
pub struct NodeMask(pub u64);

impl NodeMask {
    /// No node.
    pub const EMPTY: NodeMask = NodeMask(0);
    /// Every possible node (the 32 low bits).
    pub const ALL: NodeMask = NodeMask(0xffff_ffff);

    /// True if `node` is in the set.
    #[must_use]
    pub const fn contains(self, node: NodeId) -> bool {
        self.0 & node.mask().0 != 0
    }

    /// Adds `node`; true if it was not in the set before.
    pub fn insert(&mut self, node: NodeId) -> bool {
        let new = !self.contains(node);
        self.0 |= node.mask().0;
        new
    }

    /// Removes `node`; true if it was in the set.
    pub fn remove(&mut self, node: NodeId) -> bool {
        let old = self.contains(node);
        self.0 &= !node.mask().0;
        old
    }

    /// The nodes in either set.
    #[must_use]
    pub const fn union(self, other: NodeMask) -> NodeMask {
        NodeMask(self.0 | other.0)
    }

    /// The nodes in both sets.
    #[must_use]
    pub const fn intersection(self, other: NodeMask) -> NodeMask {
        NodeMask(self.0 & other.0)
    }

    /// The nodes in this set but not in `other`.
    #[must_use]
    pub const fn without(self, other: NodeMask) -> NodeMask {
        NodeMask(self.0 & !other.0)
    }

    /// True if no bit is set (bits above 31 count).
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The number of set bits (bits above 31 count).
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The nodes in ascending order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = NodeId> + Clone {
        (0..=NodeId::MAX.0).map(NodeId).filter(move |&n| self.contains(n))
    }
}

impl FromIterator<NodeId> for NodeMask {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        nodes.into_iter().fold(NodeMask::EMPTY, |set, n| set.union(n.mask()))
    }
}

impl From<NodeId> for NodeMask {
    fn from(node: NodeId) -> Self {
        node.mask()
    }
}

impl BitOr for NodeMask {
    type Output = NodeMask;
    fn bitor(self, other: NodeMask) -> NodeMask {
        self.union(other)
    }
}

impl BitOrAssign for NodeMask {
    fn bitor_assign(&mut self, other: NodeMask) {
        self.0 |= other.0;
    }
}

impl BitAnd for NodeMask {
    type Output = NodeMask;
    fn bitand(self, other: NodeMask) -> NodeMask {
        self.intersection(other)
    }
}

impl BitAndAssign for NodeMask {
    fn bitand_assign(&mut self, other: NodeMask) {
        self.0 &= other.0;
    }
}

impl Not for NodeMask {
    type Output = NodeMask;
    fn not(self) -> NodeMask {
        NodeMask(!self.0)
    }
}

impl fmt::Debug for NodeMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeMask({:#x})", self.0)
    }
}

impl fmt::Display for NodeMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A volume of a resource. On the wire 0xffff means "none", so it is not a volume number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Archive, Serialize, Deserialize)]
pub struct VolumeNr(pub u16);

impl fmt::Display for VolumeNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The sender's name for a request. Opaque to the receiver: the eight wire bytes read as a big endian
/// number, echoed bit exact (`wire-protocol.md` section 8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Archive, Serialize, Deserialize)]
pub struct BlockId(pub u64);

impl BlockId {
    /// The id that marks resync packets below protocol 122 (`ID_SYNCER`).
    pub const SYNCER: BlockId = BlockId(u64::MAX);
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockId({:#018x})", self.0)
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_node_ids_end_at_31() {
        assert_eq!(NodeId::new(31), Some(NodeId::MAX));
        assert_eq!(NodeId::new(32), None);
        assert_eq!(NodeId::from_wire(u32::MAX), None);
    }

    #[test]
    fn wire_node_mask_is_a_set() {
        let mut set = NodeMask::EMPTY;
        assert!(set.insert(NodeId(3)) && !set.insert(NodeId(3)) && set.insert(NodeId(0)));
        assert_eq!(set, NodeMask(0b1001));
        assert_eq!(set.len(), 2);
        assert_eq!(set.iter().collect::<Vec<_>>(), [NodeId(0), NodeId(3)]);
        assert_eq!((!set & NodeMask::ALL).len(), 30);
        assert_eq!(set.without(NodeId(0).mask()), NodeId(3).mask());
        assert!(set.remove(NodeId(3)) && !set.remove(NodeId(3)));
        assert!(!set.is_empty() && NodeMask::EMPTY.is_empty());
        assert_eq!([NodeId(1), NodeId(1)].into_iter().collect::<NodeMask>(), NodeMask(2));
    }
}
