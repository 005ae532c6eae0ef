//! What the driver of this kernel can do.

use std::fmt;

use crate::error::UblkError;

/// A set of the driver's features, by its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(pub u64);

/// Names by bit, as in the driver's header.
const NAMES: [&str; 21] = [
    "zero-copy",
    "complete-in-task",
    "need-get-data",
    "user-recovery",
    "user-recovery-reissue",
    "unprivileged",
    "ioctl-encode",
    "user-copy",
    "zoned",
    "user-recovery-fail-io",
    "update-size",
    "auto-buf-reg",
    "quiesce",
    "per-io-daemon",
    "buf-reg-off-daemon",
    "batch-io",
    "integrity",
    "safe-stop-dev",
    "no-auto-part-scan",
    "shmem-zc",
    "io-desc-size",
];

impl Features {
    /// The device stays when its daemon dies.
    pub const USER_RECOVERY: Features = Features(1 << 3);
    /// And what the daemon had is given to the next one.
    pub const USER_RECOVERY_REISSUE: Features = Features(1 << 4);
    /// Commands are numbered as ioctls are.
    pub const IOCTL_ENCODE: Features = Features(1 << 6);
    /// Data is copied by reading and writing the character device.
    pub const USER_COPY: Features = Features(1 << 7);
    /// A device can grow.
    pub const UPDATE_SIZE: Features = Features(1 << 10);
    /// A device can be started without a look for partitions.
    pub const NO_AUTO_PART_SCAN: Features = Features(1 << 18);

    /// What each device of Zea has.
    pub const OF_DEVICES: Features = Features(
        Features::USER_RECOVERY.0
            | Features::USER_RECOVERY_REISSUE.0
            | Features::IOCTL_ENCODE.0
            | Features::USER_COPY.0,
    );

    /// All of `other` are there.
    #[must_use]
    pub const fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// That what devices take is there.
    ///
    /// # Errors
    /// [`UblkError::TooOld`] with what is missing.
    pub fn check(self) -> Result<(), UblkError> {
        let missing = Features(Features::OF_DEVICES.0 & !self.0);
        if missing.0 == 0 { Ok(()) } else { Err(UblkError::TooOld { missing: missing.to_string() }) }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for bit in (0..64).filter(|bit| self.0 >> bit & 1 == 1) {
            let gap = if first { "" } else { " " };
            first = false;
            match NAMES.get(bit) {
                Some(name) => write!(f, "{gap}{name}")?,
                None => write!(f, "{gap}bit-{bit}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ublk_features_are_named() {
        // Linux 6.12 of Debian.
        let six = Features(0x1fe);
        assert!(six.check().is_ok() && !six.has(Features::UPDATE_SIZE));
        assert_eq!(Features(0x480).to_string(), "user-copy update-size");
        assert_eq!(Features(1 << 40).to_string(), "bit-40");
        // Linux 6.5: no copies by file offset.
        let error = Features(0x7e).check().expect_err("too old");
        assert!(error.to_string().contains("user-copy"), "{error}");
    }
}
