//! What one measurement says, and the median of several.

use serde::Serialize;

/// Latency of one kind of operation, in microseconds, from its submission to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

/// One measurement of one system under one load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Writes completed per second; flushes do not count.
    pub write_iops: f64,
    /// The writes' latency.
    pub write: Latency,
    /// The flushes' latency, where the load has them.
    pub flush: Option<Latency>,
}

/// The sample whose every figure is the median of that figure over `samples`; `None` of none.
pub fn median_sample(samples: &[Sample]) -> Option<Sample> {
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    let flushes: Vec<Latency> = samples.iter().filter_map(|sample| sample.flush).collect();
    let flush = median(flushes.iter().map(|flush| flush.mean_us))
        .zip(median(flushes.iter().map(|flush| flush.p99_us)))
        .map(|(mean_us, p99_us)| Latency { mean_us, p99_us });
    Some(Sample {
        write_iops: of(|sample| sample.write_iops)?,
        write: Latency { mean_us: of(|sample| sample.write.mean_us)?, p99_us: of(|sample| sample.write.p99_us)? },
        flush,
    })
}

/// The median: the middle value, or the mean of the two middle values; `None` of no values.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bench_median_of_odd_even_and_none() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median([7.0].into_iter()), Some(7.0));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn bench_median_sample_takes_each_figure_by_itself() {
        let sample = |iops, mean_us, flush: Option<f64>| Sample {
            write_iops: iops,
            write: Latency { mean_us, p99_us: mean_us * 2.0 },
            flush: flush.map(|mean_us| Latency { mean_us, p99_us: mean_us + 1.0 }),
        };
        let samples = [sample(10.0, 5.0, Some(1.0)), sample(30.0, 4.0, Some(3.0)), sample(20.0, 6.0, Some(2.0))];
        assert_eq!(median_sample(&samples), Some(sample(20.0, 5.0, Some(2.0))));
        assert_eq!(median_sample(&[]), None);
        assert_eq!(median_sample(&[sample(1.0, 1.0, None)]).unwrap().flush, None);
    }
}
