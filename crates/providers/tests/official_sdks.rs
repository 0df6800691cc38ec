//! Official SDKs must send what we send and understand what we understand: see `ci/sdks/README.md`.
//!
//! `./test` sets up what they need; without that the tests say so and do nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "conformance/ask.rs"]
mod ask;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "official_sdks/openai.rs"]
mod openai;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// One SDK in its own process: jobs in, one line of JSON each, and as many answers out.
struct Sdk {
    child: Child,
    jobs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Sdk {
    /// The script `name` of `ci/sdks`, if the environment for it is there.
    fn start(name: &str) -> Option<Self> {
        let Some(python) = std::env::var_os("LAPCE_AI_TEST_SDKS_PYTHON") else {
            // Past the harness's capture: a test that did nothing must not look like one that passed.
            let note = "skipped: LAPCE_AI_TEST_SDKS_PYTHON is not set; run ./test for the set-up\n";
            std::io::stderr().write_all(note.as_bytes()).unwrap();
            return None;
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../ci/sdks")
            .join(name);
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self {
            jobs: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
        })
    }

    fn ask(&mut self, job: &Value) -> Value {
        let jobs = self.jobs.as_mut().unwrap();
        jobs.write_all(format!("{job}\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the SDK's script ended at {job}"))
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        // It ends when its input does.
        self.jobs = None;
        let _ = self.child.wait();
    }
}
