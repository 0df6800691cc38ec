//! The whole comparison, small, from real processes. No timing is judged.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{self, Write};
use std::path::Path;
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

const PAYLOADS: [u64; 5] = [64, 1 << 10, 64 << 10, 1 << 20, 10 << 20];
/// Those that are measured against the plain ring.
const SPINNING: [&str; 3] = ["plain_ring", "unix_spinning", "ours_spinning"];

/// The one row of a peer in a run with one repetition.
fn row<'a>(found: &'a Value, mode: &str, payload: u64, peer: &str) -> Option<&'a Value> {
    let mut rows = found["rows"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["mode"] == mode && row["payload"] == payload && row["peer"] == peer);
    let first = rows.next();
    assert!(
        rows.next().is_none(),
        "{mode} {payload} {peer} is there twice"
    );
    first
}

/// A ratio is that of two figures of the run itself, but for their last digits.
fn is_quotient(ratio: &Value, of: &Value, by: &Value) {
    let expected = of.as_f64().unwrap() / by.as_f64().unwrap();
    let found = ratio.as_f64().unwrap();
    assert!(
        (found / expected - 1.0).abs() < 1e-6,
        "{found} instead of {of} / {by}"
    );
}

#[test]
fn every_peer_answers_and_every_ratio_is_of_its_figures() {
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("latency.svg");
    let found = success(&[
        "ipc",
        "--quick",
        "--json",
        "--svg",
        picture.to_str().unwrap(),
    ]);
    assert_eq!(found["failures"], Value::Array(Vec::new()));
    let spinning = !found["left_out"].to_string().contains("spins");
    let built = cfg!(feature = "peers");
    assert_eq!(found["left_out"].to_string().contains("iceoryx2"), !built);
    for payload in PAYLOADS {
        let mut latencies = vec!["event_fd", "futex", "unix_blocking", "ours_asleep"];
        let mut throughputs = vec!["unix_blocking", "ours_asleep"];
        if spinning {
            latencies.extend(SPINNING);
            latencies.extend(["ping_pong", "ours_server_asleep"]);
            throughputs.extend(SPINNING);
            throughputs.extend(["batched_ring", "ours_server_asleep"]);
        }
        if spinning && built {
            latencies.push("iceoryx2");
            throughputs.push("iceoryx2");
        }
        if payload <= 1 << 20 && built {
            latencies.push("tonic");
            throughputs.push("tonic");
        }
        for (mode, peers, column) in [
            ("latency", latencies, "p50_us"),
            ("throughput", throughputs, "messages_per_second"),
        ] {
            for peer in peers {
                let found_row = row(&found, mode, payload, peer)
                    .unwrap_or_else(|| panic!("no {mode} of {peer}, {payload}"));
                assert!(found_row[column].as_f64().unwrap() > 0.0, "{found_row}");
                if SPINNING.contains(&peer) || peer == "iceoryx2" {
                    let ring = row(&found, mode, payload, "plain_ring").unwrap();
                    is_quotient(
                        &found_row["to_plain_ring"],
                        &found_row[column],
                        &ring[column],
                    );
                }
            }
        }
    }
    ratios_are_of_rows(&found, spinning);
    one_line_for_each_peer(&found, &fs::read_to_string(&picture).unwrap());
}

fn ratios_are_of_rows(found: &Value, spinning: bool) {
    for against in ["against_iceoryx2", "against_tonic", "against_node"] {
        for pair in found[against].as_array().unwrap() {
            let payload = pair["payload"].as_u64().unwrap();
            for (ratio, mode, column) in [
                ("p50", "latency", "p50_us"),
                ("p99", "latency", "p99_us"),
                ("rate", "throughput", "messages_per_second"),
            ] {
                let of = |peer: &str| row(found, mode, payload, pair[peer].as_str().unwrap());
                match (of("ours"), of("peer"), mode) {
                    _ if pair[ratio].is_null() => {}
                    (Some(ours), Some(peer), "latency") => {
                        is_quotient(&pair[ratio], &peer[column], &ours[column]);
                    }
                    (Some(ours), Some(peer), _) => {
                        is_quotient(&pair[ratio], &ours[column], &peer[column]);
                    }
                    _ => panic!("a ratio of what is not there: {pair}"),
                }
            }
        }
    }
    // With one repetition a regime may have one of the two only; then there is nothing to compare.
    let regimes = |peer| row(found, "latency", 64, peer).map(|row| row["regime"].clone());
    if spinning && cfg!(feature = "peers") && regimes("ours_spinning") == regimes("iceoryx2") {
        let first = &found["against_iceoryx2"][0];
        assert_eq!(
            (&first["payload"], &first["ours"]),
            (&64.into(), &"ours_spinning".into())
        );
        assert!(first["p50"].as_f64().unwrap() > 0.0);
    }
    let copied = found["memcpy"].as_array().unwrap();
    assert_eq!(copied.len(), 2);
    for beside in found["against_memcpy"].as_array().unwrap() {
        let payload = beside["payload"].as_u64().unwrap();
        let of_length = copied
            .iter()
            .find(|copied| copied["payload"] == payload)
            .unwrap();
        let peer = row(
            found,
            "throughput",
            payload,
            beside["peer"].as_str().unwrap(),
        )
        .unwrap();
        is_quotient(
            &beside["one_way_to_walking"],
            &peer["megabytes_per_second"],
            &of_length["walking_mb_per_second"],
        );
        is_quotient(
            &beside["carried_to_again"],
            &beside["carried_mb_per_second"],
            &of_length["again_mb_per_second"],
        );
    }
}

fn one_line_for_each_peer(found: &Value, picture: &str) {
    let document = roxmltree::Document::parse(picture).unwrap();
    let drawn: Vec<(String, String)> = document
        .descendants()
        .filter(|node| node.has_tag_name("polyline"))
        .map(|line| {
            let points = line.attribute("points").unwrap().split_whitespace();
            for point in points {
                let (x, y) = point.split_once(',').unwrap();
                assert!(
                    x.parse::<f64>().unwrap().is_finite() && y.parse::<f64>().unwrap().is_finite()
                );
            }
            let of = |name| line.attribute(name).unwrap().to_owned();
            (of("data-payload"), of("data-peer"))
        })
        .collect();
    assert!(!drawn.is_empty());
    for line in &drawn {
        assert_eq!(
            drawn.iter().filter(|other| *other == line).count(),
            1,
            "{line:?}"
        );
    }
    for row in found["rows"].as_array().unwrap() {
        // Those that do not spin are drawn whatever the regime; of the others some regime is.
        let always = row["mode"] == "latency" && row["regime"] == "-";
        let line = (
            row["payload"].to_string(),
            row["name"].as_str().unwrap().to_owned(),
        );
        assert!(!always || drawn.contains(&line), "{line:?} is not drawn");
    }
    let legend: Vec<&str> = document
        .descendants()
        .filter_map(|node| node.text())
        .collect();
    for (_, peer) in &drawn {
        assert!(legend.contains(&peer.as_str()), "{peer} is not explained");
    }
}

/// iceoryx2's memory has names, which would stay behind.
#[cfg(feature = "peers")]
#[test]
fn nothing_is_left_of_a_killed_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bench(&LONG);
    let mut run = command.env("TMPDIR", dir.path()).spawn().unwrap();
    let child = child_of(&run, "iceoryx2");
    let names: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let left = || -> Vec<String> {
        let all = fs::read_dir("/dev/shm").unwrap();
        all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|found| names.iter().any(|name| found.starts_with(name.as_str())))
            .collect()
    };
    let until = Instant::now() + Duration::from_secs(30);
    while left().is_empty() {
        assert!(
            Instant::now() < until,
            "iceoryx2 has no memory called by {names:?}"
        );
        thread::sleep(Duration::from_millis(1));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let status = format!("/proc/{}/status", child.as_raw_nonzero());
    while fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ")) {
        assert!(Instant::now() < until, "the child lives on");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(left(), Vec::<String>::new());
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
        assert_eq!(asleep["peer"], "node_child_process");
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

#[test]
fn more_is_sent_than_may_be_kept_and_nothing_is_lost() {
    let found = success(&["memory", "--quick", "--json"]);
    assert_eq!(found["broken"], Value::Array(Vec::new()));
    assert_eq!(found["connections"], 600);
    for (kind, messages) in [("small", 500 * 40), ("large", 100 * 20)] {
        let of = &found[kind];
        assert_eq!(
            (&of["answered"], &of["wrong"], &of["failed"]),
            (&messages.into(), &0.into(), &0.into())
        );
    }
    let pool = &found["server"]["pool"];
    assert_eq!(
        (&pool["budget"], &pool["held"]),
        (&(2 << 20).into(), &0.into())
    );
    assert!(pool["waits"].as_u64().unwrap() > 0, "{pool}");
    // Each bound is made of what is printed with it.
    for bound in found["bounds"].as_array().unwrap() {
        let of = |name: &str| bound[name].as_u64().unwrap();
        assert!(
            of("found") <= of("base") + of("budget") + of("rings"),
            "{bound}"
        );
        assert!(of("rings") > 0, "{bound}");
    }
}

#[test]
fn a_server_that_dies_under_load_fails_the_run() {
    let arguments = ["memory", "--small", "8", "--large", "8", "--json"];
    let run = bench(&arguments).spawn().unwrap();
    // Its clients are started when it is ready.
    child_of(&run, "load");
    kill_process(child_of(&run, "server"), Signal::KILL).unwrap();
    let output = run.wait_with_output().unwrap();
    assert!(!output.status.success());
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
    "400",
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
    // A killed run cannot remove its directories.
    let dir = tempfile::tempdir().unwrap();
    let mut command = bench(&LONG);
    let mut run = command.env("TMPDIR", dir.path()).spawn().unwrap();
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

#[test]
fn one_active_connection_is_measured_among_idle_ones() {
    let found = success(&[
        "active",
        "--connections",
        "1,20,100000000",
        "--payload",
        "64",
        "--repeat",
        "2",
        "--millis",
        "10",
        "--json",
    ]);
    let rows = found["rows"].as_array().unwrap();
    let connections: Vec<_> = rows.iter().map(|row| &row["connections"]).collect();
    assert_eq!(connections, [1, 20]);
    for found in rows
        .iter()
        .flat_map(|row| row["repetitions"].as_array().unwrap())
    {
        let at = |quantile: &str| found["latency"][quantile].as_u64().unwrap();
        assert!(0 < at("p50") && at("p50") <= at("p99") && at("p99") <= at("max"));
        assert!(found["throughput"]["messages"].as_u64().unwrap() >= 100);
    }
    assert_eq!(rows[0]["repetitions"].as_array().unwrap().len(), 2);
    // More than any system allows is said and left out.
    let left_out = found["left_out"].to_string();
    assert!(
        left_out.contains("100000000 connections need"),
        "{left_out}"
    );
}

/// The rows of a command about contention, each with a latency or a rate in every repetition.
fn contention(command: &str) -> Vec<(String, String)> {
    let found = success(&[command, "--quick", "--json"]);
    let rows = found["rows"].as_array().unwrap();
    rows.iter()
        .map(|row| {
            for repetition in row["repetitions"].as_array().unwrap() {
                let latency = &repetition["latency"];
                if latency.is_object() {
                    let at = |name: &str| latency[name].as_u64().unwrap();
                    assert!(at("samples") > 0 && at("p50") > 0, "{row}");
                    assert!(at("p50") <= at("p99") && at("p99") <= at("max"), "{row}");
                } else {
                    let rates = repetition["rates"].as_array().unwrap();
                    assert!(!rates.is_empty(), "{row}");
                    let sound = |rate: &Value| rate["per_second"].as_f64().unwrap() >= 0.0;
                    assert!(rates.iter().all(sound), "{row}");
                }
            }
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            (text("what"), text("condition"))
        })
        .collect()
}

#[test]
fn clients_are_served_again_by_the_next_server() {
    let numbers = ["--clients", "1,20", "--restart-clients", "1,20"];
    let found = success(&[&["recovery", "--quick", "--json"][..], &numbers].concat());
    assert_eq!(found["errors"], Value::Array(Vec::new()));
    let rows = found["rows"].as_array().unwrap();
    let of = |row: &Value| {
        let number = |name: &str| row[name].as_u64().unwrap();
        let ms = |name: &str| row[name].as_f64().unwrap();
        assert!(0.0 < ms("p50_ms") && ms("p50_ms") <= ms("p99_ms"), "{row}");
        assert!(ms("p99_ms") <= ms("max_ms") && ms("last_p50_ms") <= ms("last_max_ms"));
        assert_eq!(ms("max_ms"), ms("last_max_ms"));
        assert_eq!(number("samples"), number("clients") * number("rounds"));
        (number("clients"), row["kind"].as_str().unwrap().to_owned())
    };
    let rows: Vec<_> = rows.iter().map(of).collect();
    let expected = [
        (1, "async"),
        (1, "blocking"),
        (20, "async"),
        (20, "blocking"),
    ];
    let expected = expected.map(|(clients, kind)| (clients, kind.to_owned()));
    assert_eq!(rows, expected);

    let restarts = found["restarts"].as_array().unwrap();
    let left_out = found["left_out"].as_array().unwrap();
    // The daemon is not a dependency: a test of this package alone may find none.
    let daemon = Path::new(env!("CARGO_BIN_EXE_lapce-ai-bench")).with_file_name("lapce-ai");
    if !daemon.is_file() {
        let said = left_out[0].as_str().unwrap();
        assert!(said.contains("cargo build -p lapce-ai"), "{said}");
        assert!(restarts.is_empty(), "{found}");
        return;
    }
    assert!(left_out.is_empty(), "{found}");
    let of = |row: &Value| {
        let number = |name: &str| row[name].as_u64().unwrap();
        for gaps in [&row["restart"], &row["quiet"]] {
            let ms = |name: &str| gaps[name].as_f64().unwrap();
            assert!(0.0 < ms("p50_ms") && ms("p50_ms") <= ms("p99_ms"), "{row}");
            assert!(ms("p99_ms") <= ms("max_ms"), "{row}");
        }
        assert_eq!((number("restarts"), number("failed")), (2, 0), "{row}");
        assert!(number("answers") >= 2 * number("clients"), "{row}");
        let connections = number("handed_over") + number("reconnected");
        assert!(connections >= 2 * number("clients"), "{row}");
        (number("clients"), row["kind"].as_str().unwrap().to_owned())
    };
    let restarts: Vec<_> = restarts.iter().map(of).collect();
    assert_eq!(restarts, expected);
}

#[test]
fn a_daemon_that_is_named_and_not_there_is_an_error() {
    let output = bench(&["recovery", "--quick", "--daemon", "/nowhere/lapce-ai"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no daemon at /nowhere/lapce-ai"), "{said}");
}

#[test]
fn beside_a_compiler() {
    let rows = contention("busy");
    // Four ways in two loops and the noise, on an idle machine and on a busy one: cargo has brought a rustc.
    assert_eq!(rows.len(), 18, "{rows:?}");
}

#[test]
fn large_beside_small() {
    let rows = contention("mixed");
    assert_eq!(rows.len(), 5, "{rows:?}");
}

#[test]
fn a_probe_beside_a_flood() {
    let rows = contention("priority");
    assert_eq!(rows.len(), 5, "{rows:?}");
}

#[test]
fn instructions_are_counted_and_held_against_a_file() {
    let Ok(valgrind) = Command::new("valgrind").arg("--version").output() else {
        let mut stderr = io::stderr();
        stderr
            .write_all(b"skipped: there is no valgrind\n")
            .unwrap();
        return;
    };
    assert!(valgrind.status.success());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("counts.json");
    let file = file.to_str().unwrap();
    let case = ["instructions", "--repeat", "1", "--only", "echo 64 KiB"];
    let with = |more: &[&str]| {
        let output = bench(&[&case, more].concat()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let (well, text) = with(&["--write", file]);
    assert!(well, "{text}");
    let mut counts: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let count = &mut counts["instructions_per_message"]["echo 64 KiB"];
    let is = count.as_f64().unwrap();
    // There and back it is copied out of a ring and into one at least.
    assert!(is > 1000.0, "{text}");
    for (was, good) in [(is * 2.0, true), (is / 2.0, false)] {
        counts["instructions_per_message"]["echo 64 KiB"] = was.into();
        fs::write(file, counts.to_string()).unwrap();
        let (well, text) = with(&["--check", file]);
        assert_eq!(well, good, "{text}");
        let word = if good { "faster" } else { "SLOWER" };
        assert!(text.contains(word), "{text}");
    }
    let (well, text) = with(&["--check", "/nowhere"]);
    assert!(!well && text.contains("cannot read /nowhere"), "{text}");
}
