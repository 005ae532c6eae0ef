//! One run of the demo: what it says, how long it may take, whether it was interrupted.

use std::cell::Cell;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a wait looks again.
const PAUSE: Duration = Duration::from_millis(20);

/// What a look at something that is waited for found.
#[derive(Debug)]
pub(crate) enum Look<T> {
    /// It is there.
    Done(T),
    /// It is not there yet, and why.
    NotYet(String),
}

/// Console, clock and interruption of a run.
#[derive(Debug)]
pub(crate) struct Run {
    json: bool,
    begin: Cell<Instant>,
    limit: Cell<Duration>,
    interrupted: Arc<AtomicBool>,
}

impl Run {
    /// Begins a run without a limit. From here on SIGINT, SIGTERM and SIGHUP only make [`Run::check`] fail, so that what
    /// was set up is taken down again.
    pub(crate) fn begin(json: bool) -> Result<Run> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("cannot catch signals")?;
        }
        Ok(Run { json, begin: Cell::new(Instant::now()), limit: Cell::new(Duration::MAX), interrupted })
    }

    /// Sets the clock to zero; the run may take this long from now on.
    pub(crate) fn start_clock(&self, limit: Duration) {
        self.begin.set(Instant::now());
        self.limit.set(limit);
    }

    /// Since the clock started.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.get().elapsed()
    }

    /// Shows a line. Standard output is for the summary alone when that is for a machine.
    pub(crate) fn say(&self, text: impl Display) {
        let line = format!("[{:5.1} s] {text}", self.elapsed().as_secs_f64());
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }

    /// Fails when the run was interrupted or takes too long. Every wait asks.
    pub(crate) fn check(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        if self.elapsed() > self.limit.get() {
            bail!("the whole took longer than {:?}", self.limit.get());
        }
        Ok(())
    }

    /// Waits this long.
    pub(crate) fn pause(&self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.check()?;
            thread::sleep(PAUSE.min(end.saturating_duration_since(Instant::now())));
        }
        self.check()
    }

    /// Looks until something is there. The error says what was missing at the last look.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Look<T>>,
    ) -> Result<T> {
        let begin = Instant::now();
        loop {
            self.check()?;
            match look().with_context(|| what.to_owned())? {
                Look::Done(value) => return Ok(value),
                Look::NotYet(why) if begin.elapsed() >= limit => {
                    bail!("{what}: not within {limit:?}: {why}")
                }
                Look::NotYet(_) => thread::sleep(PAUSE),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_waits_are_bounded_and_say_what_was_missing() {
        let run = Run::begin(true).unwrap();
        let mut looks = 0;
        let third = run.wait_for("three", Duration::from_secs(5), || {
            looks += 1;
            Ok(if looks == 3 { Look::Done(looks) } else { Look::NotYet("early".into()) })
        });
        assert_eq!(third.unwrap(), 3);
        let never: Result<()> = run.wait_for("rain", Duration::ZERO, || Ok(Look::NotYet("blue sky".into())));
        assert_eq!(never.unwrap_err().to_string(), "rain: not within 0ns: blue sky");
    }

    #[test]
    fn demo_runs_end_by_themselves() {
        let run = Run::begin(true).unwrap();
        run.check().unwrap();
        run.start_clock(Duration::ZERO);
        thread::sleep(Duration::from_millis(1));
        assert!(run.pause(Duration::from_secs(60)).unwrap_err().to_string().contains("longer than"));
    }
}
