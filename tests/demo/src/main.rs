//! Shows that Zea keeps its promises: three daemons, a real load, `kill -9`, and a recount of everything that was promised.
//!
//! **Purpose.** The first command of the README, and a test of the whole: it uses the daemons only as a user would,
//! through `zea` and the NBD export, and believes nothing that it did not count itself.
//!
//! **Owner thread.** The main thread. What touches the volume is a process of its own ([`workload`]).
//!
//! **Invariants.**
//! * Every wait has a limit, and so has the whole run.
//! * However it ends (an error, a panic, Ctrl-C): no daemon, mount, loop device or load outlives it.
//! * What was not reached is not reported as true.
//!
//! **Reference.** `docs/reference/zea.md` for the command line; `doc/proto.md` of NetworkBlockDevice/nbd.

mod cluster;
mod frontend;
mod install;
mod journal;
mod nbd_client;
mod process;
mod report;
mod run;
mod scenario;
mod status;
mod verify;
mod workdir;
mod workload;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand};

use frontend::{FileSystem, Frontend};
use install::Programs;
use report::Summary;
use run::Run;
use scenario::{Options, REPLICAS};
use workdir::WorkDir;
use workload::worker;

const AFTER_HELP: &str =
    "As root (or with sudo without a password) the volume is mounted: nbdfuse, a loop device, ext4 or \
XFS, with SQLite and fio on it; packages that this needs are installed. Otherwise the load runs on the raw NBD export.

Exit codes:
  0  everything was verified
  1  something was not, or did not work; the logs are kept, and it says where
  2  the command line is wrong";

/// Runs three zead on loopback, kills a Secondary and the Primary under load, and verifies that nothing was lost
#[derive(Debug, Parser)]
#[command(name = "zea-demo", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Args {
    /// Print a summary for machines as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    json: bool,
    /// Keep logs and volumes also after success
    #[arg(long)]
    keep: bool,
    /// Make the working directory in this one [default: TMPDIR, else /var/tmp]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// What is made on the volume, if it can be mounted
    #[arg(long, value_name = "TYPE", value_enum, default_value = "ext4")]
    file_system: FileSystem,
    /// Use the raw export even if it could be mounted
    #[arg(long)]
    raw: bool,
    /// Falsify the surviving volume: the demo must then fail.
    #[arg(long, hide = true)]
    drop_one_commit: bool,
    /// Directory with zead and zea; they are not built then.
    #[arg(long, hide = true)]
    programs: Option<PathBuf>,
    /// Size of the volume in MiB; more if the file system needs it.
    #[arg(long, hide = true, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=4096))]
    size_mib: u32,
    /// How long the load runs before each fault, in ms.
    #[arg(long, hide = true, default_value_t = 2500, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    load_ms: u64,
    /// How long all of it may take after the build, in s.
    #[arg(long, hide = true, default_value_t = 110, value_parser = clap::value_parser!(u64).range(1..=3600))]
    limit_s: u64,
    #[command(subcommand)]
    command: Option<Internal>,
}

impl Args {
    /// Size of the volume.
    fn volume_mib(&self) -> u32 {
        self.size_mib.max(self.file_system.least_mib())
    }
}

#[derive(Debug, Subcommand)]
#[command(subcommand_negates_reqs = true, disable_help_subcommand = true)]
enum Internal {
    /// Works with the store that the load commits to.
    #[command(hide = true)]
    Worker(worker::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Internal::Worker(worker)) = &args.command {
        return ExitCode::from(worker::main(worker));
    }
    let mut summary = Summary { volume_mib: args.volume_mib(), replicas: REPLICAS, ..Summary::default() };
    let result = demo(&args, &mut summary);
    if let Err(error) = &result {
        summary.verified = false;
        summary.error = Some(format!("{error:#}"));
    }
    tell(&args, &summary);
    ExitCode::from(u8::from(result.is_err()))
}

fn tell(args: &Args, summary: &Summary) {
    if args.json {
        println!("{}", summary.json());
    } else {
        println!("\n{summary}");
    }
    if let Some(error) = &summary.error {
        eprintln!("zea-demo: FAILED: {error}");
    }
    if let Some(logs) = &summary.logs {
        eprintln!("zea-demo: logs and volumes are in {}", logs.display());
    }
}

fn demo(args: &Args, summary: &mut Summary) -> Result<()> {
    let run = Run::begin(args.json)?;
    let programs = match &args.programs {
        Some(directory) => Programs::in_directory(directory)?,
        None => Programs::build(&run)?,
    };
    let workdir = WorkDir::create(args.dir.as_deref(), REPLICAS as u64, args.volume_mib())?;
    // A panic is a failure like any other: what it interrupted is taken down, and the logs are kept.
    let played = catch_unwind(AssertUnwindSafe(|| play(args, &run, programs, &workdir, summary)));
    let played = played.unwrap_or_else(|_| Err(anyhow!("the demo panicked; the message is above")));
    summary.elapsed_ms = u64::try_from(run.elapsed().as_millis())?;
    let result = match (played, workdir.assert_left_alone()) {
        (Err(error), Err(left)) => Err(anyhow!("{error:#}; then: {left:#}")),
        (played, left_alone) => played.and(left_alone),
    };
    if result.is_err() || args.keep {
        summary.logs = Some(workdir.path().to_owned());
        return result;
    }
    workdir.remove()
}

fn play(args: &Args, run: &Run, programs: Programs, workdir: &WorkDir, summary: &mut Summary) -> Result<()> {
    let frontend = if args.raw {
        Frontend::NbdRaw
    } else {
        Frontend::choose(run, workdir.path(), args.file_system).context("cannot choose a front end")?
    };
    summary.frontend = frontend.name();
    summary.filesystem = frontend.file_system().map_or("none", FileSystem::name);
    // What had to be installed does not count.
    run.start_clock(Duration::from_secs(args.limit_s));
    let options = Options {
        programs,
        frontend,
        size_mib: args.volume_mib(),
        load: Duration::from_millis(args.load_ms),
        drop_one_commit: args.drop_one_commit,
    };
    scenario::play(run, &options, workdir.path(), summary)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn demo_command_line_is_consistent() {
        Args::command().debug_assert();
        let help = Args::command().render_long_help().to_string();
        for hidden in ["drop-one-commit", "programs", "worker", "size-mib", "limit-s"] {
            assert!(!help.contains(hidden), "{hidden} in {help}");
        }
        assert!(help.contains("--json") && help.contains("Exit codes:"));
    }

    #[test]
    fn demo_command_line_has_bounds() {
        let parse = |more: &[&str]| Args::try_parse_from(["zea-demo"].iter().chain(more));
        let args = parse(&["--json", "--keep", "--raw"]).unwrap();
        assert!(args.json && args.keep && args.raw && !args.drop_one_commit);
        assert!(parse(&["--size-mib", "1"]).is_err());
        assert!(parse(&["--load-ms", "0"]).is_err());
        assert!(parse(&["--limit-s", "0"]).is_err());
        assert!(parse(&["play"]).is_err());
    }
}
