//! Faults that a test asks for: disk commands that fail without reaching the device.

use zea_core::io::{DiskCmd, DiskError};

/// Which commands fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Reads of data.
    Read,
    /// Writes, discards and zeroes of data.
    Write,
    /// Flushes.
    Flush,
    /// Reads of meta data.
    MetaRead,
    /// Writes of meta data.
    MetaWrite,
}

/// A fault of one backing device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which commands.
    pub kind: FaultKind,
    /// Commands of that kind that still succeed.
    pub after: u64,
    /// Commands that fail then; `u64::MAX` for all.
    pub times: u64,
    /// How they fail.
    pub error: DiskError,
}

impl Fault {
    /// Counts a command; says how it fails, if it does.
    pub(super) fn hits(&mut self, cmd: &DiskCmd) -> Option<DiskError> {
        let kind = match cmd {
            DiskCmd::Read { .. } | DiskCmd::ReadNew { .. } => FaultKind::Read,
            DiskCmd::Write { .. } | DiskCmd::Discard { .. } | DiskCmd::WriteZeroes { .. } => FaultKind::Write,
            DiskCmd::Flush => FaultKind::Flush,
            DiskCmd::MetaRead { .. } => FaultKind::MetaRead,
            DiskCmd::MetaWrite { .. } => FaultKind::MetaWrite,
        };
        if kind != self.kind {
            return None;
        }
        if self.after > 0 {
            self.after -= 1;
            return None;
        }
        if self.times == 0 {
            return None;
        }
        if self.times != u64::MAX {
            self.times -= 1;
        }
        Some(self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_fault_counts_only_its_kind() {
        let error = DiskError::Io(5);
        let mut fault = Fault { kind: FaultKind::Flush, after: 1, times: 2, error };
        let read = DiskCmd::ReadNew { sector: 0, len: 512 };
        let hits: Vec<_> = (0..5).map(|_| (fault.hits(&read), fault.hits(&DiskCmd::Flush))).collect();
        let (no, yes) = ((None, None), (None, Some(error)));
        assert_eq!(hits, [no, yes, yes, no, no]);
    }
}
