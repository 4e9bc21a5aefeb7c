//! What a run tells: a table for people, JSON, percentiles as text, a drawing.

pub mod hgrm;
pub mod json;
pub mod plot;
pub mod table;

/// The percentiles of every report.
pub const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)];
