//! What a failing run leaves behind: the message of the panic, and what its world knew. On a thread that captures it is
//! kept, else it goes to standard error.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::world::World;

/// A run that went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// The violation.
    pub message: String,
    /// What kind of run it was.
    pub label: String,
    /// One line for each node.
    pub summary: String,
    /// What was recorded.
    pub lines: Vec<String>,
}

impl Failure {
    /// What two failures of the same kind have in common: the check, or what a panic says without its numbers.
    pub fn kind(&self) -> String {
        match self.message.split_once(']') {
            Some((check, _)) if check.starts_with('[') => format!("{check}]"),
            _ => self.message.chars().filter(|c| !c.is_ascii_digit()).take(60).collect(),
        }
    }
}

thread_local! {
    static CAPTURED: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let kept = CAPTURED.with_borrow_mut(|captured| {
                let Some(failure) = captured else { return false };
                let text = info.payload_as_str().unwrap_or("a panic without a message");
                let at = info.location().map_or(String::new(), |l| format!(" ({}:{})", l.file(), l.line()));
                failure.message = if text.starts_with('[') { text.to_owned() } else { format!("{text}{at}") };
                true
            });
            if !kept {
                default(info);
            }
        }));
    });
}

/// Runs something that may panic, and gives what it left behind.
///
/// # Errors
/// The failure.
pub fn capture<R>(run: impl FnOnce() -> R) -> Result<R, Box<Failure>> {
    install_hook();
    CAPTURED.set(Some(Failure::default()));
    let result = catch_unwind(AssertUnwindSafe(run));
    let failure = CAPTURED.take().unwrap_or_default();
    result.map_err(|_| Box::new(failure))
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let summary = self.summary();
        let kept = CAPTURED.with_borrow_mut(|captured| {
            let Some(failure) = captured else { return false };
            failure.label.clone_from(&self.label);
            failure.summary.clone_from(&summary);
            failure.lines = self.trace.lines().map(str::to_owned).collect();
            true
        });
        if !kept {
            for line in self.trace.lines() {
                eprintln!("{line}");
            }
            eprintln!("{}", self.label);
            eprintln!("seed {}, {} events, at {:.3} ms", self.seed, self.events, self.now as f64 / 1e6);
            eprintln!("{summary}");
        }
    }
}
