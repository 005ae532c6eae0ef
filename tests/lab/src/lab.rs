//! One lab: a network, its guests, Zea, a recording, and the files of all of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::disk;
use crate::guest::Guest;
use crate::initramfs;
use crate::kernel::{Kernel, Machine};
use crate::namespace::{HOST, Namespace, guest_address};
use crate::recording::{Packets, Recording};
use crate::slot::{self, Slot};
use crate::zead::Zead;

/// Begins the names of the folders of labs.
const FOLDER: &str = "zea-lab-";
/// The file that a living lab has locked.
const LOCK: &str = "lock";
/// A disk of a guest, meta data included, unless told otherwise: 16 MiB, as in the recordings.
const DISK_BYTES: u64 = 16 << 20;
const MEMORY_MIB: u32 = 512;
/// How long a guest has to say what it waits for.
const ANSWER: Duration = Duration::from_secs(30);
/// Shows where the threads of DRBD and of its disks are, and those that nothing can interrupt.
const WAITING: &str = "cat /proc/drbd
    for thread in /proc/[0-9]*; do
        case $(cat $thread/comm) in
            drbd*|kworker*drbd*) echo \"$(cat $thread/comm): $(cat $thread/wchan)\"; cat $thread/stack ;;
        esac
    done 2>/dev/null
    echo w >/proc/sysrq-trigger; dmesg | tail -n 60
    echo requests in flight on the disk, and after one more: $(cat /sys/block/ubda/inflight)
    dd if=/dev/ubda of=/dev/null bs=4k count=1 iflag=direct 2>&1; sleep 1; cat /sys/block/ubda/inflight /proc/drbd";
/// Packets that are shown of what was said last.
const SHOWN: usize = 120;

/// What a scenario works with. Everything in it ends when it is dropped.
#[derive(Debug)]
pub struct Lab {
    guests: BTreeMap<usize, Guest>,
    zead: Option<Zead>,
    recording: Recording,
    namespace: Namespace,
    kernel: Kernel,
    /// Programs of this machine that the guests get.
    programs: Vec<&'static str>,
    disk_bytes: u64,
    _lock: File,
    folder: TempDir,
    slot: Slot,
    begin: Instant,
    /// Steps and when they were done.
    steps: Vec<(String, Duration)>,
}

impl Lab {
    /// Sets a lab up.
    ///
    /// # Errors
    /// A tool or the kernel is missing, or the system does not allow it.
    pub fn new() -> Result<Lab> {
        let slot = Slot::take()?;
        let begin = Instant::now();
        let kernel = Kernel::find()?;
        let (folder, lock) = own_folder()?;
        let namespace = Namespace::new()?;
        let recording = Recording::begin(&namespace, folder.path())?;
        let (guests, zead, programs, steps) = (BTreeMap::new(), None, Vec::new(), Vec::new());
        let disk_bytes = DISK_BYTES;
        let mut lab = Lab {
            guests,
            zead,
            recording,
            namespace,
            kernel,
            programs,
            disk_bytes,
            _lock: lock,
            folder,
            slot,
            begin,
            steps,
        };
        lab.step("set up");
        Ok(lab)
    }

    /// The folder with everything of this lab.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Notes that a step is done.
    pub fn step(&mut self, name: &str) {
        self.steps.push((name.to_owned(), self.begin.elapsed()));
    }

    /// The steps that were noted, each with the time from the beginning.
    #[must_use]
    pub fn times(&self) -> String {
        let steps = self.steps.iter().map(|(name, at)| format!("{name} {:.1} s", at.as_secs_f64()));
        steps.collect::<Vec<_>>().join(", ")
    }

    /// Gives the guests a program of this machine, beside the tools of DRBD and busybox. Before the first boots.
    pub fn give(&mut self, program: &'static str) {
        self.programs.push(program);
    }

    /// Makes the disks of guests of another size. Before the first boots.
    pub fn set_disk_bytes(&mut self, bytes: u64) {
        self.disk_bytes = bytes;
    }

    /// The size of a guest's disk.
    #[must_use]
    pub const fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Boots guest number `number` (from 1 on) with `disks` disks. Disks that it had before are kept.
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn boot(&mut self, number: usize, disks: usize) -> Result<()> {
        let initramfs = self.folder().join("initramfs");
        if !initramfs.exists() {
            fs::write(&initramfs, initramfs::build(&self.kernel, &self.programs)?.bytes())?;
        }
        let name = format!("guest{number}");
        let folder = self.folder().join(&name);
        let tap = format!("tap{number}");
        if !folder.is_dir() {
            fs::create_dir(&folder)?;
            self.namespace.add_tap(&tap)?;
        }
        let disks: Vec<PathBuf> = (0..disks).map(|disk| self.disk(number, disk)).collect();
        for disk in disks.iter().filter(|disk| !disk.exists()) {
            disk::create(disk, self.disk_bytes)?;
        }
        let address = guest_address(number);
        let machine = Machine {
            name: &name,
            folder: &folder,
            memory_mib: MEMORY_MIB,
            initramfs: &initramfs,
            disks: &disks,
            tap: &tap,
            address: &format!("{address}/24"),
        };
        // A namespace of processes: all of them die with the first.
        let mut command = self.namespace.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        command.args(["taskset", "-c", &self.slot.cpu().to_string()]);
        self.kernel.boot(&mut command, &machine);
        self.guests.insert(number, Guest::boot(&name, &mut command)?);
        self.step(&format!("{name} booted"));
        Ok(())
    }

    /// A guest that was booted.
    pub fn guest(&mut self, number: usize) -> &mut Guest {
        self.guests.get_mut(&number).unwrap_or_else(|| panic!("guest {number} was not booted"))
    }

    /// Kills a guest, as if its power failed. Its disks stay.
    ///
    /// # Errors
    /// It does not die.
    pub fn kill_guest(&mut self, number: usize) -> Result<()> {
        self.guests.remove(&number).context("it was not booted")?.kill()?;
        self.step(&format!("guest{number} killed"));
        Ok(())
    }

    /// The image of a guest's disk, `/dev/ubda` being 0.
    #[must_use]
    pub fn disk(&self, guest: usize, disk: usize) -> PathBuf {
        self.folder().join(format!("guest{guest}/disk{disk}"))
    }

    /// Pulls the cable of a guest, or plugs it in again.
    ///
    /// # Errors
    /// It has none.
    pub fn set_cable(&self, number: usize, plugged: bool) -> Result<()> {
        self.namespace.set_cable(&format!("tap{number}"), plugged)
    }

    /// The address of this machine in the lab's network.
    #[must_use]
    pub const fn host_address(&self) -> &'static str {
        HOST
    }

    /// Starts zead as node 0; again after it was killed.
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn start_zead(&mut self) -> Result<()> {
        self.zead = Some(Zead::start(&self.namespace, self.folder())?);
        self.step("zead runs");
        Ok(())
    }

    /// Zead, which was started.
    pub fn zead(&mut self) -> &mut Zead {
        self.zead.as_mut().unwrap_or_else(|| panic!("zead was not started"))
    }

    /// Kills zead (SIGKILL).
    ///
    /// # Errors
    /// It was not started.
    pub fn kill_zead(&mut self) -> Result<()> {
        self.zead.take().context("it was not started")?.kill()?;
        self.step("zead killed");
        Ok(())
    }

    /// Ends the recording; returns what was said.
    ///
    /// # Errors
    /// Not everything in it could be decoded.
    pub fn packets(&mut self) -> Result<Packets> {
        let packets = self.recording.read()?;
        self.step(&format!("{} packets decoded", packets.0.len()));
        Ok(packets)
    }

    /// Compares the first `bytes` of two images.
    ///
    /// # Errors
    /// They differ: where.
    pub fn compare(&mut self, one: &Path, other: &Path, bytes: u64) -> Result<()> {
        disk::compare(one, other, bytes)?;
        self.step("compared");
        Ok(())
    }

    /// What a failed scenario has left: what was said last, and what each guest says of DRBD and of what waits in it.
    pub fn remains(&mut self) -> String {
        let mut text = String::new();
        for (number, guest) in &mut self.guests {
            let said = guest.try_run(ANSWER, WAITING).map_or_else(|error| format!("{error:#}"), |(said, _)| said);
            text.push_str(&format!("guest{number}:\n{said}"));
        }
        match self.recording.read() {
            Ok(packets) => text.push_str(&format!("said last:\n{}", packets.last(SHOWN))),
            Err(error) => text.push_str(&format!("{error:#}\n")),
        }
        text
    }

    /// Gives the console of a guest to a person.
    ///
    /// # Errors
    /// There is no guest.
    pub fn talk(&mut self) -> Result<()> {
        let guest = self.guests.values_mut().next().context("no guest runs")?;
        guest.talk()
    }
}

/// A folder, and the lock in it that says that somebody lives there.
pub(crate) fn own_folder() -> Result<(TempDir, File)> {
    // Nobody sweeps before the lock is held.
    let door = slot::lock_file("zea-lab.lock")?;
    door.lock()?;
    sweep();
    let folder = tempfile::Builder::new().prefix(FOLDER).tempdir()?;
    let lock = File::create(folder.path().join(LOCK))?;
    lock.lock()?;
    Ok((folder, lock))
}

/// Removes the folders of labs whose process had no time to.
fn sweep() {
    let folders = fs::read_dir(std::env::temp_dir()).into_iter().flatten().filter_map(Result::ok);
    for folder in folders.filter(|entry| entry.file_name().to_string_lossy().starts_with(FOLDER)) {
        let abandoned = File::open(folder.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if abandoned {
            // Another lab may be at it.
            let _ = fs::remove_dir_all(folder.path());
        }
    }
}
