//! The five stress levels, short, from real processes. Times are printed and not judged: this is a debug build.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn stress(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapce-ai-bench"));
    command
        .args(["stress", "--json", "--level"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// What a run prints in which every bound holds that is judged.
fn holds(arguments: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().to_str().unwrap();
    let output = stress(&[arguments, &["--svg", svg]].concat())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    // Nothing is drawn where there is no terminal.
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["broken"], Value::Array(Vec::new()));
    let bounds = found["bounds"].as_array().unwrap();
    assert!(bounds.len() >= 4, "{bounds:?}");
    let judged = bounds.iter().filter(|bound| bound["not_judged"].is_null());
    assert!(judged.count() >= 3, "{bounds:?}");
    let moments = found["timeline"].as_array().unwrap();
    assert!(
        moments
            .iter()
            .any(|moment| moment["memory"]["rss"].as_u64().unwrap_or(0) > 0),
        "{moments:?}"
    );
    drawn(dir.path(), arguments[0]);
    found
}

fn drawn(dir: &Path, level: &str) {
    for what in ["memory", "latency"] {
        let picture = fs::read_to_string(dir.join(format!("level-{level}-{what}.svg"))).unwrap();
        let document = roxmltree::Document::parse(&picture).unwrap();
        let lines = document
            .descendants()
            .filter(|node| node.has_tag_name("polyline"));
        for line in lines.clone() {
            for point in line.attribute("points").unwrap().split_whitespace() {
                let (x, y) = point.split_once(',').unwrap();
                let finite = |text: &str| text.parse::<f64>().unwrap().is_finite();
                assert!(finite(x) && finite(y), "{point}");
            }
        }
        assert!(lines.count() >= 3, "{picture}");
    }
}

fn bound<'a>(found: &'a Value, part: &str) -> &'a Value {
    let mut bounds = found["bounds"].as_array().unwrap().iter();
    bounds
        .find(|bound| bound["what"].as_str().unwrap().contains(part))
        .unwrap_or_else(|| panic!("no bound of {part}"))
}

/// One after another: each has nine processes of its own.
#[test]
fn every_level_runs_and_its_bounds_hold() {
    let found = holds(&["1", "--duration", "2s"]);
    assert_eq!(bound(&found, "connections served")["found"], 1000.0);
    assert_eq!(found["detail"]["rounds"].as_array().unwrap().len(), 2);

    let found = holds(&["2", "--quick"]);
    assert_eq!(bound(&found, "1 MiB answered")["found"], 2000.0);

    let found = holds(&["3", "--duration", "2s"]);
    assert_eq!(
        bound(&found, "interactive messages answered")["found"],
        200.0
    );
    for noise in [
        "a sleeper is woken late by, same moments",
        "longest gap in 50 µs of spinning, same moments",
    ] {
        let latencies = found["latencies"].as_array().unwrap();
        assert!(
            latencies
                .iter()
                .any(|l| l["what"].as_str().unwrap().contains(noise)),
            "{noise}"
        );
    }

    let found = holds(&["5", "--duration", "8s", "--seed", "11"]);
    assert_eq!(found["detail"]["seed"], 11);
    let events = found["detail"]["events"].as_array().unwrap();
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert!(
        of("server_killed") > 0 && of("server_stopped") > 0,
        "{events:?}"
    );
    assert!(
        of("corrupt_frames") + of("oversized_frames") > 0,
        "{events:?}"
    );
    let ends = &found["detail"]["ends"];
    assert!(
        ends["short echo: answered"].as_u64().unwrap() > 100,
        "{ends}"
    );
    assert!(
        ends["stream without enough time: deadline_exceeded"].as_u64() > Some(0),
        "{ends}"
    );
}

/// The daemon is not a dependency: a test of this package alone may find none.
#[test]
fn the_daemon_is_no_larger_for_those_who_went() {
    let daemon = Path::new(env!("CARGO_BIN_EXE_lapce-ai-bench")).with_file_name("lapce-ai");
    if !daemon.is_file() {
        let output = stress(&["4", "--quick"]).output().unwrap();
        assert!(!output.status.success());
        assert!(
            said(&output).contains("cargo build -p lapce-ai"),
            "{}",
            said(&output)
        );
        return;
    }
    let found = holds(&["4", "--quick"]);
    let cycles = found["detail"]["cycles"].as_array().unwrap();
    assert_eq!(cycles.len(), 4);
    let connections: u64 = cycles
        .iter()
        .map(|cycle| cycle["connections"].as_u64().unwrap())
        .sum();
    // The warm-up is a cycle of a hundred with ten times the rounds, and one of twenty.
    let expected = (connections * 2 + 100 * 20 + 20 * 2) * 3;
    assert_eq!(
        bound(&found, "requests answered")["found"].as_f64(),
        Some(expected as f64)
    );
}

#[test]
fn a_daemon_that_is_not_there_is_said_to_be_missing() {
    let output = stress(&["4", "--quick", "--daemon", "/nowhere/lapce-ai"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = said(&output);
    assert!(
        said.contains("no daemon at /nowhere/lapce-ai") && said.contains("cargo build"),
        "{said}"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (arguments, why) in [
        (["6", "--quick", ""], "5"),
        (["2", "--duration", "5s"], "takes no --duration"),
        (["1", "--duration", "soon"], "duration"),
    ] {
        let arguments: Vec<&str> = arguments
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        let output = stress(&arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(
            said(&output).contains(why),
            "{arguments:?}: {}",
            said(&output)
        );
    }
}

#[test]
fn a_server_that_dies_fails_the_run() {
    let run = stress(&["1", "--duration", "60s"]).spawn().unwrap();
    kill_process(child_of(run.id(), "server"), Signal::KILL).unwrap();
    let output = run.wait_with_output().unwrap();
    assert!(!output.status.success(), "{}", said(&output));
}

/// The child of a run that plays this role, once its clients are there too.
fn child_of(run: u32, role: &str) -> Pid {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        let mut found = (None, 0);
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            if !read("status").contains(&format!("PPid:\t{run}\n")) {
                continue;
            }
            let command = read("cmdline");
            let mut words = command.split('\0');
            if words.clone().any(|word| word == role) {
                found.0 = Pid::from_raw(pid);
            }
            found.1 += usize::from(words.any(|word| word == "crowd"));
        }
        if let (Some(pid), 8) = found {
            return pid;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no child plays {role}");
}
