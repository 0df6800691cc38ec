//! The pool's measurement, small. No timing is judged.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

use serde_json::Value;

#[test]
fn each_case_is_measured_both_ways_and_so_is_each_way_to_give_up() {
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
    assert_eq!(found["cancellation_limit_ms"], 10);
    let cancellation = found["cancellation"].as_array().unwrap();
    let ways = cancellation.iter().map(|row| row["by"].as_str().unwrap());
    assert!(ways.eq(["cancel", "deadline", "disconnect"]), "{text}");
    for row in cancellation {
        assert_eq!(row["samples"], 4, "{row}");
        let ms = |name: &str| row[name].as_f64().unwrap();
        assert!(0.0 < ms("p50_ms") && ms("p50_ms") <= ms("p99_ms"), "{row}");
        assert!(ms("p99_ms") <= ms("max_ms"), "{row}");
        // But for the last of its digits.
        let is_late = ms("max_ms") > 10.0 * 1.001;
        assert!(!is_late || row["late"].as_u64() > Some(0), "{row}");
    }
    let text = Command::new(env!("CARGO_BIN_EXE_lapce-ai-bench"))
        .args(["pool", "--quick"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("OVERHEAD of the pool"), "{text}");
    assert!(
        text.contains("CANCELLATION") && text.contains("limit: 10 ms"),
        "{text}"
    );
    assert!(text.ends_with("errors: 0\n"), "{text}");
}
