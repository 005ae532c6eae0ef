//! The memory of a `zead` that serves one large volume.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::backing::{Backing, Scratch};
use crate::fio::Job;
use crate::process::Interrupt;
use crate::zea_pair::{Programs, ZeaAlone};

const MIB: u64 = 1024 * 1024;
/// Size of the volume.
const VOLUME_BYTES: u64 = 1 << 40;
/// What the daemon may use for it, with two peers.
const LIMIT_MIB: u64 = 200;

/// What `zea-bench memory` is told.
#[derive(Debug, clap::Args)]
pub struct MemoryOptions {
    /// Directory for the temporary files; its file system must have sparse files of 1 TiB
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

/// Random writes all over the volume: what the daemon keeps per block, it has then.
const LOAD: Job = Job { depth: 16, seconds: 5, warm_up_seconds: 0, flush: false };

/// Prints the resident memory of a `zead` with one volume of 1 TiB and two peers configured:
/// after it was set up, and after five seconds of random writes.
///
/// # Errors
/// The daemon cannot be set up, or uses more than 200 MiB at any time.
pub fn run(options: &MemoryOptions) -> Result<()> {
    options.programs.check()?;
    let interrupt = Interrupt::catch_signals()?;
    let directory = options.directory.canonicalize()?;
    let scratch = Scratch::new(Backing::File, &directory, &interrupt)?;
    let backing = scratch.sparse_file("volume", VOLUME_BYTES)?;
    let state = scratch.directory().join("zea");
    let node = ZeaAlone::start(&options.programs, &backing, &state, &interrupt)?;
    println!("zead, one volume of 1 TiB, two peers configured, resident memory:");
    println!("  set up: {} MiB", mib(node.pid(), "VmRSS")?);
    LOAD.run(node.uri(), scratch.directory(), &interrupt)?;
    println!("  after 5 s of random writes: {} MiB", mib(node.pid(), "VmRSS")?);
    let peak = mib(node.pid(), "VmHWM")?;
    println!("  at most: {peak} MiB (limit {LIMIT_MIB} MiB)");
    ensure!(peak <= LIMIT_MIB, "zead uses more memory than it may");
    Ok(())
}

/// One of the sizes of a process's status, in MiB, rounded up.
fn mib(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(memory_bytes(&status, field)?.div_ceil(MIB))
}

/// Reads one of the sizes of `/proc/PID/status`, in bytes.
fn memory_bytes(status: &str, field: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib = kib.with_context(|| format!("no {field} in the process status"))?;
    Ok(kib.parse::<u64>()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bench_process_memory_is_read_in_bytes() {
        let status = "Name:\tzead\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(memory_bytes(status, "VmRSS").unwrap(), MIB);
        assert_eq!(memory_bytes(status, "VmHWM").unwrap(), 2 * MIB);
        assert!(memory_bytes(status, "VmSwap").is_err());
        assert!(memory_bytes("VmRSS:\t-1 kB", "VmRSS").is_err());
    }
}
