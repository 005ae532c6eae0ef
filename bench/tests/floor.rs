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

fn written_blocks(device: &[u8]) -> usize {
    let blocks = device.chunks_exact(BLOCK_BYTES);
    blocks.filter(|block| block.iter().any(|byte| *byte != UNTOUCHED)).count()
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
            assert!(primary == secondary, "the replicas differ");
            assert!(written_blocks(&primary) > 0, "nothing was written");
        }
    }
}
