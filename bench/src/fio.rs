//! fio as the client of an NBD export: its arguments and its JSON report.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::process::Interrupt;
use crate::sample::{Latency, Sample};

/// One fio run.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Operations in flight.
    pub depth: usize,
    /// Seconds that are measured.
    pub seconds: u64,
    /// Seconds before that, not measured.
    pub warm_up_seconds: u64,
    /// Whether a flush follows every write.
    pub flush: bool,
}

impl Job {
    /// Runs fio's nbd engine on the export at `uri`; the report is kept in `directory` meanwhile.
    ///
    /// # Errors
    /// fio cannot be run, fails, or reports an error.
    pub fn run(&self, uri: &str, directory: &Path, interrupt: &Interrupt) -> Result<Sample> {
        let report = directory.join("fio.json");
        let mut command = Command::new("fio");
        command.args(self.arguments(uri));
        command.arg(format!("--output={}", report.display()));
        interrupt.run(&mut command)?;
        let json = std::fs::read_to_string(&report)?;
        parse(&json, self.flush)
    }

    /// Random 4 KiB writes without fio's map of blocks not yet written.
    ///
    /// The flushes come from `--fsync=1`: fio 3.33's nbd engine refuses what `--fdatasync=1`
    /// issues (EINVAL), and NBD has but one flush for both.
    fn arguments(&self, uri: &str) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "--name=compare",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=4k",
            "--norandommap",
            "--time_based",
            "--lat_percentiles=1",
            "--clat_percentiles=0",
            "--output-format=json",
        ]
        .map(String::from)
        .into();
        arguments.push(format!("--uri={uri}"));
        arguments.push(format!("--iodepth={}", self.depth));
        arguments.push(format!("--runtime={}", self.seconds));
        arguments.push(format!("--ramp_time={}", self.warm_up_seconds));
        if self.flush {
            arguments.push("--fsync=1".into());
        }
        arguments
    }
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<JobReport>,
}

#[derive(Deserialize)]
struct JobReport {
    error: i32,
    write: WriteReport,
    sync: SyncReport,
}

#[derive(Deserialize)]
struct WriteReport {
    iops: f64,
    lat_ns: LatencyReport,
}

#[derive(Deserialize)]
struct SyncReport {
    total_ios: u64,
    lat_ns: LatencyReport,
}

#[derive(Deserialize)]
struct LatencyReport {
    #[serde(default)]
    mean: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

impl LatencyReport {
    fn latency(&self) -> Result<Latency> {
        let p99_ns = self.percentile.get("99.000000").context("fio reported no 99th percentile")?;
        Ok(Latency { mean_us: self.mean / 1e3, p99_us: p99_ns / 1e3 })
    }
}

/// Reads the JSON report of one job.
///
/// # Errors
/// No such report, a job that failed or wrote nothing, or no flushes though `flush` asked for them.
pub fn parse(json: &str, flush: bool) -> Result<Sample> {
    let report: Report = serde_json::from_str(json).context("read fio's report")?;
    let [job] = report.jobs.as_slice() else {
        anyhow::bail!("fio reported {} jobs, not one", report.jobs.len());
    };
    ensure!(job.error == 0, "fio's job failed with error {}", job.error);
    ensure!(job.write.iops > 0.0, "fio wrote nothing");
    ensure!(!flush || job.sync.total_ios > 0, "fio sent no flush though it was told to");
    Ok(Sample {
        write_iops: job.write.iops,
        write: job.write.lat_ns.latency()?,
        flush: flush.then(|| job.sync.lat_ns.latency()).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shaped as fio 3.33's report, with what is not read left out.
    fn report(error: i32, write_iops: f64, flushes: u64) -> String {
        let percentile = if flushes > 0 { r#", "percentile": {"50.000000": 90000, "99.000000": 400000}"# } else { "" };
        format!(
            r#"{{"fio version": "fio-3.33", "jobs": [{{"jobname": "compare", "error": {error},
            "write": {{"iops": {write_iops}, "lat_ns": {{"mean": 250500.0,
                "percentile": {{"50.000000": 240000, "99.000000": 900000}}}}}},
            "sync": {{"total_ios": {flushes}, "lat_ns": {{"mean": 100000.0{percentile}}}}}}}]}}"#
        )
    }

    #[test]
    fn bench_fio_report_is_read() {
        let sample = parse(&report(0, 3129.5, 10), true).unwrap();
        assert_eq!(sample.write_iops, 3129.5);
        assert_eq!(sample.write.mean_us, 250.5);
        assert_eq!(sample.write.p99_us, 900.0);
        let flush = sample.flush.unwrap();
        assert_eq!((flush.mean_us, flush.p99_us), (100.0, 400.0));
        assert_eq!(parse(&report(0, 3129.5, 0), false).unwrap().flush, None);
    }

    #[test]
    fn bench_fio_report_of_a_failure_is_refused() {
        assert!(parse("fio: connected to NBD server", false).is_err());
        assert!(parse(r#"{"jobs": []}"#, false).is_err());
        assert!(parse(&report(22, 3129.5, 10), true).is_err());
        assert!(parse(&report(0, 0.0, 10), true).is_err());
        assert!(parse(&report(0, 3129.5, 0), true).is_err());
    }
}
