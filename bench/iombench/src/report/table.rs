//! A table that a person can read.

use super::PERCENTILES;
use crate::run::Outcome;
use crate::tally::{DIGITS, Side};
use crate::units::{latency, size};
use std::fmt::Write;

/// The table of all workloads.
pub fn table(target: &str, target_size: u64, outcomes: &[Outcome]) -> String {
    let mut text = format!("{target}: {}\n\n", size(target_size as f64));
    let mut heading = format!("{:<34}{:>10}{:>13}", "workload", "IOPS", "throughput");
    for name in PERCENTILES.iter().map(|(name, _)| *name).chain(["max", "mean"]) {
        let _ = write!(heading, "{name:>9}");
    }
    text.push_str(&heading);
    text.push('\n');
    for outcome in outcomes {
        let several = outcome.tally.sides().count() > 1;
        for (name, side) in outcome.tally.sides() {
            text.push_str(&line(outcome, if several { name } else { "" }, side));
        }
        text.push_str(&cost(outcome));
    }
    let error = 1.0 / 10f64.powi(i32::from(DIGITS)) * 100.0;
    let _ = writeln!(text, "\nLatencies have an error of at most {error:.1} %.");
    text
}

fn line(outcome: &Outcome, side_name: &str, side: &Side) -> String {
    let job = &outcome.job;
    let block = size(f64::from(job.block_size)).replace(' ', "");
    let streams = if job.connections > 1 { format!("x{}", job.connections) } else { String::new() };
    let label = format!("{} {block} depth {}{streams} {side_name}", job.rw.name(), job.depth);
    let seconds = outcome.elapsed_ns as f64 / 1e9;
    let iops = side.operations() as f64 / seconds;
    let throughput = format!("{}/s", size((side.bytes as f64 / seconds).round()));
    let mut text = format!("{label:<34}{iops:>10.0}{throughput:>13}");
    for (_, percentile) in PERCENTILES {
        let value = side.latency.value_at_quantile(percentile / 100.0);
        let _ = write!(text, "{:>9}", latency(value as f64).replace(' ', ""));
    }
    for value in [side.latency.max() as f64, side.latency.mean()] {
        let _ = write!(text, "{:>9}", latency(value).replace(' ', ""));
    }
    text.push('\n');
    text
}

fn cost(outcome: &Outcome) -> String {
    let operations: u64 = outcome.tally.sides().map(|(_, side)| side.operations()).sum();
    let cpu_ns = outcome.user_ns + outcome.system_ns;
    let per_operation = cpu_ns as f64 / operations.max(1) as f64;
    format!(
        "    {operations} requests in {:.1} s; client CPU {:.2} s, {} per request\n",
        outcome.elapsed_ns as f64 / 1e9,
        cpu_ns as f64 / 1e9,
        latency(per_operation)
    )
}
