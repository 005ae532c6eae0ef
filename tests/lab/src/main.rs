//! `zea-lab`: scenarios by hand.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use zea_lab::scenarios::{ALL, ALL_UBLK, Run, RunVm};
use zea_lab::{Lab, Linux};

/// Boots kernels with DRBD in them and runs scenarios
#[derive(Debug, Parser)]
#[command(name = "zea-lab", subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the scenarios
    List,
    /// Run a scenario and print how long its steps took
    Run {
        /// Its name, or a part that only one has
        name: String,
        /// Leave everything running at the end, also after a failure, and give the console of the first guest
        #[arg(long)]
        keep: bool,
        /// Print what was said on the network
        #[arg(long)]
        packets: bool,
    },
    /// Run a scenario with block devices, in a machine of QEMU
    RunUblk {
        /// Its name, or a part that only one has
        name: String,
        /// On Linux 7.3, not 6.12
        #[arg(long)]
        new: bool,
        /// Leave the machine running at the end, also after a failure, and give its console
        #[arg(long)]
        keep: bool,
    },
    /// Boot a guest with two disks and give its console
    Shell,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::List => {
            ALL.iter().for_each(|(name, _)| println!("{name}"));
            ALL_UBLK.iter().for_each(|(name, _)| println!("{name}"));
        }
        Command::RunUblk { name, new, keep } => run_ublk(&name, if new { Linux::V7_3 } else { Linux::V6_12 }, keep)?,
        Command::Run { name, keep, packets } => run(&name, keep, packets)?,
        Command::Shell => {
            let mut lab = Lab::new()?;
            lab.boot(1, 2)?;
            lab.guest(1).run("modprobe drbd")?;
            talk(&mut lab)?;
        }
    }
    Ok(())
}

/// The scenario with this name, or the only one that has it in its name.
fn find<T>(all: &'static [(&'static str, T)], name: &str) -> Result<&'static (&'static str, T)> {
    if let Some(exact) = all.iter().find(|(full, _)| *full == name) {
        return Ok(exact);
    }
    let mut found = all.iter().filter(|(full, _)| full.contains(name));
    let first = found.next().with_context(|| format!("no scenario has {name} in its name"))?;
    if let Some((other, _)) = found.next() {
        bail!("both {} and {other}", first.0);
    }
    Ok(first)
}

fn run(name: &str, keep: bool, packets: bool) -> Result<()> {
    let (name, scenario): &(&str, Run) = find(ALL, name)?;
    let mut lab = Lab::new()?;
    let result = catch_unwind(AssertUnwindSafe(|| scenario(&mut lab)));
    let result = result.unwrap_or_else(|_| bail!("panicked"));
    println!("{name}: {}", lab.times());
    if let Err(error) = &result {
        eprintln!("{error:#}\n{}", lab.remains());
    }
    if packets {
        print!("{}", lab.packets()?);
    }
    if keep {
        talk(&mut lab)?;
    }
    result
}

fn run_ublk(name: &str, linux: Linux, keep: bool) -> Result<()> {
    let (name, scenario): &(&str, RunVm) = find(ALL_UBLK, name)?;
    let mut vm = zea_lab::scenarios::boot(linux)?;
    let result = scenario(&mut vm);
    println!("{name}: {}", vm.times());
    if let Err(error) = &result {
        eprintln!("{error:#}\n{}", vm.remains());
    }
    if keep {
        vm.talk()?;
    }
    result
}

fn talk(lab: &mut Lab) -> Result<()> {
    println!("everything is in {}; exit or Ctrl-D ends it", lab.folder().display());
    lab.talk()
}
