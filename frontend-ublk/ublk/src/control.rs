//! The control device: one command at a time, through a small ring of its own.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::error::UblkError;
use crate::features::Features;
use crate::params::Limits;
use crate::uapi::{self, CtrlCmd, DevInfo, MAX_DEPTH, NO_QUEUE, Params};

/// The control device.
const PATH: &str = "/dev/ublk-control";
/// How long a command may take that waits for requests of the device, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
/// The driver chooses the number.
const ANY_DEVICE: u32 = u32::MAX;

/// What a device is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewDevice {
    /// Number; `None`: the lowest that is free.
    pub id: Option<u32>,
    /// Requests at once.
    pub depth: u16,
    /// Longest read or write in bytes.
    pub max_io_bytes: u32,
    /// A number that the driver keeps with the device, to know it again.
    pub tag: u64,
    /// Features beside those that every device has.
    pub features: Features,
}

/// How a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not started, or stopped.
    Dead,
    /// Served.
    Live,
    /// Its daemon is gone: requests wait for the next one.
    Quiesced,
    /// Likewise, and requests fail.
    FailIo,
}

/// What the driver knows of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Number.
    pub id: u32,
    /// Requests at once.
    pub depth: u16,
    /// How it is.
    pub state: State,
    /// Process that serves it, or did.
    pub pid: i32,
    /// Its features.
    pub features: Features,
    /// See [`NewDevice::tag`].
    pub tag: u64,
}

impl From<DevInfo> for Info {
    fn from(info: DevInfo) -> Info {
        let state = match info.state {
            1 => State::Live,
            2 => State::Quiesced,
            3 => State::FailIo,
            _ => State::Dead,
        };
        let (id, depth, pid, tag) = (info.device, info.depth, info.pid, info.tag);
        Info { id, depth, state, pid, features: Features(info.flags), tag }
    }
}

/// What the kernel made of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Its size in sectors of 512 bytes.
    pub size_sectors: u64,
}

/// The open control device.
pub struct Control {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    file: File,
    /// Commands so far: what a completion is known by, since one that took too long may still come.
    commands: u64,
    /// How long a command may take that waits for requests of the device.
    patience: Duration,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("commands", &self.commands).finish_non_exhaustive()
    }
}

impl Control {
    /// Opens the control device.
    ///
    /// # Errors
    /// There is none, or no right to it.
    pub fn open() -> Result<Control, UblkError> {
        let file = File::options().read(true).write(true).open(PATH).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => UblkError::NoRight(PATH),
            _ => UblkError::NoDriver,
        })?;
        let ring = IoUring::builder().dontfork().build(4).map_err(UblkError::Ring)?;
        Ok(Control { ring, file, commands: 0, patience: PATIENCE })
    }

    /// Waits for at most this long where requests of a device have to end.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Control {
        Control { patience, ..self }
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// The driver is too old to say (Linux 6.5).
    pub fn features(&mut self) -> Result<Features, UblkError> {
        let mut bits = 0_u64;
        match self.exchange(uapi::GET_FEATURES, "describe", 0, &mut bits) {
            Ok(_) => Ok(Features(bits)),
            Err(error) if error.errno() == Some(libc::EPERM) => Err(UblkError::NoRight(PATH)),
            Err(_) => Err(UblkError::TooOld { missing: "the command that tells its features".into() }),
        }
    }

    /// Makes a device, with one queue. It has no disk until it is started.
    ///
    /// # Errors
    /// The number is taken, or the driver cannot do it.
    pub fn add(&mut self, device: &NewDevice) -> Result<Info, UblkError> {
        assert!((1..=MAX_DEPTH).contains(&device.depth), "a queue of {}", device.depth);
        let id = device.id.unwrap_or(ANY_DEVICE);
        let flags = Features::OF_DEVICES.0 | device.features.0;
        let mut info = DevInfo {
            queues: 1,
            depth: device.depth,
            max_io_buf_bytes: device.max_io_bytes,
            device: id,
            flags,
            tag: device.tag,
            ..DevInfo::default()
        };
        self.exchange(uapi::ADD_DEV, "add", id, &mut info)?;
        let info = Info::from(info);
        if !info.features.has(Features(flags)) {
            self.delete(info.id)?;
            return Err(UblkError::TooOld { missing: Features(flags & !info.features.0).to_string() });
        }
        Ok(info)
    }

    /// Says what the disk of a device looks like, before it is started.
    ///
    /// # Errors
    /// The driver takes something for impossible.
    pub fn set_params(&mut self, id: u32, limits: &Limits) -> Result<(), UblkError> {
        self.exchange(uapi::SET_PARAMS, "set the parameters of", id, &mut limits.params()).map(drop)
    }

    /// The disk of a started device.
    ///
    /// # Errors
    /// There is no such device.
    pub fn disk(&mut self, id: u32) -> Result<Disk, UblkError> {
        let mut params = Params { len: uapi::PARAMS_LEN, ..Params::default() };
        self.exchange(uapi::GET_PARAMS, "read the parameters of", id, &mut params)?;
        let (major, minor) = (params.devt.disk_major, params.devt.disk_minor);
        Ok(Disk { major, minor, size_sectors: params.basic.dev_sectors })
    }

    /// What the driver knows of a device; `None`: there is none of this number.
    ///
    /// # Errors
    /// The driver does not say.
    pub fn info(&mut self, id: u32) -> Result<Option<Info>, UblkError> {
        let mut info = DevInfo::default();
        match self.exchange(uapi::GET_DEV_INFO, "look at", id, &mut info) {
            Ok(_) => Ok(Some(info.into())),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the disk of a device appear. Waits until each tag of its queue is served, and for a look for partitions.
    ///
    /// # Errors
    /// Nobody serves it.
    pub fn start(&mut self, id: u32) -> Result<(), UblkError> {
        self.order(uapi::START_DEV, "start", id, own_pid())
    }

    /// Makes the disk go away. Waits for requests under way; whoever still uses the disk gets errors.
    ///
    /// # Errors
    /// A request is not answered.
    pub fn stop(&mut self, id: u32) -> Result<(), UblkError> {
        self.order(uapi::STOP_DEV, "stop", id, 0)
    }

    /// Removes a stopped device. Waits until its queue is closed.
    ///
    /// # Errors
    /// It is not closed.
    pub fn delete(&mut self, id: u32) -> Result<(), UblkError> {
        self.order(uapi::DEL_DEV, "delete", id, 0)
    }

    /// Begins to take a device over whose daemon is gone: its queue can be opened again.
    ///
    /// # Errors
    /// Its daemon is not gone.
    pub fn start_recovery(&mut self, id: u32) -> Result<(), UblkError> {
        self.order(uapi::START_USER_RECOVERY, "take over", id, 0)
    }

    /// Requests come again, those first that the last daemon did not answer. Waits until each tag is served.
    ///
    /// # Errors
    /// Nobody serves it.
    pub fn end_recovery(&mut self, id: u32) -> Result<(), UblkError> {
        self.order(uapi::END_USER_RECOVERY, "go on with", id, own_pid())
    }

    /// Makes a started device larger or smaller ([`Features::UPDATE_SIZE`]).
    ///
    /// # Errors
    /// The driver cannot.
    pub fn update_size(&mut self, id: u32, size_sectors: u64) -> Result<(), UblkError> {
        self.order(uapi::UPDATE_SIZE, "resize", id, size_sectors)
    }

    /// A command that names no memory, so that it need not be waited for to the end.
    fn order(&mut self, op: u32, verb: &'static str, device: u32, value: u64) -> Result<(), UblkError> {
        let cmd = CtrlCmd { device, queue: NO_QUEUE, len: 0, addr: 0, value, path_len: 0, pad: 0, reserved: 0 };
        // SAFETY: it names no memory.
        match unsafe { self.run(op, &cmd, Some(self.patience)) } {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(UblkError::TimedOut { command: verb, device, seconds: self.patience.as_secs() }),
            Err(error) => Err(UblkError::Refused { command: verb, device, error }),
        }
    }

    /// A command with a structure that the driver reads, writes, or both.
    fn exchange<T: FromBytes + FromZeros + IntoBytes + Immutable>(
        &mut self,
        op: u32,
        command: &'static str,
        device: u32,
        with: &mut T,
    ) -> Result<i32, UblkError> {
        let (addr, len) = (std::ptr::from_mut(with) as u64, size_of::<T>() as u16);
        let cmd = CtrlCmd { device, queue: NO_QUEUE, len, addr, value: 0, path_len: 0, pad: 0, reserved: 0 };
        // SAFETY: `with` is borrowed until this returns, and without a limit that is after the completion; any bytes that
        // the driver writes are a value of its type.
        let done = unsafe { self.run(op, &cmd, None) };
        match done {
            Ok(result) => Ok(result.expect("waited for without a limit")),
            Err(error) => Err(UblkError::Refused { command, device, error }),
        }
    }

    /// Carries a command out; `None`: not within `limit`.
    ///
    /// # Safety
    /// Memory that the command names has to live until its completion: until this returns, where there is no limit.
    unsafe fn run(&mut self, op: u32, cmd: &CtrlCmd, limit: Option<Duration>) -> io::Result<Option<i32>> {
        self.commands += 1;
        let mut bytes = [0; 80];
        bytes[..size_of::<CtrlCmd>()].copy_from_slice(cmd.as_bytes());
        let entry = opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), op).cmd(bytes).build().user_data(self.commands);
        // SAFETY: the caller's, and the file is open as long as the ring.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            let waited = self.wait(end);
            for done in self.ring.completion() {
                if done.user_data() == self.commands {
                    let result = done.result();
                    return if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(Some(result)) };
                }
            }
            match waited {
                Ok(()) => {}
                // The kernel may have the command: its memory may not go.
                Err(error) if limit.is_none() && self.ring.submission().is_empty() => panic!("io_uring_enter: {error}"),
                Err(error) => return Err(error),
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
        }
    }

    /// Submits, and waits for a completion or the end of time.
    fn wait(&mut self, end: Option<Instant>) -> io::Result<()> {
        let submitted = match end {
            None => self.ring.submit_and_wait(1),
            Some(end) => {
                let left = Timespec::from(end.saturating_duration_since(Instant::now()));
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&left))
            }
        };
        match submitted {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn own_pid() -> u64 {
    u64::from(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ublk_without_a_driver_says_what_to_do() {
        if std::path::Path::new(PATH).exists() {
            return;
        }
        let error = Control::open().expect_err("there is no driver").to_string();
        assert!(error.contains("modprobe ublk_drv"), "{error}");
    }

    #[test]
    fn ublk_states_are_read() {
        let state = |state| Info::from(DevInfo { state, ..DevInfo::default() }).state;
        assert_eq!([0, 1, 2, 3].map(state), [State::Dead, State::Live, State::Quiesced, State::FailIo]);
    }
}
