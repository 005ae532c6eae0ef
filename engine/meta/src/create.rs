//! What to write so that a device has fresh meta data, as `drbdmeta create-md` leaves it (reference section 8).
//!
//! The result is a list of writes for the caller to perform in order, with a flush before the last one: the super
//! block comes last, so that an interrupted creation leaves no valid meta data behind.

use thiserror::Error;

use crate::activity_log::initialized_block;
use crate::flags::{DeviceFlags, V08Flags};
use crate::placement::{Layout, LayoutError, LayoutParams};
use crate::superblock::{PeerMd, SlotError, SuperBlock};
use crate::superblock_v08::SuperBlockV08;
use crate::{
    CREATE_MD_AL_EXTENTS, DEFAULT_BITMAP_BLOCK_SIZE, HISTORY_UUIDS, MD_BLOCK_SIZE, PEER_ARRAY_LEN, UUID_JUST_CREATED,
};

/// What to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateParams {
    /// Placement, sizes, number of slots.
    pub layout: LayoutParams,
    /// This node's id, if it is known already; `drbdmeta` leaves it open.
    pub node_id: Option<u8>,
    /// Node ids that get a bitmap slot at once, in this order; `drbdmeta` assigns none.
    pub peers: Vec<u8>,
    /// Largest request in bytes that the peers are known to take, 0 if unknown.
    pub la_peer_max_bio_size: u32,
}

impl CreateParams {
    /// The same as `drbdmeta create-md` without options.
    #[must_use]
    pub fn new(layout: LayoutParams) -> Self {
        Self { layout, node_id: None, peers: Vec::new(), la_peer_max_bio_size: 0 }
    }
}

/// Why meta data cannot be created.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CreateError {
    /// The layout does not work out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A peer cannot have a slot.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// v08 has one peer, 4096 bytes for each bit, and no node ids.
    #[error("meta data of format v08 has one peer, 4096 bytes for each bit, and no node ids")]
    NotInV08,
}

/// What a write puts down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteContent {
    /// These bytes, a multiple of 4096.
    Bytes(Vec<u8>),
    /// This many zero bytes, a multiple of 4096.
    Zeros(u64),
}

/// One write to the device that holds the meta data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdWrite {
    /// Where, a multiple of 4096.
    pub offset_bytes: u64,
    /// What.
    pub content: WriteContent,
}

/// Fresh meta data: where it lies, its super block, and the writes that make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created<S> {
    /// Where it lies.
    pub layout: Layout,
    /// The super block.
    pub super_block: S,
    /// The writes, in order; the last one is the super block and needs a flush before it and after it.
    pub writes: Vec<MdWrite>,
}

/// Makes v09 meta data.
///
/// # Errors
/// [`CreateError`] if the layout does not work out or a peer cannot have a slot.
pub fn create_md(params: &CreateParams) -> Result<Created<SuperBlock>, CreateError> {
    let layout = Layout::compute(&params.layout)?;
    if let Some(own) = params.node_id.filter(|&own| usize::from(own) >= PEER_ARRAY_LEN) {
        return Err(SlotError::NodeId(own).into());
    }
    let mut super_block = SuperBlock {
        effective_size_sectors: 0,
        current_uuid: UUID_JUST_CREATED,
        members: 0,
        device_uuid: 0,
        flags: DeviceFlags::AL_CLEAN,
        md_size_sect: layout.md_size_sect,
        al_offset: layout.al_offset,
        al_nr_extents: CREATE_MD_AL_EXTENTS,
        bm_offset: layout.bm_offset,
        bm_bytes_per_bit: params.layout.bytes_per_bit,
        la_peer_max_bio_size: params.la_peer_max_bio_size,
        bm_max_peers: params.layout.max_peers,
        node_id: params.node_id,
        al_stripes: params.layout.al_stripes,
        al_stripe_size_4k: params.layout.al_stripe_size_4k,
        peers: [PeerMd::UNUSED; PEER_ARRAY_LEN],
        history_uuids: [0; HISTORY_UUIDS],
    };
    for &peer in &params.peers {
        super_block.assign_slot(peer)?;
    }
    super_block.validate().expect("a layout that works out gives a valid super block");
    let mut block = [0; MD_BLOCK_SIZE];
    super_block.encode(&mut block);
    let writes = writes(&layout, &block);
    Ok(Created { layout, super_block, writes })
}

/// Makes v08 meta data.
///
/// # Errors
/// [`CreateError`] if the layout does not work out or v08 cannot express it.
pub fn create_md_v08(params: &CreateParams) -> Result<Created<SuperBlockV08>, CreateError> {
    let in_v08 = params.layout.max_peers == 1
        && params.layout.bytes_per_bit == DEFAULT_BITMAP_BLOCK_SIZE
        && params.node_id.is_none()
        && params.peers.is_empty();
    if !in_v08 {
        return Err(CreateError::NotInV08);
    }
    let layout = Layout::compute(&params.layout)?;
    let super_block = SuperBlockV08 {
        effective_size_sectors: 0,
        current_uuid: UUID_JUST_CREATED,
        bitmap_uuid: 0,
        history_uuids: [0; 2],
        device_uuid: 0,
        flags: V08Flags::AL_CLEAN,
        unclean: false,
        md_size_sect: layout.md_size_sect,
        al_offset: layout.al_offset,
        al_nr_extents: CREATE_MD_AL_EXTENTS,
        bm_offset: layout.bm_offset,
        bm_bytes_per_bit: DEFAULT_BITMAP_BLOCK_SIZE,
        la_peer_max_bio_size: params.la_peer_max_bio_size,
        al_stripes: params.layout.al_stripes,
        al_stripe_size_4k: params.layout.al_stripe_size_4k,
    };
    let mut block = [0; MD_BLOCK_SIZE];
    super_block.encode(&mut block);
    let writes = writes(&layout, &block);
    Ok(Created { layout, super_block, writes })
}

/// The old super block goes first, the whole area for the bitmap and the activity log follow, the new super block is last.
fn writes(layout: &Layout, super_block: &[u8; MD_BLOCK_SIZE]) -> Vec<MdWrite> {
    let write = |offset_bytes, content| MdWrite { offset_bytes, content };
    let ring = initialized_block().repeat(ring_blocks(layout));
    vec![
        write(layout.super_block_offset_bytes, WriteContent::Zeros(MD_BLOCK_SIZE as u64)),
        write(layout.bitmap_offset_bytes, WriteContent::Zeros(layout.bitmap_size_bytes)),
        write(layout.al_offset_bytes, WriteContent::Bytes(ring)),
        write(layout.super_block_offset_bytes, WriteContent::Bytes(super_block.to_vec())),
    ]
}

fn ring_blocks(layout: &Layout) -> usize {
    let blocks = layout.al_size_bytes / MD_BLOCK_SIZE as u64;
    usize::try_from(blocks).expect("a ring is at most 16 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity_log::AlTransaction;
    use crate::placement::Placement;

    fn params() -> CreateParams {
        CreateParams::new(LayoutParams::internal(131_072, 2))
    }

    #[test]
    fn meta_create_puts_the_super_block_last() {
        let created = create_md(&params()).unwrap();
        let places: Vec<_> = created.writes.iter().map(|write| write.offset_bytes).collect();
        assert_eq!(places, [67_104_768, 67_067_904, 67_072_000, 67_104_768]);
        assert_eq!(created.writes[0].content, WriteContent::Zeros(4096));
        assert_eq!(created.writes[1].content, WriteContent::Zeros(4096));
        let WriteContent::Bytes(ring) = &created.writes[2].content else { panic!("the ring is bytes") };
        assert_eq!(ring.len(), 32_768);
        let (blocks, _) = ring.as_chunks::<MD_BLOCK_SIZE>();
        assert!(blocks.iter().all(|block| AlTransaction::decode(block) == Ok(AlTransaction::initialized(0))));
        let WriteContent::Bytes(block) = &created.writes[3].content else { panic!("the super block is bytes") };
        assert_eq!(SuperBlock::decode(block), Ok(created.super_block));
    }

    #[test]
    fn meta_create_assigns_slots_in_order() {
        let with_peers = CreateParams { node_id: Some(1), peers: vec![4, 0], ..params() };
        let super_block = create_md(&with_peers).unwrap().super_block;
        assert_eq!([super_block.slot_of(4), super_block.slot_of(0), super_block.slot_of(2)], [Some(0), Some(1), None]);
    }

    #[test]
    fn meta_create_errors_have_names() {
        let own = CreateParams { node_id: Some(1), peers: vec![1], ..params() };
        assert_eq!(create_md(&own), Err(SlotError::OwnNode(1).into()));
        let many = CreateParams { peers: vec![1, 2, 3], ..params() };
        assert_eq!(create_md(&many), Err(SlotError::NoFreeSlot(2).into()));
        let no_node = CreateParams { node_id: Some(32), ..params() };
        assert_eq!(create_md(&no_node), Err(SlotError::NodeId(32).into()));
        let small = CreateParams::new(LayoutParams::internal(100, 2));
        assert!(matches!(create_md(&small), Err(CreateError::Layout(LayoutError::TooSmall { .. }))));
        assert_eq!(create_md_v08(&params()), Err(CreateError::NotInV08));
        let indexed = LayoutParams { placement: Placement::Indexed(0), ..LayoutParams::flex_external(1, 1, 1) };
        assert!(matches!(create_md_v08(&CreateParams::new(indexed)), Err(CreateError::Layout(_))));
    }
}
