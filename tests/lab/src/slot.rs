//! One scenario per CPU: a guest is several times slower if it moves between CPUs or shares one.

use std::fs::{File, TryLockError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::thread::sched_getaffinity;

/// How often a busy slot is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// A CPU that no other scenario of this machine uses, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    cpu: usize,
    _lock: File,
}

impl Slot {
    /// Waits for a CPU. There is no limit: others hold theirs for limited times, and a dead process holds none.
    pub(crate) fn take() -> Result<Slot> {
        let allowed = sched_getaffinity(None)?;
        let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        ensure!(!cpus.is_empty(), "no CPU is allowed");
        loop {
            for &cpu in &cpus {
                if let Some(lock) = try_lock(cpu)? {
                    return Ok(Slot { cpu, _lock: lock });
                }
            }
            thread::sleep(PAUSE);
        }
    }

    pub(crate) const fn cpu(&self) -> usize {
        self.cpu
    }
}

/// A file that all labs of this machine lock, whichever user made it.
pub(crate) fn lock_file(name: &str) -> Result<File> {
    let path = std::env::temp_dir().join(name);
    let file = File::open(&path).or_else(|_| File::create(&path));
    file.with_context(|| format!("cannot open {}", path.display()))
}

fn try_lock(cpu: usize) -> Result<Option<File>> {
    let file = lock_file(&format!("zea-lab-cpu-{cpu}.lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock CPU {cpu}")),
    }
}
