//! The fuzz targets over a seeded corpus: valid inputs and what a few mutations make of them.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

use super::*;
use crate::activity_log::{AL_FREE, AlUpdate, TransactionKind, block_crc, initialized_block, window_len};
use crate::create::{CreateParams, create_md, create_md_v08};

const ROUNDS: usize = 1000;
/// Values at which decoders like to go wrong.
const EDGES: [u32; 8] = [0, 1, 31, 32, 4096, i32::MAX as u32, 1 << 31, u32::MAX];

fn below(rng: &mut Pcg64Mcg, bound: usize) -> usize {
    (rng.next_u64() % bound as u64) as usize
}

/// Overwrites a few bytes or words and now and then cuts the end off. Half of the changes go to the first 512 bytes,
/// where the fields are.
fn mutate(rng: &mut Pcg64Mcg, data: &mut Vec<u8>) {
    for _ in 0..below(rng, 6) {
        let range = if rng.next_u32().is_multiple_of(2) { data.len().min(512) } else { data.len() };
        if range < 4 {
            return;
        }
        let at = below(rng, range - 3);
        match rng.next_u32() % 8 {
            0..4 => data[at] ^= 1 << (rng.next_u32() % 8),
            4..6 => data[at / 4 * 4..][..4].copy_from_slice(&EDGES[below(rng, EDGES.len())].to_be_bytes()),
            6 => data[at / 4 * 4..][..4].copy_from_slice(&rng.next_u32().to_be_bytes()),
            _ if rng.next_u32().is_multiple_of(16) => data.truncate(at),
            _ => data[at] = 0xff,
        }
    }
}

fn run(seeds: &[Vec<u8>], target: fn(&[u8]), finish: fn(&mut [u8])) {
    let mut rng = Pcg64Mcg::seed_from_u64(0x7a65_616d_6574_6121);
    for seed in seeds {
        target(seed);
        for _ in 0..ROUNDS / seeds.len() {
            let mut data = seed.clone();
            mutate(&mut rng, &mut data);
            finish(&mut data);
            target(&data);
        }
    }
    for _ in 0..ROUNDS / 10 {
        let mut data = vec![0; below(&mut rng, 3 * MD_BLOCK_SIZE)];
        rng.fill_bytes(&mut data);
        finish(&mut data);
        target(&data);
    }
}

fn super_blocks() -> Vec<Vec<u8>> {
    let mut block = [0; MD_BLOCK_SIZE];
    let mut seeds = vec![vec![]];
    for max_peers in [1, 7, 31] {
        let params = CreateParams {
            node_id: Some(0),
            peers: vec![1],
            ..CreateParams::new(LayoutParams::internal(131_072, max_peers))
        };
        let mut super_block = create_md(&params).unwrap().super_block;
        super_block.effective_size_sectors = 100_000;
        super_block.members = 300_000;
        super_block.encode(&mut block);
        seeds.push(block.to_vec());
    }
    let v08 = create_md_v08(&CreateParams::new(LayoutParams::internal(131_072, 1))).unwrap();
    v08.super_block.encode(&mut block);
    seeds.push(block.to_vec());
    seeds
}

fn ring(first: u32) -> Vec<u8> {
    let mut ring = Vec::new();
    for step in 0..7 {
        let transaction = AlTransaction {
            tr_number: first.wrapping_add(step),
            kind: TransactionKind::Update,
            updates: vec![AlUpdate { slot_nr: step as u16, extent_nr: step * 3 }],
            context_size: 1237,
            context_start: (step % 2) as u16 * 919,
            context: vec![AL_FREE; window_len((step % 2) as u16 * 919, 1237)],
        };
        let mut block = [0; MD_BLOCK_SIZE];
        transaction.encode(&mut block);
        ring.extend_from_slice(&block);
    }
    ring.extend_from_slice(&initialized_block());
    ring
}

/// Makes the checksums right again, else no mutation would get past them.
fn fix_checksums(data: &mut [u8]) {
    for block in data.as_chunks_mut::<MD_BLOCK_SIZE>().0 {
        let crc = block_crc(block);
        block[8..12].copy_from_slice(&crc.to_be_bytes());
    }
}

#[test]
fn meta_fuzz_superblock_over_seeded_corpus() {
    run(&super_blocks(), fuzz_superblock, |_| {});
}

#[test]
fn meta_fuzz_al_over_seeded_corpus() {
    let one = ring(5)[..MD_BLOCK_SIZE].to_vec();
    let seeds = [vec![], one, ring(0), ring(u32::MAX - 3)];
    run(&seeds, fuzz_al, |_| {});
    run(&seeds, fuzz_al, fix_checksums);
}

#[test]
fn meta_fuzz_bitmap_over_seeded_corpus() {
    let seed = |peers: u8, shift: u8, bits: u32, index: u8| {
        let mut data = vec![peers, shift];
        data.extend(bits.to_le_bytes());
        data.extend([index, 3]);
        data.extend([0x5a; 64]);
        data
    };
    let seeds = [vec![1], seed(1, 12, 40_000, 1), seed(7, 12, 9_999, 2), seed(31, 20, 70_000, 60), seed(3, 17, 1, 0)];
    run(&seeds, fuzz_bitmap, |_| {});
}

#[test]
fn meta_fuzz_foreign_over_seeded_corpus() {
    let mut gpt = vec![0; 300_000];
    gpt[510..520].copy_from_slice(b"\x55\xaaEFI PART");
    let text = b"0000000000000004:0000000000000000:0000000000000000:0000000000000000:".to_vec();
    run(&[vec![], vec![0; 5000], text, gpt], fuzz_foreign, |_| {});
}
