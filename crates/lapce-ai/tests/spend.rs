//! The ledger under a real daemon: killed in the middle, on a disk that is full, where nothing may be written, and broken.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, getrlimit, prlimit};
use serde_json::Value;
use support::{Daemon, HANGS, Home, ended, first_bytes, signal, until};

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
fn what_is_cut_at_the_end_is_in_the_ledger() {
    // Over sockets the daemon does not see that a client is dead, and so lets its request run on.
    let ipc = "[ipc]\nshared_memory = false\nlost_request_secs = 600\ndrain_timeout_secs = 0\n";
    let home = Home::new(&format!("[spend]\nprices = 'prices.toml'\n{ipc}{HANGS}"));
    let prices = "[[price]]\nprovider = 'local'\nmodels = ['*']\ninput = 10\noutput = 10\n";
    fs::write(home.path("config/lapce-ai/prices.toml"), prices).unwrap();
    let mut daemon = home.serve(&[]);
    let begun = || {
        let mut chat = home.command(&["chat", "--no-start", "hi"]).spawn().unwrap();
        first_bytes(&mut chat);
        chat
    };
    let mut dead = begun();
    dead.kill().unwrap();
    dead.wait().unwrap();
    until("it was hung up on", || {
        home.status()["connections"].as_array().unwrap().len() == 1
    });
    let living = begun();
    signal(daemon.pid(), Signal::TERM);
    assert!(daemon.wait().success());
    ended(living);
    // One is cut when the time is over, the other with everything that is left.
    let kept = [total(&home, "requests"), total(&home, "estimated")];
    assert_eq!(kept, [2, 2]);
    assert!(total(&home, "costNanoUsd") > 0);
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

/// A daemon whose files may become as large as the test says. Its log is a pipe. `limit` is of 512 bytes each.
fn serve_limited(home: &Home, limit: &str) -> Daemon {
    let script = format!("trap '' XFSZ; ulimit -S -f {limit}; exec \"$0\" \"$@\"");
    Daemon::start(home.command_by_shell(&script, &["serve"]))
}

/// Sets how large the daemon's files may become, in bytes.
fn limit(daemon: &Daemon, bytes: Option<u64>) {
    let limit = Rlimit {
        current: bytes,
        ..getrlimit(Resource::Fsize)
    };
    prlimit(Pid::from_raw(daemon.pid()), Resource::Fsize, limit).unwrap();
}

/// How often the daemon said that the ledger is not written.
fn warnings(daemon: &Daemon) -> usize {
    daemon
        .log
        .seen
        .matches("the ledger cannot be written")
        .count()
}

#[test]
fn a_full_disk_stops_nothing_and_what_was_spent_meanwhile_is_written_later() {
    // The limit is one on shared memory, too.
    let home = Home::new("[ipc]\nshared_memory = false\n");
    // Files grow to 8 KiB and no further, which is as good as a full disk.
    let mut daemon = serve_limited(&home, "16");
    for _ in 0..5 {
        home.ok(&["chat", "--no-start", "hi"]);
    }
    daemon.log.wait_for("counted in memory");
    let status = home.status();
    assert_eq!(status["providers"][0]["spend"]["monthRequests"], 5);
    assert!(status["ledger"]["trouble"].is_string(), "{status}");
    let text = home.ok(&["status"]);
    assert!(text.contains("the ledger is not written"), "{text}");
    limit(&daemon, None);
    daemon.log.wait_for("written again");
    assert_eq!(warnings(&daemon), 1, "{}", daemon.log.seen);
    until("they are written", || total(&home, "requests") == 5);
    assert!(trouble(&home).is_none());
    home.ok(&["stop"]);
    assert!(daemon.wait().success());
}

#[test]
fn what_a_full_disk_does_not_take_at_the_end_either_is_told_of() {
    let home = Home::new("[ipc]\nshared_memory = false\n");
    let mut daemon = serve_limited(&home, "16");
    for _ in 0..5 {
        home.ok(&["chat", "--no-start", "hi"]);
    }
    daemon.log.wait_for("counted in memory");
    home.ok(&["stop"]);
    daemon.log.wait_for("what was spent last is not kept");
    assert!(
        daemon.log.seen.contains("requests=5"),
        "{}",
        daemon.log.seen
    );
    assert!(daemon.wait().success());
}

#[test]
fn a_disk_that_fills_up_under_way_loses_nothing() {
    let home = Home::new("[ipc]\nshared_memory = false\n");
    let mut daemon = serve_limited(&home, "unlimited");
    for _ in 0..2 {
        home.ok(&["chat", "--no-start", "hi"]);
    }
    until("they are written", || total(&home, "requests") == 2);
    limit(&daemon, Some(1));
    for _ in 0..3 {
        home.ok(&["chat", "--no-start", "hi"]);
    }
    daemon.log.wait_for("counted in memory");
    assert!(trouble(&home).is_some());
    assert_eq!(home.status()["providers"][0]["spend"]["monthRequests"], 5);
    assert_eq!(total(&home, "requests"), 2, "what is there can be read");
    limit(&daemon, None);
    daemon.log.wait_for("written again");
    assert_eq!(warnings(&daemon), 1, "{}", daemon.log.seen);
    until("they are written", || total(&home, "requests") == 5);
    home.ok(&["stop"]);
    assert!(daemon.wait().success());
    let listed: Value =
        serde_json::from_str(&home.ok(&["spend", "--json", "--by", "request"])).unwrap();
    assert_eq!(listed["rows"].as_array().unwrap().len(), 5);
}

/// Somebody for whom a file's mode means something: nobody where the test is root's.
const PLAIN: u32 = 65534;

/// Whether there is such a user here. Says why not, past the harness's capture.
fn modes_count() -> bool {
    let program = Path::new(env!("CARGO_BIN_EXE_lapce-ai"));
    let closed = |place: &&Path| fs::metadata(place).unwrap().mode() & 1 == 0;
    if geteuid().is_root()
        && let Some(place) = program.ancestors().find(closed)
    {
        let note = format!("skipped: other users cannot reach {}\n", place.display());
        std::io::stderr().write_all(note.as_bytes()).unwrap();
        return false;
    }
    true
}

fn plain(mut command: Command) -> Command {
    if geteuid().is_root() {
        command.uid(PLAIN).gid(PLAIN);
    }
    command
}

/// A home of the plain user.
fn plain_home(config: &str) -> Home {
    let home = Home::new(config);
    fs::create_dir_all(home.path("state/lapce-ai")).unwrap();
    mode(&home, "", 0o755);
    if geteuid().is_root() {
        for path in ["run", "state", "state/lapce-ai"] {
            chown(home.path(path), Some(PLAIN), Some(PLAIN)).unwrap();
        }
    }
    home
}

fn mode(home: &Home, path: &str, mode: u32) {
    fs::set_permissions(home.path(path), fs::Permissions::from_mode(mode)).unwrap();
}

fn plain_ok(home: &Home, args: &[&str]) -> String {
    let ended = ended(plain(home.command(args)).spawn().unwrap());
    assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    ended.out
}

fn plain_json(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&plain_ok(home, args)).unwrap()
}

fn plain_serve(home: &Home) -> Daemon {
    Daemon::start(plain(home.command(&["serve"])))
}

#[test]
fn a_ledger_that_may_only_be_read_holds_budgets_all_the_same() {
    if !modes_count() {
        return;
    }
    let home = plain_home(
        "[spend]\nprices = 'prices.toml'\n[budgets.all]\nper = 'month'\nhard_usd = 1000\n",
    );
    let prices = "[[price]]\nprovider = 'local'\nmodels = ['*']\ninput = 10\noutput = 10\n";
    fs::write(home.path("config/lapce-ai/prices.toml"), prices).unwrap();
    let chat = ["chat", "--no-start", "hi"];
    let spend = ["spend", "--json"];
    let status = ["status", "--json"];
    let requests = || plain_json(&home, &spend)["total"]["requests"].clone();
    let mut daemon = plain_serve(&home);
    plain_ok(&home, &chat);
    plain_ok(&home, &chat);
    until("they are written", || requests() == 2);
    signal(daemon.pid(), Signal::TERM);
    assert!(daemon.wait().success());
    let cost = plain_json(&home, &spend)["total"]["costNanoUsd"].clone();
    assert!(cost.as_u64().unwrap() > 0);

    mode(&home, "state/lapce-ai/spend.db", 0o444);
    mode(&home, "state/lapce-ai", 0o555);
    let mut daemon = plain_serve(&home);
    daemon.log.wait_for("the ledger cannot be written");
    let told = plain_json(&home, &status);
    assert_eq!(told["budgets"][0]["spentNanoUsd"], cost, "{told}");
    let why = told["ledger"]["trouble"].as_str().unwrap();
    assert!(why.contains("spend.db: Permission denied"), "{why}");
    plain_ok(&home, &chat);
    assert_eq!(requests(), 2);
    assert!(plain_ok(&home, &["status"]).contains("the ledger is not written"));

    mode(&home, "state/lapce-ai", 0o700);
    mode(&home, "state/lapce-ai/spend.db", 0o600);
    daemon.log.wait_for("written again");
    until("it is written", || requests() == 3);
    assert_eq!(warnings(&daemon), 1, "{}", daemon.log.seen);
    let told = plain_json(&home, &status);
    assert_eq!(
        told["budgets"][0]["spentNanoUsd"],
        plain_json(&home, &spend)["total"]["costNanoUsd"],
        "nothing was counted twice"
    );
}

#[test]
fn a_broken_database_that_cannot_be_put_aside_stops_nothing() {
    if !modes_count() {
        return;
    }
    let home = plain_home("");
    let file = "state/lapce-ai/spend.db";
    fs::write(home.path(file), "no database at all ".repeat(500)).unwrap();
    mode(&home, file, 0o666);
    mode(&home, "state/lapce-ai", 0o555);
    let mut daemon = plain_serve(&home);
    daemon.log.wait_for("it cannot be put aside");
    plain_ok(&home, &["chat", "--no-start", "hi"]);
    let told = plain_json(&home, &["status", "--json"]);
    assert_eq!(told["providers"][0]["spend"]["monthRequests"], 1);
    let why = told["ledger"]["trouble"].as_str().unwrap();
    assert!(why.contains("not a database"), "{why}");
    mode(&home, "state/lapce-ai", 0o700);
    daemon
        .log
        .wait_for("it was put aside, and a new one begins");
    assert_eq!(warnings(&daemon), 1, "{}", daemon.log.seen);
    until("it is written", || {
        let ended = ended(plain(home.command(&["spend", "--json"])).spawn().unwrap());
        let spend: Value = serde_json::from_str(&ended.out).unwrap_or_default();
        spend["total"]["requests"] == 1
    });
}

#[test]
fn without_a_ledger_nothing_is_written() {
    let home = Home::new("[spend]\nkeep = false\n");
    home.ok(&["chat", "hi"]);
    assert_eq!(home.status()["providers"][0]["spend"]["monthRequests"], 1);
    home.ok(&["stop"]);
    assert!(!home.path("state/lapce-ai/spend.db").exists());
}
