//! The floor as it runs in a comparison: three processes over real sockets and files.

use std::fs;
use std::path::Path;
use std::process::Command;

use zea_bench::process::{Daemon, Interrupt};
use zea_bench::sample::Sample;

const BLOCK_BYTES: usize = 4096;
const DEVICE_BLOCKS: usize = 4096;
const UNTOUCHED: u8 = 0xa5;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zea-bench"));
    command.args(arguments);
    command
}

fn run_floor(directory: &Path, client: &[&str]) -> Sample {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    for name in ["a", "b"] {
        fs::write(path(name), vec![UNTOUCHED; DEVICE_BLOCKS * BLOCK_BYTES]).unwrap();
    }
    let mut secondary = bench(&["floor-secondary", "--device", &path("b")]);
    let (_secondary, address) = Daemon::start_announced("secondary", &mut secondary, directory).unwrap();
    let socket = path("floor.sock");
    let mut primary = bench(&["floor-primary", "--socket", &socket]);
    primary.args(["--secondary", &address, "--device", &path("a")]);
    let (_primary, _) = Daemon::start_announced("primary", &mut primary, directory).unwrap();
    let mut command = bench(&["floor-client", "--socket", &socket]);
    let printed = Interrupt::default().run(command.args(client)).unwrap();
    serde_json::from_str(&printed).unwrap()
}

/// How many blocks of `device` were written, after checking that each has its own offset in front.
fn written_blocks(device: &[u8]) -> usize {
    let blocks = device.chunks_exact(BLOCK_BYTES).enumerate();
    let written = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != UNTOUCHED));
    written
        .map(|(index, block)| {
            let stamp = u64::from_le_bytes(block[..8].try_into().unwrap());
            assert_eq!(stamp, (index * BLOCK_BYTES) as u64);
        })
        .count()
}

#[test]
fn bench_floor_moves_bytes() {
    // Direct IO needs a real file system: the build's own directory has one.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for depth in ["1", "16"] {
        for flush in [false, true] {
            let mut client = vec!["--writes", "200", "--depth", depth];
            client.extend(flush.then_some("--flush"));
            let sample = run_floor(directory.path(), &client);
            assert!(sample.write_iops > 0.0 && sample.write.mean_us > 0.0);
            assert_eq!(sample.flush.is_some(), flush);

            let primary = fs::read(directory.path().join("a")).unwrap();
            let secondary = fs::read(directory.path().join("b")).unwrap();
            assert!(primary == secondary, "the replicas differ");
            let written = written_blocks(&primary);
            assert!((180..=200).contains(&written), "200 writes changed {written} blocks");
            fs::remove_file(directory.path().join("floor.sock")).unwrap();
        }
    }
}
