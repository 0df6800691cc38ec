//! The whole comparison, small, from real processes. No timing is judged.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{self, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapce-ai-bench"));
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn json(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&stdout)
        .unwrap_or_else(|_| panic!("{stdout}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// What a run that ends well prints.
fn success(arguments: &[&str]) -> Value {
    let output = bench(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        json(&output)
    );
    json(&output)
}

#[test]
fn every_peer_answers() {
    let found = success(&["ipc", "--quick", "--json"]);
    assert_eq!(found["failures"], Value::Array(Vec::new()));
    let rows = found["rows"].as_array().unwrap();
    let spinning = !found["left_out"].to_string().contains("spins");
    let has = |mode: &str, payload: u64, peer: &str| {
        rows.iter()
            .any(|row| row["mode"] == mode && row["payload"] == payload && row["peer"] == peer)
    };
    for payload in [64, 1 << 10, 64 << 10, 1 << 20] {
        for peer in ["event_fd", "futex", "unix_blocking", "ours_asleep"] {
            assert!(has("latency", payload, peer), "{peer} {payload}");
        }
        for peer in ["unix_blocking", "ours_asleep"] {
            assert!(has("throughput", payload, peer), "{peer} {payload}");
        }
        if spinning {
            for peer in ["ping_pong", "plain_ring", "unix_spinning", "ours_spinning"] {
                assert!(has("latency", payload, peer), "{peer} {payload}");
            }
            for peer in [
                "plain_ring",
                "batched_ring",
                "unix_spinning",
                "ours_spinning",
            ] {
                assert!(has("throughput", payload, peer), "{peer} {payload}");
            }
        }
    }
    for row in rows {
        let figure = if row["mode"] == "latency" {
            "p50_us"
        } else {
            "messages_per_second"
        };
        assert!(row[figure].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn connections_are_held_and_answer() {
    let arguments = [
        "connections",
        "--count",
        "20",
        "--quiet",
        "0",
        "--idle",
        "0.05",
        "--json",
    ];
    let found = success(&arguments);
    assert_eq!(found["answered_after"], 20);
    assert_eq!(found["after"]["memfd_mappings"], 20);
    assert!(found["after"]["rss_shmem"].as_u64() > found["before"]["rss_shmem"].as_u64());
}

const NODE: [&str; 3] = ["node_child_process", "node_net", "node_net_batched"];

#[test]
fn node_is_measured_beside_ours() {
    let found = success(&["ipc", "--quick", "--payloads", "64,1024,65536", "--json"]);
    assert_eq!(found["failures"], Value::Array(Vec::new()));
    if found["node"].is_null() {
        writeln!(io::stderr(), "skipped: {}", found["left_out"]).unwrap();
        return;
    }
    let rows = found["rows"].as_array().unwrap();
    for payload in [64, 1024] {
        for (mode, peers) in [("latency", &NODE[..2]), ("throughput", &NODE[..])] {
            for peer in peers {
                let is_it = |row: &&Value| {
                    row["mode"] == mode && row["payload"] == payload && row["peer"] == *peer
                };
                assert_eq!(rows.iter().filter(is_it).count(), 1, "{mode} {peer}");
            }
        }
        let against = found["against_node"].as_array().unwrap();
        let asleep = against
            .iter()
            .find(|row| row["payload"] == payload && row["ours"] == "ours_asleep")
            .unwrap();
        assert_eq!(asleep["node"], "node_child_process");
        assert!(asleep["p50"].as_f64().unwrap() > 0.0 && asleep["rate"].as_f64().unwrap() > 0.0);
    }
    // Only of small payloads.
    assert!(
        !rows
            .iter()
            .any(|row| row["payload"] == 65536 && NODE.iter().any(|peer| row["peer"] == *peer))
    );
}

#[test]
fn without_node_its_rows_are_left_out() {
    let arguments = [
        "ipc",
        "--quick",
        "--payloads",
        "64",
        "--json",
        "--node",
        "/nowhere/node",
    ];
    let found = success(&arguments);
    assert!(found["left_out"].to_string().contains("/nowhere/node"));
    let rows = found["rows"].as_array().unwrap();
    assert!(!rows.is_empty() && found["against_node"] == Value::Array(Vec::new()));
    assert!(
        !rows
            .iter()
            .any(|row| NODE.iter().any(|peer| row["peer"] == *peer))
    );
}

#[test]
fn many_connections_are_served() {
    // The second fills the rings, so that answers may overtake each other.
    for (window, payload) in [("4", "1024"), ("64", "4096")] {
        let found = success(&[
            "many",
            "--connections",
            "10",
            "--processes",
            "3",
            "--secs",
            "0.05",
            "--json",
            "--window",
            window,
            "--payload",
            payload,
        ]);
        assert_eq!(found["errors"], Value::Array(Vec::new()));
        assert_eq!(found["served"], 10);
        assert!(found["server_rss"].as_u64().unwrap() > 0);
    }
}

/// The child of a run that plays this role, once there is one.
fn child_of(run: &Child, role: &str) -> Pid {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let is_child = status.contains(&format!("PPid:\t{}\n", run.id()));
            if is_child && command.split('\0').any(|word| word == role) {
                return Pid::from_raw(pid).unwrap();
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no child played {role}");
}

const LONG: [&str; 8] = [
    "ipc",
    "--repeat",
    "1",
    "--millis",
    "1000",
    "--payloads",
    "64",
    "--json",
];

#[test]
fn a_peer_that_dies_fails_the_run() {
    let run = bench(&LONG).spawn().unwrap();
    kill_process(child_of(&run, "event-fd"), Signal::KILL).unwrap();
    let output = run.wait_with_output().unwrap();
    assert!(!output.status.success());
    let failures = json(&output)["failures"].to_string();
    assert!(failures.contains("event"), "{failures}");
}

#[test]
fn no_child_outlives_the_run() {
    let mut run = bench(&LONG).spawn().unwrap();
    let child = child_of(&run, "event-fd");
    run.kill().unwrap();
    run.wait().unwrap();
    let status = format!("/proc/{}/status", child.as_raw_nonzero());
    let until = Instant::now() + Duration::from_secs(30);
    // An orphan that nobody has reaped yet is dead as well.
    while fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ")) {
        assert!(Instant::now() < until, "the child lives on");
        thread::sleep(Duration::from_millis(5));
    }
}
