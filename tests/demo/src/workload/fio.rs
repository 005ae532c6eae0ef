//! fio with verification: random writes whose every completed block is read back after the failover.
//!
//! The region is laid out first, so that no write needs metadata. Each lane is a job with one write in flight that visits
//! each block of a file of its own once, in an order that follows from its seed. How many writes of a lane completed
//! (`io_bytes`; a failed write is not in it) thus says which, and the same job with `verify_only` and that `io_size` reads
//! exactly those. Seed, offset and CRC of a block are in its header: an older content does not pass.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::process::{self, Process, command, last_lines};
use crate::run::Run;

const BLOCK_SIZE: u64 = 4096;
/// Jobs, and thereby writes in flight.
const LANES: usize = 4;
/// Writes per second and lane, so that the load outlasts the faults.
const LANE_RATE: u64 = 250;
/// How long fio may take for what it does to its end.
const LIMIT: Duration = Duration::from_secs(60);
/// How long fio may take to end after its device is gone.
const END: Duration = Duration::from_secs(15);

/// Where fio works and where it reports.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    /// Directory for the files, on the volume.
    files: PathBuf,
    /// Directory for jobs and reports, not on the volume.
    reports: PathBuf,
    lane_bytes: u64,
}

/// Blocks that completed, by lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Completed([u64; LANES]);

impl Completed {
    /// Blocks of all lanes.
    pub(crate) fn blocks(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Region {
    /// A region of `bytes`, which has its own directory on the file system.
    pub(crate) fn new(mount: &Path, reports: &Path, bytes: u64) -> Region {
        Region {
            files: mount.join("fio"),
            reports: reports.to_owned(),
            lane_bytes: bytes / LANES as u64 / BLOCK_SIZE * BLOCK_SIZE,
        }
    }

    /// Writes the region once from end to end, and makes that stable.
    pub(crate) fn lay_out(&self, run: &Run) -> Result<()> {
        std::fs::create_dir_all(&self.files)?;
        let job =
            self.job("rw=write\nbs=1M\nioengine=psync\ndirect=1\nend_fsync=1\nrandseed=1\n", |_| Some(String::new()));
        let report = self.run(run, "layout", &job)?;
        ensure!(report.jobs.iter().all(|job| job.error == 0), "fio could not write its files");
        Ok(())
    }

    /// Starts the random writes.
    pub(crate) fn start(&self) -> Result<FioLoad> {
        let job = self.job(&format!("{}do_verify=0\n", random_writes()), |_| Some(format!("rate_iops={LANE_RATE}\n")));
        let mut command = self.command("load", &job)?;
        let log = std::fs::File::create(self.reports.join("fio-load.log"))?;
        command.stdout(Stdio::null()).stderr(log);
        Ok(FioLoad { process: Process::spawn(&mut command)?, report: self.report_path("load") })
    }

    /// Reads back every block that completed; gives their number.
    pub(crate) fn verify(&self, run: &Run, completed: &Completed) -> Result<u64> {
        let job =
            self.job(&format!("{}verify_only=1\nverify_fatal=1\n", random_writes()), |lane| match completed.0[lane] {
                // For fio, a size of 0 is the whole file.
                0 => None,
                blocks => Some(format!("io_size={}\n", blocks * BLOCK_SIZE)),
            });
        if completed.blocks() == 0 {
            return Ok(0);
        }
        let report = self.run(run, "verify", &job)?;
        judge_verify(&report, completed)
    }

    fn job(&self, global: &str, lane_options: impl Fn(usize) -> Option<String>) -> String {
        let mut text = format!("[global]\nthread=1\nfallocate=none\n{global}");
        for lane in 0..LANES {
            if let Some(options) = lane_options(lane) {
                let file = self.files.join(format!("lane{lane}"));
                let _ = write!(text, "[lane{lane}]\nfilename={}\nsize={}\n{options}", file.display(), self.lane_bytes);
            }
        }
        text
    }

    fn report_path(&self, name: &str) -> PathBuf {
        self.reports.join(format!("fio-{name}.json"))
    }

    fn command(&self, name: &str, job: &str) -> Result<std::process::Command> {
        let path = self.reports.join(format!("{name}.fio"));
        std::fs::write(&path, job)?;
        let mut fio = command("fio");
        // fio leaves files behind in its working directory.
        fio.current_dir(&self.reports).args(["--output-format=json", "--output"]).arg(self.report_path(name)).arg(path);
        Ok(fio)
    }

    fn run(&self, run: &Run, name: &str, job: &str) -> Result<Report> {
        let output = process::output(run, &mut self.command(name, job)?, LIMIT)?;
        read_report(&self.report_path(name))
            .with_context(|| format!("fio {name} ({}): {}", output.status, last_lines(&output.stderr, 3)))
    }
}

fn random_writes() -> String {
    format!(
        "rw=randwrite\nbs={BLOCK_SIZE}\nioengine=psync\ndirect=1\nrandseed=20\nverify=crc32c\nverify_state_save=0\n"
    )
}

/// fio's random writes.
#[derive(Debug)]
pub(crate) struct FioLoad {
    process: Process,
    report: PathBuf,
}

impl FioLoad {
    /// True once every block of the region is written.
    pub(crate) fn is_done(&mut self) -> Result<bool> {
        match self.process.ended()? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => bail!("fio ended with {status} while its device was fine"),
        }
    }

    /// Waits for the end of fio, whose device is gone; gives what completed before.
    pub(crate) fn wait_broken(mut self, run: &Run) -> Result<Completed> {
        let status = self.process.wait(END, || run.check())?;
        status.context("fio outlives its device")?;
        completed(&read_report(&self.report)?)
    }
}

/// fio's report, as far as it matters.
#[derive(Debug, Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    jobname: String,
    error: i32,
    read: Direction,
    write: Direction,
}

#[derive(Debug, Deserialize)]
struct Direction {
    io_bytes: u64,
    total_ios: u64,
}

impl Job {
    fn lane(&self) -> Result<usize> {
        let lane = self.jobname.strip_prefix("lane").and_then(|nr| nr.parse().ok());
        lane.filter(|&lane| lane < LANES).with_context(|| format!("fio reports a job {:?}", self.jobname))
    }
}

fn read_report(path: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("fio left no report at {}", path.display()))?;
    parse_report(&text)
}

fn parse_report(text: &str) -> Result<Report> {
    // Lines about errors may be ahead of it.
    let json = text.find('{').map(|at| &text[at..]);
    serde_json::from_str(json.context("fio's report is empty")?).context("fio's report is not what it should be")
}

fn completed(report: &Report) -> Result<Completed> {
    let mut completed = Completed([0; LANES]);
    for job in &report.jobs {
        ensure!(job.write.io_bytes.is_multiple_of(BLOCK_SIZE), "fio completed a part of a block");
        completed.0[job.lane()?] = job.write.io_bytes / BLOCK_SIZE;
    }
    Ok(completed)
}

/// Every block must have been read, and found right.
fn judge_verify(report: &Report, wanted: &Completed) -> Result<u64> {
    let mut read = Completed([0; LANES]);
    for job in &report.jobs {
        ensure!(job.error == 0, "fio found a wrong block in {} (error {})", job.jobname, job.error);
        read.0[job.lane()?] = job.read.total_ios;
    }
    ensure!(read == *wanted, "fio verified {:?} blocks where {:?} had completed", read.0, wanted.0);
    Ok(read.blocks())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(jobs: &[(&str, i32, u64, u64)]) -> Report {
        let jobs = jobs.iter().map(|&(name, error, written, read)| {
            serde_json::json!({
                "jobname": name, "error": error, "extra": {},
                "write": {"io_bytes": written, "total_ios": written / BLOCK_SIZE, "iops": 1.5},
                "read": {"io_bytes": read * BLOCK_SIZE, "total_ios": read},
            })
        });
        let value = serde_json::json!({"fio version": "fio-3.33", "jobs": jobs.collect::<Vec<_>>()});
        parse_report(&format!("fio: io_u error\n{value}")).unwrap()
    }

    #[test]
    fn demo_fio_completed_blocks_are_counted_by_lane() {
        let done = completed(&report(&[("lane0", 5, 8192, 0), ("lane3", 0, 4096, 0), ("lane1", 5, 0, 0)])).unwrap();
        assert_eq!((&done, done.blocks()), (&Completed([2, 0, 0, 1]), 3));
        assert!(completed(&report(&[("lane0", 0, 4097, 0)])).is_err());
        assert!(completed(&report(&[("lane4", 0, 0, 0)])).is_err());
        assert!(completed(&report(&[("other", 0, 0, 0)])).is_err());
        assert!(parse_report("fio: killed").is_err());
    }

    #[test]
    fn demo_fio_verify_needs_every_block() {
        let wanted = Completed([2, 0, 1, 0]);
        let good = report(&[("lane0", 0, 0, 2), ("lane2", 0, 0, 1)]);
        assert_eq!(judge_verify(&good, &wanted).unwrap(), 3);
        for bad in [
            report(&[("lane0", 84, 0, 2), ("lane2", 0, 0, 1)]),
            report(&[("lane0", 0, 0, 1), ("lane2", 0, 0, 1)]),
            report(&[("lane0", 0, 0, 2)]),
        ] {
            assert!(judge_verify(&bad, &wanted).is_err());
        }
    }

    #[test]
    fn demo_fio_jobs_have_a_file_per_lane() {
        let region = Region::new(Path::new("/m"), Path::new("/r"), 1 << 20);
        let job = region.job("rw=write\n", |lane| (lane != 1).then(|| format!("io_size={lane}\n")));
        assert!(job.contains("[lane3]\nfilename=/m/fio/lane3\nsize=262144\nio_size=3\n"));
        assert!(!job.contains("lane1"));
    }
}
