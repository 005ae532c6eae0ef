//! `zea-sim`: random runs by seed, on all cores. For a failing seed it prints one line that reproduces it, the last events,
//! and the faults that are enough.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use zea_core::limits::PROTOCOL_MAX;
use zea_sim::plan::Fault;
use zea_sim::random::Run;
use zea_sim::report::{Failure, capture};
use zea_sim::runner::{self, Plan, Summary, median};
use zea_sim::trace::Record;

const USAGE: &str =
    "usage: zea-sim [--seeds N] [--seed S] [--minutes M] [--nodes N] [--kinds K,K…] [--only F,F…] [--trace FILE]
               [--protocol V] [--quorum] [--mutation X] [--keep-going]
  --seeds N     how many seeds to run (default 100)
  --seed S      the first seed (default 1)
  --minutes M   no new seed after so many minutes
  --nodes N     nodes of each cluster, 2 to 8 (default: by the seed)
  --protocol V  the highest protocol version that the nodes offer; 86 to 101 are for 2 nodes
  --quorum      seeds draw quorum options, with 3 nodes at least
  --kinds K,K…  only faults of these kinds (default: by the seed): KINDS
  --only F,F…   run the first seed alone, with only these faults of its plan, by number
  --trace FILE  run the first seed alone, and write every event of it to a file, - for standard error
  --mutation X  break the core on purpose: MUTATIONS
  --keep-going  run the other seeds after a failure
  --help        print this";

/// Failures that are reported at length.
const LONG_REPORTS: usize = 3;
/// Last events in a report.
const LAST_LINES: usize = 30;

#[derive(Debug)]
struct Options {
    plan: Plan,
    only: Option<Vec<usize>>,
    trace: Option<String>,
    mutation: Option<Mutation>,
}

/// The broken variants of the core.
#[cfg(feature = "mutations")]
mod broken {
    pub(crate) use zea_core::mutation::{Mutation, set};

    pub(crate) fn names() -> Vec<&'static str> {
        Mutation::ALL.iter().map(|m| m.name()).collect()
    }

    pub(crate) fn by_name(name: &str) -> Option<Mutation> {
        Mutation::ALL.iter().copied().find(|m| m.name() == name)
    }
}

/// Without the feature there are none.
#[cfg(not(feature = "mutations"))]
mod broken {
    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Mutation {}

    impl Mutation {
        pub(crate) fn name(self) -> &'static str {
            match self {}
        }
    }

    pub(crate) fn set(_: Option<Mutation>) {}

    pub(crate) fn names() -> Vec<&'static str> {
        vec!["none in this build; cargo sim has them"]
    }

    pub(crate) fn by_name(_: &str) -> Option<Mutation> {
        None
    }
}

use broken::Mutation;

fn number(name: &str, text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{name} {text}: not a number"))
}

fn kind(name: &str) -> Result<usize, String> {
    Fault::KINDS.iter().position(|k| *k == name).ok_or(format!("no kind of fault is called {name}"))
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { plan: Plan::new(1, 100), only: None, trace: None, mutation: None };
    options.plan.stop_after_failures = 1;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--seeds" => options.plan.seeds = number(&arg, &value()?)?,
            "--seed" => options.plan.first = number(&arg, &value()?)?,
            "--minutes" => options.plan.stop_after = Some(Duration::from_secs(60 * number(&arg, &value()?)?)),
            "--nodes" => options.plan.nodes = Some(number(&arg, &value()?)? as usize),
            "--protocol" => options.plan.protocol = number(&arg, &value()?)? as u32,
            "--kinds" => {
                let kinds: Result<Vec<usize>, String> = value()?.split(',').map(kind).collect();
                options.plan.kinds = kinds?;
            }
            "--only" => {
                let numbers: Result<Vec<u64>, String> =
                    value()?.split(',').filter(|n| !n.is_empty()).map(|n| number("--only", n)).collect();
                options.only = Some(numbers?.into_iter().map(|n| n as usize).collect());
            }
            "--mutation" => {
                let name = value()?;
                let mutation = broken::by_name(&name);
                let known = broken::names().join(", ");
                options.mutation = Some(mutation.ok_or(format!("no mutation is called {name}: {known}"))?);
            }
            "--trace" => options.trace = Some(value()?),
            "--quorum" => options.plan.quorum = true,
            "--keep-going" => options.plan.stop_after_failures = u64::MAX,
            _ => return Err(format!("unknown option {arg}")),
        }
    }
    match options.plan.nodes {
        Some(n) if !(2..=8).contains(&n) => Err(format!("{n} nodes: give 2 to 8")),
        _ => Ok(options),
    }
}

fn usage() -> String {
    USAGE.replace("KINDS", &Fault::KINDS.join(", ")).replace("MUTATIONS", &broken::names().join(", "))
}

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|arg| arg == "--help" || arg == "-h") {
        println!("{}", usage());
        return ExitCode::SUCCESS;
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{}", usage());
            return ExitCode::from(2);
        }
    };
    broken::set(options.mutation);
    let passed = match (&options.trace, &options.only) {
        (None, None) => many(&options),
        (trace, only) => {
            let run = Run { only: only.clone(), ..options.plan.run_of(options.plan.first) };
            one(&run, trace.as_deref())
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run, with its trace.
fn one(run: &Run, trace: Option<&str>) -> bool {
    for (nr, planned) in run.plan() {
        println!("  fault {nr:>2} {planned}");
    }
    let record = if trace == Some("-") { Record::Print } else { Record::All };
    let (failure, lines) = match capture(|| Run { record, ..run.clone() }.run()) {
        Ok(report) => {
            println!("{} inputs, {} faults, {} virtual ms", report.inputs, report.faults, report.ms);
            (None, report.lines)
        }
        Err(failure) => (Some(failure.clone()), failure.lines),
    };
    if let Some(path) = trace.filter(|p| *p != "-")
        && let Err(error) = std::fs::write(path, lines.join("\n") + "\n")
    {
        eprintln!("{path}: {error}");
    }
    if let Some(failure) = &failure {
        describe(failure, &lines);
    }
    println!("{} passed, {} failed", u8::from(failure.is_none()), u8::from(failure.is_some()));
    failure.is_none()
}

fn describe(failure: &Failure, lines: &[String]) {
    println!("  {}", failure.label);
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        println!("  {line}");
    }
    println!("{}\n  {}", failure.summary, failure.message);
}

/// Many runs, and what came of them.
fn many(options: &Options) -> bool {
    let Options { plan, mutation, .. } = options;
    let mutation = *mutation;
    let mut shown = Instant::now();
    let mut long_reports = 0;
    let set_up = || broken::set(mutation);
    let summary = runner::run(plan, set_up, |so_far, seed, failure| {
        if let Some(failure) = failure {
            println!("FAILED seed {seed}: {}", failure.message);
            println!("  reproduce with: {}", command(options, seed, None));
            if long_reports < LONG_REPORTS {
                long_reports += 1;
                explain(options, seed, failure);
            }
        }
        if shown.elapsed() >= Duration::from_secs(5) {
            shown = Instant::now();
            eprintln!(
                "{} of {} seeds, {} failed, {:.1} seeds/s",
                so_far.runs(),
                plan.seeds,
                so_far.failed.len(),
                so_far.rate()
            );
        }
    });
    finish(&summary);
    summary.failed.is_empty()
}

/// The line that does the same again.
fn command(options: &Options, seed: u64, only: Option<&[usize]>) -> String {
    let Options { plan, mutation, .. } = options;
    let nodes = plan.nodes.map_or(String::new(), |n| format!(" --nodes {n}"));
    let protocol = if plan.protocol == PROTOCOL_MAX { String::new() } else { format!(" --protocol {}", plan.protocol) };
    let quorum = if plan.quorum { " --quorum" } else { "" };
    let mutation = mutation.map_or(String::new(), |m| format!(" --mutation {}", m.name()));
    let names: Vec<&str> = plan.kinds.iter().map(|k| Fault::KINDS[*k]).collect();
    let kinds = if names.is_empty() { String::new() } else { format!(" --kinds {}", names.join(",")) };
    let only = only.map_or(String::new(), |only| {
        let numbers: Vec<String> = only.iter().map(usize::to_string).collect();
        // Also none is a list.
        format!(" --only '{}'", numbers.join(","))
    });
    format!("cargo sim --seed {seed} --seeds 1{nodes}{protocol}{quorum}{kinds}{mutation}{only} --trace trace.txt")
}

/// The last events of a failing seed, and the faults that are enough.
fn explain(options: &Options, seed: u64, failure: &Failure) {
    let plan = &options.plan;
    let run = Run { record: Record::Ring, ..plan.run_of(seed) };
    if let Err(again) = capture(|| run.run()) {
        describe(&again, &again.lines);
    }
    let run = Run { record: Record::HashOnly, ..run };
    let enough = runner::minimise(&run, failure);
    println!("  {} of {} faults are enough: {}", enough.len(), run.plan().len(), command(options, seed, Some(&enough)));
    for (nr, planned) in run.plan().into_iter().filter(|(nr, _)| enough.contains(nr)) {
        println!("  fault {nr:>2} {planned}");
    }
}

fn finish(summary: &Summary) {
    println!("{}", summary.coverage);
    println!(
        "  a seed has a median of {} core inputs and {} faults; {:.1} seeds/s",
        median(&summary.inputs),
        median(&summary.faults),
        summary.rate()
    );
    println!("{} passed, {} failed", summary.passed, summary.failed.len());
}
