//! The memory of a `zead` that serves one large volume.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::backing::{Backing, Scratch};
use crate::process::Interrupt;
use crate::zea_pair::{Programs, ZeaAlone};

const MIB: u64 = 1024 * 1024;
/// Size of the volume.
const VOLUME_BYTES: u64 = 1 << 40;
/// What the daemon may use for it, with two peers.
const LIMIT_BYTES: u64 = 200 * MIB;

/// What `zea-bench memory` is told.
#[derive(Debug, clap::Args)]
pub struct MemoryOptions {
    /// Directory for the temporary files; its file system must have sparse files of 1 TiB
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

/// Prints the resident memory of a `zead` with one volume of 1 TiB and two peers configured.
///
/// # Errors
/// The daemon cannot be set up, or uses more than 200 MiB.
pub fn run(options: &MemoryOptions) -> Result<()> {
    options.programs.check()?;
    let interrupt = Interrupt::catch_signals()?;
    let directory = options.directory.canonicalize()?;
    let scratch = Scratch::new(Backing::File, &directory, &interrupt)?;
    let backing = scratch.sparse_file("volume", VOLUME_BYTES)?;
    let state = scratch.directory().join("zea");
    let node = ZeaAlone::start(&options.programs, &backing, &state, &interrupt)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid()))?;
    let now = memory_bytes(&status, "VmRSS")?;
    let peak = memory_bytes(&status, "VmHWM")?;
    println!(
        "zead, one volume of 1 TiB, two peers configured: {} MiB resident (at most {} MiB so far)",
        now.div_ceil(MIB),
        peak.div_ceil(MIB)
    );
    ensure!(
        peak <= LIMIT_BYTES,
        "that is above the limit of {} MiB",
        LIMIT_BYTES / MIB
    );
    Ok(())
}

/// Reads one of the sizes of `/proc/PID/status`, in bytes.
fn memory_bytes(status: &str, field: &str) -> Result<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
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
