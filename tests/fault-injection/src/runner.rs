//! Many seeds at once: one world to a thread, on all cores.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use zea_core::limits::PROTOCOL_MAX;

use crate::coverage::Coverage;
use crate::random::{Report, Run};
use crate::report::{Failure, capture};

/// One in so many seeds runs twice and has to do the same both times.
const TWICE: u64 = 50;
/// The minimiser gives up after so many runs.
const MINIMISE_RUNS: u32 = 150;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The first seed.
    pub first: u64,
    /// How many seeds that follow each other.
    pub seeds: u64,
    /// Nodes of each cluster, else by the seed.
    pub nodes: Option<usize>,
    /// The highest protocol version that the nodes offer.
    pub protocol: u32,
    /// Seeds draw quorum.
    pub quorum: bool,
    /// Only faults of these kinds, by number in [`crate::plan::Fault::KINDS`]; empty: by the seed.
    pub kinds: Vec<usize>,
    /// No new seed begins after this time.
    pub stop_after: Option<Duration>,
    /// No new seed begins after so many failures.
    pub stop_after_failures: u64,
    /// Threads, 0: as many as there are cores.
    pub threads: usize,
}

impl Plan {
    /// A plan for these seeds.
    pub fn new(first: u64, seeds: u64) -> Plan {
        let stop_after_failures = u64::MAX;
        let (nodes, kinds, protocol) = (None, Vec::new(), PROTOCOL_MAX);
        let quorum = false;
        Plan { first, seeds, nodes, protocol, quorum, kinds, stop_after: None, stop_after_failures, threads: 0 }
    }

    /// The run of a seed.
    pub fn run_of(&self, seed: u64) -> Run {
        let Plan { nodes, protocol, quorum, .. } = *self;
        Run { nodes, protocol, quorum, kinds: self.kinds.clone(), ..Run::of(seed) }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds without a violation.
    pub passed: u64,
    /// The others, by seed.
    pub failed: Vec<(u64, Failure)>,
    /// Inputs of cores, by run.
    pub inputs: Vec<u64>,
    /// Faults, by run.
    pub faults: Vec<u64>,
    /// What was reached.
    pub coverage: Coverage,
    /// Wall-clock time.
    pub took: Duration,
}

impl Summary {
    fn add(&mut self, seed: u64, result: Result<Report, Box<Failure>>) {
        match result {
            Ok(report) => {
                self.passed += 1;
                self.inputs.push(report.inputs);
                self.faults.push(report.faults);
                self.coverage.merge(&report.coverage);
            }
            Err(failure) => self.failed.push((seed, *failure)),
        }
    }

    /// Seeds so far.
    pub fn runs(&self) -> u64 {
        self.passed + self.failed.len() as u64
    }

    /// Seeds each second.
    pub fn rate(&self) -> f64 {
        self.runs() as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// The middle one.
pub fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn run_seed(plan: &Plan, seed: u64) -> Result<Report, Box<Failure>> {
    let run = plan.run_of(seed);
    let report = capture(|| run.run())?;
    if seed.is_multiple_of(TWICE) && capture(|| run.run())? != report {
        let message = format!("[determinism] seed {seed} does something else when it runs again");
        return Err(Box::new(Failure { message, ..Failure::default() }));
    }
    Ok(report)
}

/// Runs the seeds of a plan. `set_up` is called on each thread before its first seed, `progress` after each seed.
pub fn run(
    plan: &Plan,
    set_up: impl Fn() + Sync,
    mut progress: impl FnMut(&Summary, u64, Option<&Failure>),
) -> Summary {
    let begin = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let threads = match plan.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let (results, arriving) = mpsc::channel();
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let results = results.clone();
            let (next, stop, set_up) = (&next, &stop, &set_up);
            scope.spawn(move || {
                set_up();
                loop {
                    let nr = next.fetch_add(1, Ordering::Relaxed);
                    let late = plan.stop_after.is_some_and(|limit| begin.elapsed() >= limit);
                    if nr >= plan.seeds || late || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = plan.first.wrapping_add(nr);
                    if results.send((seed, run_seed(plan, seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        for (seed, result) in arriving {
            let failed = result.is_err();
            summary.add(seed, result);
            summary.took = begin.elapsed();
            let failure = summary.failed.last().filter(|_| failed).map(|(_, failure)| failure);
            progress(&summary, seed, failure);
            if summary.failed.len() as u64 >= plan.stop_after_failures {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    summary.failed.sort_by_key(|(seed, _)| *seed);
    summary
}

/// The faults of a failing run without which it does not fail in the same way, as far as that can be found out soon.
pub fn minimise(run: &Run, failure: &Failure) -> Vec<usize> {
    let kind = failure.kind();
    let mut kept: Vec<usize> = run.plan().into_iter().map(|(nr, _)| nr).collect();
    let mut runs = 0;
    let mut size = kept.len().div_ceil(2);
    loop {
        let mut at = 0;
        while at < kept.len() && runs < MINIMISE_RUNS {
            let mut fewer = kept.clone();
            fewer.drain(at..(at + size).min(kept.len()));
            runs += 1;
            let again = Run { only: Some(fewer.clone()), ..run.clone() };
            if capture(|| again.run()).is_err_and(|f| f.kind() == kind) {
                kept = fewer;
            } else {
                at += size;
            }
        }
        if size <= 1 || runs >= MINIMISE_RUNS {
            return kept;
        }
        size = size.div_ceil(2);
    }
}
