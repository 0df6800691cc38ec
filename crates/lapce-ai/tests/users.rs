//! A daemon that serves other users: who is served, who is not, and what none of them can do. Needs root, to be somebody
//! else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Signal, geteuid};
use serde_json::Value;
use support::{Daemon, Ended, Home, Log, ended, exists, signal};

/// Whose daemon it is, whom it serves, and somebody else.
const OWNER: u32 = 65534;
const GUEST: u32 = 65533;
const STRANGER: u32 = 65532;

/// Whether other users can be played here. Says why not, past the harness's capture.
fn can_be_others() -> bool {
    let program = Path::new(env!("CARGO_BIN_EXE_lapce-ai"));
    let closed = program
        .ancestors()
        .find(|place| fs::metadata(place).unwrap().mode() & 1 == 0);
    let why = match closed {
        _ if !geteuid().is_root() => "only root can be somebody else".to_owned(),
        Some(place) => format!("other users cannot reach {}", place.display()),
        None => return true,
    };
    let note = format!("skipped: {why}\n");
    std::io::stderr().write_all(note.as_bytes()).unwrap();
    false
}

/// A home that everybody may look into, with a runtime directory of the owner.
fn home(mode: u32) -> Home {
    let home = Home::new(&format!("[ipc]\nallowed_uids = [{GUEST}]"));
    fs::set_permissions(home.path(""), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(home.path("run"), Permissions::from_mode(mode)).unwrap();
    chown(home.path("run"), Some(OWNER), Some(OWNER)).unwrap();
    home
}

/// A command of another user.
fn of(uid: u32, mut command: Command) -> Command {
    command.uid(uid).gid(uid);
    command
}

fn run(home: &Home, uid: u32, args: &[&str]) -> Ended {
    ended(of(uid, home.command(args)).spawn().unwrap())
}

/// The same by somebody who trusts the owner's daemon.
fn run_trusting(home: &Home, uid: u32, args: &[&str]) -> Ended {
    let trust = format!("ipc.server_uids=[{OWNER}]");
    run(home, uid, &[&["--set", &trust], args].concat())
}

/// A shell's command of another user, in the runtime directory. Whether it worked.
fn shell(home: &Home, uid: u32, script: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(home.path("run"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    of(uid, command).status().unwrap().success()
}

fn serve(home: &Home) -> Daemon {
    let mut child = of(OWNER, home.command(&["serve"])).spawn().unwrap();
    let log = Log::of(&mut child);
    let mut daemon = Daemon { child, log };
    daemon.log.wait_for("serving");
    daemon
}

#[test]
fn other_users_are_served_as_far_as_both_sides_allow_it() {
    if !can_be_others() {
        return;
    }
    let home = home(0o711);
    let mut daemon = serve(&home);

    // The guest's side: it sends nothing to somebody else's daemon that its user does not trust.
    let refused = run(&home, GUEST, &["status"]);
    assert_ne!(refused.code, Some(0));
    assert!(
        refused.err.contains("held by uid 65534") && refused.err.contains("ipc.server_uids"),
        "{refused:?}"
    );
    let served = run_trusting(&home, GUEST, &["status", "--json"]);
    assert_eq!(served.code, Some(0), "{served:?}");
    let status: Value = serde_json::from_str(&served.out).unwrap();
    assert_eq!(status["connections"][0]["uid"], GUEST);
    assert_eq!(status["connections"][0]["transport"], "shared memory");
    let chat = run_trusting(&home, GUEST, &["chat", "--no-start", "hello"]);
    assert_eq!(chat.code, Some(0), "{chat:?}");
    assert!(!chat.out.is_empty());

    // The daemon's side.
    let refused = run_trusting(&home, STRANGER, &["status"]);
    assert_ne!(refused.code, Some(0));
    assert!(
        refused.err.contains("uid 65532 may not use this daemon"),
        "{refused:?}"
    );
    // The guest may use it, and not take it away from others.
    let refused = run_trusting(&home, GUEST, &["stop"]);
    assert_ne!(refused.code, Some(0));
    assert!(
        refused
            .err
            .contains("only its own user and root may stop it"),
        "{refused:?}"
    );

    // Nobody can put something else in its place, or hold its lock.
    for uid in [GUEST, STRANGER] {
        for script in [
            "rm -f daemon.sock",
            "mv daemon.sock other.sock",
            "touch another",
            "cat daemon.lock",
            "flock -n daemon.lock true",
            "chmod 777 .",
            "ls",
        ] {
            assert!(!shell(&home, uid, script), "uid {uid} can {script}");
        }
    }
    assert!(shell(&home, OWNER, "ls"), "it is not the shell that fails");
    assert_eq!(home.names_in_runtime_dir(), ["daemon.lock", "daemon.sock"]);

    let served = run(&home, OWNER, &["status"]);
    assert_eq!(served.code, Some(0), "{served:?}");
    signal(daemon.pid(), Signal::TERM);
    assert!(daemon.wait().success());
    assert!(!exists(&home.socket()));
}

#[test]
fn a_place_that_other_users_cannot_reach_is_refused_with_the_remedy() {
    if !can_be_others() {
        return;
    }
    let home = home(0o700);
    let refused = run(&home, OWNER, &["serve"]);
    assert_ne!(refused.code, Some(0));
    assert!(
        refused.err.contains("ipc.allowed_uids") && refused.err.contains("chmod 711"),
        "{refused:?}"
    );
    // What anybody may write to will not do either.
    fs::set_permissions(home.path("run"), Permissions::from_mode(0o777)).unwrap();
    let refused = run(&home, OWNER, &["serve"]);
    assert!(refused.err.contains("chmod go-w"), "{refused:?}");
    assert_eq!(home.names_in_runtime_dir(), [""; 0]);
}
