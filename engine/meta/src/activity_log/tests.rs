use proptest::prelude::*;

use super::*;

fn encoded(transaction: &AlTransaction) -> [u8; MD_BLOCK_SIZE] {
    let mut block = [0xaa; MD_BLOCK_SIZE];
    transaction.encode(&mut block);
    block
}

fn update(tr_number: u32, slots: u16, updates: &[(u16, u32)]) -> AlTransaction {
    AlTransaction {
        tr_number,
        kind: TransactionKind::Update,
        updates: updates.iter().map(|&(slot_nr, extent_nr)| AlUpdate { slot_nr, extent_nr }).collect(),
        context_size: slots,
        context_start: 0,
        context: vec![AL_FREE; window_len(0, slots)],
    }
}

/// A ring as the driver keeps it, with the table that it stands for.
struct Ring {
    blocks: Vec<[u8; MD_BLOCK_SIZE]>,
    stripes: u32,
    stripe_size: u32,
    tr_number: u32,
    context_start: u16,
    table: Vec<u32>,
}

impl Ring {
    fn new(stripes: u32, stripe_size: u32, slots: u16, tr_number: u32) -> Self {
        let blocks = vec![initialized_block(); (stripes * stripe_size) as usize];
        Self { blocks, stripes, stripe_size, tr_number, context_start: 0, table: vec![AL_FREE; slots.into()] }
    }

    fn place(&self) -> usize {
        slot_block(self.tr_number, self.stripes, self.stripe_size) as usize
    }

    fn commit(&mut self, changes: &[(u16, u32)]) {
        let slots = u16::try_from(self.table.len()).unwrap();
        let start = usize::from(self.context_start);
        let mut transaction = update(self.tr_number, slots, changes);
        transaction.context_start = self.context_start;
        transaction.context = self.table[start..start + window_len(self.context_start, slots)].to_vec();
        let place = self.place();
        self.blocks[place] = encoded(&transaction);
        for &(slot, extent_nr) in changes {
            self.table[usize::from(slot)] = extent_nr;
        }
        self.context_start = next_context_start(self.context_start, slots);
        self.tr_number = self.tr_number.wrapping_add(1);
    }

    fn hot(&self) -> Vec<u32> {
        let mut hot: Vec<u32> = self.table.iter().copied().filter(|&extent| extent != AL_FREE).collect();
        hot.sort_unstable();
        hot.dedup();
        hot
    }
}

#[test]
fn meta_al_initialised_block_has_the_known_checksum() {
    let block = initialized_block();
    assert_eq!(block[..16], [0x69, 0xcb, 0x65, 0xa2, 0, 0, 0, 0, 0x70, 0x9c, 0xc6, 0x51, 0xff, 0xff, 0, 0]);
    assert!(block[16..].iter().all(|&byte| byte == 0));
    assert_eq!(AlTransaction::decode(&block), Ok(AlTransaction::initialized(0)));
}

#[test]
fn meta_al_fields_lie_where_the_format_says() {
    let mut transaction = update(0x0102_0304, 1000, &[(5, 0x0a0b_0c0d)]);
    transaction.context_start = 919;
    transaction.context = (0..81).collect();
    let block = encoded(&transaction);
    assert_eq!(block[4..8], [1, 2, 3, 4]);
    assert_eq!(block[12..20], [0, 0, 0, 1, 0x03, 0xe8, 0x03, 0x97]);
    assert_eq!(block[20..36], [0; 16]);
    assert_eq!(block[36..40], [0, 5, 0xff, 0xff]);
    assert_eq!(block[164..172], [0x0a, 0x0b, 0x0c, 0x0d, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(block[420 + 80 * 4..420 + 82 * 4], [0, 0, 0, 80, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn meta_al_errors_have_names() {
    let good = encoded(&update(1, 100, &[(5, 7)]));
    let broken = |at: usize, bytes: &[u8]| {
        let mut block = good;
        block[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = block_crc(&block);
        block[CRC_RANGE].copy_from_slice(&crc.to_be_bytes());
        AlTransaction::decode(&block).unwrap_err()
    };
    assert_eq!(AlTransaction::decode(&good[..4095]), Err(AlError::Length(4095)));
    assert_eq!(broken(0, &[0; 4]), AlError::Magic(0));
    assert_eq!(broken(0, &AL_PMEM_MAGIC.to_be_bytes()), AlError::PersistentMemory);
    assert_eq!(broken(12, &[0, 1]), AlError::Kind(1));
    assert_eq!(broken(14, &[0, 65]), AlError::UpdateCount(65));
    assert_eq!(broken(36, &[0, 100]), AlError::UpdateSlot { slot_nr: 100, context_size: 100 });
    assert_eq!(broken(38, &[0, 5]), AlError::UnusedEntry(1));
    assert_eq!(broken(420 + 400, &[0; 4]), AlError::UnusedEntry(100));
    let mut torn = good;
    torn[4095] ^= 1;
    let error = AlTransaction::decode(&torn).unwrap_err();
    assert!(matches!(error, AlError::Checksum { .. }) && error.may_be_torn());
    assert!(!broken(12, &[0, 1]).may_be_torn());
}

#[test]
fn meta_al_slots_are_spread_over_the_stripes() {
    let places = |stripes, size| (0..stripes * size).map(|t| slot_block(t, stripes, size)).collect::<Vec<_>>();
    assert_eq!(places(1, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(places(2, 4), [0, 4, 1, 5, 2, 6, 3, 7]);
    assert_eq!(slot_block(8 + 3, 2, 4), 5);
    assert_eq!(slot_block(u32::MAX, 1, 8), 7);
}

#[test]
fn meta_al_table_is_bounded_by_the_ring() {
    assert_eq!(max_extents(1, 8), 7 * 919);
    assert_eq!(max_extents(1, 72), 71 * 919);
    assert_eq!(max_extents(1, 73), 65_534);
    assert_eq!(max_extents(u32::MAX, u32::MAX), 65_534);
    assert_eq!(max_extents(0, 8), 0);
    assert_eq!([next_context_start(0, 1237), next_context_start(919, 1237)], [919, 0]);
    assert_eq!(next_context_start(0, 919), 0);
}

#[test]
fn meta_al_replay_of_an_initialised_ring_is_empty() {
    let ring = Ring::new(1, 8, 67, 0);
    let hot = replay(&ring.blocks, 10).unwrap();
    assert_eq!(hot, HotSet { extents: vec![], newest_tr_number: None, valid_blocks: 8, torn_blocks: 0 });
}

#[test]
fn meta_al_replay_errors_have_names() {
    let zero = [0; MD_BLOCK_SIZE];
    assert_eq!(replay(&[zero; 8], 10), Err(ReplayError::NoValidBlock));
    assert_eq!(replay(&[], 10), Err(ReplayError::NoValidBlock));
    let one = |tr_number| encoded(&update(tr_number, 67, &[(1, tr_number % 10)]));
    assert_eq!(replay(&[one(1), zero, zero], 10), Err(ReplayError::TooManyTorn(2)));
    assert_eq!(replay(&[one(1), one(1)], 10), Err(ReplayError::DuplicateNumber(1)));
    let gap = ReplayError::NotConsecutive { oldest: 1, newest: 3, found: 2 };
    assert_eq!(replay(&[one(1), zero, one(3)], 10), Err(gap));
    assert_eq!(replay(&[one(9)], 9), Err(ReplayError::ExtentBeyondDevice { extent_nr: 9, device_extents: 9 }));
    let mut pmem = zero;
    pmem[..4].copy_from_slice(&AL_PMEM_MAGIC.to_be_bytes());
    let malformed = ReplayError::Malformed { block: 1, error: AlError::PersistentMemory };
    assert_eq!(replay(&[one(1), pmem], 10), Err(malformed));
    assert!(replay(&[one(u32::MAX), one(0), one(i32::MAX as u32)], 10).is_err());
}

#[test]
fn meta_al_replay_after_the_table_shrank_keeps_the_old_slots() {
    let old = encoded(&update(u32::MAX, 100, &[(99, 4)]));
    let mut shrunk = update(0, 10, &[(0, 5)]);
    shrunk.context_start = 50;
    shrunk.context.clear();
    let hot = replay(&[old, encoded(&shrunk)], 10).unwrap();
    assert_eq!(hot.extents, [4, 5]);
    assert_eq!(hot.newest_tr_number, Some(0));
}

fn any_transaction() -> impl Strategy<Value = AlTransaction> {
    let updates = proptest::collection::vec(any::<(u16, u32)>(), 0..=AL_UPDATES_MAX);
    (any::<u32>(), 1u16.., any::<u16>(), updates, any::<u32>()).prop_map(|(tr_number, slots, start, updates, seed)| {
        let updates: Vec<_> = updates.into_iter().map(|(slot, extent)| (slot % slots, extent)).collect();
        let context_start = start % slots;
        let window = u32::try_from(window_len(context_start, slots)).unwrap();
        let context = (0..window).map(|i| i.wrapping_mul(seed)).collect();
        AlTransaction { context_start, context, ..update(tr_number, slots, &updates) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn meta_al_round_trip(transaction in any_transaction()) {
        prop_assert_eq!(AlTransaction::decode(&encoded(&transaction)), Ok(transaction));
    }

    #[test]
    fn meta_al_torn_write_is_noticed(transaction in any_transaction(), other in any_transaction(), sectors in 1usize..8) {
        let (mut block, other) = (encoded(&transaction), encoded(&other));
        block[sectors * 512..].copy_from_slice(&other[sectors * 512..]);
        if block != other && block != encoded(&transaction) {
            prop_assert!(AlTransaction::decode(&block).unwrap_err().may_be_torn());
        }
    }

    /// Whatever was committed is what replay finds, also when the next transaction is torn.
    #[test]
    fn meta_al_replay_finds_the_table(
        (stripes, stripe_size) in prop_oneof![Just((1u32, 8u32)), Just((2, 4)), Just((4, 16))],
        first in prop_oneof![Just(0u32), any::<u32>(), u32::MAX - 20..],
        slots in 7u16..6433,
        commits in proptest::collection::vec(proptest::collection::vec((any::<u16>(), 0u32..5000), 0..64), 0..40),
        torn: bool,
    ) {
        let mut ring = Ring::new(stripes, stripe_size, slots, first);
        for changes in &commits {
            let changes: Vec<_> = changes.iter().map(|&(slot, extent)| (slot % slots, extent)).collect();
            ring.commit(&changes);
        }
        if torn {
            let place = ring.place();
            ring.blocks[place][100..].fill(0x77);
        }
        let found = replay(&ring.blocks, 5000).unwrap();
        prop_assert_eq!(found.extents, ring.hot());
        prop_assert_eq!(found.torn_blocks, usize::from(torn));
        prop_assert_eq!(found.newest_tr_number, (!commits.is_empty()).then(|| ring.tr_number.wrapping_sub(1)));
    }
}
