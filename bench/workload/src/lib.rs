//! Deterministic load patterns and the verifying oracle, shared by benchmarks and simulator.
