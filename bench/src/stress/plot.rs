//! What was seen over time as a picture: lines in one panel, seconds to the right.

use std::fmt::Write as _;

use super::watch::{Held, Moment};
use crate::measure::Latency;
use crate::report::svg::{FONT, escaped, line as grid_line, text as label};

const SIZE: (f64, f64) = (1000.0, 460.0);
/// Where the plot begins, and how large it is.
const PLACE: (f64, f64) = (92.0, 112.0);
const PLOT: (f64, f64) = (880.0, 290.0);

/// Lines over one axis.
#[derive(Debug)]
pub(super) struct Panel {
    unit: &'static str,
    logarithmic: bool,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    name: &'static str,
    colour: &'static str,
    /// Seconds and values; where there was nothing, the line has a gap.
    points: Vec<(f64, Option<f64>)>,
}

impl Panel {
    pub(super) fn of_memory(moments: &[Moment]) -> Self {
        let line = |name, colour, of: fn(Held) -> u64| Line {
            name,
            colour,
            points: moments
                .iter()
                .map(|m| (m.seconds, m.memory.map(|held| of(held) as f64 / 1024.0)))
                .collect(),
        };
        Self {
            unit: "KiB",
            logarithmic: false,
            lines: vec![
                line("Pss_Anon + Pss_Shmem", "#d62728", Held::own),
                line("Pss_Anon", "#1f77b4", |held| held.pss_anon),
                line("Rss", "#9a9a9a", |held| held.rss),
            ],
        }
    }

    pub(super) fn of_latency(moments: &[Moment]) -> Self {
        let line = |name, colour, of: fn(Latency) -> u64| Line {
            name,
            colour,
            points: moments
                .iter()
                .map(|m| (m.seconds, m.latency.map(|found| of(found) as f64 / 1e3)))
                .collect(),
        };
        Self {
            unit: "µs",
            logarithmic: true,
            lines: vec![
                line("p50", "#2ca02c", |latency| latency.p50),
                line("p99", "#e8870e", |latency| latency.p99),
                line("worst", "#d62728", |latency| latency.max),
            ],
        }
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        let points = self.lines.iter().flat_map(|line| &line.points);
        points.filter_map(|(_, value)| *value)
    }

    /// The least and the most of the axis, and what is written at it.
    fn axis(&self) -> (f64, f64, Vec<f64>) {
        let most = self.values().fold(0.0, f64::max);
        if self.logarithmic {
            let least = self
                .values()
                .filter(|v| *v > 0.0)
                .fold(f64::INFINITY, f64::min);
            let (least, most) = if least.is_finite() {
                (least, most)
            } else {
                (1.0, 10.0)
            };
            let from = least.log10().floor() as i32;
            let to = (most.log10().ceil() as i32).max(from + 1);
            let ticks = (from..=to).map(|decade| 10_f64.powi(decade)).collect();
            return (10_f64.powi(from), 10_f64.powi(to), ticks);
        }
        let step = step(most.max(1.0) / 5.0);
        let count = (most.max(1.0) / step).ceil() as u32;
        let ticks: Vec<f64> = (0..=count).map(|n| f64::from(n) * step).collect();
        (0.0, f64::from(count) * step, ticks)
    }
}

/// The next of 1, 2 and 5 with zeros.
fn step(at_least: f64) -> f64 {
    let decade = 10_f64.powf(at_least.log10().floor());
    let of_decade = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|step| step * decade >= at_least);
    of_decade.unwrap_or(10.0) * decade
}

/// An SVG document.
pub(super) fn picture(title: &str, below: &str, panel: &Panel) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = draw(&mut out, title, below, panel);
    out
}

fn draw(out: &mut String, title: &str, below: &str, panel: &Panel) -> std::fmt::Result {
    let (width, height) = SIZE;
    writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="{FONT}" font-size="13" fill="#222222">"##
    )?;
    writeln!(
        out,
        r##"<rect width="{width}" height="{height}" fill="#ffffff"/>"##
    )?;
    label(
        out,
        (24.0, 32.0),
        r#"font-size="19" font-weight="600""#,
        title,
    )?;
    for (at, line) in below.lines().enumerate() {
        label(
            out,
            (24.0, 54.0 + 16.0 * at as f64),
            r##"font-size="12" fill="#555555""##,
            line,
        )?;
    }
    let (left, top) = PLACE;
    let (least, most, ticks) = panel.axis();
    let y = |value: f64| {
        let share = if panel.logarithmic {
            (value.max(least) / least).log10() / (most / least).log10()
        } else {
            (value - least) / (most - least)
        };
        top + PLOT.1 * (1.0 - share)
    };
    for tick in ticks {
        grid_line(out, (left, y(tick)), (left + PLOT.0, y(tick)))?;
        label(
            out,
            (left - 8.0, y(tick) + 4.0),
            r#"text-anchor="end""#,
            &format!("{tick}"),
        )?;
    }
    label(
        out,
        (left - 8.0, top - 12.0),
        r#"text-anchor="end""#,
        panel.unit,
    )?;
    let seconds = panel.lines.iter().flat_map(|line| &line.points);
    let last = seconds.map(|(at, _)| *at).fold(1e-3, f64::max);
    let x = |at: f64| left + PLOT.0 * at / last;
    let by = step(last / 10.0);
    for tick in 0..=(last / by) as u32 {
        let at = f64::from(tick) * by;
        grid_line(out, (x(at), top), (x(at), top + PLOT.1))?;
        // Sums of tenths have long tails.
        let text = format!("{}", (at * 1e6).round() / 1e6);
        label(
            out,
            (x(at), top + PLOT.1 + 18.0),
            r#"text-anchor="middle""#,
            &text,
        )?;
    }
    let middle = (left + PLOT.0 / 2.0, top + PLOT.1 + 40.0);
    label(out, middle, r#"text-anchor="middle""#, "seconds")?;
    for (index, line) in panel.lines.iter().enumerate() {
        let colour = line.colour;
        let at = left + 220.0 * index as f64;
        writeln!(
            out,
            r#"<line x1="{at}" y1="{1}" x2="{0}" y2="{1}" stroke="{colour}" stroke-width="3"/>"#,
            at + 28.0,
            top - 16.0
        )?;
        label(out, (at + 36.0, top - 12.0), "", line.name)?;
        for piece in line.points.split(|(_, value)| value.is_none()) {
            if piece.is_empty() {
                continue;
            }
            write!(
                out,
                r#"<polyline data-line="{}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round" points=""#,
                escaped(line.name)
            )?;
            for (at, value) in piece {
                write!(out, "{:.1},{:.1} ", x(*at), y(value.unwrap_or(least)))?;
            }
            writeln!(out, r#""/>"#)?;
        }
    }
    writeln!(out, "</svg>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_was_there_is_a_gap() {
        let moments = Moment::examples();
        let memory = picture("t", "b", &Panel::of_memory(&moments));
        assert_eq!(memory.matches("<polyline").count(), 3 * 2, "{memory}");
        let latency = picture("t", "b", &Panel::of_latency(&moments));
        assert_eq!(latency.matches("<polyline").count(), 3 * 4, "{latency}");
    }

    #[test]
    fn nothing_seen_is_nothing_drawn() {
        for panel in [Panel::of_memory(&[]), Panel::of_latency(&[])] {
            let empty = picture("<t>", "b", &panel);
            roxmltree::Document::parse(&empty).unwrap();
            assert!(
                !empty.contains("<polyline") && !empty.contains("NaN"),
                "{empty}"
            );
        }
    }

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(
            [1.0, 1.1, 2.1, 5.1, 73.0].map(step),
            [1.0, 2.0, 5.0, 10.0, 100.0]
        );
        let panel = Panel::of_latency(&Moment::examples());
        let (least, most, ticks) = panel.axis();
        assert_eq!((least, most, ticks.len()), (1.0, 10_000.0, 5));
    }
}
