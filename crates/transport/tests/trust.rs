//! A client sends nothing to a socket that somebody else holds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use lapce_ai_transport::{ConnectError, connect};
use support::{Carrier, options, place};

/// Listens as another user, and prints how many bytes its first client sent before it went.
const IMPOSTOR: &str = "
import os, socket, sys
os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
listener.settimeout(20)
print('ready', flush=True)
client, _ = listener.accept()
client.settimeout(20)
print(len(client.recv(4096)))
";

#[test]
fn an_impostor_is_sent_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    for carrier in Carrier::ALL {
        let (base, dir) = place();
        // The impostor must be able to make its socket.
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut impostor = Command::new("python3")
            .args(["-c", IMPOSTOR])
            .arg(dir.socket())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut said = BufReader::new(impostor.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let error = connect(dir.socket(), &options(carrier)).unwrap_err();
        assert!(
            matches!(error, ConnectError::Untrusted { uid: 65534, .. }),
            "{error}"
        );
        let mut heard = String::new();
        said.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "0\n");
        assert!(impostor.wait().unwrap().success());
    }
}
