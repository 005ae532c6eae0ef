//! `zea-sim`: random runs by seed. Prints one line that reproduces a failing seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use zea_sim::random;
use zea_sim::trace::Record;

const USAGE: &str = "usage: zea-sim [--seeds N] [--seed S] [--nodes N] [--trace] [--keep-going]
  --seeds N     how many seeds to run (default 100)
  --seed S      the first seed (default 1)
  --nodes N     nodes of each cluster, 2 to 8 (default: 2 or 3, by the seed)
  --trace       print every event
  --keep-going  run the other seeds after a failure";

#[derive(Debug)]
struct Options {
    seeds: u64,
    first: u64,
    nodes: Option<usize>,
    trace: bool,
    keep_going: bool,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { seeds: 100, first: 1, nodes: None, trace: false, keep_going: false };
    while let Some(arg) = args.next() {
        let mut number = || {
            let text = args.next().ok_or(format!("{arg} needs a number"))?;
            text.parse::<u64>().map_err(|_| format!("{arg} {text}: not a number"))
        };
        match arg.as_str() {
            "--seeds" => options.seeds = number()?,
            "--seed" => options.first = number()?,
            "--nodes" => options.nodes = Some(number()? as usize),
            "--trace" => options.trace = true,
            "--keep-going" => options.keep_going = true,
            _ => return Err(format!("unknown option {arg}")),
        }
    }
    match options.nodes {
        Some(n) if !(2..=8).contains(&n) => Err(format!("{n} nodes: give 2 to 8")),
        _ => Ok(options),
    }
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let begin = Instant::now();
    let (mut failed, mut events, mut ran) = (0, 0, 0);
    for seed in options.first..options.first.saturating_add(options.seeds) {
        let nodes = options.nodes.unwrap_or(2 + (seed % 2) as usize);
        let record = if options.trace { Record::Print } else { Record::HashOnly };
        ran += 1;
        let run = |record| catch_unwind(AssertUnwindSafe(|| random::run(seed, nodes, record)));
        match run(record) {
            Ok(report) => {
                events += report.events;
                if seed % 50 == 0 && run(Record::HashOnly).ok() != Some(report) {
                    println!("NOT DETERMINISTIC seed {seed} nodes {nodes}");
                    failed += 1;
                }
            }
            Err(_) => {
                failed += 1;
                println!("FAILED: reproduce with: cargo sim --seed {seed} --seeds 1 --nodes {nodes} --trace");
                if !options.keep_going {
                    break;
                }
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{ran} seeds, {failed} failed, {events} events, {:.1} seeds/s, {:.0} events/s",
        ran as f64 / seconds,
        events as f64 / seconds
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
