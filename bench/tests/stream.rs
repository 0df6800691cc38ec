//! The reading of providers' streams, and their whole path, small, from real processes. No timing is judged.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

use serde_json::Value;

fn found() -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_lapce-ai-bench"))
        .args(["stream", "--quick", "--json"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn rows<'a>(found: &'a Value, section: &str, format: &str) -> Vec<&'a Value> {
    let rows = found[section].as_array().unwrap().iter();
    rows.filter(|row| row["format"] == format).collect()
}

#[test]
fn every_format_is_read_in_every_way_and_travels_every_way() {
    let found = found();
    for format in ["openai", "cohere", "ollama"] {
        let parse = rows(&found, "parse", format);
        let ways: Vec<_> = parse
            .iter()
            .map(|row| row["way"].as_str().unwrap())
            .collect();
        let expected: &[&str] = match format {
            "ollama" => &["ours", "lines"],
            _ => &["ours", "sseer", "eventsource_stream"],
        };
        assert_eq!(ways, expected, "{format}");
        let number = |row: &Value, name: &str| row[name].as_f64().unwrap();
        for row in &parse {
            // What is printed is made of what was measured.
            let mut runs: Vec<f64> = serde_json::from_value(row["runs"].clone()).unwrap();
            runs.sort_by(f64::total_cmp);
            assert_eq!(runs.len(), 3, "{row}");
            assert_eq!(number(row, "ns_per_token"), runs[1], "{row}");
            assert_eq!(number(row, "p99_ns_per_token"), runs[2], "{row}");
            let ratio = runs[1] / number(parse[0], "ns_per_token");
            assert!((number(row, "to_ours") / ratio - 1.0).abs() < 1e-9, "{row}");
            let megabytes = number(row, "bytes_per_token") / runs[1] * 1e3;
            assert!(
                (number(row, "megabytes_per_second") / megabytes - 1.0).abs() < 1e-9,
                "{row}"
            );
            let allocations = number(row, "allocations_per_token");
            if row["way"] == "ours" {
                assert!(allocations < 0.01, "{row}");
            } else {
                assert!(allocations > 1.0, "{row}");
            }
        }
        let path = rows(&found, "path", format);
        let routes: Vec<_> = path
            .iter()
            .map(|row| row["route"].as_str().unwrap())
            .collect();
        assert_eq!(routes, ["socket", "library", "daemon"], "{format}");
        for row in path {
            let latency = &row["latency"];
            assert_eq!(latency["samples"], 20, "{row}");
            assert!(latency["p50"].as_u64().unwrap() > 0, "{row}");
        }
    }
    // Nothing is left out but formats that this program has no stream of.
    for reason in found["left_out"].as_array().unwrap() {
        assert!(
            reason.as_str().unwrap().starts_with("the format of "),
            "{reason}"
        );
    }
}
