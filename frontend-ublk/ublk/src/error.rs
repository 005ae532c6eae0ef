//! What can go wrong, and what to do about it.

use std::io;

use thiserror::Error;

/// Why there is no device, or not the wanted one.
#[derive(Debug, Error)]
pub enum UblkError {
    /// No control device.
    #[error(
        "there is no /dev/ublk-control: load the driver (modprobe ublk_drv); Linux has it since 6.0, where CONFIG_BLK_DEV_UBLK \
         is set, and in a container the device has to be passed in"
    )]
    NoDriver,
    /// No rights on it.
    #[error("no right to use {0}: block devices take root (CAP_SYS_ADMIN)")]
    NoRight(&'static str),
    /// No io_uring with large submissions.
    #[error(
        "no ring for commands to the ublk driver: {0}; it takes Linux 5.19 and io_uring (sysctl kernel.io_uring_disabled)"
    )]
    Ring(io::Error),
    /// The driver lacks something that all devices take.
    #[error("the ublk driver of this kernel lacks {missing}: Linux 6.6 or newer is needed")]
    TooOld {
        /// The features.
        missing: String,
    },
    /// A command failed.
    #[error("the ublk driver refuses to {command} device {device}: {error}")]
    Refused {
        /// What was asked for, a verb.
        command: &'static str,
        /// Device number.
        device: u32,
        /// What it said.
        error: io::Error,
    },
    /// A command took too long. It goes on in the kernel.
    #[error(
        "the ublk driver did not {command} device {device} within {seconds} s: something waits in it, such as a request whose \
         answer does not come (is I/O suspended?)"
    )]
    TimedOut {
        /// What was asked for, a verb.
        command: &'static str,
        /// Device number.
        device: u32,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The queue cannot be opened.
    #[error("cannot open the queue of ublk device {device}: {error}")]
    Queue {
        /// Device number.
        device: u32,
        /// What the system said.
        error: io::Error,
    },
}

impl UblkError {
    /// The system's number of what a command came to.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            UblkError::Refused { error, .. } | UblkError::Queue { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }
}
