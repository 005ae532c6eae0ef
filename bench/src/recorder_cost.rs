//! What the flight recorder costs: two pairs of `zead`, with it and without it, at the same time: what else the machine does
//! disturbs both.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};

use crate::backing::Place;
use crate::fio::Job;
use crate::process::Interrupt;
use crate::sample::{Sample, median};
use crate::zea_pair::{Programs, ZeaPair};

const MIB: u64 = 1024 * 1024;
const VOLUME_BYTES: u64 = 256 * MIB;
const WARM_UP_SECONDS: u64 = 1;
/// Without the recorder and with it.
const NAMES: [&str; 2] = ["off", "on"];

/// What `zea-bench recorder` is told.
#[derive(Debug, clap::Args)]
pub struct RecorderOptions {
    /// Writes in flight
    #[arg(long, default_value_t = 16)]
    depth: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds: how many times each measurement is taken
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    programs: Programs,
}

/// One measurement of one pair.
#[derive(Clone, Copy)]
struct Taken {
    sample: Sample,
    /// Time of processors that both daemons used for a write, with everything that they did beside.
    cpu_us: f64,
}

/// Measures and prints a table.
///
/// # Errors
/// A daemon or fio fails, or a signal ends the run.
pub fn run(options: &RecorderOptions) -> Result<()> {
    options.programs.check()?;
    let interrupt = Interrupt::catch_signals()?;
    let mut scratch = options.place.scratch(&interrupt)?;
    let mut pairs = Vec::new();
    for name in NAMES {
        let backing = [0, 1].map(|index| scratch.backing(&format!("{name}-{index}"), VOLUME_BYTES));
        let [first, second] = backing;
        let state = scratch.directory().join(name);
        let daemon = ["--flight-recorder", name];
        pairs.push(ZeaPair::start(&options.programs, &daemon, &[first?, second?], false, &state, &interrupt)?);
    }
    let mut taken = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        let both: Vec<Result<Taken>> = std::thread::scope(|scope| {
            let start = |(pair, name)| {
                let directory = scratch.directory().join(name);
                let interrupt = &interrupt;
                scope.spawn(move || measure(options, pair, &directory, interrupt))
            };
            let threads: Vec<_> = pairs.iter().zip(NAMES).map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        for (index, one) in both.into_iter().enumerate() {
            let what = format!("round {}, recorder {}", round + 1, NAMES[index]);
            let one = one.with_context(|| what.clone())?;
            eprintln!("{what}: {:.0} writes/s, {:.2} us of CPU a write", one.sample.write_iops, one.cpu_us);
            taken[index].push(one);
        }
    }
    println!("{}", table(&taken));
    Ok(())
}

fn measure(options: &RecorderOptions, pair: &ZeaPair, directory: &Path, interrupt: &Interrupt) -> Result<Taken> {
    let RecorderOptions { depth, seconds, .. } = *options;
    let before = (pair.cpu_ns()?, pair.writes(interrupt)?);
    let job = Job { depth, seconds, warm_up_seconds: WARM_UP_SECONDS, flush: false };
    let sample = job.run(pair.uri(), directory, interrupt)?;
    let after = (pair.cpu_ns()?, pair.writes(interrupt)?);
    pair.check(interrupt)?;
    Ok(Taken { sample, cpu_us: (after.0 - before.0) as f64 / 1e3 / (after.1 - before.1) as f64 })
}

type Figure = fn(&Taken) -> f64;

/// Medians, and the ratios of the rounds: their median, the lowest and the highest.
fn table(taken: &[Vec<Taken>; 2]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["", "off", "on", "on/off"]);
    let figures: [(&str, usize, Figure); 4] = [
        ("CPU us/write", 2, |t| t.cpu_us),
        ("writes/s", 0, |t| t.sample.write_iops),
        ("write mean us", 0, |t| t.sample.write.mean_us),
        ("write p99 us", 0, |t| t.sample.write.p99_us),
    ];
    for (name, digits, figure) in figures {
        let middle = |of: &[Taken]| median(of.iter().map(figure)).unwrap_or(f64::NAN);
        let mut ratios: Vec<f64> = taken[0].iter().zip(&taken[1]).map(|(off, on)| figure(on) / figure(off)).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = median(ratios.iter().copied()).unwrap_or(f64::NAN);
        let (lowest, highest) = (ratios.first().unwrap_or(&f64::NAN), ratios.last().unwrap_or(&f64::NAN));
        table.add_row([
            name.to_owned(),
            format!("{:.digits$}", middle(&taken[0])),
            format!("{:.digits$}", middle(&taken[1])),
            format!("{ratio:.3} ({lowest:.3} to {highest:.3})"),
        ]);
    }
    table
}
