//! The tables a comparison prints: medians, and ratios between systems.

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

use crate::sample::{Sample, median, median_sample};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// The composed floor.
    Floor,
    /// Two `zead`.
    Zea,
    /// Two `qemu-storage-daemon`, quorum driver.
    Qemu,
}

impl System {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Zea => "Zea",
            Self::Qemu => "qemu",
        }
    }
}

/// One load: a row of the ratio table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Operations in flight.
    pub depth: usize,
    /// Whether a flush follows every write.
    pub flush: bool,
}

impl Load {
    /// The name in tables.
    pub fn name(self) -> String {
        let flush = if self.flush { "flush" } else { "no flush" };
        format!("depth {}, {flush}", self.depth)
    }
}

/// Everything measured under one load; sample `i` of every system is from round `i`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The load.
    pub load: Load,
    /// Each system's samples, in the order of the rounds.
    pub systems: Vec<(System, Vec<Sample>)>,
}

impl Row {
    fn samples(&self, system: System) -> &[Sample] {
        let found = self.systems.iter().find(|(other, _)| *other == system);
        found.map_or(&[], |(_, samples)| samples)
    }

    /// How many times the writes per second of `over` `system` did, taken round by round because
    /// the machine drifts. `None` if one of the two was not measured.
    pub fn ratio(&self, system: System, over: System) -> Option<Ratio> {
        let pairs = self.samples(system).iter().zip(self.samples(over));
        let ratios = pairs.map(|(sample, other)| sample.write_iops / other.write_iops);
        Some(Ratio {
            median: median(ratios.clone())?,
            lowest: ratios.clone().reduce(f64::min)?,
            highest: ratios.reduce(f64::max)?,
        })
    }
}

/// A ratio over the rounds of a run. Where lowest and highest are far apart, something else on the
/// machine was measured too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The median of the rounds.
    pub median: f64,
    /// The lowest of them.
    pub lowest: f64,
    /// The highest of them.
    pub highest: f64,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { median, lowest, highest } = self;
        write!(f, "{median:.2} ({lowest:.2} to {highest:.2})")
    }
}

/// The table of medians, in Markdown.
pub fn median_table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "load",
        "system",
        "writes/s",
        "write mean us",
        "write p99 us",
        "flush mean us",
        "flush p99 us",
    ]);
    for row in rows {
        for (system, samples) in &row.systems {
            let Some(sample) = median_sample(samples) else {
                continue;
            };
            let flush = |figure: fn(&crate::sample::Latency) -> f64| {
                let figure = sample.flush.as_ref().map(figure);
                figure.map_or("-".into(), |figure| format!("{figure:.0}"))
            };
            table.add_row([
                row.load.name(),
                system.name().into(),
                format!("{:.0}", sample.write_iops),
                format!("{:.0}", sample.write.mean_us),
                format!("{:.0}", sample.write.p99_us),
                flush(|flush| flush.mean_us),
                flush(|flush| flush.p99_us),
            ]);
        }
    }
    table.to_string()
}

/// The table of ratios of writes per second, in Markdown: median, lowest and highest of the rounds,
/// and only of what was measured.
pub fn ratio_table(rows: &[Row]) -> String {
    let ratios = [(System::Zea, System::Qemu), (System::Zea, System::Floor), (System::Qemu, System::Floor)];
    let measured: Vec<_> = ratios
        .into_iter()
        .filter(|(system, over)| rows.iter().any(|row| row.ratio(*system, *over).is_some()))
        .collect();
    let mut table = Table::new();
    let mut header = vec!["load".to_owned()];
    header.extend(measured.iter().map(|(system, over)| format!("{}/{}", system.name(), over.name())));
    table.load_style(ASCII_MARKDOWN).set_header(header);
    for row in rows {
        let mut cells = vec![row.load.name()];
        cells.extend(measured.iter().map(|(system, over)| {
            let ratio = row.ratio(*system, *over);
            ratio.map_or("-".into(), |ratio| ratio.to_string())
        }));
        table.add_row(cells);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Latency;

    fn samples(iops: [f64; 3]) -> Vec<Sample> {
        let latency = Latency { mean_us: 50.0, p99_us: 99.0 };
        let sample = |write_iops| Sample { write_iops, write: latency, flush: None };
        iops.map(sample).into()
    }

    fn row() -> Row {
        Row {
            load: Load { depth: 16, flush: false },
            systems: vec![(System::Floor, samples([10.0, 20.0, 40.0])), (System::Qemu, samples([5.0, 5.0, 30.0]))],
        }
    }

    #[test]
    fn bench_ratio_is_taken_round_by_round() {
        let ratio = row().ratio(System::Qemu, System::Floor).unwrap();
        assert_eq!((ratio.median, ratio.lowest, ratio.highest), (0.5, 0.25, 0.75));
        assert_eq!(row().ratio(System::Floor, System::Qemu).unwrap().median, 2.0);
        assert_eq!(row().ratio(System::Zea, System::Floor), None);
    }

    #[test]
    fn bench_ratio_table_has_only_what_was_measured() {
        let table = ratio_table(&[row()]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("qemu/floor") && !lines[0].contains("Zea"));
        assert!(lines[2].contains("depth 16, no flush") && lines[2].contains("0.50 (0.25 to 0.75)"));
    }

    #[test]
    fn bench_median_table_shows_the_median() {
        let table = median_table(&[row()]);
        let floor = table.lines().find(|line| line.contains("floor")).unwrap();
        assert!(floor.contains("20") && floor.contains("99") && floor.contains('-'));
    }
}
