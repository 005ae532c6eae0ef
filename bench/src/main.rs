//! The command line of `zea-bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use zea_bench::compare::{self, CompareOptions};
use zea_bench::floor::{self, Limit, Load};
use zea_bench::memory::{self, MemoryOptions};
use zea_bench::recorder_cost::{self, RecorderOptions};
use zea_bench::resync::{self, ResyncOptions};

/// Measures Zea beside its peers and beside the composed floor.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the floor, Zea and qemu in turns, and print medians and ratios
    Compare(CompareOptions),
    /// Print the memory of a zead that serves a 1 TiB volume with two peers
    Memory(MemoryOptions),
    /// Run a pair of zead with the flight recorder and one without it at the same time, and print what it costs
    Recorder(RecorderOptions),
    /// Measure writes alone and beside a resync of the whole volume, in turns, and print what they cost each other
    Resync(ResyncOptions),
    /// The floor's client: write to a floor-primary, and print what was measured as JSON
    FloorClient(ClientOptions),
    /// The floor's primary: serve one client, and copy all it writes to a floor-secondary
    FloorPrimary {
        /// Unix socket to listen at
        #[arg(long)]
        socket: PathBuf,
        /// Where the floor-secondary listens
        #[arg(long)]
        secondary: SocketAddr,
        /// File or block device to write to
        #[arg(long)]
        device: PathBuf,
    },
    /// The floor's secondary: serve one floor-primary
    FloorSecondary {
        /// Address to listen at; what it became is printed
        #[arg(long, default_value = "127.0.0.2:0")]
        listen: SocketAddr,
        /// File or block device to write to
        #[arg(long)]
        device: PathBuf,
    },
}

#[derive(Args)]
struct ClientOptions {
    /// The floor-primary's socket
    #[arg(long)]
    socket: PathBuf,
    /// Operations in flight, 1 to 256
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// Send a flush after every write
    #[arg(long)]
    flush: bool,
    /// Stop after this many writes, all measured
    #[arg(long, conflicts_with = "seconds")]
    writes: Option<u64>,
    /// Seconds to measure
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Seconds before that, not measured
    #[arg(long, default_value_t = 1)]
    warm_up_seconds: u64,
    /// Seed of the offsets and the content
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl ClientOptions {
    fn load(&self) -> Load {
        let limit = match self.writes {
            Some(writes) => Limit::Writes(writes),
            None => Limit::Time {
                warm_up: Duration::from_secs(self.warm_up_seconds),
                measured: Duration::from_secs(self.seconds),
            },
        };
        Load { depth: self.depth, flush: self.flush, limit, seed: self.seed }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zea-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Compare(options) => compare::run(&options),
        Command::Memory(options) => memory::run(&options),
        Command::Recorder(options) => recorder_cost::run(&options),
        Command::Resync(options) => resync::run(&options),
        Command::FloorClient(options) => {
            let sample = floor::client(&options.socket, options.load())?;
            println!("{}", serde_json::to_string(&sample)?);
            Ok(())
        }
        Command::FloorPrimary { socket, secondary, device } => floor::primary(&socket, secondary, &device),
        Command::FloorSecondary { listen, device } => floor::secondary(listen, &device),
    }
}
