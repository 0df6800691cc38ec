//! A client's program that forks: alone in its process, since children inherit whatever other tests have open.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use fork::{Fork, fork};
use lapce_ai_proto::Features;
use lapce_ai_transport::{ConnectOptions, connect};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use support::{Home, signal, until};

/// Lives until it is dropped.
struct Forked(i32);

impl Forked {
    fn lives(&self) -> bool {
        let ended = waitpid(Pid::from_raw(self.0), WaitOptions::NOHANG);
        ended.unwrap().is_none()
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        signal(self.0, Signal::KILL);
        let _ = waitpid(Pid::from_raw(self.0), WaitOptions::empty());
    }
}

/// The connection itself, and not a client, which hangs up for all when it is closed: this is what its process's death does.
#[test]
fn a_forked_child_holds_no_connection() {
    for shared_memory in [true, false] {
        let home = Home::new("");
        let _daemon = home.serve(&[]);
        let options = ConnectOptions {
            name: "forks".into(),
            instance: 7,
            features: Features {
                shared_memory,
                ..Features::default()
            },
            response_window: 1 << 16,
            earlier: 0,
            timeout: Duration::from_secs(60),
            server_uids: Vec::new(),
        };
        let (connection, _) = connect(&home.socket(), &options).unwrap();
        let connected = || home.status()["connections"].as_array().unwrap().len();
        // Who asks for the status is one.
        assert_eq!(connected(), 2);
        let child = match fork().unwrap() {
            Fork::Parent(pid) => Forked(pid),
            Fork::Child => {
                std::thread::sleep(Duration::from_secs(300));
                std::process::abort()
            }
        };
        until("only those two are connected", || connected() == 2);
        drop(connection);
        until("the daemon has seen it go", || connected() == 1);
        assert!(child.lives());
    }
}
