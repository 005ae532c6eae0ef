//! The floor as it runs in a comparison: three processes over real sockets and files.

use std::fs;
use std::path::Path;
use std::process::Command;

use zea_bench::fio::Job;
use zea_bench::floor_pair::FloorPair;
use zea_bench::process::Interrupt;

const BLOCK_BYTES: usize = 4096;
const DEVICE_BLOCKS: usize = 4096;
const UNTOUCHED: u8 = 0xa5;

/// The numbers of the blocks that were written.
fn written_blocks(device: &[u8]) -> Vec<usize> {
    let blocks = device.chunks_exact(BLOCK_BYTES).enumerate();
    blocks.filter(|(_, block)| block.iter().any(|byte| *byte != UNTOUCHED)).map(|(number, _)| number).collect()
}

#[test]
fn bench_floor_moves_bytes() {
    if Command::new("fio").arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "fio is not installed");
        eprintln!("SKIPPED: fio is not installed; this check did NOT run");
        return;
    }
    // Direct IO needs a real file system: the build's own directory has one.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let backing = ["a", "b"].map(|name| directory.path().join(name));
    for path in &backing {
        fs::write(path, vec![UNTOUCHED; DEVICE_BLOCKS * BLOCK_BYTES]).unwrap();
    }
    let pair = FloorPair::start(Path::new(env!("CARGO_BIN_EXE_zea-bench")), &backing, directory.path()).unwrap();
    for depth in [1, 16] {
        for flush in [false, true] {
            let job = Job { depth, seconds: 1, warm_up_seconds: 0, flush };
            let sample = job.run(pair.uri(), directory.path(), &Interrupt::default()).unwrap();
            assert!(sample.write_iops > 0.0 && sample.write.mean_us > 0.0);
            assert_eq!(sample.flush.is_some(), flush);

            let [primary, secondary] = backing.each_ref().map(|path| fs::read(path).unwrap());
            let written = written_blocks(&primary);
            assert!(!written.is_empty(), "nothing was written");
            assert_eq!(written, written_blocks(&secondary), "one replica got what the other did not get");
            // The floor puts writes to one block in no order, so that the last of several in flight may differ.
            assert!(depth > 1 || primary == secondary, "the replicas differ");
        }
    }
}
