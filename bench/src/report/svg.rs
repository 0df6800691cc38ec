//! The latencies' distributions as a picture: one panel for each payload, one line for each peer, both axes logarithmic. To the
//! right each step is ten times rarer, so that the tail has as much room as the middle.

use std::fmt::Write as _;

use super::table::bytes;
use super::{Report, Row};
use crate::ipc::{Mode, Regime};
use crate::peers::Kind;

/// Up to this length, what carries no payload is drawn as well.
const SMALL: usize = 4096;
const WIDTH: f64 = 1240.0;
const COLUMNS: usize = 2;
const MARGIN: f64 = 24.0;
/// Above the legend, which is above the panels.
const HEAD: f64 = 92.0;
/// From one panel to the next, and what of it is drawn on.
const PANEL: (f64, f64) = (596.0, 380.0);
const PLOT: (f64, f64) = (510.0, 290.0);
/// Where a panel's plot begins.
const INSET: (f64, f64) = (62.0, 40.0);
const LEGEND_ROW: f64 = 24.0;
const LEGEND_COLUMNS: usize = 4;
pub(crate) const FONT: &str = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

/// A peer's colour, width and dashes: ours thick, what spins drawn through, what sleeps dashed.
fn style(peer: Kind) -> (&'static str, f64, &'static str) {
    const SOLID: &str = "none";
    const DASHED: &str = "7 4";
    match peer {
        Kind::OursSpinning => ("#d62728", 3.2, SOLID),
        Kind::RawSpinning => ("#ff9896", 1.8, SOLID),
        Kind::PingPong => ("#9a9a9a", 1.6, SOLID),
        Kind::PlainRing | Kind::BatchedRing => ("#222222", 1.8, SOLID),
        Kind::Iceoryx2 => ("#1f77b4", 2.0, SOLID),
        Kind::UnixSpinning => ("#2ca02c", 1.8, SOLID),
        Kind::OursAsleep => ("#d62728", 3.2, DASHED),
        Kind::OursServerAsleep => ("#e8870e", 3.2, DASHED),
        Kind::EventFd => ("#9a9a9a", 1.8, DASHED),
        Kind::Futex => ("#17a2b8", 1.8, DASHED),
        Kind::UnixBlocking => ("#2ca02c", 1.8, DASHED),
        Kind::Tonic => ("#9467bd", 2.0, DASHED),
        Kind::NodeChildProcess => ("#8c564b", 2.0, DASHED),
        Kind::NodeNet | Kind::NodeNetBatched => ("#d86bb9", 2.0, DASHED),
    }
}

/// What is drawn for one payload.
struct Panel<'a> {
    payload: usize,
    regime: Regime,
    rows: Vec<&'a Row>,
}

impl Report {
    /// The picture, as an SVG document.
    pub(crate) fn svg(&self) -> String {
        let rows = self.rows();
        let panels: Vec<Panel<'_>> = self
            .settings
            .payloads
            .iter()
            .filter_map(|&payload| panel(payload, &rows))
            .collect();
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.draw(&mut out, &panels);
        out
    }

    fn draw(&self, out: &mut String, panels: &[Panel<'_>]) -> std::fmt::Result {
        let peers: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|peer| {
                let mut rows = panels.iter().flat_map(|panel| &panel.rows);
                rows.any(|row| row.peer == *peer)
            })
            .collect();
        let legend_rows = peers.len().div_ceil(LEGEND_COLUMNS);
        let panels_top = HEAD + legend_rows as f64 * LEGEND_ROW + 8.0;
        let height = panels_top + panels.len().div_ceil(COLUMNS) as f64 * PANEL.1 + MARGIN;
        writeln!(
            out,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="{FONT}" font-size="13" fill="#222222">"##
        )?;
        // Its own ground, so that it can be read on a dark page as well.
        writeln!(
            out,
            r##"<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>"##
        )?;
        self.title(out)?;
        legend(out, &peers)?;
        for (index, panel) in panels.iter().enumerate() {
            let left = MARGIN + (index % COLUMNS) as f64 * PANEL.0 + INSET.0;
            let top = panels_top + (index / COLUMNS) as f64 * PANEL.1 + INSET.1;
            panel.draw(out, left, top)?;
        }
        writeln!(out, "</svg>")
    }

    fn title(&self, out: &mut String) -> std::fmt::Result {
        let machine = &self.machine;
        text(
            out,
            (MARGIN, 34.0),
            r#"font-size="21" font-weight="600""#,
            "Round trip between two processes, one message in flight",
        )?;
        let place = format!(
            "{}, {} usable CPUs, {}; {}; load {}; {}",
            machine.cpu,
            machine.usable_cpus,
            machine.pinned(),
            machine.kernel,
            machine.load_average,
            machine.date
        );
        text(out, (MARGIN, 58.0), r##"fill="#555555""##, &place)?;
        let kind = format!(
            "lapce-ai-bench {} ({} build), repetitions: {}; to the right, the share of round trips that took at most so \
             long; near and far: the regime of what spins",
            machine.version, machine.build, self.settings.repetitions
        );
        text(out, (MARGIN, 78.0), r##"fill="#555555""##, &kind)
    }
}

/// A payload's rows with a distribution; of those that spin, in the regime that has most of them.
fn panel(payload: usize, rows: &[Row]) -> Option<Panel<'_>> {
    let rows = rows.iter().filter(|row| {
        row.mode == Mode::Latency && row.payload == payload && row.distribution.len() > 1
            // What carries no payload says nothing about a large one, and would take the most of the panel.
            && (row.peer.has_window() || payload <= SMALL)
    });
    let repetitions = |regime: Regime| -> usize {
        let of_regime = rows.clone().filter(|row| row.regime == regime);
        of_regime.map(|row| row.repetitions).sum()
    };
    // Of equals the last is taken.
    let regime = [Regime::Unsettled, Regime::Far, Regime::Near]
        .into_iter()
        .max_by_key(|regime| repetitions(*regime))
        .filter(|regime| repetitions(*regime) > 0)
        .unwrap_or(Regime::Any);
    let drawn: Vec<&Row> = rows
        .filter(|row| row.regime == regime || row.regime == Regime::Any)
        .collect();
    (!drawn.is_empty()).then_some(Panel {
        payload,
        regime,
        rows: drawn,
    })
}

impl Panel<'_> {
    fn draw(&self, out: &mut String, left: f64, top: f64) -> std::fmt::Result {
        let points = || self.rows.iter().flat_map(|row| &row.distribution);
        let most_digits = points()
            .map(|(share, _)| digits(*share))
            .fold(1.0, f64::max);
        let least = points().map(|(_, us)| *us).fold(f64::INFINITY, f64::min);
        let most = points().map(|(_, us)| *us).fold(0.0, f64::max);
        let decades = (
            least.log10().floor() as i32,
            (most.log10().ceil() as i32).max(least.log10().floor() as i32 + 1),
        );
        let x = |digits: f64| left + PLOT.0 * digits / most_digits;
        let y = |us: f64| {
            let share = (us.log10() - f64::from(decades.0)) / f64::from(decades.1 - decades.0);
            top + PLOT.1 * (1.0 - share)
        };
        let regime = match self.regime {
            Regime::Any => String::new(),
            regime => format!(", {}", regime.name()),
        };
        text(
            out,
            (left, top - 12.0),
            r#"font-size="16" font-weight="600""#,
            &format!("{}{regime}", bytes(self.payload)),
        )?;
        for digits in 0..=most_digits as u32 {
            let at = x(f64::from(digits));
            line(out, (at, top), (at, top + PLOT.1))?;
            let place = (at, top + PLOT.1 + 18.0);
            text(out, place, r#"text-anchor="middle""#, &percentile(digits))?;
        }
        for decade in decades.0..=decades.1 {
            let at = y(10_f64.powi(decade));
            line(out, (left, at), (left + PLOT.0, at))?;
            let place = (left - 8.0, at + 4.0);
            text(out, place, r#"text-anchor="end""#, &duration(decade))?;
        }
        for row in &self.rows {
            let (colour, width, dashes) = style(row.peer);
            write!(
                out,
                r#"<polyline data-payload="{}" data-peer="{}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}" stroke-linejoin="round" points=""#,
                self.payload,
                escaped(row.name),
            )?;
            for (share, us) in &row.distribution {
                write!(out, "{:.1},{:.1} ", x(digits(*share)), y(*us))?;
            }
            writeln!(out, r#""/>"#)?;
        }
        Ok(())
    }
}

/// How rare what lies above is: 0 for everything, 1 for one in ten, 2 for one in a hundred.
fn digits(share: f64) -> f64 {
    -(1.0 - share).log10()
}

fn percentile(digits: u32) -> String {
    match digits {
        0 => "0 %".to_owned(),
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        more => format!("99.{} %", "9".repeat(more as usize - 2)),
    }
}

/// A power of ten microseconds.
fn duration(decade: i32) -> String {
    let (decade, unit) = match decade {
        ..0 => (decade + 3, "ns"),
        0..3 => (decade, "µs"),
        3..6 => (decade - 3, "ms"),
        _ => (decade - 6, "s"),
    };
    format!("{} {unit}", 10_f64.powi(decade))
}

fn legend(out: &mut String, peers: &[Kind]) -> std::fmt::Result {
    let step = (WIDTH - 2.0 * MARGIN) / LEGEND_COLUMNS as f64;
    for (index, peer) in peers.iter().enumerate() {
        let left = MARGIN + (index % LEGEND_COLUMNS) as f64 * step;
        let at = HEAD + (index / LEGEND_COLUMNS) as f64 * LEGEND_ROW + 12.0;
        let (colour, width, dashes) = style(*peer);
        writeln!(
            out,
            r#"<line x1="{left}" y1="{at}" x2="{}" y2="{at}" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>"#,
            left + 42.0
        )?;
        text(out, (left + 50.0, at + 4.5), "", peer.name())?;
    }
    Ok(())
}

/// A thin line of a grid.
pub(crate) fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) -> std::fmt::Result {
    writeln!(
        out,
        r##"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="#dddddd"/>"##,
        from.0, from.1, to.0, to.1
    )
}

pub(crate) fn text(
    out: &mut String,
    at: (f64, f64),
    attributes: &str,
    text: &str,
) -> std::fmt::Result {
    writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" {attributes}>{}</text>"#,
        at.0,
        at.1,
        escaped(text)
    )
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{latency, report};
    use super::*;

    #[test]
    fn each_peer_has_one_line_in_the_commonest_regime() {
        let mut report = report();
        report
            .samples
            .push(latency(Kind::EventFd, Regime::Any, 50_000, 1.0));
        report.machine.cpu = "R&D <1>".to_owned();
        let svg = report.svg();
        assert_eq!(svg.matches("<polyline").count(), 2, "{svg}");
        assert!(
            svg.contains("64 B, near") && svg.contains("R&amp;D &lt;1&gt;"),
            "{svg}"
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn nothing_measured_is_nothing_drawn() {
        let mut report = report();
        report.samples.clear();
        assert_eq!(report.svg().matches("<polyline").count(), 0);
    }

    #[test]
    fn axes_are_readable() {
        assert_eq!(
            [0, 1, 2, 4].map(percentile),
            ["0 %", "90 %", "99 %", "99.99 %"]
        );
        assert_eq!(
            [-1, 0, 2, 4, 6].map(duration),
            ["100 ns", "1 µs", "100 µs", "10 ms", "1 s"]
        );
        assert!((digits(0.99) - 2.0).abs() < 1e-9 && digits(0.0) == 0.0);
    }
}
