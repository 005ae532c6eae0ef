//! A daemon that serves block devices is what the kernel waits for when it is short of memory and writes pages back: it must not
//! wait for that itself, be swapped out, or be the one that is killed.

use std::fs;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::configure_io_flusher_behavior;
use tracing::warn;

/// What the kernel never kills for want of memory.
const OOM_SCORE: &str = "-1000";

/// Protects the process, and the threads that this one starts from now on. What is not allowed is said, and left.
pub(super) fn protect() {
    // Memory that these threads ask for is never waited for by writing pages back.
    if let Err(error) = configure_io_flusher_behavior(true) {
        warn!("writing pages back may wait for itself when memory is short (PR_SET_IO_FLUSHER: {error})");
    }
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        warn!(
            "this process may be swapped out (mlockall: {error}); LimitMEMLOCK=infinity of systemd allows it to prevent that"
        );
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        warn!("this process may be killed when memory is short (oom_score_adj: {error})");
    }
}
