//! The pool against its rules and a naive model.

use super::*;
use proptest::prelude::*;

fn small() -> Pool {
    let classes = vec![
        ClassConfig { bytes: 4096, count: 8 },
        ClassConfig { bytes: 65536, count: 16 },
        ClassConfig { bytes: 1 << 20, count: 4 },
    ];
    Pool::new(&PoolConfig { classes }).expect("a pool")
}

#[test]
fn pool_config_is_checked() {
    let with = |classes: &[(u32, u32)]| {
        let classes = classes.iter().map(|&(bytes, count)| ClassConfig { bytes, count }).collect();
        Pool::new(&PoolConfig { classes }).map(|p| p.capacity_bytes())
    };
    assert!(matches!(with(&[]), Err(PoolError::Class(0))));
    assert!(matches!(with(&[(4096, 8)]), Err(PoolError::Class(4096))));
    assert!(matches!(with(&[(5000, 8), (1 << 20, 8)]), Err(PoolError::Class(5000))));
    assert!(matches!(with(&[(1 << 20, 8), (4096, 8)]), Err(PoolError::Class(4096))));
    assert!(matches!(with(&[(1 << 20, 3)]), Err(PoolError::Count { count: 3, .. })));
    assert!(matches!(with(&[(1 << 20, 1 << 20)]), Err(PoolError::TooLarge(_))));
    assert_eq!(with(&[(4096, 4), (1 << 20, 4)]).expect("a pool"), 5 << 20, "classes fill whole chunks");
}

#[test]
fn pool_leaves_each_purpose_its_share() {
    let mut pool = small();
    let drain = |pool: &mut Pool, purpose| {
        let mut all = Vec::new();
        while let Some(buf) = pool.alloc(1 << 20, purpose) {
            all.push(buf);
        }
        all
    };
    let requests = drain(&mut pool, Purpose::Request);
    let received = drain(&mut pool, Purpose::Receive);
    let meta = drain(&mut pool, Purpose::Meta);
    assert_eq!((requests.len(), received.len(), meta.len()), (2, 1, 1));
    for buf in requests.into_iter().chain(received).chain(meta) {
        pool.release(buf);
    }
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn pool_takes_the_next_larger_class_when_one_is_out() {
    let mut pool = small();
    // 4 KiB buffers fill a chunk: 256 of them, half for requests; then half of 16 of 64 KiB.
    let sizes: Vec<usize> = std::iter::from_fn(|| pool.alloc(512, Purpose::Request))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|b| pool.len(b))
        .collect();
    assert_eq!(sizes.iter().filter(|&&s| s == 4096).count(), 128);
    assert_eq!(sizes.iter().filter(|&&s| s == 65536).count(), 8);
    assert_eq!(sizes.len(), 136, "never a 1 MiB buffer for 512 bytes");
}

#[test]
fn pool_memory_is_lazy_aligned_and_private() {
    let mut pool = Pool::new(&PoolConfig::default()).expect("a pool");
    let a = pool.alloc(4096, Purpose::Request).expect("a buffer");
    let b = pool.alloc(4096, Purpose::Request).expect("a buffer");
    assert_eq!(pool.region(a, 0, 4096).ptr as usize % 4096, 0);
    pool.fill(a, 512, b"one");
    pool.fill(b, 512, b"two");
    let mut back = [0; 3];
    pool.copy_out(a, 512, &mut back);
    assert_eq!(&back, b"one");
    pool.copy(b, 512, a, 0, 3);
    pool.copy_out(a, 0, &mut back);
    assert_eq!(&back, b"two");
}

#[test]
#[should_panic(expected = "freed twice")]
fn pool_double_free_panics() {
    let mut pool = small();
    let buf = pool.alloc(1, Purpose::Meta).expect("a buffer");
    pool.release(buf);
    pool.release(buf);
}

#[test]
#[should_panic(expected = "of a buffer of 4096")]
fn pool_range_outside_panics() {
    let mut pool = small();
    let buf = pool.alloc(1, Purpose::Meta).expect("a buffer");
    pool.fill(buf, 4095, b"xy");
}

#[test]
fn pool_registers_chunks_at_first_use_until_refused() {
    let mut pool = small();
    let a = pool.alloc(4096, Purpose::Meta).expect("a buffer");
    let b = pool.alloc(65536, Purpose::Meta).expect("a buffer");
    let c = pool.alloc(1 << 20, Purpose::Meta).expect("a buffer");
    assert!(pool.unregistered_chunk(a).is_none(), "not enabled");
    pool.enable_registration();
    let (chunk, base, len) = pool.unregistered_chunk(a).expect("not tried");
    assert_eq!((len, base as usize % 4096), (CHUNK_BYTES, 0));
    pool.registered(chunk, Ok(()));
    assert!(pool.unregistered_chunk(a).is_none());
    assert_eq!(pool.region(a, 0, 4096).fixed, Some(chunk));
    let (refused, ..) = pool.unregistered_chunk(b).expect("not tried");
    assert_ne!(refused, chunk);
    pool.registered(refused, Err(std::io::Error::from_raw_os_error(libc::ENOMEM)));
    assert_eq!(pool.region(b, 0, 4096).fixed, None);
    assert!(pool.unregistered_chunk(c).is_none(), "no other is tried");
    assert_eq!(pool.region(a, 0, 4096).fixed, Some(chunk), "what is registered stays so");
}

proptest! {
    /// References against a map: a buffer is handed out again exactly after its last reference went.
    #[test]
    fn pool_references_match_a_naive_model(steps in proptest::collection::vec((0_u8..4, 0_u32..1 << 20, 0_usize..64), 1..400)) {
        let mut pool = small();
        let mut model: std::collections::BTreeMap<Buf, u16> = std::collections::BTreeMap::new();
        for (what, len, pick) in steps {
            let chosen = model.keys().copied().nth(pick % model.len().max(1));
            match (what, chosen) {
                (0 | 1, _) => {
                    if let Some(buf) = pool.alloc(len + 1, Purpose::Meta) {
                        prop_assert!(model.insert(buf, 1).is_none(), "handed out twice");
                        prop_assert!(pool.len(buf) > len as usize);
                    }
                }
                (2, Some(buf)) => {
                    pool.retain(buf);
                    *model.get_mut(&buf).expect("chosen from it") += 1;
                }
                (3, Some(buf)) => {
                    let freed = pool.freed();
                    pool.release(buf);
                    let refs = model.get_mut(&buf).expect("chosen from it");
                    *refs -= 1;
                    prop_assert_eq!(pool.freed() != freed, *refs == 0);
                    if *refs == 0 {
                        model.remove(&buf);
                    }
                }
                _ => {}
            }
            prop_assert_eq!(pool.in_use(), model.len());
            let bytes: u64 = model.keys().map(|&b| pool.len(b) as u64).sum();
            prop_assert_eq!(pool.bytes_in_use(), bytes);
        }
        for (buf, refs) in model {
            (0..refs).for_each(|_| pool.release(buf));
        }
        prop_assert_eq!(pool.in_use(), 0);
    }
}
