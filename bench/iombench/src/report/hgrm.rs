//! Percentiles in the text format that HdrHistogram's plotters read.
//!
//! The format is that of `AbstractHistogram.outputPercentileDistribution` of the Java library
//! (HdrHistogram project); values are in microseconds here.

use hdrhistogram::Histogram;
use std::fmt::Write;

/// Lines per halving of the distance to 100 %.
const TICKS: u32 = 5;
const NS_PER_UNIT: f64 = 1e3;

/// The text for a histogram of nanoseconds.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NS_PER_UNIT;
        let quantile = step.quantile_iterated_to();
        let _ = write!(text, "{value:12.3} {quantile:2.12} {total:10}");
        if quantile < 1.0 {
            let _ = write!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let (mean, deviation) = (histogram.mean() / NS_PER_UNIT, histogram.stdev() / NS_PER_UNIT);
    let _ = writeln!(text, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let (max, count) = (histogram.max() as f64 / NS_PER_UNIT, histogram.len());
    let _ = writeln!(text, "#[Max     = {max:12.3}, Total count    = {count:12}]");
    let sub_buckets = 2u64 << (10f64.powi(histogram.sigfig().into()).log2().ceil() as u32);
    let buckets = (histogram.high() as f64 / sub_buckets as f64).log2().ceil() as u32 + 1;
    let _ = writeln!(text, "#[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram() -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 600_000_000_000, 3).unwrap();
        for value in 1..=10_000u64 {
            histogram.record(value * 1000).unwrap();
        }
        histogram
    }

    #[test]
    fn columns_are_those_of_the_format() {
        let text = hgrm(&histogram());
        let mut lines = text.lines();
        assert!(lines.next().unwrap().ends_with("Percentile TotalCount 1/(1-Percentile)"));
        assert_eq!(lines.next(), Some(""));
        let rows: Vec<Vec<f64>> = lines
            .clone()
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect())
            .collect();
        for pair in rows.windows(2) {
            assert!(
                pair[0][0] <= pair[1][0] && pair[0][1] < pair[1][1] && pair[0][2] <= pair[1][2]
            );
        }
        let (last, others) = rows.split_last().unwrap();
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 10_000.0));
        for row in others {
            assert!((row[3] - 1.0 / (1.0 - row[1])).abs() <= row[3] * 0.01 + 0.01, "{row:?}");
        }
        let median = rows.iter().find(|row| row[1] >= 0.5).unwrap();
        assert!((median[0] - 5000.0).abs() < 10.0, "{median:?}");
    }

    #[test]
    fn the_end_sums_up() {
        let text = hgrm(&histogram());
        let end: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
        assert_eq!(end.len(), 3);
        assert!(end[0].starts_with("#[Mean    =     5000."), "{}", end[0]);
        assert!(end[1].ends_with("Total count    =        10000]"), "{}", end[1]);
        assert!(end[2].ends_with("SubBuckets     =         2048]"), "{}", end[2]);
    }
}
