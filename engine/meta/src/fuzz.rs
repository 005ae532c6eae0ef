//! What the fuzz targets in `fuzz/` call: arbitrary bytes must not panic, and what decodes must survive encoding.
//!
//! They live here so that the same code also runs as tests over a seeded corpus.

use crate::activity_log::{AlTransaction, replay};
use crate::bitmap::BitmapGeometry;
use crate::placement::{Layout, LayoutParams, Placement};
use crate::superblock::{SuperBlock, detect};
use crate::superblock_v08::SuperBlockV08;
use crate::uuid::UuidSet;
use crate::{MD_BLOCK_SIZE, foreign};

/// Decodes super blocks of both formats and computes the layouts that their fields ask for.
///
/// # Panics
/// If what was decoded does not survive encoding.
pub fn fuzz_superblock(data: &[u8]) {
    let _ = detect(data);
    let mut block = [0; MD_BLOCK_SIZE];
    if let Ok(super_block) = SuperBlock::decode(data) {
        super_block.encode(&mut block);
        assert_eq!(SuperBlock::decode(&block).as_ref(), Ok(&super_block));
        let params = LayoutParams {
            max_peers: super_block.bm_max_peers,
            bytes_per_bit: super_block.bm_bytes_per_bit,
            al_stripes: super_block.al_stripes,
            al_stripe_size_4k: super_block.al_stripe_size_4k,
            ..LayoutParams::internal(super_block.effective_size_sectors, 1)
        };
        for placement in [Placement::Internal, Placement::FlexExternal, Placement::Indexed(super_block.md_size_sect)] {
            let md_size_sectors = super_block.members;
            if let Ok(layout) = Layout::compute(&LayoutParams { placement, md_size_sectors, ..params }) {
                let _ = layout.check(&super_block, 0);
            }
        }
        let mut assigned = super_block;
        for node_id in 0..=32 {
            let _ = assigned.assign_slot(node_id);
        }
        assert_eq!(assigned.validate(), Ok(()));
    }
    if let Ok(super_block) = SuperBlockV08::decode(data) {
        super_block.encode(&mut block);
        assert_eq!(SuperBlockV08::decode(&block), Ok(super_block));
    }
}

/// Decodes and replays activity log blocks.
///
/// # Panics
/// If what was decoded does not survive encoding, or replay returns a set that is not sorted.
pub fn fuzz_al(data: &[u8]) {
    if let Ok(transaction) = AlTransaction::decode(data) {
        let mut block = [0; MD_BLOCK_SIZE];
        transaction.encode(&mut block);
        assert_eq!(AlTransaction::decode(&block), Ok(transaction));
    }
    let (blocks, _) = data.as_chunks::<MD_BLOCK_SIZE>();
    if let Ok(hot) = replay(blocks, u32::MAX) {
        assert!(hot.extents.is_sorted());
    }
}

/// Decodes a bitmap block with a geometry taken from the first bytes, and encodes it again.
///
/// # Panics
/// If the words of the device do not survive encoding.
pub fn fuzz_bitmap(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<8>() else {
        return;
    };
    let [peers, shift, b0, b1, b2, b3, index, extent] = *head;
    let bits = u64::from(u32::from_le_bytes([b0, b1, b2, b3]));
    let block_size = 1u32.checked_shl(u32::from(shift)).unwrap_or(0);
    let Ok(geometry) = BitmapGeometry::new(u32::from(peers), bits, block_size) else {
        return;
    };
    let mut block = [0; MD_BLOCK_SIZE];
    for (to, from) in block.iter_mut().zip(rest) {
        *to = *from;
    }
    let index = u64::from(index);
    geometry.mark_extents(index, &mut block, &[u32::from(extent)]);
    let words = decode_words(&geometry, index, &block);
    let mut again = [0; MD_BLOCK_SIZE];
    geometry.encode_block(index, &mut again, &|slot, word_index| {
        let words = &words[slot as usize];
        words.iter().find(|(first_bit, _)| *first_bit == word_index * 32).map_or(0, |(_, word)| *word)
    });
    assert_eq!(decode_words(&geometry, index, &again), words);
}

fn decode_words(geometry: &BitmapGeometry, index: u64, block: &[u8; MD_BLOCK_SIZE]) -> Vec<Vec<(u64, u32)>> {
    (0..geometry.max_peers())
        .map(|slot| {
            let mut words = Vec::new();
            geometry.decode_block(block, index, slot, &mut |first_bit, word| words.push((first_bit, word)));
            words
        })
        .collect()
}

/// Looks for signatures on a device with these bytes, and reads them as a set of UUIDs.
pub fn fuzz_foreign(data: &[u8]) {
    let read = &mut |offset: u64, buffer: &mut [u8]| {
        let start = usize::try_from(offset).map_err(|_| ())?;
        buffer.copy_from_slice(data.get(start..start + buffer.len()).ok_or(())?);
        Ok::<(), ()>(())
    };
    let found = foreign::probe_foreign(data.len() as u64, read);
    assert!(found.is_ok(), "only ranges inside of the device are read");
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<UuidSet>();
    }
}

#[cfg(test)]
#[path = "fuzz_tests.rs"]
mod tests;
