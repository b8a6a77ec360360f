//! Samples by what they are samples of.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::Record;

/// What was measured of whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Key {
    /// Who.
    pub system: String,
    /// What.
    pub row: String,
    /// Bytes; 0 where there are none.
    pub size: u64,
    /// Others alive meanwhile.
    pub live: u64,
    /// Threads that did it; 0 where that has no meaning.
    pub threads: u64,
}

impl Key {
    /// Without size, others and threads.
    pub fn new(system: &str, row: &str) -> Self {
        Self {
            system: system.to_owned(),
            row: row.to_owned(),
            size: 0,
            live: 0,
            threads: 0,
        }
    }

    /// Of this size.
    #[must_use]
    pub fn size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// Beside so many others.
    #[must_use]
    pub fn live(self, live: u64) -> Self {
        Self { live, ..self }
    }

    /// By so many threads.
    #[must_use]
    pub fn threads(self, threads: u64) -> Self {
        Self { threads, ..self }
    }
}

/// Samples of one thing, all rounds together, sorted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    /// Of each.
    pub unit: String,
    sorted: Vec<f64>,
}

impl Samples {
    /// How many.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The value that `part` (0 to 1) of the samples lie below.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let last = self.sorted.len().checked_sub(1)?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let at = (last as f64 * part).round() as usize;
        self.sorted.get(at.min(last)).copied()
    }

    /// The middle one.
    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }
}

/// Samples over time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Course {
    /// Seconds, and what was then.
    pub points: Vec<(f64, f64)>,
}

/// One run of the bench.
#[derive(Debug, Clone, Default)]
pub struct Data {
    /// Where and when, for people.
    pub about: BTreeMap<String, Value>,
    /// What each system is.
    pub systems: BTreeMap<String, String>,
    /// Why a system has no, or no further, figures.
    pub missing: Vec<(String, String)>,
    /// Rows that are a course of time.
    pub courses: BTreeMap<Key, Course>,
    samples: BTreeMap<Key, Samples>,
}

/// A line of the file of records.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Record(Record),
    About { about: BTreeMap<String, Value> },
    System { system: String, is: String },
    Missing { system: String, missing: String },
}

/// A blob created, mapped, and each of its pages touched: the sum of the two rows, blob by blob.
pub const READY: &str = "ready";

impl Data {
    /// Reads the file of records. The first round of what has several is not used: it warms up.
    ///
    /// # Errors
    /// Where a line is none of those that the bench writes.
    pub fn parse(text: &str) -> Result<Self> {
        let mut data = Self::default();
        let mut records = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let line =
                serde_json::from_str(line).with_context(|| format!("no record: {line:.80}"))?;
            match line {
                Line::Record(record) => records.push(record),
                Line::About { about } => data.about = about,
                Line::System { system, is } => drop(data.systems.insert(system, is)),
                Line::Missing { system, missing } => data.missing.push((system, missing)),
            }
        }
        let ready = ready(&records);
        records.extend(ready);
        let mut last: BTreeMap<Key, u32> = BTreeMap::new();
        for record in &records {
            let round = last.entry(key(record)).or_default();
            *round = record.round.max(*round);
        }
        for record in records {
            let key = key(&record);
            if !record.at.is_empty() {
                let points: Vec<_> = record.at.into_iter().zip(record.samples).collect();
                for (name, value) in ends(&points) {
                    let samples = Samples {
                        unit: "MiB".to_owned(),
                        sorted: vec![value / MIB],
                    };
                    let row = format!("{} {name}", key.row);
                    data.samples.insert(Key { row, ..key.clone() }, samples);
                }
                data.courses.insert(key, Course { points });
            } else if record.round > 0 || last.get(&key) == Some(&0) {
                let samples = data.samples.entry(key).or_default();
                samples.unit = record.unit;
                samples.sorted.extend(record.samples);
            }
        }
        for samples in data.samples.values_mut() {
            samples.sorted.sort_by(f64::total_cmp);
        }
        Ok(data)
    }

    /// Of one thing.
    pub fn get(&self, key: &Key) -> Option<&Samples> {
        self.samples.get(key)
    }

    /// Of one thing.
    pub fn median(&self, key: &Key) -> Option<f64> {
        self.get(key)?.median()
    }

    /// All that was measured of a row, in order.
    pub fn of_row<'a>(&'a self, row: &'a str) -> impl Iterator<Item = (&'a Key, &'a Samples)> {
        self.samples.iter().filter(move |(key, _)| key.row == row)
    }

    /// Medians of a system's rows whose names begin like this, by the rest of the name.
    pub fn summary_of<'a>(
        &'a self,
        system: &'a str,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, f64)> {
        let of_system = self
            .samples
            .iter()
            .filter(move |(key, _)| key.system == system);
        of_system.filter_map(move |(key, samples)| {
            Some((key.row.strip_prefix(prefix)?, samples.median()?))
        })
    }

    /// For machines.
    pub fn summaries(&self) -> Vec<Value> {
        let summary = |(key, samples): (&Key, &Samples)| {
            serde_json::json!({
                "system": key.system, "row": key.row, "size": key.size, "live": key.live, "threads": key.threads,
                "unit": samples.unit, "count": samples.count(), "median": samples.median(),
                "p10": samples.quantile(0.1), "p90": samples.quantile(0.9), "p99": samples.quantile(0.99),
            })
        };
        self.samples.iter().map(summary).collect()
    }
}

const MIB: f64 = 1048576.0;

/// The highest value of a course, and the last.
fn ends(points: &[(f64, f64)]) -> Vec<(&'static str, f64)> {
    let highest = points
        .iter()
        .map(|&(_, value)| value)
        .max_by(f64::total_cmp);
    let last = points.last().map(|&(_, value)| value);
    [("at most", highest), ("when idle", last)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

fn key(record: &Record) -> Key {
    Key {
        system: record.system.clone(),
        row: record.row.clone(),
        size: record.size,
        live: record.live,
        threads: record.threads,
    }
}

/// Each record of maps with its record of touches.
fn ready(records: &[Record]) -> Vec<Record> {
    let touches: BTreeMap<(Key, u32), &Record> = records
        .iter()
        .filter(|record| record.row == "touch")
        .map(|record| ((key(record), record.round), record))
        .collect();
    let maps = records.iter().filter(|record| record.row == "map");
    maps.filter_map(|map| {
        let mut of_touch = key(map);
        of_touch.row = "touch".to_owned();
        let touch = touches.get(&(of_touch, map.round))?;
        Some(Record {
            row: READY.to_owned(),
            samples: map
                .samples
                .iter()
                .zip(&touch.samples)
                .map(|(map, touch)| map + touch)
                .collect(),
            ..map.clone()
        })
    })
    .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A short run, written by hand.
    pub(crate) const RUN: &str = r#"{"about":{"quick":true,"date":"2026-11-21","commit":"abc"}}
{"system":"hostblob, vfio-user","is":"ours"}
{"system":"virglrenderer 1.3","is":"a peer"}
{"system":"virglrenderer 1.1","missing":"it ended"}
{"system":"hostblob, vfio-user","round":0,"row":"map","size":4096,"live":0,"unit":"us","samples":[900,900]}
{"system":"hostblob, vfio-user","round":0,"row":"touch","size":4096,"live":0,"unit":"us","samples":[90,90]}
{"system":"hostblob, vfio-user","round":1,"row":"map","size":4096,"live":0,"unit":"us","samples":[300,100,200]}
{"system":"hostblob, vfio-user","round":1,"row":"touch","size":4096,"live":0,"unit":"us","samples":[1,2,30]}
{"system":"hostblob, vfio-user","round":1,"row":"map","size":4096,"live":10000,"unit":"us","samples":[220,220,220]}
{"system":"virglrenderer 1.3","round":1,"row":"map","size":4096,"live":0,"unit":"us","samples":[500,400,600]}
{"system":"virglrenderer 1.3","round":1,"row":"touch","size":4096,"live":0,"unit":"us","samples":[10,10,10]}
{"system":"hostblob, vfio-user","round":1,"row":"round-trip","size":0,"live":1,"unit":"us","samples":[50,60,70]}
{"system":"hostblob, vfio-user","round":1,"row":"copy-to-blob","size":1048576,"live":1,"unit":"us","samples":[100,101,102]}
{"system":"hostblob, vfio-user","round":1,"row":"copy-to-ram","size":1048576,"live":1,"unit":"us","samples":[100,99,98]}
{"system":"hostblob, no transport","row":"calls: create + map","unit":"calls","samples":[0.0]}
{"system":"hostblob, local socket","row":"resident","unit":"bytes","samples":[0,268435456,1048576],"at":[0.0,1.0,2.0]}
{"system":"hostblob's driver","round":1,"row":"vulkan: ready","size":4096,"live":0,"unit":"us","samples":[2,3,4]}
{"system":"hostblob's driver","round":1,"row":"vulkan: ready","size":4096,"live":1000,"unit":"us","samples":[3.6]}
{"system":"Venus","round":1,"row":"vulkan: ready","size":4096,"live":0,"unit":"us","samples":[11000]}
{"system":"hostblob","row":"pair","size":4096,"live":0,"threads":1,"unit":"ns","samples":[100]}
{"system":"VMA","row":"pair","size":4096,"live":0,"threads":1,"unit":"ns","samples":[180]}
"#;

    #[test]
    fn the_first_round_is_dropped_where_there_are_others() {
        let data = Data::parse(RUN).unwrap();
        let map = Key::new("hostblob, vfio-user", "map").size(4096);
        assert_eq!(data.median(&map), Some(200.0));
        assert_eq!(data.get(&map).unwrap().count(), 3);
        let calls = Key::new("hostblob, no transport", "calls: create + map");
        assert_eq!(data.median(&calls), Some(0.0));
        assert_eq!(data.median(&map.live(1)), None);
    }

    #[test]
    fn ready_is_the_sum_of_each_blob() {
        let data = Data::parse(RUN).unwrap();
        let ready = Key::new("hostblob, vfio-user", READY).size(4096);
        // 301, 102, 230.
        assert_eq!(data.median(&ready), Some(230.0));
    }

    #[test]
    fn quantiles_of_known_samples() {
        let samples = Samples {
            unit: "us".to_owned(),
            sorted: (0..=100).map(f64::from).collect(),
        };
        assert_eq!(samples.quantile(0.9), Some(90.0));
        assert_eq!(samples.quantile(1.0), Some(100.0));
        assert_eq!(Samples::default().median(), None);
    }

    #[test]
    fn courses_missing_systems_and_rubbish() {
        let data = Data::parse(RUN).unwrap();
        let course = data.courses.values().next().unwrap();
        assert_eq!(course.points.last(), Some(&(2.0, 1048576.0)));
        assert_eq!(
            data.missing,
            [("virglrenderer 1.1".to_owned(), "it ended".to_owned())]
        );
        assert!(Data::parse("{\"row\":1}\n").is_err());
    }
}
