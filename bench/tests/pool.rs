//! The pool's measurement, small. No timing is judged.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

use serde_json::Value;

#[test]
fn each_case_is_measured_both_ways_and_every_answer_is_right() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapce-ai-bench"));
    let output = command
        .args(["pool", "--quick", "--json"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let found: Value = serde_json::from_str(&text).unwrap();
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(row["errors"], Value::Array(Vec::new()));
        let runs = row["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 2);
        for way in runs.iter().flat_map(|run| [&run["pool"], &run["direct"]]) {
            assert!(way["requests"].as_u64().unwrap() >= 200, "{way}");
            assert!(way["work_p50_us"].as_f64().unwrap() > 0.0, "{way}");
            assert!(
                way["work_p50_us"].as_f64() <= way["whole_p99_us"].as_f64(),
                "{way}"
            );
        }
        assert!(row["overhead_p99_us"].is_number(), "{row}");
    }
    let text = Command::new(env!("CARGO_BIN_EXE_lapce-ai-bench"))
        .args(["pool", "--quick"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("OVERHEAD of the pool"), "{text}");
    assert!(text.ends_with("errors: 0\n"), "{text}");
}
