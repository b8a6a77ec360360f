//! Plots, as SVG.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::bars::{DRIVER, OLD_PEER, OURS, PEER, VENUS};
use super::data::{Data, Key, READY};

const SIZE: (u32, u32) = (720, 400);
/// Points of a distribution: enough for its form, few enough for a page.
const QUANTILES: u32 = 100;
const MIB: f64 = 1048576.0;

/// A line of a plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// What is drawn around lines.
struct Frame {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    log_x: bool,
    log_y: bool,
    /// Where the names of the lines cover none of them.
    names: SeriesLabelPosition,
}

/// File names and their SVG; a plot for which nothing was measured is left out.
///
/// # Errors
/// Where plotters has one.
pub fn draw(data: &Data) -> Result<Vec<(&'static str, String)>> {
    let mut all = Vec::new();
    for (name, frame, lines) in [
        ("latency-live.svg", latency_frame(), latency(data)),
        (
            "latency-distribution.svg",
            distribution_frame(),
            distribution(data),
        ),
        ("vulkan.svg", vulkan_frame(), vulkan(data)),
        ("throughput.svg", throughput_frame(), throughput(data)),
        ("resident.svg", resident_frame(), resident(data)),
    ] {
        let lines: Vec<_> = lines
            .into_iter()
            .filter(|line| !line.points.is_empty())
            .collect();
        if !lines.is_empty() {
            all.push((name, plot(&frame, &lines)?));
        }
    }
    Ok(all)
}

/// All systems that have guests.
fn guests() -> impl Iterator<Item = &'static str> {
    OURS.into_iter().chain([PEER, OLD_PEER])
}

fn latency_frame() -> Frame {
    Frame {
        title: "4 KiB: create + map + mmap, median",
        x: "live blobs + 1",
        y: "microseconds",
        log_x: true,
        log_y: true,
        names: SeriesLabelPosition::UpperLeft,
    }
}

fn latency(data: &Data) -> Vec<Line> {
    let line = |system: &str| {
        let of_system = data
            .of_row("map")
            .filter(|(key, _)| key.system == system && key.size == 4096);
        Line {
            name: system.to_owned(),
            points: of_system
                .filter_map(|(key, samples)| Some((key.live as f64 + 1.0, samples.median()?)))
                .collect(),
        }
    };
    guests().map(line).collect()
}

fn distribution_frame() -> Frame {
    Frame {
        title: "1 MiB until each page is touched, no live blobs: distribution",
        x: "microseconds",
        y: "percent of blobs that are faster",
        log_x: true,
        log_y: false,
        names: SeriesLabelPosition::LowerRight,
    }
}

fn distribution(data: &Data) -> Vec<Line> {
    let line = |system: &str| {
        let samples = data.get(&Key::new(system, READY).size(1 << 20));
        let point = |part: u32| {
            let percent = f64::from(part) * 100.0 / f64::from(QUANTILES);
            Some((samples?.quantile(percent / 100.0)?, percent))
        };
        Line {
            name: system.to_owned(),
            points: (0..=QUANTILES).filter_map(point).collect(),
        }
    };
    guests().map(line).collect()
}

fn vulkan_frame() -> Frame {
    Frame {
        title: "Vulkan: allocate + map until each page is touched, median",
        x: "bytes",
        y: "microseconds",
        log_x: true,
        log_y: true,
        names: SeriesLabelPosition::LowerRight,
    }
}

fn vulkan(data: &Data) -> Vec<Line> {
    let line = |system: &str, live: u64| {
        let of_system = data
            .of_row("vulkan: ready")
            .filter(|(key, _)| key.system == system && key.live == live);
        Line {
            name: format!("{system}, {live} live"),
            points: of_system
                .filter_map(|(key, samples)| Some((key.size as f64, samples.median()?)))
                .collect(),
        }
    };
    [(DRIVER, 0), (DRIVER, 1_000), (VENUS, 0), (VENUS, 1_000)]
        .map(|(system, live)| line(system, live))
        .into()
}

fn throughput_frame() -> Frame {
    Frame {
        title: "Throughput against size",
        x: "bytes",
        y: "GB/s",
        log_x: true,
        log_y: true,
        names: SeriesLabelPosition::LowerRight,
    }
}

fn throughput(data: &Data) -> Vec<Line> {
    let line = |system: &str, row: &str, name: &str| {
        let of_system = data.of_row(row).filter(|(key, _)| key.system == system);
        Line {
            name: name.to_owned(),
            points: of_system
                .filter_map(|(key, samples)| {
                    let bytes = key.size as f64;
                    Some((bytes, bytes / samples.median()? / 1e3))
                })
                .collect(),
        }
    };
    vec![
        line(OURS[0], "copy-to-blob", "guest: memcpy into a blob"),
        line(OURS[0], "copy-to-ram", "guest: memcpy into its memory"),
        line("hostblob", "fill", "FILL"),
        line("Vulkan", "fill", "vkCmdFillBuffer"),
        line("hostblob", "copy", "COPY"),
        line("Vulkan", "copy", "vkCmdCopyBuffer"),
    ]
}

fn resident_frame() -> Frame {
    Frame {
        title: "Memory of the window: 256 MiB taken, written, given back",
        x: "seconds",
        y: "MiB with pages",
        log_x: false,
        log_y: false,
        names: SeriesLabelPosition::UpperRight,
    }
}

fn resident(data: &Data) -> Vec<Line> {
    data.courses
        .iter()
        .filter(|(key, _)| key.row == "resident")
        .map(|(key, course)| Line {
            name: key.system.clone(),
            points: course
                .points
                .iter()
                .map(|&(at, bytes)| (at, bytes / MIB))
                .collect(),
        })
        .collect()
}

fn plot(frame: &Frame, lines: &[Line]) -> Result<String> {
    let bounds = |value: &dyn Fn(&(f64, f64)) -> f64, log: bool| {
        let values = || lines.iter().flat_map(|line| line.points.iter().map(value));
        let low = values().fold(f64::INFINITY, f64::min);
        let high = values().fold(f64::NEG_INFINITY, f64::max);
        if log {
            low.max(1e-3) / 1.5..high.max(1e-3) * 2.0
        } else {
            0.0..(high * 1.1).max(1.0)
        }
    };
    let x = bounds(&|point| point.0, frame.log_x);
    let y = bounds(&|point| point.1, frame.log_y);
    match (frame.log_x, frame.log_y) {
        (true, true) => draw_in(frame, lines, x.log_scale(), y.log_scale()),
        (true, false) => draw_in(frame, lines, x.log_scale(), y),
        (false, true) => draw_in(frame, lines, x, y.log_scale()),
        (false, false) => draw_in(frame, lines, x, y),
    }
}

fn draw_in<X, Y>(frame: &Frame, lines: &[Line], x: X, y: Y) -> Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", frame.title);
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let mut chart = ChartBuilder::on(&area)
            .caption(frame.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(frame.x)
            .y_desc(frame.y)
            .x_label_formatter(&|value| label(*value))
            .y_label_formatter(&|value| label(*value))
            .draw()
            .map_err(|error| failed(&error))?;
        for (index, line) in lines.iter().enumerate() {
            let style = Palette99::pick(index).stroke_width(2);
            let key = style;
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), style))
                .map_err(|error| failed(&error))?
                .label(line.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], key));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .position(frame.names.clone())
            .draw()
            .map_err(|error| failed(&error))?;
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(text)
}

/// As short as it goes.
fn label(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e6 {
        format!("{value:.0}")
    } else if value.abs() >= 1e6 {
        format!("{value:.0e}")
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}
