//! The report as tables.

use std::fmt::Write as _;

use super::{
    Against, AgainstMemcpy, Columns, Report, Row, against_iceoryx2, against_memcpy, against_node,
    against_tonic,
};
use crate::memcpy::Copied;

impl Report {
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.head(&mut out);
        let rows = self.rows();
        let _ = latency_table(&mut out, &rows);
        let _ = throughput_table(&mut out, &rows);
        let _ = self.against_tables(&mut out, &rows);
        let copied = self.copied();
        let _ = memcpy_table(&mut out, &copied, &against_memcpy(&rows, &copied));
        let _ = self.foot(&mut out);
        out
    }

    fn head(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}", self.machine)?;
        writeln!(
            out,
            "two processes, {}; request and answer carry the same payload behind 24 bytes of header; every answer's \
             length and stamps are checked",
            self.machine.pinned()
        )?;
        writeln!(
            out,
            "medians over {} repetitions of {} ms each, by regime (near: bare ping-pong under 0.25 µs); groups measured \
             again because their ping-pongs disagreed: {}",
            self.settings.repetitions,
            self.settings.figure.time.as_millis(),
            self.measured_again,
        )?;
        writeln!(
            out,
            "lapce-ai spins {} µs where it spins; the plain ring's rings have {} KiB; each latency contains one reading \
             of the clock, {:.0} ns",
            self.settings.spin_us,
            self.settings.ring_bytes >> 10,
            self.machine.clock_ns,
        )?;
        Ok(())
    }

    fn against_tables(&self, out: &mut String, rows: &[Row]) -> std::fmt::Result {
        against_table(
            out,
            "AGAINST ICEORYX2's request-response, both polling",
            &against_iceoryx2(rows),
        )?;
        against_table(
            out,
            "AGAINST GRPC (tonic) over a Unix socket",
            &against_tonic(rows),
        )?;
        let node = against_node(rows);
        if let (Some(version), false) = (&self.node, node.is_empty()) {
            against_table(out, &format!("AGAINST NODE.JS {version}"), &node)?;
            writeln!(
                out,
                "both sides of a node peer run under node, which times itself and is not pinned; batched: all that is there goes \
                 in one write"
            )?;
        }
        Ok(())
    }

    fn foot(&self, out: &mut String) -> std::fmt::Result {
        for left_out in &self.left_out {
            writeln!(out, "\nleft out: {left_out}")?;
        }
        for failure in &self.failures {
            writeln!(out, "\nFAILED: {failure}")?;
        }
        Ok(())
    }
}

fn against_table(out: &mut String, title: &str, ratios: &[Against]) -> std::fmt::Result {
    if ratios.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{title}: how many times faster lapce-ai is (p50, p99), and how many times as many messages it carries"
    )?;
    writeln!(
        out,
        "{:>8} {:<24} {:<9} {:<24} {:>8} {:>8} {:>10}",
        "payload", "ours", "regime", "peer", "x p50", "x p99", "x rate"
    )?;
    let mut last = None;
    for found in ratios {
        separate(out, &mut last, found.payload)?;
        writeln!(
            out,
            "{:>8} {:<24} {:<9} {:<24} {:>8} {:>8} {:>10}",
            bytes(found.payload),
            found.ours.name(),
            found.regime.name(),
            found.peer.name(),
            ratio(found.p50),
            ratio(found.p99),
            ratio(found.rate),
        )?;
    }
    Ok(())
}

fn memcpy_table(out: &mut String, copied: &[Copied], ratios: &[AgainstMemcpy]) -> std::fmt::Result {
    if copied.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\nLARGE PAYLOADS beside what one core copies alone, on the client's CPU"
    )?;
    for found in copied {
        writeln!(
            out,
            "{:>8} memcpy: {:.0} MB/s walking through two buffers of 128 MiB (memory to memory); {:.0} MB/s the same {} again \
             and again (in caches, as far as they go)",
            bytes(found.payload),
            found.walking_mb_per_second,
            found.again_mb_per_second,
            bytes(found.payload),
        )?;
    }
    writeln!(
        out,
        "carried: payload bytes of requests and answers together, with the window of the throughput table; one way is half of it"
    )?;
    writeln!(
        out,
        "{:>8} {:<24} {:<9} {:>12} {:>9} {:>9} {:>18}",
        "payload", "peer", "regime", "carried MB/s", "x memcpy", "x cached", "one way x memcpy"
    )?;
    let mut last = None;
    for found in ratios {
        separate(out, &mut last, found.payload)?;
        writeln!(
            out,
            "{:>8} {:<24} {:<9} {:>12.0} {:>9.2} {:>9.2} {:>18.2}",
            bytes(found.payload),
            found.peer.name(),
            found.regime.name(),
            found.carried_mb_per_second,
            found.carried_to_walking,
            found.carried_to_again,
            found.one_way_to_walking,
        )?;
    }
    Ok(())
}

fn latency_table(out: &mut String, rows: &[Row]) -> std::fmt::Result {
    writeln!(out, "\nLATENCY, one message in flight, µs")?;
    writeln!(
        out,
        "{:>8} {:<24} {:<9} {:>2} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7} {:>9}",
        "payload",
        "peer",
        "regime",
        "n",
        "ping-pong",
        "p50",
        "p99",
        "p99.9",
        "max",
        "samples",
        "x ring",
        "x eventfd"
    )?;
    let mut last = None;
    for row in rows {
        let Columns::Latency {
            p50_us,
            p99_us,
            p999_us,
            max_us,
            samples,
        } = row.columns
        else {
            continue;
        };
        separate(out, &mut last, row.payload)?;
        writeln!(
            out,
            "{} {:>8.2} {:>8.2} {:>8.2} {:>9.1} {:>9} {:>7} {:>9}",
            beginning(row),
            p50_us,
            p99_us,
            p999_us,
            max_us,
            samples,
            ratio(row.to_plain_ring),
            ratio(row.to_eventfd),
        )?;
    }
    Ok(())
}

fn throughput_table(out: &mut String, rows: &[Row]) -> std::fmt::Result {
    writeln!(
        out,
        "\nTHROUGHPUT, messages with their answers; MB/s counts the payload one way"
    )?;
    writeln!(
        out,
        "{:>8} {:<24} {:<9} {:>2} {:>9} {:>6} {:>12} {:>9} {:>7}",
        "payload", "peer", "regime", "n", "ping-pong", "window", "messages/s", "MB/s", "x ring"
    )?;
    let mut last = None;
    for row in rows {
        let Columns::Throughput {
            window,
            messages_per_second,
            megabytes_per_second,
        } = row.columns
        else {
            continue;
        };
        separate(out, &mut last, row.payload)?;
        writeln!(
            out,
            "{} {:>6} {:>12.0} {:>9.1} {:>7}",
            beginning(row),
            window,
            messages_per_second,
            megabytes_per_second,
            ratio(row.to_plain_ring),
        )?;
    }
    Ok(())
}

/// An empty line between payloads.
fn separate(out: &mut String, last: &mut Option<usize>, payload: usize) -> std::fmt::Result {
    if last.replace(payload).is_some_and(|last| last != payload) {
        writeln!(out)?;
    }
    Ok(())
}

fn beginning(row: &Row) -> String {
    let payload = if row.peer.has_window() {
        bytes(row.payload)
    } else {
        "-".to_owned()
    };
    let regime = row.regime.name();
    let ping_pong = row
        .ping_pong_us
        .map_or_else(|| "-".to_owned(), |us| format!("{us:.2}"));
    format!(
        "{payload:>8} {:<24} {regime:<9} {:>2} {ping_pong:>9}",
        row.name, row.repetitions
    )
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

pub(super) fn bytes(n: usize) -> String {
    match n {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::bytes;

    #[test]
    fn the_text_says_everything() {
        let text = report().text();
        for word in [
            "near",
            "far",
            "1.30",
            "lapce-ai, spinning",
            "64 B",
            "left out: the sun",
        ] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
        assert!(
            text.contains("FAILED: the moon") && text.contains("disagreed: 2"),
            "{text}"
        );
    }

    #[test]
    fn lengths_are_readable() {
        assert_eq!(
            [64, 1024, 65536, 1 << 20, 1500].map(bytes),
            ["64 B", "1 KiB", "64 KiB", "1 MiB", "1500 B"]
        );
    }
}
