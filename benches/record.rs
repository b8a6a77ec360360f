//! The lines that every program of the bench prints, and what `cargo xtask bench` collects.

use serde::{Deserialize, Serialize};

/// Samples of one thing, from one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Who was measured.
    #[serde(default)]
    pub system: String,
    /// What was measured.
    pub row: String,
    /// Bytes; 0 where there are none.
    #[serde(default)]
    pub size: u64,
    /// Others that were alive meanwhile.
    #[serde(default)]
    pub live: u64,
    /// Threads that did it; 0 where that has no meaning.
    #[serde(default)]
    pub threads: u64,
    /// Round in which the systems took turns, from 0.
    #[serde(default)]
    pub round: u32,
    /// Of the samples.
    pub unit: String,
    /// All that were taken.
    pub samples: Vec<f64>,
    /// When they were taken, in seconds, where that matters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<f64>,
}

impl Record {
    /// Without samples yet.
    pub fn new(system: &str, row: &str, unit: &str) -> Self {
        Self {
            system: system.to_owned(),
            row: row.to_owned(),
            size: 0,
            live: 0,
            threads: 0,
            round: 0,
            unit: unit.to_owned(),
            samples: Vec::new(),
            at: Vec::new(),
        }
    }

    /// Prints it for `cargo xtask bench`.
    ///
    /// # Errors
    /// Where a sample is no number.
    pub fn print(&self) -> serde_json::Result<()> {
        println!("bench {}", serde_json::to_string(self)?);
        Ok(())
    }
}
