//! Keys that a command prints: `credential_process` of a profile.
//!
//! Source: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>.

use std::process::Stdio;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::{Keys, read_keys};
use crate::error::{ErrorKind, Phase, ProviderError};

/// The most time that the command may take. Some ask a person.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The most bytes that it may print.
const LIMIT: u64 = 64 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: u64,
}

/// Runs the command and reads its keys. It is killed when the future is dropped.
pub(super) async fn fetch(command: &SecretString) -> Result<Keys, ProviderError> {
    match tokio::time::timeout(TIMEOUT, run(command.expose_secret())).await {
        Ok(keys) => keys,
        Err(_) => {
            let seconds = TIMEOUT.as_secs();
            Err(ProviderError::new(
                ErrorKind::TimedOut(Phase::Upstream),
                format!("credential_process gave no AWS credentials in {seconds} s"),
            ))
        }
    }
}

async fn run(command: &str) -> Result<Keys, ProviderError> {
    let failed = |why: String| {
        let message = format!("credential_process gave no AWS credentials: {why}");
        ProviderError::new(ErrorKind::Authentication, message)
    };
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // The daemon waits for its successors by their process group, and must not find this one there.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let (mut printed, mut complaint) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = async {
        if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
            let (mut stdout, mut stderr) = (stdout.take(LIMIT), stderr.take(LIMIT));
            tokio::try_join!(
                stdout.read_to_end(&mut printed),
                stderr.read_to_end(&mut complaint)
            )?;
        }
        child.wait().await
    };
    let status = read.await.map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        let complaint = String::from_utf8_lossy(&complaint);
        // What it printed may be a key, what it complained of is for people.
        return Err(failed(format!("{status}: {}", complaint.trim())));
    }
    match serde_json::from_slice(&printed) {
        Ok(Version { version: 1 }) => read_keys(&printed, "credential_process"),
        _ => Err(failed(
            "what it printed is no JSON with `\"Version\": 1`".into(),
        )),
    }
}
