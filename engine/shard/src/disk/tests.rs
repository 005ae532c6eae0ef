//! Disk commands on real files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zea_core::io::{BufId, DiskCmd, DiskError, DiskTag, MetaBlock, Payload};
use zea_meta::placement::Placement;
use zea_wire::ids::VolumeNr;

use super::{BackingPaths, Disk, DiskDone, DiskId, Disks, Fault, FaultKind, Owner};
use crate::pool::{Buf, ClassConfig, Pool, PoolConfig, Purpose};
use crate::ring::{Ring, RingConfig, RingCounters};
use crate::token::Token;

/// A ring, a pool and one disk. The ring comes first: it is dropped first.
struct Rig {
    ring: Ring<Token>,
    pool: Pool,
    disks: Disks,
    id: DiskId,
    next_tag: u64,
}

impl Rig {
    fn new(disk: Disk) -> Rig {
        let ring = Ring::new(&RingConfig { sq_entries: 64, cq_entries: 128 }, Arc::new(RingCounters::default()))
            .expect("a ring");
        let classes = vec![ClassConfig { bytes: 4096, count: 256 }, ClassConfig { bytes: 1 << 20, count: 4 }];
        let mut pool = Pool::new(&PoolConfig { classes }).expect("a pool");
        ring.reserve_buffers(pool.chunks() as u32).expect("registered buffers");
        pool.enable_registration();
        let mut disks = Disks::default();
        let id = disks.attach(disk);
        Rig { ring, pool, disks, id, next_tag: 0 }
    }

    fn on_file(path: &Path) -> Rig {
        let paths = BackingPaths { data: path.into(), meta: None, placement: Placement::Internal };
        Rig::new(Disk::open(&paths).expect("opens"))
    }

    fn submit(&mut self, cmd: DiskCmd) -> DiskTag {
        self.next_tag += 1;
        let tag = DiskTag(self.next_tag);
        let owner = Owner { resource: 7, volume: VolumeNr(3), tag };
        self.disks.submit(&mut self.ring, &mut self.pool, self.id, owner, cmd);
        tag
    }

    fn wait(&mut self) -> DiskDone {
        let mut done = Vec::new();
        loop {
            if let Some(done) = self.disks.take_done() {
                return done;
            }
            assert!(self.disks.in_flight() > 0, "nothing to wait for");
            self.ring.turn(Some(Duration::from_secs(10)), 1, &mut done).expect("a turn");
            assert!(!done.is_empty(), "a disk command hangs");
            for d in done.drain(..) {
                let Token::Disk(key) = d.token else { panic!("foreign token {:?}", d.token) };
                self.disks.complete(&mut self.ring, &mut self.pool, key, d.result);
            }
            self.disks.resume(&mut self.ring, &mut self.pool);
        }
    }

    fn run(&mut self, cmd: DiskCmd) -> DiskDone {
        let tag = self.submit(cmd);
        let done = self.wait();
        assert_eq!(done.owner, Owner { resource: 7, volume: VolumeNr(3), tag });
        done
    }

    fn buffer(&mut self, bytes: &[u8]) -> Payload {
        let buf = self.pool.alloc(bytes.len() as u32, Purpose::Meta).expect("a buffer");
        self.pool.fill(buf, 0, bytes);
        Payload { buf: BufId(buf.0), offset: 0, len: bytes.len() as u32 }
    }

    fn bytes(&self, payload: Payload) -> Vec<u8> {
        let mut bytes = vec![0; payload.len as usize];
        self.pool.copy_out(Buf(payload.buf.0), payload.offset, &mut bytes);
        bytes
    }
}

fn backing_file(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("disk");
    File::create(&path).and_then(|f| f.set_len(bytes)).expect("a file");
    path
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

#[test]
fn disk_writes_and_reads_back_with_a_reference_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::on_file(&backing_file(dir.path(), 4 << 20));
    for (len, fua) in [(4096, false), (1 << 20, true)] {
        let data = pattern(len, 1);
        let payload = rig.buffer(&data);
        rig.submit(DiskCmd::Write { sector: 8, payload, fua });
        // The core may free a buffer behind the last action that names it.
        rig.pool.release(Buf(payload.buf.0));
        assert_eq!(rig.pool.in_use(), 1);
        assert_eq!(rig.wait().result, Ok(()));
        assert_eq!(rig.pool.in_use(), 0);

        let target = rig.buffer(&vec![0; len]);
        assert_eq!(rig.run(DiskCmd::Read { sector: 8, payload: target }).result, Ok(()));
        assert_eq!(rig.bytes(target), data);
        rig.pool.release(Buf(target.buf.0));

        let new = rig.run(DiskCmd::ReadNew { sector: 8, len: len as u32 });
        let buf = new.buf.expect("a new buffer");
        assert_eq!(rig.bytes(Payload { buf: BufId(buf.0), offset: 0, len: len as u32 }), data);
        rig.pool.release(buf);
    }
    assert_eq!(rig.run(DiskCmd::Flush).result, Ok(()));
    assert_eq!(rig.pool.in_use(), 0);
}

#[test]
fn disk_discard_and_zeroes_leave_zeroes_and_holes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = backing_file(dir.path(), 4 << 20);
    std::fs::write(&path, pattern(4 << 20, 9)).expect("filled");
    let mut rig = Rig::on_file(&path);
    File::open(&path).and_then(|f| f.sync_all()).expect("synced");
    let blocks = || std::fs::metadata(&path).expect("metadata").blocks();
    let full = blocks();
    let zeroed = rig.run(DiskCmd::WriteZeroes { sector: 0, len: 1 << 20, unmap: false });
    assert_eq!(zeroed.result, Ok(()));
    assert_eq!(blocks(), full, "without unmap the space stays reserved");
    let unmapped = rig.run(DiskCmd::WriteZeroes { sector: 2048, len: 1 << 20, unmap: true });
    assert_eq!(unmapped.result, Ok(()));
    assert_eq!(rig.run(DiskCmd::Discard { sector: 4096, len: 1 << 20 }).result, Ok(()));
    assert!(blocks() <= full - 4096 + 64, "2 MiB of holes");
    let mut bytes = vec![1; 4 << 20];
    File::open(&path).and_then(|mut f| f.read_exact(&mut bytes)).expect("read");
    assert!(bytes[..3 << 20].iter().all(|&b| b == 0));
    assert_eq!(bytes[3 << 20..], pattern(4 << 20, 9)[3 << 20..]);
}

#[test]
fn disk_refuses_commands_outside_of_the_device() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::on_file(&backing_file(dir.path(), 1 << 20));
    for cmd in [
        DiskCmd::ReadNew { sector: 2047, len: 1024 },
        DiskCmd::ReadNew { sector: u64::MAX / 256, len: 512 },
        DiskCmd::ReadNew { sector: 0, len: 100 },
        DiskCmd::Discard { sector: 0, len: 2 << 20 },
        DiskCmd::MetaRead { offset_bytes: 1 << 20, len: 4096 },
    ] {
        assert_eq!(rig.run(cmd).result, Err(DiskError::Io(libc::EINVAL)));
    }
    let block: MetaBlock = Box::new([0; 4096]);
    let refused = rig.run(DiskCmd::MetaWrite { offset_bytes: u64::MAX - 100, block, sync: true });
    assert!(refused.result.is_err() && refused.block.is_some(), "the block comes back either way");
}

#[test]
fn disk_that_shrank_answers_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = backing_file(dir.path(), 1 << 20);
    let mut rig = Rig::on_file(&path);
    File::options().write(true).open(&path).and_then(|f| f.set_len((512 << 10) + 4096)).expect("cut");
    let len = 64 << 10;
    let cut = rig.run(DiskCmd::ReadNew { sector: 1024, len });
    assert_eq!((cut.result, cut.buf), (Err(DiskError::Io(libc::EIO)), None));
    assert_eq!(rig.pool.in_use(), 0);
}

#[test]
fn disk_meta_blocks_go_to_the_meta_data_device() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = backing_file(dir.path(), 1 << 20);
    let meta = dir.path().join("meta");
    File::create(&meta).and_then(|f| f.set_len(1 << 20)).expect("a file");
    let paths = BackingPaths { data: data.clone(), meta: Some(meta.clone()), placement: Placement::FlexExternal };
    let disk = Disk::open(&paths).expect("opens");
    assert_eq!(disk.backing().meta_size_bytes, 1 << 20);
    let mut rig = Rig::new(disk);
    for (nr, sync) in [(0_u8, true), (1, false), (2, false), (3, true), (4, true)] {
        let block: MetaBlock = Box::new([nr + 1; 4096]);
        let cmd = DiskCmd::MetaWrite { offset_bytes: u64::from(nr) * 4096, block, sync };
        let ops = rig.ring.counters().ops.load(std::sync::atomic::Ordering::Relaxed);
        let done = rig.run(cmd);
        assert_eq!(done.result, Ok(()));
        assert_eq!(done.block.expect("comes back")[0], nr + 1);
        let ops = rig.ring.counters().ops.load(std::sync::atomic::Ordering::Relaxed) - ops;
        // The first synchronous write covers what earlier processes left, the one behind unsynchronised writes
        // covers them; only then is a write on its own enough.
        assert_eq!(ops, if sync && nr != 4 { 2 } else { 1 }, "write {nr}");
    }
    let read = rig.run(DiskCmd::MetaRead { offset_bytes: 4096, len: 12288 });
    let (buf, len) = read.meta.expect("bytes");
    let mut bytes = vec![0; len as usize];
    rig.pool.copy_out(buf, 0, &mut bytes);
    rig.pool.release(buf);
    assert_eq!((bytes[0], bytes[4096], bytes[12287]), (2, 3, 4));
    assert_eq!(rig.run(DiskCmd::Flush).result, Ok(()));
    let mut first = [9];
    File::open(&data).expect("data").read_exact_at(&mut first, 0).expect("read");
    assert_eq!(first, [0], "nothing on the data device");
}

#[test]
fn disk_placement_and_paths_have_to_agree() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = backing_file(dir.path(), 1 << 20);
    let open = |meta: Option<PathBuf>, placement| {
        Disk::open(&BackingPaths { data: data.clone(), meta, placement }).map(drop).map_err(|e| e.to_string())
    };
    assert!(open(None, Placement::FlexExternal).unwrap_err().contains("no meta-data device"));
    assert!(open(Some(data.clone()), Placement::Internal).unwrap_err().contains("is internal"));
}

#[test]
fn disk_commands_wait_for_a_buffer_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::on_file(&backing_file(dir.path(), 8 << 20));
    // Half of four buffers of 1 MiB is for requests: the third read waits, a meta read does not.
    let tags: Vec<DiskTag> = (0..3).map(|i| rig.submit(DiskCmd::ReadNew { sector: i * 2048, len: 1 << 20 })).collect();
    let first = rig.wait();
    let second = rig.wait();
    assert_eq!(rig.disks.in_flight(), 1);
    rig.pool.release(first.buf.expect("a buffer"));
    rig.disks.resume(&mut rig.ring, &mut rig.pool);
    let third = rig.wait();
    assert_eq!(third.owner.tag, tags[2]);
    for done in [second, third] {
        rig.pool.release(done.buf.expect("a buffer"));
    }
    assert_eq!(rig.pool.in_use(), 0);
}

#[test]
fn disk_faults_fail_what_they_were_told_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::on_file(&backing_file(dir.path(), 1 << 20));
    let error = DiskError::NoSpace;
    rig.disks.set_fault(rig.id, Some(Fault { kind: FaultKind::Write, after: 1, times: 1, error }));
    let payload = rig.buffer(&[5; 4096]);
    let results: Vec<_> = (0..3).map(|_| rig.run(DiskCmd::Write { sector: 0, payload, fua: false }).result).collect();
    assert_eq!(results, [Ok(()), Err(error), Ok(())]);
}

/// A file system of one MiB, so that it can be full. Root only.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount() -> Option<Tiny> {
        let dir = tempfile::tempdir().expect("a directory");
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, c"size=1M") {
            Ok(()) => Some(Tiny(dir)),
            Err(e) => {
                eprintln!("SKIPPED: a full file system takes root to mount one ({e})");
                assert!(std::env::var_os("CI").is_none() || !rustix::process::geteuid().is_root(), "CI has root");
                None
            }
        }
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).expect("unmounts");
    }
}

#[test]
fn disk_full_file_system_is_no_space() {
    let Some(tiny) = Tiny::mount() else { return };
    let mut rig = Rig::on_file(&backing_file(tiny.0.path(), 4 << 20));
    let payload = rig.buffer(&vec![7; 1 << 20]);
    let results: Vec<_> =
        (0..2).map(|i| rig.run(DiskCmd::Write { sector: i * 2048, payload, fua: false }).result).collect();
    assert!(results.contains(&Err(DiskError::NoSpace)), "{results:?}");
    // A discard makes room again.
    assert_eq!(rig.run(DiskCmd::Discard { sector: 0, len: 2 << 20 }).result, Ok(()));
    let small = Payload { len: 4096, ..payload };
    assert_eq!(rig.run(DiskCmd::Write { sector: 0, payload: small, fua: false }).result, Ok(()));
}

/// A loop device. Root only, and only where the kernel has them.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Option<Loop> {
        let output = std::process::Command::new("losetup").args(["--find", "--show"]).arg(path).output();
        match output {
            Ok(o) if o.status.success() => Some(Loop(String::from_utf8_lossy(&o.stdout).trim().to_owned())),
            other => {
                eprintln!("SKIPPED: no loop device to be had ({other:?})");
                let could = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
                assert!(std::env::var_os("CI").is_none() || !could, "CI has loop devices");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let status = std::process::Command::new("losetup").args(["-d", &self.0]).status();
        assert!(status.is_ok_and(|s| s.success()), "losetup -d {}", self.0);
    }
}

#[test]
fn disk_block_device_is_exclusive_and_discards() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = backing_file(dir.path(), 4 << 20);
    let mut file = File::options().read(true).write(true).open(&path).expect("opens");
    file.write_all(&pattern(4 << 20, 3)).expect("filled");
    let Some(device) = Loop::over(&path) else {
        return;
    };
    let paths = BackingPaths { data: (&device.0).into(), meta: None, placement: Placement::Internal };
    let disk = Disk::open(&paths).expect("opens");
    assert_eq!(disk.backing().size_bytes, 4 << 20);
    assert!(disk.backing().discard);
    let held = Disk::open(&paths).expect_err("held");
    assert!(matches!(held, super::OpenError::InUse { .. }), "{held}");
    let mut rig = Rig::new(disk);
    assert_eq!(rig.run(DiskCmd::Discard { sector: 2048, len: 1 << 20 }).result, Ok(()));
    assert_eq!(rig.run(DiskCmd::WriteZeroes { sector: 0, len: 4096, unmap: false }).result, Ok(()));
    let payload = rig.buffer(&[6; 4096]);
    assert_eq!(rig.run(DiskCmd::Write { sector: 8, payload, fua: true }).result, Ok(()));
    assert_eq!(rig.run(DiskCmd::Flush).result, Ok(()));
    drop(rig);
    drop(device);
    let mut bytes = vec![1; 4 << 20];
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut bytes)).expect("read");
    assert!(bytes[..4096].iter().all(|&b| b == 0) && bytes[4096..8192].iter().all(|&b| b == 6));
    assert!(bytes[1 << 20..2 << 20].iter().all(|&b| b == 0));
    assert_eq!(bytes[8192], pattern(8193, 3)[8192]);
}
