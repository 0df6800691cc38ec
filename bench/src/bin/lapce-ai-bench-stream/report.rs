//! The report as text.

use std::fmt;

use super::Report;

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}\n", self.machine)?;
        writeln!(
            out,
            "THE PARSE ALONE, from the body's chunk in hand to the token's text, one chunk a token; medians over {} runs of {} tokens, \
             the ways in turn; MB/s counts the body",
            self.runs, self.tokens
        )?;
        writeln!(
            out,
            "{:<18}{:<32}{:>10}{:>10}{:>12}{:>8}{:>8}{:>14}",
            "format", "way", "ns/token", "p99", "bytes/token", "MB/s", "x ours", "allocs/token"
        )?;
        for row in &self.parse {
            let allocations = row
                .allocations_per_token
                .map_or("-".to_owned(), |count| format!("{count:.2}"));
            writeln!(
                out,
                "{:<18}{:<32}{:>10.0}{:>10.0}{:>12.0}{:>8.0}{:>8.2}{:>14}",
                row.format,
                row.name,
                row.ns_per_token,
                row.p99_ns_per_token,
                row.bytes_per_token,
                row.megabytes_per_second,
                row.to_ours,
                allocations
            )?;
        }
        writeln!(
            out,
            "\nTHE WHOLE PATH, from the upstream's writing of a token to its receipt, µs; a token every {} µs, {} streams of {} tokens each, \
             the ways in turn; nobody spins but the daemon, for 50 µs",
            self.load.gap_micros, self.load.repeat, self.load.tokens
        )?;
        writeln!(
            out,
            "{:<18}{:<32}{:>10}{:>10}{:>10}{:>10}",
            "format", "way", "p50", "p99", "max", "tokens"
        )?;
        for row in &self.path {
            let micros = |nanos: u64| nanos as f64 / 1e3;
            writeln!(
                out,
                "{:<18}{:<32}{:>10.1}{:>10.1}{:>10.1}{:>10}",
                row.format,
                row.name,
                micros(row.latency.p50),
                micros(row.latency.p99),
                micros(row.latency.max),
                row.latency.samples
            )?;
        }
        for reason in &self.left_out {
            writeln!(out, "left out: {reason}")?;
        }
        Ok(())
    }
}
