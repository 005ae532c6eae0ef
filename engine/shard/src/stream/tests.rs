//! Streams over socket pairs.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::{Moved, Receiver, SendQueue, Target};
use crate::pool::{ClassConfig, Pool, PoolConfig, Purpose};
use crate::ring::{Ring, RingConfig, RingCounters};
use crate::token::Token;

fn rig() -> (Ring<Token>, Pool) {
    let ring =
        Ring::new(&RingConfig { sq_entries: 8, cq_entries: 16 }, Arc::new(RingCounters::default())).expect("a ring");
    let classes = vec![ClassConfig { bytes: 4096, count: 256 }, ClassConfig { bytes: 1 << 20, count: 4 }];
    (ring, Pool::new(&PoolConfig { classes }).expect("a pool"))
}

fn result(ring: &mut Ring<Token>) -> i32 {
    let mut done = Vec::new();
    ring.turn(Some(Duration::from_secs(10)), 1, &mut done).expect("a turn");
    assert_eq!(done.len(), 1, "one operation per stream");
    done[0].result
}

/// A stream of blocks: small ones from the slab, others from pool buffers, each byte tells its place.
fn place(at: usize) -> u8 {
    (at % 253) as u8
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is queued, in whatever pieces the socket takes it: the same bytes come out, and no buffer is lost.
    #[test]
    fn stream_sends_everything_in_order(parts in proptest::collection::vec((any::<bool>(), 1_u32..9000, 0_u32..50), 1..600)) {
        let (mut ring, mut pool) = rig();
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        let total: usize = parts.iter().map(|p| p.1 as usize).sum();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).map(|_| all)
        });
        let mut queue = SendQueue::new();
        let mut at = 0;
        let drive = |queue: &mut SendQueue, ring: &mut Ring<Token>, pool: &mut Pool| {
            queue.submit(ring, pool, ours.as_fd(), Token::Wake, true);
            if queue.in_flight() {
                let result = result(ring);
                assert!(matches!(queue.complete(pool, result), None | Some(Moved::Bytes(_))));
            }
        };
        for (in_pool, len, turns) in parts {
            let bytes: Vec<u8> = (at..at + len as usize).map(place).collect();
            at += bytes.len();
            if in_pool {
                let buf = loop {
                    match pool.alloc(len, Purpose::Meta) {
                        Some(buf) => break buf,
                        None => drive(&mut queue, &mut ring, &mut pool),
                    }
                };
                pool.fill(buf, 0, &bytes);
                queue.push_payload(&mut pool, buf, 0, len);
                pool.release(buf);
            } else {
                queue.push_bytes(|out| out.extend_from_slice(&bytes));
            }
            if turns == 0 {
                drive(&mut queue, &mut ring, &mut pool);
            }
        }
        while queue.queued_bytes() > 0 {
            drive(&mut queue, &mut ring, &mut pool);
        }
        ours.shutdown(std::net::Shutdown::Write).expect("closes");
        let got = reader.join().expect("no panic").expect("reads");
        prop_assert_eq!(got.len(), total);
        prop_assert!(got.iter().enumerate().all(|(i, &b)| b == place(i)));
        prop_assert_eq!(pool.in_use(), 0);
    }
}

#[test]
fn stream_send_to_a_closed_socket_fails_without_a_signal() {
    let (mut ring, mut pool) = rig();
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    drop(theirs);
    let mut queue = SendQueue::new();
    let buf = pool.alloc(4096, Purpose::Meta).expect("a buffer");
    queue.push_payload(&mut pool, buf, 0, 4096);
    pool.release(buf);
    queue.submit(&mut ring, &pool, ours.as_fd(), Token::Wake, true);
    let result = result(&mut ring);
    assert_eq!(queue.complete(&mut pool, result), Some(Moved::Failed(libc::EPIPE)));
    queue.clear(&mut pool);
    assert_eq!((pool.in_use(), queue.queued_bytes()), (0, 0));
}

#[test]
fn stream_receives_payload_in_place_and_stages_what_follows() {
    let (mut ring, mut pool) = rig();
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    let mut receiver = Receiver::new(8192);
    theirs.write_all(b"head").expect("writes");
    receiver.submit(&mut ring, &pool, ours.as_fd(), None, Token::Wake);
    let first = result(&mut ring);
    assert_eq!(receiver.complete(first), Some((0, Moved::Bytes(4))));
    assert_eq!(receiver.unread(), b"head");
    receiver.consume(2);

    let buf = pool.alloc(4096, Purpose::Receive).expect("a buffer");
    let target = Target { buf, offset: 0, len: 8 };
    assert_eq!(receiver.copy_to(&mut pool, target), 2);
    theirs.write_all(b"123456next").expect("writes");
    receiver.submit(&mut ring, &pool, ours.as_fd(), Some(Target { buf, offset: 2, len: 6 }), Token::Wake);
    let second = result(&mut ring);
    assert_eq!(receiver.complete(second), Some((6, Moved::Bytes(10))));
    assert_eq!(receiver.unread(), b"next");
    let mut payload = [0; 8];
    pool.copy_out(buf, 0, &mut payload);
    assert_eq!(&payload, b"ad123456");

    drop(theirs);
    receiver.submit(&mut ring, &pool, ours.as_fd(), None, Token::Wake);
    let end = result(&mut ring);
    assert_eq!(receiver.complete(end), Some((0, Moved::Closed)));
    assert_eq!(receiver.unread(), b"next", "what arrived stays readable");
}
