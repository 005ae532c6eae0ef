//! What a resync costs the writes beside it, and they it: one pair of `zead`, measured in turns alone and while the Secondary fetches
//! all of the volume again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};

use crate::backing::Place;
use crate::fio::Job;
use crate::process::Interrupt;
use crate::sample::{Sample, median};
use crate::zea_pair::{Programs, ZeaPair};

const MIB: u64 = 1024 * 1024;
const BEGIN: Duration = Duration::from_secs(10);

/// What `zea-bench resync` is told.
#[derive(Debug, clap::Args)]
pub struct ResyncOptions {
    /// Writes in flight
    #[arg(long, default_value_t = 16)]
    depth: usize,
    /// Measure writes without flushes
    #[arg(long)]
    no_flush: bool,
    /// Size of the volume: the resync has to last longer than a measurement
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(64..=65536))]
    mib: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds: how many times each measurement is taken
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    programs: Programs,
}

/// Measures and prints a table.
///
/// # Errors
/// A daemon or fio fails, a resync is over before its measurement, or a signal ends the run.
pub fn run(options: &ResyncOptions) -> Result<()> {
    options.programs.check()?;
    let interrupt = Interrupt::catch_signals()?;
    let mut scratch = options.place.scratch(&interrupt)?;
    let backing = [0, 1].map(|index| scratch.backing(&format!("resync-{index}"), options.mib * MIB));
    let [first, second] = backing;
    let (state, flush) = (scratch.directory().join("zea"), !options.no_flush);
    let pair = ZeaPair::start(&options.programs, &[], &[first?, second?], flush, &state, &interrupt)?;
    let job = Job { depth: options.depth, seconds: options.seconds, warm_up_seconds: 0, flush };
    let measure = || job.run(pair.uri(), scratch.directory(), &interrupt);
    let (mut alone, mut beside, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        alone.push(measure()?);
        let begin = begin_resync(&pair, options.mib, &interrupt)?;
        let sample = measure()?;
        let left = pair.out_of_sync_kib(&interrupt)?;
        ensure!(left > 0, "round {round}: the resync was over before its measurement: take a larger --mib");
        let fetched_mib = options.mib as f64 - left as f64 / 1024.0;
        rates.push(fetched_mib / begin.elapsed().as_secs_f64());
        beside.push(sample);
        pair.wait_synced(&interrupt)?;
        let (one, other) = (alone[alone.len() - 1].write_iops, sample.write_iops);
        eprintln!(
            "round {round}: {one:.0} writes/s alone, {other:.0} beside a resync of {:.0} MiB/s",
            rates[rates.len() - 1]
        );
    }
    println!("{}", table(&alone, &beside));
    println!("the resync: {:.0} MiB/s", median(rates.into_iter()).context("no rounds")?);
    Ok(())
}

/// Lets the Secondary fetch everything, and waits until that runs: most of the volume is missing then, and not only what a write has
/// just marked. When it was asked for.
fn begin_resync(pair: &ZeaPair, mib: u64, interrupt: &Interrupt) -> Result<Instant> {
    let asked = Instant::now();
    pair.invalidate(interrupt)?;
    while pair.out_of_sync_kib(interrupt)? < mib * 1024 / 2 {
        ensure!(asked.elapsed() < BEGIN, "the resync does not begin");
    }
    Ok(asked)
}

/// Medians, and the ratios of the rounds: their median, the lowest and the highest.
fn table(alone: &[Sample], beside: &[Sample]) -> Table {
    type Figure = fn(&Sample) -> Option<f64>;
    let figures: [(&str, Figure); 5] = [
        ("writes/s", |s| Some(s.write_iops)),
        ("write mean us", |s| Some(s.write.mean_us)),
        ("write p99 us", |s| Some(s.write.p99_us)),
        ("flush mean us", |s| Some(s.flush?.mean_us)),
        ("flush p99 us", |s| Some(s.flush?.p99_us)),
    ];
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["", "alone", "beside a resync", "ratio"]);
    for (name, figure) in figures {
        let of = |samples: &[Sample]| samples.iter().filter_map(figure).collect::<Vec<f64>>();
        let (alone, beside) = (of(alone), of(beside));
        let mut ratios: Vec<f64> = alone.iter().zip(&beside).map(|(alone, beside)| beside / alone).collect();
        ratios.sort_by(f64::total_cmp);
        let middles = [&alone, &beside, &ratios].map(|all| median(all.iter().copied()));
        if let [Some(alone), Some(beside), Some(ratio)] = middles {
            let (lowest, highest) = (ratios[0], ratios[ratios.len() - 1]);
            let ratio = format!("{ratio:.2} ({lowest:.2} to {highest:.2})");
            table.add_row([name.to_owned(), format!("{alone:.0}"), format!("{beside:.0}"), ratio]);
        }
    }
    table
}
