//! The command line of `zea-bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use zea_bench::compare::{self, CompareOptions};
use zea_bench::floor;
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
    /// The floor's primary: export a device over NBD, and copy all that is written to a floor-secondary
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
        Command::FloorPrimary { socket, secondary, device } => floor::primary(&socket, secondary, &device),
        Command::FloorSecondary { listen, device } => floor::secondary(listen, &device),
    }
}
