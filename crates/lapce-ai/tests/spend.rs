//! The ledger under a real daemon: killed in the middle, on a disk that is full, where nothing may be written, and broken.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::{Home, Log, ended, signal, until, wait};

fn total(home: &Home, of: &str) -> u64 {
    let spend: Value = serde_json::from_str(&home.ok(&["spend", "--json"])).unwrap();
    spend["total"][of].as_u64().unwrap()
}

fn trouble(home: &Home) -> Option<String> {
    let live: Value = serde_json::from_str(&home.ok(&["providers", "--live", "--json"])).unwrap();
    live["ledger"]["trouble"].as_str().map(str::to_owned)
}

#[test]
fn a_daemon_that_is_killed_leaves_sums_that_agree_with_its_requests() {
    let home = Home::new("");
    assert!(home.ok(&["spend"]).starts_with("nothing since "));
    let mut counted = 0;
    for _ in 0..3 {
        let mut daemon = home.serve(&[]);
        for _ in 0..3 {
            home.ok(&["chat", "--no-start", "hi"]);
        }
        counted += 3;
        until("they are written", || total(&home, "requests") >= counted);
        // These are killed in the middle, and so is their batch.
        let children: Vec<_> = (0..8)
            .map(|_| home.command(&["chat", "--no-start", "hi"]).spawn().unwrap())
            .collect();
        until("some are answered", || total(&home, "requests") > counted);
        signal(daemon.pid(), Signal::KILL);
        daemon.wait();
        let answered = children.into_iter().map(ended);
        let answered = answered.filter(|ended| ended.code == Some(0)).count() as u64;
        let kept = total(&home, "requests");
        // One that was given up with the connection may have been counted, too.
        assert!(
            kept > counted && kept <= counted + 8,
            "{kept} of {counted} and {answered}"
        );
        let listed: Value =
            serde_json::from_str(&home.ok(&["spend", "--json", "--by", "request"])).unwrap();
        assert_eq!(listed["rows"].as_array().unwrap().len() as u64, kept);
        counted = kept;
    }
    let mode = fs::metadata(home.path("state/lapce-ai/spend.db"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn where_nothing_can_be_written_the_daemon_goes_on_and_says_so() {
    let home = Home::new("[spend]\nledger = 'file/spend.db'\n");
    // Not even root makes a directory below a file.
    let file = home.path("config/lapce-ai/file");
    fs::write(&file, "").unwrap();
    let mut daemon = home.serve(&[]);
    for _ in 0..3 {
        home.ok(&["chat", "--no-start", "hi"]);
    }
    daemon.log.wait_for("counted in memory");
    assert!(trouble(&home).is_some());
    let live = home.ok(&["providers", "--live"]);
    assert!(live.contains("in memory only"), "{live}");
    let status = home.status();
    assert_eq!(status["providers"][0]["spend"]["monthRequests"], 3);
    fs::remove_file(&file).unwrap();
    daemon.log.wait_for("written again");
    until("they are written", || total(&home, "requests") == 3);
}

#[test]
fn a_broken_database_is_put_aside_with_a_clear_line() {
    let home = Home::new("");
    fs::create_dir_all(home.path("state/lapce-ai")).unwrap();
    fs::write(
        home.path("state/lapce-ai/spend.db"),
        "no database at all ".repeat(500),
    )
    .unwrap();
    let failed = home.run(&["spend"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.err.contains("cannot be read"), "{failed:?}");
    let mut daemon = home.serve(&[]);
    assert!(
        daemon
            .log
            .seen
            .contains("the ledger is broken: it was put aside"),
        "{}",
        daemon.log.seen
    );
    home.ok(&["chat", "--no-start", "hi"]);
    until("it is written", || total(&home, "requests") == 1);
    let entries = fs::read_dir(home.path("state/lapce-ai")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(
        names
            .into_iter()
            .any(|name| name.starts_with("spend.db.corrupt-"))
    );
    signal(daemon.pid(), Signal::TERM);
    assert!(daemon.wait().success());
}

#[test]
fn a_full_disk_stops_nothing() {
    // The limit below is one on shared memory, too.
    let home = Home::new("[ipc]\nshared_memory = false\n");
    let command = home.command(&["serve"]);
    // Files of this daemon grow to 8 KiB and no further, which is as good as a full disk. Its log is a pipe.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    shell
        .current_dir(command.get_current_dir().unwrap())
        .env_clear();
    shell.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let mut child = shell
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = Log::of(&mut child);
    log.wait_for("serving");
    for _ in 0..5 {
        home.ok(&["chat", "--no-start", "hi"]);
    }
    log.wait_for("counted in memory");
    let status = home.status();
    assert_eq!(status["providers"][0]["spend"]["monthRequests"], 5);
    home.ok(&["stop"]);
    assert!(wait(&mut child).success());
}

#[test]
fn without_a_ledger_nothing_is_written() {
    let home = Home::new("[spend]\nkeep = false\n");
    home.ok(&["chat", "hi"]);
    assert_eq!(home.status()["providers"][0]["spend"]["monthRequests"], 1);
    home.ok(&["stop"]);
    assert!(!home.path("state/lapce-ai/spend.db").exists());
}
