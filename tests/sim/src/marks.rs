//! Counts of rare things: a run that never meets them proves little.

use std::collections::BTreeMap;

/// Counters by name.
#[derive(Clone, Default, Debug)]
pub struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    /// Counts `n` more.
    pub fn add(&mut self, name: &'static str, n: u64) {
        *self.0.entry(name).or_default() += n;
    }

    /// Counts one more.
    pub fn hit(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Self) {
        for (name, n) in &other.0 {
            self.add(name, *n);
        }
    }

    /// How often.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

impl std::fmt::Display for Marks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, n) in &self.0 {
            writeln!(f, "{n:>12}  {name}")?;
        }
        Ok(())
    }
}
