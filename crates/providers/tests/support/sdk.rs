//! A provider's own SDK in a process of its own, as a script of `ci/sdks` that `./test` sets up: a line of JSON in, a line
//! of JSON out.

#![allow(
    dead_code,
    reason = "a script that ends by itself needs the interpreter only"
)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// The Python that has the SDKs; `None`, and said so, where they are not installed.
pub(crate) fn python() -> Option<OsString> {
    let python = std::env::var_os("LAPCE_AI_TEST_SDKS_PYTHON");
    if python.is_none() {
        // Past the harness's capture: a test that did nothing must not look like one that passed.
        let note = "skipped: LAPCE_AI_TEST_SDKS_PYTHON is not set; run ./test for the set-up\n";
        std::io::stderr().write_all(note.as_bytes()).unwrap();
    }
    python
}

/// A script of `ci/sdks`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../ci/sdks")
        .join(name)
}

/// A script at work.
pub(crate) struct Sdk {
    process: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Sdk {
    /// Starts a script of `ci/sdks`, if the SDKs are there.
    pub(crate) fn start(name: &str) -> Option<Self> {
        let mut process = Command::new(python()?)
            .arg(script(name))
            // Proxies and credentials of whoever runs the test are none of its business.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self {
            questions: process.stdin.take(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        })
    }

    pub(crate) fn ask(&mut self, question: &Value) -> Value {
        let questions = self.questions.as_mut().unwrap();
        questions
            .write_all(format!("{question}\n").as_bytes())
            .unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the SDK has ended at {question}: {line}"))
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        // It ends when its input does, and must not outlive a test that failed.
        self.questions = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
