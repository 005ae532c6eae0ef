//! The comparison: every system under every load, in turns, in one run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::backing::{Place, Scratch};
use crate::fio::Job;
use crate::floor_pair::FloorPair;
use crate::process::Interrupt;
use crate::qemu_pair::QemuPair;
use crate::report::{Load, Row, System, median_table, ratio_table};
use crate::sample::Sample;
use crate::zea_pair::{Programs, ZeaPair};

const MIB: u64 = 1024 * 1024;
const DEPTHS: [usize; 2] = [1, 16];
const WARM_UP_SECONDS: u64 = 1;

/// What `zea-bench compare` is told.
#[derive(Debug, clap::Args)]
pub struct CompareOptions {
    /// Volumes of 256 MiB instead of 1 GiB, and 2 seconds a measurement unless told otherwise
    #[arg(long)]
    quick: bool,
    /// Seconds of each measurement [default: 6, or 2 with --quick]
    #[arg(long)]
    seconds: Option<u64>,
    /// Rounds: how many times each measurement is taken
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// What to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["floor", "zea", "qemu"])]
    systems: Vec<System>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    programs: Programs,
    /// Also write everything measured to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What the JSON file holds.
#[derive(Serialize)]
struct Results<'a> {
    machine: &'a Machine,
    seconds: u64,
    volume_mib: u64,
    backing: String,
    rows: &'a [Row],
}

/// Runs the comparison and prints its tables.
///
/// # Errors
/// A system that was asked for is not there, fails, or a signal ends the run.
pub fn run(options: &CompareOptions) -> Result<()> {
    ensure!(options.seconds != Some(0), "a measurement takes at least one second");
    let machine = Machine::read()?;
    println!("{}", machine.text());
    let bench = Bench::new(options)?;
    let mut rows = Vec::new();
    for flush in [false, true] {
        rows.extend(bench.rows(flush)?);
    }
    let load_after = first_line(Path::new("/proc/loadavg"))?;
    println!("load average afterwards {load_after}");
    println!("\n{}", median_table(&rows));
    if bench.systems.len() > 1 {
        println!("\n{}", ratio_table(&rows));
    }
    if let Some(path) = &options.json {
        let results = Results {
            machine: &machine,
            seconds: bench.seconds,
            volume_mib: bench.volume_bytes / MIB,
            backing: format!("{:?}", options.place.backing).to_lowercase(),
            rows: &rows,
        };
        let json = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, json).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

struct Bench<'a> {
    options: &'a CompareOptions,
    systems: Vec<System>,
    seconds: u64,
    volume_bytes: u64,
    interrupt: Interrupt,
}

/// A system that is ready to be measured.
enum Target {
    Floor(FloorPair),
    Zea(ZeaPair),
    Qemu(QemuPair),
}

impl<'a> Bench<'a> {
    fn new(options: &'a CompareOptions) -> Result<Self> {
        let mut systems = options.systems.clone();
        systems.sort_unstable();
        systems.dedup();
        if systems.contains(&System::Zea) {
            options.programs.check()?;
        }
        Ok(Self {
            options,
            systems,
            seconds: options.seconds.unwrap_or(if options.quick { 2 } else { 6 }),
            volume_bytes: if options.quick { 256 * MIB } else { 1024 * MIB },
            interrupt: Interrupt::catch_signals()?,
        })
    }

    /// Measures both depths, with or without flushes: A B C, A B C, …
    fn rows(&self, flush: bool) -> Result<Vec<Row>> {
        // Declared first, so that the targets are gone before what they work on is.
        let mut scratch = self.options.place.scratch(&self.interrupt)?;
        let mut targets = Vec::new();
        for system in &self.systems {
            let target = self.target(*system, flush, &mut scratch)?;
            targets.push((*system, target, Vec::new()));
        }
        let mut rows = Vec::new();
        for depth in DEPTHS {
            let load = Load { depth, flush };
            for round in 1..=self.options.rounds {
                for (system, target, samples) in &mut targets {
                    let what = format!("{}, {}, round {round}", load.name(), system.name());
                    let sample = self.measure(target, load, scratch.directory());
                    let sample = sample.with_context(|| what.clone())?;
                    eprintln!("{what}: {:.0} writes/s", sample.write_iops);
                    samples.push(sample);
                }
            }
            let systems = targets.iter_mut().map(|(system, _, samples)| (*system, std::mem::take(samples)));
            rows.push(Row { load, systems: systems.collect() });
        }
        Ok(rows)
    }

    fn target(&self, system: System, flush: bool, scratch: &mut Scratch) -> Result<Target> {
        let mut backing = |index: usize| {
            let name = format!("{}-{index}", system.name());
            scratch.backing(&name, self.volume_bytes)
        };
        let backing = [backing(0)?, backing(1)?];
        let (directory, interrupt) = (scratch.directory(), &self.interrupt);
        Ok(match system {
            System::Floor => Target::Floor(FloorPair::start(&std::env::current_exe()?, &backing, directory)?),
            System::Zea => {
                // Without flushes from the client, DRBD's own at the end of an epoch would be
                // what is measured: nobody else does them, so Zea's are off in those rows.
                println!("Zea: disk-flushes {}", if flush { "yes" } else { "no" });
                let programs = &self.options.programs;
                let state = directory.join("zea");
                let pair = ZeaPair::start(programs, &[], &backing, flush, &state, interrupt)?;
                Target::Zea(pair)
            }
            System::Qemu => Target::Qemu(QemuPair::start(&backing, directory, interrupt)?),
        })
    }

    fn measure(&self, target: &Target, load: Load, directory: &Path) -> Result<Sample> {
        self.interrupt.check()?;
        let uri = match target {
            Target::Floor(pair) => pair.uri(),
            Target::Zea(pair) => pair.uri(),
            Target::Qemu(pair) => pair.uri(),
        };
        let job = Job { depth: load.depth, seconds: self.seconds, warm_up_seconds: WARM_UP_SECONDS, flush: load.flush };
        let sample = job.run(uri, directory, &self.interrupt)?;
        if let Target::Zea(pair) = target {
            pair.check(&self.interrupt)?;
        }
        Ok(sample)
    }
}

/// The machine, as far as the figures depend on it.
#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    cpus: usize,
    kernel: String,
    /// How busy the machine was before the run: the figures suffer from others' work.
    load_average: String,
}

impl Machine {
    fn read() -> Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        Ok(Self {
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            kernel: first_line(Path::new("/proc/sys/kernel/osrelease"))?,
            load_average: first_line(Path::new("/proc/loadavg"))?,
        })
    }

    fn text(&self) -> String {
        format!("{} ({} CPUs), Linux {}, load average {}", self.cpu, self.cpus, self.kernel, self.load_average)
    }
}

fn first_line(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
