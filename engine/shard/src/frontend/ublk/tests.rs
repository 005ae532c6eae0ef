//! The queue of a device against a file that stands for the driver's.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::pool::{ClassConfig, PoolConfig};

/// A device of four tags, and its file.
fn device() -> (UblkDevice, File, Pool) {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(4096).expect("its size");
    let queue = Queue::of(file.try_clone().expect("the same file"), 9, 4).expect("a queue");
    let classes = vec![ClassConfig { bytes: 4096, count: 8 }, ClassConfig { bytes: 1 << 20, count: 4 }];
    let pool = Pool::new(&PoolConfig { classes }).expect("a pool");
    let mut device = UblkDevice::new(queue, ResourceId(1), VolumeNr(3));
    let fetches: Vec<_> = (0..4).map(|tag| (tag, fetch(tag))).collect();
    assert_eq!(std::mem::take(&mut device.commands), fetches, "each tag is fetched once");
    device.in_ring = 4;
    (device, file, pool)
}

/// The driver has a request for a tag.
fn arrive(
    device: &mut UblkDevice,
    file: &File,
    pool: &mut Pool,
    tag: u16,
    op_flags: u32,
    (sector, sectors): (u64, u32),
) {
    let mut desc = [0; 24];
    desc[..4].copy_from_slice(&op_flags.to_ne_bytes());
    desc[4..8].copy_from_slice(&sectors.to_ne_bytes());
    desc[8..16].copy_from_slice(&sector.to_ne_bytes());
    file.write_all_at(&desc, u64::from(tag) * 24).expect("a descriptor");
    device.completed(pool, FrontOp::Tag(tag), 0);
}

fn request(step: Step) -> CoreRequest {
    match step {
        Step::Request(ResourceId(1), request) => request,
        other => panic!("no request: {other:?}"),
    }
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 2;
const DISCARD: u32 = 3;
const ZEROES: u32 = 5;
const FUA: u32 = 1 << 13;
const NO_UNMAP: u32 = 1 << 15;

#[test]
fn ublk_a_write_has_its_data_and_a_read_gets_it() {
    let (mut device, file, mut pool) = device();
    file.write_all_at(&[7; 4096], data_offset(2)).expect("data");
    arrive(&mut device, &file, &mut pool, 2, WRITE | FUA, (64, 8));
    let write = request(device.next(&mut pool));
    assert_eq!((write.op, write.sector, write.len, write.fua), (Op::Write, 64, 4096, true));
    assert_eq!((write.volume, write.id), (VolumeNr(3), ReqId(2)));
    let payload = write.payload.expect("data");
    let mut bytes = [0; 4096];
    pool.copy_out(Buf(payload.buf.0), 0, &mut bytes);
    assert_eq!(bytes, [7; 4096]);
    device.answer(&mut pool, 2, Ok(()));
    assert_eq!(device.commands, [(2, commit(2, 4096))]);
    assert_eq!(pool.in_use(), 0);

    device.commands.clear();
    arrive(&mut device, &file, &mut pool, 0, READ, (8, 2));
    let read = request(device.next(&mut pool));
    assert_eq!((read.op, read.sector, read.len), (Op::Read, 8, 1024));
    pool.fill(Buf(read.payload.expect("a target").buf.0), 0, &[5; 1024]);
    device.answer(&mut pool, 0, Ok(()));
    let mut bytes = [0; 1024];
    file.read_exact_at(&mut bytes, data_offset(0)).expect("data");
    assert_eq!(bytes, [5; 1024]);
    assert_eq!(device.commands, [(0, commit(0, 1024))]);
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn ublk_what_has_no_data_takes_no_buffer() {
    let (mut device, file, mut pool) = device();
    let arrive = |device: &mut UblkDevice, pool: &mut Pool, tag, op, range| {
        arrive(device, &file, pool, tag, op, range);
        request(device.next(pool))
    };
    let flush = arrive(&mut device, &mut pool, 0, FLUSH, (0, 0));
    assert_eq!((flush.op, flush.sector, flush.len, flush.payload), (Op::Flush, 0, 0, None));
    let discard = arrive(&mut device, &mut pool, 1, DISCARD, (2048, 262_144));
    assert_eq!((discard.op, discard.sector, discard.len), (Op::Discard, 2048, 128 << 20));
    let zeroes = arrive(&mut device, &mut pool, 2, ZEROES, (0, 8));
    assert_eq!(zeroes.op, Op::WriteZeroes { unmap: true });
    let zeroes = arrive(&mut device, &mut pool, 3, ZEROES | NO_UNMAP, (0, 8));
    assert_eq!((zeroes.op, zeroes.payload), (Op::WriteZeroes { unmap: false }, None));
    assert_eq!(pool.in_use(), 0);
    device.answer(&mut pool, 0, Ok(()));
    device.answer(&mut pool, 1, Err(IoError::NoSpace));
    device.answer(&mut pool, 3, Err(IoError::Io));
    let answers = [(0, commit(0, 0)), (1, commit(1, -libc::ENOSPC)), (3, commit(3, -libc::EIO))];
    assert_eq!(device.commands, answers);
}

#[test]
fn ublk_requests_wait_for_buffers_in_their_order() {
    let (mut device, file, mut pool) = device();
    for tag in 0..3 {
        arrive(&mut device, &file, &mut pool, tag, READ, (0, 2048));
    }
    let first = request(device.next(&mut pool));
    let second = request(device.next(&mut pool));
    assert_eq!((first.id, second.id), (ReqId(0), ReqId(1)));
    assert!(matches!(device.next(&mut pool), Step::NeedBuffer), "half of the buffers are left to peers");
    device.answer(&mut pool, 0, Err(IoError::Io));
    assert_eq!(request(device.next(&mut pool)).id, ReqId(2));
    assert!(matches!(device.next(&mut pool), Step::Wait));
}

#[test]
fn ublk_what_was_not_offered_is_refused() {
    let (mut device, file, mut pool) = device();
    arrive(&mut device, &file, &mut pool, 0, 13, (0, 8));
    arrive(&mut device, &file, &mut pool, 1, WRITE, (0, 0));
    arrive(&mut device, &file, &mut pool, 2, READ, (0, 2049));
    arrive(&mut device, &file, &mut pool, 3, DISCARD, (0, u32::MAX));
    assert!(matches!(device.next(&mut pool), Step::Wait));
    let refusals = [libc::EOPNOTSUPP, libc::EINVAL, libc::EINVAL, libc::EINVAL];
    let refusals: Vec<_> = (0..4).map(|tag| (tag, commit(tag, -refusals[usize::from(tag)]))).collect();
    assert_eq!(device.commands, refusals);
}

#[test]
fn ublk_a_device_is_over_when_it_was_stopped_and_all_is_answered() {
    let (mut device, file, mut pool) = device();
    arrive(&mut device, &file, &mut pool, 0, FLUSH, (0, 0));
    request(device.next(&mut pool));
    for tag in 1..4 {
        assert!(!device.is_over());
        device.completed(&mut pool, FrontOp::Tag(tag), ABORTED);
    }
    assert!(!device.is_over(), "a request is in the core");
    device.close();
    device.answer(&mut pool, 0, Ok(()));
    device.commands.clear();
    device.in_ring += 1;
    arrive(&mut device, &file, &mut pool, 0, READ, (0, 8));
    assert!(matches!(device.next(&mut pool), Step::Wait));
    assert_eq!(device.commands, [(0, commit(0, -libc::EIO))], "it is closing");
    device.commands.clear();
    device.in_ring += 1;
    device.completed(&mut pool, FrontOp::Tag(0), ABORTED);
    assert!(device.is_over());
    Box::new(device).bury(&mut pool);
}
